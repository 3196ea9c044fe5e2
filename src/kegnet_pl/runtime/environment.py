"""Environment variables of launchers; this module imports nothing heavy."""

import os


def local_rank() -> int:
    """Return the rank of this process on its machine, from 0."""
    return int(os.environ.get("LOCAL_RANK", "0"))
