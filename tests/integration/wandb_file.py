"""Reads what the W&B client wrote offline: a log of records in blocks, as LevelDB's."""

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2

_BLOCK = 32768
_HEADER = struct.Struct("<IHB")


@dataclass
class OfflineRun:
    """One run as it was written."""

    folder: Path
    identifier: str = ""
    group: str = ""
    job_type: str = ""
    name: str = ""
    tags: list[str] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    axes: dict[str, str] = field(default_factory=dict)
    artifacts: dict[str, Any] = field(default_factory=dict)
    exit_code: int | None = None

    @property
    def keys(self) -> set[str]:
        """All that was logged; of pictures, tables and histograms ``key:type``."""
        found = set()
        for line in self.history:
            for key, value in line.items():
                found.add(key if not isinstance(value, dict) else f"{key}:{value['_type']}")
        return {key for key in found if not key.startswith("_")}


def read_runs(folder: Path) -> list[OfflineRun]:
    """Read all runs below a folder's ``wandb``."""
    return [_read(path) for path in sorted(folder.glob("wandb/offline-run-*/*.wandb"))]


def _records(path: Path) -> Iterator[Any]:
    data = path.read_bytes()
    position, content = 7, b""
    while position + _HEADER.size <= len(data):
        left = _BLOCK - position % _BLOCK
        if left < _HEADER.size:
            position += left
            continue
        _, length, kind = _HEADER.unpack_from(data, position)
        content += data[position + _HEADER.size : position + _HEADER.size + length]
        position += _HEADER.size + length
        if kind in (1, 4):  # whole, or the last part
            record = wandb_internal_pb2.Record()  # type: ignore[attr-defined]
            record.ParseFromString(content)
            content = b""
            yield record


def _nest(into: dict[str, Any], item: Any) -> None:
    keys = list(item.nested_key) or [item.key]
    for key in keys[:-1]:
        into = into.setdefault(key, {})
    into[keys[-1]] = json.loads(item.value_json)


def _read(path: Path) -> OfflineRun:
    run = OfflineRun(path.parent)
    for record in _records(path):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            run.identifier, run.group, run.job_type = record.run.run_id, record.run.run_group, record.run.job_type
            run.name, run.tags = record.run.display_name, list(record.run.tags)
            for item in record.run.config.update:
                _nest(run.config, item)
        elif kind == "config":
            for item in record.config.update:
                _nest(run.config, item)
        elif kind == "history":
            line: dict[str, Any] = {}
            for item in record.history.item:
                _nest(line, item)
            run.history.append(line)
        elif kind == "summary":
            for item in record.summary.update:
                _nest(run.summary, item)
        elif kind == "metric" and record.metric.name:
            run.axes[record.metric.name] = record.metric.step_metric
        elif kind == "artifact" and not record.artifact.name.startswith("run-"):  # those are tables
            run.artifacts[record.artifact.name] = record.artifact
        elif kind == "exit":
            run.exit_code = record.exit.exit_code
    return run
