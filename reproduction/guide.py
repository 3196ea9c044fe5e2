"""Tables of README and documentation from stored results: ``python -m reproduction.guide`` writes them again.

A table stands between ``<!-- python -m reproduction.guide: NAME -->`` and ``<!-- end -->``.
"""

import json
import re
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from reproduction.paths import ROOT

FILES = ("README.md", "docs/how_to/which_settings.md")
"""Files with tables."""

_MARK = re.compile(r"(<!-- python -m reproduction\.guide: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def _markdown(columns: Sequence[str], rows: Iterator[Sequence[str]], names: int) -> str:
    """Return a table whose columns are aligned to the right, except the first ones."""
    lines = [columns, ["---"] * names + ["---:"] * (len(columns) - names), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def paper() -> str:
    """Return the students of the strongest recipe, next to the paper's, from ``results/BEST.md``."""
    lines = [line for line in (ROOT / "results" / "BEST.md").read_text().splitlines() if line.startswith("| ")]
    header, _, *rows = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in lines]
    names = {"cell": "network", "teacher": "teacher", "paper": "KegNet (paper)", "best": "ours", "ceiling": "real data"}
    wanted = [header.index(name) for name in names]
    return _markdown(list(names.values()), ([row[index].split(" (")[0] for index in wanted] for row in rows), 1)


def networks() -> str:
    """Return the largest ratio of each network that keeps its accuracy, from ``results/networks.json``."""
    rows = json.loads((ROOT / "results" / "networks.json").read_text())

    def lines() -> Iterator[Sequence[str]]:
        for (data, network), of_one in groupby(rows, lambda row: (row["data"], row["network"])):
            tried = sorted(of_one, key=lambda row: row["target"])
            targets = ", ".join(f"{row['target']:g}x" for row in tried)
            yield [data, network, f"{100 * tried[0]['teacher']:.1f}", targets, *(_largest(tried, p) for p in (1, 3))]

    rows.sort(key=lambda row: (row["data"], row["network"]))
    columns = ["data", "network", "teacher", "measured", "within 1 point", "within 3 points"]
    return _markdown(columns, lines(), 2)


def _largest(rows: Sequence[dict[str, Any]], points: float) -> str:
    """Return the largest ratio whose network is within some points of the teacher, and its accuracy."""
    best = {id(row): max(row["T"], row["student"]) for row in rows}
    good = [row for row in rows if row["teacher"] - best[id(row)] <= points / 100]
    if not good:
        return "none"
    row = good[-1]
    return f"{row['target']:g}x {row['method']}: {100 * best[id(row)]:.1f}"


def libraries() -> str:
    """Return the smallest and the fastest network within 2 points of each teacher, from ``results/zoo.json``."""
    rows = [row for row in json.loads((ROOT / "results" / "zoo.json").read_text()) if "student" in row]
    rows.sort(key=lambda row: (row["data"], row["network"]))

    def lines() -> Iterator[Sequence[str]]:
        for (data, network), of_one in groupby(rows, lambda row: (row["data"], row["network"])):
            tried = list(of_one)
            good = [row for row in tried if row["teacher"] - row["student"] <= 0.02]
            small = max(good, key=lambda row: row["teacher_bytes"] / row["bytes"], default=None)
            fast = max(good, key=lambda row: row["speedups"]["64"], default=None)
            yield [
                data,
                network,
                f"{100 * tried[0]['teacher']:.1f}",
                _choice(small, lambda row: row["teacher_bytes"] / row["bytes"]),
                _choice(fast, lambda row: row["speedups"]["64"]),
            ]

    return _markdown(["data", "network", "teacher", "smallest file", "fastest at 64"], lines(), 2)


def _choice(row: dict[str, Any] | None, factor: Any) -> str:
    return "none" if row is None else f"{row['method']}: {factor(row):.2f}x, {100 * row['student']:.1f}"


TABLES = {"paper": paper, "networks": networks, "libraries": libraries}
"""Name of a table -> function that returns it."""


def render(text: str) -> str:
    """Return the text of a file with its tables as the stored results have them."""
    return _MARK.sub(lambda mark: f"{mark[1]}{TABLES[mark[2]]()}\n{mark[3]}", text)


def main() -> None:
    """Write all tables."""
    for path in map(Path, FILES):
        text = (ROOT / path).read_text()
        (ROOT / path).write_text(render(text))


if __name__ == "__main__":
    main()
