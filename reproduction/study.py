"""What a result depends on, one factor at a time (``studies.yaml``): ``python -m reproduction.study svhn``.

It can be stopped at any time and started again. Runs lie in ``results/STUDY/``, the table is ``results/STUDY.md``.
"""

import argparse
import re
import statistics
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml

from reproduction.commands import changed, positive, setting
from reproduction.jobs import ROOT, at_hand, store_of, weights
from reproduction.runner import Run, read_rows, run_missing, say, shown
from reproduction.teachers import hand_out_teachers


def read_studies() -> dict[str, Any]:
    """Return the content of ``studies.yaml``."""
    content: dict[str, Any] = yaml.safe_load((Path(__file__).parent / "studies.yaml").read_text())
    return content


def runs_of(study: dict[str, Any], teacher: str | None, further: Sequence[str] = ()) -> dict[tuple[str, str, int], Run]:
    """Return the runs of a study by variant, option and seed; all options and seeds of a variant follow each other.

    Args:
        study: One of ``studies.yaml``.
        teacher: File of the teacher's weights below KEGNET_REFERENCE_DIR/teachers; None to train one.
        further: Settings of every run, which replace those of the base.
    """
    runs = {}
    method = _method(study)
    for variant, settings in study["variants"].items():
        changed = {setting.split("=", 1)[0] for setting in (*settings, *further)}
        base = [setting for setting in study["base"] if setting.split("=", 1)[0] not in changed]
        generators = tuple(setting for setting in settings if setting.startswith("generator."))
        for seed in range(study["seeds"]):
            for option in study["options"]:
                overrides = (
                    f"+experiment={study['experiment']}", f"compression={option}", f"seed={seed}",
                    "methods=[]" if method == "T" else "methods=[kegnet]",
                    *weights(teacher), *base, *settings, *further,
                )  # fmt: skip
                name = f"{_slug(variant)}-{option}-seed{seed}"
                runs[variant, option, seed] = Run(name, overrides, (method,), (*generators, str(seed)))
    return runs


def _method(study: dict[str, Any]) -> str:
    """Return the network a study looks at: T+KegNet, or T, the student before any training."""
    method: str = study.get("method", "T+KegNet")
    return method


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")


def render(study: dict[str, Any], runs: dict[tuple[str, str, int], Run], folder: Path, remarks: Path) -> str:
    """Return the study's page.

    Args:
        study: One of ``studies.yaml``.
        runs: Its runs.
        folder: Folder of the runs.
        remarks: Text that stands under the table, if there is one.
    """
    options, method = study["options"], _method(study)
    untrained = method == "T"
    lines = [f"# {study['title']}", "", study["text"].strip(), ""]
    labels = "" if untrained else " Entropy of the teacher's labels: nats."
    lines += [f"Accuracy in %: of one seed, or mean ± standard deviation (each seed).{labels}", ""]
    head = len(lines)
    columns = ["teacher"] if untrained else ["entropy", "seconds of a student"]
    lines.append("| | " + " | ".join([*options, *columns]) + " |")
    lines.append("| --- |" + " ---: |" * (len(options) + len(columns)))
    commands: dict[str, None] = {}
    precisions: dict[str, set[int]] = {}
    for variant in study["variants"]:
        found = {option: [] for option in options}  # type: dict[str, list[dict[str, Any]]]
        for option in options:
            for seed in range(study["seeds"]):
                path = folder / runs[variant, option, seed].name / "results.json"
                if path.exists():
                    found[option] += [row for row in read_rows(path) if row["method"] == method]
        every = [row for rows in found.values() for row in rows]
        cells = [_figure([100 * row["accuracy"] for row in rows]) for rows in found.values()]
        for row in every:
            precisions.setdefault(row["precision"], set()).add(row["seed"])
        if every and untrained:
            cells.append(_figure([100 * row["teacher_accuracy"] for row in found[options[0]]]))
        elif every:
            cells.append(f"{statistics.mean(row['label_entropy'] for row in every):.3f}")
            cells.append(f"{statistics.mean(row['seconds'] for row in every):.0f}")
        commands |= dict.fromkeys(_commands(every))
        lines.append(f"| {variant} | " + " | ".join([*cells, *[""] * (0 if every else len(columns))]) + " |")
    if len(precisions) > 1:
        told = [f"{_seeds(seeds)} in {precision}" for precision, seeds in precisions.items()]
        lines[head:head] = [f"Compare within a seed: {', '.join(told)}; seconds are of different machines.", ""]
    if remarks.exists():
        lines += ["", remarks.read_text().strip()]
    if commands:
        lines += ["", "Commands, in the order of the lines:", "", "```sh", *commands, "```"]
    return "\n".join(lines) + "\n"


def _commands(rows: list[dict[str, Any]]) -> list[str]:
    """Return the commands of a variant's rows: one, or several where seeds were run with other settings."""
    alike: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        alike.setdefault(changed(row["command"], compression=["any"], seed=["any"]), []).append(row)
    commands = []
    for some in alike.values():
        options = dict.fromkeys(setting(row["command"], "compression") for row in some)
        seeds = sorted({row["seed"] for row in some})
        commands.append(changed(some[0]["command"], compression=list(options), seed=list(map(str, seeds))))
    return commands


def _seeds(seeds: set[int]) -> str:
    return f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, sorted(seeds)))}"


def _figure(values: list[float]) -> str:
    if not values:
        return "not run"
    if len(values) == 1:
        return f"{values[0]:.1f}"
    each = ", ".join(f"{value:.1f}" for value in values)
    return f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f} ({each})"


def choose_lines(variants: Iterable[str], wanted: Sequence[str]) -> set[str]:
    """Return the variants that are meant.

    Args:
        variants: Names of all variants of a study.
        wanted: Names, or what only one name begins with.

    Raises:
        ValueError: If a text begins no name, or several.
    """
    chosen = set()
    for name in wanted:
        exact = [variant for variant in variants if variant == name]
        found = exact or [variant for variant in variants if variant.startswith(name)]
        if len(found) != 1:
            many = f"{len(found)} lines" if found else "no line"
            raise ValueError(f"--only {name!r} begins {many}; the lines are: {'; '.join(variants)}")
        chosen.update(found)
    return chosen


def main() -> int:
    """Run the command line."""
    studies = read_studies()
    parser = argparse.ArgumentParser(prog="python -m reproduction.study", description=__doc__)
    parser.add_argument("study", choices=sorted(studies))
    parser.add_argument("--jobs", type=positive, default=1, help="runs at a time; they share the cores")
    parser.add_argument("--seeds", type=positive, help="only the first seeds")
    parser.add_argument("--only", nargs="+", metavar="VARIANT", help="only these lines, by what they begin with")
    parser.add_argument("--precision", help="32-true or bf16-mixed, where it shall not be the study's")
    parser.add_argument("--tables", action="store_true", help="write the page from what is there, and run nothing")
    options = parser.parse_args()
    try:
        return _run(studies[options.study], options)
    except ValueError as error:
        parser.error(str(error))


def _run(study: dict[str, Any], options: argparse.Namespace) -> int:
    further = [f"trainer.precision={options.precision}"] if options.precision else []
    runs = runs_of(study, at_hand(study["teacher"]), further)
    results = ROOT / "results"
    folder = results / options.study
    failed = []
    if not options.tables:
        # All variants with one seed, then with the next: a study that is stopped has something of everything.
        order = sorted(runs, key=lambda key: key[2])
        if options.only:
            chosen = choose_lines(study["variants"], options.only)
            order = [key for key in order if key[0] in chosen]
        order = [key for key in order if options.seeds is None or key[2] < options.seeds]
        missing = [(study["experiment"], key[2]) for key in order if not runs[key].done(folder)]
        hand_out_teachers(missing, results, store_of([]))
        failed = run_missing([runs[key] for key in order], folder, options.jobs)
    page = results / f"{options.study.upper()}.md"
    page.write_text(render(study, runs, folder, results / "remarks" / f"{options.study}.md"))
    say(f"Written: {shown(page)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
