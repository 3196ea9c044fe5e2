"""Random numbers: one independent stream for each purpose, and seeds for the global streams."""

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def derive_seed(seed: int, purpose: str, *indices: int) -> int:
    """Derive a seed in [0, 2**63) by hashing, so that streams neither overlap nor depend on each other.

    Args:
        seed: The run's seed.
        purpose: Purpose of the numbers, such as ``"noise"``.
        indices: Rank, epoch or index of a generator, to separate streams of one purpose.
    """
    digest = hashlib.sha256(":".join(map(str, (seed, purpose, *indices))).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def stream(seed: int, purpose: str, *indices: int, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a random number generator for one purpose (see :func:`derive_seed`)."""
    return torch.Generator(device).manual_seed(derive_seed(seed, purpose, *indices))


@contextmanager
def seeded(seed: int, purpose: str, *indices: int) -> Iterator[None]:
    """Seed the global streams of Python, NumPy and torch within the context (see :func:`derive_seed`).

    Networks draw their initial weights from these streams. The states are restored.
    """
    value = derive_seed(seed, purpose, *indices) % 2**32
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    states = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices):
            random.seed(value)
            np.random.seed(value)
            torch.manual_seed(value)
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
