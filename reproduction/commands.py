"""Commands: reading the settings of stored commands, joining commands to sweeps, parsing arguments."""

import argparse
import shlex
from collections.abc import Iterable, Sequence

from kegnet_pl.pipeline.suggestions import accept_old_spellings, rename


def setting(command: str, name: str) -> str:
    """Return the value of a setting of a command; empty if the command does not have it."""
    return next((part.split("=", 1)[1] for part in shlex.split(command) if part.startswith(f"{name}=")), "")


def changed(command: str, **settings: Sequence[str]) -> str:
    """Return a command with other values of some settings; a sweep if a setting has several values.

    Args:
        command: ``python -m kegnet_pl ...``. Its settings of Hydra (``hydra.run.dir``) are removed.
        settings: Names and values. A setting that the command does not have is not added.
    """
    parts = [part for part in shlex.split(command) if not part.startswith("hydra.")]
    for name, values in settings.items():
        parts = [f"{name}={','.join(values)}" if part.startswith(f"{name}=") else part for part in parts]
        if len(values) > 1 and "-m" not in parts[3:]:
            parts.insert(3, "-m")
    return shlex.join(parts)


def joined(commands: Iterable[str], *names: str) -> list[str]:
    """Return the commands; those that differ in the values of these settings alone become one sweep."""
    groups: dict[str, list[str]] = {}
    for command in commands:
        groups.setdefault(changed(command, **{name: ["any"] for name in names}), []).append(command)
    return [
        changed(group[0], **{name: list(dict.fromkeys(setting(command, name) for command in group)) for name in names})
        for group in groups.values()
    ]


def positive(text: str) -> int:
    """Return an argument as a whole number of at least 1.

    Raises:
        argparse.ArgumentTypeError: If it is not.
    """
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, but got {text!r}")
    return int(text)


def present(command: str) -> str:
    """Return a stored command in the spelling of this version.

    Rows keep the command that made them. Names of settings have changed since, and recipes are presets now.
    """
    program, arguments = shlex.split(command)[:3], shlex.split(command)[3:]
    if any(argument.startswith("+experiment=") for argument in arguments) and not setting(command, "recipe"):
        arguments.append("recipe=strict")  # the default of the versions with this spelling
    return shlex.join([*program, *accept_old_spellings([rename(argument) for argument in arguments])])
