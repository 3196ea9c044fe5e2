"""Channels of the original network that a pruned network has kept."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

_ATTRIBUTE = "_kegnet_kept"

Kept = Mapping[str, Mapping[str, list[int]]]
"""Name of a layer or parameter -> side -> indices of the channels that are kept, increasing. A side is ``"in"`` or
``"out"``, ``"heads"`` of an attention, or the number of a parameter's dimension."""


def kept_channels(network: nn.Module, original: nn.Module | None = None) -> Kept:
    """Return the channels of the original network that a network has kept; empty if it was not pruned.

    Args:
        network: The pruned network.
        original: The network before the last pruning, if it was pruned itself: indices are then those of its channels.
    """
    kept: Kept = dict(getattr(network, _ATTRIBUTE, {}))
    before = kept_channels(original) if original is not None else {}
    if not before:
        return kept
    found: dict[str, dict[str, list[int]]] = {}
    for name, sides in kept.items():
        for side, channels in sides.items():
            known = before.get(name, {}).get(side)
            own = channels if known is None else [known.index(channel) for channel in channels]
            if known is None or len(own) < len(known):
                found.setdefault(name, {})[side] = own
    return found


def remember_kept(network: nn.Module, kept: Kept) -> None:
    """Store the kept channels in a pruned network; copies of it also have them."""
    if kept:
        setattr(network, _ATTRIBUTE, {name: dict(sides) for name, sides in kept.items()})


def select_kept(kept: Kept, name: str, values: Tensor, dim: int = 0) -> Tensor:
    """Return the part of a tensor for the kept outputs of a layer; all of it if the layer was not pruned.

    Args:
        kept: Channels that are kept.
        name: Name of the layer.
        values: A tensor with a dimension for the layer's outputs.
        dim: That dimension.
    """
    channels = kept.get(name, {}).get("out")
    return values if channels is None else values.index_select(dim, torch.tensor(channels, device=values.device))
