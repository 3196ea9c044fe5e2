"""Commands: those of stored runs, the sweeps that make several of them, and what our own take."""

import argparse
import shlex
from collections.abc import Sequence


def setting(command: str, name: str) -> str:
    """Return the value of a setting of a command, empty where it has none."""
    return next((part.split("=", 1)[1] for part in shlex.split(command) if part.startswith(f"{name}=")), "")


def changed(command: str, **settings: Sequence[str]) -> str:
    """Return a command with other values of some settings, a sweep where they are several.

    Args:
        command: What ran: ``python -m kegnet_pl ...``. Where it left its results is left out.
        settings: Names and values; a setting that the command does not have is not added.
    """
    parts = [part for part in shlex.split(command) if not part.startswith("hydra.")]
    for name, values in settings.items():
        parts = [f"{name}={','.join(values)}" if part.startswith(f"{name}=") else part for part in parts]
        if len(values) > 1 and "-m" not in parts[3:]:
            parts.insert(3, "-m")
    return shlex.join(parts)


def positive(text: str) -> int:
    """Return the whole number of 1 or more that an argument is.

    Raises:
        argparse.ArgumentTypeError: If it is none.
    """
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, but got {text!r}")
    return int(text)
