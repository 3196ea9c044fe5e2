"""Weights from files of untrusted origin: only tensors are unpickled."""

import pickle
import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from kegnet_pl.runtime.errors import WeightsError, first_line

_CONTAINERS = (
    "state_dict", "model_state", "model_state_dict", "model", "net", "network", "weights", "params",
    "state_dict_ema", "model_ema", "ema_state_dict", "ema",
)  # fmt: skip
"""Keys of the state dict in checkpoints of Lightning, the KegNet release, timm and others; plain weights come before
averages of weights (EMA)."""

_ZIP = b"PK\x03\x04"

_FOREIGN = ("Unsupported global", "unsupported GLOBAL", "add_safe_globals` but got", "add_safe_globals`, but got")
"""Parts of torch's messages about other objects than tensors; other messages mean a damaged file."""


def _holds_objects(path: Path, message: str) -> bool:
    """Return True if torch's error message means Python objects, not the name of a class in a truncated file."""
    match = re.search(r"GLOBAL (\S+)", message)
    if match is not None and not path.read_bytes().startswith(_ZIP):
        module, _, name = match[1].rpartition(".")
        return f"{module}\n{name}\n".encode() in path.read_bytes()
    return any(part in message for part in _FOREIGN)


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Read the tensors of a weight file.

    Args:
        path: A state dict saved by torch, a Lightning checkpoint, the authors' release (a dict with ``model_state``),
            or a ``.safetensors`` file; from any device, in the new or the old format of torch.

    Returns:
        Tensors by key, on the CPU.

    Raises:
        WeightsError: If the file is missing, damaged, or holds other objects than tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(
            f"Expected a weight file at {path}, but found {'a folder' if path.is_dir() else 'none'}. "
            f"Check teacher.weights; relative paths start in the working directory ({Path.cwd()})."
        )
    try:
        if path.suffix == ".safetensors":
            content: Any = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if _holds_objects(path, str(error)):
            raise WeightsError(
                f"Expected only tensors in {path}, but got Python objects, which are not loaded since they could run "
                f"code. Save the weights again, in the original program: torch.save(model.state_dict(), FILE)."
            ) from error
        raise _damaged(path, error) from error
    except Exception as error:  # damaged files raise many kinds
        raise _damaged(path, error) from error

    for _ in range(3):  # such as {"model": {"state_dict": ...}}
        containers = [
            key for key in _CONTAINERS if isinstance(content, Mapping) and isinstance(content.get(key), Mapping)
        ]
        content = content[containers[0]] if containers else content
    if not isinstance(content, Mapping) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        received = f"a {type(content).__name__}"
        if isinstance(content, Mapping):
            received = f"a dict with the keys {', '.join(map(str, list(content)[:8])) or '(none)'}"
        raise WeightsError(
            f"Expected a state dict (tensors by name) in {path}, at the top level or under one of {_CONTAINERS}, but "
            f"got {received}. Save it with torch.save(model.state_dict(), FILE)."
        )
    return {str(key): value for key, value in content.items()}


def _damaged(path: Path, error: Exception) -> WeightsError:
    if isinstance(error, PermissionError):
        return WeightsError(
            f"Expected to read {path}, but got: permission denied. Change its permissions, or copy the file."
        )
    size = path.stat().st_size
    if _is_program(path):
        return WeightsError(
            f"Expected weights in {path}, but got a program (TorchScript or torch.export). Save only the weights, in "
            f"the original program: torch.save(model.state_dict(), FILE)."
        )
    if not size:
        reason = "it is empty"
    elif path.suffix == ".safetensors":
        reason = first_line(error).rstrip(".")
    else:
        reason = "it is not a complete file of torch.save"  # torch's own message advises to unpickle any object
    return WeightsError(
        f"Expected a complete weight file at {path} ({size:,} bytes), but it cannot be read: {reason}. It may be "
        f"truncated; copy it again."
    )


def _is_program(path: Path) -> bool:
    """Return True if torch.jit.save or torch.export.save wrote the file."""
    try:
        with zipfile.ZipFile(path) as archive:
            parts = {part for name in archive.namelist() for part in name.split("/")}
    except Exception:  # damaged archives raise many kinds
        return False
    return bool(parts & {"code", "constants.pkl", "models", "serialized_exported_program.json"})


def _strip_prefix(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the part of a state dict below the prefix that matches most of the expected keys.

    Prefixes come from wrappers (``module.``, ``_orig_mod.``) and from LightningModules, whose networks are attributes.
    """
    candidates = {""}
    for key in state:
        for name in expected:
            if key.endswith(f".{name}"):
                candidates.add(key.removesuffix(name))
    counts = {prefix: sum(f"{prefix}{name}" in state for name in expected) for prefix in candidates}
    best = [prefix for prefix, count in counts.items() if count == max(counts.values())]
    if len(best) > 1:
        raise WeightsError(
            f"Expected the weights of one network in the file, but got several, below each of {sorted(best)}. Save "
            f"only one of them: torch.save(model.state_dict(), FILE)."
        )
    (prefix,) = best
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


_WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""Parts that DataParallel, torch.compile, FSDP and activation checkpointing add to the names of wrapped modules."""


def _rename(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a state dict with the keys of a network: without prefixes and without names of wrappers."""
    found = _strip_prefix(state, expected)
    names = {_without_wrappers(name): name for name in expected}
    values = {_without_wrappers(name): value for name, value in state.items()}
    if len(found.keys() & expected.keys()) == len(expected) or len(names) < len(expected) or len(values) < len(state):
        return found
    plain = _strip_prefix(values, {name: expected[own] for name, own in names.items()})
    renamed = {names.get(name, name): value for name, value in plain.items()}
    return renamed if len(renamed.keys() & expected.keys()) > len(found.keys() & expected.keys()) else found


def _without_wrappers(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def load_weights(network: nn.Module, path: str | Path) -> None:
    """Load all weights of a network from a file. The network's own ``load_state_dict`` decides which keys fit.

    Args:
        network: Its weights are overwritten, also those of lazy layers. After an error it is unchanged.
        path: See :func:`read_state_dict`.

    Raises:
        WeightsError: If the file cannot be read, or keys or shapes differ; the message names them.
    """
    expected = network.state_dict()
    state = _rename(read_state_dict(path), expected)
    # Other buffers may be infinite, such as an attention mask.
    must_be_finite = {name for name, _ in network.named_parameters()} | {
        key for key in expected if key.endswith(("running_mean", "running_var"))
    }
    invalid = [
        key for key, value in state.items() if key in expected and (
            value.is_floating_point() != expected[key].is_floating_point()
            or (key in must_be_finite and not bool(torch.isfinite(value).all()))
        )
    ]  # fmt: skip
    if invalid:
        raise WeightsError(
            f"Expected finite real numbers in {path}, but got NaN, infinite or other values in: "
            f"{', '.join(invalid[:8])}. Check how the network was trained and saved."
        )
    before = {key: value.detach().clone() for key, value in expected.items() if not is_lazy(value)}
    shapes, missing, unknown = list[str](), list[str](), list[str]()
    try:
        result = network.load_state_dict(state, strict=False)
        missing = _without_tied(result.missing_keys, state, expected)
        unknown = list(result.unexpected_keys)
    except RuntimeError as error:
        missing = [key for key in expected if key not in state and not key.endswith("num_batches_tracked")]
        unknown = [key for key in state if key not in expected]
        shapes = [
            f"{key} is {tuple(state[key].shape)} in the file, {tuple(value.shape)} in the network"
            for key, value in expected.items()
            if key in state and not is_lazy(value) and state[key].shape != value.shape
        ] or [first_line(RuntimeError(str(error).partition("\n")[2].strip() or str(error)))]
    problems = [
        f"{title}: {', '.join(items[:3])}{f' and {len(items) - 3} more' if len(items) > 3 else ''}"
        for title, items in (("missing", missing), ("unknown", unknown), ("other shapes", shapes))
        if items
    ]
    if problems:
        with torch.no_grad():
            for key, value in before.items():
                expected[key].copy_(value)
        raise WeightsError(
            f"Expected the weights of {type(network).__name__} in {path}, but got those of another network. "
            f"{'; '.join(problems)}. Choose the network that the file belongs to (teacher=..., data.classes, "
            f"data.input_shape)."
        )


def _without_tied(missing: Sequence[str], state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> list[str]:
    """Return missing keys, without those of shared weights that the file has under the name of another layer.

    Keys ``num_batches_tracked`` are left out, too: old files lack them, and only batch norm with a cumulative average
    uses them.
    """
    loaded = {expected[key].data_ptr() for key in state if key in expected and not is_lazy(expected[key])}
    return [
        key for key in missing
        if not key.endswith("num_batches_tracked")
        and not (not is_lazy(expected[key]) and expected[key].numel() and expected[key].data_ptr() in loaded)
    ]  # fmt: skip
