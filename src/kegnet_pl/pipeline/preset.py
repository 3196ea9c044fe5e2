"""The preset of a run with the user's own network (``preset=auto``): by its inputs, batch norm, size and device."""

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from kegnet_pl.api.learning_rate import MOST_TRIALS, count_steps
from kegnet_pl.compression import AutomaticPlan, fittable_layers, measure_size
from kegnet_pl.compression.dependencies import has_library
from kegnet_pl.networks import as_classifier
from kegnet_pl.networks.batch_norm import norm_layers
from kegnet_pl.networks.execution import first_weight
from kegnet_pl.networks.handling import copy_network, move, set_mode, to_float32
from kegnet_pl.networks.validation import FORWARD_ERRORS, samples_for_trial
from kegnet_pl.pipeline.objects import build, make_plan, source_definitions
from kegnet_pl.pipeline.stages.samples import settings_for
from kegnet_pl.runtime.errors import UserError
from kegnet_pl.runtime.timing import time_in_turns
from kegnet_pl.settings import CompressionSettings, GeneratorSettings, RunSettings
from kegnet_pl.sources import build_source, describe_mixture
from kegnet_pl.sources.matching import STEPS, find_matched_layers

BUDGETS = {"cpu": 1e14, "cuda": 1e16}
"""Type of device -> multiply-accumulates of a run: about an hour on two cores or on one GPU."""

_PART = 0.5
"""Maximum share of the budget for the compression, and for each student."""

_LEAST_SAMPLES = {"student.samples": 1000, "compression.samples": 200}

_FLOOR = 60.0
"""Shorter estimates have no meaning: start, measurements and report of a run take as many seconds."""

_LONG = 1800.0
"""Seconds above which an estimate names settings that take less time."""

_DEEP = 10
"""Students of teachers with at least this number of batch-norm layers also learn from the teacher's layers.
The networks of results/PRESETS.md have 3 or 19."""

_FITTING = 3.0
"""Forward passes of the teacher for each sample and layer of a compression by function (measured for small CNNs)."""


@dataclass(frozen=True)
class Preset:
    """Settings for a network.

    Attributes:
        name: Option of the group ``experiment``.
        reason: The properties of the network that decide.
        overrides: Settings that differ from the preset's: for few batch-norm layers, or for a student whose layers are
            not those of the teacher.
    """

    name: str
    reason: str
    overrides: tuple[str, ...] = ()


def choose_preset(network: nn.Module, input_shape: Sequence[int], same_layers: bool) -> Preset:
    """Return the preset for a teacher.

    Args:
        network: The teacher; its weights do not matter.
        input_shape: Shape of one sample.
        same_layers: True if students are the compressed teacher, with layers of the same names and widths.
    """
    others = () if same_layers else (
        "student.norm=batch", "student.feature_distillation.weight=0", "student.reconstruct=false",
    )  # fmt: skip
    kind = {1: "rows of features", 2: "signals", 3: "images", 4: "volumes"}[len(input_shape)]
    norms = [layer for layer in norm_layers(network).values() if layer.track_running_stats]
    if len(input_shape) == 1:
        first = next((layer for layer in network.modules() if getattr(layer, "weight", None) is not None), None)
        dense = isinstance(first, nn.Linear) and first.in_features == input_shape[0]
        if dense:
            return Preset("custom/table", f"{kind}, a dense first layer", others)
        return Preset("custom/table", f"{kind}, another first layer", ("sources=[procedural]", *others))
    if len(input_shape) != 3:
        return Preset("custom/signal", kind, others)
    if norms:
        shallow = ("student.norm=frozen", "student.feature_distillation.weight=0") if len(norms) < _DEEP else ()
        return Preset("custom/batch_norm", f"{kind}, {len(norms)} batch-norm layers", others or shallow)
    return Preset("custom/image", f"{kind}, no batch norm", others)


def choose_compression(settings: RunSettings, given: Sequence[str]) -> list[str]:
    """Return the override that compares methods of compression, unless the command line names one.

    It needs Torch-Pruning; without it, layers are factorised.

    Args:
        settings: Settings of the run.
        given: Overrides of the command line.
    """
    names = {text.lstrip("+").partition("=")[0] for text in given}
    of_method = {"compression", *(f"compression.{name}" for name in ("method", "rules", "when_larger", "fold", "fit"))}
    if names & of_method or settings.student.network is not None or not has_library():
        return []
    return ["compression=auto"]


def fit_to_budget(settings: RunSettings, network: nn.Module, device: torch.device) -> list[str]:
    """Return overrides that keep a run within the budget of its device; none if it is within it already.

    They depend on sizes alone, not on measured times: the same command has the same settings on every machine with such
    a device.
    """
    shape = tuple(settings.data.input_shape)
    macs, budget = measure_size(network, shape).macs, BUDGETS[device.type]
    student, compression = settings.student, settings.compression
    overrides = []
    # A backward pass takes twice the forward pass.
    matched = 3 * STEPS if find_matched_layers(network, samples_for_trial(shape, 2)) else 0
    drawn = student.samples * (student.epochs if student.resample_each_epoch else 1)
    infos = [describe_mixture(mixture, settings.source) for mixture in settings.sources]
    matching = max((settings_for(student, info).matching for info in infos), default=0.0)
    work = {"student.samples": macs * drawn * (4 + matched * matching)}
    if compression.fit == "function" and student.network is None:
        fitting = _count_methods(compression) * _FITTING * len(fittable_layers(network))
        work["compression.samples"] = macs * compression.samples * (fitting + matched * compression.matching)
    for name, amount in work.items():
        if amount > _PART * budget:
            now = student.samples if name == "student.samples" else compression.samples
            fewer = max(int(now * _PART * budget / amount), _LEAST_SAMPLES[name])
            step = math.lcm(settings.generator.count, 10)
            overrides.append(f"{name}={max(fewer // step * step, step)}")
    return overrides


def _count_methods(compression: CompressionSettings) -> int:
    """Return the number of compressed networks that a compression makes."""
    plan = make_plan(compression)
    return len(plan.plans) if isinstance(plan, AutomaticPlan) else 1


def _count_generated(generator: GeneratorSettings) -> int:
    """Return the number of samples that generators make in their training."""
    return generator.count * generator.epochs * generator.steps_per_epoch * generator.batch_size


class _Step(nn.Module):
    """A forward and a backward pass of a network, as in student training."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: torch.Tensor) -> None:
        self.network(x.detach().requires_grad_()).sum().backward()  # the weights of a program have no gradients


class _GeneratorStep(nn.Module):
    """A forward and a backward pass of a generator, its decoder and the teacher."""

    def __init__(self, teacher: nn.Module, settings: GeneratorSettings) -> None:
        super().__init__()
        with torch.random.fork_rng([]):
            self.generator: Any = build(settings.network)
            self.decoder: nn.Module = build(settings.decoder)
        self.teacher = teacher

    def forward(self, x: torch.Tensor) -> None:
        noise = torch.zeros(len(x), self.generator.noise_dim, device=x.device)
        samples = self.generator(noise, torch.zeros(len(x), self.generator.classes, device=x.device))
        (self.decoder(samples).sum() + self.teacher(samples).sum()).backward()


def estimate_seconds(settings: RunSettings, network: nn.Module, device: torch.device) -> dict[str, float]:
    """Return the expected seconds of the stages of a run on this machine, from a few measured steps."""
    shape, student = tuple(settings.data.input_shape), settings.student
    teacher = set_mode(move(to_float32(copy_network(network)), device), training=False)
    weight = first_weight(teacher)
    size = 16 if math.prod(shape) <= 2**14 else 4
    x = samples_for_trial(shape, size).to(weight)

    def per_sample(module: nn.Module) -> float:
        (times,) = time_in_turns([(module, x)], shortest=0.02, rounds=(3, 3))
        return min(times) / size

    with torch.no_grad():
        forward = per_sample(teacher)
    step = per_sample(_Step(teacher))
    matched = STEPS * step if find_matched_layers(teacher, x) else 0.0
    seconds = {}
    if settings.compression.fit == "function" and student.network is None:
        layers, compression = len(fittable_layers(network)), settings.compression
        fitting = _FITTING * layers * _count_methods(compression)
        seconds["compression"] = compression.samples * (
            forward * (compression.oversampling + fitting) + matched * compression.matching
        )
    infos = [describe_mixture(mixture, settings.source) for mixture in settings.sources]
    if any(info.needs_generators for info in infos):
        step_of_generator = per_sample(_GeneratorStep(teacher, settings.generator).to(device))
        seconds["generators"] = _count_generated(settings.generator) * step_of_generator
    for info in infos:
        own = settings_for(student, info)
        passes = own.samples * own.epochs
        if own.optimizer.lr == "auto":
            passes += MOST_TRIALS * own.batch_size * count_steps(own.samples, own.epochs, own.batch_size)
        drawn = own.samples * (own.epochs if own.resample_each_epoch else 1)
        candidate = forward + _drawing(settings, info.shares)
        seconds[info.title] = passes * step + drawn * (own.oversampling * candidate + matched * own.matching)
    return seconds


def _drawing(settings: RunSettings, shares: Mapping[str, float]) -> float:
    """Return the seconds for drawing one sample of a mixture, without generators and real data."""
    total = 0.0
    for name, share in shares.items():
        info = describe_mixture({name: 1.0}, settings.source)
        if info.needs_generators or info.needs_data or info.name == "correlated":
            continue
        definitions = source_definitions(settings, [name])
        source = build_source({name: 1.0}, definitions, input_shape=tuple(settings.data.input_shape))
        (times,) = time_in_turns([(_Draw(source), torch.zeros(()))], shortest=0.0, rounds=(2, 2))
        total += share * min(times) / _Draw.COUNT
    return total


class _Draw(nn.Module):
    COUNT = 32

    def __init__(self, source: Any) -> None:
        super().__init__()
        self.source = source

    def forward(self, x: torch.Tensor) -> None:  # noqa: ARG002
        self.source.sample(self.COUNT, 0)


def describe_choice(preset: Preset, network: nn.Module, device: torch.device, overrides: Sequence[str]) -> str:
    """Return the line that a run prints about its preset."""
    parameters = sum(value.numel() for value in network.parameters())
    more = shlex.join(overrides)
    return (
        f"preset=auto: experiment={preset.name}{f' {more}' if more else ''} ({preset.reason}, {parameters:,} "
        f"parameters, {device.type})."
    )


def describe_time(seconds: Mapping[str, float], stored: bool) -> str:
    """Return the line that a run prints about its expected time.

    Args:
        seconds: Stage -> its seconds (:func:`estimate_seconds`).
        stored: True if the store has stages of other runs, which this run may find there.
    """
    total = sum(seconds.values())
    if total < _FLOOR:
        return "Expected time on this machine: about a minute or less."
    parts = ", ".join(f"{name} {_about(value)}" for name, value in seconds.items())
    shorter = ["'sources=[procedural]'"] if "generators" in seconds else []
    shorter += ["compression.samples=200", "compression=pruning"] if "compression" in seconds else []
    shorter += ["student.epochs=2", "student.samples=1000"]
    remedy = f" For less time, add {' '.join(shorter)}." if total > _LONG else ""
    without = " It is less if the store already has stages of this run." if stored else ""
    return f"Expected time on this machine: about {_about(total)} ({parts}).{without}{remedy}"


def without_given(overrides: Sequence[str], given: Sequence[str]) -> list[str]:
    """Return the overrides of settings that the command line does not set itself."""
    names = {text.lstrip("+").partition("=")[0] for text in given}
    return [text for text in overrides if text.partition("=")[0] not in names]


def build_untrained(settings: RunSettings) -> nn.Module | None:
    """Return the teacher without the weights of its file, with logits as its output.

    Returns:
        None if it cannot be built, or does not accept the samples. The stage of the teacher reports the reason.
    """
    shape, teacher = tuple(settings.data.input_shape), settings.teacher
    try:
        with torch.random.fork_rng([]):
            network: nn.Module = build(teacher.network)
        network = as_classifier(network, shape, teacher.outputs, teacher.output_key, "teacher")
        set_mode(to_float32(network), training=False)
        measure_size(network, shape)
    except (*FORWARD_ERRORS, OSError, UserError):
        return None
    return network


def _about(seconds: float) -> str:
    """Return a duration in words."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
