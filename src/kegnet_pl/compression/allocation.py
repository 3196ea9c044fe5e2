"""Allocation of ranks: the least change of the logits for a number of parameters, operations or seconds."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from kegnet_pl.compression.activations import LayerMoments
from kegnet_pl.compression.costs import Cost, ParameterCost
from kegnet_pl.compression.report import count_parameters
from kegnet_pl.compression.rules import SideRank
from kegnet_pl.compression.tucker import Factorisable, Ranks, factorised_parameters, has_one_rank, read_weight, sides

_DAMPING = 1e-3
"""Share of the mean that is added to the diagonal of moments, for directions that no sample has."""


_LARGE_METRIC = 1_000
"""Outputs of a layer above which the root of their metric is that of Cholesky."""


def square_root(moments: Tensor, damping: float = _DAMPING) -> Tensor:
    """Return the symmetric square root of a damped matrix of second moments."""
    damped = moments + damping * moments.diagonal().mean() * torch.eye(len(moments), dtype=moments.dtype)
    values, vectors = torch.linalg.eigh(damped)
    root: Tensor = vectors @ torch.diag(values.clamp_min(0).sqrt()) @ vectors.T
    return root


def metric_root(metric: Tensor) -> Tensor:
    """Return a matrix R with ``R^T R = metric``: the symmetric root, or that of Cholesky for a large metric.

    Both give the same errors in the metric. Cholesky is ten times as fast.
    """
    if len(metric) > _LARGE_METRIC:
        identity = torch.eye(len(metric), dtype=metric.dtype)
        for share in (1e-10, 1e-7, 1e-5):  # a metric of few samples, summed in float32, is singular
            factor, failed = torch.linalg.cholesky_ex(metric + share * metric.diagonal().mean() * identity)
            if not failed and bool(factor.diagonal().isfinite().all()):
                root: Tensor = factor.T
                return root
    return square_root(metric, damping=0.0)


def weighted_inputs(layer: Factorisable, inputs: Tensor, metric: Tensor) -> tuple[Tensor, Tensor]:
    """Return the influence of the input channels of a layer on its outputs.

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

    The output side loses the directions of the outputs with the smallest effect, weighted by the sensitivity of the
    logits. The input side loses the directions of the weights with the smallest effect, weighted by the moments of the
    inputs and by the same sensitivity.

    Returns:
        Losses per sample, for the input side ``(in,)``, None without moments of the inputs, and for the output side
        ``(out,)``.
    """
    n_in, n_out = sides(layer)
    root = metric_root(moments.sensitivity)
    # A symmetric root is not transposed, as its transpose is another one in the last bits.
    other = root.T if n_out > _LARGE_METRIC else root
    outputs = torch.linalg.eigvalsh(root @ moments.outputs @ other)
    out_losses = moments.positions * _tails(outputs, n_out)
    if moments.inputs is None:
        return None, out_losses
    in_spectrum = torch.linalg.eigvalsh(weighted_inputs(layer, moments.inputs, moments.sensitivity)[1])
    return moments.positions * _tails(in_spectrum, n_in), out_losses


@dataclass(frozen=True)
class _Options:
    """Pairs of ranks of a layer ``(n, 2)``, and losses and costs ``(n + 1,)``; the last is the layer as it is."""

    ranks: np.ndarray
    losses: np.ndarray
    costs: np.ndarray


def _multiples(full: int, step: int) -> list[int]:
    """Return the ranks that are multiples of a number, and the full one."""
    return [*range(step, full, step), full]


def _options(
    name: str,
    layer: Factorisable,
    fixed: tuple[int | None, int | None],
    moments: LayerMoments,
    cost: Cost,
    fold: bool,
    round_to: int,
) -> _Options:
    in_losses, out_losses = truncation_losses(layer, moments)
    choices = [
        _multiples(full, round_to) if rank is None else [rank] for rank, full in zip(fixed, sides(layer), strict=True)
    ]
    if takes_one_rank(layer, fold) and fixed == (None, None):
        grid_in = grid_out = np.array(_multiples(min(sides(layer)), round_to))
        loss = out_losses[grid_out - 1]
    else:
        assert in_losses is not None
        grid_in, grid_out = (grid.ravel() for grid in np.meshgrid(*map(np.array, choices), indexing="ij"))
        loss = in_losses[grid_in - 1] + out_losses[grid_out - 1]
    size = np.asarray(factorised_parameters(layer, (grid_in, grid_out), fold))  # type: ignore[arg-type]
    costs, whole = cost.of_factors(name, grid_in, grid_out), cost.of_layer(name)
    smaller = (costs < whole) & (size < count_parameters(layer))
    pairs = np.stack([grid_in[smaller], grid_out[smaller]], axis=1)
    return _Options(pairs, np.append(loss[smaller], 0.0), np.append(costs[smaller], whole))


def allocate_ranks(
    layers: Mapping[str, Factorisable],
    fixed: Mapping[str, tuple[int | None, int | None]],
    moments: Mapping[str, LayerMoments],
    budget: float,
    *,
    cost: Cost | None = None,
    fold: bool = False,
    round_to: int = 1,
) -> dict[str, Ranks]:
    """Choose the ranks of all layers for a budget, both sides of each layer independently.

    The sum of the losses (:func:`truncation_losses`) is minimised with a Lagrange multiplier. For a given multiplier,
    the same for all layers, each layer gets its best pair of ranks. The multiplier is found by bisection. The rest of
    the budget goes to the layer with the largest gain.

    Args:
        layers: Convolutions and dense layers by name.
        fixed: Given ranks of the input and output side, None where they are to be chosen.
        moments: Of :func:`measure_layers`.
        budget: Cost of these layers together.
        cost: Cost of layers; None for their parameters.
        fold: True if factorised layers are folded (:class:`TuckerLayer`).
        round_to: Ranks are multiples of this number, or full.

    Returns:
        Ranks by name. Layers without ranks should stay unchanged.

    Raises:
        ValueError: If the budget is below the cost with all ranks at 1.
    """
    cost = cost or ParameterCost(layers, 0, fold)
    options = {
        name: _options(name, layer, fixed[name], moments[name], cost, fold, round_to) for name, layer in layers.items()
    }

    def choose(price: float) -> dict[str, int]:
        return {name: int(np.argmin(o.losses + price * o.costs)) for name, o in options.items()}

    def spent(chosen: Mapping[str, int]) -> float:
        return sum(float(options[name].costs[index]) for name, index in chosen.items())

    smallest = {name: int(np.argmin(o.costs)) for name, o in options.items()}
    if spent(smallest) > budget:
        raise BudgetError(spent(smallest), budget)
    low, high = 1e-15, 1e15
    for _ in range(100):
        middle = math.sqrt(low * high)
        low, high = (low, middle) if spent(choose(middle)) <= budget else (middle, high)
    chosen = choose(high)
    chosen = chosen if spent(chosen) <= budget else smallest
    while True:  # spend the rest
        left, best = budget - spent(chosen), (0.0, "", 0)
        for name, o in options.items():
            affordable = np.flatnonzero(o.costs <= o.costs[chosen[name]] + left)
            index = int(affordable[np.argmin(o.losses[affordable])])
            best = max(best, (float(o.losses[chosen[name]] - o.losses[index]), name, index))
        if best[0] <= 0:
            break
        chosen[best[1]] = best[2]
    found = {name: options[name].ranks[index : index + 1] for name, index in chosen.items()}
    return {name: (int(pair[0][0]), int(pair[0][1])) for name, pair in found.items() if len(pair)}


class BudgetError(ValueError):
    """A budget below the smallest cost that can be reached.

    Args:
        smallest: That cost.
        budget: The budget.
        message: Text for the user; None names both.

    Attributes:
        smallest: The smallest cost.
    """

    def __init__(self, smallest: float, budget: float, message: str | None = None) -> None:
        super().__init__(
            message
            or f"Expected a budget of at least {smallest:.6g}, the cost of the layers at the smallest ranks, but got "
            f"{budget:.6g}."
        )
        self.smallest = smallest


class TargetError(BudgetError):
    """A target above the largest that can be reached.

    Args:
        most: The largest ratio that can be reached; the message rounds it down.
        target: The target.
        by: Quantity of the target.
        reason: Sentences on the reason and the remedy.
    """

    def __init__(self, most: float, target: float, by: str, reason: str) -> None:
        self.most, self.target, self.by = math.floor(100 * most) / 100, target, by
        super().__init__(
            1 / most, 1 / target, f"Expected a `target` of at most {self.most:.2f} by {by}, but got {target}. {reason}"
        )
