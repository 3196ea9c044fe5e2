"""Networks on disk: weights as safetensors beside a recipe that rebuilds the module."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import nn

from kegnet_pl.api.weights import load_weights
from kegnet_pl.compression import restore_structure
from kegnet_pl.runtime.atomic_files import atomic_write


def save_network(
    network: nn.Module,
    folder: str | Path,
    name: str,
    recipe: Mapping[str, Any],
    ranks: Mapping[str, tuple[int, int]] | None = None,
) -> None:
    """Write ``NAME.safetensors`` and ``NAME.json``.

    Args:
        network: What to save.
        folder: Where to.
        name: Name of both files.
        recipe: ``_target_`` and arguments of the uncompressed network.
        ranks: ``(in_rank, out_rank)`` of its compressed layers, by name.
    """
    # Copies: safetensors refuses tensors that share memory, as tied weights do.
    state = {key: value.detach().cpu().clone().contiguous() for key, value in network.state_dict().items()}
    # Written by us, so that a full disk is an OSError like any other.
    atomic_write(Path(folder) / f"{name}.safetensors", save(state))
    content = {"network": dict(recipe), "ranks": dict(ranks or {})}
    atomic_write(Path(folder) / f"{name}.json", json.dumps(content, indent=2))


def load_network(folder: str | Path, name: str = "network") -> nn.Module:
    """Rebuild a network that :func:`save_network` wrote, in evaluation mode.

    ``NAME.json`` says which constructor to call, with which arguments, and it is called: load folders that you trust.

    Args:
        folder: Folder of a finished stage, such as the ``student`` folder that a run names at its end.
        name: Name of both files.

    Returns:
        The network, on the CPU.

    Raises:
        FileNotFoundError: If there is no such network.
        WeightsError: If its weights are damaged.
    """
    recipe = Path(folder) / f"{name}.json"
    if not recipe.is_file():
        raise FileNotFoundError(f"Expected {recipe.name} in {recipe.parent}, but there is none. Give a stage's folder.")
    from hydra.utils import instantiate  # the library imports no Hydra until it reads a folder

    content = json.loads(recipe.read_text())
    with torch.random.fork_rng([]):  # constructors draw weights, for nothing
        network: nn.Module = instantiate(content["network"], _convert_="all")
        restore_structure(network, {layer: (pair[0], pair[1]) for layer, pair in content["ranks"].items()})
    load_weights(network, Path(folder) / f"{name}.safetensors")
    return network.eval()
