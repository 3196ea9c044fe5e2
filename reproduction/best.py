"""The page of the strongest recipe: ``BEST.md``, computed from the finished runs of the presets ``best/*``."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from reproduction.commands import joined
from reproduction.records import read_runs
from reproduction.tables import by_network, figure, measured, read_remarks, time_of

CEILING = "T+Real"
_OTHERS = ("teacher", "T", CEILING)


def write_best(out: Path, cells: dict[str, Any]) -> None:
    """Write ``BEST.md`` from the runs in ``out/paper.jsonl``."""
    rows = [row for rows in read_runs(out / "paper.jsonl").values() for row in rows]
    (out / "BEST.md").write_text(render(rows, cells, read_remarks(out).get("best", "")))


def render(rows: Iterable[dict[str, Any]], cells: dict[str, Any], remark: str) -> str:
    """Return ``BEST.md``.

    Args:
        rows: Rows of finished runs, of all recipes.
        cells: Content of ``cells.yaml``.
        remark: Text under the table.

    Raises:
        ValueError: If seeds of one network also differ in settings, test data or size, or if one seed has two
            accuracies of the same network.
    """
    groups = by_network(rows)
    lines = [
        "# The strongest recipe, and its ceiling",
        "",
        "`python -m reproduction --recipe best` runs missing parts and writes this page. Test accuracy is in %:",
        "mean ± standard deviation over (seeds).",
        "",
        "- *Paper*: T+KegNet as published. *Fast*: T+KegNet of `recipe=fast` ([PAPER.md](PAPER.md); prior: teacher).",
        "- *Best*: the student of the preset `experiment=best/NAME`, without real data in training or selection.",
        "  *Prior*: the knowledge in its samples. *Goal*: our target for it.",
        "- *Ceiling*: a student of real data with the same settings and number of steps; its samples are not mixed.",
        "  This is not a data-free result. *Below*: ceiling minus best, in points. *No data*: only 1,083 of the",
        "  training images are available.",
        "- *s*: seconds from the teacher to the student, without evaluation. The machine did other work during most",
        "  runs.",
        "",
        "| cell | teacher | paper | fast | source of best | prior | best | ceiling | below | goal | s: fast, best |",
        "| --- | ---: | ---: | ---: | --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    commands: dict[str, None] = {}
    without_data = {name for run in cells["runs"] if not run.get("ceiling", True) for name in run["experiments"]}
    for name, experiment in cells["experiments"].items():
        for option, paper in experiment["options"].items():
            found = {
                (method, recipe): measured(by_seed, None, cells["test_sets"]) | {"source": _source(by_seed)}
                for (dataset, of, method, recipe), by_seed in groups.items()
                if (dataset, of) == (experiment["dataset"], option) and recipe in ("best", "fast")
            }
            mine = {method: row for (method, recipe), row in found.items() if recipe == "best"}
            student = next((row for method, row in mine.items() if method not in _OTHERS), None)
            line = _line(mine, student, found.get(("T+KegNet", "fast")), paper, name in without_data)
            lines.append(f"| {experiment['title']}, {option} | {line} |")
            commands |= {} if student is None else {student["command"]: None}
    if remark:
        lines += ["", remark]
    if commands:
        lines += ["", "Commands:", "", "```sh", *joined(commands, "compression"), "```"]
    return "\n".join(lines) + "\n"


def _source(by_seed: Mapping[int, dict[str, Any]]) -> Any:
    """Return the description of the samples of a network; None without samples, and for rows of older versions."""
    return next(iter(by_seed.values())).get("source")


def _line(
    mine: Mapping[str, dict[str, Any]],
    student: dict[str, Any] | None,
    fast: dict[str, Any] | None,
    paper: Mapping[str, Any],
    without_data: bool,
) -> str:
    """Return the cells of a line after its name; ``without_data`` is True where real training data is missing."""
    teacher, ceiling = mine.get("teacher"), mine.get(CEILING)
    below = f"{ceiling['mean'] - student['mean']:.1f}" if ceiling and student else ""
    seconds = ", ".join(time_of(row["seconds"]) if row else "not run" for row in (fast, student))
    return " | ".join(
        [
            _figure(teacher),
            f"{paper['T+KegNet']:.2f}",
            _figure(fast),
            student["source"]["title"] if student else "",
            student["source"]["prior"] if student else "",
            _figure(student),
            "no data" if without_data else _figure(ceiling),
            below,
            f"{paper['goal']:.1f}",
            seconds,
        ]
    )


def _figure(row: dict[str, Any] | None) -> str:
    return "not run" if row is None else figure(row)
