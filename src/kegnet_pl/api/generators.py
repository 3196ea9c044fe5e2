"""Training of generators for a network."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from pytorch_lightning import Callback
from pytorch_lightning.loggers import Logger
from torch import nn

from kegnet_pl.api.engine import GeneratorTask, adam, fit_generators
from kegnet_pl.api.sampling import Generators
from kegnet_pl.losses import ClassifierLoss, DecoderLoss, DiversityLoss, GeneratorObjective, StatisticsLoss
from kegnet_pl.networks import (
    ConvGenerator,
    Decoder,
    DenseGenerator,
    ImageGenerator,
    OutputKey,
    TeacherNorm,
    as_classifier,
    count_classes,
)
from kegnet_pl.networks.handling import warn_of_hooks
from kegnet_pl.networks.validation import check_generator, check_gradient, to_shape
from kegnet_pl.runtime.devices import Device, find_device
from kegnet_pl.settings import GeneratorTrainingSettings, LRSchedulerName, Outputs, Parallel, Precision, read_arguments
from kegnet_pl.training.fit import QuietFit
from kegnet_pl.training.progress import StageProgress, make_console

Terms = Mapping[str, float]


def train_generators(
    teacher: nn.Module,
    input_shape: int | Sequence[int],
    *,
    count: int = 5,
    noise_dim: int = 10,
    epochs: int = 20,
    steps_per_epoch: int = 50,
    batch_size: int = 256,
    lr: float = 1e-3,
    lr_scheduler: LRSchedulerName = "constant",
    objective: GeneratorObjective | Terms | None = None,
    make_generator: Callable[[], nn.Module] | None = None,
    make_decoder: Callable[[], nn.Module] | None = None,
    teacher_norm: TeacherNorm = "batch",
    teacher_dropout: bool = False,
    outputs: Outputs = "auto",
    output_key: OutputKey = None,
    parallel: Parallel = "auto",
    compile: bool = False,
    cuda_graphs: bool = True,
    seed: int = 0,
    device: Device = "auto",
    precision: Precision = "32-true",
    logger: Logger | Sequence[Logger] | bool = False,
    callbacks: Sequence[Callback] | Callable[[], Sequence[Callback]] = (),
    progress: bool = True,
) -> Generators:
    """Train generators against a frozen network until it recognises their samples (PAPER sections 1 and 2).

    Args:
        teacher: Any classifier; it is not changed.
        input_shape: Shape of one sample: ``(channels, height, width)``, ``(channels, length)``, ``(channels, depth,
            height, width)``, or the number of features; any other shape needs ``make_generator``. Samples are
            standardised, as the training data of the teacher should have been.
        count: Number of generators. They are trained independently. A student learns more from several generators.
        noise_dim: Dimensions of the noise.
        epochs: Number of epochs. For images, the paper has 200 epochs of 100 steps.
        steps_per_epoch: Optimiser steps per epoch.
        batch_size: Samples per step and generator.
        lr: Adam's learning rate.
        lr_scheduler: ``"constant"``, or ``"cosine"``: down to zero after the last epoch.
        objective: Weights of the terms ``classifier``, ``decoder``, ``diversity`` and ``statistics``, or another
            objective; None: 1, 1 and 1 as in the paper, without diversity for rows of features.
        make_generator: Returns a new generator with attributes ``noise_dim`` and ``classes``.
        make_decoder: Returns a new decoder from samples to noise.
        teacher_norm: Statistics of the teacher's batch norm: ``"batch"``, as in the paper's release, or ``"running"``.
        teacher_dropout: True to keep the teacher's dropout on, as in the paper's release.
        outputs: Type of the output of the teacher: ``"logits"``, ``"probabilities"``,
            ``"log_probabilities"``, ``"sigmoid"``, or ``"auto"``, which detects it with trial samples
            (:func:`as_classifier`).
        output_key: Key, attribute or position of the output tensor, if it returns several; None finds it.
        parallel: ``"vmap"``, all generators as one batch of networks; ``"sequential"``; ``"auto"``: vmap on a GPU and
            for rows of features, if torch can vectorise the networks.
        compile: True to compile the step with ``torch.compile``.
        cuda_graphs: True to record a step on one GPU and replay it.
        seed: All random numbers derive from it.
        device: Device of the training; ``"auto"`` is a GPU if there is one.
        precision: ``"32-true"``, ``"bf16-mixed"`` or ``"16-mixed"``.
        logger: Lightning loggers. With several generators, names of metrics begin with ``generator_0/``.
        callbacks: Further Lightning callbacks, or a function that returns new ones for each fit: a CPU trains
            generators of images one after another.
        progress: True to print the progress.

    Raises:
        ValueError: If an argument is out of range, the networks do not fit each other, the teacher passes no gradient
            to its input, or ``parallel="vmap"`` is set and torch cannot vectorise the networks.
    """
    settings = read_arguments(
        GeneratorTrainingSettings, "generator", count=count, noise_dim=noise_dim, epochs=epochs,
        steps_per_epoch=steps_per_epoch, batch_size=batch_size, lr_scheduler=lr_scheduler, teacher_norm=teacher_norm,
        teacher_dropout=teacher_dropout, parallel=parallel, compile=compile, cuda_graphs=cuda_graphs, seed=seed,
    )  # fmt: skip
    fit = QuietFit(find_device(device), precision, logger)
    shape = to_shape(input_shape)
    warn_of_hooks(teacher)
    teacher = as_classifier(teacher, shape, outputs, output_key, "teacher")
    classes = count_classes(teacher, shape, "teacher")
    check_gradient(teacher, shape)
    terms = make_objective(objective, shape)
    default_decoder = partial(Decoder, shape, noise_dim, blocks=1 if len(shape) == 3 else 2)
    task = GeneratorTask(
        teacher,
        shape,
        fit.device,
        partial(_make, make_generator or _default_generator(shape, classes, noise_dim), "make_generator"),
        partial(_make, make_decoder or default_decoder, "make_decoder"),
        lambda: terms,
        adam(lr),
        settings,
        precision,
    )
    with torch.inference_mode(mode=False):
        _check_networks(task, classes)
        task, _ = task.choose_parallel()
        return fit_generators(
            task,
            fit,
            StageProgress("generators", make_console(quiet=not progress)),
            lambda names, network: callbacks() if callable(callbacks) else callbacks,  # noqa: ARG005
        )


def _check_networks(task: GeneratorTask, classes: int) -> None:
    """Raise a ValueError unless a task makes new networks, which fit the samples and each other."""
    first, second = task.make_pair(0), task.make_pair(1)
    if {id(network) for network in first} & {id(network) for network in second}:
        raise ValueError(
            "Expected `make_generator` and `make_decoder` to return a new module at every call, but got the same twice."
        )
    try:
        check_generator(*first, task.input_shape, classes)
    except ValueError as error:
        raise ValueError(
            f"{error} Give `make_generator` and `make_decoder` that fit, and `noise_dim` as your generator has."
        ) from error


def _make(make: Callable[[], Any], name: str) -> nn.Module:
    """Call a function of the user; raise a ValueError if it is not callable, or does not return a module."""
    if isinstance(make, nn.Module):
        raise ValueError(f"Expected `{name}` to be a function that returns a new module, but got a module: lambda: ...")
    network = make()
    if not isinstance(network, nn.Module):
        raise ValueError(f"Expected `{name}` to return a new module, but got {network!r}.")
    return network


def _default_generator(input_shape: tuple[int, ...], classes: int, noise_dim: int) -> Callable[[], nn.Module]:
    if len(input_shape) == 1:
        return partial(DenseGenerator, input_shape[0], classes, noise_dim)
    if len(input_shape) == 3:
        return partial(ImageGenerator, input_shape[0], classes, noise_dim, input_shape[1:])
    if len(input_shape) in (2, 4):
        return partial(ConvGenerator, input_shape, classes, noise_dim)
    raise ValueError(
        f"Expected `make_generator` for samples of shape {input_shape}: our own generators make (channels, length), "
        f"(channels, height, width), (channels, depth, height, width) and (features,). Give a function that returns a "
        f"module with `noise_dim` and `classes`, called with (z, y)."
    )


def make_objective(given: GeneratorObjective | Terms | None, input_shape: tuple[int, ...]) -> GeneratorObjective:
    """Return an objective from weights by name; None: the paper's weights for samples of this shape.

    Raises:
        ValueError: If no term has such a name.
    """
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
