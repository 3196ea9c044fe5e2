"""Finished stages on disk: fingerprint, lock, manifest, atomic publish, resume (HOUSE section 4)."""

import errno
import hashlib
import json
import os
import shutil
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, get_args

from filelock import FileLock, Timeout

from kegnet_pl.pipeline.provenance import command_line, git_state, versions
from kegnet_pl.runtime.atomic_files import write_whole
from kegnet_pl.runtime.costs import StageCosts
from kegnet_pl.runtime.distributed import barrier, decide, decided, distributed, rank
from kegnet_pl.runtime.errors import StoreError
from kegnet_pl.runtime.memory import forget_peak_memory, peak_memory

Resume = Literal["auto", "never", "require"]

Build = Callable[[Path, StageCosts], Mapping[str, Any]]
"""Computes a stage in a folder, adds to its costs, returns its metrics."""

FORMAT = 2
"""Version of what stages compute and write; a change makes all fingerprints new."""


_KEYS = {"metrics", "seconds", "costs", "peak_memory", "config", "files"}
"""What is read of a manifest."""


def fingerprint(stage: str, config: Mapping[str, Any], parents: Sequence[str]) -> str:
    """Return what names a stage: a hash of all that its result depends on.

    Args:
        stage: Name of the stage.
        config: Its settings, without those that do not change the result (paths, devices, workers, loggers).
        parents: Fingerprints of the stages it reads.
    """
    content = json.dumps([FORMAT, stage, config, list(parents)], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Stage:
    """A finished stage.

    Attributes:
        name: Name of the stage.
        fingerprint: What it depends on, hashed.
        folder: Where its files lie.
        manifest: Content of ``manifest.json``.
        found: Whether it was finished before this run.
    """

    name: str
    fingerprint: str
    folder: Path
    manifest: dict[str, Any]
    found: bool = field(compare=False, default=False)

    @property
    def metrics(self) -> dict[str, Any]:
        """What the stage measured."""
        metrics: dict[str, Any] = self.manifest["metrics"]
        return metrics

    @property
    def seconds(self) -> float:
        """Wall-clock seconds that made it, over all attempts; of one that was killed, up to its last epoch."""
        return float(self.manifest["seconds"])


class Store:
    """A folder of finished stages; a stage is built once for all runs that need it.

    A stage is built in a hidden folder and published by one rename, so what is visible is whole. An interrupted build
    leaves its hidden folder, from which the next one goes on.

    Args:
        root: The folder; created where it is missing.
        resume: ``"auto"`` finds finished stages and goes on with begun ones, ``"never"`` builds all anew,
            ``"require"`` refuses to build, so that a store that cannot be written will do.
        tell: Called with messages for the user.

    Raises:
        StoreError: If the folder cannot be written and stages may have to be built, or ``resume`` is unknown.
    """

    def __init__(self, root: str | Path, resume: Resume = "auto", tell: Callable[[str], None] = print) -> None:
        if resume not in get_args(Resume):
            raise StoreError(f"Expected `resume` to be one of {get_args(Resume)}, but got {resume!r}.")
        self.root = Path(root).absolute()
        self.resume = resume
        self.tell = tell
        try:
            (self.root / ".locks").mkdir(parents=True, exist_ok=True)
            if not os.access(self.root / ".locks", os.W_OK) or not os.access(self.root, os.W_OK):
                raise PermissionError(errno.EACCES, "Permission denied")
            self._locks = True
        except OSError as error:
            if resume != "require" or not self.root.is_dir():
                raise self._unwritable(error) from error
            self._locks = False

    def _concerns_store(self, error: OSError) -> bool:
        """Whether an error is about writing here, and not about something that a stage reads."""
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS):
            return True
        inside = error.filename is not None and Path(os.fsdecode(error.filename)).absolute().is_relative_to(self.root)
        return error.errno in (errno.EACCES, errno.EPERM) and inside

    def _unwritable(self, error: OSError) -> StoreError:
        choose = "Free some space, or choose" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "Choose"
        read = "" if self.resume == "require" else " If all that you need is in it, resume=require reads it only."
        return StoreError(
            f"Expected to write to the store {self.root}, but got: {error.strerror or error}. {choose} another folder "
            f"with store=FOLDER. Finished stages are untouched; run the command again to go on.{read}"
        )

    def get(
        self,
        stage: str,
        config: Mapping[str, Any],
        parents: Sequence[Stage],
        build: Build,
        *,
        collective: bool = False,
    ) -> Stage:
        """Return a finished stage; build it if there is none.

        Args:
            stage: Name of the stage.
            config: Its settings (see :func:`fingerprint`).
            parents: The stages it reads.
            build: Called with the hidden folder and the stage's costs; writes files there, adds to these, and returns
                metrics. What it finds there is from an interrupted build.
            collective: Whether every rank calls ``build`` (it trains, and only rank 0 writes) or rank 0 alone.

        Raises:
            StoreError: If the stage is missing under ``resume="require"``, damaged, or cannot be written.
        """
        mark = fingerprint(stage, config, [parent.fingerprint for parent in parents])
        final = self.root / f"{stage}-{mark}"
        if rank() != 0:
            if not decided(mark, final):
                if collective:
                    build(self._hidden(final), StageCosts())
                barrier()
            return self._load(stage, mark, final, found=False)

        lock = FileLock(self.root / ".locks" / f"{final.name}.lock")
        try:
            self._acquire(lock, final)
            try:
                hit = final.is_dir() and self.resume != "never"
                if not hit and self.resume == "require":
                    raise StoreError(
                        f"Expected the stage {stage!r} ({mark}) in the store {self.root}, since resume=require, but it "
                        f"is not there. Run with resume=auto to build it, or check store=FOLDER."
                    )
                decide(mark, hit)
                if not hit:
                    self._build(stage, mark, config, parents, build, final)
                    if not distributed():  # ranks started from now on find it
                        decide(mark, True)
            finally:
                lock.release()
        except OSError as error:
            if self._concerns_store(error):
                raise self._unwritable(error) from error
            raise
        return self._load(stage, mark, final, found=hit)

    def _hidden(self, final: Path) -> Path:
        return final.with_name(f".{final.name}.building")

    def _acquire(self, lock: FileLock, final: Path) -> None:
        if not self._locks:
            return
        owner = Path(lock.lock_file).with_suffix(".owner")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            who = owner.read_text() if owner.exists() else "another process"
            self.tell(f"Waiting for {who}, which is building {final.name}.")
            lock.acquire()
        owner.write_text(f"process {os.getpid()} on {socket.gethostname()}")

    def _build(
        self,
        stage: str,
        mark: str,
        config: Mapping[str, Any],
        parents: Sequence[Stage],
        build: Build,
        final: Path,
    ) -> None:
        hidden = self._hidden(final)
        if self.resume == "never":
            shutil.rmtree(hidden, ignore_errors=True)
        hidden.mkdir(exist_ok=True)
        bill = hidden / "costs.json"
        costs = StageCosts.load(bill)
        forget_peak_memory()
        with costs.billed(bill):
            metrics = build(hidden, costs)
        manifest = {
            "stage": stage,
            "fingerprint": mark,
            "format": FORMAT,
            "config": config,
            "parents": {parent.name: parent.fingerprint for parent in parents},
            "metrics": metrics,
            "seconds": round(costs.total, 3),
            "costs": costs.to_dict(),
            "peak_memory": peak_memory(),
            "versions": versions(),
            "git": git_state(),
            "command": command_line(),
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        bill.unlink(missing_ok=True)
        shutil.rmtree(hidden / "checkpoints", ignore_errors=True)
        manifest["files"] = {path.name: path.stat().st_size for path in sorted(hidden.iterdir()) if path.is_file()}
        write_whole(hidden / "manifest.json", json.dumps(manifest, indent=2))
        if final.exists():  # resume=never: the old one steps aside, then goes
            old = final.with_name(f".{final.name}.old")
            shutil.rmtree(old, ignore_errors=True)
            final.rename(old)
            hidden.rename(final)
            shutil.rmtree(old, ignore_errors=True)
        else:
            hidden.rename(final)
        barrier()

    def _load(self, stage: str, mark: str, final: Path, found: bool) -> Stage:
        try:
            manifest = json.loads((final / "manifest.json").read_text())
            if not isinstance(manifest, dict) or not set(manifest) >= _KEYS:
                raise ValueError("keys are missing in manifest.json")
            for name, size in manifest["files"].items():
                if (final / name).stat().st_size != size:
                    raise ValueError(f"{name} has another size than when it was made")
        except (OSError, ValueError) as error:
            what = f"manifest.json: {error}" if isinstance(error, json.JSONDecodeError | UnicodeDecodeError) else error
            raise StoreError(
                f"Expected a whole stage in {final}, but it is damaged ({what}). Delete that "
                f"folder and run the same command again."
            ) from error
        return Stage(stage, mark, final, manifest, found)
