"""Choice of a student's learning rate: short trainings are compared on held-out synthetic samples."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from kegnet_pl.data.synthetic import SyntheticDataModule
from kegnet_pl.networks import FrozenModule
from kegnet_pl.networks.execution import chunk_size
from kegnet_pl.networks.handling import copy_network
from kegnet_pl.runtime.atomic_files import atomic_write
from kegnet_pl.runtime.distributed import exchange, rank
from kegnet_pl.runtime.errors import DivergedError
from kegnet_pl.training import StudentModule
from kegnet_pl.training.base import accuracy
from kegnet_pl.training.fit import QuietFit

FIRST, SMALLER, LARGER = 3e-4, (1e-4, 3e-5), (1e-3, 3e-3)
"""Learning rates for Adam: that of the first trial, and those that may follow."""

MOST_TRIALS = 4
"""Maximum number of trials."""

_SHARE = 4
"""A trial has a quarter of the student's steps, within the limits below."""

_STEPS = (20, 200)
"""Minimum and maximum number of steps of a trial."""

_EPOCHS = 4
"""Number of epochs of a trial. Over them, the learning rate follows the student's schedule."""

_HELD_OUT = 1_000
"""Maximum number of samples that are held out, at most one in five."""


@dataclass(frozen=True)
class Trial:
    """A short training of a student with a learning rate.

    Attributes:
        lr: The learning rate.
        loss: Distillation loss on the held-out samples, in nats; infinite if the training diverged or the loss is NaN.
        agreement: Share of these samples to which student and teacher give the same class, in [0, 1].
    """

    lr: float
    loss: float
    agreement: float


def count_steps(samples: int, epochs: int, batch_size: int) -> int:
    """Return the number of optimiser steps of a trial. ``samples`` is the number per epoch of the student."""
    return min(max(epochs * samples // batch_size // _SHARE, _STEPS[0]), _STEPS[1])


def try_learning_rates(
    network: nn.Module, data: SyntheticDataModule, epochs: int, make_module: Callable[[nn.Module, float], StudentModule]
) -> list[Trial]:
    """Compare learning rates by short trainings of copies of a student.

    A compressed network that is close to its teacher loses accuracy at high learning rates. A network that has lost
    much accuracy needs them. Lower learning rates are tried first, as long as the loss on held-out samples falls.
    Higher ones are tried only if no lower one is better.

    Args:
        network: The student, on the device of the data; it is not changed.
        data: The student's samples, after :meth:`SyntheticDataModule.setup`.
        epochs: Epochs of the student's training.
        make_module: Returns the module that trains a network with a learning rate.

    Returns:
        The trials in their order. All processes get the trials of rank 0. :func:`best` returns the best trial.
    """
    samples = len(data.splits["train"][0])
    is_held_out = torch.arange(samples) % 5 == 4
    held_out, rest = (rows.nonzero().flatten() for rows in (is_held_out, ~is_held_out))
    x, logits = data.select(held_out[:_HELD_OUT] if len(held_out) else rest).splits["train"]
    steps = count_steps(samples, epochs, data.batch_size)
    count = min(len(rest), -(-steps // _EPOCHS) * data.batch_size)
    part = data.select(rest[torch.linspace(0, len(rest) - 1, count).long()])
    fit = QuietFit(data.device)

    def attempt(lr: float) -> Trial:
        module = make_module(copy_network(network), lr)
        try:
            fit(module, part, name="trial", epochs=_EPOCHS)
        except DivergedError:
            return Trial(lr, float("inf"), 0.0)
        finally:
            data.costs.teacher_forwards += module.teacher_forwards
        answers = _answer(module.network, x, data.device)
        agreement = accuracy(answers, logits.argmax(dim=1))
        loss = float(module.distillation(answers, logits))
        return Trial(lr, loss if math.isfinite(loss) else float("inf"), float(agreement))

    with data.costs.measure("student_training"):
        trials = [attempt(FIRST)]
        for rates in (SMALLER, LARGER):
            for lr in rates:
                trials.append(attempt(lr))
                if best(trials) is not trials[-1]:
                    break
            if best(trials) is not trials[0]:
                break
    return exchange(trials)[0]


def recall_trials(file: Path | None, make: Callable[[], list[Trial]]) -> list[Trial]:
    """Return the trials that a file of an interrupted training keeps; without them, make and keep them.

    ``file`` is None where trainings are not resumed. All processes get the trials of rank 0.
    """
    found = exchange(_read_trials(file) if file is not None and rank() == 0 else None)[0]
    if found:
        return found
    trials = make()
    if file is not None and rank() == 0:
        file.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(file, json.dumps([vars(trial) for trial in trials]))
    return trials


def _read_trials(file: Path) -> list[Trial] | None:
    """Return the trials of a file; None if there is no file, or it is damaged."""
    try:
        return [Trial(**{name: float(value) for name, value in one.items()}) for one in json.loads(file.read_text())]
    except (OSError, ValueError, TypeError, AttributeError):
        return None


def best(trials: Sequence[Trial]) -> Trial:
    """Return the first trial with the lowest loss."""
    return min(trials, key=lambda trial: trial.loss)


def describe_trials(trials: Sequence[Trial]) -> str:
    """Return the learning rate that is chosen, and loss and agreement of all trials; the loss decides."""
    tried = ", ".join(f"{trial.lr:g} (loss {trial.loss:.3g}, agreement {trial.agreement:.1%})" for trial in trials)
    return f"learning rate {best(trials).lr:g}, by short trainings with {tried}"


@torch.no_grad()
def _answer(network: nn.Module, x: Tensor, device: torch.device) -> Tensor:
    """Return the logits ``(N, C)`` of a network in evaluation mode."""
    frozen = FrozenModule(network).to(device)
    return torch.cat([frozen(part) for part in x.split(chunk_size(x.shape[1:], device))])
