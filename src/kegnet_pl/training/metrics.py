"""Sums of metrics over an epoch, kept on the device of the metrics."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor


class MetricSums:
    """Weighted sums of metrics; a GPU is not waited for until their means are taken.

    Metrics are scalars, or ``(K,)`` where K networks are trained in one module.
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._weights: dict[str, int] = {}

    def __bool__(self) -> bool:
        return bool(self._sums)

    def clear(self) -> None:
        """Drop the sums."""
        self._sums, self._weights = {}, {}

    @torch.no_grad()
    def add(self, metrics: Mapping[str, Tensor], weight: int = 1) -> None:
        """Add the metrics of one batch, which are means over ``weight`` samples."""
        for name, value in metrics.items():
            value = value * weight  # a copy: the next step may overwrite the metrics of a recorded one
            self._sums[name] = self._sums[name] + value if name in self._sums else value
            self._weights[name] = self._weights.get(name, 0) + weight

    def take_means(self, networks: int, reduce: Callable[..., Any]) -> tuple[list[str], Tensor]:
        """Return the names of the metrics and their means ``(networks, names)`` over all processes, and drop the sums.

        A metric of all networks together counts for each. ``reduce`` is ``Strategy.reduce`` of Lightning.
        """
        names = list(self._sums)
        sums = torch.stack([value.expand(networks) for value in self._sums.values()]).T
        weights = sums.new_tensor([self._weights[name] for name in names])
        self.clear()
        # Processes may have had different numbers of samples: sums and weights are added up one by one.
        return names, reduce(sums, reduce_op="sum") / reduce(weights, reduce_op="sum")
