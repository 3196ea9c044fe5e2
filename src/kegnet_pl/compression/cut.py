"""Removal of channels from layers, and the record in ``network.json`` of the channels that are kept."""

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.instancenorm import _InstanceNorm

from kegnet_pl.networks.kept import Kept, kept_channels, remember_kept

PASSING = (_BatchNorm, _InstanceNorm, nn.GroupNorm, nn.LayerNorm, nn.PReLU)
"""Layers with as many inputs as outputs."""

CUTTABLE = (_ConvNd, nn.Linear, *PASSING)
"""Layers whose channels can be removed."""

_WIDTHS = ("num_features", "num_channels", "num_parameters")
"""Attributes for the width of a layer in :data:`PASSING`; that of layer norm is its shape."""

_HEADS = (("num_heads", "head_dim"), ("num_attention_heads", "attention_head_size"))
"""Attributes of attentions: the number of heads, and the width of one."""

_HEAD_WIDTHS = ("attn_dim", "all_head_size")
"""Attributes of attentions for the width of all heads together."""

_RANGE = re.compile(r"(\d{1,9})(?:-(\d{1,9}))?")


def is_depthwise(layer: nn.Module) -> bool:
    """Return True for a convolution with one filter for each channel."""
    return isinstance(layer, _ConvNd) and 1 < layer.groups == layer.in_channels == layer.out_channels


def find_heads(module: nn.Module) -> tuple[str, int, int] | None:
    """Return the attribute for the number of heads, that number and the width of a head; None for other modules."""
    for names in _HEADS:
        values = [getattr(module, name, None) for name in names]
        if all(type(value) is int and value > 0 for value in values):
            return names[0], *values  # type: ignore[return-value]
    return None


def width(network: nn.Module, name: str, side: str) -> int:
    """Return the number of channels on a side of a layer, of heads, or along a dimension of a parameter.

    Raises:
        ValueError: If there is no such layer or side, or its channels cannot be removed.
    """
    if side.isdecimal():
        parent, _, own = name.rpartition(".")
        value = network.get_submodule(parent)._parameters.get(own) if _exists(network, parent) else None
        layer = value is not None and isinstance(network.get_submodule(parent), CUTTABLE)
        if value is None or layer or int(side) >= value.dim():
            raise ValueError(f"a parameter {name!r} with a dimension {side} is missing")
        return value.shape[int(side)]
    if not _exists(network, name):
        raise ValueError(f"a layer {name!r} is missing")
    module = network.get_submodule(name)
    if side == "heads":
        heads = find_heads(module)
        if heads is not None:
            return heads[1]
    elif isinstance(module, _ConvNd):
        return {"in": module.in_channels, "out": module.out_channels}.get(side, 0)
    elif isinstance(module, nn.Linear):
        return {"in": module.in_features, "out": module.out_features}.get(side, 0)
    elif isinstance(module, nn.LayerNorm) and side == "out":
        return int(module.normalized_shape[-1])
    elif isinstance(module, PASSING) and side == "out":
        return next(int(getattr(module, attribute)) for attribute in _WIDTHS if hasattr(module, attribute))
    raise ValueError(f"channels cannot be removed from {side!r} of {name!r} ({type(module).__name__})")


def _exists(network: nn.Module, name: str) -> bool:
    try:
        network.get_submodule(name)
    except AttributeError:
        return False
    return True


def cut(network: nn.Module, kept: Kept) -> nn.Module:
    """Remove channels from layers and parameters of a network, in place, and store in it the channels that are kept.

    Args:
        network: The network; one that was pruned before may be pruned again.
        kept: Channels to keep; see :data:`Kept`.

    Raises:
        ValueError: If a layer does not exist or cannot be cut, or indices are out of range.
    """
    for name, sides in kept.items():
        for side, channels in sides.items():
            _check(name, side, channels, width(network, name, side))
    for name, sides in kept.items():
        indices = {side: torch.tensor(channels) for side, channels in sides.items()}
        if all(side.isdecimal() for side in sides):
            parent, _, own = name.rpartition(".")
            for side, index in indices.items():
                _select(network.get_submodule(parent), own, index, int(side))
        else:
            _cut_layer(network.get_submodule(name), name, indices)
    remember_kept(network, _compose(kept_channels(network), kept))
    return network


def _check(name: str, side: str, channels: Sequence[int], size: int) -> None:
    whole = all(type(channel) is int for channel in channels)
    if not (channels and whole and channels[0] >= 0 and all(a < b for a, b in pairwise(channels))):
        raise ValueError(f"{side!r} of {name!r} has no increasing indices")
    if channels[-1] >= size:
        raise ValueError(f"{side!r} of {name!r} has the channel {channels[-1]}, but the layer has {size}")


def _cut_layer(layer: nn.Module, name: str, kept: Mapping[str, Tensor]) -> None:
    if "heads" in kept:
        _cut_heads(layer, kept["heads"])
    elif isinstance(layer, _ConvNd):
        _cut_conv(layer, name, kept)
    elif isinstance(layer, nn.Linear):
        if "out" in kept:
            _select(layer, "weight", kept["out"], 0)
            _select(layer, "bias", kept["out"])
        if "in" in kept:
            _select(layer, "weight", kept["in"], 1)
        layer.out_features, layer.in_features = layer.weight.shape
    else:
        for own in ("weight", "bias", "running_mean", "running_var"):
            _select(layer, own, kept["out"])
        if isinstance(layer, nn.GroupNorm):
            _per_group(name, "out", kept["out"], layer.num_channels, layer.num_groups)
        if isinstance(layer, nn.LayerNorm):
            layer.normalized_shape = (len(kept["out"]),)
        for attribute in _WIDTHS:
            if hasattr(layer, attribute):
                setattr(layer, attribute, len(kept["out"]))


def _cut_conv(conv: _ConvNd, name: str, kept: Mapping[str, Tensor]) -> None:
    outputs, inputs = kept.get("out"), kept.get("in")
    if is_depthwise(conv):
        if outputs is None or inputs is not None:
            raise ValueError(f"the depthwise convolution {name!r} has one width, 'out'")
        _select(conv, "weight", outputs, 0)
        conv.in_channels = conv.groups = len(outputs)
    elif conv.groups == 1:
        first, second = (1, 0) if conv.transposed else (0, 1)
        if outputs is not None:
            _select(conv, "weight", outputs, first)
        if inputs is not None:
            _select(conv, "weight", inputs, second)
    else:
        _cut_grouped(conv, name, outputs, inputs)
    if outputs is not None:
        _select(conv, "bias", outputs)
        conv.out_channels = len(outputs)
    if inputs is not None:
        conv.in_channels = len(inputs)


def _cut_grouped(conv: _ConvNd, name: str, outputs: Tensor | None, inputs: Tensor | None) -> None:
    """Remove channels of a grouped convolution; all groups keep the same number."""
    if conv.transposed:
        raise ValueError(f"the transposed convolution {name!r} has groups")
    rows = torch.arange(conv.out_channels) if outputs is None else outputs
    rows = _per_group(name, "out", rows, conv.out_channels, conv.groups)
    columns = torch.arange(conv.in_channels) if inputs is None else inputs
    columns = _per_group(name, "in", columns, conv.in_channels, conv.groups) % (conv.in_channels // conv.groups)
    weight = torch.cat([conv.weight[r.to(conv.weight.device)][:, c] for r, c in zip(rows, columns, strict=True)])
    conv.weight = nn.Parameter(weight.detach().clone(), conv.weight.requires_grad)


def _per_group(name: str, side: str, kept: Tensor, size: int, groups: int) -> Tensor:
    """Return kept channels ``(groups, n)``."""
    counts = torch.bincount(kept // (size // groups), minlength=groups)
    if len(counts.unique()) > 1:
        raise ValueError(f"{side!r} of {name!r} keeps different numbers of channels in its {groups} groups")
    return kept.reshape(groups, -1)


def _cut_heads(attention: nn.Module, kept: Tensor) -> None:
    heads = find_heads(attention)
    assert heads is not None
    attribute, number, size = heads
    for own in _HEAD_WIDTHS:
        if getattr(attention, own, None) == number * size:
            setattr(attention, own, len(kept) * size)
    setattr(attention, attribute, len(kept))


def _select(module: nn.Module, own: str, index: Tensor, dim: int = 0) -> None:
    """Keep a part of a parameter or buffer; one that is None, or a single value for all channels, stays."""
    value = getattr(module, own, None)
    if value is None or (value.numel() == 1 and value.dim() == 1 and isinstance(module, nn.PReLU)):
        return
    part = value.detach().index_select(dim, index.to(value.device)).clone()
    setattr(module, own, nn.Parameter(part, value.requires_grad) if isinstance(value, nn.Parameter) else part)


def _compose(first: Kept, second: Kept) -> Kept:
    """Return the channels that are kept after two cuts, as indices of the original network."""
    found = {name: dict(sides) for name, sides in first.items()}
    for name, sides in second.items():
        own = found.setdefault(name, {})
        for side, channels in sides.items():
            own[side] = [own[side][channel] for channel in channels] if side in own else list(channels)
    return found


def to_ranges(channels: Sequence[int]) -> str:
    """Return increasing numbers as text: ``"0-3 7"`` for 0, 1, 2, 3, 7."""
    ends = [index for index, (a, b) in enumerate(pairwise(channels)) if b > a + 1]
    starts = [0, *(end + 1 for end in ends)]
    pairs = [(channels[a], channels[b]) for a, b in zip(starts, [*ends, len(channels) - 1], strict=True)]
    return " ".join(str(a) if a == b else f"{a}-{b}" for a, b in pairs)


def from_ranges(text: Any, size: int) -> list[int]:
    """Return the numbers below ``size`` that a text names.

    Raises:
        ValueError: If it is not such a text.
    """
    matches = [_RANGE.fullmatch(part) for part in text.split(" ")] if isinstance(text, str) else [None]
    found: list[int] = []
    for match in matches:
        first, last = (-1, -1) if match is None else (int(match[1]), int(match[2] or match[1]))
        if not (found[-1] if found else -1) < first <= last < size:
            raise ValueError(f"expected increasing channels below {size} such as '0-3 7', got {str(text)[:80]!r}")
        found += range(first, last + 1)
    return found


def describe_kept(kept: Kept) -> dict[str, dict[str, str]]:
    """Return the channels that are kept as values for JSON."""
    return {name: {side: to_ranges(channels) for side, channels in sides.items()} for name, sides in kept.items()}


def read_kept(network: nn.Module, content: Any) -> Kept:
    """Return the channels that a network keeps, from the output of :func:`describe_kept`.

    Raises:
        ValueError: If it is damaged, or of another network.
    """

    def is_table(value: Any) -> bool:
        return isinstance(value, dict) and all(isinstance(key, str) for key in value)

    if not is_table(content) or not all(is_table(sides) for sides in content.values()):
        raise ValueError("expected the channels of layers by name and side")
    return {
        name: {side: from_ranges(channels, width(network, name, side)) for side, channels in sides.items()}
        for name, sides in content.items()
    }
