"""Settings of generators and of their training."""

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field

from kegnet_pl.settings.base import (
    FREE,
    BatchNormStatistics,
    Count,
    LRSchedulerName,
    NotNegative,
    Object,
    Parallel,
    Seed,
    Settings,
    explained,
)
from kegnet_pl.settings.training import OptimizerSettings


class ObjectiveTerm(Settings):
    """A loss of the generators and its weight."""

    weight: NotNegative
    """Weight of the loss; 0 leaves the term out."""
    term: Object
    """The loss."""


class GeneratorTrainingSettings(Settings):
    """Training of generators: settings that the library and the command line share."""

    count: Count = 5
    """Number of generators; each is trained on its own."""
    noise_dim: Count = 10
    """Dimensions of the noise."""
    epochs: Count = 20
    """Number of epochs."""
    steps_per_epoch: Count = 50
    """Optimiser steps of an epoch."""
    batch_size: Annotated[int, Field(ge=2)] = 256
    """Samples of a step and generator, over all processes."""
    lr_scheduler: LRSchedulerName = "constant"
    """Learning rate from epoch to epoch: constant, or cosine (down to zero)."""
    teacher_norm: BatchNormStatistics = "batch"
    """Statistics of the teacher's batch norm: batch, as in the authors' release, or running."""
    teacher_dropout: bool = False
    """True: the teacher's dropout is on, as in the authors' release."""
    parallel: Parallel = "auto"
    """vmap: all generators as one batch of networks; sequential; auto: vmap on a GPU and for tables, where possible."""
    seed: Seed = 0
    """Seed of the generators alone: students of several seeds can share them."""
    compile: bool = False
    """torch.compile: a slow start, faster steps; on a CPU it needs a C++ compiler."""
    cuda_graphs: bool = Field(default=True, json_schema_extra=FREE)
    """On one GPU a step is recorded once and replayed; false: for a loss that changes in Python from step to step."""


def _check_objective(settings: "GeneratorSettings") -> Iterator[str]:
    if not any(term.weight for term in settings.objective.values()):
        yield "Expected a positive weight for one term of `generator.objective`, but got only zeros."


class GeneratorSettings(GeneratorTrainingSettings):
    """The generators and their losses."""

    RULES = (_check_objective,)

    upsampling: Literal["transposed", "nearest"] = Field(default="transposed", json_schema_extra=FREE)
    """For generator=image: transposed convolutions, as in the paper, or nearest: no checkerboard."""
    output_norm: Literal["image", "batch", "none"] = Field(default="image", json_schema_extra=FREE)
    """For generator=image: zero mean and unit deviation of each image, of each channel over the batch, or none."""
    network: Object
    """Called with noise (B, Z) and one-hot labels (B, C); has attributes noise_dim and classes."""
    decoder: Object
    """Reads the noise (B, Z) from samples."""
    objective: dict[str, ObjectiveTerm] = Field(json_schema_extra=explained("losses by name"))
    """Losses by name."""
    optimizer: OptimizerSettings = OptimizerSettings()
    """Optimiser of generators and decoders."""

    def fingerprint(self) -> dict[str, Any]:
        """Return the settings that the result depends on, plain; losses of weight 0 are none of them."""
        used = {name: term for name, term in self.objective.items() if term.weight}
        return super(GeneratorSettings, self.model_copy(update={"objective": used})).fingerprint()
