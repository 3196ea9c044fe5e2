"""Maintenance of a store of finished stages: ``python -m kegnet_pl.store list | check | gc STORE``."""

import argparse
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from kegnet_pl.pipeline.inventory import Entry, State, choose, find_users, read_store, remove
from kegnet_pl.runtime.errors import UserError

_RUNS = [Path("outputs/runs"), Path("outputs/sweeps")]
_UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_TIMES = {"m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}
_SHOWN = 3


def _size(text: str) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([kMGT]?)B?", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"Expected a size, such as 500M or 20G, but got {text!r}.")
    return int(float(match[1]) * _UNITS[match[2]])


def _age(text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([mhdw])", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"Expected an age, such as 30d, 12h or 4w, but got {text!r}.")
    return float(match[1]) * _TIMES[match[2]]


def _show_size(size: int) -> str:
    unit = next((unit for unit in ("T", "G", "M", "k") if size >= _UNITS[unit]), "")
    return f"{size / _UNITS[unit]:.3g} {unit}B"


def _show_age(entry: Entry) -> str:
    seconds = max(0.0, time.time() - entry.changed)
    unit = next((unit for unit in ("d", "h") if seconds >= _TIMES[unit]), "m")
    return f"{seconds / _TIMES[unit]:.0f} {unit}"


def _print_table(entries: Sequence[Entry]) -> None:
    rows = [("stage", "fingerprint", "state", "size", "age", "runs")]
    for entry in entries:
        more = f" and {len(entry.runs) - _SHOWN} more" if len(entry.runs) > _SHOWN else ""
        used = ", ".join(entry.runs[:_SHOWN]) + more or "-"
        rows.append((entry.stage, entry.fingerprint, entry.state, _show_size(entry.bytes), _show_age(entry), used))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        cells = [cell.rjust(widths[i]) if i in (3, 4) else cell.ljust(widths[i]) for i, cell in enumerate(row)]
        print("  ".join(cells).rstrip())  # noqa: T201
    print(f"{len(entries)} folders, {_show_size(sum(entry.bytes for entry in entries))}")  # noqa: T201


def _list(root: Path, options: argparse.Namespace) -> int:
    entries = read_store(root, _find_runs(options))
    _print_table(entries)
    for entry in entries:
        if entry.reason:
            print(f"{entry.folder.name}: {entry.reason}")  # noqa: T201
        if entry.target:
            print(f"{entry.folder.name} is a link to {entry.target}")  # noqa: T201
    return 0


def _check(root: Path, options: argparse.Namespace) -> int:  # noqa: ARG001
    entries = read_store(root, verify="always")
    damaged = [entry for entry in entries if entry.reason]
    for entry in damaged:
        print(f"{entry.folder.name}: {entry.reason}")  # noqa: T201
    finished = sum(entry.state == "finished" for entry in entries)
    aside = sum(entry.state == "damaged" for entry in entries) - len(damaged)
    print(  # noqa: T201
        f"{finished} stages are intact, {len(damaged)} damaged, {aside} renamed earlier, "
        f"{sum(entry.state == 'unfinished' for entry in entries)} unfinished."
    )
    if damaged:
        print("The next run that needs a damaged stage renames it and builds it again.")  # noqa: T201
    return 1 if damaged else 0


def _gc(root: Path, options: argparse.Namespace) -> int:
    conditions = (options.older_than, options.larger, options.max_size)
    wanted: dict[State, bool] = {"unfinished": options.unfinished, "damaged": options.damaged}
    states = [state for state, chosen in wanted.items() if chosen]
    if all(condition is None for condition in conditions) and not options.unreachable and not states:
        options.refuse(
            "Expected at least one condition, but got none: all stages would be removed. Conditions: --older-than AGE, "
            "--larger SIZE, --max-size SIZE, --unreachable, --unfinished, --damaged (see --help). Example: python -m "
            "kegnet_pl.store gc --unreachable --older-than 30d lists stages; add --yes to remove them."
        )
    runs = _find_runs(options)
    if options.unreachable and not find_users(root, runs):
        raise UserError(
            f"Expected runs that use the store in {', '.join(map(str, runs)) or 'outputs/runs'}, but found none: all "
            f"stages would be unreachable. Name the folders of the runs with --runs DIR..."
        )
    entries = read_store(root, runs)
    gone = choose(
        entries,
        states=states or ["finished"],
        older_than=options.older_than,
        larger_than=options.larger,
        unreachable=options.unreachable,
        max_size=options.max_size,
    )
    gone += [entry for entry in entries if entry.state == "leftover"]
    _print_table(gone)
    if not options.yes:
        print("Nothing was removed. Add --yes to remove these folders.")  # noqa: T201
        return 0
    status = 0
    for entry, done in remove(root, gone):
        if done and entry.target:
            print(f"{entry.folder.name}: the link was removed. Its folder {entry.target} was not removed.")  # noqa: T201
        if not done:
            status = 1
            print(f"{entry.folder.name} was not removed: a process is building it, or it cannot be deleted.")  # noqa: T201
    return status


def _find_runs(options: argparse.Namespace) -> list[Path]:
    missing = [folder for folder in options.runs or () if not folder.is_dir()]
    if missing:
        raise UserError(f"Expected folders of runs with --runs, but there is no {', '.join(map(str, missing))}.")
    return list(options.runs or [folder for folder in _RUNS if folder.is_dir()])


def main(arguments: list[str] | None = None) -> int:
    """Run the command line with arguments, or those of this process; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m kegnet_pl.store", description="Check and clean a store.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    texts = {
        "list": "list stages: fingerprint, state, size, age, and the runs that use each",
        "check": "compare all files with their SHA-256; the exit status is 1 if a stage is damaged",
        "gc": "list the folders that may be removed; with --yes, remove them",
    }
    parsers = {name: commands.add_parser(name, help=text, description=text) for name, text in texts.items()}
    for name, run in (("list", _list), ("check", _check), ("gc", _gc)):
        parsers[name].set_defaults(run=run)
        parsers[name].add_argument(
            "store", nargs="?", type=Path, default=Path("outputs/store"), metavar="STORE",
            help="folder of the store (default: %(default)s)",
        )  # fmt: skip
    for name in ("list", "gc"):
        parsers[name].add_argument(
            "--runs", nargs="+", type=Path, metavar="DIR",
            help="folders of runs, or above them (default: outputs/runs outputs/sweeps)",
        )  # fmt: skip
    gc = parsers["gc"]
    gc.add_argument("--older-than", type=_age, metavar="AGE", help="unchanged for longer than this, such as 30d or 12h")
    gc.add_argument("--larger", type=_size, metavar="SIZE", help="larger than this, such as 500M")
    gc.add_argument(
        "--max-size", type=_size, metavar="SIZE", help="the oldest stages, until the store has at most this size"
    )
    gc.add_argument("--unreachable", action="store_true", help="not used by any of the runs")
    gc.add_argument("--unfinished", action="store_true", help="interrupted stages instead of finished ones")
    gc.add_argument("--damaged", action="store_true", help="stages that are damaged, and renamed ones")
    gc.add_argument("--yes", action="store_true", help="remove the listed folders")
    gc.set_defaults(refuse=gc.error)
    options = parser.parse_args(arguments)
    try:
        if not options.store.is_dir():
            raise UserError(f"Expected a store at {options.store}, but there is no such folder.")
        status: int = options.run(options.store.absolute(), options)
    except (UserError, PermissionError) as error:
        print(f"Error: {error}", file=sys.stderr)  # noqa: T201
        return 1
    return status


if __name__ == "__main__":
    sys.exit(main())
