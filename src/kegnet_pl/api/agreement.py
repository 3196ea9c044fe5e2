"""Agreement of a student with its teacher on synthetic samples, which needs no real data."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from kegnet_pl.api.checks import check_counts
from kegnet_pl.api.evaluation import find_logits
from kegnet_pl.compression.report import align
from kegnet_pl.networks import OutputKey
from kegnet_pl.networks.execution import at_least_float32
from kegnet_pl.networks.validation import to_shape
from kegnet_pl.runtime.devices import Device, find_device
from kegnet_pl.runtime.seeds import derive_seed
from kegnet_pl.settings import Outputs
from kegnet_pl.sources import SyntheticSource, build_source, check_finite

OF_IMAGES = "waves", "procedural", "fields"
"""Default sources for images and signals. No other source has waves, so they seldom train a student."""

OF_ROWS = "procedural", "fields", "normal", "uniform"
"""Default sources for rows of features, and for volumes."""

ENOUGH = 10
"""Minimum number of samples of a class. With fewer, its agreement is not measured."""

_NEARLY_ALL = 0.95
"""Above this share of samples in one class, nearly all samples count as one class."""

MOST_UNREACHED = 20
"""Maximum number of unreached classes that are listed by label."""


@dataclass(frozen=True)
class SourceAgreement:
    """Agreement of a student with its teacher on samples of one source.

    Attributes:
        counts: Samples of each of the teacher's classes, ``(C,)``.
        equal: Samples to which the student gives the same class as the teacher, by class of the teacher, ``(C,)``.
        divergence: Mean Kullback-Leibler divergence of the student's probabilities from the teacher's, in nats.
    """

    counts: tuple[int, ...]
    equal: tuple[int, ...]
    divergence: float

    @property
    def samples(self) -> int:
        """Number of samples."""
        return sum(self.counts)

    @property
    def share(self) -> float:
        """Share of samples to which both networks give the same class, in [0, 1]."""
        return sum(self.equal) / self.samples

    @property
    def by_class(self) -> dict[int, float]:
        """Class of the teacher, with at least 10 samples -> share of them to which the student gives the same class."""
        pairs = enumerate(zip(self.counts, self.equal, strict=True))
        return {label: equal / count for label, (count, equal) in pairs if count >= ENOUGH}

    @property
    def agreement(self) -> float:
        """Mean of the shares of the teacher's classes, in [0, 1]; of all samples if no class has enough."""
        shares = self.by_class.values()
        return sum(shares) / len(shares) if shares else self.share

    @property
    def same_class(self) -> bool:
        """True if the teacher gives nearly all samples the same class."""
        return max(self.counts) >= _NEARLY_ALL * self.samples


@dataclass(frozen=True)
class WorstClass:
    """The class of the teacher with the lowest agreement.

    Attributes:
        label: The class, counted from 0.
        source: Source of the samples.
        samples: Samples of the class.
        agreement: Share of them to which both networks give the same class.
    """

    label: int
    source: str
    samples: int
    agreement: float


@dataclass(frozen=True)
class AgreementReport:
    """Agreement of a student with its teacher, by source.

    Attributes:
        sources: Name of the source -> agreement on its samples.
    """

    sources: Mapping[str, SourceAgreement]

    def mean(self, names: Collection[str] | None = None) -> float | None:
        """Return the mean agreement over the named sources, or over all if ``names`` is None; None without sources."""
        values = [one.agreement for one in self._select(names).values()]
        return sum(values) / len(values) if values else None

    def worst(self, names: Collection[str] | None = None) -> WorstClass | None:
        """Return the class with the lowest agreement on a single source; None if no class has enough samples."""
        found = [
            WorstClass(label, name, one.counts[label], share)
            for name, one in self._select(names).items()
            for label, share in one.by_class.items()
        ]
        return min(found, key=lambda one: one.agreement, default=None)

    @property
    def unreached(self) -> list[int]:
        """Classes that the teacher gives to no sample of any source."""
        counts = [one.counts for one in self.sources.values()]
        return [label for label, of_sources in enumerate(zip(*counts, strict=True)) if not any(of_sources)]

    def _select(self, names: Collection[str] | None) -> dict[str, SourceAgreement]:
        return {name: one for name, one in self.sources.items() if names is None or name in names}

    def __str__(self) -> str:
        """Return the report as a plain table, for ``print``."""
        header = ["source", "samples", "classes", "agreement", "divergence", "worst class"]
        rows = []
        for name, one in self.sources.items():
            worst, classes = self.worst([name]), sum(count > 0 for count in one.counts)
            cells = [name, one.samples, classes, f"{100 * one.agreement:.1f} %", f"{one.divergence:.4f}"]
            rows.append([*map(str, cells), "" if worst is None else f"{worst.label}: {100 * worst.agreement:.1f} %"])
        return align([header, *rows])

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain values for JSON."""
        return {name: asdict(one) for name, one in self.sources.items()}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "AgreementReport":
        """Return the report from the output of :meth:`to_dict`."""
        return cls(
            {
                name: SourceAgreement(tuple(one["counts"]), tuple(one["equal"]), one["divergence"])
                for name, one in content.items()
            }
        )

    def describe(self, own: Collection[str], over: Collection[str]) -> dict[str, Any]:
        """Return the agreement as plain values, for a row of results.

        Args:
            own: Sources with kinds of samples that were used to compress or train the student.
            over: Sources over which the mean and the worst class are taken.
        """
        over = [name for name in self.sources if name in over]
        mean, worst, unreached = self.mean(over), self.worst(over), self.unreached
        sources = {
            name: {
                "own": name in own,
                "samples": one.samples,
                "agreement": round(one.agreement, 4),
                "share": round(one.share, 4),
                "divergence": round(one.divergence, 5),
                "classes": sum(count > 0 for count in one.counts),
                "same_class": one.same_class,
            }
            for name, one in self.sources.items()
        }
        return {
            "over": over,
            "mean": None if mean is None else round(mean, 4),
            "worst": None if worst is None else asdict(worst) | {"agreement": round(worst.agreement, 4)},
            "unreached": unreached[:MOST_UNREACHED],
            "unreached_classes": len(unreached),
            "sources": sources,
        }


def measure_agreement(
    student: nn.Module,
    teacher: nn.Module,
    input_shape: int | Sequence[int],
    *,
    sources: Sequence[str] | Mapping[str, SyntheticSource | Tensor] | None = None,
    samples: int = 2_000,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
    seed: int = 0,
    device: Device = "auto",
    outputs: Outputs = "auto",
    output_key: OutputKey = None,
) -> AgreementReport:
    """Measure how often a student gives the same class as its teacher to synthetic samples.

    Agreement is not accuracy. Leave out sources that were used to compress or train the student: its agreement on their
    samples is too high.

    Args:
        student: A classifier; it is copied.
        teacher: A classifier of the same classes; it is copied.
        input_shape: Shape of one sample.
        sources: Names of sources without generators; or name -> source, or samples ``(N, *input_shape)``. None: waves,
            procedural and fields for images; procedural, fields, normal and uniform for rows of features.
        samples: Number of samples of each source.
        mean: Mean of the pixels of each channel, with which the teacher's inputs are normalised. Procedural images use
            it.
        std: Standard deviation of the pixels.
        seed: The same seed gives the same samples.
        device: Device of the computation; ``"auto"`` is a GPU if there is one.
        outputs: Type of the output of both networks, see :func:`train_generators`.
        output_key: Key, attribute or position of the output tensor, if they return several; None finds it.

    Raises:
        ValueError: If there is no source, a source cannot be built, or the networks do not have the same classes.
    """
    check_counts(samples=(samples, 1))
    shape, place = to_shape(input_shape), find_device(device)
    sources = default_sources(shape) if sources is None else sources
    if isinstance(sources, str):
        raise ValueError(f"Expected `sources` to be a list of names, but got {sources!r}. Use [{sources!r}].")
    if not isinstance(sources, Mapping):
        pixels: dict[str, Any] = {"mean": mean, "std": std} if len(shape) > 1 else {}
        sources = {name: build_source({name: 1.0}, input_shape=shape, teacher=teacher, **pixels) for name in sources}
    drawn = {name: one if isinstance(one, Tensor) else draw(one, samples, seed) for name, one in sources.items()}
    options: dict[str, Any] = {"device": place, "outputs": outputs, "output_key": output_key}
    logits = {name: find_logits(teacher, x, name="teacher", **options) for name, x in drawn.items()}
    return compare(student, drawn, logits, **options)


def default_sources(input_shape: Sequence[int]) -> tuple[str, ...]:
    """Return the names of the default sources for the comparison of networks."""
    return OF_IMAGES if len(input_shape) in (2, 3) else OF_ROWS


def draw(source: SyntheticSource, samples: int, seed: int) -> Tensor:
    """Return samples for the comparison of networks: ``(samples, *input_shape)``, on the CPU."""
    x = source.sample(samples, derive_seed(seed, "agreement")).cpu()
    check_finite(source, x)
    return x


def compare(
    student: nn.Module, samples: Mapping[str, Tensor], teacher_logits: Mapping[str, Tensor], **options: Any
) -> AgreementReport:
    """Return the agreement of a student with the teacher's logits ``(N, C)``, by name of the source of the samples.

    ``options`` are passed to :func:`find_logits`.

    Raises:
        ValueError: If there are no samples, or the student has another number of classes.
    """
    if not samples:
        raise ValueError("Expected at least one source of samples to measure agreement, but got none.")
    found = {}
    for name, x in samples.items():
        given, taught = find_logits(student, x, name="student", **options), teacher_logits[name]
        if given.shape != taught.shape:
            raise ValueError(
                f"Expected a student of the teacher's {taught.shape[1]} classes, but got {given.shape[1]}."
            )
        found[name] = _compare(at_least_float32(taught).double(), at_least_float32(given).double())
    return AgreementReport(found)


def _compare(teacher: Tensor, student: Tensor) -> SourceAgreement:
    classes, same = teacher.argmax(dim=1), teacher.argmax(dim=1) == student.argmax(dim=1)
    counts, equal = (torch.bincount(labels, minlength=teacher.shape[1]) for labels in (classes, classes[same]))
    divergence = functional.kl_div(
        student.log_softmax(dim=1), teacher.log_softmax(dim=1), reduction="batchmean", log_target=True
    )
    return SourceAgreement(tuple(counts.tolist()), tuple(equal.tolist()), max(0.0, float(divergence)))
