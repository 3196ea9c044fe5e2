"""Export of networks as files that run without kegnet_pl: ONNX, torch.export and TorchScript."""

import logging
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kegnet_pl.networks import Answers, OutputKey, as_classifier
from kegnet_pl.networks.answers import Outputs
from kegnet_pl.networks.execution import check_values, copy_in_channels_last, eval_mode, first_weight
from kegnet_pl.networks.handling import frozen_copy, move
from kegnet_pl.networks.validation import samples_for_trial
from kegnet_pl.runtime.errors import UserError, first_line

TOLERANCE = 1e-4
"""Largest difference of outputs that is accepted, relative to the largest output or to 1."""

_BATCHES = (1, 2, 5)
"""Batch sizes at which a file is compared with the network."""


@dataclass(frozen=True)
class ExportedFile:
    """A file of an exported network.

    Attributes:
        format: Name of the format.
        path: The file.
        size: Bytes.
        difference: Largest difference between the outputs of the file and of the network, divided by the largest output
            or by 1. 0 for safetensors if the network returns no single tensor: it is not compared.
    """

    format: str
    path: Path
    size: int
    difference: float


Run = Callable[[Tensor], Tensor]
"""Runs a loaded file on a batch."""


def _torch_export(network: nn.Module, x: Tensor, path: Path, dynamic: bool) -> Run:
    program = torch.export.export(network, (x,), dynamic_shapes=_dynamic(dynamic))
    torch.export.save(program, path)
    module = torch.export.load(path).module()
    return lambda batch: module(batch)


def _torchscript(network: nn.Module, x: Tensor, path: Path, dynamic: bool) -> Run:  # noqa: ARG001
    torch.jit.trace(network, x).save(str(path))
    module = torch.jit.load(str(path))
    return lambda batch: module(batch)


def _onnx(network: nn.Module, x: Tensor, path: Path, dynamic: bool) -> Run:
    runtime = import_onnx()
    program = torch.onnx.export(
        network, (x,), dynamo=True, dynamic_shapes=_dynamic(dynamic), input_names=["input"], output_names=["output"],
        verbose=False,
    )  # fmt: skip
    assert program is not None
    for node in program.model.graph:  # stack traces, with the paths of this machine
        node.metadata_props.clear()
        for value in node.outputs:
            value.metadata_props.clear()
    program.save(str(path))
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda batch: torch.from_numpy(session.run(None, {"input": batch.numpy()})[0])


def import_onnx() -> Any:
    """Return the module onnxruntime.

    Raises:
        UserError: If a package of the extra ``onnx`` is not installed.
    """
    try:
        import onnx  # noqa: F401
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"Expected the packages of ONNX, but {error.name} is not installed. Run: pip install 'kegnet_pl[onnx]'"
        ) from error
    return onnxruntime


def _dynamic(dynamic: bool) -> tuple[dict[int, Any]] | None:
    return ({0: torch.export.Dim("batch", min=1)},) if dynamic else None


_WRITERS = {
    "onnx": ("onnx", _onnx),
    "torch_export": ("pt2", _torch_export),
    "torchscript": ("ts", _torchscript),
}
"""Format -> suffix of its file, and function that writes it and loads it again."""

FORMATS = tuple(_WRITERS)


def export_network(
    network: nn.Module,
    folder: str | Path,
    input_shape: Sequence[int],
    formats: Sequence[str] = ("onnx", "torch_export"),
    *,
    batch_size: int | None = None,
    outputs: Outputs | Answers = "auto",
    output_key: OutputKey = None,
) -> list[ExportedFile]:
    """Write a network as files that run without kegnet_pl, and compare each with the network.

    If the network returns a tensor, the files return the same tensor. If it returns a tuple or dict, they return
    logits. The weights of convolutions for images are in channels-last memory in ``model.pt2`` and ``model.ts`` if the
    network accepts it: PyTorch can be faster in this layout. ONNX Runtime has its own layout.

    Args:
        network: Any classifier; it is not changed.
        folder: Folder of the files ``model.onnx``, ``model.pt2`` and ``model.ts``.
        input_shape: Shape of one sample.
        formats: Some of ``"onnx"``, ``"torch_export"`` and ``"torchscript"``.
        batch_size: Samples of every batch; None for any number.
        outputs: Type of the output of a network that returns a tuple or dict, see :func:`as_classifier`.
        output_key: Key, attribute or position of its tensor; None finds it.

    Returns:
        One entry per format: path, size, and difference from the network.

    Raises:
        UserError: If a package is missing, the network cannot be exported, or the outputs of a file differ from those
            of the network.
    """
    unknown = [name for name in formats if name not in _WRITERS]
    if unknown:
        raise UserError(f"Expected `formats` to be some of {', '.join(_WRITERS)}, but got {', '.join(unknown)}.")
    if batch_size is not None and batch_size < 1:
        raise UserError(f"Expected `batch_size` of at least 1, but got {batch_size}.")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    check_values(network)
    plain = move(frozen_copy(network), memory_format=torch.contiguous_format)
    if find_output_shape(plain, input_shape) is None:
        plain = as_classifier(plain, input_shape, outputs, output_key)
    converted = copy_in_channels_last(plain, input_shape) if set(formats) - {"onnx"} else None
    sizes = _BATCHES if batch_size is None else (batch_size,)
    batches = [samples_for_trial(input_shape, size).to(first_weight(plain).dtype) for size in sizes]
    files = []
    for name in dict.fromkeys(formats):
        suffix, write = _WRITERS[name]
        path = folder / f"model.{suffix}"
        path.unlink(missing_ok=True)  # a link is replaced, not followed
        try:
            with quiet_exporters():
                written = plain if converted is None or name == "onnx" else converted
                run = write(written, batches[-1], path, batch_size is None)
                difference = compare_outputs(plain, run, batches)
        except UserError:
            path.unlink(missing_ok=True)
            raise
        except Exception as error:  # exporters and runtimes raise many kinds
            path.unlink(missing_ok=True)
            fixed = (
                " Try a fixed batch size: batch_size=N (command line: --batch-size N)." if batch_size is None else ""
            )
            raise UserError(
                f"Expected a network that torch can export as {name}, but {type(network).__name__} failed: "
                f"{first_line(error).rstrip('.')}.{fixed}"
            ) from error
        if not difference <= TOLERANCE:
            path.unlink()
            raise UserError(
                f"Expected {path.name} to return the outputs of the network, with a relative difference of at most "
                f"{TOLERANCE:.0e}, but got {difference:.2g} (inf: another shape). The file was deleted. Try another "
                f"format or a fixed batch size (--batch-size N)."
            )
        files.append(ExportedFile(name, path, path.stat().st_size, difference))
    return files


def find_output_shape(network: nn.Module, input_shape: Sequence[int]) -> tuple[int, ...] | None:
    """Return the shape of a network's output for one sample; None if it returns a tuple, dict or object."""
    with torch.no_grad():
        answer = network(samples_for_trial(input_shape).to(first_weight(network).dtype))
    return tuple(answer.shape[1:]) if isinstance(answer, Tensor) else None


@torch.no_grad()
def compare_outputs(network: nn.Module, run: Run, batches: Sequence[Tensor]) -> float:
    """Return the largest difference of outputs, relative to the largest output or to 1; infinite for other shapes."""
    largest = 0.0
    with eval_mode(network):
        for x in batches:
            expected, found = network(x), run(x)
            if expected.shape != found.shape:
                return math.inf
            scale = max(float(expected.abs().max()), 1.0)
            difference = float((expected - found).abs().max()) / scale
            largest = max(largest, difference if math.isfinite(difference) else math.inf)
    return largest


@contextmanager
def quiet_exporters() -> Iterator[None]:
    """Suppress the exporters' warnings about their own deprecations."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
