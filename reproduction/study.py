"""The studies of ``studies.yaml``, which change one factor at a time: ``python -m reproduction.study svhn``.

A study can be interrupted at any time and started again. Each finished run is a line of ``results/STUDY.jsonl``, and
``results/STUDY.md`` is the page with the table. The working folders of the runs are ``outputs/reproduction/STUDY/*``.
"""

import argparse
import re
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser

from kegnet_pl.pipeline.suggestions import RECIPES
from kegnet_pl.runtime.environment import display_path
from kegnet_pl.sources import describe_mixture, join_priors
from reproduction.commands import joined, positive
from reproduction.jobs import read_mixtures, released_teacher, store_of, weights
from reproduction.paths import ROOT
from reproduction.records import Rows, read_runs
from reproduction.runner import Run, run_missing, say
from reproduction.tables import read_remarks
from reproduction.teachers import copy_to_store


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
    for variant, settings in study["variants"].items():
        changed = {setting.split("=", 1)[0] for setting in (*settings, *further)}
        base = [setting for setting in study["base"] if setting.split("=", 1)[0] not in changed]
        method = _method(study, variant)
        own = any(setting.startswith("sources=") for setting in (*study["base"], *settings))
        sources = [] if own else ["sources=[]" if method == "T" else "sources=[kegnet]"]
        generators = tuple(setting for setting in settings if setting.startswith("generator."))
        for seed in range(study["seeds"]):
            for option in study["options"]:
                overrides = (
                    f"experiment={RECIPES[study['recipe']]}{study['experiment']}", f"compression={option}",
                    f"seed={seed}", *sources, *weights(teacher), *base, *settings, *further,
                )  # fmt: skip
                name = f"{_slug(variant)}-{option}-seed{seed}"
                runs[variant, option, seed] = Run(name, overrides, (method,), (*generators, str(seed)))
    return runs


def _method(study: dict[str, Any], variant: str) -> str:
    """Return the method of a line: the student of its source, else that of the study (T+KegNet, or the untrained T).

    Raises:
        ValueError: If the line does not have one source.
    """
    for setting in (*study["variants"][variant], *study["base"]):  # a line replaces the source of the base
        if setting.startswith("sources="):
            listed: Any = OverridesParser.create().parse_override(setting).value()
            if len(listed) != 1:
                raise ValueError(f"Expected one source in `sources` of the line {variant!r}, but got {listed}.")
            return f"T+{describe_mixture(read_mixtures(listed)[0]).title}"
    method: str = study.get("method", "T+KegNet")
    return method


def _prior(row: Mapping[str, Any]) -> str:
    """Return the prior knowledge in the samples of a row, of its compression and of its training."""
    infos = [row.get("compression_source"), row.get("source")]
    return join_priors(info["prior"] for info in infos if isinstance(info, dict))


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")


def render(
    study: dict[str, Any], runs: dict[tuple[str, str, int], Run], finished: Mapping[str, Rows], remark: str
) -> str:
    """Return the page of a study.

    Args:
        study: One of ``studies.yaml``.
        runs: Its runs.
        finished: Rows of the finished runs, by name.
        remark: Text under the table.
    """
    options, untrained = study["options"], study.get("method") == "T"
    priors = {_prior(row) for rows in finished.values() for row in rows if row["method"] != "teacher"}
    lines = [f"# {study['title']}", "", study["text"].strip(), ""]
    labels = "" if untrained else " Entropy of the teacher's labels: nats."
    lines += [f"Accuracy in %: of one seed, or mean ± standard deviation (each seed).{labels}", ""]
    head = len(lines)
    columns = ["teacher"] if untrained else ["entropy", "seconds of a student"]
    prior = ["prior"] if len(priors) > 1 else []
    lines.append("| | " + " | ".join([*prior, *options, *columns]) + " |")
    lines.append("| --- |" + " --- |" * len(prior) + " ---: |" * (len(options) + len(columns)))
    commands: dict[str, None] = {}
    precisions: dict[str, set[int]] = {}
    for variant in study["variants"]:
        by_option: dict[str, Rows] = {}
        for option in options:
            names = [runs[variant, option, seed].name for seed in range(study["seeds"])]
            rows = [row for name in names for row in finished.get(name, [])]
            by_option[option] = [row for row in rows if row["method"] == _method(study, variant)]
        every = [row for rows in by_option.values() for row in rows]
        cells = [_prior(row) for row in every[:1]] if prior else []
        cells += [] if every or not prior else [""]
        cells += [_figure([100 * row["accuracy"] for row in rows]) for rows in by_option.values()]
        for row in every:
            precisions.setdefault(row["precision"], set()).add(row["seed"])
        if every and untrained:
            cells.append(_figure([100 * row["teacher_accuracy"] for row in by_option[options[0]]]))
        elif every:
            cells.append(f"{statistics.mean(row['label_entropy'] for row in every):.3f}")
            cells.append(f"{statistics.mean(row['seconds'] for row in every):.0f}")
        by_seed = sorted(every, key=lambda row: int(row["seed"]))
        commands |= dict.fromkeys(joined((row["command"] for row in by_seed), "compression", "seed"))
        lines.append(f"| {variant} | " + " | ".join([*cells, *[""] * (0 if every else len(columns))]) + " |")
    if len(precisions) > 1:
        seeds_of = [f"{_seeds(seeds)} in {precision}" for precision, seeds in precisions.items()]
        lines[head:head] = [f"Compare within a seed: {', '.join(seeds_of)}; seconds are of different machines.", ""]
    if remark:
        lines += ["", remark]
    if commands:
        lines += ["", "Commands, in the order of the lines:", "", "```sh", *commands, "```"]
    return "\n".join(lines) + "\n"


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
    """Return the variants with the given names.

    Args:
        variants: Names of all variants of a study.
        wanted: Names, or unique beginnings of names.

    Raises:
        ValueError: If a text is the beginning of no name, or of several.
    """
    chosen = set()
    for name in wanted:
        exact = [variant for variant in variants if variant == name]
        matches = exact or [variant for variant in variants if variant.startswith(name)]
        if len(matches) != 1:
            many = f"{len(matches)} lines" if matches else "no line"
            raise ValueError(f"--only {name!r} begins {many}; the lines are: {'; '.join(variants)}")
        chosen.update(matches)
    return chosen


def main() -> int:
    """Run the command line."""
    studies = read_studies()
    parser = argparse.ArgumentParser(prog="python -m reproduction.study", description=__doc__)
    parser.add_argument("study", choices=sorted(studies))
    parser.add_argument("--jobs", type=positive, default=1, help="runs at a time; they share the cores")
    parser.add_argument("--seeds", type=positive, help="only the first seeds")
    parser.add_argument("--only", nargs="+", metavar="VARIANT", help="only these lines, named by how they begin")
    parser.add_argument("--precision", help="32-true or bf16-mixed instead of the precision of the study")
    parser.add_argument("--tables", action="store_true", help="write the page of the finished runs, and run nothing")
    options = parser.parse_args()
    try:
        return _run(studies[options.study], options)
    except ValueError as error:
        parser.error(str(error))


def _run(study: dict[str, Any], options: argparse.Namespace) -> int:
    further = [f"trainer.precision={options.precision}"] if options.precision else []
    runs = runs_of(study, released_teacher(study["teacher"]), further)
    results = ROOT / "results"
    records = results / f"{options.study}.jsonl"
    failed = []
    if not options.tables:
        # All variants with one seed, then with the next: an interrupted study has rows of every variant.
        order = sorted(runs, key=lambda key: key[2])
        if options.only:
            chosen = choose_lines(study["variants"], options.only)
            order = [key for key in order if key[0] in chosen]
        order = [key for key in order if options.seeds is None or key[2] < options.seeds]
        finished = read_runs(records)
        missing = [(study["experiment"], key[2]) for key in order if not runs[key].done(finished)]
        copy_to_store(missing, results / "teachers", store_of([]))
        folder = ROOT / "outputs" / "reproduction" / options.study
        failed = run_missing([runs[key] for key in order], records, folder, options.jobs)
    page = results / f"{options.study.upper()}.md"
    page.write_text(render(study, runs, read_runs(records), read_remarks(results).get(options.study, "")))
    say(f"Written: {display_path(page)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
