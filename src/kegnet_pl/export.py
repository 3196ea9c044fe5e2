"""Export of a student as ONNX, torch.export, TorchScript and safetensors: ``python -m kegnet_pl.export RUN``."""

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from kegnet_pl.api.checkpoints import load_network
from kegnet_pl.api.export import FORMATS as NETWORK_FORMATS
from kegnet_pl.api.export import ExportedFile, compare_outputs, export_network, returns_tensor
from kegnet_pl.networks.validation import samples_for_trial
from kegnet_pl.reporting.model_card import write_model_card
from kegnet_pl.reporting.results import Row, find_last
from kegnet_pl.reporting.run_page import StageFolders
from kegnet_pl.reporting.runs import read_runs
from kegnet_pl.runtime.environment import display_path
from kegnet_pl.runtime.errors import UserError, first_line

FORMATS = (*NETWORK_FORMATS, "safetensors")


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
    files = export_network(
        network, out, shape, [name for name in formats if name in NETWORK_FORMATS], batch_size=batch_size
    )
    if "safetensors" in formats:
        for suffix in ("safetensors", "json"):
            shutil.copyfile(folder / f"network.{suffix}", out / f"model.{suffix}")
        again = load_network(out, "model")
        difference = (
            compare_outputs(network, again, [samples_for_trial(shape)]) if returns_tensor(network, shape) else 0.0
        )
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
