"""Results by class are bounded."""

import json

import pytest
import torch

from kegnet_pl.reporting import figures
from kegnet_pl.reporting.classes import MOST_CLASSES, ClassCounts, shown_classes
from kegnet_pl.reporting.style import looks_of
from kegnet_pl.reporting.wandb import class_tables
from tests.unit.reporting.rows import TEACHER, student


def test_few_classes_are_all_shown_and_many_are_cut() -> None:
    assert shown_classes(10) == list(range(10)) and len(shown_classes(MOST_CLASSES)) == MOST_CLASSES
    labels = shown_classes(1000)
    assert len(labels) == 24 and labels[0] == 0 and labels[-1] == 999 and labels == sorted(set(labels))


@pytest.mark.parametrize("classes", [3, 50, 51, 1000])
def test_counts_survive_a_manifest_of_bounded_size(classes: int) -> None:
    torch.manual_seed(0)
    confusion = torch.randint(0, 5, (classes, classes))
    counts = ClassCounts.of(confusion)
    text = json.dumps(counts.to_metrics(), indent=2)
    assert ClassCounts.from_metrics(json.loads(text)) == counts
    assert len(text) < 30_000
    for label, samples, right in zip(counts.labels, counts.samples, counts.right, strict=True):
        assert (samples, right) == (int(confusion[label].sum()), int(confusion[label, label]))
    assert (counts.confusion is None) == (classes > MOST_CLASSES)


def test_the_worst_classes_and_the_most_confused_pairs() -> None:
    confusion = 10 * torch.eye(100, dtype=torch.int64)
    confusion[7] = 0  # without samples
    confusion[40, 40], confusion[40, 41], confusion[3, 4] = 1, 9, 2
    counts = ClassCounts.of(confusion)
    assert counts.worst[:3] == ((40, 10, 1), (3, 12, 10), (0, 10, 10))
    assert counts.confused == ((40, 41, 9), (3, 4, 2))
    assert 7 not in [label for label, _, _ in counts.worst]


@pytest.mark.parametrize(
    "metrics", [{"confusion": [[1], [2]]}, {"confusion": "x"}, {}, {"by_class": {"classes": 1}}, {"by_class": None}]
)
def test_damaged_counts_are_refused(metrics: dict[str, object]) -> None:
    with pytest.raises((ValueError, KeyError)):
        ClassCounts.from_metrics(metrics)


def test_tables_and_pictures_of_many_classes() -> None:
    torch.manual_seed(0)
    counts = ClassCounts.of(torch.randint(0, 5, (1000, 1000)))
    figure = figures.draw_classes({"teacher": counts, "T+KegNet": counts}, looks_of([TEACHER, student(0.8)]))
    assert len(figure.axes[0].lines[0].get_ydata()) == 24
    tables = class_tables(torch.randint(0, 5, (1000, 1000)))
    assert len(tables["classes"].data) == 20 and len(tables["confusion"].data) == 50
    right = class_tables(torch.eye(60, dtype=torch.int64))
    assert len(right["confusion"].data) == 1
    assert len(class_tables(torch.ones(3, 3, dtype=torch.int64))["confusion"].data) == 9


def test_the_weakest_class_is_found_among_few_and_among_many() -> None:
    assert ClassCounts.of(torch.tensor([[9, 1, 0], [1, 1, 0], [0, 0, 0]])).find_weakest() == (1, 0.5)
    many = torch.diag(torch.full((60,), 4))
    many[31, 31], many[31, 2] = 1, 3
    assert ClassCounts.of(many).find_weakest() == (31, 0.25)
    assert ClassCounts.of(torch.zeros(2, 2, dtype=torch.int64)).find_weakest() is None
