"""Which of several processes this is."""

from pytorch_lightning.utilities import rank_zero_only


def rank() -> int:
    """Return the rank of this process, 0 for the one that writes and speaks."""
    return int(getattr(rank_zero_only, "rank", 0) or 0)
