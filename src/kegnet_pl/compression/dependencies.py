"""Dependencies between the channels of layers, by the graph of Torch-Pruning.

Source:
    Fang et al., "DepGraph: Towards Any Structural Pruning", 2023.
"""

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from kegnet_pl.runtime.errors import ConfigError, first_line


def has_library() -> bool:
    """Return True if Torch-Pruning is installed."""
    try:
        import_library()
    except ConfigError:
        return False
    return True


def import_library() -> Any:
    """Return the module ``torch_pruning``.

    Raises:
        ConfigError: If it is not installed.
    """
    try:
        import torch_pruning
    except ImportError as error:
        raise ConfigError(
            "Expected Torch-Pruning for the compression by pruning, but it is not installed. Run: pip install "
            "'kegnet_pl[pruning]'"
        ) from error
    return torch_pruning


Item = tuple[str, Any, str, list[int], list[int | None]]
"""Name, layer or parameter, side, channels, and the channel of the root that each belongs to; without a name for the
output of the network."""

ROOTS = (nn.modules.conv._ConvNd, nn.Linear)
"""Layers that make channels."""


def trace(network: nn.Module, sample: Tensor) -> list[tuple[str, list[Item]]]:
    """Return, for each layer that makes channels, its name and all layers and parameters with these channels.

    Args:
        network: Returns logits; weights need gradients.
        sample: One sample ``(1, *input_shape)``.

    Raises:
        ValueError: If the library cannot follow the network.
    """
    library = import_library()
    names: dict[Any, str] = {module: name for name, module in network.named_modules()}
    modes = {module: module.training for module in network.modules()}
    x = torch.cat([sample, sample]).clone()
    try:
        with warnings.catch_warnings(), torch.enable_grad():
            warnings.simplefilter("ignore")
            graph = library.DependencyGraph().build_dependency(
                network, x, forward_fn=lambda model, inputs: model(inputs), verbose=False
            )
            names |= {value: name for name, value in network.named_parameters()}
            inputs = graph._in_channel_pruning_fn - graph._out_channel_pruning_fn
            found, seen = [], set()
            for root in list(graph.module2node):
                if isinstance(root, ROOTS) and root not in seen:
                    items: list[Item] = []
                    for node, remove, channels in _follow(library, graph, root):
                        module, side = node.module, "in" if remove in inputs else "out"
                        if isinstance(module, library.ops._OutputOp):
                            items.append(("", module, "", [], []))
                        elif module in names:
                            if isinstance(module, nn.Parameter):
                                side = str(node.pruning_dim % module.dim())
                            items.append((names[module], module, side, list(channels), list(channels.values())))
                            seen.update([module] if side == "out" else [])
                    found.append((names[root], items))
            return found
    except Exception as error:  # the library raises many kinds for networks that it does not know
        raise ValueError(
            f"Expected a network that Torch-Pruning can follow, but {type(network).__name__} failed: "
            f"{first_line(error).rstrip('.')}. Use method='tucker', on the command line compression=ratio."
        ) from error
    finally:
        for module, mode in modes.items():
            module.training = mode


def _follow(library: Any, graph: Any, root: nn.Module) -> list[tuple[Any, Any, dict[int, int | None]]]:
    """Return all layers and parameters that share the output channels of a layer.

    It does what ``get_pruning_group`` does, but visits each channel once, and gives up on a network that rolls windows.

    Returns:
        Nodes of the graph, the functions that remove their channels, and channel -> channel of the root; empty if it
        gave up.
    """
    pruner, node = graph.get_pruner_of_module(root), graph.module2node[root]
    found: dict[tuple[int, Any], tuple[Any, Any, dict[int, int | None]]] = {}
    stack = [(node, pruner.prune_out_channels, {index: index for index in range(pruner.get_out_channels(root))})]
    most = max(max(value.shape, default=0) for value in graph.model.parameters())
    while stack:
        node, remove, channels = stack.pop()
        if not channels:
            continue
        if max(channels) >= most:  # each turn through the rolled windows adds some
            return []
        known = found.setdefault((id(node), remove), (node, remove, {}))[2]
        new = {index: origin for index, origin in channels.items() if index not in known}
        known.update(new)
        for edge in node.dependencies if new else ():
            if edge.is_triggered_by(remove):
                indices = [library._helpers._HybridIndex(idx=index, root_idx=origin) for index, origin in new.items()]
                for mapping in edge.index_mapping:
                    indices = indices if mapping is None else mapping(indices)
                stack.append((edge.target, edge.handler, {one.idx: one.root_idx for one in indices}))
    return list(found.values())
