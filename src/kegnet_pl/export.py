"""Export of a student as ONNX, torch.export, TorchScript and safetensors: ``python -m kegnet_pl.export RUN``."""

import argparse
import json
import os
import shutil
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Literal

from torch import nn

from kegnet_pl.api.checkpoints import load_network
from kegnet_pl.api.export import FORMATS as NETWORK_FORMATS
from kegnet_pl.api.export import ExportedFile, compare_outputs, export_network, find_output_shape
from kegnet_pl.api.quantization import draw_samples, quantize
from kegnet_pl.api.trust import TRUST_HELP, check_code
from kegnet_pl.compression import measure_agreement
from kegnet_pl.networks import Answers, answers_of, as_classifier, value_range_of
from kegnet_pl.networks.foreign import executed_file
from kegnet_pl.networks.validation import samples_for_trial, to_shape
from kegnet_pl.pipeline.objects import source_definitions
from kegnet_pl.reporting.model_card import QuantizedFile, write_model_card
from kegnet_pl.reporting.results import Row, find_last, find_named
from kegnet_pl.reporting.run_page import STAGES, StageFolders
from kegnet_pl.reporting.runs import read_runs
from kegnet_pl.reporting.tables import explain_difference
from kegnet_pl.runtime.atomic_files import atomic_write
from kegnet_pl.runtime.environment import display_path
from kegnet_pl.runtime.errors import UserError, first_line
from kegnet_pl.runtime.safe_files import exists, is_inside, printable, read_bytes, read_json
from kegnet_pl.settings import RunSettings
from kegnet_pl.sources import build_source, describe_mixture

FORMATS = (*NETWORK_FORMATS, "safetensors")

Activations = Literal["int8", "float"]


def export_run(
    run: Path,
    out: Path | None = None,
    formats: Sequence[str] = FORMATS,
    *,
    method: str | None = None,
    batch_size: int | None = None,
    int8: Sequence[Activations] = (),
    source: str = "procedural",
    trust: Collection[str] = (),
) -> tuple[list[ExportedFile], list[QuantizedFile], Row]:
    """Export a network of a finished run, with a model card.

    Args:
        run: Folder of the run.
        out: Folder of the files; None for ``RUN/export``.
        formats: Some of :data:`FORMATS`. ``"safetensors"`` writes weights and structure for :func:`load_network`.
        method: Network of the run, such as ``"T+KegNet"`` or ``"student (KegNet)"``; None for the last one that was not
            trained on real data.
        batch_size: Samples of every batch; None for any number.
        int8: Activations of further ONNX files with int8 weights: ``"int8"``, ``"float"`` or both.
        source: Source of their calibration samples, by name.
        trust: Code that the files of the run may name, see :func:`load_network`.

    Returns:
        The files in float32, those in int8, and the row of results of the network.

    Raises:
        UserError: If the run has no such network, or it cannot be exported.
        ValueError: If there is no such source.
    """
    unknown = [name for name in formats if name not in FORMATS]
    if unknown:
        raise UserError(f"Expected formats among {', '.join(FORMATS)}, but got {', '.join(unknown)}.")
    found, stages = read_runs(run)[0].rows, StageFolders.read(run)
    if stages is None:
        raise UserError(
            f"Expected stages.json in {display_path(run)}, but found none. Give the folder of one run, such as "
            f"outputs/runs/..., not of a sweep."
        )
    rows = [row for row in found if row.quantization is None]
    row = find_last(rows) if method is None else find_named(rows, method)
    if row is None:
        raise UserError(f"Expected `method` to be one of {', '.join(one.method for one in rows)}, but got {method!r}.")
    folders = stages.networks.get(row.method, {})
    folder = next((folders[name] for name in ("student", "compression", "teacher") if name in folders), None)
    groups = [stages.config.get(group) for group in ("data", "compression")]
    if folder is None or not all(isinstance(group, dict) for group in groups) or "classes" not in stages.config["data"]:
        raise UserError(
            f"Expected the stages of {row.method} in {run / STAGES}, but the file is damaged. Run the command of "
            f"the run again."
        )
    if not (folder / "network.json").is_file():
        raise UserError(
            f"Expected {row.method} of {display_path(run)} in the store, but its folder was deleted. Run its command "
            f"again: {row.command}"
        )
    files_of_stage = [folder / f"network.{suffix}" for suffix in ("json", "safetensors")]
    out, own_folder = (run / "export", [run / "export"]) if out is None else (out, [])
    for path, inside in [*((path, folder) for path in files_of_stage), *((path, run) for path in own_folder)]:
        if not is_inside(path, inside):
            raise UserError(
                f"Expected {display_path(path)} inside {display_path(inside)}, but it is a link that leaves that "
                f"folder. Copy its target into the folder{', or choose --out FOLDER' if path == out else ''}."
            )
    card = out / "README.md"
    if os.path.lexists(card) and b"library_name: kegnet_pl" not in read_bytes(card, out):
        raise UserError(
            f"Expected a separate folder for the files, but {display_path(out)} has another README.md, which the "
            f"model card would overwrite. Choose another folder with --out FOLDER."
        )
    network, logits = (load_network(folder, logits=logits, trust=trust) for logits in (False, True))
    out.mkdir(parents=True, exist_ok=True)
    shape = to_shape(stages.config["data"].get("input_shape"))
    files = export_network(
        network, out, shape, [name for name in formats if name in NETWORK_FORMATS], batch_size=batch_size,
        outputs=answers_of(logits) or "auto",
    )  # fmt: skip
    own, output = None, find_output_shape(network, shape)
    if "safetensors" in formats:
        for suffix in ("safetensors", "json"):
            (out / f"model.{suffix}").unlink(missing_ok=True)  # a link is replaced, not followed
            shutil.copyfile(folder / f"network.{suffix}", out / f"model.{suffix}")
        own = _copy_own_file(out)
        again = load_network(out, "model", trust=[*trust, *([str(own)] if own is not None else [])])
        difference = compare_outputs(network, again, [samples_for_trial(shape)]) if output is not None else 0.0
        path = out / "model.safetensors"
        files.append(ExportedFile("safetensors", path, path.stat().st_size, difference))
    quantized = _quantize(network, logits, out, stages, row.seed, int8, source, batch_size, trust) if int8 else []
    every = [(file.format, file.path.name, file.size) for file in files]
    if own is not None:
        every.append(("code", own.name, own.stat().st_size))
    write_model_card(
        card, row, rows[0], stages, every, quantized, None if own is None else own.name,
        answers_of(logits), output,
    )  # fmt: skip
    return files, quantized, row


def _copy_own_file(out: Path) -> Path | None:
    """Copy the Python file or program that ``model.json`` names into the same folder; return the copy, None without."""
    content = read_json(out / "model.json", out)
    source = Path(executed_file(content["network"]) or "")
    if not exists(source):
        return None
    copied = out / source.name
    if copied.resolve() != source.resolve():
        copied.unlink(missing_ok=True)
        shutil.copyfile(source, copied)
    content["network"]["path"] = source.name
    atomic_write(out / "model.json", json.dumps(content, indent=2))
    return copied


def _quantize(
    network: nn.Module,
    logits: nn.Module,
    out: Path,
    stages: StageFolders,
    seed: int,
    int8: Sequence[Activations],
    name: str,
    batch_size: int | None,
    trust: Collection[str],
) -> list[QuantizedFile]:
    """Write a network with int8 weights; ``logits`` is the network of the stages, ``name`` that of the source."""
    check_code(stages.config.get("source"), Path(STAGES), trust)
    settings = RunSettings.from_config(stages.config)
    info = describe_mixture({name: 1.0}, settings.source)
    trained = stages.find("generators")
    if info.needs_data:
        raise UserError(f"Expected a source of synthetic samples in --source, but got {name}. Use --source procedural.")
    if info.needs_generators and trained is None:
        raise UserError(
            f"Expected a run with generators for --source {name}, but it has none. Use --source procedural."
        )
    teacher, shape = stages.find("teacher"), settings.data.input_shape
    drawn = build_source(
        info.shares, source_definitions(settings, info.shares), input_shape=shape,
        teacher=load_network(teacher, logits=True, trust=trust) if teacher is not None else None,
        generators=None if trained is None
        else [load_network(trained, f"generator_{index}", trust=trust) for index in range(settings.generator.count)],
    )  # fmt: skip
    samples, held_out = draw_samples(drawn, settings.quantization.samples, seed)
    answers, values = answers_of(logits), value_range_of(logits)
    files = []
    for activations in dict.fromkeys(int8):
        calibration, suffix = (samples, "int8") if activations == "int8" else (None, "int8-weights")
        if values is not None and calibration is not None:  # the file takes pixels, as the network does
            (calibration,) = values(network, (calibration,))
        quantized = quantize(
            network, out / f"model.{suffix}.onnx", shape, calibration, batch_size=batch_size, outputs=answers or "auto"
        )
        # The file answers as the network does, except that one that returns a tuple or dict becomes one with logits.
        compared: nn.Module = quantized
        if answers is not None and find_output_shape(network, shape) is not None:
            compared = as_classifier(quantized, shape, Answers(answers.outputs))
        if values is not None:
            values.attach(compared)
        agreement = measure_agreement(logits, compared, held_out)
        files.append(QuantizedFile(quantized.path, quantized.size, activations, info, len(samples), agreement))
    return files


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


def _describe(file: QuantizedFile) -> str:
    """Return the line of a file in int8, with a warning if it agrees too little with the network."""
    agreement = "not known" if file.agreement is None else f"{file.agreement:.1%}"
    line = (
        f"  {display_path(file.path)}  {file.size / 1e6:.2f} MB, the network's class for {agreement} of {file.samples} "
        f"held-out samples of {file.source.title}"
    )
    warning = explain_difference(file.agreement)
    return line if warning is None else f"{line}\n  Warning: {warning}"


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
        help="network of the run, such as T+KegNet or 'student (KegNet)' (default: the last one without real data)",
    )
    parser.add_argument("--out", type=Path, help="folder of the files (default: RUN/export)")
    parser.add_argument(
        "--samples",
        type=int,
        metavar="N",
        help="also write N samples of the student's source, with the teacher's labels",
    )
    parser.add_argument("--pictures", action="store_true", help="with --samples: also write PNG files, by class")
    parser.add_argument("--batch-size", type=int, metavar="N", help="fixed size of every batch (default: any size)")
    parser.add_argument(
        "--int8", action="store_true", help="also write model.int8.onnx: weights and activations in int8"
    )
    parser.add_argument(
        "--int8-weights", action="store_true", help="also write model.int8-weights.onnx: only weights in int8"
    )
    parser.add_argument(
        "--source", default="procedural", help="source of the calibration samples (default: %(default)s)"
    )
    parser.add_argument("--trust", nargs="+", default=[], metavar="NAME", help=TRUST_HELP)
    parser.add_argument("--push-to-hub", metavar="REPO", help="also upload the folder to this private repository")
    options = parser.parse_args(arguments)
    try:
        int8: list[Activations] = ["int8"] if options.int8 else []
        int8 += ["float"] if options.int8_weights else []
        files, quantized, row = export_run(
            options.folder, options.out, options.format.split(","), method=options.method,
            batch_size=options.batch_size, int8=int8, source=options.source, trust=options.trust,
        )  # fmt: skip
        lines = [f"{row.name}, {row.compression_ratio:.2f} times smaller than its teacher:"]
        for file in files:
            lines.append(
                f"  {display_path(file.path)}  {file.size / 1e6:.2f} MB, largest relative difference from the network: "
                f"{file.difference:.1e}"
            )
        lines += [_describe(file) for file in quantized]
        lines += [f"  Warning: {sentence}" for sentence in row.warnings or []]
        folder = options.out or options.folder / "export"
        lines.append(f"  {display_path(folder / 'README.md')}  model card")
        if options.samples is not None:
            from kegnet_pl.pipeline.synthetic_set import export_samples

            path, info = export_samples(
                options.folder,
                folder,
                options.samples,
                method=options.method,
                pictures=options.pictures,
                trust=options.trust,
            )
            lines.append(f"  {display_path(path)}  {options.samples:,} samples of {info.title} (prior: {info.prior})")
        if options.push_to_hub:
            lines.append(f"uploaded: {push_to_hub(folder, options.push_to_hub)}")
    except (UserError, ValueError, FileNotFoundError) as error:
        print(f"Error: {printable(error, lines=True)}", file=sys.stderr)  # noqa: T201
        return 1
    print("\n".join(lines))  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())
