"""Choice of ranks for a target: by the weights of layers, or by what the network computes."""

import bisect
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Literal, TypeVar, get_args

import numpy as np
import torch
from torch import nn

from kegnet_pl.compression.activations import LayerMoments
from kegnet_pl.compression.allocation import BudgetError, TargetError, allocate_ranks, takes_one_rank
from kegnet_pl.compression.costs import Cost, CostName, LatencyCost, MacCost, ParameterCost, make_batch, observe_shapes
from kegnet_pl.compression.report import ModelSize, count_parameters
from kegnet_pl.compression.rules import Candidate
from kegnet_pl.compression.structure import restore_structure
from kegnet_pl.compression.tucker import Ranks, factorised_parameters
from kegnet_pl.networks.handling import copy_network

WhenLarger = Literal["keep", "compress"]
"""Treatment of a layer that its factorisation would enlarge."""

Chosen = TypeVar("Chosen")

_NO_CANDIDATES = (
    "Expected layers that can be factorised, to reach target={}, but got none: convolutions without groups and dense "
    "layers can, if their weights are not shared."
)

_UNITS = {"parameters": "parameters", "macs": "MACs", "latency": "seconds"}

_BLOCK = 8
"""Multiple of ranks and channels for targets of latency."""

_CORRECTIONS = 7
"""Maximum number of networks that are measured to reach a target of latency."""

_ALMOST = 0.97
"""A target of latency counts as reached at this share of it, since measurements vary."""

_OVERSHOOT = 1.05
"""If the result exceeds the target by more than this ratio, the remaining parameters go to other layers."""


def default_round_to(by: CostName) -> int:
    """Return the multiple of ranks and channels if none is given.

    CPUs and GPUs compute blocks of channels, so the times of layers rise in steps.
    """
    return _BLOCK if by == "latency" else 1


def check_target(target: float | None, by: CostName, round_to: int, batch_size: int) -> None:
    """Check the arguments of a plan.

    Raises:
        ValueError: If one is out of range.
    """
    number = isinstance(target, Real) and not isinstance(target, bool)  # also of numpy
    if target is not None and not (number and target > 1 and math.isfinite(target)):
        raise ValueError(f"Expected `target` to be a compression ratio above 1, but got {target!r}.")
    if by not in get_args(CostName):
        raise ValueError(f"Expected `by` to be one of {get_args(CostName)}, but got {by!r}.")
    for name, value in (("round_to", round_to), ("batch_size", batch_size)):
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"Expected `{name}` to be a whole number of at least 1, but got {value!r}.")


def search_speed(
    target: float,
    budget: float,
    high: float,
    allocate: Callable[[float], Chosen],
    measure: Callable[[Chosen], float],
    remedy: str,
) -> Chosen:
    """Return the choice with the largest budget whose network reaches a target of latency when it is measured.

    Args:
        target: Time of the network before / after.
        budget: First budget.
        high: Largest budget.
        allocate: Returns the choice for a budget; raises :class:`BudgetError` for one that is too small.
        measure: Returns the measured speed-up by a choice.
        remedy: Sentence on the remedy, for the message.

    Raises:
        BudgetError: If no choice reaches :data:`_ALMOST` of the target.
    """
    found: list[tuple[float, Chosen]] = []
    low = 0.0
    for _ in range(_CORRECTIONS):
        try:
            chosen = allocate(budget)
        except BudgetError as error:
            low = budget = error.smallest
            chosen = allocate(budget)
        speedup = measure(chosen)
        found.append((speedup, chosen))
        if target <= speedup <= _OVERSHOOT * target:
            break
        low, high = (budget, high) if speedup >= target else (low, budget)
        budget = (low + high) / 2
    reached = [pair for pair in found if pair[0] >= target]
    if reached:
        return min(reached, key=lambda pair: pair[0])[1]
    speedup, chosen = max(found, key=lambda pair: pair[0])
    if speedup < _ALMOST * target:
        raise TargetError(speedup, target, "latency", f"The fastest measured network has this speed-up. {remedy}")
    return chosen


def lower_round_to(round_to: int) -> str:
    """Return a remedy for a target of latency that is not reached; empty if it does not apply."""
    return " or `round_to`" if round_to > 1 else ""


def _advise(round_to: int = 1) -> str:
    """Return the remedy for a target that factorisation does not reach."""
    return (
        f"Lower the target{lower_round_to(round_to)}, prune (method='pruning', on the command line "
        f"compression=pruning), or name more layers if you have set `rules`."
    )


@dataclass(frozen=True)
class RankChoice:
    """Chooses the ranks for a :class:`CompressionPlan`; the arguments are those of the plan."""

    target: float | None
    when_larger: WhenLarger
    fold: bool
    by: CostName
    round_to: int
    batch_size: int

    def enlarges(self, cost: Cost, candidate: Candidate, ranks: Ranks) -> bool:
        """Return True for a layer that stays as it is, since these ranks would not reduce its cost."""
        return self.when_larger == "keep" and self.growth(cost, candidate, ranks) >= 0

    def growth(self, cost: Cost, candidate: Candidate, ranks: Ranks) -> float:
        """Return the cost that ranks add to a layer; in parameters if the network does not call the layer."""
        name, layer = candidate.name, candidate.layer
        if name not in cost.layers:
            return factorised_parameters(layer, ranks, self.fold) - count_parameters(layer)
        return float(cost.of_factors(name, *(np.array([rank]) for rank in ranks))[0]) - cost.of_layer(name)

    def describe_growth(self, cost: Cost, candidate: Candidate, ranks: Ranks) -> str:
        """Return the cost that ranks would add to a layer, with its unit."""
        growth = self.growth(cost, candidate, ranks)
        if self.by == "latency" and candidate.name in cost.layers:
            return f"{1e6 * growth:.0f} microseconds per batch"
        return f"{growth:.0f} {'MACs' if self.by == 'macs' and candidate.name in cost.layers else 'parameters'}"

    def measure_costs(
        self,
        network: nn.Module,
        candidates: Sequence[Candidate],
        size: ModelSize,
        samples: torch.Tensor,
        on_progress: Callable[[float], None],
    ) -> Cost:
        """Return the costs of the candidates; for operations and time, only of layers that the network calls.

        ``samples`` ``(N, *input_shape)`` are needed for operations and time.
        """
        if self.by == "parameters":
            return ParameterCost({c.name: c.layer for c in candidates}, size.parameters, self.fold)
        shapes = observe_shapes(network, [c.name for c in candidates], samples[:1])
        layers = {c.name: c.layer for c in candidates if c.name in shapes}
        if self.by == "macs":
            return MacCost(layers, shapes, size.macs, self.fold)
        batch = make_batch(samples, self.batch_size)
        return LatencyCost(network, layers, shapes, batch, self.fold, on_progress)

    def by_function(
        self, network: nn.Module, candidates: Sequence[Candidate], moments: Mapping[str, LayerMoments], cost: Cost
    ) -> dict[str, Ranks]:
        """Return the ranks of candidates that change the logits least; a candidate without ranks stays as it is."""
        assert self.target is not None
        fixed = {c.name: (c.fixed(0), c.fixed(1)) for c in candidates}
        given = {name: (a, b) for name, (a, b) in fixed.items() if a is not None and b is not None}
        layers = {c.name: c.layer for c in candidates if c.name not in given}
        if not layers:
            raise ValueError(_NO_CANDIDATES.format(self.target))
        saved = sum(
            -self.growth(cost, c, given[c.name])
            for c in candidates
            if c.name in given and c.name in cost.layers and not self.enlarges(cost, c, given[c.name])
        )
        called = {name: layer for name, layer in layers.items() if name in moments and name in cost.layers}
        rest = cost.total - saved - sum(map(cost.of_layer, called))
        budget = cost.total / self.target - rest

        allocate = functools.partial(
            allocate_ranks, called, fixed, moments, cost=cost, fold=self.fold, round_to=self.round_to
        )
        try:
            chosen = allocate(budget)
        except BudgetError as error:
            if not isinstance(cost, LatencyCost):
                unseen = [name for name in layers if name not in called]
                without = f" Layers without gradients or a batch cannot be used: {', '.join(unseen)}." if unseen else ""
                most = cost.total / max(rest + error.smallest, 1e-9 * cost.total)
                reason = f"Layers have at least one rank.{without} {_advise()}"
                raise TargetError(most, self.target, self.by, reason) from error
            budget = error.smallest
        if isinstance(cost, LatencyCost):
            smaller = {c.name for c in candidates if c.name in given and not self.enlarges(cost, c, given[c.name])}
            chosen = self._search(network, {name: given[name] for name in smaller}, cost, budget, allocate)
        for candidate in candidates:
            if candidate.name in layers and candidate.name not in called:
                candidate.notes.append(
                    "unchanged: the network does not call it, or calls it without gradients or without a batch"
                )
            elif candidate.name in layers and candidate.name not in chosen:
                candidate.notes.append(f"unchanged: saving {_UNITS[self.by]} in other layers changes the logits less")
        return {**given, **chosen}

    def _search(
        self,
        network: nn.Module,
        given: Mapping[str, Ranks],
        cost: LatencyCost,
        budget: float,
        allocate: Callable[[float], dict[str, Ranks]],
    ) -> dict[str, Ranks]:
        """Return ranks whose network reaches the target of latency when it is measured, at the largest budget.

        The times of layers do not add up to the time of the network, so the budget is found by bisection.
        """
        assert self.target is not None

        def measure(chosen: Mapping[str, Ranks]) -> float:
            ranks = {**given, **chosen}
            trial = restore_structure(copy_network(network), ranks, list(ranks) if self.fold else [])
            return cost.speedup(network, trial)

        return search_speed(
            self.target,
            budget,
            sum(map(cost.of_layer, cost.layers)),
            allocate,
            measure,
            _advise(self.round_to),
        )

    def by_weights(self, candidates: Sequence[Candidate], cost: Cost) -> dict[str, Ranks]:
        """Return the ranks of every candidate; for a target, ``cost`` counts parameters."""
        fixed = {c.name: (c.fixed(0), c.fixed(1)) for c in candidates}
        free = {(c.name, side): c.energy(side) for c in candidates for side in (0, 1) if fixed[c.name][side] is None}

        def at(share: float) -> dict[str, Ranks]:
            def rank(name: str, side: int) -> int:
                known = fixed[name][side]
                return known if known is not None else 1 + int(np.searchsorted(free[name, side][:-1], share))

            return {c.name: (rank(c.name, 0), rank(c.name, 1)) for c in candidates}

        def ratio(ranks: Mapping[str, Ranks]) -> float:
            saved = sum(
                -self.growth(cost, c, ranks[c.name]) for c in candidates if not self.enlarges(cost, c, ranks[c.name])
            )
            return cost.total / (cost.total - saved)

        if self.target is None:
            return at(1.0)
        # All shares at which a rank grows; the ratio decreases along them.
        shares = np.unique(np.concatenate([[0.0], *free.values()]))
        bound = ratio(at(shares[0]))
        if bound < self.target:
            if not free:
                raise ValueError(_NO_CANDIDATES.format(self.target))
            reason = f"Every rank 'target' is then 1. {_advise()}"
            raise TargetError(bound, self.target, self.by, reason)
        reached = bisect.bisect_right(shares, -self.target, key=lambda share: -ratio(at(share)))
        chosen = at(shares[reached - 1])
        return (
            chosen if ratio(chosen) <= _OVERSHOOT * self.target else self._spend(candidates, free, chosen, ratio, cost)
        )

    def _spend(
        self,
        candidates: Sequence[Candidate],
        free: Mapping[tuple[str, int], np.ndarray],
        chosen: dict[str, Ranks],
        ratio: Callable[[Mapping[str, Ranks]], float],
        cost: Cost,
    ) -> dict[str, Ranks]:
        """Raise free ranks one by one, smallest share first, while the target is still reached."""
        assert self.target is not None
        steps: set[tuple[str, tuple[int, ...]]] = set()
        for c in candidates:
            free_sides = tuple(side for side in (0, 1) if (c.name, side) in free)
            # A matrix has one rank, so raising one side of a dense layer alone keeps nothing more.
            together = takes_one_rank(c.layer, self.fold) and len(free_sides) == 2
            steps |= {(c.name, free_sides)} if together else {(c.name, (side,)) for side in free_sides}
        by_name = {c.name: c for c in candidates}
        while steps:
            step = min(steps, key=lambda s: (free[s[0], s[1][0]][chosen[s[0]][s[1][0]] - 1], s))
            name, raised = step
            ranks = (chosen[name][0] + (0 in raised), chosen[name][1] + (1 in raised))
            more = {**chosen, name: ranks}
            full = any(ranks[side] > len(free[name, side]) for side in raised)
            if full or self.enlarges(cost, by_name[name], ranks) or ratio(more) < self.target:
                steps.remove(step)
            else:
                chosen = more
        return chosen
