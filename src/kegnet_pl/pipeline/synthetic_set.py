"""The synthetic training set of a student as files: samples with the teacher's probabilities, and pictures."""

from collections.abc import Collection
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import save
from torch import Tensor

from kegnet_pl.api.checkpoints import load_network
from kegnet_pl.api.trust import check_code
from kegnet_pl.data import SyntheticDataModule
from kegnet_pl.networks import ValueRange
from kegnet_pl.pipeline.objects import make_value_range
from kegnet_pl.pipeline.stages.samples import describe_student_source, load_samples, make_student_source
from kegnet_pl.reporting.images import picture, to_array
from kegnet_pl.reporting.results import Row, find_last, find_named
from kegnet_pl.reporting.run_page import STAGES, StageFolders
from kegnet_pl.reporting.runs import read_runs
from kegnet_pl.runtime.atomic_files import atomic_write
from kegnet_pl.runtime.devices import find_device
from kegnet_pl.runtime.environment import display_path
from kegnet_pl.runtime.errors import UserError
from kegnet_pl.settings import RunSettings
from kegnet_pl.sources import SourceInfo

FILE_NAME = "samples.safetensors"
_PICTURES = "samples"


def export_samples(
    run: Path,
    out: Path,
    samples: int,
    *,
    method: str | None = None,
    pictures: bool = False,
    trust: Collection[str] = (),
) -> tuple[Path, SourceInfo]:
    """Write samples from the source of a student of a finished run, drawn as for its first epoch.

    With ``student.samples`` as the number of samples, they are the samples of that epoch.

    ``samples.safetensors`` holds ``x (N, *input_shape)`` as the teacher takes them, ``probabilities (N, C)`` of the
    teacher, and ``y (N,)``, its classes: ``data=files data.train=samples.safetensors`` reads it. Pictures are PNG
    files, in one folder for each class.

    Args:
        run: Folder of the run.
        out: Folder of the files.
        samples: Number of samples; a multiple of the number of generators for a source of generators alone.
        method: Student of the run, such as ``"T+KegNet"`` or ``"student (KegNet)"``; None for the last one that was not
            trained on real data.
        pictures: True to write pictures, too.
        trust: Code that the files of the run may name, see :func:`load_network`.

    Returns:
        The file, and the description of the source.

    Raises:
        UserError: If the run has no such student, its stages were deleted, or it was trained on real data.
        ValueError: If the number of samples does not fit the source.
    """
    stages, row = StageFolders.read(run), _find_student(run, method)
    if stages is None:
        raise UserError(f"Expected stages.json in {display_path(run)}, but found none. Give the folder of a run.")
    if row.is_ceiling:
        raise UserError(f"Expected a student of synthetic samples, but {row.method} was trained on real data.")
    check_code(stages.config.get("source"), run / STAGES, trust)
    settings = RunSettings.from_config(stages.config)
    assert row.source is not None
    info = describe_student_source(settings, row.source["shares"])
    folders = stages.networks[row.method]
    missing = [name for name in ("teacher", "generators") if name in folders and not folders[name].is_dir()]
    if missing:
        raise UserError(
            f"Expected the stages of {row.method} in the store, but these folders were deleted: {', '.join(missing)}. "
            f"Run its command again: {row.command}"
        )
    device, teacher = find_device("auto"), load_network(folders["teacher"], logits=True, trust=trust)
    source = make_student_source(settings, info, teacher, folders.get("generators"), device, trust=trust)
    data = SyntheticDataModule(source, teacher, samples=samples, seed=settings.seed, device=device)
    if "samples" in folders and folders["samples"].is_dir() and samples == settings.student.samples:
        data.use({"train": load_samples(folders["samples"])["train"]})
    data.setup()
    x, logits = (tensor.cpu() for tensor in data.splits["train"])
    values = make_value_range(settings.data)
    tensors = {"x": x if values is None else _to_pixels(values, x)}
    tensors |= {"probabilities": logits.softmax(dim=1), "y": logits.argmax(dim=1)}
    out.mkdir(parents=True, exist_ok=True)
    description = {"source": info.title, "prior": info.prior, "seed": str(settings.seed)}
    atomic_write(out / FILE_NAME, save({name: value.contiguous() for name, value in tensors.items()}, description))
    if pictures:
        given = settings.data.model_extra or {}
        known = values is not None or (given.get("mean") is not None and given.get("std") is not None)
        pixels = ValueRange.of((0, 1), given.get("mean"), given.get("std")) if known and x.dim() == 4 else None
        shown = x if pixels is None else _to_pixels(pixels, x).clamp(0, 1)
        _write_pictures(shown, tensors["y"], out / _PICTURES, are_pixels=pixels is not None)
    return out / FILE_NAME, info


def _find_student(run: Path, method: str | None) -> Row:
    rows = read_runs(run)[0].rows
    trained = [row for row in rows if row.source is not None and row.quantization is None]
    row = find_last(rows) if method is None else find_named(trained, method)
    if row is None or row.source is None:
        names = ", ".join(one.method for one in trained) or "none"
        raise UserError(f"Expected a student that was trained ({names}), but got {method or 'a run without one'}.")
    return row


def _to_pixels(values: ValueRange, x: Tensor) -> Tensor:
    return values(torch.nn.Identity(), (x,))[0]  # type: ignore[no-any-return]


def _write_pictures(x: Tensor, y: Tensor, folder: Path, *, are_pixels: bool) -> None:
    """Write PNG files; samples that are not pixels in [0, 1] are stretched to their own range."""
    for index, (sample, label) in enumerate(zip(x, y.tolist(), strict=True)):
        path = folder / str(label) / f"{index:06d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        shown = to_array(sample) if are_pixels else picture(sample)
        Image.fromarray((255 * shown).round().astype("uint8")).save(path)
