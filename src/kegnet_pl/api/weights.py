"""Reading weights from files that strangers may have written: nothing is unpickled but tensors."""

import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from kegnet_pl.runtime.errors import WeightsError, first_line

_CONTAINERS = ("state_dict", "model_state", "model_state_dict", "model")
"""Keys under which checkpoints keep their state dict: Lightning, the KegNet release, others."""

_FOREIGN = ("Unsupported global", "unsupported GLOBAL", "add_safe_globals` but got", "add_safe_globals`, but got")
"""How torch says that a file holds other objects than tensors; other complaints are about damage."""


def _holds_objects(path: Path, complaint: str) -> bool:
    """Whether a complaint is about Python objects; the name of a class may also just be cut short."""
    named = re.search(r"GLOBAL (\S+)", complaint)
    if named is not None and not zipfile.is_zipfile(path):
        module, _, name = named[1].rpartition(".")
        return f"{module}\n{name}\n".encode() in path.read_bytes()
    return any(sign in complaint for sign in _FOREIGN)


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Read the tensors of a weight file.

    Args:
        path: A state dict saved by torch, a Lightning checkpoint, the authors' release (a dict with ``model_state``),
            or a ``.safetensors`` file; on any device, in the new or the old serialisation.

    Returns:
        Tensors by key, on the CPU.

    Raises:
        WeightsError: If the file is missing, damaged, or holds something else than tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(
            f"Expected a weight file at {path}, but there is {'a folder' if path.is_dir() else 'none'}. "
            f"Check teacher.weights; relative paths start in the folder you run from ({Path.cwd()})."
        )
    try:
        if path.suffix == ".safetensors":
            content: Any = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if _holds_objects(path, str(error)):
            raise WeightsError(
                f"Expected tensors alone in {path}, but it holds Python objects, which are not loaded since they could "
                f"run code. Save it again where it was made: torch.save(model.state_dict(), FILE)."
            ) from error
        raise _damaged(path, error) from error
    except Exception as error:  # damaged files raise many kinds
        raise _damaged(path, error) from error

    for container in _CONTAINERS:
        if isinstance(content, Mapping) and isinstance(content.get(container), Mapping):
            content = content[container]
            break
    if not isinstance(content, Mapping) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        raise WeightsError(
            f"Expected a state dict (tensors by name) in {path}, alone or under one of {_CONTAINERS}, but got "
            f"{_describe(content)}. Save it with torch.save(model.state_dict(), FILE)."
        )
    return {str(key): value for key, value in content.items()}


def _damaged(path: Path, error: Exception) -> WeightsError:
    if isinstance(error, PermissionError):
        return WeightsError(f"Expected to read {path}, but got: permission denied. Ask for it, or copy the file.")
    size = path.stat().st_size
    if _is_program(path):
        return WeightsError(
            f"Expected weights in {path}, but it holds a program (TorchScript or torch.export). Where the network's "
            f"class is at hand, save its weights alone: torch.save(model.state_dict(), FILE)."
        )
    if not size:
        reason = "it is empty"
    elif path.suffix == ".safetensors":
        reason = first_line(error).rstrip(".")
    else:
        reason = "it is not what torch.save writes, or not all of it"  # torch's own words advise to unpickle anything
    return WeightsError(
        f"Expected a whole weight file at {path} ({size:,} bytes), but it cannot be read: {reason}. It may be cut "
        f"short; copy it again."
    )


def _is_program(path: Path) -> bool:
    """Whether a file is what torch.jit.save or torch.export.save writes."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        parts = {part for name in archive.namelist() for part in name.split("/")}
    return bool(parts & {"code", "constants.pkl", "models", "serialized_exported_program.json"})


def _describe(content: Any) -> str:
    if isinstance(content, Mapping):
        return f"a dict with the keys {', '.join(map(str, list(content)[:8])) or '(none)'}"
    return f"a {type(content).__name__}"


def _strip_prefix(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the part of a state dict below the prefix under which most of the expected keys are found.

    That covers wrappers (``module.``, ``_orig_mod.``) and LightningModules, whose networks are attributes.
    """
    candidates = {""}
    for key in state:
        for name in expected:
            if key.endswith(f".{name}"):
                candidates.add(key.removesuffix(name))
    found = {prefix: sum(f"{prefix}{name}" in state for name in expected) for prefix in candidates}
    best = [prefix for prefix, count in found.items() if count == max(found.values())]
    if len(best) > 1:
        raise WeightsError(
            f"Expected the weights of one network in the file, but it fits below each of {sorted(best)}. Save the one "
            f"that is meant: torch.save(model.state_dict(), FILE)."
        )
    (prefix,) = best
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def load_weights(network: nn.Module, path: str | Path) -> None:
    """Load a weight file into a network, all of it.

    Args:
        network: Its weights are overwritten.
        path: See :func:`read_state_dict`.

    Raises:
        WeightsError: If the file cannot be read, or keys or shapes differ; the message says which.
    """
    expected = network.state_dict()
    state = _strip_prefix(read_state_dict(path), expected)
    missing = [key for key in expected if key not in state]
    unknown = [key for key in state if key not in expected]
    shapes = [
        f"{key} is {tuple(state[key].shape)} in the file, {tuple(value.shape)} in the network"
        for key, value in expected.items()
        if key in state and state[key].shape != value.shape
    ]
    # Batch norm counts batches for nothing but its cumulative average; old files lack the count.
    missing = [key for key in missing if not key.endswith("num_batches_tracked")]
    problems = [
        f"{title}: {', '.join(items[:8])}{f' and {len(items) - 8} more' if len(items) > 8 else ''}"
        for title, items in (("missing", missing), ("unknown", unknown), ("other shapes", shapes))
        if items
    ]
    if problems:
        raise WeightsError(
            f"Expected the weights of {type(network).__name__} in {path}, but they are another network's. "
            f"{'; '.join(problems)}. Choose the network that made the file (teacher=..., data.classes, "
            f"data.input_shape)."
        )
    # Buffers of one's own may be infinite (a mask of attention).
    numbers = {name for name, _ in network.named_parameters()} | {
        key for key in expected if key.endswith(("running_mean", "running_var"))
    }
    wrong = [
        key for key, value in state.items() if value.is_floating_point() != expected[key].is_floating_point()
        or (key in numbers and not bool(torch.isfinite(value).all()))
    ]  # fmt: skip
    if wrong:
        raise WeightsError(
            f"Expected finite real numbers in {path}, but got NaN, infinite or other values in: {', '.join(wrong[:8])}"
            f". Check how the network was trained and saved."
        )
    network.load_state_dict(state, strict=False)
