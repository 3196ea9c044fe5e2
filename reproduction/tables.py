"""The paper's tables: ``paper.json`` and ``PAPER.md``, computed from the finished runs."""

import json
import shlex
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from reproduction.commands import changed, joined, setting
from reproduction.paths import ROOT
from reproduction.records import read_runs

METHODS = ("teacher", "T", "T+Uniform", "T+Normal", "T+KegNet")
RECIPES = ("paper", "strict", "fast")


Network = tuple[str, str, str, str]
"""A network of the tables: data set, option, method, recipe."""


def by_network(rows: Iterable[dict[str, Any]]) -> dict[Network, dict[int, dict[str, Any]]]:
    """Return the rows of each network by seed. The teacher and T are in every run, and count once.

    Raises:
        ValueError: If one seed has two accuracies of the same network.
    """
    groups: dict[Network, dict[int, dict[str, Any]]] = {}
    for row in rows:
        option = setting(row["command"], "compression")
        name = (row["dataset"], option, row["method"], row["recipe"])
        known = groups.setdefault(name, {}).setdefault(row["seed"], row)
        if known["accuracy"] != row["accuracy"]:
            raise ValueError(
                f"Expected one accuracy of {', '.join(name)}, seed {row['seed']}, but got {known['accuracy']} and "
                f"{row['accuracy']}: runs of a seed shall have one teacher. Remove the line of one of the two runs:\n"
                f"  {known['command']}\n  {row['command']}"
            )
    return groups


def paper_rows(rows: Iterable[dict[str, Any]], cells: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of ``paper.json``: mean and standard deviation of the accuracy over seeds, in percent.

    Args:
        rows: Rows of finished runs.
        cells: Content of ``cells.yaml``.

    Raises:
        ValueError: If seeds of one network also differ in settings, test data or size, or if one seed has two
            accuracies of the same network.
    """
    groups = by_network(rows)
    summary = []
    for experiment in cells["experiments"].values():
        for option, paper in experiment["options"].items():
            for method in METHODS:
                for recipe in RECIPES:
                    by_seed = groups.get((experiment["dataset"], option, method, recipe))
                    if by_seed:
                        names = {"dataset": experiment["dataset"], "option": option, "method": method, "recipe": recipe}
                        summary.append(names | measured(by_seed, paper[method], cells["test_sets"]))
    return summary


def measured(
    by_seed: dict[int, dict[str, Any]], paper: float | str | None, test_sets: dict[str, str]
) -> dict[str, Any]:
    """Return mean, deviation, seconds, command and versions of one network, from its rows by seed.

    Raises:
        ValueError: If seeds differ in settings, test data or size.
    """
    rows = [by_seed[seed] for seed in sorted(by_seed)]
    values = [100 * row["accuracy"] for row in rows]
    counted = _counted(rows)
    known = [row for row in counted if row.get("epochs") and row["costs"]["seconds"].get("student_training")]
    test_set, ratio = _shared(rows, "test_set"), _shared(rows, "compression_ratio")
    if rows[0]["method"] not in METHODS[:2]:  # teacher and T are in the runs of all methods
        _shared(rows, "command", _what_matters)
    return {
        "selection": _shared(rows, "selection"),
        "paper": paper if isinstance(paper, float) else None,
        "mean": round(statistics.mean(values), 3),
        "sd": round(statistics.stdev(values), 3) if len(values) > 1 else None,
        "seeds": len(rows),
        "seconds": round(statistics.mean(_seconds(row) for row in counted), 1),
        "student_epochs": _mean([row["epochs"] for row in known]),
        "student_seconds": _mean([row["costs"]["seconds"]["student_training"] for row in known]),
        "test_set": test_sets.get(test_set, test_set),
        "command": changed(rows[0]["command"], seed=[str(seed) for seed in sorted(by_seed)]),
        "values": [round(value, 3) for value in values],
        "seed_list": sorted(by_seed),
        "compression_ratio": ratio,
        "precision": _shared(rows, "precision"),
        "samples_made": round(statistics.mean(row["costs"]["samples_made"] for row in counted)),
        "counted": [row["seed"] for row in counted],
        "versions": {
            package: ", ".join(dict.fromkeys(row["versions"][package] for row in rows if package in row["versions"]))
            for package in rows[0]["versions"]
        },
    }


def _shared(rows: Sequence[dict[str, Any]], key: str, read: Callable[[dict[str, Any]], Any] | None = None) -> Any:
    """Return the value of ``key`` that all seeds share. ``read`` computes the value from a row, if given.

    Raises:
        ValueError: If seeds differ.
    """
    values = {row["seed"]: read(row) if read else row[key] for row in rows}
    if len(set(values.values())) > 1:
        first = rows[0]
        cell = ", ".join([first["dataset"], setting(first["command"], "compression"), first["recipe"], first["method"]])
        lines = "\n".join(f"  seed {seed}: {value}" for seed, value in values.items())
        raise ValueError(
            f"Expected all seeds of {cell} to have one {key.replace('_', ' ')}, but got\n{lines}\n"
            "Remove the lines of the other runs from the file."
        )
    return next(iter(values.values()))


def _what_matters(row: dict[str, Any]) -> str:
    """Return a row's command without seed, device and store, and without generators if its method has none."""
    program = shlex.split(changed(row["command"], seed=["any"]))
    ignored = ("trainer=", "trainer.accelerator=", "store=", *([] if "KegNet" in row["method"] else ["generator."]))
    arguments = sorted(part for part in program[3:] if not part.startswith(ignored))
    return shlex.join([*program[:3], *arguments])


def _mean(values: Sequence[float]) -> float | None:
    return round(statistics.mean(values), 3) if values else None


def _counted(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows with complete costs: until November 2026, the cost of a killed attempt was lost.

    A complete row has about as many synthetic samples as the other seeds.
    """
    most = max(row["costs"]["samples_made"] for row in rows)
    return [row for row in rows if row["costs"]["samples_made"] >= 0.9 * most]


def _seconds(row: dict[str, Any]) -> float:
    """Return the seconds from the teacher to the network, without evaluation and the teacher's training."""
    spent: dict[str, float] = row["costs"]["seconds"]
    if row["method"] == "teacher":
        return spent["teacher_training"]
    return sum(seconds for work, seconds in spent.items() if work not in ("evaluation", "teacher_training"))


def read_remarks(results: Path) -> dict[str, str]:
    """Return study or experiment -> text under its table, from ``remarks.yaml``; empty if the file is missing."""
    path = results / "remarks.yaml"
    texts: dict[str, str] = yaml.safe_load(path.read_text()) if path.exists() else {}
    return {name: text.strip() for name, text in texts.items()}


def write_tables(out: Path, cells: dict[str, Any]) -> None:
    """Write ``paper.json`` and ``PAPER.md`` from the runs in ``out/paper.jsonl``."""
    summary = paper_rows((row for rows in read_runs(out / "paper.jsonl").values() for row in rows), cells)
    out.mkdir(parents=True, exist_ok=True)
    (out / "paper.json").write_text(json.dumps(summary, indent=2) + "\n")
    (out / "PAPER.md").write_text(render(summary, cells, read_remarks(out)))


def render(summary: Sequence[dict[str, Any]], cells: dict[str, Any], remarks: Mapping[str, str]) -> str:
    """Return ``PAPER.md``.

    Args:
        summary: Rows of ``paper.json``.
        cells: Content of ``cells.yaml``.
        remarks: Experiment -> text under its table, where there is one.
    """
    lines = [
        "# The paper's numbers, and ours",
        "",
        "`python -m reproduction --tables` writes this page. `make reproduce` first runs the missing parts. Figures,",
        "single seeds and versions are in [paper.json](paper.json). Accuracy is in %: mean ± standard deviation over",
        "(seeds). A single seed has no deviation. Seconds are from the teacher to the student, with all generators and",
        "without evaluation. They are the mean over the seeds with complete costs (`counted` in paper.json).",
        "Networks have the paper's names: `T` is `compressed, untrained` in our own tables, and T+KegNet is",
        "`student (KegNet)`.",
        "",
        "Recipes: `paper` is the authors' released schedule. Its epoch is **selected on real validation samples**",
        "(5,000 images, or fewer if less data is available; a part of the rows of a table). `strict` is the same",
        "schedule to its last epoch, without real data in training or selection. For students with batch norm, it has",
        "the best settings of SVHN_STUDENTS.md and FASHION_STUDENTS.md. `fast` is our own recipe, also without real",
        "data. `best`: [BEST.md](BEST.md).",
        "",
    ]
    for name, experiment in cells["experiments"].items():
        mine = [row for row in summary if row["dataset"] == experiment["dataset"]]
        lines += [f"## {experiment['title']}", ""]
        lines += _table(mine, experiment)
        for recipe in RECIPES:
            runs = {row["command"]: None for row in mine if row["recipe"] == recipe and row["method"] in METHODS[2:]}
            if runs:
                lines += ["", f"`{recipe}`:", "", "```sh", *joined(runs, "compression"), "```"]
        sets = {row["test_set"]: None for row in mine}
        if sets:
            lines += ["", f"Test data: {', '.join(sets)}."]
        if name in remarks:
            lines += ["", remarks[name]]
        lines.append("")
    lines += _fast_against_strict(summary, cells) + _below_the_paper(summary, cells)
    return "\n".join(lines)


def _fast_against_strict(summary: Sequence[dict[str, Any]], cells: dict[str, Any]) -> list[str]:
    """Return the section that compares accuracy and seconds of ``recipe=fast`` and ``recipe=strict``."""
    lines, epochs = [], _strict_epochs()
    for title, dataset, option in _cells(cells):
        by = {row["recipe"]: row for row in summary if _is(row, dataset, option, "T+KegNet")}
        if "fast" in by and by.keys() & {"strict", "paper"}:
            long, fast = by.get("strict") or by["paper"], by["fast"]
            good = fast["mean"] >= long["mean"] - (long["sd"] or 0)
            times = long["seconds"] / fast["seconds"]
            line = [f"{title}, {option}", long["recipe"], figure(long), figure(fast)]
            line += [f"{fast['mean'] - long['mean']:+.2f}", "yes" if good else "no", f"{times:.1f}x"]
            line += ["yes" if times >= 10 else "no", _projected(long, fast, epochs)]
            lines.append("| " + " | ".join(line) + " |")
    head = [
        "## Fast beside strict",
        "",
        "The goal: T+KegNet of `fast` is as accurate as `strict`, within its deviation, in a tenth of its seconds.",
        "If `strict` was not run, it is replaced by `paper`. Its generators are the same, and its students stop at the",
        "best epoch on real validation data, or earlier than those of `strict`. For SVHN and Fashion-MNIST, it lacks",
        "the settings of `strict` for batch norm and for the order of samples, whose effect is in SVHN_STUDENTS.md and",
        "FASHION_STUDENTS.md. Seconds are from several devices. If those of one cell differ, the text under its table",
        "says so.",
        "",
        "*To the end* is an estimate, if the epochs of a student are recorded: seconds of `strict`, which has",
        f"{epochs} epochs, if each takes as long as an epoch of `paper`. It was not measured.",
        "",
    ]
    if not lines:
        return [*head, "Not run.", ""]
    head += ["| cell | beside | its accuracy | fast | difference | as accurate | faster | tenth | to the end |"]
    head += ["| --- | --- |" + " ---: |" * 7]
    return [*head, *lines, ""]


def _strict_epochs() -> int:
    """Return the epochs of a student in the released schedule. ``strict`` trains all of them."""
    preset = yaml.safe_load((ROOT / "conf" / "experiment" / "strict" / "mnist_lenet.yaml").read_text())
    return int(preset["student"]["epochs"])


def _projected(long: dict[str, Any], fast: dict[str, Any], epochs: int) -> str:
    """Return the seconds of ``strict`` estimated from ``paper``, and their ratio to ``fast``; "" if unknown."""
    if long["recipe"] != "paper" or long["student_epochs"] is None:
        return ""
    more = epochs / long["student_epochs"] - 1
    seconds = long["seconds"] + more * long["student_seconds"]
    return f"{seconds:,.0f} s, {seconds / fast['seconds']:.1f}x"


def _below_the_paper(summary: Sequence[dict[str, Any]], cells: dict[str, Any]) -> list[str]:
    """Return the section of cells more than two standard deviations below the paper."""
    lines = []
    for title, dataset, option in _cells(cells):
        for method in METHODS:
            for row in summary:
                spread = 2 * (row["sd"] or 0)
                if _is(row, dataset, option, method) and row["paper"] and row["mean"] < row["paper"] - spread:
                    line = [f"{title}, {option}", method, row["recipe"], f"{row['paper']:.2f}", figure(row)]
                    lines.append("| " + " | ".join([*line, f"{row['mean'] - row['paper']:+.2f}"]) + " |")
    head = [
        "## Below the paper",
        "",
        "These rows are below the paper by more than twice the standard deviation (with one seed: by any amount). The",
        "text under the tables lists the settings that were tried.",
        "",
    ]
    if not lines:
        return [*head, "No row.", ""]
    head += ["| cell | network | recipe | paper | ours | difference |", "| --- | --- | --- |" + " ---: |" * 3]
    return [*head, *lines, ""]


def _cells(cells: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Yield title, data set and option of every cell."""
    for experiment in cells["experiments"].values():
        for option in experiment["options"]:
            yield experiment["title"], experiment["dataset"], option


def _is(row: dict[str, Any], dataset: str, option: str, method: str) -> bool:
    return (row["dataset"], row["option"], row["method"]) == (dataset, option, method)


def _table(rows: list[dict[str, Any]], experiment: dict[str, Any]) -> list[str]:
    head = ["option", "network", "paper"]
    for recipe in RECIPES:
        head += [f"recipe={recipe}", "seconds"]
    lines = ["| " + " | ".join(head) + " |", "| --- | --- | ---: |" + " ---: |" * 2 * len(RECIPES)]
    for option, paper in experiment["options"].items():
        for method in METHODS:
            first = f"{option} ({paper['ratio']:.2f}x)" if method == METHODS[0] else ""
            cells = [first, method, paper[method] if isinstance(paper[method], str) else f"{paper[method]:.2f}"]
            for recipe in RECIPES:
                row = next(
                    (r for r in rows if (r["option"], r["method"], r["recipe"]) == (option, method, recipe)), None
                )
                cells += ["not run", ""] if row is None else [figure(row), time_of(row["seconds"])]
            lines.append("| " + " | ".join(cells) + " |")
    return lines


def time_of(seconds: float) -> str:
    """Return seconds as text, with a decimal below ten."""
    return f"{seconds:,.0f}" if seconds >= 10 else f"{seconds:.1f}"


def figure(row: dict[str, Any]) -> str:
    """Return mean, deviation and number of seeds: ``96.82 ± 0.20 (5)``."""
    spread = "" if row["sd"] is None else f" ± {row['sd']:.2f}"
    return f"{row['mean']:.2f}{spread} ({row['seeds']})"
