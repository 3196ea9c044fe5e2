"""The model card ``README.md`` of an exported network, as the Hugging Face Hub expects it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from kegnet_pl.compression.automatic import THREE_LAYERS
from kegnet_pl.networks import Answers
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

_IMAGE_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
"""Channels of an image -> its mode in Pillow."""

_OUTPUTS = {
    "logits": "logits (scores before the softmax)",
    "probabilities": "probabilities",
    "log_probabilities": "log-probabilities",
    "sigmoid": "probabilities (sigmoid)",
}
"""Type of an output -> its description."""

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
    answers: Answers | None = None,
    output_shape: Sequence[int] | None = None,
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
        answers: Conversion of the network's output to logits; None for a network of logits.
        output_shape: Shape of its output for one sample; None if the network returns a tuple or dict.
    """
    data, plan = stages.config["data"], stages.config["compression"]
    metrics = _read_metrics(stages.networks[row.method].get("compression"))
    tested = _read_metrics(stages.networks[row.method].get("evaluation")).get("samples")
    image = _IMAGE_MODES.get(data["input_shape"][0]) if len(data["input_shape"]) == 3 else None
    mean, std, value_range = (_to_numbers(data.get(name)) for name in ("mean", "std", "value_range"))
    if not isinstance(value_range, list) or len(value_range) != 2:
        value_range = None
    text = render(
        "card.md",
        front_matter=yaml.safe_dump(_front_matter(row, data), sort_keys=False, allow_unicode=True).strip(),
        row=row,
        student=name_compression(row.student or ""),
        teacher=teacher,
        input_shape=list(data["input_shape"]),
        classes=data["classes"],
        mean=mean,
        std=std,
        value_range=value_range,
        mode=image if value_range is not None or (mean is not None and std is not None) else None,
        outputs=_describe_outputs(answers, output_shape, data["classes"]),
        interval=_interval(row.accuracy, tested),
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


def _to_numbers(value: Any) -> Any:
    """Return a finite number, or a list of them; None for anything else: the card has them in its code."""
    several = value if isinstance(value, list) else [value]
    if not all(isinstance(one, int | float) and math.isfinite(one) for one in several):
        return None
    return [float(one) for one in several] if isinstance(value, list) else float(value)


def _read_metrics(stage: Path | None) -> dict[str, Any]:
    return read_metrics(stage) if stage is not None and exists(stage / "manifest.json") else {}


def _describe_outputs(answers: Answers | None, shape: Sequence[int] | None, classes: int) -> str:
    name = "logits" if answers is None else answers.outputs
    kind = _OUTPUTS[name]
    if shape is None:
        key = "" if answers is None or answers.key is None else f" at key or position {answers.key!r}"
        return (
            f"a tuple, dict or object, as the original network returns it, with {kind} of {classes} classes{key}. The "
            f"ONNX, torch.export and TorchScript files return logits `(N, {classes})`"
        )
    sizes = ", ".join(["N", *map(str, shape)])
    if math.prod(shape) == 1 and classes == 2:
        kind = "logits (scores before the sigmoid)" if name == "logits" else kind
        return f"{kind}, one value per sample for the second of two classes, `({sizes}{',' * (not shape)})`"
    return f"{kind} of {classes} classes, `({sizes})`"


def _interval(accuracy: float | None, samples: Any) -> tuple[float, float] | None:
    """Return Wilson's 95 % interval of an accuracy."""
    from scipy.stats import binomtest

    if accuracy is None or not 0 <= accuracy <= 1 or not isinstance(samples, int) or samples < 1:
        return None
    found = binomtest(round(accuracy * samples), samples).proportion_ci(method="wilson")
    return float(found.low), float(found.high)


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
