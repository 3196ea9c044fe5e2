"""Conversion of a composed configuration to plain values."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationToMissingValueError, MissingMandatoryValue, OmegaConfBaseException
from omegaconf.resolvers import oc

from kegnet_pl.runtime.atomic_files import atomic_write
from kegnet_pl.runtime.errors import ConfigError, first_line
from kegnet_pl.runtime.secrets import conceal, remember

_HYDRA_FILES = ("config.yaml", "overrides.yaml", "hydra.yaml")


def to_plain(cfg: DictConfig) -> dict[str, Any]:
    """Resolve a composed configuration into plain dicts, lists and scalars.

    Values of environment variables are remembered as secrets, see :mod:`kegnet_pl.runtime.secrets`. ``~/`` at the begin
    of a path is the home folder.

    Raises:
        ConfigError: If a value is missing or cannot be resolved.
    """
    try:
        with _environment(_read_and_remember):
            plain = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    except MissingMandatoryValue as error:
        raise ConfigError(
            f"Expected a value for `{error.full_key}`, but got none. Add {error.full_key}=... to the command."
        ) from error
    except InterpolationToMissingValueError as error:
        name = first_line(error).rpartition(": ")[2].strip("'. ")
        raise ConfigError(f"Expected a value for `{name}`, but got none. Add {name}=... to the command.") from error
    except OmegaConfBaseException as error:
        raise ConfigError(f"Expected every setting to resolve, but got: {first_line(error)}") from error
    return {str(key): _in_home(value) for key, value in plain.items()} if isinstance(plain, dict) else {}


def _in_home(value: Any) -> Any:
    """Return plain values in which paths that begin with ``~/`` begin with the home folder, as in a shell."""
    if isinstance(value, str) and value.startswith("~/"):
        return str(Path(value).expanduser())
    if isinstance(value, dict):
        return {key: _in_home(one) for key, one in value.items()}
    return [_in_home(one) for one in value] if isinstance(value, list) else value


def as_written(cfg: DictConfig) -> dict[str, Any]:
    """Return a composed configuration for records: values of environment variables stay ``${oc.env:NAME}``."""
    try:
        with _environment(_keep_name):
            plain: Any = OmegaConf.to_container(cfg, resolve=True)
    except OmegaConfBaseException:  # such as a number of an environment variable
        plain = OmegaConf.to_container(cfg, resolve=False)
    concealed = conceal(plain)
    return {str(key): value for key, value in concealed.items()} if isinstance(plain, dict) else {}


def conceal_hydra_files(folder: Path) -> None:
    """Conceal the secrets in the settings that Hydra has written to the folder of a run."""
    for path in (folder / ".hydra" / name for name in _HYDRA_FILES):
        text = path.read_text() if path.is_file() else ""
        concealed = conceal(text)
        if concealed != text:
            atomic_write(path, concealed)


@contextmanager
def _environment(resolver: Callable[..., Any]) -> Iterator[None]:
    """Resolve ``${oc.env:NAME}`` by another function within the context."""
    OmegaConf.register_new_resolver("oc.env", resolver, replace=True)
    try:
        yield
    finally:
        OmegaConf.register_new_resolver("oc.env", oc.env, replace=True)


def _read_and_remember(key: str, *default: Any) -> str | None:
    if key in os.environ:
        remember(key, os.environ[key])
    return oc.env(key, *default)


def _keep_name(key: str, *default: Any) -> str | None:
    return f"${{oc.env:{key}}}" if key in os.environ else oc.env(key, *default)
