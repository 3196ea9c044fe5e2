"""Secrets in records: values of environment variables, and passwords in addresses, are replaced."""

import os
import re
from collections.abc import Mapping
from typing import Any

_NAMES = re.compile(r"API_?KEY|ACCESS_KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL", re.IGNORECASE)
"""Environment variables with such names hold secrets."""

_ADDRESS = re.compile(r"(\b[a-zA-Z][\w+.-]+:/{1,2}[^\s/:@'\"]*):[^\s/@'\"]+@")
"""``https://user:password@``; Python's paths have one slash."""

_SHORTEST = 6
"""Minimum length of a secret; shorter values may be part of other text by chance."""

_PLAIN = ("KEGNET_DATA_DIR", "KEGNET_SWEEP", "WANDB_PROJECT", "WANDB_MODE", "HOME", "PWD", "USER")
"""Environment variables that hold no secret."""

_read: dict[str, str] = {}
"""Values that settings have read from the environment -> name of the variable."""


def remember(name: str, value: str) -> None:
    """Record that settings read a value from an environment variable."""
    if name not in _PLAIN:
        _read[value] = name


def _known() -> dict[str, str]:
    named = {value: name for name, value in os.environ.items() if _NAMES.search(name) and name not in _PLAIN}
    found = {value: name for value, name in (named | _read).items() if len(value) >= _SHORTEST}
    return dict(sorted(found.items(), key=lambda pair: -len(pair[0])))


def conceal(value: Any, form: str = "${{oc.env:{}}}") -> Any:
    """Return a value for a record: ``${oc.env:NAME}`` replaces secrets, ``***`` passwords in addresses.

    Args:
        value: A text, or plain values at any depth. Keys and values of ``_target_`` are not changed.
        form: Format of the text that replaces a secret; it gets the name of the variable.
    """
    return _replace(value, {secret: form.format(name) for secret, name in _known().items()})


def _replace(value: Any, known: Mapping[str, str]) -> Any:
    if isinstance(value, str):
        for secret, written in known.items():
            value = value.replace(secret, written)
        return conceal_password(value)
    if isinstance(value, Mapping):
        return {key: one if key == "_target_" else _replace(one, known) for key, one in value.items()}
    return [_replace(one, known) for one in value] if isinstance(value, list | tuple) else value


def conceal_password(text: str) -> str:
    """Return a text in which ``***`` replaces passwords in addresses."""
    return _ADDRESS.sub(r"\1:***@", text)
