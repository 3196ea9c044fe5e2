"""Networks on disk: weights as safetensors, and a recipe that rebuilds the module."""

import json
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from kegnet_pl.api.trust import read_recipe
from kegnet_pl.api.weights import load_weights
from kegnet_pl.compression import describe_structure, restore_structure
from kegnet_pl.networks import Answers, ValueRange, answers_of, value_range_of
from kegnet_pl.networks.execution import check_values, first_weight, is_channels_last
from kegnet_pl.networks.foreign import executed_file
from kegnet_pl.networks.handling import move, set_mode
from kegnet_pl.networks.validation import lazy_input_of, materialise
from kegnet_pl.runtime.atomic_files import atomic_write
from kegnet_pl.runtime.errors import UserError, WeightsError, first_line
from kegnet_pl.runtime.manifests import DamagedError, check_parts
from kegnet_pl.runtime.safe_files import exists, printable, read_json
from kegnet_pl.runtime.secrets import conceal

_STRUCTURE = ("ranks", "folded", "split", "kept")
"""Keys of ``NAME.json`` that :func:`restore_structure` takes."""

_LONGEST_NAME = 200
"""Greatest length of the name of a network in bytes; file systems allow 255, with the suffix."""

_DTYPES = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64}
"""Names of data types in safetensors files."""


def save_network(network: nn.Module, folder: str | Path, name: str, recipe: Mapping[str, Any]) -> None:
    """Write ``NAME.safetensors`` and ``NAME.json``.

    ``recipe`` holds ``_target_`` and arguments of the uncompressed network.

    Raises:
        ValueError: If a weight is on the meta device.
    """
    check_values(network)
    # safetensors refuses tensors that share memory, such as tied weights, so they are copied.
    state = {key: value.detach().cpu().clone().contiguous() for key, value in network.state_dict().items()}
    # Unlike safetensors.torch.save_file, atomic_write raises an OSError for a full disk.
    atomic_write(Path(folder) / f"{name}.safetensors", save(state))
    content: dict[str, Any] = {"network": conceal(dict(recipe)), **describe_structure(network)}
    lazy = lazy_input_of(network)
    if lazy is not None:
        content["lazy"] = list(lazy)
    answers = answers_of(network)
    if answers is not None:
        content["answers"] = answers.to_dict()
    values = value_range_of(network)
    if values is not None:
        content["inputs"] = values.to_dict()
    if is_channels_last(network):
        content["layout"] = "channels_last"
    atomic_write(Path(folder) / f"{name}.json", json.dumps(content, indent=2))


def load_network(
    folder: str | Path, name: str = "network", *, logits: bool = False, trust: Collection[str] = ()
) -> nn.Module:
    """Load a network that :func:`save_network` wrote, in evaluation mode.

    ``NAME.json`` names a constructor. It is called only if it belongs to this package, torch.nn, torchvision, timm or
    transformers, to a module of yours that the program has imported, or to ``trust``.

    Args:
        folder: Folder of a finished stage, such as the ``student`` folder that a run prints at its end.
        name: Name of both files, without a suffix.
        logits: True for a network that takes standardised samples and returns logits ``(B, C)``, as in the stages of
            a run. False for a network that keeps the inputs and outputs of its class, such as pixels in [0, 255] and
            probabilities.
        trust: Further modules, classes and Python files whose code may run, such as ``["mypackage", "net.py"]``.

    Returns:
        The network, on the CPU, in the memory layout in which it was saved. Students for images are in channels-last
        memory if they accept it.

    Raises:
        FileNotFoundError: If there is no such network.
        WeightsError: If its weights or its structure are damaged; in the folder of a stage, also if a file differs
            from the manifest.
        UntrustedCodeError: If the file names other code.
    """
    if not isinstance(name, str) or not name or Path(name).name != name or len(os.fsencode(name)) > _LONGEST_NAME:
        raise FileNotFoundError(
            f"Expected a name of 1 to {_LONGEST_NAME} bytes without folders for files in {printable(folder, 300)}, but "
            f'got {printable(repr(name), 100)}. Use "network", or a name such as "generator_0".'
        )
    folder = to_folder(folder)
    recipe = folder / f"{name}.json"
    if not exists(recipe):
        remedy = "Give the folder of a finished stage, such as the one that a run prints as `student`."
        if exists(recipe.parent / "model.json"):
            remedy = 'An export has another name: load_network(folder, "model").'
        raise FileNotFoundError(
            f"Expected {recipe.name} in {printable(recipe.parent, 300)}, but there is none. {remedy}"
        )
    try:
        check_parts(Path(folder), (recipe.name, f"{name}.safetensors"))
    except DamagedError as error:
        raise damaged_stage(folder, error) from error
    from hydra.utils import instantiate  # a slow import, which other functions of the library do not need

    content = read_json(recipe, None)
    if not isinstance(content, dict):
        raise WeightsError(
            f"Expected the structure of a network in {recipe}, but got other content. The file is damaged."
        )
    try:
        network_recipe = read_recipe(_with_full_path(content.get("network"), Path(folder)), recipe, trust)
    except RecursionError as error:
        raise WeightsError(
            f"Expected arguments of a network in {recipe}, but got too deeply nested lists. The file is damaged."
        ) from error
    with torch.random.fork_rng([]):  # constructors draw weights to be overwritten
        try:
            network: nn.Module = instantiate(network_recipe, _convert_="all")
        except Exception as error:  # what a constructor raises for wrong arguments
            raise WeightsError(
                f"Expected to build {printable(network_recipe['_target_'])} as {recipe} says, but it failed: "
                f"{printable(conceal(first_line(error.__cause__ or error)), 300)}. The file is damaged, or from "
                f"another version."
            ) from error
        if not isinstance(network, nn.Module):
            raise WeightsError(
                f"Expected a network in {recipe}, but got a {type(network).__name__}. The file is damaged."
            )
        try:
            if "lazy" in content:
                materialise(network, content["lazy"])
            restore_structure(network, **{key: content[key] for key in _STRUCTURE if key in content})
        except UserError:
            raise
        except Exception as error:  # damaged names and ranks raise many kinds
            raise WeightsError(
                f"Expected the structure of {type(network).__name__} in {recipe}, but got: "
                f"{printable(conceal(str(error)), 300)}. The file is damaged, or from another network."
            ) from error
    path = Path(folder) / f"{name}.safetensors"
    if os.path.lexists(path) and not exists(path):
        raise WeightsError(f"Expected a regular file at {path}, but got another kind of file. Copy the folder again.")
    dtype = _stored_dtype(path)
    if dtype is not None and dtype != first_weight(network).dtype:  # the constructor makes another precision
        move(network, dtype)
    load_weights(network, path)
    if content.get("layout") == "channels_last":
        move(network, memory_format=torch.channels_last)
    try:
        if logits and "answers" in content:
            Answers(**content["answers"]).attach(network)
        if logits and "inputs" in content:
            ValueRange.from_dict(content["inputs"]).attach(network)
    except (LookupError, TypeError, ValueError) as error:
        raise WeightsError(
            f"Expected the answers and inputs of a network in {recipe}, but got: {printable(first_line(error), 300)}. "
            f"The file is damaged."
        ) from error
    return set_mode(network, training=False)


def to_folder(folder: str | Path) -> Path:
    """Return the path of a folder of networks.

    Raises:
        FileNotFoundError: If it is no path.
    """
    if not isinstance(folder, str | os.PathLike):
        raise FileNotFoundError(f"Expected the folder of a finished stage, but got {printable(repr(folder), 100)}.")
    return Path(folder)


def _with_full_path(recipe: Any, folder: Path) -> Any:
    """Return a recipe with the full path of its Python file or program, if that is in the same folder (an export)."""
    path = executed_file(recipe) if isinstance(recipe, dict) else None
    if path is not None and Path(path).name == path and exists(folder / path):
        return {**recipe, "path": str(folder / path)}
    return recipe


def damaged_stage(folder: str | Path, error: DamagedError) -> WeightsError:
    """Return the error of a finished stage whose files differ from its manifest."""
    return WeightsError(
        f"Expected a complete stage in {folder}, but it is damaged: {error}. Run its command again to build "
        f"the stage again, or copy the folder again."
    )


def _stored_dtype(path: Path) -> torch.dtype | None:
    """Return the data type of the first floating-point tensor of a file; None if there is none, or it is damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            names = [file.get_slice(key).get_dtype() for key in file.keys()]  # noqa: SIM118
    except (OSError, SafetensorError):
        return None  # load_weights says what is wrong
    return next((_DTYPES[name] for name in names if name in _DTYPES), None)
