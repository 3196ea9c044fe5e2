"""Groups of channels that can only be removed together."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kegnet_pl.compression.cut import CUTTABLE, cut, find_heads, is_depthwise, width
from kegnet_pl.compression.dependencies import ROOTS, Item, trace
from kegnet_pl.networks.execution import eval_mode
from kegnet_pl.networks.handling import copy_network
from kegnet_pl.networks.hooks import LayerRecorder
from kegnet_pl.networks.kept import Kept
from kegnet_pl.networks.validation import FORWARD_ERRORS
from kegnet_pl.runtime.errors import first_line

_TOLERANCE, _ROUNDING = 1e-3, 1e-5
"""Maximum difference of the logits between a network without channels and one that ignores them: relative to the change
of the logits by the removal, and to their size."""


@dataclass(frozen=True)
class Part:
    """Channels of one side of a layer, or along a dimension of a parameter.

    Attributes:
        name: Name of the layer or parameter.
        side: See :data:`~kegnet_pl.networks.kept.Kept`.
        channels: Indices on this side, ``(n,)``.
        roots: The channel of the group that each of them belongs to, ``(n,)``.
    """

    name: str
    side: str
    channels: Tensor
    roots: Tensor


@dataclass(frozen=True)
class ChannelGroup:
    """Channels that are removed together from all layers that share them.

    Attributes:
        name: Name of the layer that makes the channels.
        size: Number of channels.
        parts: Where the channels are.
        blocks: Blocks of successive channels of which all keep the same number (grouped convolution, group norm).
        heads: Number of heads if the channels are those of an attention, which loses whole heads; else None.
    """

    name: str
    size: int
    parts: tuple[Part, ...]
    blocks: int = 1
    heads: int | None = None

    @property
    def readers(self) -> list[Part]:
        """Inputs of the layers that read the channels."""
        return [part for part in self.parts if part.side == "in"]

    @property
    def per_unit(self) -> int:
        """Channels that are removed together: those of a head, or one of every block."""
        return self.blocks if self.heads is None else self.size // self.heads

    def pick(self, scores: Tensor, number: int) -> Tensor:
        """Return the channels of the heads, or in every block of the channels, with the smallest scores.

        Args:
            scores: Score of every channel, ``(size,)``.
            number: Heads, or channels of a block.
        """
        if self.heads is not None:
            channels = torch.arange(self.size).reshape(self.heads, -1)
            return channels[scores.reshape(self.heads, -1).sum(dim=1).argsort(stable=True)[:number]].flatten()
        rows = scores.reshape(self.blocks, -1)
        first = torch.arange(self.blocks)[:, None] * rows.shape[1]
        return (rows.argsort(dim=1, stable=True)[:, :number] + first).flatten()


def keep(network: nn.Module, groups: Sequence[ChannelGroup], alive: Sequence[Tensor]) -> Kept:
    """Return the channels that a network keeps if groups keep only those in their masks ``(size,)``."""
    removed: dict[tuple[str, str], set[int]] = {}
    for group, mask in zip(groups, alive, strict=True):
        if mask.all():
            continue
        for part in group.parts:
            gone = part.channels[~mask[part.roots]].tolist()
            removed.setdefault((part.name, part.side), set()).update(gone)
    found: dict[str, dict[str, list[int]]] = {}
    for (name, side), indices in removed.items():
        if indices:
            left = [index for index in range(width(network, name, side)) if index not in indices]
            found.setdefault(name, {})[side] = left
    return found


def find_groups(network: nn.Module, sample: Tensor) -> tuple[list[ChannelGroup], dict[str, str]]:
    """Return the groups of channels that can be removed from a network, and the reasons why other layers keep theirs.

    Each group is tested: its first, its last, or half of its channels (or heads) are removed. The outputs must equal
    those of the full network whose later layers ignore these channels. In this test, layers that normalise over the
    channels only scale and shift.

    Args:
        network: Returns logits; weights need gradients.
        sample: One sample ``(1, *input_shape)``.

    Returns:
        The groups, and the reason by name of a layer whose output channels stay.

    Raises:
        ValueError: If the library cannot follow the network.
    """
    reasons: dict[str, str] = {}
    groups = []
    for name, found in trace(network, sample):
        group = _read(network, name, found)
        if isinstance(group, ChannelGroup):
            group = _try(network, group, sample)
        if isinstance(group, ChannelGroup):
            groups.append(group)
        else:
            makers, reason = group
            reasons |= dict.fromkeys(makers, f"they are the channels of {name!r}") | {name: reason}
    return groups, reasons


_Refusal = tuple[list[str], str]
"""Names of the layers whose outputs stay, and the reason."""


def _read(network: nn.Module, name: str, items: Sequence[Item]) -> ChannelGroup | _Refusal:
    makers = [name, *(own for own, module, side, *_ in items if isinstance(module, ROOTS) and side == "out")]
    if not items:
        return makers, "Torch-Pruning finds an endless chain of layers that share them"
    uses = Counter(id(value) for module in network.modules() for value in module.parameters(recurse=False))
    for own, module, *_ in items:
        if not own:
            return makers, "they are the output of the network"
        if isinstance(module, nn.Parameter):
            continue
        if not isinstance(module, CUTTABLE) or (isinstance(module, nn.LayerNorm) and len(module.normalized_shape) > 1):
            return makers, f"{type(module).__name__} {own!r} has the same channels"
        if any(uses[id(value)] > 1 for value in module.parameters(recurse=False)):
            return makers, f"the weight of {own!r} is shared with another layer"
        if isinstance(module, ROOTS) and "weight" not in module._parameters:
            return makers, f"the weight of {own!r} is computed from others"
        if isinstance(module, nn.modules.conv._ConvNd) and module.groups > 1 and module.transposed:
            return makers, f"the transposed convolution {own!r} has groups"
    size = width(network, name, "out")
    group = _read_heads(network, name, items)
    if group is None:
        if any(None in roots or len(set(Counter(roots).values())) > 1 for *_, roots in items):
            return makers, "the layers that read them mix them"
        parts = [
            Part(own, "out" if is_depthwise(module) else side, torch.tensor(channels), torch.tensor(roots))
            for own, module, side, channels, roots in items
        ]
        group = ChannelGroup(name, size, tuple(parts), _count_blocks(items, size))
    if not group.readers:
        return makers, "no layer reads them"
    if group.blocks >= group.size or (group.heads or group.size) < 2:
        return makers, "none of its channels can be removed"
    return group


def _count_blocks(items: Sequence[Item], size: int) -> int:
    """Return the number of blocks of a group; its size if the blocks of its layers do not fit each other."""
    blocks = 1
    for _, module, _, channels, _ in items:
        own = module.num_groups if isinstance(module, nn.GroupNorm) else getattr(module, "groups", 1)
        if own > 1 and not is_depthwise(module):
            if len(channels) != size or (blocks % own and own % blocks):
                return size
            blocks = max(blocks, own)
    return blocks


def _read_heads(network: nn.Module, name: str, items: Sequence[Item]) -> ChannelGroup | None:
    """Return the heads of an attention as a group; None if the channels are not heads."""
    parent = name.rpartition(".")[0]
    heads = find_heads(network.get_submodule(parent))
    if heads is None:
        return None
    _, number, size = heads
    dense = all(isinstance(module, nn.Linear) and own.rpartition(".")[0] == parent for own, module, *_ in items)
    widths = [width(network, own, side) for own, _, side, *_ in items] if dense else []
    if not dense or any(value % (number * size) or value > 3 * number * size for value in widths):
        return None
    parts = [
        Part(own, side, torch.arange(value), torch.arange(value) % (number * size))
        for (own, _, side, *_), value in zip(items, widths, strict=True)
    ]
    of_heads = Part(parent, "heads", torch.arange(number), torch.arange(number) * size)
    return ChannelGroup(name, number * size, (*parts, of_heads), heads=number)


def _try(network: nn.Module, group: ChannelGroup, sample: Tensor) -> ChannelGroup | _Refusal:
    """Return the group if its first, its last, and half of its channels can be removed."""
    makers = [part.name for part in group.parts if part.side == "out"]
    x = torch.cat([sample, torch.randn(sample.shape, generator=torch.Generator().manual_seed(0)).to(sample)])
    plain = copy_network(network)
    for part in group.parts:
        if not part.side.isdecimal():
            _stop_normalising(plain.get_submodule(part.name))
    order, units = torch.arange(group.size), group.size // group.per_unit
    shuffled = torch.randperm(group.size, generator=torch.Generator().manual_seed(0))
    try:
        for scores, number in ((order, 1), (-order, 1), (shuffled, units // 2)):
            alive = torch.ones(group.size, dtype=torch.bool)
            alive[group.pick(scores, number)] = False
            if not _is_removed(plain, group, alive, x):
                return makers, "without some of them the network returns other logits"
        small = cut(copy_network(network), keep(network, [group], [alive]))
        with torch.no_grad(), eval_mode(network), eval_mode(small):
            expected, found = network(x.clone()), small(x.clone())
    except FORWARD_ERRORS as error:
        return makers, f"the network fails without some of them: {first_line(error)[:120]}"
    if found.shape != expected.shape or not bool(found.isfinite().all()):
        return makers, "without some of them the network returns no logits"
    return group


def _is_removed(network: nn.Module, group: ChannelGroup, alive: Tensor, x: Tensor) -> bool:
    """Return True if a network without channels has the outputs of the network whose readers ignore them."""
    masks = {part.name: torch.ones(width(network, part.name, "in")) for part in group.readers}
    for part in group.readers:
        masks[part.name][part.channels[~alive[part.roots]]] = 0

    def ignore(name: str, value: Tensor) -> Tensor:
        mask = masks[name].to(value)
        layer = network.get_submodule(name)
        return value * (mask if isinstance(layer, nn.Linear) else mask.reshape(-1, *[1] * len(layer.kernel_size)))  # type: ignore[arg-type]

    recorder = LayerRecorder(network, tuple(masks), ignore, source="input", replace=lambda value: value)
    small = cut(copy_network(network), keep(network, [group], [alive]))
    with torch.no_grad(), eval_mode(network), eval_mode(small):
        whole, found = network(x.clone()), small(x.clone())
        with recorder:
            expected = recorder.call(x.clone())[0]
    if found.shape != expected.shape:
        return False
    effect, size = (float((expected - whole).abs().max()), float(expected.abs().max()))
    return float((found - expected).abs().max()) <= max(_TOLERANCE * effect, _ROUNDING * size, 1e-12)


class _PlainLayerNorm(nn.LayerNorm):
    """Weight and bias of a layer norm."""

    def forward(self, input: Tensor) -> Tensor:
        """Return the input times weight, plus bias."""
        scaled = input if self.weight is None else input * self.weight
        return scaled if self.bias is None else scaled + self.bias


class _PlainGroupNorm(nn.GroupNorm):
    """Weight and bias of a group norm."""

    def forward(self, input: Tensor) -> Tensor:
        """Return the input times weight, plus bias."""
        if self.weight is None:
            return input
        shape = (-1, *[1] * (input.dim() - 2))
        return input * self.weight.view(shape) + self.bias.view(shape)


def _stop_normalising(layer: nn.Module) -> None:
    """Let a norm over channels only scale and shift: its statistics change with the channels, its order does not."""
    if isinstance(layer, nn.LayerNorm):
        layer.__class__ = _PlainLayerNorm
    elif isinstance(layer, nn.GroupNorm):
        layer.__class__ = _PlainGroupNorm
