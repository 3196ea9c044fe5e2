"""Rows of ``results.json``."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from kegnet_pl.runtime.atomic_files import atomic_write
from kegnet_pl.sources.registry import find_builtin


@dataclass(frozen=True, kw_only=True)
class Row:
    """One network of one run; ``results.schema.json`` describes the file.

    Attributes:
        dataset: Name of the data.
        test_set: Test set of the accuracy, None if it was not measured.
        teacher: Name of the teacher.
        student: Name of the compression, or of the student's network.
        method: ``teacher``, ``T`` (compressed, untrained), ``S`` (another network, untrained), and those trained on
            synthetic data, with the title of the source: ``T+KegNet``, ``S+Normal``.
        source: Description of the source of the synthetic data (:class:`kegnet_pl.sources.SourceInfo`): name, title,
            prior, color, marker, needs_generators, shares. None for the teacher and for untrained networks.
        seed: The run's seed.
        recipe: Name of the recipe: ``strict``, ``paper``, ``fast``, or the user's.
        selection: Which epoch of the student was kept: ``last``, ``synthetic`` or ``real``; None without training.
        epochs: Epochs of training; None without training here, and in rows of older versions.
        epoch: The epoch that was kept, counted from 1; also None for networks that an older version trained.
        accuracy: On the test set, in [0, 1]; None where there is no test data.
        teacher_accuracy: The same of the teacher.
        parameters: Weights and biases.
        teacher_parameters: The same of the teacher.
        compression_ratio: ``teacher_parameters / parameters``.
        macs: Multiply-accumulates for one sample.
        teacher_macs: The same of the teacher.
        samples: Synthetic samples the student was trained on; None without training.
        label_entropy: Mean entropy of the teacher's answers to these samples, in nats; None without training.
        precision: Of the training.
        seconds: Wall-clock seconds of the stage that made this network, without evaluation.
        stage_seconds: Wall-clock seconds of every stage behind this row, and of its evaluation.
        costs: Costs of these stages (:class:`kegnet_pl.runtime.costs.StageCosts`): seconds by kind of work,
            samples made, answers of the teacher, peak memory in megabytes.
        fingerprint: Fingerprint of the stage that holds the network.
        command: Command of the run.
        versions: Versions of Python and packages.
    """

    dataset: str
    test_set: str | None
    teacher: str
    student: str | None
    method: str
    source: dict[str, Any] | None = None
    seed: int
    recipe: str
    selection: str | None
    epochs: int | None = None
    epoch: int | None = None
    accuracy: float | None
    teacher_accuracy: float | None
    parameters: int
    teacher_parameters: int
    compression_ratio: float
    macs: int
    teacher_macs: int
    samples: int | None
    label_entropy: float | None
    precision: str
    seconds: float
    stage_seconds: dict[str, float]
    costs: dict[str, Any]
    fingerprint: str
    command: str
    versions: dict[str, str]

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> "Row":
        """Read a row of ``results.json``. Rows of older versions have no source: the title in the method names it.

        Raises:
            TypeError: If keys are missing or unknown.
        """
        row = cls(**record)
        title = row.method.partition("+")[2]
        if row.source is not None or not title:
            return row
        info = find_builtin(title)
        return row if info is None else replace(row, source=info.to_dict())

    @property
    def prior(self) -> str:
        """Prior knowledge in the samples the network was trained on; empty without training on synthetic data."""
        return "" if self.source is None else str(self.source["prior"])


def write_results(rows: Sequence[Row], path: Path) -> None:
    """Write rows as JSON, whole or not at all."""
    atomic_write(path, json.dumps([asdict(row) for row in rows], indent=2) + "\n")
