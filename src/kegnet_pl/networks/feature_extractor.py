"""A network that also returns outputs of its layers, and the choice of layers by patterns."""

import fnmatch
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kegnet_pl.networks.batch_norm import norm_layers
from kegnet_pl.networks.hooks import LayerRecorder
from kegnet_pl.networks.kept import Kept, select_kept


def match_layers(network: nn.Module, patterns: Sequence[str] | None) -> tuple[str, ...]:
    """Return the names of layers that match shell patterns, in the order of the network.

    None stands for all batch-norm layers.

    Raises:
        ValueError: If a pattern matches no layer.
    """
    if patterns is None:
        names = tuple(norm_layers(network))
        if not names:
            raise ValueError(
                "Expected batch-norm layers, but got none. Name other layers in `feature_distillation_layers`, or on "
                "the command line in 'student.feature_distillation.layers=[...]'."
            )
        return names
    all_names = [name for name, _ in network.named_modules() if name]
    for pattern in patterns:
        if not fnmatch.filter(all_names, pattern):
            raise ValueError(f"Expected a layer that matches {pattern!r}, but got {', '.join(all_names)}.")
    return tuple(name for name in all_names if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns))


class FeatureExtractor(nn.Module):
    """A network that returns its output and the outputs of some of its layers.

    The features are the original outputs of the layers. If the network overwrites an output in place
    (``ReLU(inplace=True)``, ``out += identity``), it works on a copy.

    Args:
        network: Returns a tensor. It is not copied, and keeps the hooks until :meth:`close` removes them.
        layers: Names of layers that return tensors.
        kept: Channels of the layers to return, where a pruned network has not kept all.

    Raises:
        ValueError: If a layer does not exist.
    """

    def __init__(self, network: nn.Module, layers: Sequence[str], kept: Kept | None = None) -> None:
        super().__init__()
        missing = set(layers) - {name for name, _ in network.named_modules()}
        if missing:
            raise ValueError(f"Expected a network with layers {', '.join(sorted(missing))}, but it has no such layers.")
        self.network = network
        self.layers = tuple(layers)
        self._kept = kept or {}
        self._overwritten: set[str] | None = None
        self._recorder = LayerRecorder(network, self.layers, self._collect, source="output", replace=self._copy_of)
        self.open()

    def open(self) -> None:
        """Register hooks on the current layers of the network; torch.compile traces only hooks that exist."""
        self._recorder.open()

    def close(self) -> None:
        """Remove the hooks from the network."""
        self._recorder.close()

    def _collect(self, name: str, output: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return an output, and its copy for the network to work on if the network may overwrite it."""
        copied = self._overwritten is None or name in self._overwritten
        return output, output.clone() if copied else None

    def _copy_of(self, value: tuple[Tensor, Tensor | None]) -> Tensor | None:
        return value[1]

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return the network's output, and the outputs of the layers in their order, one for each call of a layer.

        Raises:
            ValueError: If the network does not call one of the layers.
        """
        output, values = self._recorder.call_each(x)
        if self._overwritten is None and not torch.compiler.is_compiling():
            # The first call copies every output; the versions of the copies show which copies are needed.
            self._overwritten = {name for name, calls in values.items() if any(copy._version > 0 for _, copy in calls)}
        missing = [name for name in self.layers if name not in values]
        if missing:
            raise ValueError(
                f"Expected a network that calls the layers for feature distillation, but it skips "
                f"{', '.join(missing)} (an auxiliary head for training?). Name other layers in "
                f"`feature_distillation_layers`, or on the command line in 'student.feature_distillation.layers=[...]'."
            )
        return output, [self._select(name, value) for name in self.layers for value, _ in values[name]]

    def _select(self, name: str, values: Tensor) -> Tensor:
        """Return the kept channels of a layer's output."""
        dense = isinstance(self.network.get_submodule(name), nn.Linear | nn.LayerNorm)
        return select_kept(self._kept, name, values, dim=values.dim() - 1 if dense else 1)
