"""Sums of metrics over an epoch, kept on the device of the metrics."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor


class MetricSums(dict[str, tuple[Tensor, int]]):
    """Name of a metric -> its weighted sum and its weight; a GPU is not waited for until means are taken.

    Metrics are scalars, or ``(K,)`` if K networks are trained in one module.
    """

    @torch.no_grad()
    def add(self, metrics: Mapping[str, Tensor], weight: int = 1) -> None:
        """Add the metrics of one batch, which are means over ``weight`` samples."""
        for name, value in metrics.items():
            total, total_weight = self.get(name, (0, 0))
            # The product is a copy: the next step may overwrite the metrics of a recorded one.
            self[name] = (value * weight + total, total_weight + weight)

    def take_means(self, networks: int, reduce: Callable[..., Any]) -> tuple[list[str], Tensor]:
        """Return the names of the metrics and their means ``(networks, names)`` over all processes, and drop the sums.

        A metric of all networks together counts for each. ``reduce`` is ``Strategy.reduce`` of Lightning.
        """
        names = list(self)
        sums = torch.stack([total.expand(networks) for total, _ in self.values()]).T
        weights = sums.new_tensor([weight for _, weight in self.values()])
        self.clear()
        # Processes may have had different numbers of samples: sums and weights are added up one by one.
        return names, reduce(sums, reduce_op="sum") / reduce(weights, reduce_op="sum")
