"""Tables of the documentation from the measurements in ``results/``: ``python -m benchmarks.table``."""

import json
from collections.abc import Iterable
from typing import Any

from benchmarks.cases import ROOT

_WORKS = {"generator_step": "generator step", "student_epoch": "student epoch", "draw": "drawing"}
_NETWORKS = {"lenet5": "MNIST, LeNet5", "resnet14": "SVHN, ResNet14", "mlp": "Letter, MLP"}


def show_seconds(value: float) -> str:
    """Return seconds with three digits, or one digit after the point."""
    return f"{value:.1f}" if value >= 10 else f"{value:.3g}"


def _work(row: dict[str, Any]) -> str:
    return _WORKS[row["work"]] + (f" of {row['samples']:,} samples" if row["samples"] else "")


def table(head: list[str], rows: Iterable[list[str]], left: int) -> str:
    """Return a table in Markdown; its first ``left`` columns are text, the others numbers."""
    rule = ["---"] * left + ["---:"] * (len(head) - left)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [head, rule, *rows])


def speed_table(rows: list[dict[str, Any]]) -> str:
    """Return ``bench.json`` as Markdown."""
    head = ["", "", "precision", "seconds", "direct", "faster", "x floor", "MB", "direct MB", "Lightning"]
    return table(
        head,
        (
            [
                _NETWORKS[row["network"]], _work(row), row["precision"], show_seconds(row["seconds"]),
                show_seconds(row["direct_seconds"]), f"{row['times_faster_than_direct']:.1f}x",
                f"{row['times_floor']:.1f}", f"{row['peak_mb']:,.0f}", f"{row['direct_peak_mb']:,.0f}",
                "" if row["lightning_share"] is None else f"{max(row['lightning_share'], 0):.0%}",
            ]
            for row in rows
        ),
        3,
    )  # fmt: skip


def choices_table(rows: list[dict[str, Any]]) -> str:
    """Return ``bench_choices.json`` as Markdown."""
    names = {
        "vmap": "`generator.parallel=vmap`",
        "seeds": "five students together",
        "compile": "`compile=true`",
        "keep_freed_memory": "freed memory kept",
        "cuda_graphs": "`cuda_graphs=true`",
    }
    return table(
        ["", "", "", "precision", "times as fast"],
        (
            [
                names[row["choice"]], _NETWORKS[row["network"]], _WORKS[row["work"]], row["precision"],
                f"{row['times_faster']:.2f}",
            ]
            for row in sorted(rows, key=lambda row: list(names).index(row["choice"]))
        ),
        4,
    )  # fmt: skip


def logging_table(rows: list[dict[str, Any]]) -> str:
    """Return ``logging_cost.json`` as Markdown."""
    lines = []
    for row in rows:
        command = " ".join(["python -m kegnet_pl", *row["overrides"]])
        for stage, times in row["stages"].items():
            lines.append([f"`{command}`", stage, f"{times['seconds']:.0f}", f"{times['share']:.1%}"])
        lines.append([f"`{command}`", "all, more CPU seconds", "", f"{row['more_cpu_seconds']:+.1%}"])
        lines.append([f"`{command}`", "start of both loggers, once per program", f"{row['start_seconds']:.1f}", ""])
    return table(["command", "stage", "seconds", "share inside loggers"], lines, 2)


TABLES = {"bench": speed_table, "bench_choices": choices_table, "logging_cost": logging_table}
"""File in ``results/`` -> function that returns its table in the documentation."""


def main() -> None:
    """Print all."""
    for name, show in TABLES.items():
        print(show(json.loads((ROOT / "results" / f"{name}.json").read_text())))  # noqa: T201
        print()  # noqa: T201


if __name__ == "__main__":
    main()
