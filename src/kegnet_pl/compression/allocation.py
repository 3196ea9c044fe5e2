"""Allocation of ranks: the least change of the logits for a number of parameters."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from kegnet_pl.compression.activations import LayerMoments
from kegnet_pl.compression.report import count_parameters
from kegnet_pl.compression.rules import SideRank
from kegnet_pl.compression.tucker import Factorisable, Ranks, factorised_parameters, has_one_rank, read_weight, sides

_DAMPING = 1e-3
"""Share of the mean that is added to the diagonal of moments, for directions that no sample has."""


def square_root(moments: Tensor, damping: float = _DAMPING) -> Tensor:
    """Return the symmetric square root of a damped matrix of second moments."""
    damped = moments + damping * moments.diagonal().mean() * torch.eye(len(moments), dtype=moments.dtype)
    values, vectors = torch.linalg.eigh(damped)
    root: Tensor = vectors @ torch.diag(values.clamp_min(0).sqrt()) @ vectors.T
    return root


def weighted_inputs(layer: Factorisable, inputs: Tensor, metric: Tensor) -> tuple[Tensor, Tensor]:
    """Return how much the input channels of a layer matter to its outputs.

    Args:
        layer: Its weights connect the channels with the outputs.
        inputs: Second moments of the channels ``(in, in)``.
        metric: Of the outputs, ``(out, out)``.

    Returns:
        The square root R of the moments, and ``R E R``: E sums ``W_k^T metric W_k`` over the positions k of the kernel.
    """
    weight = read_weight(layer).detach().cpu().double()
    weight = weight.reshape(*weight.shape[:2], -1)
    root = square_root(inputs)
    return root, root @ torch.einsum("ock,op,pdk->cd", weight, metric, weight) @ root


def _tails(spectrum: Tensor, count: int) -> np.ndarray:
    """Return the sums of squares beyond the first 1, ..., ``count`` components."""
    squares = np.zeros(count)
    values = spectrum.flip(0).clamp_min(0).numpy()[:count]
    squares[: len(values)] = values
    return np.append(squares[::-1].cumsum()[::-1][1:], 0.0)


def takes_one_rank(layer: Factorisable, fold: bool) -> bool:
    """Return True if both sides of a layer have the same rank, as those of a matrix."""
    return isinstance(layer, nn.Linear) or (fold and has_one_rank(layer))


def needs_inputs(layer: Factorisable, ranks: tuple[SideRank, SideRank], fold: bool = False) -> bool:
    """Return True if the choice of a layer's ranks needs the moments of its inputs."""
    return not (takes_one_rank(layer, fold) and ranks == ("target", "target"))


def truncation_losses(layer: Factorisable, moments: LayerMoments) -> tuple[np.ndarray | None, np.ndarray]:
    """Estimate the squared change of the logits by a truncation of one side of a layer to 1, 2, ... components.

    The output side loses the smallest directions of the outputs, weighted by the sensitivity of the logits; the input
    side those of the weights, weighted by the moments of the inputs and by that sensitivity.

    Returns:
        Losses per sample, for the input side ``(in,)``, None without moments of the inputs, and for the output side
        ``(out,)``.
    """
    n_in, n_out = sides(layer)
    root = square_root(moments.sensitivity, damping=0.0)
    outputs = torch.linalg.eigvalsh(root @ moments.outputs @ root)
    out_losses = moments.positions * _tails(outputs, n_out)
    if moments.inputs is None:
        return None, out_losses
    in_spectrum = torch.linalg.eigvalsh(weighted_inputs(layer, moments.inputs, moments.sensitivity)[1])
    return moments.positions * _tails(in_spectrum, n_in), out_losses


@dataclass(frozen=True)
class _Options:
    """Pairs of ranks of a layer ``(n, 2)``, and losses and sizes ``(n + 1,)``; the last is the layer as it is."""

    ranks: np.ndarray
    losses: np.ndarray
    sizes: np.ndarray


def _options(layer: Factorisable, fixed: tuple[int | None, int | None], moments: LayerMoments, fold: bool) -> _Options:
    in_losses, out_losses = truncation_losses(layer, moments)
    choices = [range(1, full + 1) if rank is None else [rank] for rank, full in zip(fixed, sides(layer), strict=True)]
    if takes_one_rank(layer, fold) and fixed == (None, None):
        grid_in = grid_out = np.arange(1, min(sides(layer)) + 1)
        loss = out_losses[grid_out - 1]
    else:
        assert in_losses is not None
        grid_in, grid_out = np.meshgrid(np.array(choices[0]), np.array(choices[1]), indexing="ij")
        loss = in_losses[grid_in - 1] + out_losses[grid_out - 1]
    size: np.ndarray = factorised_parameters(layer, (grid_in, grid_out), fold)  # type: ignore[assignment, arg-type]
    whole = count_parameters(layer)
    smaller = size < whole
    pairs = np.stack([grid_in[smaller], grid_out[smaller]], axis=1)
    return _Options(pairs, np.append(loss[smaller], 0.0), np.append(size[smaller], whole).astype(float))


def allocate_ranks(
    layers: Mapping[str, Factorisable],
    fixed: Mapping[str, tuple[int | None, int | None]],
    moments: Mapping[str, LayerMoments],
    budget: int,
    fold: bool = False,
) -> dict[str, Ranks]:
    """Choose the ranks of all layers for a number of parameters, both sides of each layer independently.

    The sum of the losses (:func:`truncation_losses`) is minimised by a Lagrangian: with one price of a parameter for
    all layers, each layer takes its best pair of ranks; the price is found by bisection. What is left of the budget is
    spent on the layer that gains most.

    Args:
        layers: Convolutions and dense layers by name.
        fixed: Given ranks of the input and output side, None where they are to be chosen.
        moments: Of :func:`measure_layers`.
        budget: Parameters of these layers together.
        fold: True if factorised layers are folded (:class:`TuckerLayer`).

    Returns:
        Ranks by name; layers without are better left as they are.

    Raises:
        ValueError: If the budget is below the size with all ranks at 1.
    """
    options = {name: _options(layer, fixed[name], moments[name], fold) for name, layer in layers.items()}

    def choose(price: float) -> dict[str, int]:
        return {name: int(np.argmin(o.losses + price * o.sizes)) for name, o in options.items()}

    def size(chosen: Mapping[str, int]) -> float:
        return sum(float(options[name].sizes[index]) for name, index in chosen.items())

    smallest = {name: int(np.argmin(o.sizes)) for name, o in options.items()}
    if size(smallest) > budget:
        raise ValueError(
            f"Expected at least {size(smallest):,.0f} parameters, with all ranks at 1, but got {budget:,}."
        )
    low, high = 1e-15, 1e15
    for _ in range(100):
        middle = math.sqrt(low * high)
        low, high = (low, middle) if size(choose(middle)) <= budget else (middle, high)
    chosen = choose(high)
    chosen = chosen if size(chosen) <= budget else smallest
    while True:  # spend the rest
        left, best = budget - size(chosen), (0.0, "", 0)
        for name, o in options.items():
            affordable = np.flatnonzero(o.sizes <= o.sizes[chosen[name]] + left)
            index = int(affordable[np.argmin(o.losses[affordable])])
            best = max(best, (float(o.losses[chosen[name]] - o.losses[index]), name, index))
        if best[0] <= 0:
            break
        chosen[best[1]] = best[2]
    found = {name: options[name].ranks[index : index + 1] for name, index in chosen.items()}
    return {name: (int(pair[0][0]), int(pair[0][1])) for name, pair in found.items() if len(pair)}
