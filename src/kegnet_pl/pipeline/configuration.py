"""Conversion of a composed configuration to plain values."""

from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from kegnet_pl.runtime.errors import ConfigError, first_line


def to_plain(cfg: DictConfig) -> dict[str, Any]:
    """Resolve a composed configuration into plain dicts, lists and scalars.

    Raises:
        ConfigError: If a value is missing or cannot be resolved.
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
