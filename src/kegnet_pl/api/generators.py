"""Training generators for a network."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any, Literal, get_args

import torch
from pytorch_lightning import Callback
from pytorch_lightning.loggers import Logger
from torch import nn

from kegnet_pl.api.sampling import Generators
from kegnet_pl.losses import ClassifierLoss, DecoderLoss, DiversityLoss, GeneratorObjective, StatisticsLoss
from kegnet_pl.networks import Decoder, DenseGenerator, ImageGenerator, StackedModule, TeacherNorm, count_classes
from kegnet_pl.networks.execution import teacher_for
from kegnet_pl.networks.validation import check_generator
from kegnet_pl.runtime.devices import Device, find_device
from kegnet_pl.runtime.seeds import derive_seed
from kegnet_pl.training import GeneratorModule
from kegnet_pl.training.base import LRSchedulerName
from kegnet_pl.training.fit import (
    check_counts,
    check_numbers,
    fit_quietly,
    frozen_copy,
    seeded,
    to_shape,
)
from kegnet_pl.training.progress import StageProgress, make_console
from kegnet_pl.training.vectorization import should_vectorize, vectorization_error

Terms = Mapping[str, float]
Training = Literal["auto", "vmap", "sequential"]


def train_generators(
    teacher: nn.Module,
    input_shape: int | Sequence[int],
    *,
    count: int = 5,
    epochs: int = 20,
    steps_per_epoch: int = 50,
    batch_size: int = 256,
    lr: float = 1e-3,
    lr_scheduler: LRSchedulerName = "constant",
    objective: GeneratorObjective | Terms | None = None,
    noise_dim: int = 10,
    make_generator: Callable[[], nn.Module] | None = None,
    make_decoder: Callable[[], nn.Module] | None = None,
    teacher_norm: TeacherNorm = "batch",
    teacher_dropout: bool = False,
    training: Training = "auto",
    seed: int = 0,
    device: Device = "auto",
    precision: Any = "32-true",
    logger: Logger | Sequence[Logger] | bool = False,
    callbacks: Sequence[Callback] | Callable[[], Sequence[Callback]] = (),
    progress: bool = True,
) -> Generators:
    """Train generators against a frozen network until it recognises what they make (PAPER sections 1 and 2).

    Args:
        teacher: Any network that returns logits ``(B, C)``. It stays as it is.
        input_shape: Shape of one sample of it: ``(channels, height, width)``, or the number of features; any other one
            needs ``make_generator``. Samples are standardised, as the teacher's own input should have been.
        count: Generators, trained independently; a student learns more from several.
        epochs: Epochs; the paper's images have 200 of 100 steps.
        steps_per_epoch: Optimiser steps of an epoch.
        batch_size: Samples of a step.
        lr: Adam's learning rate.
        lr_scheduler: ``"constant"``, or ``"cosine"``: down to zero after the last epoch.
        objective: Weights of the terms ``classifier``, ``decoder``, ``diversity`` and ``statistics``, or one of your
            own; None for the paper's: 1, 1 and 1, without diversity for rows of features.
        noise_dim: Dimensions of the noise.
        make_generator: Returns a new generator with attributes ``noise_dim`` and ``classes``.
        make_decoder: Returns a new decoder from samples to noise.
        teacher_norm: Statistics of the teacher's batch norm: ``"batch"``, as in the paper's release, or ``"running"``.
        teacher_dropout: Whether the teacher's dropout stays on, as in the paper's release.
        training: ``"vmap"``, as one batch of networks; ``"sequential"``; ``"auto"``: together on a GPU and for rows
            of features, where torch can vectorise them.
        seed: All random numbers derive from it.
        device: Where to train; ``"auto"``: a GPU if there is one.
        precision: ``"32-true"``, ``"bf16-mixed"`` or ``"16-mixed"``.
        logger: Lightning loggers. Where there are several generators, names of metrics begin with ``generator_0/``.
        callbacks: Further Lightning callbacks, or a function that returns new ones: a CPU trains generators one after
            another, and callbacks that keep something (``EarlyStopping``) should begin anew with each.
        progress: Whether to show how far it is.

    Returns:
        The trained generators.

    Raises:
        ValueError: If the teacher, the generator or the decoder does not take such samples, or generators cannot be
            trained together where that is asked for.
    """
    where = find_device(device)
    check_counts(
        count=(count, 1), epochs=(epochs, 1), steps_per_epoch=(steps_per_epoch, 1), batch_size=(batch_size, 2),
        noise_dim=(noise_dim, 1),
    )  # fmt: skip
    check_numbers(precision, where, lr=(lr, 0))
    if training not in (known := get_args(Training)):
        raise ValueError(f"Expected `training` to be one of {known}, but got {training!r}.")
    input_shape = to_shape(input_shape)
    classes = count_classes(teacher, input_shape, "teacher")
    make_generator = make_generator or _default_generator(input_shape, classes, noise_dim)
    make_decoder = make_decoder or partial(Decoder, input_shape, noise_dim, blocks=1 if len(input_shape) == 3 else 2)
    pairs = []
    for index in range(count):
        with seeded(derive_seed(seed, "generator", index)):
            pairs.append((_made(make_generator, "make_generator"), _made(make_decoder, "make_decoder")))
    if len({id(network) for pair in pairs for network in pair}) < 2 * count:
        raise ValueError(
            "Expected `make_generator` and `make_decoder` to return a new module at every call, but got the same twice."
        )
    try:
        check_generator(*pairs[0], input_shape, classes)
    except ValueError as error:
        raise ValueError(
            f"{error} Give `make_generator` and `make_decoder` that fit, and `noise_dim` as your generator has."
        ) from error

    def make_module(mine: Sequence[tuple[nn.Module, nn.Module]], index: int) -> GeneratorModule:
        alone = len(mine) == 1
        return GeneratorModule(
            mine[0][0] if alone else StackedModule([generator for generator, _ in mine]),
            mine[0][1] if alone else StackedModule([decoder for _, decoder in mine]),
            teacher_for(teacher, input_shape, precision),
            _objective(objective, input_shape),
            partial(torch.optim.Adam, lr=lr),
            batch_size=batch_size,
            steps_per_epoch=steps_per_epoch,
            teacher_norm=teacher_norm,
            teacher_dropout=teacher_dropout,
            lr_scheduler=lr_scheduler,
            seed=seed,
            index=index,
        )

    together = should_vectorize(training, count, where, input_shape)
    if together:
        obstacle = vectorization_error(lambda: make_module(pairs[:2], 0))
        if obstacle is not None and training == "vmap":
            raise ValueError(
                f"Expected generators, teacher and losses that torch can vectorise beside parallel='vmap', but: "
                f"{obstacle.rstrip('.')}. Use parallel='sequential'."
            )
        together = obstacle is None
    fits = [list(range(count))] if together else [[index] for index in range(count)]
    metrics: list[dict[str, float]] = []
    bar = StageProgress("generators", make_console(), len(fits)) if progress else None
    with bar or nullcontext():
        for number, indices in enumerate(fits):
            if bar is not None:
                bar.next_fit(number)
            mine = [pairs[index] for index in indices]
            module = make_module(mine, indices[0])
            module.names = [f"generator_{index}" for index in indices] if count > 1 else None
            own = [*(callbacks() if callable(callbacks) else callbacks), *([bar] if bar is not None else [])]
            fit_quietly(module, None, epochs, where, precision, own, logger)
            metrics += module.means
            for place, pair in enumerate(mine):
                for stacked, single in zip((module.generator, module.decoder), pair, strict=True):
                    if isinstance(stacked, StackedModule):
                        stacked.take(place, single)
    return Generators(
        [generator.cpu().eval() for generator, _ in pairs],
        [decoder.cpu().eval() for _, decoder in pairs],
        frozen_copy(teacher),
        input_shape,
        classes,
        where,
        metrics,
    )


def _made(make: Callable[[], nn.Module], name: str) -> nn.Module:
    if isinstance(make, nn.Module):
        raise ValueError(f"Expected `{name}` to be a function that returns a new module, but got a module: lambda: ...")
    made = make()
    if not isinstance(made, nn.Module):
        raise ValueError(f"Expected `{name}` to return a new module, but got {made!r}.")
    return made


def _default_generator(input_shape: tuple[int, ...], classes: int, noise_dim: int) -> Callable[[], nn.Module]:
    if len(input_shape) == 1:
        return partial(DenseGenerator, input_shape[0], classes, noise_dim)
    if len(input_shape) == 3:
        return partial(ImageGenerator, input_shape[0], classes, noise_dim, input_shape[1:])
    raise ValueError(
        f"Expected `make_generator` for samples of shape {input_shape}: our own generators make (channels, height, "
        f"width) and (features,). Give a function that returns a module with `noise_dim` and `classes`, called with "
        f"(z, y)."
    )


def _objective(given: GeneratorObjective | Terms | None, input_shape: tuple[int, ...]) -> GeneratorObjective:
    if isinstance(given, GeneratorObjective):
        return given
    terms = {
        "classifier": ClassifierLoss(), "decoder": DecoderLoss(), "diversity": DiversityLoss(),
        "statistics": StatisticsLoss(),
    }  # fmt: skip
    default = {"classifier": 1.0, "decoder": 1.0, "diversity": 1.0 if len(input_shape) == 3 else 0.0}
    weights = dict(default if given is None else given)
    unknown = sorted(set(weights) - set(terms))
    if unknown:
        raise ValueError(f"Expected weights of {sorted(terms)} in `objective`, but got {unknown[0]!r}.")
    return GeneratorObjective({name: terms[name] for name in weights}, weights)
