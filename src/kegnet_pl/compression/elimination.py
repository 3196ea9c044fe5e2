"""Order of the removal of channels: the smallest change of the logits per saved cost comes first."""

import math
from collections.abc import Iterator, Mapping, Sequence

from torch import Tensor, nn

from kegnet_pl.compression.cut import is_depthwise, width
from kegnet_pl.compression.groups import ChannelGroup
from kegnet_pl.compression.importance import Importance

_STEPS = 64
"""Steps in which the channels of a group are removed."""


class WidthCosts:
    """Costs of a network as a function of the channels of its groups.

    The cost of a convolution or dense layer is its first cost times the shares of inputs and outputs that are left. The
    cost of another layer, and of an attention without its layers, is its first cost times the share of channels left.

    Args:
        network: The network.
        groups: The groups.
        costs: Cost of every layer, parameter and attention by name.
        total: Cost of the whole network.
    """

    def __init__(
        self, network: nn.Module, groups: Sequence[ChannelGroup], costs: Mapping[str, float], total: float
    ) -> None:
        self.total = self.left = total
        self._costs = costs
        self._full = {
            (part.name, part.side): width(network, part.name, part.side) for group in groups for part in group.parts
        }
        self._now: dict[tuple[str, str], float] = dict(self._full)
        self._double = {name for name, _ in self._full if (name, "in") in self._full}
        depthwise = {name for name, side in self._full if side == "out" and is_depthwise(network.get_submodule(name))}
        assert not self._double & depthwise

    def saved(self, group: ChannelGroup, channels: int) -> float:
        """Return the cost that the removal of channels of a group saves now."""
        gone = self._removed(group, channels)
        return sum(
            self._costs.get(name, 0.0) * (self._share(name, {}) - self._share(name, gone))
            for name in {name for name, _ in gone}
        )

    def remove(self, group: ChannelGroup, channels: int) -> None:
        """Remove channels of a group."""
        self.left -= self.saved(group, channels)
        for key, gone in self._removed(group, channels).items():
            self._now[key] -= gone

    def _removed(self, group: ChannelGroup, channels: int) -> dict[tuple[str, str], float]:
        return {(part.name, part.side): channels * len(part.channels) / group.size for part in group.parts}

    def _share(self, name: str, gone: Mapping[tuple[str, str], float]) -> float:
        keys = [
            key for key in ((name, side) for side in ("in", "out", "heads", "0", "1", "2", "3")) if key in self._full
        ]
        return math.prod((self._now[key] - gone.get(key, 0.0)) / self._full[key] for key in keys)


def eliminate(importances: Sequence[Importance], costs: WidthCosts, round_to: int = 1) -> Iterator[tuple[int, Tensor]]:
    """Remove channels step by step, until no group can lose more.

    Args:
        importances: Costs of the channels of groups.
        costs: Costs that are saved.
        round_to: A layer keeps a multiple of this number of channels, or all.

    Yields:
        The index of a group, and the channels that are removed; ``costs.left`` is the cost of the network without them.
    """
    found: dict[int, tuple[float, Tensor]] = {}
    while True:
        best: tuple[float, int] | None = None
        for index, one in enumerate(importances):
            number = _count_units(one, round_to)
            if not number:
                continue
            if index not in found:
                found[index] = one.find(number)
            saved = costs.saved(one.group, number * one.group.per_unit)
            if saved > 0 and (best is None or found[index][0] / saved < best[0]):
                best = found[index][0] / saved, index
        if best is None:
            return
        _, channels = found.pop(best[1])
        importances[best[1]].remove(channels)
        costs.remove(importances[best[1]].group, len(channels))
        yield best[1], channels


def _count_units(one: Importance, round_to: int) -> int:
    """Return the number of heads, or of channels of every block, that a group may lose next; 0 if none."""
    group = one.group
    left = int(one.alive.sum()) // group.per_unit
    step = max(1, group.size // group.per_unit // _STEPS)
    for rest in range(left - step, 0, -1):
        if group.heads is not None or rest * group.per_unit % round_to == 0:
            return left - rest
    return left - 1 if step > 1 and left > 1 and (group.heads is not None or round_to == 1) else 0
