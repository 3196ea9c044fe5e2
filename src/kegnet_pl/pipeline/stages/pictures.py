"""Pictures of trained generators: the sample sheet, and walks from class to class."""

from pathlib import Path
from typing import Any

import torch

from kegnet_pl.api.sampling import Generators
from kegnet_pl.pipeline.context import RunContext
from kegnet_pl.reporting.classes import shown_classes
from kegnet_pl.reporting.images import draw_sample_sheet, write_grid
from kegnet_pl.runtime.costs import StageCosts
from kegnet_pl.runtime.seeds import derive_seed

_SHEET_ROWS = 8
_CONFIDENCE_SAMPLES = 100
_FEWER_SAMPLES = 8
"""Samples per class for its confidence, if not all classes are shown."""

_WALKS = 5
_WALK_STEPS = 11


def draw_samples(context: RunContext, generators: Generators, folder: Path, costs: StageCosts) -> dict[str, Any]:
    """Write ``samples.png``, in which generators take turns.

    Returns:
        Metrics: the teacher's mean probability of the intended class for every class (``confidence``), or for those
        that are shown (``confidence_classes``).
    """
    settings = context.settings.generator
    seed, labels, size = derive_seed(settings.seed, "sheet"), shown_classes(generators.classes), settings.batch_size
    samples = _CONFIDENCE_SAMPLES if len(labels) == generators.classes else _FEWER_SAMPLES
    found = generators.confidence(samples, seed=seed, classes=labels, batch_size=size)
    confidence: list[float] = found.mean(dim=0).tolist()
    columns = []
    for label in labels:
        drawn = [
            generators.of_class(label, _SHEET_ROWS, seed=seed, index=i, batch_size=size) for i in range(len(generators))
        ]
        columns.append(torch.stack([drawn[row % len(drawn)][row] for row in range(_SHEET_ROWS)]))
    title = (
        f"Synthetic {context.settings.data.name}, {len(generators)} generators, seed {settings.seed}.\n"
        f"Class, and the teacher's mean confidence in it:"
    )
    draw_sample_sheet(columns, folder / "samples.png", title, confidence, labels)
    count = samples * len(labels) * len(generators)
    costs.samples_made += count
    costs.teacher_forwards += count
    chosen = {} if len(labels) == generators.classes else {"confidence_classes": labels}
    return {"confidence": confidence, **chosen}


def draw_walk(generators: Generators, seed: int, folder: Path, costs: StageCosts) -> list[dict[str, Any]]:
    """Write ``walk.png``: interpolation from one class to another with the same noise, one row per pair of classes.

    Returns:
        For each row the two classes, and the teacher's probabilities of them at every step.
    """
    rows, walks = [], []
    for start in range(0, min(generators.classes, 2 * _WALKS), 2):
        end = (start + 1) % generators.classes
        x, probabilities = generators.walk(start, end, steps=_WALK_STEPS, seed=seed)
        rows.append(list(x))
        p_from, p_to = probabilities[:, start].tolist(), probabilities[:, end].tolist()
        walks.append({"from": start, "to": end, "p_from": p_from, "p_to": p_to})
    costs.samples_made += len(rows) * _WALK_STEPS
    costs.teacher_forwards += len(rows) * _WALK_STEPS
    write_grid(rows, folder / "walk.png")
    return walks
