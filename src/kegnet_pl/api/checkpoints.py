"""Networks on disk: weights as safetensors, and a recipe that rebuilds the module."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from kegnet_pl.api.weights import load_weights
from kegnet_pl.compression import describe_structure, restore_structure
from kegnet_pl.networks import Answers, ValueRange, answers_of, value_range_of
from kegnet_pl.networks.execution import first_weight
from kegnet_pl.networks.handling import move, set_mode
from kegnet_pl.networks.validation import lazy_input_of, materialise
from kegnet_pl.runtime.atomic_files import atomic_write
from kegnet_pl.runtime.errors import WeightsError
from kegnet_pl.runtime.manifests import DamagedError, check_parts

_STRUCTURE = ("ranks", "folded", "split", "kept")
"""Keys of ``NAME.json`` that :func:`restore_structure` takes."""

_DTYPES = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64}
"""Names of data types in safetensors files."""


def save_network(network: nn.Module, folder: str | Path, name: str, recipe: Mapping[str, Any]) -> None:
    """Write ``NAME.safetensors`` and ``NAME.json``.

    ``recipe`` holds ``_target_`` and arguments of the uncompressed network.
    """
    # safetensors refuses tensors that share memory, such as tied weights, so they are copied.
    state = {key: value.detach().cpu().clone().contiguous() for key, value in network.state_dict().items()}
    # Unlike safetensors.torch.save_file, atomic_write raises an OSError for a full disk.
    atomic_write(Path(folder) / f"{name}.safetensors", save(state))
    content: dict[str, Any] = {"network": dict(recipe), **describe_structure(network)}
    lazy = lazy_input_of(network)
    if lazy is not None:
        content["lazy"] = list(lazy)
    answers = answers_of(network)
    if answers is not None:
        content["answers"] = answers.to_dict()
    values = value_range_of(network)
    if values is not None:
        content["inputs"] = values.to_dict()
    atomic_write(Path(folder) / f"{name}.json", json.dumps(content, indent=2))


def load_network(folder: str | Path, name: str = "network", *, logits: bool = False) -> nn.Module:
    """Load a network that :func:`save_network` wrote, in evaluation mode.

    ``NAME.json`` names a constructor, which is called: load only folders that you trust.

    Args:
        folder: Folder of a finished stage, such as the ``student`` folder that a run prints at its end.
        name: Name of both files, without a suffix.
        logits: True for a network that takes standardised samples and returns logits ``(B, C)``, as in the stages of
            a run; False for one with the inputs and outputs of its class, such as pixels in [0, 255] and probabilities.

    Returns:
        The network, on the CPU.

    Raises:
        FileNotFoundError: If there is no such network.
        WeightsError: If its weights or its structure are damaged; in the folder of a stage, also if a file is another
            one than in the manifest.
    """
    recipe = Path(folder) / f"{name}.json"
    if not recipe.is_file():
        raise FileNotFoundError(
            f"Expected {recipe.name} in {recipe.parent}, but there is none. Give the folder of a finished stage."
        )
    try:
        check_parts(Path(folder), (recipe.name, f"{name}.safetensors"))
    except DamagedError as error:
        raise damaged_stage(folder, error) from error
    from hydra.utils import instantiate  # a slow import, which other functions of the library do not need

    content = json.loads(recipe.read_text())
    with torch.random.fork_rng([]):  # constructors draw weights to be overwritten
        network: nn.Module = instantiate(content["network"], _convert_="all")
        if "lazy" in content:
            materialise(network, content["lazy"])
        try:
            restore_structure(network, **{key: content[key] for key in _STRUCTURE if key in content})
        except ValueError as error:
            raise WeightsError(
                f"Expected the structure of {type(network).__name__} in {recipe}, but {error}. The file is damaged, or "
                f"of another network."
            ) from error
    path = Path(folder) / f"{name}.safetensors"
    dtype = _stored_dtype(path)
    if dtype is not None and dtype != first_weight(network).dtype:  # the constructor makes another precision
        move(network, dtype)
    load_weights(network, path)
    if logits and "answers" in content:
        Answers(**content["answers"]).attach(network)
    if logits and "inputs" in content:
        ValueRange.from_dict(content["inputs"]).attach(network)
    return set_mode(network, training=False)


def damaged_stage(folder: str | Path, error: DamagedError) -> WeightsError:
    """Return the error of a finished stage whose files are not those of its manifest."""
    return WeightsError(
        f"Expected a complete stage in {folder}, but it is damaged: {error}. Run its command again, which builds the "
        f"stage again, or copy the folder again."
    )


def _stored_dtype(path: Path) -> torch.dtype | None:
    """Return the data type of the first floating-point tensor of a file; None if there is none, or it is damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            names = [file.get_slice(key).get_dtype() for key in file.keys()]  # noqa: SIM118
    except (OSError, SafetensorError):
        return None  # load_weights says what is wrong
    return next((_DTYPES[name] for name in names if name in _DTYPES), None)
