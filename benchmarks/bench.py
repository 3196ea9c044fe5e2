"""Seconds and memory of the product against a direct implementation and the machine's floor: ``make bench``.

Every measurement compares workers that take turns, each in its own process, so that other load of the machine affects
all of them. A worker runs what a user would run: the product through a Lightning ``Trainer`` with the pipeline's
settings, or ``direct.py``; with ``--against FOLDER`` the product of another checkout instead of ``direct.py``. The
floor is the number of floating-point operations (torch's flop counter: matrix products and convolutions, without
gradients of the teacher's weights) over the rate of a large matrix product on the same device at the same precision.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.cases import EXPERIMENTS, ROOT, make_case
from benchmarks.turns import Worker, ratio, running, take_turns
from benchmarks.worker import Task, count_operations, measure_rate
from kegnet_pl.pipeline.provenance import command_line, versions
from kegnet_pl.training.generator_module import should_vectorize

STEPS = {"lenet5": 20, "resnet14": 10, "mlp": 100}
"""Generator steps of one measurement; it takes some seconds."""

WORKS = ("generator_step", "student_epoch", "draw")

CHOICES = ("vmap", "compile", "seeds", "keep_freed_memory", "cuda_graphs")


def megabytes(worker: Worker, device: str) -> float:
    """Return the peak memory since the warm-up, of the device that computes."""
    return float(worker.ask("peak")["device_mb" if device == "cuda" else "host_mb"])


def _as_pipeline(task: Task) -> Task:
    """Train generators together where the pipeline does so by default."""
    together = task.work == "generator_step" and should_vectorize(
        "auto", 2, torch.device(task.device), make_case(task.network).input_shape
    )
    return replace(task, together=together)


def _warm_ups(task: Task) -> int:
    return 2 if task.work == "generator_step" else 1


def measure(task: Task, repeats: int, rates: dict[str, float]) -> dict[str, Any]:
    """Measure the product against the direct implementation; return a row of ``bench.json``."""
    ours, direct = _as_pipeline(task), replace(task, how="direct")
    tasks = [ours, direct, replace(ours, how="bare")] if task.work == "generator_step" else [ours, direct]
    with running(*tasks) as workers:
        seconds = take_turns(workers, repeats, _warm_ups(task))
        peak, direct_peak = (megabytes(worker, task.device) for worker in workers[:2])
    floor = count_operations(task) / rates[task.precision]
    ours_seconds = statistics.median(seconds[0])
    return {
        "work": task.work,
        "network": task.network,
        "device": device_label(task.device),
        "precision": task.precision,
        "samples": task.samples if task.work != "generator_step" else None,
        "seconds": ours_seconds,
        "direct_seconds": statistics.median(seconds[1]),
        "floor_seconds": floor,
        "times_faster_than_direct": ratio(seconds[1], seconds[0]),
        "times_floor": ours_seconds / floor,
        "peak_mb": peak,
        "direct_peak_mb": direct_peak,
        "repeats": repeats,
        "versions": versions(),
        "lightning_share": 1 - ratio(seconds[2], seconds[0]) if len(tasks) == 3 else None,
        "all_seconds": seconds[0],
        "all_direct_seconds": seconds[1],
        "seed": 0,
        "command": command_line("benchmarks.bench"),
    }


def compare_choices(
    networks: list[str], device: str, precisions: list[str], repeats: int, small: Task, only: Sequence[str] = CHOICES
) -> list[dict[str, Any]]:
    """Measure options of the product with and without each option: the reasons for its defaults."""
    rows = []
    for network in networks:
        for precision in precisions:
            step = replace(small, work="generator_step", network=network, device=device, precision=precision)
            step = replace(step, steps=max(STEPS[network] // 2, 2))
            epoch = replace(step, work="student_epoch", samples=min(small.samples, 3200))
            pairs = [("vmap", step, replace(step, together=True)), ("compile", step, replace(step, compile=True))]
            pairs += [("compile", epoch, replace(epoch, compile=True)), ("seeds", epoch, replace(epoch, together=True))]
            if device == "cpu":
                pairs += [("keep_freed_memory", replace(task, keep=False), task) for task in (step, epoch)]
            else:
                pairs += [("cuda_graphs", replace(task, graphs=False), task) for task in (step, epoch)]
            for choice, without, chosen in pairs:
                if choice not in only:
                    continue
                with running(without, chosen) as workers:
                    seconds = take_turns(workers, repeats)
                rows.append(
                    {
                        "choice": choice, "work": chosen.work, "network": network, "device": device_label(device),
                        "precision": precision, "seconds": statistics.median(seconds[1]),
                        "seconds_without": statistics.median(seconds[0]), "times_faster": ratio(*seconds),
                        "samples": chosen.samples if chosen.work == "student_epoch" else None, "repeats": repeats,
                        "versions": versions(), "command": command_line("benchmarks.bench"),
                    }
                )  # fmt: skip
    return rows


def compare_checkouts(task: Task, repeats: int, before: Path) -> dict[str, Any]:
    """Measure the product of another checkout and of this one; return a row of ``bench_before_after.json``."""
    task = _as_pipeline(task)
    with running(task, task, folders=(before, ROOT)) as workers:
        seconds_before, seconds_after = take_turns(workers, repeats, _warm_ups(task))
    ratios = [after / earlier for after, earlier in zip(seconds_after, seconds_before, strict=True)]
    return {
        "work": task.work,
        "network": task.network,
        "device": device_label(task.device),
        "precision": task.precision,
        "samples": task.samples if task.work != "generator_step" else None,
        "seconds_before": statistics.median(seconds_before),
        "seconds_after": statistics.median(seconds_after),
        "after_over_before": statistics.median(ratios),
        "all_seconds_before": seconds_before,
        "all_seconds_after": seconds_after,
        "all_ratios": ratios,
        "repeats": repeats,
        "commit_before": _commit(before),
        "commit_after": _commit(ROOT),
        "versions": versions(),
        "command": command_line("benchmarks.bench").replace(
            f"--against {before}", f"--against {before.resolve().name}"
        ),
    }


def _commit(folder: Path) -> str:
    """Return the commit of a checkout; it ends with ``-dirty`` where tracked files differ from it."""
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def _merged(out: Path, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Replace older rows by new rows of the same kind."""
    kind = ("choice", "work", "network", "device", "precision")
    new = {tuple(row.get(key) for key in kind): row for row in rows}
    old = json.loads(out.read_text()) if out.exists() else []
    kept = {tuple(row.get(key) for key in kind): row for row in old}
    return list((kept | new).values())


def device_label(device: str) -> str:
    """Return the name of a device for a row."""
    if device == "cuda":
        return str(torch.cuda.get_device_name())
    return f"cpu ({platform.machine()}, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()})"


_NAMES = ("work", "network", "precision")


def _print_table(
    title: str, names: Sequence[str], numbers: Mapping[str, str], rows: list[dict[str, Any]], console: Console
) -> None:
    """Print rows: their names, and numbers by heading, each a format string of the row's values."""
    table = Table(*names, title=title)
    for heading in numbers:
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(*(row[name] for name in names), *(cell.format(**row) for cell in numbers.values()))
    console.print(table)


def _print_bench(rows: list[dict[str, Any]], console: Console) -> None:
    numbers = {
        "seconds": "{seconds:.4g}",
        "direct": "{direct_seconds:.4g}",
        "faster": "{times_faster_than_direct:.1f}x",
        "floor": "{floor_seconds:.3g}",
        "x floor": "{times_floor:.1f}",
        "MB": "{peak_mb:.0f}",
        "direct MB": "{direct_peak_mb:.0f}",
        "Lightning": "{lightning}",
    }
    rows = [row | {"lightning": "" if (share := row["lightning_share"]) is None else f"{share:.0%}"} for row in rows]
    _print_table("Seconds of one generator step, one student epoch, one draw; medians", _NAMES, numbers, rows, console)


def _print_choices(rows: list[dict[str, Any]], console: Console) -> None:
    numbers = {"without": "{seconds_without:.4g}", "with": "{seconds:.4g}", "faster": "{times_faster:.2f}x"}
    _print_table("Choices: seconds without, with; medians", ("choice", *_NAMES), numbers, rows, console)


def _print_checkouts(rows: list[dict[str, Any]], console: Console) -> None:
    numbers = {
        "before": "{seconds_before:.4g}",
        "after": "{seconds_after:.4g}",
        "after / before": "{after_over_before:.3f}",
        "least": "{least:.3f}",
        "largest": "{largest:.3f}",
    }
    rows = [row | {"least": min(row["all_ratios"]), "largest": max(row["all_ratios"])} for row in rows]
    title = "Seconds before and after; medians, and the median, least and largest of the pairs' ratios"
    _print_table(title, _NAMES, numbers, rows, console)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench", description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", default=list(EXPERIMENTS), choices=EXPERIMENTS)
    parser.add_argument(
        "--works", nargs="+", default=None, choices=WORKS, help="default: all; with --against: those that train"
    )
    parser.add_argument("--precisions", nargs="+", default=["32-true", "bf16-mixed"], choices=["32-true", "bf16-mixed"])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cpu", "cuda"])
    parser.add_argument("--repeats", type=int, default=5, help="measurements of each side")
    parser.add_argument("--samples", type=int, default=32_000, help="of an epoch and of a draw")
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument(
        "--choices", nargs="*", choices=CHOICES, metavar="CHOICE",
        help=f"compare the product's choices instead: all, or some of {', '.join(CHOICES)}",
    )  # fmt: skip
    kind.add_argument(
        "--against", type=Path, metavar="FOLDER",
        help="compare the product of another checkout of this project (before) with this one (after) instead; `.` "
        "compares this one with itself and shows the noise",
    )  # fmt: skip
    parser.add_argument(
        "--out",
        type=Path,
        help="default: results/bench.json, results/bench_choices.json, results/bench_before_after.json",
    )
    given = parser.parse_args()
    if given.against and not (given.against / "benchmarks" / "worker.py").is_file():
        parser.error(
            f"Expected `--against` to be a checkout of this project, but got {given.against}. "
            "Make one: git worktree add FOLDER COMMIT."
        )
    given.works = given.works or WORKS[: 2 if given.against else 3]
    return given


def _tasks(given: argparse.Namespace) -> Iterator[Task]:
    """Yield the tasks to measure; the product draws in float32 only."""
    for network in given.networks:
        for work in given.works:
            for precision in ["32-true"] if work == "draw" else given.precisions:
                yield Task(work, network, given.device, precision, steps=STEPS[network], samples=given.samples)


def _measure_all(
    tasks: list[Task], measure_one: Callable[[Task], dict[str, Any]], key: str, console: Console
) -> list[dict[str, Any]]:
    """Measure every task; print the number ``key`` of each row at once."""
    rows = []
    for task in tasks:
        rows.append(measure_one(task))
        console.print(f"{task.network} {task.work} {task.precision}: {key} {rows[-1][key]:.3g}", style="dim")
    return rows


def main() -> None:
    """Measure, print and store."""
    given = _arguments()
    console = Console(width=140)
    start = time.perf_counter()
    tasks = list(_tasks(given))
    if given.choices is not None:
        small = Task("generator_step", given.networks[0], samples=given.samples)
        only = given.choices or CHOICES
        rows = compare_choices(given.networks, given.device, given.precisions, given.repeats, small, only)
        name, show = "bench_choices", _print_choices
    elif given.against:
        rows = _measure_all(
            tasks, lambda task: compare_checkouts(task, given.repeats, given.against), "after_over_before", console
        )
        name, show = "bench_before_after", _print_checkouts
    else:
        precisions = dict.fromkeys(task.precision for task in tasks)
        rates = {precision: measure_rate(given.device, precision) for precision in precisions}
        rows = _measure_all(
            tasks, lambda task: measure(task, given.repeats, rates), "times_faster_than_direct", console
        )
        name, show = "bench", _print_bench
        rate_list = ", ".join(f"{rate / 1e9:,.0f} GFLOP/s ({precision})" for precision, rate in rates.items())
        console.print(f"Matrix products: {rate_list}.")
    show(rows, console)
    console.print(f"{time.perf_counter() - start:.0f} s in all.")
    out = given.out or ROOT / "results" / f"{name}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(_merged(out, rows), indent=2) + "\n")
    console.print(f"Stored in {os.path.relpath(out)}.")


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    main()
