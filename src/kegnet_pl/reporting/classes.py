"""Results by class: all of up to 50 classes, or a selection of more."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field, TypeAdapter
from torch import Tensor

MOST_CLASSES = 50
"""Maximum number of classes that are all shown."""

_FEW = 24
_WORST = 20
_PAIRS = 50

_Triple = tuple[int, int, int]


def shown_classes(count: int) -> list[int]:
    """Return the classes of ``count`` that pictures and tables show: all, or 24 at equal distances if more than 50."""
    if count <= MOST_CLASSES:
        return list(range(count))
    return [round(index * (count - 1) / (_FEW - 1)) for index in range(_FEW)]


@dataclass(frozen=True)
class ClassCounts:
    """Answers of a network to test samples, by class.

    Attributes:
        classes: Number of classes.
        labels: Classes that are shown, see :func:`shown_classes`.
        samples: Test samples of each of them.
        right: Correctly classified samples of each of them.
        confusion: All answers ``(C, C)``, rows the true classes; None for more than 50 classes.
        worst: Class, samples and right answers of the classes with the lowest accuracy, for more than 50 classes.
        confused: True class, answer and samples of the most frequent wrong answers, for more than 50 classes.
    """

    classes: int
    labels: tuple[int, ...]
    samples: tuple[int, ...]
    right: tuple[int, ...]
    confusion: tuple[tuple[int, ...], ...] | None = None
    worst: Annotated[tuple[_Triple, ...], Field(max_length=_WORST)] = ()
    confused: Annotated[tuple[_Triple, ...], Field(max_length=_PAIRS)] = ()

    @classmethod
    def of(cls, confusion: Tensor) -> "ClassCounts":
        """Count the answers of a confusion matrix ``(C, C)``, whose rows are the true classes."""
        count = len(confusion)
        labels = shown_classes(count)
        samples, right = confusion.sum(dim=1), confusion.diagonal()
        shown = (tuple(labels), tuple(samples[labels].tolist()), tuple(right[labels].tolist()))
        if count <= MOST_CLASSES:
            return cls(count, *shown, tuple(map(tuple, confusion.tolist())))
        order = (right / samples.clamp(min=1)).masked_fill(samples == 0, 2).argsort(stable=True)[:_WORST].tolist()
        wrong = confusion.clone().fill_diagonal_(0).flatten()
        pairs = wrong.argsort(descending=True, stable=True)[:_PAIRS].tolist()
        return cls(
            count,
            *shown,
            worst=tuple((label, int(samples[label]), int(right[label])) for label in order if samples[label]),
            confused=tuple((pair // count, pair % count, int(wrong[pair])) for pair in pairs if wrong[pair]),
        )

    def find_weakest(self) -> tuple[int, float] | None:
        """Return the class with the lowest accuracy, and this accuracy; None without test samples."""
        known = self.worst or tuple(zip(self.labels, self.samples, self.right, strict=True))
        return min(
            ((label, right / samples) for label, samples, right in known if samples),
            key=lambda one: one[1],
            default=None,
        )

    def to_metrics(self) -> dict[str, Any]:
        """Return the counts for a manifest: ``confusion``, or ``by_class`` for more than 50 classes."""
        if self.confusion is not None:
            return {"confusion": [list(line) for line in self.confusion]}
        names = ("classes", "labels", "samples", "right", "worst", "confused")
        return {"by_class": {name: getattr(self, name) for name in names}}

    @classmethod
    def from_metrics(cls, metrics: Mapping[str, Any]) -> "ClassCounts":
        """Return the counts of a manifest.

        Raises:
            ValueError: If they are damaged.
        """
        if "confusion" not in metrics:
            return _COUNTS.validate_python(metrics["by_class"])
        lines = _CONFUSION.validate_python(metrics["confusion"])
        if any(len(line) != len(lines) for line in lines):
            raise ValueError("the confusion matrix is not square")
        import torch

        return cls.of(torch.tensor(lines))


_COUNTS = TypeAdapter(ClassCounts)
_CONFUSION = TypeAdapter(list[list[int]])
