"""A network that also returns what some of its layers return."""

import fnmatch
from collections.abc import Sequence

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

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
                "Expected layers of batch norm, but found none. Name others: student.features.layers=[...]."
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
        network: Returns a tensor; it is not copied.
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

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return the network's output, and the layers' in their order."""
        seen: dict[str, Tensor] = {}

        def watch(name: str) -> RemovableHandle:
            def keep(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:  # noqa: ARG001
                seen[name] = output

            return self.network.get_submodule(name).register_forward_hook(keep)

        handles = [watch(name) for name in self.layers]
        try:
            output: Tensor = self.network(x)
        finally:
            for handle in handles:
                handle.remove()
        return output, [seen[name] for name in self.layers]
