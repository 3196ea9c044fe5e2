"""The recorder that collects inputs or outputs of named layers through forward hooks."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal, Self

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


class LayerRecorder:
    """Collects a value from named layers each time a network is called.

    The layers have hooks between :meth:`open` and :meth:`close`; the hooks do nothing unless ``recording`` is true.
    For torch.compile, open the recorder before the first call and leave it open: it traces only hooks that exist. As a
    context manager, the recorder opens its hooks and records, and closes them at the end; ``values`` remain.

    Args:
        network: The network; only its hooks are changed.
        layers: Names of its layers; each takes a tensor as its first input and returns a tensor.
        collect: Called with the layer's name and its tensor, in the order in which layers compute; returns the value.
        source: Tensor for ``collect``: the first input of a layer, before it computes, or its output.
        replace: Called after ``collect`` with the same arguments. The tensor that it returns replaces the layer's
            input or output; None keeps it.

    Attributes:
        values: Results of ``collect`` by name of layer; those of the last call if a layer is called several times.
        recording: True if calls of the network are recorded.
    """

    def __init__(
        self,
        network: nn.Module,
        layers: Sequence[str],
        collect: Callable[[str, Tensor], Any],
        *,
        source: Literal["input", "output"],
        replace: Callable[[str, Tensor], Tensor | None] | None = None,
    ) -> None:
        self.network = network
        self.layers = tuple(layers)
        self.values: dict[str, Any] = {}
        self.recording = False
        self._collect = collect
        self._replace = replace
        self._source = source
        self._handles: list[RemovableHandle] = []

    def open(self) -> None:
        """Register hooks on the current layers of these names; earlier hooks of this recorder are removed."""
        self.close()
        for name in self.layers:
            layer = self.network.get_submodule(name)
            if self._source == "input":
                handle = layer.register_forward_pre_hook(functools.partial(self._before, name))
            else:
                handle = layer.register_forward_hook(functools.partial(self._after, name))
            self._handles.append(handle)

    def close(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def reset(self) -> None:
        """Stop recording and drop the values."""
        self.recording = False
        self.values.clear()

    def missing(self) -> list[str]:
        """Return the names of layers without a value, in their order."""
        return [name for name in self.layers if name not in self.values]

    def __enter__(self) -> Self:
        self.open()
        self.recording = True
        return self

    def __exit__(self, *_: object) -> None:
        self.recording = False
        self.close()

    def _before(self, name: str, module: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor | None:  # noqa: ARG002
        return self._record(name, inputs[0])

    def _after(self, name: str, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:  # noqa: ARG002
        return self._record(name, output)

    def _record(self, name: str, tensor: Tensor) -> Tensor | None:
        if not self.recording:
            return None
        self.values[name] = self._collect(name, tensor)
        return None if self._replace is None else self._replace(name, tensor)
