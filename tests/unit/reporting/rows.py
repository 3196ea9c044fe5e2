"""Rows of results for tests."""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import yaml

from kegnet_pl.reporting.results import Row
from kegnet_pl.runtime.costs import StageCosts
from kegnet_pl.sources.registry import find_builtin

TEACHER = Row(
    dataset="toy",
    test_set="toy: 10 test samples",
    teacher="net",
    student=None,
    method="teacher",
    seed=0,
    recipe="strict",
    selection=None,
    accuracy=0.9,
    teacher_accuracy=0.9,
    parameters=1000,
    teacher_parameters=1000,
    compression_ratio=1.0,
    macs=5000,
    teacher_macs=5000,
    samples=None,
    label_entropy=None,
    precision="32-true",
    seconds=3.0,
    stage_seconds={"teacher": 3.0},
    costs=StageCosts().to_dict() | {"peak_memory": {"host_mb": 1.0, "device_mb": 0.0}},
    fingerprint="0" * 16,
    command="python -m kegnet_pl",
    versions={"python": "3.11.0"},
)


def student(accuracy: float | None, **changes: Any) -> Row:
    """Return the row of a student; changes make its fingerprint unique. The title in the method names the source."""
    mark = json.dumps([accuracy, sorted(changes.items())], default=str)
    plain: dict[str, Any] = {
        "student": "option1", "method": "T+KegNet", "selection": "last", "accuracy": accuracy, "parameters": 500,
        "compression_ratio": 2.0, "macs": 2500, "samples": 64, "label_entropy": 0.5, "seconds": 1.5,
        "fingerprint": hashlib.sha256(mark.encode()).hexdigest()[:16],
    }  # fmt: skip
    info = find_builtin((plain | changes)["method"].partition("+")[2])
    source = {"source": None if info is None else info.to_dict()}
    return dataclasses.replace(TEACHER, **plain | source | changes)


def quantized(row: Row, source: str | None = "Procedural", **changes: Any) -> Row:
    """Return the row of a network in int8; ``source`` is the title of the source of its calibration samples."""
    info = None if source is None else find_builtin(source)
    description = {
        "format": "int8", "activations": "float" if info is None else "int8", "agreement": 0.99,
        "source": None if info is None else info.to_dict(), "samples": None if info is None else 256,
        "runtime": "ONNX Runtime 1.0",
    }  # fmt: skip
    plain = {"method": f"{row.method} int8", "fingerprint": row.fingerprint[::-1], "size": 300}
    return dataclasses.replace(row, **plain | {"quantization": description | changes})


def write_run(folder: Path, rows: list[Row], overrides: list[str] | None = None) -> Path:
    """Leave a run on disk, as the pipeline and Hydra do."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ".hydra").mkdir(exist_ok=True)
    (folder / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump(overrides or []))
    if rows:
        (folder / "results.json").write_text(json.dumps([dataclasses.asdict(row) for row in rows]))
    return folder
