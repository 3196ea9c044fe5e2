"""Objects of the configuration: instantiation of a ``_target_``, and a hash of its code."""

import hashlib
import inspect
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import get_object, instantiate
from torch import nn

import kegnet_pl
from kegnet_pl.compression import AutomaticPlan, CompressionPlan, Plan, PruningPlan, Rule, plans_to_compare
from kegnet_pl.losses import GeneratorObjective
from kegnet_pl.networks import ValueRange
from kegnet_pl.networks.handling import check_begun
from kegnet_pl.runtime.errors import ConfigError, no_exit
from kegnet_pl.settings import (
    CompressionSettings,
    DataSettings,
    ObjectiveTerm,
    OptimizerSettings,
    RunSettings,
    Settings,
)
from kegnet_pl.sources import find_source_class


def plain(specification: Settings | Mapping[str, Any]) -> dict[str, Any]:
    """Return settings under the names of the configuration."""
    return specification.model_dump(by_alias=True) if isinstance(specification, Settings) else dict(specification)


def build(specification: Settings | Mapping[str, Any], **arguments: Any) -> Any:
    """Instantiate a ``_target_`` of the configuration.

    Raises:
        ConfigError: If it does not exist, does not accept its arguments, or ends the program.
        ValueError: If it is a module without parameters, as it does not initialise its base class.
    """
    content = plain(specification)
    try:
        with no_exit(f"`{content.get('_target_')}`"):
            made = instantiate(content, **arguments, _convert_="all")
    except InstantiationException as error:
        reason = error.__cause__ or error
        if isinstance(reason, ConfigError):
            raise reason from error
        raise ConfigError(
            f"Expected to build `{content.get('_target_')}` from the settings, but got: {reason}"
        ) from error
    if isinstance(made, nn.Module):
        check_begun(made, "module")
    return made


def build_optimizer(settings: OptimizerSettings) -> Any:
    """Return the factory of an optimiser, without a learning rate if short trainings choose it (``auto``).

    Raises:
        ConfigError: As for :func:`build`.
    """
    content = plain(settings)
    return build({name: value for name, value in content.items() if (name, value) != ("lr", "auto")})


def build_objective(terms: Mapping[str, ObjectiveTerm]) -> GeneratorObjective:
    """Build the weighted sum of losses of ``generator.objective``."""
    return GeneratorObjective(
        {name: build(term.term) for name, term in terms.items()}, {name: term.weight for name, term in terms.items()}
    )


def make_plan(settings: CompressionSettings) -> Plan:
    """Return the plan that ``compression`` describes.

    Raises:
        ValueError: If a rank is out of range, or settings do not fit each other.
        ConfigError: If a package is missing.
    """
    speed: dict[str, Any] = {name: getattr(settings, name) for name in ("by", "round_to", "batch_size")}
    if settings.method == "pruning":
        return PruningPlan(settings.target, **speed)
    rules = [Rule(rule.layers, rule.rank) for rule in settings.rules or []]
    if settings.method == "auto":
        assert settings.target is not None, "checked with the settings"
        return AutomaticPlan(plans_to_compare(rules, settings.target, settings.when_larger, settings.fold, **speed))
    return CompressionPlan(rules, settings.target, settings.when_larger, settings.folds, **speed)


def make_value_range(data: DataSettings) -> ValueRange | None:
    """Return the value range that ``data.value_range`` describes; None if inputs are standardised."""
    if data.value_range is None:
        return None
    given = data.model_extra or {}
    return ValueRange.of(data.value_range, given.get("mean"), given.get("std"))


def source_definitions(settings: RunSettings, names: Iterable[str]) -> dict[str, Mapping[str, Any] | None]:
    """Return the entries ``source.NAME`` of sources, None where there is none.

    Sources of images also get ``data.mean`` and ``data.std``, with which inputs are normalised, if their class accepts
    them.
    """
    data, values = settings.data.model_extra or {}, make_value_range(settings.data)
    pixels = {key: data[key] for key in ("mean", "std") if data.get(key) is not None}
    if values is not None:
        pixels = {"mean": list(values.mean), "std": list(values.std)}
    definitions: dict[str, Mapping[str, Any] | None] = {}
    for name in names:
        entry = settings.source.get(name)
        taken = inspect.signature(find_source_class(name, entry)).parameters
        given = {key: value for key, value in pixels.items() if key in taken and len(settings.data.input_shape) > 1}
        definitions[name] = {**given, **(entry or {})} if given else entry
    return definitions


def code_of(*specifications: Any) -> dict[str, Any]:
    """Return hashes of the files that define the user's own ``_target_`` objects, for a fingerprint.

    Their code can change while all settings stay the same. Installed packages, and this one, are identified by their
    versions in the manifest.

    Returns:
        ``{"code": {target: hash}}``; empty if all targets are in installed packages.
    """
    objects = list(_objects(specifications))
    files = {target: _source_file(target) for target in sorted({one["_target_"] for one in objects})}
    executed = {str(one.get("path")) for one in objects if one["_target_"].endswith(".from_file")}
    files |= {path: Path(path) for path in sorted(executed)}
    hashes = {
        target: hashlib.sha256(path.read_bytes()).hexdigest()[:16]
        for target, path in files.items()
        if path is not None
        and path.is_file()
        and not set(path.parts) & {"site-packages", "dist-packages"}
        and not path.is_relative_to(Path(kegnet_pl.__file__).resolve().parent)
    }
    return {"code": hashes} if hashes else {}


def own_code(settings: RunSettings) -> tuple[str, ...]:
    """Return the code that the settings of a run name; files of the same run may also name it."""
    objects = list(_objects(settings))
    paths = {str(Path(one["path"]).resolve()) for one in objects if isinstance(one.get("path"), str)}
    return (*sorted({str(one["_target_"]) for one in objects}), *sorted(paths))


def _objects(specification: Any) -> Iterator[Mapping[str, Any]]:
    """Return the objects with a ``_target_`` within settings, at any depth."""
    if isinstance(specification, Settings):
        specification = plain(specification)
    if isinstance(specification, Mapping):
        if isinstance(specification.get("_target_"), str):
            yield specification
        specification = list(specification.values())
    if isinstance(specification, list | tuple):
        for value in specification:
            yield from _objects(value)


def _source_file(target: str) -> Path | None:
    try:
        file = inspect.getsourcefile(inspect.unwrap(get_object(target)))
    except (ImportError, TypeError, ValueError, InstantiationException):  # built in, or missing: build() raises
        return None
    return Path(file).resolve() if file is not None else None
