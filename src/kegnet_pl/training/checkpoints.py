"""Checkpoints of a fit: atomic writes with a SHA-256, and recovery after a crash."""

import errno
import hashlib
import io
import os
import pickle
import zipfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.plugins.io.torch_io import TorchCheckpointIO
from pytorch_lightning.callbacks import ModelCheckpoint

from kegnet_pl.runtime.atomic_files import atomic_write
from kegnet_pl.runtime.distributed import rank
from kegnet_pl.runtime.errors import StoreError, explain_memory
from kegnet_pl.runtime.manifests import DamagedError

RESUME, BEST = "resume.ckpt", "best.ckpt"
"""Files of the last epoch and of the best one, in the folder of a fit."""

_MARK = b"kegnet_pl-sha256:"
_SIGNATURE = len(_MARK) + 64
_FIT = "kegnet_pl_fit"
"""Key of the name of the fit in a checkpoint."""

_FOLDER = "{folder}"
"""Placeholder for the folder of a checkpoint in its paths of other files of that folder."""


class WholeCheckpoints(TorchCheckpointIO):
    """Writes checkpoints atomically, and keeps the previous one.

    Lightning writes to TMPDIR and copies the file if that is another file system, so a full disk or a kill can leave an
    incomplete file. A checkpoint is a file of ``torch.save`` whose archive comment is its SHA-256. It records its stage
    and fit, so a checkpoint of another fit is not loaded by mistake. Paths of files in its folder are relative to the
    folder, so the store can be moved.

    Args:
        folder: Folder of the fit; the previous checkpoint is kept only there, as ``NAME.previous.ckpt``.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(os.path.realpath(folder))
        self.begun: tuple[Path, dict[str, Any]] | None = None

    def find(self, best: ModelCheckpoint | None, notify: Callable[[str], object]) -> Path | None:
        """Return the last complete checkpoint of an interrupted fit; a fit that resumes from it has the same result.

        Damaged checkpoints are renamed to ``NAME.damaged``. With ``best``, the file of the best epoch must exist, too.
        Checkpoints that Lightning wrote within an epoch, when SLURM requeued the job, are removed: only a fit that
        resumes from the end of an epoch has the result of an uninterrupted one.
        """
        self.begun = None
        for path in self.folder.glob("hpc_ckpt_*.ckpt") if rank() == 0 else ():
            path.unlink(missing_ok=True)
        rejected = False
        for path in (self.folder / RESUME, _previous(self.folder / RESUME)):
            content = self._read_or_set_aside(path, notify)
            if content is not None and (best is None or self._restore_best(best, content, notify)):
                self.begun = path, content
                if rejected:
                    notify(f"{self.folder.name}: continues after epoch {content['epoch'] + 1}")
                return path
            rejected = rejected or content is not None or _damaged(path).exists()
        if rejected:
            notify(f"{self.folder.name}: starts from its first epoch, since no checkpoint is complete")
        return None

    def _restore_best(self, best: ModelCheckpoint, content: dict[str, Any], notify: Callable[[str], object]) -> bool:
        """Return True if the checkpoint of the best epoch exists, or a later epoch writes it again."""
        state = content["callbacks"].get(best.state_key)
        if state is None or not state["best_model_path"]:
            return True
        for path in (self.folder / BEST, _previous(self.folder / BEST)):
            found = self._read_or_set_aside(path, notify)
            if found is None:
                continue
            score = found["callbacks"][best.state_key]["best_model_score"]
            if found["epoch"] > content["epoch"] or torch.equal(score, state["best_model_score"]):
                if path.name != BEST and rank() == 0:
                    path.replace(self.folder / BEST)
                return True
        return False

    @property
    def _fit(self) -> str:
        """Names of the stage's folder and of the fit."""
        return f"{self.folder.parent.parent.name}/{self.folder.name}"

    def _read_or_set_aside(self, path: Path, notify: Callable[[str], object]) -> dict[str, Any] | None:
        try:
            content = read_checkpoint(path)
            if content.get(_FIT, self._fit) != self._fit:  # earlier versions did not write it
                raise DamagedError(f"it is the checkpoint of {content[_FIT]}")
            return content
        except FileNotFoundError:
            return None
        except DamagedError as error:
            if rank() == 0:
                with suppress(FileNotFoundError):
                    path.replace(_damaged(path))
                notify(
                    f"Warning: the checkpoint {path} is damaged ({error}). It is renamed to {_damaged(path).name}; the "
                    f"previous checkpoint is used, if there is one."
                )
            return None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write a checkpoint; in the folder of the fit, an existing one is kept as the previous one."""
        if "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        own = Path(os.path.realpath(path.parent)) == self.folder
        buffer = io.BytesIO()
        replaced = _replace_folder(checkpoint, os.path.realpath(path.parent), _FOLDER)
        torch.save(replaced | ({_FIT: self._fit} if own else {}), buffer)
        content = _sign(buffer.getvalue())
        keep = _previous(path) if own else None
        try:
            atomic_write(path, content, durable=True, keep=keep)
        except OSError as error:
            if keep is None or error.errno not in (errno.ENOSPC, errno.EDQUOT) or not keep.exists():
                raise
            keep.unlink()  # the present one is complete
            atomic_write(path, content, durable=True, keep=keep)

    def load_checkpoint(self, path: str | Path, map_location: Any = None, weights_only: bool | None = None) -> Any:
        """Read a checkpoint; paths of files in its folder become absolute."""
        if self.begun is not None and Path(path) == self.begun[0]:
            content, self.begun = self.begun[1], None
            return content
        if "://" in str(path) or not Path(path).is_file():
            return super().load_checkpoint(path, map_location, weights_only)
        return read_checkpoint(Path(path), weights_only=weights_only is not False)

    def remove_checkpoint(self, path: str | Path) -> None:
        """Remove a checkpoint, and its previous version."""
        super().remove_checkpoint(path)
        _previous(Path(path)).unlink(missing_ok=True)


def read_checkpoint(path: Path, *, weights_only: bool = True) -> dict[str, Any]:
    """Read a checkpoint that :class:`WholeCheckpoints` or an earlier version wrote, on the CPU.

    Raises:
        DamagedError: If it is damaged.
        FileNotFoundError: If there is none.
        StoreError: If it is intact, but holds other objects than tensors and plain values.
    """
    signed = False
    try:
        signed = _check_signature(path)
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=weights_only)
        content["epoch"], content["state_dict"]
    except FileNotFoundError:
        raise
    except Exception as error:  # damaged files raise many kinds
        if explain_memory(error) is not None:  # the file may be intact
            raise
        if signed and isinstance(error, pickle.UnpicklingError):
            raise StoreError(
                f"Expected tensors and plain values in {path}, but a callback keeps other objects in its state, which "
                f"are not loaded since they could run code. Let its `state_dict` return plain values, and delete "
                f"{path.parent}."
            ) from error
        reason = str(error) if isinstance(error, DamagedError) else "it is not a complete file of torch.save"
        raise DamagedError(reason) from error
    state = content.setdefault("callbacks", {})
    content["callbacks"] = {key: _moved(value, path.parent) for key, value in state.items()}
    return content


def _sign(content: bytes) -> bytes:
    """Return an archive of ``torch.save`` with its SHA-256 as comment."""
    if content[-22:-18] != b"PK\x05\x06":  # the old format of torch
        return content
    start = content[:-2] + _SIGNATURE.to_bytes(2, "little")
    return start + _MARK + hashlib.sha256(start).hexdigest().encode()


def _check_signature(path: Path) -> bool:
    """Return True if a file has the SHA-256 that was written into it; files of earlier versions have none.

    Raises:
        DamagedError: If it has another one.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(max(0, size - _SIGNATURE))
        signature = file.read()
        if signature.startswith(_MARK):
            file.seek(0)
            found, left = hashlib.sha256(), size - _SIGNATURE
            while left > 0:
                block = file.read(min(left, 2**20))
                found.update(block)
                left -= len(block)
            if signature != _MARK + found.hexdigest().encode():
                raise DamagedError("its SHA-256 does not match")
            return True
        if zipfile.is_zipfile(path):  # of an earlier version
            with zipfile.ZipFile(path) as archive:
                bad = archive.testzip()
            if bad is not None:
                raise DamagedError(f"{bad} was changed")
    return False


def _previous(path: Path) -> Path:
    return path.with_name(f"{path.stem}.previous{path.suffix}")


def _damaged(path: Path) -> Path:
    return path.with_name(f"{path.name}.damaged")


def _replace_folder(checkpoint: Mapping[str, Any], before: str, after: str) -> dict[str, Any]:
    """Return a checkpoint in which a folder is replaced in the states of callbacks."""
    states = checkpoint.get("callbacks", {})
    return {**checkpoint, "callbacks": {key: _renamed(state, before, after) for key, state in states.items()}}


def _renamed(state: Any, before: str, after: str) -> Any:
    if not isinstance(state, dict) or state.get("dirpath") != before:
        return state

    def rename(value: Any) -> Any:
        if isinstance(value, dict):
            return {rename(key): rename(inner) for key, inner in value.items()}
        inside = isinstance(value, str) and (value == before or value.startswith(f"{before}/"))
        return after + value[len(before) :] if inside else value

    return {name: rename(value) for name, value in state.items()}


def _moved(state: Any, folder: Path) -> Any:
    """Return the state of a callback with its files in the present folder of the checkpoint."""
    here = os.path.realpath(folder)
    before = state.get("dirpath") if isinstance(state, dict) else None
    same = isinstance(before, str) and (before == _FOLDER or Path(before).parts[-2:] == Path(here).parts[-2:])
    return _renamed(state, before, here) if same and before is not None else state
