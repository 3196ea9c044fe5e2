"""Checks before the first stage: everything that a later stage builds from its settings is built once."""

from collections.abc import Sequence

import torch
from torch import nn

from kegnet_pl.api.checks import TRIAL_SAMPLES, check_student, explain_inputs, explain_pixels
from kegnet_pl.networks import OutputKey, as_classifier, count_classes, value_range_of
from kegnet_pl.networks.batch_norm import norm_layers
from kegnet_pl.networks.validation import check_generator, check_gradient
from kegnet_pl.pipeline.context import RunContext
from kegnet_pl.pipeline.objects import build, build_optimizer, make_plan, make_value_range, source_definitions
from kegnet_pl.runtime.errors import ConfigError, SettingsMismatchError, first_line
from kegnet_pl.runtime.seeds import seeded
from kegnet_pl.settings import GeneratorSettings, OptimizerSettings, Outputs, RunSettings
from kegnet_pl.settings.compression import DEFAULT_SOURCE
from kegnet_pl.sources import SourceInfo, build_source, find_source_class


def check_sources(settings: RunSettings, sources: Sequence[SourceInfo]) -> None:
    """Check the sources of a run against each other and against its settings.

    Raises:
        ConfigError: If two sources have one title, or a source of real data lacks the data or would select an epoch.
    """
    if len({source.title for source in sources}) < len(sources):
        titles = ", ".join(f"{source.name} ({source.title})" for source in sources)
        raise ConfigError(
            f"Expected `sources` with different titles, which name the rows of tables, but got {titles}. Set the class "
            f"attribute `title` of your source, or remove one."
        )
    real = ", ".join(source.name for source in sources if source.needs_data)
    if real and settings.data.target is None:
        raise ConfigError(
            f"Expected real training data for the source {real}, but got data=none. Choose data=..., or remove {real} "
            f"from `sources`."
        )
    ceilings = ", ".join(source.name for source in sources if source.is_ceiling)
    if ceilings and settings.student.selection == "synthetic":
        raise ConfigError(
            f"Expected `student.selection` to be last or real with the source {ceilings}, since it has no synthetic "
            f"samples, but got synthetic. Set student.selection=last, or remove {ceilings} from `sources`."
        )


def check_before(context: RunContext, sources: Sequence[SourceInfo], others: Sequence[SourceInfo]) -> None:
    """Run the checks that need no trained teacher, for all sources of a run.

    Raises:
        ConfigError: If an optimiser, a plan of compression or a generator cannot be built or does not fit the data, or
            a source needs training data that is not there.
        ValueError: If a source cannot be built, the data is damaged, or has no split to select by.
    """
    settings = context.settings
    used = [*sources, *others]
    for name in sorted({name for info in used for name in info.shares}):
        definitions = source_definitions(settings, [name])
        source = find_source_class(name, definitions[name])
        if not (source.needs_generators or source.needs_data):
            with seeded(0, "check"):
                teacher = build(settings.teacher.network) if source.needs_teacher else None
            build_source({name: 1.0}, definitions, input_shape=context.input_shape, teacher=teacher)
    if context.data is not None:
        context.data.setup()
        if settings.student.selection == "real" and settings.sources:
            context.data.part("val")
        real = ", ".join(dict.fromkeys(source.name for source in used if source.needs_data))
        if real and "train" not in context.data.splits:
            raise ConfigError(
                f"Expected a split 'train' of the data set {settings.data.name!r} for the source {real}, but got "
                f"{', '.join(context.data.splits)}. Set data.train=FILE (data=files), or use other sources."
            )
    if settings.student.network is None:
        try:
            make_plan(settings.compression)
        except ValueError as error:
            raise ConfigError(f"{error} See compression=... and compression.target.") from error
    if not settings.teacher.is_given:
        _check_optimizer("teacher", settings.teacher.optimizer)
    if sources:
        _check_optimizer("student", settings.student.optimizer)
    if any(source.needs_generators for source in sources):
        _check_optimizer("generator", settings.generator.optimizer)
        if not settings.teacher.is_given:  # else check_inputs, after the check of the teacher's own shape
            _check_generator(settings.generator, context.input_shape, context.classes)


def _check_optimizer(part: str, settings: OptimizerSettings) -> None:
    make = build_optimizer(settings)
    if callable(make):
        weight = nn.Parameter(torch.zeros(2, 2))
        try:
            made = make([weight])
        except (TypeError, ValueError) as error:
            raise ConfigError(f"Expected `{part}.optimizer` to be built from its settings, but got: {error}") from error
        if isinstance(made, torch.optim.Optimizer):
            weight.grad = torch.ones_like(weight)
            try:
                made.step()
            except Exception as error:  # any, as it may be the user's code
                raise ConfigError(
                    f"Expected `{part}.optimizer` to make a step without a closure, but {type(made).__name__} failed: "
                    f"{first_line(error).rstrip('.')}. Optimisers that call a closure, such as LBFGS, are not "
                    f"supported. Choose another, such as torch.optim.Adam."
                ) from error
            return
    raise ConfigError(
        f"Expected `{part}.optimizer` to be a torch.optim.Optimizer that is given its parameters later "
        f"({part}.optimizer._partial_=true), but got {settings.model_dump(by_alias=True)}."
    )


def _check_generator(settings: GeneratorSettings, input_shape: tuple[int, ...], classes: int) -> None:
    """Check that a new generator and its decoder fit the data, and each other."""
    with seeded(0, "check"):
        generator, decoder = build(settings.network), build(settings.decoder)
    noise_dim = getattr(generator, "noise_dim", settings.noise_dim)
    if noise_dim != settings.noise_dim:
        raise ConfigError(
            f"Expected a generator of {settings.noise_dim} noise dimensions, but {type(generator).__name__} has "
            f"{noise_dim}. Set generator.noise_dim={noise_dim}, which the decoder and the sampling of noise also use."
        )
    try:
        check_generator(generator, decoder, input_shape, classes)
    except ValueError as error:
        raise ConfigError(
            f"{error} generator=image makes images ('data.input_shape=[channels,height,width]'), generator=dense rows "
            f"of features, generator=conv signals and volumes; generator=custom uses your own generator.network and "
            f"generator.decoder."
        ) from error


def check_inputs(context: RunContext, teacher: nn.Module, *, generators: bool) -> list[str]:
    """Print and return signs that synthetic samples do not have the range of the teacher's inputs.

    Raises:
        ConfigError: If the teacher returns the same logits for all samples, or generators are to be trained and do not
            fit the data, or no gradient reaches the input of the teacher.
    """
    if generators and context.settings.teacher.is_given:
        _check_generator(context.settings.generator, context.input_shape, context.classes)
    name = next(iter(DEFAULT_SOURCE))
    source = build_source(DEFAULT_SOURCE, source_definitions(context.settings, [name]), input_shape=context.input_shape)
    try:
        sentences = explain_inputs(teacher, source.sample(TRIAL_SAMPLES, context.seed))
        if generators:
            check_gradient(teacher, context.input_shape)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    data, is_image = context.settings.data, len(context.input_shape) in (3, 4)
    extra = data.model_extra or {}
    mean, std = extra.get("mean"), extra.get("std")
    test = None if context.data is None else context.data.splits.get("test")
    if is_image and data.value_range is None and mean is not None and std is not None and test is not None:
        sentences += explain_pixels(test.x, mean, std)
    context.warn(sentences)
    if context.settings.teacher.is_given and is_image and data.value_range is None and mean is None:
        context.console.print(
            "data.mean and data.std are not set, so procedural images have mean 0 and standard deviation 1 in each "
            "channel. If inputs of the teacher are normalised pixels, set both, for pixels in [0, 1].",
            soft_wrap=True,
        )
    return sentences


def check_teacher_and_student(context: RunContext, teacher: nn.Module, student: nn.Module, *, generators: bool) -> None:
    """Check that generators, if any are trained, and the untrained student find the layers that they learn from.

    Raises:
        ConfigError: If the student cannot be trained with its settings, or a loss needs batch norm that the teacher
            does not have.
    """
    presets = (
        "Presets for networks without batch norm: for images experiment=custom/image, for rows of features "
        "experiment=custom/table."
    )
    try:
        check_student(student, teacher, context.settings.student, context.input_shape)
    except SettingsMismatchError as error:
        more = "" if norm_layers(teacher) else f" {presets}"
        raise ConfigError(error.for_command_line("student") + more) from error
    except ValueError as error:
        raise ConfigError(str(error)) from error
    statistics = context.settings.generator.objective.get("statistics")
    if generators and statistics is not None and statistics.weight and not norm_layers(teacher):
        raise ConfigError(
            f"Expected a teacher with batch norm for generator.objective.statistics, but {type(teacher).__name__} has "
            f"none. Set generator.objective.statistics.weight=0. {presets}"
        )


def check_network(
    network: nn.Module, name: str, context: RunContext, outputs: Outputs = "auto", output_key: OutputKey = None
) -> nn.Module:
    """Check a network with trial samples, and return one that accepts standardised samples and returns logits.

    Args:
        network: Teacher or student. With ``data.value_range`` it gets a hook that converts samples to its pixels.
        name: ``"teacher"`` or ``"student"``, for messages.
        context: Input shape, value range and classes of the run.
        outputs: See :func:`as_classifier`.
        output_key: See :func:`as_classifier`.

    Raises:
        ConfigError: If it does not take such samples, or does not return logits of the data's number of classes.
    """
    values = make_value_range(context.settings.data)
    if values is not None and value_range_of(network) is None:
        values.attach(network)
    try:
        network = as_classifier(network, context.input_shape, outputs, output_key, name)
        found = count_classes(network, context.input_shape, name)
    except ValueError as error:
        message = str(error).rstrip(".")
        if name == "teacher":
            message = message.replace("`output_key`", "`teacher.output_key`").replace("outputs=", "teacher.outputs=")
        raise ConfigError(
            f"{message}. Choose data and network that fit: data=..., {name}=..., data.input_shape."
        ) from error
    if found != context.classes:
        raise ConfigError(
            f"Expected the {name} {type(network).__name__} to have {context.classes} classes, as the data has, but it "
            f"has {found}. Set data.classes to that, or choose data and network that fit."
        )
    return network
