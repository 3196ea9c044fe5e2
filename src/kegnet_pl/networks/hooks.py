"""The recorder that collects inputs or outputs of named layers through forward hooks."""

import functools
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from contextlib import suppress
from typing import Any, Literal, Self, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

Hook = TypeVar("Hook")

FORWARD_HOOKS = ("_forward_hooks", "_forward_pre_hooks")
"""Attributes of a module with its forward hooks."""

_OWN = ("kegnet_pl.", "torch.")
"""Packages with hooks that are part of the computation of a network (weight_norm, pruning, :class:`Answers`)."""


class _Stop(BaseException):
    """Ends a forward pass; not an Exception, so that no network catches it."""


class LayerRecorder:
    """Collects a value from named layers when it calls a network.

    The layers have hooks between :meth:`open` and :meth:`close`, or within the recorder as a context; the hooks do
    nothing outside :meth:`call`. For torch.compile, open the recorder before the first call and leave it open: it
    traces only hooks that exist.

    Args:
        network: The network; only its hooks are changed.
        layers: Names of its layers; each takes a tensor as its first input and returns a tensor. An input that is given
            by name is not seen.
        collect: Called with the layer's name and its tensor, in the order in which layers compute; returns the value.
        source: Tensor for ``collect``: the first input of a layer, before it computes, its output, or both as a pair.
        replace: Takes a collected value, returns the tensor that replaces the layer's input or output; None keeps it.

    Attributes:
        values: Values of the present call by name of layer, one for each call of the layer; None outside :meth:`call`.
    """

    def __init__(
        self,
        network: nn.Module,
        layers: Sequence[str],
        collect: Callable[[str, Any], Any],
        *,
        source: Literal["input", "output", "both"],
        replace: Callable[[Any], Tensor | None] | None = None,
    ) -> None:
        self.network = network
        self.layers = tuple(layers)
        self.values: dict[str, list[Any]] | None = None
        self._collect = collect
        self._replace = replace
        self._source = source
        self._stop = False
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

    def call(self, x: Tensor) -> tuple[Tensor, dict[str, Any]]:
        """Return the network's output, and the value of the last call of each layer that it called."""
        output, values = self.call_each(x)
        return output, {name: found[-1] for name, found in values.items()}

    def call_each(self, x: Tensor) -> tuple[Tensor, dict[str, list[Any]]]:
        """Return the network's output, and the values of all calls of the layers that it called, in their order."""
        self.values = {}
        try:
            return self.network(x), self.values
        finally:
            self.values = None

    def call_first(self, x: Tensor) -> Any:
        """Return the value of the first call of a layer, None if it is not called; the forward pass stops there."""
        self.values, self._stop = {}, True
        try:
            self.network(x)
        except _Stop:
            return next(iter(self.values.values()))[0]
        finally:
            self.values, self._stop = None, False
        return None

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _before(self, name: str, module: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor | None:  # noqa: ARG002
        return self._record(name, inputs[0]) if inputs else None

    def _after(self, name: str, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:  # noqa: ARG002
        if self._source == "output":
            return self._record(name, output)
        return self._record(name, (inputs[0], output)) if inputs else None

    def _record(self, name: str, value: Any) -> Tensor | None:
        if self.values is None:
            return None
        collected = self._collect(name, value)
        self.values.setdefault(name, []).append(collected)
        if self._stop:
            raise _Stop
        return None if self._replace is None else self._replace(collected)


def find_hook(hooks: Mapping[int, Any], kind: type[Hook]) -> Hook | None:
    """Return the first hook of a class among those of a network, None if there is none."""
    return next((hook for hook in hooks.values() if isinstance(hook, kind)), None)


def remove_hooks(hooks: MutableMapping[int, Any], kind: type) -> None:
    """Remove the hooks of a class from those of a network."""
    for key in [key for key, hook in hooks.items() if isinstance(hook, kind)]:
        del hooks[key]


def hook_input(network: nn.Module, hook: Callable[[nn.Module, Any], Any]) -> None:
    """Let a function of network and inputs replace the inputs of a network."""
    network.register_forward_pre_hook(hook)


def hook_output(network: nn.Module, hook: Callable[[nn.Module, Any, Any], Any]) -> None:
    """Let a function of network, inputs and output replace the output of a network."""
    network.register_forward_hook(hook)


def carry_hooks(old: nn.Module, new: nn.Module) -> None:
    """Copy the forward hooks of a layer to its replacement, since they are part of the computation."""
    for key, hook in old._forward_pre_hooks.items():
        new.register_forward_pre_hook(hook, with_kwargs=key in old._forward_pre_hooks_with_kwargs)
    for key, hook in old._forward_hooks.items():
        with_kwargs, always = key in old._forward_hooks_with_kwargs, key in old._forward_hooks_always_called
        new.register_forward_hook(hook, with_kwargs=with_kwargs, always_call=always)


def find_calls(modules: Mapping[str, nn.Module], call: Callable[[], object]) -> list[str]:
    """Return the names of the modules that a function calls; its errors are ignored. Programs of TorchScript have none.

    Args:
        modules: Name -> module.
        call: The function.
    """
    called: list[str] = []
    handles = [
        module.register_forward_pre_hook(lambda *_, name=name: called.append(name))
        for name, module in modules.items()
        if not isinstance(module, torch.jit.ScriptModule)
    ]
    try:
        with suppress(Exception):
            call()
    finally:
        for handle in handles:
            handle.remove()
    return called


def foreign_hooks(network: nn.Module) -> list[str]:
    """Return the names of the forward hooks of a network that neither torch, this package nor its own class added."""
    inside = {id(module) for module in network.modules()}
    found = []
    for name, module in network.named_modules():
        for hook in (hook for kind in FORWARD_HOOKS for hook in getattr(module, kind, {}).values()):
            function = getattr(hook, "func", hook)  # of a functools.partial
            owner = getattr(function, "__self__", None)
            code = getattr(function, "__module__", None) or type(function).__module__
            if id(owner) not in inside and not f"{code}.".startswith(_OWN):
                title = getattr(function, "__qualname__", type(function).__qualname__)
                found.append(f"{title} of {name}" if name else title)
    return found
