"""The compression plan: choice of layers and ranks, and their factorisation."""

import bisect
import copy
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, cast, get_args

import numpy as np
import torch
from threadpoolctl import threadpool_limits
from torch import nn

from kegnet_pl.compression.activations import Calibration, LayerMoments, measure_layers
from kegnet_pl.compression.allocation import allocate_ranks, needs_inputs, takes_one_rank
from kegnet_pl.compression.attention import split_attention
from kegnet_pl.compression.reconstruction import measure_agreement, reconstruct
from kegnet_pl.compression.report import Compressed, CompressionReport, LayerReport, count_parameters, measure_size
from kegnet_pl.compression.rules import LAYERS, Candidate, Rule, check_patterns, find_obstacles
from kegnet_pl.compression.tucker import (
    Convolution,
    Factorisable,
    Ranks,
    factorise,
    factorised_parameters,
    is_transposed,
    replace_layer,
)
from kegnet_pl.networks.execution import copy_network
from kegnet_pl.networks.hooks import carry_hooks
from kegnet_pl.networks.validation import FORWARD_ERRORS
from kegnet_pl.runtime.errors import first_line

WhenLarger = Literal["keep", "compress"]
"""Treatment of a layer that its factorisation would enlarge."""

_NO_CANDIDATES = (
    "Expected layers that can be factorised, to reach target={}, but got none: convolutions without groups and dense "
    "layers can, if their weights are not shared."
)

_OVERSHOOT = 1.05
"""Ratio to the target above which the remaining parameters are assigned to other layers."""


class CompressionPlan:
    """Layers and ranks of a compression, applicable to any network.

    Args:
        rules: The first rule that matches a layer determines its ranks; layers without a rule are unchanged.
        target: Compression ratio of the whole network (parameters before / after), above 1. It determines the ranks of
            sides with the rank ``"target"``: they all keep the same share of their squared singular values, the
            largest share that reaches the ratio. If the result exceeds the ratio by more than 5 % (because one more
            rank of one layer would miss it), ranks of other layers are raised, starting with the smallest share.
        when_larger: Treatment of a layer that its factorisation would enlarge: ``"keep"`` leaves it (with a note in
            the report), ``"compress"`` factorises it, as the paper does with the outer layers of its MLP.
        fold: True to merge parts of factorised layers that only cost parameters (:class:`TuckerLayer`); False for
            layers of three parts, as the paper's.

    Raises:
        ValueError: If there is no rule, ``when_larger`` is unknown, or only one of ``target`` and a rank ``"target"``
            is given.
    """

    def __init__(
        self, rules: Sequence[Rule], target: float | None = None, when_larger: WhenLarger = "keep", fold: bool = False
    ) -> None:
        if not rules:
            raise ValueError("Expected `rules` to hold at least one rule, but got none.")
        if when_larger not in get_args(WhenLarger):
            raise ValueError(f"Expected `when_larger` to be one of {get_args(WhenLarger)}, but got {when_larger!r}.")
        number = isinstance(target, int | float) and not isinstance(target, bool)
        if target is not None and not (number and target > 1 and math.isfinite(target)):
            raise ValueError(f"Expected `target` to be a compression ratio above 1, but got {target!r}.")
        wanted = any("target" in rule.sides for rule in rules)
        if wanted and target is None:
            raise ValueError("Expected `target`, a compression ratio, since a rule has the rank 'target'; got None.")
        if target is not None and not wanted:
            raise ValueError(f"Expected a rule with the rank 'target' to reach target={target}, but there is none.")
        self.rules = tuple(rules)
        self.target = target
        self.when_larger = when_larger
        self.fold = fold

    @threadpool_limits.wrap(limits=1)  # type: ignore[untyped-decorator]  # many small decompositions: threads only wait
    def apply(
        self,
        network: nn.Module,
        input_shape: Sequence[int],
        calibration: Calibration | None = None,
        on_progress: Callable[[float], None] = lambda _: None,
    ) -> Compressed:
        """Compress a copy of a network.

        Args:
            network: Any network; it is not changed.
            input_shape: Shape of one sample.
            calibration: Samples. With them, ranks ``"target"`` change the logits least (:func:`allocate_ranks`), and
                layers are fitted to the network's function (:func:`reconstruct`); else weights alone decide.
            on_progress: Called with the finished share, in [0, 1): with samples, of the layers that are fitted; else of
                the parameters of the layers to factorise.

        Returns:
            The smaller network and its report; all weights are trainable, even if the original's are frozen.

        Raises:
            ValueError: If a pattern matches no convolution or dense layer, a rank is out of range, the target cannot
                be reached, weights are not finite, or the network does not accept such samples.
        """
        invalid = [name for name, weight in network.named_parameters() if not bool(weight.detach().isfinite().all())]
        if invalid:
            raise ValueError(f"Expected finite weights, but got NaN or infinite ones in {', '.join(invalid[:8])}.")
        devices = {value.device for value in network.parameters() if value.device.type == "cuda"}
        with torch.random.fork_rng([device.index for device in devices]):  # constructors draw weights to be overwritten
            return self._apply(copy_network(network).requires_grad_(True), input_shape, calibration, on_progress)

    def _apply(
        self,
        network: nn.Module,
        input_shape: Sequence[int],
        calibration: Calibration | None,
        on_progress: Callable[[float], None],
    ) -> Compressed:
        """Compress a network in place."""
        split_attention(network)
        layers = {name: layer for name, layer in network.named_modules() if isinstance(layer, LAYERS)}
        if "" in layers:
            raise ValueError(
                f"Expected a network with named layers, but got a single {type(network).__name__}. Wrap it in "
                f"nn.Sequential."
            )
        check_patterns(self.rules, layers)
        obstacles = find_obstacles(network, layers)
        candidates, notes = self._find_candidates(layers, obstacles)
        try:
            before = measure_size(network, input_shape)
        except FORWARD_ERRORS as error:
            raise ValueError(
                f"Expected the network {type(network).__name__} to take samples of shape {tuple(input_shape)}, but it "
                f"failed: {first_line(error)}"
            ) from error
        if calibration is not None:
            teacher = copy.deepcopy(network).requires_grad_(False)
            free = [c for c in candidates if "target" in c.ranks]
            of_inputs = {c.name for c in free if needs_inputs(c.layer, c.ranks, self.fold)}
            moments = measure_layers(
                teacher, [name for name in layers if name not in obstacles], calibration.samples, seed=calibration.seed,
                of_inputs=of_inputs,
            )  # fmt: skip
        if calibration is None or self.target is None:
            chosen = self._choose(candidates, before.parameters)
        else:
            chosen = self._choose_by_function(candidates, before.parameters, moments)
        parameters_before = {name: count_parameters(layer) for name, layer in layers.items()}
        self._replace_layers(network, candidates, chosen, on_progress if calibration is None else lambda _: None)
        notes |= {candidate.name: "; ".join(candidate.notes) for candidate in candidates}
        try:
            after = measure_size(network, input_shape)
        except FORWARD_ERRORS as error:
            raise ValueError(
                f"Expected a network that calls its layers, but {type(network).__name__} failed after they were "
                f"factorised; it seems to read their weights directly ({first_line(error)}). Leave those layers out "
                f"of `rules`."
            ) from error
        rows = tuple(
            LayerReport(
                layer=name,
                kind=_kind(layer),
                in_rank=chosen[name][0] if name in chosen else None,
                out_rank=chosen[name][1] if name in chosen else None,
                parameters_before=parameters_before[name],
                parameters_after=count_parameters(network.get_submodule(name)),
                macs_before=before.layer_macs.get(name, 0),
                macs_after=after.layer_macs.get(name, 0),
                note=notes[name],
            )
            for name, layer in layers.items()
        )
        report = CompressionReport(rows, before.parameters, after.parameters, before.macs, after.macs)
        if calibration is None:
            return Compressed(network, report)
        fitted = reconstruct(teacher, network, moments, calibration, on_progress)
        return Compressed(network, report, tuple(fitted), measure_agreement(teacher, network, calibration.held_out))

    def _find_candidates(
        self, layers: Mapping[str, nn.Module], obstacles: Mapping[str, str]
    ) -> tuple[list[Candidate], dict[str, str]]:
        """Return the layers that can be factorised, and for the others by name the reason why not."""
        notes: dict[str, str] = {}
        candidates: list[Candidate] = []
        for name, layer in layers.items():
            rule = next((rule for rule in self.rules if rule.matches(name)), None)
            if rule is None:
                notes[name] = "unchanged: no rule matches it"
            elif name in obstacles:
                notes[name] = f"unchanged: {obstacles[name]}"
            else:
                candidates.append(Candidate(name, cast(Factorisable, layer), rule.sides))
        return candidates, notes

    def _choose_by_function(
        self, candidates: Sequence[Candidate], parameters: int, moments: Mapping[str, LayerMoments]
    ) -> dict[str, Ranks]:
        """Return the ranks of candidates that change the logits least; a candidate without ranks stays as it is."""
        assert self.target is not None
        fixed = {c.name: (c.fixed(0), c.fixed(1)) for c in candidates}
        given = {name: (a, b) for name, (a, b) in fixed.items() if a is not None and b is not None}
        layers = {c.name: c.layer for c in candidates if c.name not in given}
        if not layers:
            raise ValueError(_NO_CANDIDATES.format(self.target))
        saved = sum(
            count_parameters(c.layer) - factorised_parameters(c.layer, given[c.name], self.fold)
            for c in candidates
            if c.name in given and not self._enlarges(c.layer, given[c.name])
        )
        called = {name: layer for name, layer in layers.items() if name in moments}
        free = sum(count_parameters(layer) for layer in called.values())
        rest = parameters - saved - free
        try:
            chosen = allocate_ranks(called, fixed, moments, int(parameters / self.target) - rest, self.fold)
        except ValueError as error:
            unseen = [name for name in layers if name not in called]
            without = f" Layers without gradients or a batch cannot be used: {', '.join(unseen)}." if unseen else ""
            ones = {name: (fixed[name][0] or 1, fixed[name][1] or 1) for name in called}
            smallest = sum(
                min(count_parameters(c), factorised_parameters(c, ones[name], self.fold)) for name, c in called.items()
            )
            most = math.floor(100 * parameters / max(rest + smallest, 1)) / 100
            raise ValueError(
                f"Expected a `target` within reach, at most {most:.2f}, but {self.target} leaves too little: "
                f"{error}{without} Name more layers in `rules`, lower the target, or use fit='weights'."
            ) from error
        for candidate in candidates:
            if candidate.name in layers and candidate.name not in moments:
                candidate.notes.append("unchanged: the network does not call it, or not with gradients and a batch")
            elif candidate.name in layers and candidate.name not in chosen:
                candidate.notes.append("unchanged: the same parameters cost the logits less elsewhere")
        return {**given, **chosen}

    def _replace_layers(
        self,
        network: nn.Module,
        candidates: Sequence[Candidate],
        chosen: dict[str, Ranks],
        on_progress: Callable[[float], None],
    ) -> None:
        """Factorise the candidates; one that would grow gets a note and is removed from the chosen ranks."""
        total, done = sum(count_parameters(candidate.layer) for candidate in candidates), 0
        for candidate in candidates:
            on_progress(done / total)
            done += count_parameters(candidate.layer)
            if candidate.name not in chosen:
                continue
            ranks = chosen[candidate.name]
            if self._enlarges(candidate.layer, ranks):
                growth = factorised_parameters(candidate.layer, ranks, self.fold) - count_parameters(candidate.layer)
                candidate.notes.append(
                    f"unchanged: ranks in {ranks[0]}, out {ranks[1]} would add {growth} parameters or save none"
                )
                del chosen[candidate.name]
            else:
                new = factorise(candidate.layer, ranks, self.fold).train(candidate.layer.training)
                chosen[candidate.name] = new.ranks
                carry_hooks(candidate.layer, new)
                replace_layer(network, candidate.name, new)

    def _enlarges(self, layer: Factorisable, ranks: Ranks) -> bool:
        return self.when_larger == "keep" and factorised_parameters(layer, ranks, self.fold) >= count_parameters(layer)

    def _choose(self, candidates: Sequence[Candidate], parameters: int) -> dict[str, Ranks]:
        """Return the ranks of every candidate."""
        fixed = {c.name: (c.fixed(0), c.fixed(1)) for c in candidates}
        free = {(c.name, side): c.energy(side) for c in candidates for side in (0, 1) if fixed[c.name][side] is None}

        def at(share: float) -> dict[str, Ranks]:
            def rank(name: str, side: int) -> int:
                known = fixed[name][side]
                return known if known is not None else 1 + int(np.searchsorted(free[name, side][:-1], share))

            return {c.name: (rank(c.name, 0), rank(c.name, 1)) for c in candidates}

        def ratio(ranks: Mapping[str, Ranks]) -> float:
            saved = sum(
                count_parameters(c.layer) - factorised_parameters(c.layer, ranks[c.name], self.fold)
                for c in candidates
                if not self._enlarges(c.layer, ranks[c.name])
            )
            return parameters / (parameters - saved)

        if self.target is None:
            return at(1.0)
        # All shares at which a rank grows; the ratio decreases along them.
        shares = np.unique(np.concatenate([[0.0], *free.values()]))
        bound = ratio(at(shares[0]))
        if bound < self.target:
            if not free:
                raise ValueError(_NO_CANDIDATES.format(self.target))
            raise ValueError(
                f"Expected `target` of at most {math.floor(100 * bound) / 100:.2f}, the ratio with every rank 'target' "
                f"at 1, but got {self.target}. Name more layers in `rules`, or lower the target."
            )
        reached = bisect.bisect_right(shares, -self.target, key=lambda share: -ratio(at(share)))
        chosen = at(shares[reached - 1])
        return chosen if ratio(chosen) <= _OVERSHOOT * self.target else self._spend(candidates, free, chosen, ratio)

    def _spend(
        self,
        candidates: Sequence[Candidate],
        free: Mapping[tuple[str, int], np.ndarray],
        chosen: dict[str, Ranks],
        ratio: Callable[[Mapping[str, Ranks]], float],
    ) -> dict[str, Ranks]:
        """Raise free ranks one by one, smallest share first, while the target is still reached."""
        assert self.target is not None
        steps: set[tuple[str, tuple[int, ...]]] = set()
        for c in candidates:
            free_sides = tuple(side for side in (0, 1) if (c.name, side) in free)
            # A matrix has one rank, so raising one side of a dense layer alone keeps nothing more.
            together = takes_one_rank(c.layer, self.fold) and len(free_sides) == 2
            steps |= {(c.name, free_sides)} if together else {(c.name, (side,)) for side in free_sides}
        layers = {c.name: c.layer for c in candidates}
        while steps:
            step = min(steps, key=lambda s: (free[s[0], s[1][0]][chosen[s[0]][s[1][0]] - 1], s))
            name, raised = step
            ranks = (chosen[name][0] + (0 in raised), chosen[name][1] + (1 in raised))
            more = {**chosen, name: ranks}
            full = any(ranks[side] > len(free[name, side]) for side in raised)
            if full or self._enlarges(layers[name], ranks) or ratio(more) < self.target:
                steps.remove(step)
            else:
                chosen = more
        return chosen


def _kind(layer: nn.Module) -> str:
    """Return the kind of a layer in a report."""
    if isinstance(layer, nn.Linear):
        return "linear"
    if type(layer) in get_args(Convolution):
        return "transposed" if is_transposed(layer) else "conv"
    return type(layer).__name__
