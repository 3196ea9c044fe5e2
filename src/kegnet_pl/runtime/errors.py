"""Errors that the user can mend: the command line prints their message without a traceback."""


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
