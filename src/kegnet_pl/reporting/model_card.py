"""The model card ``README.md`` of an exported network, as the Hugging Face Hub expects it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from kegnet_pl.compression.automatic import THREE_LAYERS
from kegnet_pl.reporting.agreement import describe_agreement, warn_of_samples
from kegnet_pl.reporting.html import render
from kegnet_pl.reporting.names import name_compression
from kegnet_pl.reporting.results import Row
from kegnet_pl.reporting.run_page import StageFolders
from kegnet_pl.reporting.run_parts import read_metrics
from kegnet_pl.runtime.atomic_files import atomic_write
from kegnet_pl.runtime.safe_files import exists
from kegnet_pl.sources import SourceInfo

_TASKS = {1: "tabular-classification", 3: "image-classification"}
"""Dimensions of a sample -> task of the Hub."""

_COMPRESSIONS = {
    "tucker": "factorisation: layers are Tucker decompositions of the teacher's layers",
    THREE_LAYERS: "factorisation: layers are Tucker decompositions of the teacher's layers, each of three layers",
    "pruning": "structured pruning: layers have kept some of the teacher's channels",
}
"""Method of a compression -> its description; ``compression.method=auto`` chooses one of them."""


@dataclass(frozen=True)
class QuantizedFile:
    """An exported network in int8.

    Attributes:
        path: The file, ONNX.
        size: Bytes.
        activations: ``"int8"``, or ``"float"`` where weights alone are quantised.
        source: Source of the calibration samples, and of as many held-out samples, on which agreement was measured.
        samples: Number of calibration samples, and of held-out samples.
        agreement: Share of samples to which the network gives the same class as in float32; None if float32 gives one
            class to all of them.
    """

    path: Path
    size: int
    activations: Literal["int8", "float"]
    source: SourceInfo
    samples: int
    agreement: float | None


def write_model_card(
    path: Path,
    row: Row,
    teacher: Row,
    stages: StageFolders,
    files: Sequence[tuple[str, str, int]],
    quantized: Sequence[QuantizedFile] = (),
    code: str | None = None,
) -> None:
    """Write the card of a network.

    Args:
        path: The file.
        row: Row of results of the network.
        teacher: Row of its teacher.
        stages: The stages behind the run.
        files: Format, name and bytes of every exported file in float32.
        quantized: Exported files in int8.
        code: Name of the exported Python file or program that builds the network; None if it needs none.
    """
    data, plan = stages.config["data"], stages.config["compression"]
    compression = stages.networks[row.method].get("compression")
    metrics = read_metrics(compression) if compression is not None and exists(compression / "manifest.json") else {}
    text = render(
        "card.md",
        front_matter=yaml.safe_dump(_front_matter(row, data), sort_keys=False, allow_unicode=True).strip(),
        row=row,
        student=name_compression(row.student or ""),
        teacher=teacher,
        input_shape=list(data["input_shape"]),
        classes=data["classes"],
        mean=data.get("mean"),
        std=data.get("std"),
        value_range=data.get("value_range"),
        agreement=metrics.get("agreement"),
        held_out=f"{metrics['held_out']:,} " if "held_out" in metrics else "",  # stages of older versions lack it
        agreement_text=[*describe_agreement(row), *warn_of_samples(row)],
        compression=_COMPRESSIONS.get(str(metrics.get("method", plan.get("method", "tucker"))))
        if row.method.startswith("T")
        else None,
        files=files,
        code=code,
        quantized=quantized,
    )
    atomic_write(path, text)


def _front_matter(row: Row, data: dict[str, Any]) -> dict[str, Any]:
    task = _TASKS.get(len(data["input_shape"]), "other")
    content: dict[str, Any] = {
        "library_name": "kegnet_pl",
        "tags": ["knowledge-distillation", "model-compression", *([] if row.is_ceiling else ["data-free"])],
        "pipeline_tag": task,
    }
    if row.accuracy is not None:
        metric = {"type": "accuracy", "value": round(row.accuracy, 4), "name": "test accuracy"}
        content["metrics"] = ["accuracy"]
        content["model-index"] = [
            {
                "name": " ".join(part for part in (row.teacher, name_compression(row.student or ""), row.name) if part),
                "results": [
                    {
                        "task": {"type": task},
                        "dataset": {"type": row.dataset, "name": row.test_set or row.dataset},
                        "metrics": [metric],
                    }
                ],
            }
        ]
    return content
