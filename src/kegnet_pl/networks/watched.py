"""A network that also returns what some of its layers return."""

import fnmatch
import functools
from collections.abc import Sequence

from torch import Tensor, nn

from kegnet_pl.networks.statistics import norm_layers


def layers_named(network: nn.Module, patterns: Sequence[str] | None) -> tuple[str, ...]:
    """Return the names of layers that patterns, as of a shell, fit.

    Args:
        network: The network.
        patterns: Such as ``conv3`` or ``layers3.*``; None for all batch-norm layers.

    Raises:
        ValueError: If a pattern fits none.
    """
    if patterns is None:
        names = tuple(norm_layers(network))
        if not names:
            raise ValueError(
                "Expected layers of batch norm, but found none. Name others: `feature_layers`, or on the command line "
                "student.features.layers=[...]."
            )
        return names
    everything = [name for name, _ in network.named_modules() if name]
    for pattern in patterns:
        if not fnmatch.filter(everything, pattern):
            raise ValueError(f"Expected a layer that fits {pattern!r}, but there are {', '.join(everything)}.")
    return tuple(name for name in everything if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns))


class WatchedModule(nn.Module):
    """A network, called as it is, that returns outputs of its layers beside its own.

    Args:
        network: Returns a tensor; it is not copied, and keeps the hooks that watch it.
        layers: Names of layers that return tensors.

    Raises:
        ValueError: If the network has no layer of such a name.
    """

    def __init__(self, network: nn.Module, layers: Sequence[str]) -> None:
        super().__init__()
        missing = set(layers) - {name for name, _ in network.named_modules()}
        if missing:
            raise ValueError(
                f"Expected a network with layers {', '.join(sorted(missing))}, but it has none of that name."
            )
        self.network = network
        self.layers = tuple(layers)
        self._seen: dict[str, Tensor] = {}
        self._watching = False
        for name in self.layers:
            # Once and for all: torch.compile follows hooks that are there before it looks.
            network.get_submodule(name).register_forward_hook(functools.partial(self._keep, name))

    def _keep(self, name: str, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:  # noqa: ARG002
        if self._watching:
            self._seen[name] = output

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return the network's output, and the layers' in their order."""
        self._watching = True
        try:
            output: Tensor = self.network(x)
            return output, [self._seen[name] for name in self.layers]
        finally:
            self._watching = False
            self._seen.clear()
