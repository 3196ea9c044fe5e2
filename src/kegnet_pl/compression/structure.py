"""Structure of a compressed network: the channels that are kept, and the layers that are factorised."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from kegnet_pl.compression.attention import SplitAttention, split_attention
from kegnet_pl.compression.cut import cut, describe_kept, read_kept
from kegnet_pl.compression.tucker import TuckerLayer, empty_copy, replace_layer
from kegnet_pl.networks.kept import kept_channels


def describe_structure(network: nn.Module) -> dict[str, Any]:
    """Return values for JSON from which :func:`restore_structure` makes the same layers from the original.

    Returns:
        ``ranks``, the pair ``[in_rank, out_rank]`` by name of a factorised layer; ``folded``, the names of those whose
        parts are merged; ``split``, the names of split attentions; ``kept``, for a pruned network, the channels of
        layers (:func:`~kegnet_pl.compression.cut.describe_kept`).
    """
    layers = {name: layer for name, layer in network.named_modules() if isinstance(layer, TuckerLayer)}
    kept = kept_channels(network)
    return {
        "ranks": {name: list(layer.ranks) for name, layer in layers.items()},
        "folded": [name for name, layer in layers.items() if layer.fold],
        "split": [name for name, module in network.named_modules() if isinstance(module, SplitAttention)],
        **({"kept": describe_kept(kept)} if kept else {}),
    }


def restore_structure(
    network: nn.Module,
    ranks: Mapping[str, Sequence[int]],
    folded: Sequence[str] = (),
    split: Sequence[str] = (),
    kept: Any = None,
) -> nn.Module:
    """Replace layers of a network by their compressed form, without weights, and return the network.

    Args:
        network: The uncompressed network; changed in place.
        ranks: ``(in_rank, out_rank)`` by layer name.
        folded: Layers whose parts are merged.
        split: Attentions that are split.
        kept: Channels of layers, as :func:`describe_structure` returns them; None for all.

    Raises:
        AttributeError: If a layer does not exist.
        ValueError: If ``kept`` is damaged, or of another network.
    """
    split_attention(network, split)
    if kept is not None:
        cut(network, read_kept(network, kept))
    for name, (in_rank, out_rank) in ranks.items():
        layer = network.get_submodule(name)
        replace_layer(network, name, empty_copy(layer, (in_rank, out_rank), name in folded))  # type: ignore[arg-type]
    return network
