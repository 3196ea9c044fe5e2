"""The page of the strongest recipe: ``BEST.md``, computed from the finished runs of the presets ``best/*``."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from reproduction.commands import joined, setting
from reproduction.records import read_runs
from reproduction.tables import figure, measured, paper_rows, read_remarks, time_of

CEILING = "T+Real"
_OTHERS = ("teacher", "T", CEILING)


def write_best(out: Path, cells: dict[str, Any]) -> None:
    """Write ``BEST.md`` from the runs in ``out/paper.jsonl``."""
    rows = [row for rows in read_runs(out / "paper.jsonl").values() for row in rows]
    (out / "BEST.md").write_text(render(rows, cells, read_remarks(out).get("best", "")))


def best_rows(rows: Iterable[dict[str, Any]], cells: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the networks of ``recipe=best``: figures over seeds, with ``cell``, ``method``, ``source`` and ``prior``.

    Args:
        rows: Rows of finished runs.
        cells: Content of ``cells.yaml``.

    Raises:
        ValueError: If seeds of one network also differ in settings, test data or size.
    """
    groups: dict[tuple[str, str, str], dict[int, dict[str, Any]]] = {}
    for row in rows:
        if row["recipe"] == "best":
            name = (row["dataset"], setting(row["command"], "compression"), row["method"])
            groups.setdefault(name, {})[row["seed"]] = row
    found = []
    for (dataset, option, method), by_seed in groups.items():
        source = next(iter(by_seed.values()))["source"]
        known = {"title": source["title"], "prior": source["prior"]} if source else {}
        names = {"dataset": dataset, "option": option, "method": method, **known}
        found.append(names | measured(by_seed, None, cells["test_sets"]))
    return found


def render(rows: Sequence[dict[str, Any]], cells: dict[str, Any], remark: str) -> str:
    """Return ``BEST.md``.

    Args:
        rows: Rows of finished runs, of all recipes.
        cells: Content of ``cells.yaml``.
        remark: Text under the table.
    """
    best = best_rows(rows, cells)
    fast = [row for row in paper_rows(rows, cells) if row["recipe"] == "fast" and row["method"] == "T+KegNet"]
    lines = [
        "# The strongest recipe, and its ceiling",
        "",
        "Written by `python -m reproduction --recipe best`, which runs what is missing first. Test accuracy in %:",
        "mean ± standard deviation over (seeds).",
        "",
        "- *Paper*: T+KegNet as published. *Fast*: T+KegNet of `recipe=fast` ([PAPER.md](PAPER.md); prior: teacher).",
        "- *Best*: the student of the preset `experiment=best/NAME`, without real data in training or selection.",
        "  *Prior*: the knowledge in its samples. *Goal*: our target for it.",
        "- *Ceiling*: a student of real data with the same settings and number of steps; its samples are not mixed.",
        "  This is not a data-free result. *Below*: ceiling minus best, in points.",
        "- Seconds: from the teacher to the student, without evaluation. Most rows were run beside other work.",
        "",
        "| cell | teacher | paper | fast | source of best | prior | best | ceiling | below | goal | s: fast, best |",
        "| --- | ---: | ---: | ---: | --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    commands: dict[str, None] = {}
    for experiment in cells["experiments"].values():
        for option, paper in experiment["options"].items():
            mine = {row["method"]: row for row in best if _is(row, experiment["dataset"], option)}
            other = next((row for row in fast if _is(row, experiment["dataset"], option)), None)
            student = next((row for name, row in mine.items() if name not in _OTHERS), None)
            lines.append(f"| {experiment['title']}, {option} | {_cells(mine, student, other, paper)} |")
            commands |= {} if student is None else {student["command"]: None}
    if remark:
        lines += ["", remark]
    if commands:
        lines += ["", "Commands:", "", "```sh", *joined(commands, "compression"), "```"]
    return "\n".join(lines) + "\n"


def _is(row: Mapping[str, Any], dataset: str, option: str) -> bool:
    return (row["dataset"], row["option"]) == (dataset, option)


def _cells(
    mine: Mapping[str, dict[str, Any]],
    student: dict[str, Any] | None,
    fast: dict[str, Any] | None,
    paper: Mapping[str, Any],
) -> str:
    """Return the cells of a line after its name."""
    teacher, ceiling = mine.get("teacher"), mine.get(CEILING)
    below = f"{ceiling['mean'] - student['mean']:.1f}" if ceiling and student else ""
    seconds = ", ".join(time_of(row["seconds"]) if row else "not run" for row in (fast, student))
    return " | ".join(
        [
            _figure(teacher),
            f"{paper['T+KegNet']:.2f}",
            _figure(fast),
            student["title"] if student else "",
            student["prior"] if student else "",
            _figure(student),
            _figure(ceiling),
            below,
            f"{paper['goal']:.1f}",
            seconds,
        ]
    )


def _figure(row: dict[str, Any] | None) -> str:
    return "not run" if row is None else figure(row)
