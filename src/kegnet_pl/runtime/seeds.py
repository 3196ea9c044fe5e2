"""One independent stream of random numbers for every purpose."""

import hashlib

import torch


def derive_seed(seed: int, purpose: str, *indices: int) -> int:
    """Derive a seed by hashing, so that streams neither overlap nor depend on what else is drawn.

    Args:
        seed: The run's seed.
        purpose: What the numbers are for, such as ``"noise"``.
        indices: Rank, epoch, index of a generator: whatever tells streams of one purpose apart.

    Returns:
        A whole number in [0, 2**63).
    """
    digest = hashlib.sha256(":".join(map(str, (seed, purpose, *indices))).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def stream(seed: int, purpose: str, *indices: int, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a random generator for one purpose (see :func:`derive_seed`)."""
    return torch.Generator(device).manual_seed(derive_seed(seed, purpose, *indices))
