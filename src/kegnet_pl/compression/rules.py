"""Rules of a compression plan: patterns of layer names, and the ranks that they give to layers."""

import fnmatch
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import get_args

import numpy as np
import torch
from torch import nn

from kegnet_pl.compression.evbmf import evbmf
from kegnet_pl.compression.tucker import (
    LARGE,
    Convolution,
    Factorisable,
    read_weight,
    sides,
    smaller_gram,
)

LAYERS = nn.Linear | nn.modules.conv._ConvNd | nn.RNNBase | nn.Embedding
"""Layers of a report. Recurrent layers and embeddings stay as they are."""

SideRank = int | float | str
"""Rank of one side: a number of components, a fraction in (0, 1], ``"evbmf"``, ``"full"`` or ``"target"``."""

_PLAIN = get_args(Factorisable)
"""Classes of layers that can be factorised; a subclass may use its weight outside of its call."""

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


@dataclass
class Candidate:
    """A layer that a plan may factorise, with the ranks that its rule gives to both sides, and notes for the report."""

    name: str
    layer: Factorisable
    ranks: tuple[SideRank, SideRank]
    notes: list[str] = field(default_factory=list)

    def unfolding(self, side: int) -> np.ndarray:
        """Return the weight as a matrix with the input (0) or output (1) side as rows."""
        weight = read_weight(self.layer).detach().to("cpu").double().numpy()
        return np.moveaxis(weight, 1 - side, 0).reshape(weight.shape[1 - side], -1)

    def fixed(self, side: int) -> int | None:
        """Return the rank of one side, or None if it depends on the target."""
        rank, full = self.ranks[side], sides(self.layer)[side]
        side_name = ("in", "out")[side]
        if rank == "target":
            return None
        if rank == "full":
            return full
        if rank == "evbmf":
            estimate = evbmf(self.unfolding(side)).rank
            if estimate == 0:
                self.notes.append(f"EVBMF found {side_name} rank 0, raised to 1")
            return max(estimate, 1)
        if isinstance(rank, float):
            return max(1, round(rank * full))
        if isinstance(rank, int) and rank > full:
            kind = "units" if isinstance(self.layer, nn.Linear) else "channels"
            raise ValueError(
                f"Expected `rank` between 1 and {full} for layer {self.name!r} ({full} {side_name}put {kind}), but got "
                f"{rank}. Lower it, or write 'full' to keep that side."
            )
        return int(rank)

    def energy(self, side: int) -> np.ndarray:
        """Return the share of the squared singular values in the first r components, for r = 1, 2, ..."""
        matrix = self.unfolding(side)
        if read_weight(self.layer)[0].numel() > LARGE:
            squares = torch.linalg.eigvalsh(smaller_gram(torch.from_numpy(matrix))).flip(0).clamp_min(0).numpy()
        else:
            squares = np.linalg.svd(matrix, compute_uv=False) ** 2
        total = squares.sum()
        # Rounded, so that equal spectra give equal ranks on any machine.
        return np.cumsum(squares / total).round(12) if total > 0 else np.ones_like(squares)


def find_obstacles(network: nn.Module, layers: Mapping[str, nn.Module]) -> dict[str, str]:
    """Return the layers whose weights cannot be replaced, with the reason."""
    fused = {
        id(layer)
        for module in network.modules()
        if isinstance(module, nn.TransformerEncoderLayer) and isinstance(module.self_attn, nn.MultiheadAttention)
        for layer in module.modules()
    }
    uses = Counter(id(p) for module in network.modules() for p in module.parameters(recurse=False))
    obstacles: dict[str, str] = {}
    for name, layer in layers.items():
        if type(layer) not in _PLAIN:
            obstacles[name] = f"{type(layer).__name__} cannot be factorised here"
        elif id(layer) in fused:
            obstacles[name] = "TransformerEncoderLayer reads its weight directly"
        elif "weight" not in dict(layer.named_parameters(recurse=False)):
            obstacles[name] = (
                "its weight is computed from others (weight_norm, spectral_norm, pruning); remove that first"
            )
        elif uses[id(layer.weight)] > 1:
            obstacles[name] = "its weight is shared with another layer"
        elif isinstance(layer, Convolution) and layer.groups != 1:
            obstacles[name] = f"grouped convolution (groups={layer.groups})"
    return obstacles


def fittable_layers(network: nn.Module) -> list[str]:
    """Return the names of the layers whose weights can be replaced."""
    layers = {name: layer for name, layer in network.named_modules() if isinstance(layer, LAYERS)}
    obstacles = find_obstacles(network, layers)
    return [name for name in layers if name not in obstacles]


def check_patterns(rules: Sequence[Rule], layers: Mapping[str, nn.Module]) -> None:
    """Check that every pattern of the rules matches a layer.

    Raises:
        ValueError: If one matches none, or there are no layers.
    """
    if not layers:
        raise ValueError("Expected a network with convolutions or dense layers, but it has none.")
    for rule in rules:
        for pattern in rule.patterns:
            if not fnmatch.filter(layers, pattern):
                raise ValueError(
                    f"Expected `layers` to name layers of the network, but {pattern!r} matches none of: "
                    f"{', '.join(layers)}."
                )
