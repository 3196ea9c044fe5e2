"""A network that also returns what some of its layers return."""

import fnmatch
import functools
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from kegnet_pl.networks.batch_norm import norm_layers


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
                "Expected layers of batch norm, but found none. Name others: `feature_distillation_layers`, or on the command line "
                "student.feature_distillation.layers=[...]."
            )
        return names
    everything = [name for name, _ in network.named_modules() if name]
    for pattern in patterns:
        if not fnmatch.filter(everything, pattern):
            raise ValueError(f"Expected a layer that fits {pattern!r}, but there are {', '.join(everything)}.")
    return tuple(name for name in everything if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns))


class WatchedModule(nn.Module):
    """A network, called as it is, that returns outputs of its layers beside its own.

    What overwrites an output where it lies (``ReLU(inplace=True)``, ``out += identity``) is given a copy: what is
    returned is what the layer has returned.

    Args:
        network: Returns a tensor; it is not copied. :meth:`close` takes off the hooks that watch it.
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
        self._copies: dict[str, Tensor] = {}
        self._overwritten: set[str] | None = None
        self._watching = False
        self._hooks: list[RemovableHandle] = []
        self.open()

    def open(self) -> None:
        """Watch the layers that the network has now; torch.compile follows hooks that are there before it looks."""
        self.close()
        for name in self.layers:
            layer = self.network.get_submodule(name)
            self._hooks.append(layer.register_forward_hook(functools.partial(self._keep, name)))

    def close(self) -> None:
        """Leave the network as it was."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    def _keep(self, name: str, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:  # noqa: ARG002
        if not self._watching:
            return None
        self._seen[name] = output
        if self._overwritten is not None and name not in self._overwritten:
            return None
        self._copies[name] = output.clone()
        return self._copies[name]

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return the network's output, and the layers' in their order."""
        self._watching = True
        try:
            output: Tensor = self.network(x)
            if self._overwritten is None and not torch.compiler.is_compiling():
                # The first call has copied all, and shows which copies are needed.
                self._overwritten = {name for name, copy in self._copies.items() if copy._version > 0}
            left_out = [name for name in self.layers if name not in self._seen]
            if left_out:
                raise ValueError(
                    f"Expected a network that passes the layers it is watched at, but it leaves out "
                    f"{', '.join(left_out)} (of a head that only training has?). Name others: `feature_distillation_layers`, or on "
                    f"the command line student.feature_distillation.layers=[...]."
                )
            return output, [self._seen[name] for name in self.layers]
        finally:
            self._watching = False
            self._seen.clear()
            self._copies.clear()
