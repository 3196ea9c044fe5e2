"""Which layers to compress, and how far."""

import copy
import fnmatch
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from threadpoolctl import threadpool_limits
from torch import nn

from kegnet_pl.compression.candidates import Candidate, factorised_parameters
from kegnet_pl.compression.report import CompressionReport, LayerReport, count_parameters, measure_size
from kegnet_pl.compression.rules import Rule
from kegnet_pl.compression.tucker import Factorisable, Ranks, factorise, replace_layer
from kegnet_pl.networks.validation import FORWARD_ERRORS
from kegnet_pl.runtime.errors import first_line

WhenLarger = Literal["keep", "compress"]


@dataclass(frozen=True)
class Compressed:
    """A compressed network and its books.

    Attributes:
        network: The smaller network, a copy; it shares no tensor with the original.
        report: What every layer cost before and after.
    """

    network: nn.Module
    report: CompressionReport

    def __repr__(self) -> str:
        before, after = self.report.parameters_before, self.report.parameters_after
        return f"Compressed({type(self.network).__name__}, {before:,} -> {after:,} parameters, {before / after:.2f}x)"


_OVERSHOOT = 1.05


class CompressionPlan:
    """Names layers and ranks, and makes a smaller network of any network.

    Args:
        rules: The first rule that matches a layer decides; layers that none matches stay as they are.
        target: Compression ratio of the whole network (parameters before / after), above 1, which the sides of rank
            ``"target"`` are chosen for: they all keep the same share of their squared singular values, the largest
            share that reaches the ratio. Where that overshoots the ratio by more than a twentieth (one rank more of
            one layer would be too much), what is left is spent on other layers, those first that keep least.
        when_larger: What to do with a layer that its factorisation would enlarge: ``"keep"`` it (with a note in the
            report) or ``"compress"`` it all the same, as the paper does with the outer layers of its MLP.

    Raises:
        ValueError: If there is no rule, ``when_larger`` is unknown, or ``target`` and ``"target"`` ranks do not come
            together.
    """

    def __init__(self, rules: Sequence[Rule], target: float | None = None, when_larger: WhenLarger = "keep") -> None:
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

    @threadpool_limits.wrap(limits=1)  # type: ignore[untyped-decorator]  # many small decompositions: threads only wait
    def apply(self, network: nn.Module, input_shape: Sequence[int]) -> Compressed:
        """Compress a copy of a network.

        Args:
            network: Any network; it stays as it is.
            input_shape: Shape of one sample, ``(C, H, W)`` or ``(features,)``.

        Returns:
            The smaller network and its report; all its weights can be trained, also where the original's are frozen.

        Raises:
            ValueError: If a pattern matches no convolution or dense layer, a rank is out of range, the target is out of
                reach, or weights are not finite.
        """
        broken = [name for name, weight in network.named_parameters() if not bool(weight.isfinite().all())]
        if broken:
            raise ValueError(f"Expected finite weights, but there are NaN or infinite ones in {', '.join(broken[:8])}.")
        devices = {value.device for value in network.parameters() if value.device.type == "cuda"}
        with torch.random.fork_rng([device.index for device in devices]):  # new layers draw weights, for nothing
            return self._apply(copy.deepcopy(network).requires_grad_(True), input_shape)

    def _apply(self, network: nn.Module, input_shape: Sequence[int]) -> Compressed:
        layers = {
            name: layer
            for name, layer in network.named_modules()
            if isinstance(layer, nn.Linear | nn.modules.conv._ConvNd)
        }
        if "" in layers:
            raise ValueError(
                f"Expected a network with layers in it, but got a bare {type(network).__name__}: wrap it in "
                f"nn.Sequential."
            )
        self._check_patterns(layers)
        itself = {
            id(layer)
            for module in network.modules()
            if isinstance(module, nn.TransformerEncoderLayer)
            for layer in module.modules()
        }
        rule_of = {name: next((rule for rule in self.rules if rule.matches(name)), None) for name in layers}

        uses = Counter(id(p) for module in network.modules() for p in module.parameters(recurse=False))
        notes: dict[str, str] = {}
        candidates: list[Candidate] = []
        for name, layer in layers.items():
            rule = rule_of[name]
            if rule is None:
                notes[name] = "left alone: no rule names it"
            elif not isinstance(layer, Factorisable) or type(layer) not in (nn.Conv2d, nn.Linear):
                # Subclasses may use their weight in other ways than by a call.
                notes[name] = f"left alone: {type(layer).__name__} cannot be factorised here"
            elif id(layer) in itself:
                notes[name] = "left alone: TransformerEncoderLayer reads its weight itself"
            elif uses[id(layer.weight)] > 1:
                notes[name] = "left alone: its weight is shared with another layer"
            elif isinstance(layer, nn.Conv2d) and layer.groups != 1:
                notes[name] = f"left alone: grouped convolution (groups={layer.groups})"
            else:
                candidates.append(Candidate(name, layer, rule.sides))

        chosen = self._choose(candidates, count_parameters(network))
        before = measure_size(network, input_shape)
        parameters_before = {name: count_parameters(layer) for name, layer in layers.items()}
        for candidate in candidates:
            ranks = chosen[candidate.name]
            if self._enlarges(candidate.layer, ranks):
                larger = factorised_parameters(candidate.layer, ranks) - parameters_before[candidate.name]
                candidate.notes.append(
                    f"left alone: ranks in {ranks[0]}, out {ranks[1]} would add {larger} parameters or save none"
                )
                del chosen[candidate.name]
            else:
                new = factorise(candidate.layer, ranks).train(candidate.layer.training)
                replace_layer(network, candidate.name, new)
            notes[candidate.name] = "; ".join(candidate.notes)

        try:
            after = measure_size(network, input_shape)
        except FORWARD_ERRORS as error:
            raise ValueError(
                f"Expected a network that calls its layers, but {type(network).__name__} failed once they were "
                f"factorised, as it seems to read their weights itself ({first_line(error)}). Leave those layers out "
                f"of `rules`."
            ) from error
        rows = tuple(
            LayerReport(
                layer=name,
                kind={nn.Conv2d: "conv", nn.Linear: "linear"}.get(type(layer), type(layer).__name__),
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
        return Compressed(
            network, CompressionReport(rows, before.parameters, after.parameters, before.macs, after.macs)
        )

    def _check_patterns(self, layers: Mapping[str, nn.Module]) -> None:
        if not layers:
            raise ValueError("Expected a network with convolutions or dense layers, but it has none to compress.")
        for rule in self.rules:
            for pattern in rule.patterns:
                if not fnmatch.filter(layers, pattern):
                    raise ValueError(
                        f"Expected `layers` to name layers of the network, but {pattern!r} matches none of: "
                        f"{', '.join(layers)}."
                    )

    def _enlarges(self, layer: Factorisable, ranks: Ranks) -> bool:
        return self.when_larger == "keep" and factorised_parameters(layer, ranks) >= count_parameters(layer)

    def _choose(self, candidates: Sequence[Candidate], parameters: int) -> dict[str, Ranks]:
        """Ranks of every candidate."""
        fixed = {c.name: (c.fixed(0), c.fixed(1)) for c in candidates}
        free = {(c.name, side): c.energy(side) for c in candidates for side in (0, 1) if fixed[c.name][side] is None}

        def at(share: float) -> dict[str, Ranks]:
            def rank(name: str, side: int) -> int:
                known = fixed[name][side]
                return known if known is not None else 1 + int(np.searchsorted(free[name, side][:-1], share))

            return {c.name: (rank(c.name, 0), rank(c.name, 1)) for c in candidates}

        def ratio(ranks: Mapping[str, Ranks]) -> float:
            saved = sum(
                count_parameters(c.layer) - factorised_parameters(c.layer, ranks[c.name])
                for c in candidates
                if not self._enlarges(c.layer, ranks[c.name])
            )
            return parameters / (parameters - saved)

        if self.target is None:
            return at(1.0)
        # Every share at which some rank grows; the ratio falls from one to the next.
        shares = np.unique(np.concatenate([[0.0], *free.values()]))
        low, high = 0, len(shares) - 1
        most = ratio(at(shares[0]))
        if most < self.target:
            if not free:
                raise ValueError(
                    f"Expected layers that can be factorised, to reach target={self.target}, but found none: plain "
                    f"convolutions (without groups) and dense layers can, if their weights are not shared."
                )
            raise ValueError(
                f"Expected `target` of at most {math.floor(100 * most) / 100:.2f}, the ratio with every rank 'target' "
                f"at 1, but got {self.target}. Name more layers in `rules`, or lower the target."
            )
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if ratio(at(shares[middle])) >= self.target else (low, middle - 1)
        chosen = at(shares[low])
        return chosen if ratio(chosen) <= _OVERSHOOT * self.target else self._spend(candidates, free, chosen, ratio)

    def _spend(
        self,
        candidates: Sequence[Candidate],
        free: Mapping[tuple[str, int], np.ndarray],
        chosen: dict[str, Ranks],
        ratio: Callable[[Mapping[str, Ranks]], float],
    ) -> dict[str, Ranks]:
        """Raise free ranks one by one, of the side that keeps least, as long as the target is still reached."""
        assert self.target is not None
        steps: set[tuple[str, tuple[int, ...]]] = set()
        for c in candidates:
            mine = tuple(side for side in (0, 1) if (c.name, side) in free)
            # A matrix has one rank: a side more than the other would keep nothing.
            together = isinstance(c.layer, nn.Linear) and len(mine) == 2
            steps |= {(c.name, mine)} if together else {(c.name, (side,)) for side in mine}
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
