"""Errors that the user can fix: the command line prints their messages without a traceback."""

import errno
import re
import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

FAILURE = "failure.json"
"""File with the error of a failed run or job."""


FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Errors of a full file system, or of a file that is too large for it."""


def explain_full(error: BaseException) -> "UserError | None":
    """Return an error with advice for a full file system outside the store; None for other errors."""
    if not isinstance(error, OSError) or error.errno not in FULL:
        return None
    where = (
        error.filename
        if isinstance(error.filename, str)
        else "standard output, a temporary file (TMPDIR) or the folder of the run"
    )
    return UserError(
        f"Expected to write to {where}, but got: {error.strerror}. Free some space, or choose another place "
        f"(hydra.run.dir=FOLDER for the run, TMPDIR for temporary files). Finished stages are in the store. Run the "
        f"command again to continue."
    )


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message without colours, or the name of its class if there is none."""
    lines = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).splitlines()
    return next(iter(lines), "") or type(error).__name__


class UserError(Exception):
    """An error that the user can fix; the message names the problem and the remedy."""


class ConfigError(UserError):
    """A setting is wrong."""


class WeightsError(UserError):
    """A weight file is missing, damaged or from another network."""


class DivergedError(UserError):
    """Training has diverged to NaN or infinite values."""


@contextmanager
def no_exit(name: str) -> Iterator[None]:
    """Turn ``sys.exit`` of a user's code into an error: the run would end as if it had succeeded.

    Raises:
        ConfigError: If the code calls it.
    """
    try:
        yield
    except SystemExit as error:
        if type(error) is not SystemExit:  # Lightning's, of a signal
            raise
        raise ConfigError(
            f"Expected {name} to return, but it ended the program with sys.exit({error.code!r}). Move the code of "
            f'the script, such as argparse, below `if __name__ == "__main__":`.'
        ) from error


class StoreError(UserError):
    """The store cannot be read or written, or a required stage is missing."""


class OutOfMemoryError(UserError):
    """The machine or the GPU has too little memory."""


_NO_MEMORY = (
    "not enough memory", "can't allocate memory", "cannot allocate memory", "out of memory", "std::bad_alloc",
    "bad allocation", "alloc_failed", "unable to allocate", "can't start new thread", "failed to map segment",
)  # fmt: skip
"""Parts of the messages of torch, Python and the loader where an allocation has failed."""


_IN_STAGE = "In the stage "

_LESS_MEMORY = {
    "teacher": "lower teacher.batch_size",
    "compression": "lower compression.samples, compression.oversampling or compression.batch_size, or set "
    "compression.matching=0",
    "generators": "lower generator.batch_size, or set generator.parallel=sequential",
    "samples": "lower student.samples, student.oversampling or student.memory, or set student.matching=0",
    "student": "lower student.batch_size, student.samples, student.oversampling or student.memory",
    "evaluation": "lower the batch_size of teacher and student",
    "agreement": "lower agreement.samples",
    "latency": "lower latency.batch_sizes",
    "quantization": "lower quantization.samples",
}
"""Stage -> settings that need less memory."""

_LESS = "lower student.samples, student.oversampling, compression.samples, or the batch_size of the groups"


@contextmanager
def named_stage(stage: str) -> Iterator[None]:
    """Add the name of a stage to exceptions, for :func:`explain_memory` and for tracebacks."""
    try:
        yield
    except Exception as error:
        error.add_note(f"{_IN_STAGE}{stage}.")
        raise


def explain_memory(error: BaseException) -> OutOfMemoryError | None:
    """Return an error with advice if an error, or its cause, is a failed allocation; None for other errors."""
    chain: list[BaseException] = []
    while error not in chain:
        chain.append(error)
        error = error.__cause__ or error.__context__ or error
    for one in chain:
        message = first_line(one)
        failed = isinstance(one, RuntimeError | OSError | ImportError) and any(
            part in str(one).lower() for part in _NO_MEMORY
        )
        if failed or isinstance(one, MemoryError):
            notes = (note for one in chain for note in getattr(one, "__notes__", ()))
            note = next((note for note in notes if str(note).startswith(_IN_STAGE)), "")
            stage = note.removeprefix(_IN_STAGE).rstrip(".")
            return OutOfMemoryError(
                f"Expected enough memory{f' for the stage {stage}' if stage else ''}, but an allocation failed "
                f"({message}). Free memory or raise its limit (ulimit -v); or {_LESS_MEMORY.get(stage, _LESS)}. "
                f"Finished stages and checkpoints are kept. Run the command again to continue."
            )
    return None


_LOST = ("connection closed by peer", "connection reset by peer", "broken pipe", "remote process exited")
"""Parts of the messages of torch where another process of the group has stopped."""


def explain_lost(error: BaseException) -> UserError | None:
    """Return an error with advice if another process of the run has stopped; None for other errors."""
    if not isinstance(error, RuntimeError) or not any(part in str(error).lower() for part in _LOST):
        return None
    return UserError(
        "Expected the other processes of the run to continue, but one of them has stopped; its own message says why. "
        "Finished stages are in the store; run the command again to continue."
    )


def override(name: str, value: Any) -> str:
    """Return ``name=value`` of the command line in Hydra's grammar, quoted for a shell."""
    return shlex.quote(f"{name}={_literal(value)}")


def _literal(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"{{{','.join(f'{name}:{_literal(one)}' for name, one in value.items())}}}"
    if isinstance(value, list | tuple):
        return f"[{','.join(map(_literal, value))}]"
    return {"None": "null", "True": "true", "False": "false"}.get(str(value), str(value))


class SettingsMismatchError(ValueError):
    """Settings that do not fit a network.

    Args:
        message: Description of the problem, with a full stop.
        remedy: Name of a setting -> a value that fits.
    """

    def __init__(self, message: str, remedy: Mapping[str, Any]) -> None:
        super().__init__(message)
        self.message = message
        self.remedy = dict(remedy)

    def __str__(self) -> str:
        """Return the message for a Python caller."""
        return f"{self.message} Set {', '.join(f'{name}={value!r}' for name, value in self.remedy.items())}."

    def for_command_line(self, group: str) -> str:
        """Return the message for the command line, with the group of the settings, such as ``student``."""
        overrides = " ".join(override(f"{group}.{name}", value) for name, value in self.remedy.items())
        return f"{self.message} Set {overrides}."
