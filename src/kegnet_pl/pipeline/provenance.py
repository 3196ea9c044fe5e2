"""Provenance of a result: versions, commit and command."""

import functools
import platform
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from kegnet_pl.pipeline.sweep import in_sweep, job_overrides
from kegnet_pl.runtime.secrets import conceal

_PACKAGES = ("kegnet_pl", "torch", "torchvision", "pytorch-lightning", "tensorly", "hydra-core", "numpy", "scipy")


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that a result may depend on."""
    return {"python": platform.python_version()} | {package: _version(package) for package in _PACKAGES}


@functools.cache
def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


@functools.cache
def git_state() -> dict[str, Any]:
    """Return commit and dirty flag of the running source; None outside a git checkout.

    A process asks once: later changes of the source are not in the process.
    """
    folder = Path(__file__).parent

    def git(*arguments: str) -> str | None:
        try:
            process = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return process.stdout.strip() if process.returncode == 0 else None

    # An installed package may lie inside another project's checkout: only tracked source has a commit.
    commit = git("rev-parse", "HEAD") if git("ls-files", "--error-unmatch", "store.py") is not None else None
    return {"commit": commit, "dirty": bool(git("status", "--porcelain")) if commit else None}


def command_line(program: str = "kegnet_pl") -> str:
    """Return the current command in shell syntax, without the folder of the interpreter or of the program.

    Secrets are concealed, see :mod:`kegnet_pl.runtime.secrets`.
    For a job of a sweep, it is the command that runs only this job.
    """
    arguments = job_overrides() if in_sweep() else sys.argv[1:]
    return shlex.join(["python", "-m", program, *conceal(arguments)])
