"""Tables, pictures and histograms in the formats of Weights & Biases; wandb is imported where one is made."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from torch import Tensor

from kegnet_pl.compression import CompressionReport
from kegnet_pl.reporting.classes import ClassCounts
from kegnet_pl.reporting.results import Row
from kegnet_pl.runtime.environment import display_path


def histogram(values: Tensor) -> Any:
    """Return a histogram of values ``(N,)``."""
    import wandb

    return wandb.Histogram(np_histogram=np.histogram(values.detach().cpu().numpy(), bins=50))


def picture_of(pixels: np.ndarray) -> Any:
    """Return a picture ``(H, W, 4)``, uint8."""
    import wandb

    return wandb.Image(pixels, mode="RGBA")


def compression_table(report: CompressionReport) -> Any:
    """Return the parameters and MACs of every layer before and after compression."""
    pairs = ("channels_before", "channels_after")
    rows = [{key: value for key, value in asdict(row).items() if key not in pairs} for row in report.rows]
    return _table([{**row, "width": layer.width} for row, layer in zip(rows, report.rows, strict=True)])


def class_tables(confusion: Tensor) -> dict[str, Any]:
    """Return the accuracy of every class, and the confusion matrix in rows of three numbers.

    With more than 50 classes, only those with the lowest accuracy and the most frequent wrong answers are returned.

    Args:
        confusion: Counts ``(C, C)``, rows the true classes.
    """
    counts = ClassCounts.of(confusion)
    lines = counts.worst or zip(counts.labels, counts.samples, counts.right, strict=True)
    accuracy = [
        {"class": label, "accuracy": right / max(samples, 1), "samples": samples} for label, samples, right in lines
    ]
    pairs = counts.confused
    if counts.confusion is not None:
        pairs = tuple(
            (label, answer, count) for label, line in enumerate(counts.confusion) for answer, count in enumerate(line)
        )
    pairs = pairs or ((0, 0, counts.right[0]),)  # more than 50 classes, all answers right
    confused = [{"class": label, "answer": answer, "samples": count} for label, answer, count in pairs]
    return {"classes": _table(accuracy), "confusion": _table(confused)}


def report_objects(rows: Sequence[Row], page: Path, sheet: Path | None) -> dict[str, Any]:
    """Return the objects of the run of a whole pipeline: results, costs, the report, and the sample sheet."""
    import wandb

    columns = (
        "name", "prior", "accuracy", "parameters", "compression_ratio", "macs", "seconds", "samples", "selection",
        "seed",
    )  # fmt: skip
    results = [{"network" if key == "name" else key: getattr(row, key) for key in columns} for row in rows]
    costs = [
        {
            "network": row.name,
            **{f"seconds {work}": seconds for work, seconds in row.costs["seconds"].items()},
            "samples made": row.costs["samples_made"],
            "answers of the teacher": row.costs["teacher_forwards"],
        }
        for row in rows
    ]
    objects = {"results": _table(results), "costs": _table(costs), "report": wandb.Html(str(page))}
    return objects | ({"samples": wandb.Image(str(sheet))} if sheet is not None else {})


def print_sync_command(folder: Path, pattern: str, console: Console) -> None:
    """Print the command that sends the offline runs of a folder that match a pattern; nothing if there are none."""
    if any(folder.glob(pattern)):
        command = f"wandb login; wandb sync {display_path(folder)}/{pattern}"
        console.print(f"W&B           offline; to show it later: {command}", soft_wrap=True)


def _table(rows: Sequence[dict[str, Any]]) -> Any:
    import wandb

    columns: list[str | int] = list(rows[0])
    return wandb.Table(columns=columns, data=[list(row.values()) for row in rows])
