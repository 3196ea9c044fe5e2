"""Rules of a compression plan: patterns of layer names, and ranks."""

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

SideRank = int | float | str
"""Rank of one side: a number of components, a fraction in (0, 1], ``"evbmf"``, ``"full"`` or ``"target"``."""

_WORDS = ("evbmf", "full", "target")


def _check_side(rank: object) -> SideRank:
    if isinstance(rank, str) and rank in _WORDS:
        return rank
    if isinstance(rank, int) and not isinstance(rank, bool) and rank >= 1:
        return rank
    if isinstance(rank, float) and 0 < rank <= 1:
        return rank
    raise ValueError(
        f"Expected `rank` to be one of {_WORDS}, an integer from 1, a fraction in (0, 1], "
        f"or a pair {{in: ..., out: ...}} of these, but got {rank!r}."
    )


@dataclass(frozen=True)
class Rule:
    """Ranks of the layers that match a pattern.

    Attributes:
        layers: Shell pattern of layer names (``conv3``, ``layers3.*.conv1``, ``*``), or several patterns.
        rank: Rank of both sides, or ``{"in": ..., "out": ...}``. An integer is a number of components, a fraction in
            (0, 1] a share of the side. ``"evbmf"`` estimates the rank from the weights, ``"full"`` keeps the side,
            and ``"target"`` is chosen so that the network reaches the plan's ``target``.

    Raises:
        ValueError: If a rank is none of these.
    """

    layers: str | Sequence[str]
    rank: SideRank | Mapping[str, SideRank]

    def __post_init__(self) -> None:
        if isinstance(self.rank, Mapping):
            if set(self.rank) != {"in", "out"}:
                raise ValueError(f"Expected `rank` as a pair {{in: ..., out: ...}}, but got {dict(self.rank)!r}.")
            for rank in self.rank.values():
                _check_side(rank)
        else:
            _check_side(self.rank)
        if not self.patterns:
            raise ValueError("Expected `layers` to hold at least one pattern, but got none.")

    @property
    def patterns(self) -> tuple[str, ...]:
        """Patterns of layer names."""
        return (self.layers,) if isinstance(self.layers, str) else tuple(self.layers)

    @property
    def sides(self) -> tuple[SideRank, SideRank]:
        """Ranks of the input and the output side."""
        if isinstance(self.rank, Mapping):
            return self.rank["in"], self.rank["out"]
        return self.rank, self.rank

    def matches(self, name: str) -> bool:
        """Return True if a pattern matches the name of a layer."""
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in self.patterns)
