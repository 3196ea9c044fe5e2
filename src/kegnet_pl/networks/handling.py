"""Handling of modules from users: copies, modes, moves and frozen weights.

A user's class may override ``train``, ``eval``, ``to`` or ``requires_grad_``, and may not return the module as torch's
methods do. Only this module calls them, and it ignores their return values.
"""

import copy
import inspect
import types
import warnings
from collections.abc import Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from kegnet_pl.networks.hooks import FORWARD_HOOKS, find_calls, foreign_hooks
from kegnet_pl.runtime.errors import first_line

Module = TypeVar("Module", bound=nn.Module)

_MODES = ("mode", "training", "is_training", "train_mode")
"""Names of the argument of ``train`` in classes of users."""

_BACKWARD_HOOKS = ("_backward_hooks", "_backward_pre_hooks")


def set_mode(network: Module, training: bool) -> Module:
    """Set a network to training or evaluation mode, and return it.

    A class of the user may have its own ``train`` or ``eval``, which keeps some layers in another mode. It is called if
    it has the same arguments as torch's method. Otherwise, the mode of each module is set here, and also if the method
    fails or ``eval`` leaves the network in training mode.
    """
    if not training and type(network).eval is not nn.Module.eval and _are_modes(network, "eval"):
        _call(network.eval)
    else:
        _set_mode(network, training)
    if network.training and not training:
        for module in network.modules():
            module.training = False
    return network


def _set_mode(module: nn.Module, training: bool) -> None:
    own = type(module).train is not nn.Module.train and _are_modes(module, "train")
    if own and _call(module.train, training):
        return
    module.training = training
    for child in module.children():
        _set_mode(child, training)


def _call(method: Any, *arguments: bool) -> bool:
    """Call a user's method; return False if it fails."""
    try:
        method(*arguments)
    except Exception:  # any, as it is the user's code
        return False
    return True


def _are_modes(module: nn.Module, name: str) -> bool:
    """Return True if a method, and ``train`` of all layers, which it may call, have the arguments of torch's."""
    return _is_mode(module, name) and all(_is_mode(layer, "train") for layer in module.modules())


def _is_mode(module: nn.Module, name: str) -> bool:
    """Return True if a method ``train`` has one argument, which is a mode, or a method ``eval`` none."""
    if getattr(type(module), name, None) is getattr(nn.Module, name):
        return True
    if not inspect.isroutine(inspect.getattr_static(module, name, None)):  # such as a property
        return False
    try:
        signature = inspect.signature(getattr(module, name))
        signature.bind(*([True] if name == "train" else []))
    except (TypeError, ValueError):
        return False
    if name == "eval":
        return True
    first = next(iter(signature.parameters.values()))
    if first.kind is inspect.Parameter.VAR_POSITIONAL:
        return first.name == "args"
    is_flag = isinstance(first.default, bool) or first.annotation in (bool, "bool")
    return first.name == "mode" or (is_flag and first.name in _MODES)


def move(network: Module, *place: Any, **options: Any) -> Module:
    """Move a network to a device, a data type or a memory format, as ``network.to`` does, and return it."""
    network.to(*place, **options)
    return network


def to_float32(network: Module) -> Module:
    """Convert the weights and buffers of a network to float32, complex ones to complex64, and return it.

    ``network.to(torch.float32)`` would discard the imaginary parts of complex weights.
    """
    network.float()
    for value in (*network.parameters(), *network.buffers()):
        if value.is_complex():
            value.data = value.data.to(torch.complex64)
    return network


def freeze(network: Module) -> Module:
    """Turn off the gradients of all weights of a network, and return it."""
    for weight in network.parameters():
        weight.requires_grad_(False)
    return network


def unfreeze_frozen(network: Module) -> bool:
    """Make all weights of a network trainable if all are frozen; return True in this case.

    If only some weights are frozen, they stay frozen: the user chose them. A network with only frozen weights is in use
    as a teacher. Integer weights are skipped, since they have no gradients.
    """
    weights = [weight for weight in network.parameters() if weight.is_floating_point() or weight.is_complex()]
    frozen = bool(weights) and not any(weight.requires_grad for weight in weights)
    if frozen:
        for weight in weights:
            weight.requires_grad_()
    return frozen


def copy_network(network: Module) -> Module:
    """Return a copy of a network that shares nothing with it.

    Tensors that are results of a computation (an activation that the network keeps, a weight that weight_norm has
    computed) are copied by value. Backward hooks are not copied: they belong to the training of the original.

    Raises:
        ValueError: If it cannot be copied; the message names the attribute that fails.
    """
    memo: dict[int, Any] = {id(value): value.detach().clone() for value in _computed_tensors(network)}
    try:
        copied = copy.deepcopy(network, memo)
    except Exception as error:  # any, as it is the user's code
        obstacle = _find_obstacle(network)
        where = "" if obstacle is None else f" at {obstacle}"
        raise ValueError(
            f"Expected a network {type(network).__name__} that copy.deepcopy can copy, but it failed{where}: "
            f"{first_line(error).rstrip('.')}. Remove that attribute, such as a lock, an open file or a hook, or write "
            f"a method __deepcopy__ that does not copy it."
        ) from error
    own = {id(value) for value in network.parameters()}
    if not isinstance(copied, nn.Module) or copied is network or any(id(p) in own for p in copied.parameters()):
        raise ValueError(
            f"Expected copy.deepcopy to return a new {type(network).__name__} with its own weights, but its "
            f"method __deepcopy__ returned {'itself' if copied is network else 'something else'}. Remove __deepcopy__, "
            f"or let it copy the weights."
        )
    copies = dict(zip(map(id, network.modules()), copied.modules(), strict=False))
    for module in copied.modules():
        for name in _BACKWARD_HOOKS:
            getattr(module, name, {}).clear()
        for values in (vars(module), *(getattr(module, name, {}) for name in FORWARD_HOOKS)):
            for key, value in list(values.items()):
                values[key] = _rebind(value, copies)
    return copied


def _rebind(value: Any, copies: dict[int, nn.Module]) -> Any:
    """Return a function whose closure holds the copies instead of the modules; copy.deepcopy does not copy functions.

    A ``forward`` that was replaced by a lambda, or decorated on the instance, has such a closure.
    """
    if inspect.ismethod(value) and id(value.__self__) in copies:
        return types.MethodType(value.__func__, copies[id(value.__self__)])
    if isinstance(value, nn.Module):
        return copies.get(id(value), value)
    if not inspect.isfunction(value) or not value.__closure__:
        return value
    before = [_contents(cell) for cell in value.__closure__]
    after = [_rebind(content, copies) for content in before if content is not value]
    if len(after) < len(before) or all(old is new for old, new in zip(before, after, strict=True)):
        return value
    cells = tuple(types.CellType(content) for content in after)
    bound = types.FunctionType(value.__code__, value.__globals__, value.__name__, value.__defaults__, cells)
    bound.__kwdefaults__ = value.__kwdefaults__
    bound.__dict__.update(value.__dict__)
    return bound


def _contents(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # the cell is still empty
        return None


def check_copy(network: nn.Module, copied: nn.Module, x: Tensor) -> None:
    """Check that a copy of a network calls its own layers, not those of the original.

    A ``forward`` that was replaced by a function may hold the original in a default argument or a list.

    Args:
        network: The original.
        copied: The copy, in evaluation mode.
        x: Samples ``(N, *input_shape)``.

    Raises:
        ValueError: If a forward pass of the copy calls a layer of the original.
    """
    own = {id(module) for module in copied.modules()}
    others = {name: module for name, module in network.named_modules() if id(module) not in own}
    called = find_calls(others, lambda: copied(x))
    if called:
        raise ValueError(
            f"Expected a copy of {type(network).__name__} to call its own layers, but it calls {called[0] or 'the'} "
            f"of the original: its `forward` was replaced by a function that refers to the original layers. Define "
            f"`forward` in the class of the network."
        )


def frozen_copy(network: Module) -> Module:
    """Return a copy on the CPU, in evaluation mode, without gradients of its weights."""
    return freeze(set_mode(move(copy_network(network), "cpu"), training=False))


def _computed_tensors(network: nn.Module) -> Iterator[Tensor]:
    """Yield the tensors that a network stores and that are not leaves of a graph; copy.deepcopy fails for them."""
    seen: set[int] = set()
    open_values: list[Any] = [vars(module) for module in network.modules()]
    while open_values:
        value = open_values.pop()
        if id(value) in seen or isinstance(value, nn.Module | type):
            continue
        seen.add(id(value))
        if isinstance(value, Tensor):
            if not value.is_leaf:
                yield value
        elif isinstance(value, dict):
            open_values += value.values()
        elif isinstance(value, list | tuple | set | frozenset):
            open_values += value
        elif hasattr(value, "__dict__") and not callable(value):
            open_values.append(vars(value))
        elif inspect.ismethod(value):
            open_values.append(value.__self__)


def _find_obstacle(network: nn.Module) -> str | None:
    """Return the name of the attribute of a network that cannot be copied; None if there is no single one."""
    for name, module in network.named_modules():
        attributes = dict(vars(module))
        if hasattr(module, "__deepcopy__") and _fails(module, {}):
            return f"`{name}.__deepcopy__`" if name else "`__deepcopy__`"
        groups = {kind: attributes.pop(kind, None) or {} for kind in ("_parameters", "_buffers")}
        attributes.pop("_modules", None)
        for key, value in {**attributes, **groups["_parameters"], **groups["_buffers"]}.items():
            # Other modules are not copied here, so that only their own attributes are named.
            memo: dict[int, Any] = {id(other): other for other in network.modules()}
            memo |= {id(tensor): tensor for tensor in _computed_tensors(network)}
            if _fails(value, memo):
                return f"`{name}.{key}`" if name else f"`{key}`"
    return None


def _fails(value: Any, memo: dict[int, Any]) -> bool:
    """Return True if a value cannot be copied."""
    try:
        copy.deepcopy(value, memo)
    except Exception:  # any, as above
        return True
    return False


def check_begun(network: nn.Module, name: str) -> None:
    """Check that the class of a network has initialised its base class, and that its layers are registered.

    Raises:
        ValueError: If torch finds no weights for one of these reasons.
    """
    try:
        if next(network.parameters(), None) is not None:
            return
    except AttributeError as error:
        raise ValueError(
            f"Expected the {name} {type(network).__name__} to be initialised, but torch finds no parameters in it "
            f"({first_line(error)}). Call super().__init__() first in its __init__."
        ) from error
    for key, value in vars(network).items():
        hidden = list(value.values()) if isinstance(value, dict) else value
        if isinstance(hidden, list | tuple) and any(isinstance(one, nn.Module) for one in hidden) and key[0] != "_":
            raise ValueError(
                f"Expected the {name} {type(network).__name__} to have weights, but its layers are in a "
                f"{type(value).__name__} of Python, `{key}`, where torch does not find them. Use nn.ModuleList or "
                f"nn.ModuleDict."
            )


def warn_of_hooks(network: nn.Module, stacklevel: int = 3) -> None:
    """Warn that copies of a network keep the forward hooks of its user.

    Raises:
        ValueError: If it is no initialised network, see :func:`check_begun`.
    """
    if isinstance(network, nn.Module):
        check_begun(network, "network")
    found = foreign_hooks(network) if isinstance(network, nn.Module) else []
    if found:
        warnings.warn(
            f"{type(network).__name__} has forward hooks ({', '.join(found[:4])}{', ...' if found[4:] else ''}). "
            f"Copies of the network keep these hooks and call them in every step, since they may change its output. "
            f"Remove hooks that only record values (handle.remove()).",
            stacklevel=stacklevel,
        )
