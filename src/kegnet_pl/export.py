"""Export of a student as ONNX, torch.export, TorchScript and safetensors: ``python -m kegnet_pl.export RUN``."""

import argparse
import copy
import logging
import math
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kegnet_pl.api.checkpoints import load_network
from kegnet_pl.networks import as_classifier
from kegnet_pl.networks.execution import eval_mode, first_weight
from kegnet_pl.networks.validation import FORWARD_ERRORS, samples_for_trial
from kegnet_pl.reporting.model_card import write_model_card
from kegnet_pl.reporting.results import Row, find_last
from kegnet_pl.reporting.run_page import StageFolders
from kegnet_pl.reporting.runs import read_runs
from kegnet_pl.runtime.environment import display_path
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
    try:
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"Expected the packages of ONNX for the format onnx, but {error.name} is not installed. Run: pip install "
            f"'kegnet_pl[onnx]'"
        ) from error
    program = torch.onnx.export(
        network, (x,), dynamo=True, dynamic_shapes=_dynamic(dynamic), input_names=["input"], output_names=["output"],
        verbose=False,
    )  # fmt: skip
    assert program is not None
    program.save(str(path))
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda batch: torch.from_numpy(session.run(None, {"input": batch.numpy()})[0])


def _dynamic(dynamic: bool) -> tuple[dict[int, Any]] | None:
    return ({0: torch.export.Dim("batch", min=1)},) if dynamic else None


_WRITERS = {
    "onnx": ("onnx", _onnx),
    "torch_export": ("pt2", _torch_export),
    "torchscript": ("ts", _torchscript),
}
"""Format -> suffix of its file, and function that writes it and loads it again."""

FORMATS = (*_WRITERS, "safetensors")


def export_network(
    network: nn.Module,
    folder: str | Path,
    input_shape: Sequence[int],
    formats: Sequence[str] = ("onnx", "torch_export"),
    *,
    batch_size: int | None = None,
) -> list[ExportedFile]:
    """Write a network as files that run without kegnet_pl, and compare each with the network.

    A network that returns a tensor keeps its answers; one that returns a tuple or dict is exported with logits.

    Args:
        network: Any classifier; it is not changed.
        folder: Folder of the files ``model.onnx``, ``model.pt2`` and ``model.ts``.
        input_shape: Shape of one sample.
        formats: Some of ``"onnx"``, ``"torch_export"`` and ``"torchscript"``.
        batch_size: Samples of every batch; None for any number.

    Returns:
        One entry per format: path, size, and difference from the network.

    Raises:
        UserError: If a package is missing, the network cannot be exported, or a file does not return what the network
            returns.
    """
    unknown = [name for name in formats if name not in _WRITERS]
    if unknown:
        raise UserError(f"Expected `formats` to be some of {', '.join(_WRITERS)}, but got {', '.join(unknown)}.")
    if batch_size is not None and batch_size < 1:
        raise UserError(f"Expected `batch_size` of at least 1, but got {batch_size}.")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    plain = _with_tensor(copy.deepcopy(network).cpu().eval().requires_grad_(False), input_shape)
    sizes = _BATCHES if batch_size is None else (batch_size,)
    batches = [samples_for_trial(input_shape, size).to(first_weight(plain).dtype) for size in sizes]
    files = []
    for name in dict.fromkeys(formats):
        suffix, write = _WRITERS[name]
        path = folder / f"model.{suffix}"
        try:
            with _quiet():
                run = write(plain, batches[-1], path, batch_size is None)
        except (*FORWARD_ERRORS, torch.onnx.errors.OnnxExporterError) as error:
            path.unlink(missing_ok=True)
            fixed = (
                " Try a fixed batch size: batch_size=N (command line: --batch-size N)." if batch_size is None else ""
            )
            raise UserError(
                f"Expected a network that torch can export as {name}, but {type(network).__name__} failed: "
                f"{first_line(error).rstrip('.')}.{fixed}"
            ) from error
        difference = _compare(plain, run, batches)
        if not difference <= TOLERANCE:
            path.unlink()
            raise UserError(
                f"Expected {path.name} to return the outputs of the network, with a relative difference of at most "
                f"{TOLERANCE:.0e}, but got {difference:.2g} (inf: another shape). The file was deleted. Try another "
                f"format or a fixed batch size (--batch-size N)."
            )
        files.append(ExportedFile(name, path, path.stat().st_size, difference))
    return files


def _with_tensor(network: nn.Module, input_shape: Sequence[int]) -> nn.Module:
    """Return a network that returns a tensor: itself, or with logits."""
    return network if _returns_tensor(network, input_shape) else as_classifier(network, input_shape)


def _returns_tensor(network: nn.Module, input_shape: Sequence[int]) -> bool:
    with torch.no_grad():
        return isinstance(network(samples_for_trial(input_shape).to(first_weight(network).dtype)), Tensor)


@torch.no_grad()
def _compare(network: nn.Module, run: Run, batches: Sequence[Tensor]) -> float:
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
def _quiet() -> Iterator[None]:
    """Suppress the exporters' warnings about their own deprecations."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def export_run(
    run: Path,
    out: Path | None = None,
    formats: Sequence[str] = FORMATS,
    *,
    method: str | None = None,
    batch_size: int | None = None,
) -> tuple[list[ExportedFile], Row]:
    """Export a network of a finished run, with a model card.

    Args:
        run: Folder of the run.
        out: Folder of the files; None for ``RUN/export``.
        formats: Some of :data:`FORMATS`. ``"safetensors"`` writes weights and structure for :func:`load_network`.
        method: Network of the run, such as ``"T+KegNet"``; None for the last one that was not trained on real
            data.
        batch_size: Samples of every batch; None for any number.

    Returns:
        The files, and the row of results of the network.

    Raises:
        UserError: If the run has no such network, or it cannot be exported.
    """
    unknown = [name for name in formats if name not in FORMATS]
    if unknown:
        raise UserError(f"Expected formats among {', '.join(FORMATS)}, but got {', '.join(unknown)}.")
    rows = read_runs(run)[0].rows
    row = find_last(rows) if method is None else next((row for row in rows if row.method == method), None)
    stages = StageFolders.read(run)
    if stages is None:
        raise UserError(
            f"Expected stages.json in {display_path(run)}, but found none. Give the folder of one run, such as "
            f"outputs/runs/..., not of a sweep."
        )
    if row is None:
        raise UserError(f"Expected `method` to be one of {', '.join(one.method for one in rows)}, but got {method!r}.")
    folder = [path for name, path in stages.networks[row.method].items() if name != "evaluation"][-1]
    if not (folder / "network.json").is_file():
        raise UserError(
            f"Expected {row.method} of {display_path(run)} in the store, but its folder was deleted. Run its command "
            f"again: {row.command}"
        )
    out = run / "export" if out is None else out
    card = out / "README.md"
    if card.exists() and "library_name: kegnet_pl" not in card.read_text(errors="replace"):
        raise UserError(
            f"Expected a folder of its own for the files, but {display_path(out)} has another README.md, which the "
            f"model card would overwrite. Choose another folder with --out FOLDER."
        )
    out.mkdir(parents=True, exist_ok=True)
    network = load_network(folder)
    shape = stages.config["data"]["input_shape"]
    files = export_network(network, out, shape, [name for name in formats if name in _WRITERS], batch_size=batch_size)
    if "safetensors" in formats:
        for suffix in ("safetensors", "json"):
            shutil.copyfile(folder / f"network.{suffix}", out / f"model.{suffix}")
        again = load_network(out, "model")
        difference = _compare(network, again, [samples_for_trial(shape)]) if _returns_tensor(network, shape) else 0.0
        path = out / "model.safetensors"
        files.append(ExportedFile("safetensors", path, path.stat().st_size, difference))
    write_model_card(card, row, rows[0], stages, [(file.format, file.path.name, file.size) for file in files])
    return files, row


def push_to_hub(folder: Path, repository: str) -> str:
    """Upload exported files to a repository of the Hugging Face Hub, created if it is missing; return its address.

    Raises:
        UserError: If huggingface_hub is not installed, or the upload fails.
    """
    try:
        from huggingface_hub import HfApi
    except ImportError as error:
        raise UserError(
            "Expected huggingface_hub for --push-to-hub, but it is not installed. Run: pip install 'kegnet_pl[hub]'"
        ) from error
    hub = HfApi()
    try:
        hub.create_repo(repository, exist_ok=True, private=True)
        return str(hub.upload_folder(folder_path=folder, repo_id=repository, allow_patterns=["README.md", "model.*"]))
    except (OSError, ValueError) as error:  # HTTP errors are an OSError
        raise UserError(
            f"Expected to upload to {repository}, but got: {first_line(error)} Check its name, and the token: hf auth "
            f"login"
        ) from error


def main(arguments: list[str] | None = None) -> int:
    """Run the command line with arguments, or those of this process; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m kegnet_pl.export",
        description="Export the student of a finished run, with a model card. Files other than safetensors run without "
        "kegnet_pl; each is compared with the student.",
    )
    parser.add_argument("folder", type=Path, metavar="RUN", help="folder of a finished run, such as outputs/runs/...")
    parser.add_argument(
        "--format", default=",".join(FORMATS), help="comma-separated list of formats (default: %(default)s)"
    )
    parser.add_argument(
        "--method",
        help="network of the run, such as T+KegNet (default: the last one that was not trained on real data)",
    )
    parser.add_argument("--out", type=Path, help="folder of the files (default: RUN/export)")
    parser.add_argument(
        "--samples",
        type=int,
        metavar="N",
        help="also write N samples of the student's source, with the teacher's labels",
    )
    parser.add_argument("--pictures", action="store_true", help="with --samples: also as PNG files, by class")
    parser.add_argument("--batch-size", type=int, metavar="N", help="fixed size of every batch (default: any size)")
    parser.add_argument("--push-to-hub", metavar="REPO", help="also upload the folder to this private repository")
    options = parser.parse_args(arguments)
    try:
        files, row = export_run(
            options.folder, options.out, options.format.split(","), method=options.method, batch_size=options.batch_size
        )
        lines = [f"{row.method}, {row.compression_ratio:.2f} times smaller than its teacher:"]
        for file in files:
            lines.append(
                f"  {display_path(file.path)}  {file.size / 1e6:.2f} MB, largest relative difference from the network: "
                f"{file.difference:.1e}"
            )
        folder = options.out or options.folder / "export"
        lines.append(f"  {display_path(folder / 'README.md')}  model card")
        if options.samples is not None:
            from kegnet_pl.pipeline.synthetic_set import export_samples

            path, info = export_samples(
                options.folder, folder, options.samples, method=options.method, pictures=options.pictures
            )
            lines.append(f"  {display_path(path)}  {options.samples:,} samples of {info.title} (prior: {info.prior})")
        if options.push_to_hub:
            lines.append(f"uploaded: {push_to_hub(folder, options.push_to_hub)}")
    except (UserError, ValueError, FileNotFoundError) as error:
        print(f"Error: {error}", file=sys.stderr)  # noqa: T201
        return 1
    print("\n".join(lines))  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())
