"""Errors that the user can mend: the command line prints their message without a traceback."""


class UserError(Exception):
    """Something the user can mend; the message says what is wrong and what to do next."""


class ConfigError(UserError):
    """A setting is wrong."""


class WeightsError(UserError):
    """A weight file is missing, damaged or of another network."""


class StoreError(UserError):
    """The store cannot be read or written, or holds less than was required."""
