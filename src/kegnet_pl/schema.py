"""One check of the scalars this project owns: a wrong one fails before anything is loaded."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from kegnet_pl.runtime.errors import ConfigError, first_line

RESUME = ("auto", "never", "require")
METHODS = ("uniform", "normal", "kegnet")
SELECTION = ("last", "synthetic", "real")
PRECISION = ("32-true", "bf16-mixed", "16-mixed")
NORM = ("batch", "running")
LR_SCHEDULER = ("constant", "cosine")
STUDENT_NORM = ("batch", "frozen", "adapt")

_EPOCHS = "how long is teacher.epochs, generator.epochs and student.epochs"
_OURS = {
    **dict.fromkeys(("max_epochs", "max_steps", "max_time", "min_steps"), _EPOCHS),
    "min_epochs": "that is teacher.min_epochs and student.min_epochs",
    "accumulate_grad_batches": "samples of a step are teacher.batch_size, generator.batch_size and student.batch_size",
    **dict.fromkeys(
        ("check_val_every_n_epoch", "val_check_interval"), "every epoch ends with what patience and selection go by"
    ),
    "limit_val_batches": "students are selected by all of student.validation_samples",
    "logger": "loggers are the group `logger`",
    "callbacks": "callbacks are the group `callbacks`",
}
"""Arguments of Lightning's trainer that other settings decide."""


@dataclass(frozen=True)
class _Check:
    """Reads settings by their dotted names and complains about wrong ones."""

    config: Mapping[str, Any]

    def value(self, name: str) -> Any:
        found: Any = self.config
        for part in name.split("."):
            if not isinstance(found, Mapping) or part not in found:
                there = f"only {', '.join(map(str, found))}" if isinstance(found, Mapping) else repr(found)
                raise ConfigError(f"Expected a setting `{name}`, but got {there} where `{part}` should be.")
            found = found[part]
        return found

    def whole(self, name: str, least: int, *, optional: bool = False) -> None:
        value = self.value(name)
        if value is None and optional:
            return
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ConfigError(f"Expected `{name}` to be a whole number of at least {least}, but got {value!r}.")

    def number(self, name: str, *, above: float | None = None, least: float | None = None) -> None:
        value = self.value(name)
        good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if not good or (above is not None and not value > above) or (least is not None and not value >= least):
            bound = f"above {above}" if above is not None else f"of at least {least}"
            raise ConfigError(f"Expected `{name}` to be a number {bound}, but got {value!r}.")

    def choice(self, name: str, allowed: Sequence[Any]) -> None:
        value = self.value(name)
        if value not in allowed:
            raise ConfigError(f"Expected `{name}` to be one of {', '.join(map(str, allowed))}, but got {value!r}.")


def to_plain(cfg: DictConfig) -> dict[str, Any]:
    """Resolve a composed configuration into plain dicts, lists and scalars.

    Raises:
        ConfigError: If a value is missing or refers to nothing.
    """
    try:
        plain = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    except MissingMandatoryValue as error:
        raise ConfigError(
            f"Expected a value for `{error.full_key}`, but got none. Add {error.full_key}=... to the command."
        ) from error
    except OmegaConfBaseException as error:
        raise ConfigError(f"Expected every setting to resolve, but got: {first_line(error)}") from error
    return {str(key): value for key, value in plain.items()} if isinstance(plain, dict) else {}


def check(config: Mapping[str, Any]) -> None:
    """Check a resolved configuration.

    Args:
        config: Plain dicts, lists and scalars.

    Raises:
        ConfigError: The message names the setting, what is allowed and what came.
    """
    c = _Check(config)
    c.whole("seed", 0)
    if not isinstance(c.value("recipe"), str):
        raise ConfigError(f"Expected `recipe` to be a name, but got {c.value('recipe')!r}.")
    c.choice("resume", RESUME)
    for name, instead in _OURS.items():
        if name in c.value("trainer"):
            raise ConfigError(f"Expected no setting `trainer.{name}`: {instead}.")
    c.choice("trainer.accelerator", ("cpu", "gpu"))
    c.whole("trainer.devices", 1)
    strategy = str(c.value("trainer.strategy"))
    if any(word in strategy for word in ("spawn", "fork", "notebook")):
        raise ConfigError(
            f"Expected `trainer.strategy` to start processes of their own (auto, ddp), but got {strategy}. "
            f"trainer=ddp trainer.devices=N does."
        )
    if c.value("trainer").get("limit_train_batches", 1) == 0:
        raise ConfigError("Expected `trainer.limit_train_batches` above 0, but got 0: nothing would be trained.")
    for group, objects in (("callbacks", c.value("callbacks")), ("logger", config.get("logger") or {})):
        if not isinstance(objects, Mapping):
            raise ConfigError(f"Expected `{group}` to be objects by name, but got {objects!r}.")
        for name, specification in objects.items():
            if not isinstance(specification, Mapping) or "_target_" not in specification:
                raise ConfigError(
                    f"Expected `{group}.{name}` to be an object with `_target_`, but got {specification!r}. "
                    f"~{group}.{name} takes it out."
                )
    if c.value("trainer.num_nodes") != 1:
        raise ConfigError(
            f"Expected `trainer.num_nodes` to be 1, but got {c.value('trainer.num_nodes')!r}: the processes of one run "
            f"are on one machine (trainer=ddp trainer.devices=N). Several machines can share the jobs of a sweep "
            f"(hydra/launcher=submitit_slurm)."
        )
    if not isinstance(c.value("store"), str) or not c.value("store"):
        raise ConfigError(f"Expected `store` to be a folder, but got {c.value('store')!r}.")
    if c.value("sweep") is not None and not isinstance(c.value("sweep"), str):
        raise ConfigError(f"Expected `sweep` to be a name or null, but got {c.value('sweep')!r}.")
    methods = c.value("sources")
    listed = isinstance(methods, list) and all(method in METHODS for method in methods)
    if not listed or len(set(methods)) != len(methods):
        raise ConfigError(f"Expected `sources` to be a list of some of {', '.join(METHODS)}, but got {methods!r}.")

    shape = c.value("data.input_shape")
    whole = isinstance(shape, list) and all(type(n) is int and n > 0 for n in shape)
    if not whole or len(shape) not in (1, 3):
        raise ConfigError(
            f"Expected `data.input_shape` to be [channels, height, width] or [features], but got {shape!r}."
        )
    c.whole("data.classes", 2)
    _check_training(c, "teacher")
    if c.value("data._target_") is None and c.value("teacher.weights") is None:
        raise ConfigError(
            "Expected `teacher.weights`, a file of trained weights, since data=none leaves nothing to train a teacher "
            "on, but got null. Add teacher.weights=FILE, or choose data=..."
        )

    _check_training(c, "generator", stopping=False)
    c.whole("generator.batch_size", 2 * c.value("trainer.devices"))  # batch norm
    for name in ("count", "noise_dim", "steps_per_epoch"):
        c.whole(f"generator.{name}", 1)
    c.whole("generator.seed", 0)
    for part in ("generator", "student"):
        c.choice(f"{part}.lr_scheduler", LR_SCHEDULER)
        for name in ("compile", "cuda_graphs"):
            c.choice(f"{part}.{name}", (True, False))
    c.choice("generator.teacher_norm", NORM)
    c.choice("generator.teacher_dropout", (True, False))
    c.choice("generator.parallel", ("auto", "vmap", "sequential"))
    trainer = c.value("trainer")
    clips_by_norm = trainer.get("gradient_clip_val") is not None and trainer.get("gradient_clip_algorithm") != "value"
    if c.value("generator.parallel") == "vmap" and c.value("generator.count") > 1 and clips_by_norm:
        raise ConfigError(
            "Expected `trainer.gradient_clip_algorithm` to be value beside generator.parallel=vmap, as a norm "
            "would be taken over all generators. Set it, or generator.parallel=sequential."
        )
    objective = c.value("generator.objective")
    if not isinstance(objective, Mapping):
        raise ConfigError(f"Expected `generator.objective` to be terms by name, but got {objective!r}.")
    for name in objective:
        c.value(f"generator.objective.{name}.term._target_")
        c.number(f"generator.objective.{name}.weight", least=0)
    if not any(term["weight"] for term in objective.values()):
        raise ConfigError("Expected a positive weight for one term of `generator.objective`, but got only zeros.")

    _check_training(c, "student")
    network = c.value("student.network")
    if network is not None and not (isinstance(network, Mapping) and "_target_" in network):
        raise ConfigError(
            f"Expected `student.network` to be null (the compressed teacher) or a network with `_target_`, but got "
            f"{network!r}. A group is chosen by student=..., such as student=lenet5."
        )
    c.whole("student.samples", 1)
    c.whole("student.validation_samples", 1)
    c.number("student.temperature", above=0)
    c.choice("student.selection", SELECTION)
    for name in ("samples", "epochs"):
        c.whole(f"student.baselines.{name}", 1)
    for name in ("temperature", "lr"):
        c.number(f"student.baselines.{name}", above=0)
    c.choice("student.shuffle", (True, False))
    c.choice("student.resample_each_epoch", (True, False))
    c.choice("student.norm", STUDENT_NORM)
    c.choice("student.sampling_norm", NORM)
    c.number("student.noise_std", least=0)
    c.choice("student.dropout", (True, False))
    c.number("student.feature_distillation.weight", least=0)
    layers = c.value("student.feature_distillation.layers")
    if layers is not None and not (isinstance(layers, list) and layers and all(isinstance(x, str) for x in layers)):
        raise ConfigError(
            f"Expected `student.feature_distillation.layers` to be a list of patterns of layer names, or null, but got {layers!r}."
        )
    selection = c.value("student.selection")
    if c.value("student.patience") is not None and selection == "last":
        raise ConfigError(
            "Expected `student.selection` to be synthetic or real where `student.patience` is set, but got 'last'."
        )
    if selection == "real" and c.value("data._target_") is None:
        raise ConfigError("Expected real data for student.selection=real, but got data=none.")
    if "kegnet" in methods:
        for name in ("samples", "validation_samples") if selection == "synthetic" else ("samples",):
            if c.value(f"student.{name}") % c.value("generator.count"):
                raise ConfigError(
                    f"Expected `student.{name}` to be a multiple of generator.count={c.value('generator.count')}, "
                    f"but got {c.value(f'student.{name}')}."
                )

    if c.value("compression.target") is not None:
        c.number("compression.target", above=1)
    rules = c.value("compression.rules")
    keys = [set(rule) if isinstance(rule, Mapping) else None for rule in rules] if isinstance(rules, list) else [None]
    if any(found != {"layers", "rank"} for found in keys):
        raise ConfigError(
            f"Expected `compression.rules` to be a list of {{layers: ..., rank: ...}}, but got {rules!r}."
        )

    c.choice("trainer.precision", PRECISION)
    if c.value("trainer.precision") == "16-mixed" and c.value("trainer.accelerator") == "cpu":
        raise ConfigError(
            "Expected `trainer.precision` to be 32-true or bf16-mixed on a CPU, but got '16-mixed', which needs a GPU."
        )


def _check_training(c: _Check, part: str, *, stopping: bool = True) -> None:
    c.whole(f"{part}.epochs", 1)
    c.whole(f"{part}.batch_size", 1)
    c.number(f"{part}.optimizer.lr", above=0)
    world = c.value("trainer.devices")
    if c.value(f"{part}.batch_size") % world:
        raise ConfigError(
            f"Expected `{part}.batch_size` to be a multiple of the {world} processes "
            f"(trainer.devices), but got {c.value(f'{part}.batch_size')}."
        )
    if stopping:
        c.whole(f"{part}.patience", 1, optional=True)
        c.whole(f"{part}.min_epochs", 1, optional=True)
        if c.value(f"{part}.patience") is None and c.value(f"{part}.min_epochs") is not None:
            raise ConfigError(f"Expected `{part}.patience` beside `{part}.min_epochs`, but got null.")
