"""Rules of a compression plan: patterns of layer names, and the ranks that they give to layers."""

import fnmatch
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from kegnet_pl.compression.evbmf import evbmf
from kegnet_pl.compression.tucker import (
    LARGE,
    Convolution,
    Factorisable,
    is_huge,
    matrix_energies,
    read_weight,
    replace_layer,
    same_function,
    sides,
    smaller_gram,
)
from kegnet_pl.networks.execution import eval_mode, first_weight
from kegnet_pl.networks.hooks import carry_hooks
from kegnet_pl.networks.validation import FORWARD_ERRORS, samples_for_trial

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
    _squares: np.ndarray | None = field(default=None, repr=False)

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
        weight = read_weight(self.layer)
        if is_huge(weight):  # both sides of a matrix have the same singular values
            self._squares = matrix_energies(weight) if self._squares is None else self._squares
            return self._squares
        matrix = self.unfolding(side)
        if weight[0].numel() > LARGE:
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
        elif not layer.get_parameter("weight").is_floating_point():
            obstacles[name] = f"its weight is {str(layer.weight.dtype).removeprefix('torch.')}, not real"
        elif uses[id(layer.weight)] > 1:
            obstacles[name] = "its weight is shared with another layer"
        elif isinstance(layer, Convolution) and layer.groups != 1:
            obstacles[name] = "grouped convolution"
    return obstacles


_SAMPLES = 8


@torch.no_grad()
def find_misused(network: nn.Module, names: Sequence[str], input_shape: Sequence[int]) -> dict[str, str]:
    """Return the layers that cannot be replaced without a change of the network's outputs, with the reason.

    Each layer is replaced by a factorised form of the same function. The outputs change if, for example, the network
    checks the class of the layer or changes its weight in place. Layers whose replacement raises an error are not
    returned: the compression reports them.

    Args:
        network: Any network; it is the same afterwards.
        names: Names of layers that can be factorised.
        input_shape: Shape of one sample.
    """
    layers = {name: network.get_submodule(name) for name in names}
    x = samples_for_trial(input_shape, _SAMPLES).to(first_weight(network))

    def differs(chosen: Sequence[str]) -> bool:
        for name in chosen:
            new = same_function(layers[name])  # type: ignore[arg-type]
            carry_hooks(layers[name], new)
            replace_layer(network, name, new)
        try:
            return not _answers_alike(_answer(network, x), expected)
        except FORWARD_ERRORS:
            return False
        finally:
            for name in chosen:
                replace_layer(network, name, layers[name])

    with eval_mode(network):
        try:
            expected = _answer(network, x)
        except FORWARD_ERRORS:
            return {}
        found = [name for name in names if differs([name])] if names and differs(names) else []
    return dict.fromkeys(found, "the network returns other outputs if an equal layer replaces it")


def _answer(network: nn.Module, x: Tensor) -> list[Tensor]:
    with torch.random.fork_rng(devices=[x.device] if x.device.type == "cuda" else []):
        torch.manual_seed(0)
        return [value for value in tree_leaves(network(x.clone())) if isinstance(value, Tensor)]


def _answers_alike(found: Sequence[Tensor], expected: Sequence[Tensor]) -> bool:
    """Return True if tensors are equal up to rounding for most samples; rounding may change a few samples strongly."""
    for own, other in zip(found, expected, strict=True):
        if own.shape != other.shape or len(other) != _SAMPLES:
            return own.shape == other.shape
        tolerance = 1e-3 if other.dtype in (torch.float32, torch.float64) else 0.05
        change = (own.flatten(1) - other.flatten(1)).abs().double().nan_to_num(0.0)
        scale = other.flatten(1).abs().double().nan_to_num(0.0).amax(dim=1).clamp_min(1e-12)
        if float((change.amax(dim=1) / scale).median()) > tolerance:
            return False
    return True


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
