"""Rows of ``results.json``."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from kegnet_pl.reporting.names import name_network
from kegnet_pl.runtime.atomic_files import atomic_write
from kegnet_pl.runtime.timing import is_noisy
from kegnet_pl.sources.base import REAL_DATA
from kegnet_pl.sources.registry import find_builtin, join_priors

TRIAL = (
    "These numbers have no meaning: the run only tests the installation, with almost no training (debug=fast). "
    "Run the command without debug=fast for results."
)
"""Warning about every network of a run with ``trial=true``."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One network of one run.

    ``results.schema.json`` describes every field, its unit, and where it is None. ``source``, ``compression``,
    ``compression_source``, ``quantization``, ``epochs``, ``epoch``, ``size``, ``agreement``, ``warnings`` and
    ``latency`` are missing in rows of older versions.
    """

    dataset: str
    test_set: str | None
    teacher: str
    student: str | None
    method: str
    source: dict[str, Any] | None = None
    compression: str | None = None
    compression_source: dict[str, Any] | None = None
    quantization: dict[str, Any] | None = None
    seed: int
    recipe: str
    selection: str | None
    epochs: int | None = None
    epoch: int | None = None
    accuracy: float | None
    teacher_accuracy: float | None
    agreement: dict[str, Any] | None = None
    warnings: list[str] | None = None
    parameters: int
    teacher_parameters: int
    compression_ratio: float
    size: int | None = None
    macs: int
    teacher_macs: int
    latency: dict[str, Any] | None = None
    samples: int | None
    learning_rate: float | None = None
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
    def name(self) -> str:
        """Name of the network in tables, plots and pages, such as ``student (KegNet)``."""
        return name_network(self.method)

    @property
    def prior(self) -> str:
        """Prior knowledge in the samples of its compression, training and calibration; empty without samples."""
        calibration = None if self.quantization is None else self.quantization["source"]
        found = [info["prior"] for info in (self.compression_source, self.source, calibration) if info is not None]
        return join_priors(found) if found else ""

    @property
    def source_prior(self) -> str:
        """Prior knowledge in the samples that the network was trained with alone; empty for an untrained network."""
        return "" if self.source is None else str(self.source["prior"])

    @property
    def is_ceiling(self) -> bool:
        """True if the network was trained or calibrated on real data: a ceiling, and not a data-free result."""
        return REAL_DATA in self.prior.split(" + ")

    @property
    def mean_agreement(self) -> float | None:
        """Mean agreement with the teacher on sources that did not make the network; None if it was not measured."""
        return None if self.agreement is None else self.agreement["mean"]

    @property
    def seconds_from_teacher(self) -> float:
        """Seconds of all stages from the teacher to this network; for a teacher, its own seconds."""
        stages = {
            name: seconds for name, seconds in self.stage_seconds.items() if name not in ("teacher", "evaluation")
        }
        return self.seconds if self.method == "teacher" else sum(stages.values())

    @property
    def agreement_samples(self) -> int:
        """Number of samples behind the mean agreement; 0 if it was not measured."""
        agreement = self.agreement or {"over": []}
        return sum(agreement["sources"][name]["samples"] for name in agreement["over"])

    @property
    def speedups(self) -> dict[int, float]:
        """Time of the teacher divided by that of the network, by batch size; empty if it was not measured."""
        batches = {} if self.latency is None else self.latency["batches"]
        return {int(size): float(values["speedup"]) for size, values in batches.items()}

    @property
    def noisy_sizes(self) -> list[int]:
        """Batch sizes whose measured times are not reliable (:func:`is_noisy`)."""
        batches = {} if self.latency is None else self.latency["batches"]
        return [int(size) for size, values in batches.items() if is_noisy(values["ms"], values["spread"])]


def list_warnings(rows: Iterable[Row]) -> list[tuple[str, str]]:
    """Return the networks of each warning and its sentence, without the one about the run (:func:`explain_trial`)."""
    networks: dict[str, list[str]] = {}
    for row in rows:
        for sentence in row.warnings or []:
            networks.setdefault(sentence, []).append(row.name)
    return [("; ".join(names), sentence) for sentence, names in networks.items() if sentence != TRIAL]


def find_last(rows: Sequence[Row]) -> Row:
    """Return the last row in float32 that is no ceiling: the result of a run. The first row is the teacher's."""
    return next(row for row in reversed(rows) if row.quantization is None and not row.is_ceiling)


def find_named(rows: Iterable[Row], name: str) -> Row | None:
    """Return the row with this method, such as ``T+KegNet``, or this name, ``student (KegNet)``; None without one."""
    return next((row for row in rows if name in (row.method, row.name)), None)


def summarize(rows: Sequence[Row]) -> dict[str, float | str]:
    """Return the values that trackers compare: the result of a run, and ``METHOD/accuracy``, ... of every network.

    ``speedup`` is the speed-up at the largest batch size. ``seconds`` is the time to make the network, without its
    teacher. Values that were not measured are left out.
    """
    result = find_last(rows)
    named = {f"{row.method}/{name}": value for row in rows for name, value in _numbers(row).items()}
    return {"method": result.name, **_numbers(result), **named}


def _numbers(row: Row) -> dict[str, float]:
    speedups = row.speedups
    numbers = {
        "accuracy": row.accuracy,
        "agreement": row.mean_agreement,
        "compression_ratio": row.compression_ratio,
        "parameters": row.parameters,
        "macs": row.macs,
        "speedup": speedups[max(speedups)] if speedups else None,
        **{f"speedup_batch_{size}": speedup for size, speedup in speedups.items()},
        "seconds": row.seconds_from_teacher,
    }
    return {name: value for name, value in numbers.items() if value is not None}


def explain_validity(rows: Iterable[Row]) -> list[str]:
    """Return sentences on numbers without meaning and on ceilings, for every table, plot and page with these rows."""
    rows = list(rows)
    return explain_trial(rows) + explain_ceilings(rows)


def explain_trial(rows: Iterable[Row]) -> list[str]:
    """Return a sentence if the numbers of a row have no meaning."""
    return [TRIAL] if any(TRIAL in (row.warnings or []) for row in rows) else []


def explain_ceilings(rows: Iterable[Row]) -> list[str]:
    """Return a sentence for each network that is a ceiling."""
    networks = {row.name: REAL_DATA in row.source_prior for row in rows if row.is_ceiling}
    return [
        f"{name} is not a data-free result: it was {'trained' if trained else 'calibrated'} on real data, as a "
        f"ceiling for the others."
        for name, trained in networks.items()
    ]


def write_results(rows: Sequence[Row], path: Path) -> None:
    """Write rows as JSON, whole or not at all."""
    atomic_write(path, json.dumps([asdict(row) for row in rows], indent=2) + "\n")
