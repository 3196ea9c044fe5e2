"""Errors that the user can mend: the command line prints their message without a traceback."""

from collections.abc import Mapping
from typing import Any

FAILURE = "failure.json"
"""File in which a failed job of a sweep leaves its error."""


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its kind where it has none."""
    return next(iter(str(error).splitlines()), "") or type(error).__name__


class UserError(Exception):
    """Something the user can mend; the message says what is wrong and what to do next."""


class ConfigError(UserError):
    """A setting is wrong."""


class WeightsError(UserError):
    """A weight file is missing, damaged or of another network."""


class DivergedError(UserError):
    """Training has left the numbers that a network can hold."""


class StoreError(UserError):
    """The store cannot be read or written, or holds less than was required."""


class SettingsMismatchError(ValueError):
    """Settings do not fit a network; the error knows which values would.

    Args:
        message: What is wrong, with a full stop.
        remedy: Name of a setting -> a value that fits.
    """

    def __init__(self, message: str, remedy: Mapping[str, Any]) -> None:
        super().__init__(message)
        self.message = message
        self.remedy = dict(remedy)

    def __str__(self) -> str:
        """Return the message for a caller in Python."""
        return f"{self.message} Set {', '.join(f'{name}={value!r}' for name, value in self.remedy.items())}."

    def for_command_line(self, group: str) -> str:
        """Return the message for the command line.

        Args:
            group: The group of settings, such as ``student``.
        """
        overrides = " ".join(f"{group}.{name}={value}" for name, value in self.remedy.items())
        return f"{self.message} Set {overrides}."
