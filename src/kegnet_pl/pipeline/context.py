"""What all stages work with."""

import hashlib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from hydra.errors import InstantiationException
from hydra.utils import get_object as locate
from hydra.utils import instantiate
from rich.console import Console
from torch import nn

import kegnet_pl
from kegnet_pl.data import RealDataModule
from kegnet_pl.networks import count_classes
from kegnet_pl.pipeline.store import Build, Stage, Store
from kegnet_pl.pipeline.trainer import Schedule, Training
from kegnet_pl.runtime.costs import StageCosts
from kegnet_pl.runtime.errors import ConfigError

Config = dict[str, Any]

_NEUTRAL = (
    "accelerator", "devices", "num_nodes", "strategy", "deterministic", "enable_model_summary", "enable_progress_bar",
    "num_sanity_val_steps", "log_every_n_steps", "use_distributed_sampler",
)  # fmt: skip
"""Settings of the trainer that do not change a result; all others, also those a user adds, do."""


@dataclass(frozen=True)
class Experiment:
    """A configuration, and what is often asked of it.

    Attributes:
        config: The resolved configuration, plain.
    """

    config: Config

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        return tuple(self.config["data"]["input_shape"])

    @property
    def classes(self) -> int:
        """Number of classes."""
        return int(self.config["data"]["classes"])


@dataclass(frozen=True)
class RunContext(Experiment):
    """What all stages work with.

    Attributes:
        config: See :class:`Experiment`.
        store: Finished stages.
        training: Runs Lightning.
        console: Where progress is shown.
        device: Where drawing and evaluation compute.
        data: Real data, None where there is none.
    """

    store: Store
    training: Training
    console: Console
    device: torch.device
    data: RealDataModule | None

    @property
    def seed(self) -> int:
        """The run's seed."""
        return int(self.config["seed"])

    def trained(self) -> Config:
        """Return the settings that change the result of anything trained."""
        return {"seed": self.seed, **_training_settings(self.config)}

    def get_or_build(
        self,
        stage: str,
        settings: Config,
        parents: Sequence[Stage],
        make: Build,
        *,
        title: str | None,
        collective: bool = False,
    ) -> Stage:
        """Find a stage in the store, or build it; then close its loggers.

        Args:
            stage: Name of the stage.
            settings: See :meth:`Store.get`.
            parents: The stages it reads.
            make: See :meth:`Store.get`.
            title: What it is called on the terminal; None to say nothing where it was found.
            collective: See :meth:`Store.get`.
        """
        loggers = self.training.loggers

        def make_without_waiting(folder: Path, costs: StageCosts) -> Mapping[str, Any]:
            waited = loggers.waited
            try:
                return make(folder, costs)
            finally:
                costs.total -= loggers.waited - waited

        try:
            finished = self.store.get(stage, settings, parents, make_without_waiting, collective=collective)
        except BaseException:
            loggers.finish(None)
            raise
        loggers.finish(finished, parents)
        if finished.found and title is not None:
            self.console.print(f"{title}: found ({finished.fingerprint}), {finished.seconds:.1f} s when it was made")
        return finished


def without(config: Mapping[str, Any], *keys: str) -> Config:
    """Return a part of the configuration without some of its keys."""
    return {key: value for key, value in config.items() if key not in keys}


def _training_settings(config: Mapping[str, Any]) -> Config:
    trainer, callbacks = config["trainer"], without(config["callbacks"], "resume")
    return {
        "processes": trainer["devices"],
        "trainer": without(trainer, *_NEUTRAL),
        "callbacks": callbacks | code_of(callbacks),
    }


def data_settings(data: RealDataModule, config: Mapping[str, Any], *parts: str) -> Config:
    """Return what a fingerprint depends on where real data trains or selects: its content, not where it lies.

    Args:
        data: The data.
        config: Its settings.
        parts: Splits that are used.
    """
    places = ("root", "download", "train", "val", "test")
    return without(config, *places) | code_of(config) | {"content": data.digest(*parts)}


def result_settings(config: Mapping[str, Any]) -> Config:
    """Return the configuration without what says where and how, not what: the store, loggers, folders of data."""
    settings = without(config, "store", "resume", "sweep", "logger", "callbacks", "trainer")
    return settings | {"data": without(config["data"], "root", "download")} | _training_settings(config)


def schedule_of(config: Mapping[str, Any], select_best: bool) -> Schedule:
    """Return how long the teacher or the student trains."""
    return Schedule(config["epochs"], select_best, config["patience"], config["min_epochs"])


def build(specification: Mapping[str, Any], **arguments: Any) -> Any:
    """Instantiate a ``_target_`` of the configuration from plain values."""
    try:
        return instantiate(dict(specification), **arguments, _convert_="all")
    except InstantiationException as error:
        reason = error.__cause__ or error
        raise ConfigError(
            f"Expected `{specification.get('_target_')}` to be built from the settings, but: {reason}"
        ) from error


def code_of(specification: Any) -> Config:
    """Return hashes of the files that define the user's own ``_target_`` objects, for a fingerprint.

    Their code changes without any setting. What is installed (site-packages), and ours, goes by its version, which a
    manifest tells.

    Args:
        specification: Any part of the configuration.

    Returns:
        ``{"code": {target: hash}}``; nothing where all is installed.
    """
    files = {target: _source_file(target) for target in sorted(set(_targets(specification)))}
    marks = {
        target: hashlib.sha256(path.read_bytes()).hexdigest()[:16]
        for target, path in files.items()
        if path is not None
        and not set(path.parts) & {"site-packages", "dist-packages"}
        and not path.is_relative_to(Path(kegnet_pl.__file__).resolve().parent)
    }
    return {"code": marks} if marks else {}


def _targets(specification: Any) -> Iterator[str]:
    if isinstance(specification, Mapping):
        if isinstance(specification.get("_target_"), str):
            yield specification["_target_"]
        for value in specification.values():
            yield from _targets(value)
    elif isinstance(specification, list):
        for value in specification:
            yield from _targets(value)


def _source_file(target: str) -> Path | None:
    try:
        found = inspect.getsourcefile(inspect.unwrap(locate(target)))
    except (ImportError, TypeError, ValueError, InstantiationException):  # built in, or not there: building it says so
        return None
    return Path(found).resolve() if found is not None else None


def check_network(network: nn.Module, name: str, input_shape: tuple[int, ...], classes: int) -> None:
    """Pass a blank batch through a network.

    Raises:
        ConfigError: If it does not take such samples, or does not return logits of so many classes.
    """
    try:
        found = count_classes(network, input_shape, name)
    except ValueError as error:
        raise ConfigError(
            f"{str(error).rstrip('.')}. Choose data and network that fit: data=..., {name}=..., data.input_shape."
        ) from error
    if found != classes:
        raise ConfigError(
            f"Expected the {name} {type(network).__name__} to know {classes} classes, as the data has, but it knows "
            f"{found}. Set data.classes to that, or choose data and network that fit."
        )
