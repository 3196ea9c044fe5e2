"""The store of finished stages: fingerprint, lock, manifest, atomic publication, resume."""

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
from typing import Any

from filelock import FileLock, Timeout

from kegnet_pl.pipeline.provenance import command_line, git_state, versions
from kegnet_pl.runtime.atomic_files import atomic_write
from kegnet_pl.runtime.costs import StageCosts
from kegnet_pl.runtime.distributed import barrier, distributed, rank, share_decision, shared_decision
from kegnet_pl.runtime.errors import StoreError
from kegnet_pl.runtime.memory import peak_memory, reset_peak_memory
from kegnet_pl.runtime.secrets import conceal
from kegnet_pl.settings import Resume

Build = Callable[[Path, StageCosts], Mapping[str, Any]]
"""Function that computes a stage in a folder, adds to its costs and returns its metrics."""

FORMAT = 2
"""Version of the content of stages; a change makes all fingerprints new."""

_KEYS = {"metrics", "seconds", "costs", "peak_memory", "config", "files"}
"""Required keys of a manifest."""


def fingerprint(stage: str, config: Mapping[str, Any], parents: Sequence[str]) -> str:
    """Return the key of a stage: a hash of its name, its settings and the fingerprints of the stages that it reads.

    Settings that do not change the result (paths, devices, workers, loggers) are not among them.
    """
    content = json.dumps([FORMAT, stage, config, list(parents)], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def _hidden(final: Path) -> Path:
    return final.with_name(f".{final.name}.building")


@dataclass(frozen=True)
class Stage:
    """A finished stage.

    Attributes:
        name: Name of the stage.
        fingerprint: Hash of everything that its result depends on.
        folder: Folder of its files.
        manifest: Content of ``manifest.json``.
        found: True if it was finished before this run.
    """

    name: str
    fingerprint: str
    folder: Path
    manifest: dict[str, Any]
    found: bool = field(compare=False, default=False)

    @property
    def metrics(self) -> dict[str, Any]:
        """Metrics of the stage, by name."""
        return dict(self.manifest["metrics"])

    @property
    def seconds(self) -> float:
        """Wall-clock seconds of all attempts; a killed attempt counts up to its last epoch."""
        return float(self.manifest["seconds"])


class Store:
    """A folder of finished stages; a stage is built once for all runs that need it.

    A stage is built in a hidden folder and published by one rename, so a visible stage is complete. An interrupted
    build leaves its hidden folder, and the next build continues from it.

    Args:
        root: The folder; created if it is missing.
        resume: ``"auto"`` uses finished stages and continues interrupted ones, ``"never"`` builds all stages again,
            ``"require"`` refuses to build, and accepts a store that is read-only.
        notify: Called with messages for the user.

    Raises:
        StoreError: If the folder cannot be written and stages may have to be built.
    """

    def __init__(self, root: str | Path, resume: Resume = "auto", notify: Callable[[str], None] = print) -> None:
        self.root = Path(root).absolute()
        self.resume = resume
        self.notify = notify
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
        """Return True if an error is about writing to the store, not about the input of a stage."""
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS):
            return True
        inside = error.filename is not None and Path(os.fsdecode(error.filename)).absolute().is_relative_to(self.root)
        return error.errno in (errno.EACCES, errno.EPERM) and inside

    def _unwritable(self, error: OSError) -> StoreError:
        choose = "Free some space, or choose" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "Choose"
        read_only = "" if self.resume == "require" else " To only read finished stages, set resume=require."
        return StoreError(
            f"Expected to write to the store {self.root}, but got: {error.strerror or error}. {choose} another folder "
            f"with store=FOLDER. Finished stages are unchanged; run the command again to continue.{read_only}"
        )

    def get(
        self, stage: str, config: Mapping[str, Any], parents: Sequence[Stage], build: Build, *, collective: bool = False
    ) -> Stage:
        """Return a finished stage; build it if there is none.

        Args:
            stage: Name of the stage.
            config: Its settings (see :func:`fingerprint`).
            parents: The stages that it reads.
            build: Called with the hidden folder and the stage's costs. It writes files, adds to the costs and returns
                metrics. Files that exist already are from an interrupted build.
            collective: True if every rank calls ``build`` (all train, rank 0 writes); otherwise only rank 0 does.

        Raises:
            StoreError: If the stage is missing under ``resume="require"``, damaged, or cannot be written.
        """
        key = fingerprint(stage, config, [parent.fingerprint for parent in parents])
        final = self.root / f"{stage}-{key}"
        if rank() != 0:
            if not shared_decision(key, final):
                if collective:
                    build(_hidden(final), StageCosts())
                barrier()
            return self._load(stage, key, final, found=False)

        lock = FileLock(self.root / ".locks" / f"{final.name}.lock")
        try:
            self._acquire(lock, final)
            try:
                hit = final.is_dir() and self.resume != "never"
                if not hit and self.resume == "require":
                    raise StoreError(
                        f"Expected the stage {stage!r} ({key}) in the store {self.root}, since resume=require, but it "
                        f"is missing. Run with resume=auto to build it, or check store=FOLDER."
                    )
                share_decision(key, hit)
                if not hit:
                    self._build(stage, key, config, parents, build, final)
                    if not distributed():  # ranks that start later load the stage
                        share_decision(key, True)
            finally:
                lock.release()
        except OSError as error:
            if self._concerns_store(error):
                raise self._unwritable(error) from error
            raise
        return self._load(stage, key, final, found=hit)

    def _acquire(self, lock: FileLock, final: Path) -> None:
        if not self._locks:
            return
        owner = Path(lock.lock_file).with_suffix(".owner")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            who = owner.read_text() if owner.exists() else "another process"
            self.notify(f"Waiting for {who}, which is building {final.name}.")
            lock.acquire()
        owner.write_text(f"process {os.getpid()} on {socket.gethostname()}")

    def _build(
        self, stage: str, key: str, config: Mapping[str, Any], parents: Sequence[Stage], build: Build, final: Path
    ) -> None:
        hidden = _hidden(final)
        if self.resume == "never":
            shutil.rmtree(hidden, ignore_errors=True)
        hidden.mkdir(exist_ok=True)
        costs_file = hidden / "costs.json"
        costs = StageCosts.load(costs_file)
        reset_peak_memory()
        with costs.recorded(costs_file):
            metrics = build(hidden, costs)
        manifest = {
            "stage": stage,
            "fingerprint": key,
            "format": FORMAT,
            "config": conceal(config),
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
        costs_file.unlink(missing_ok=True)
        shutil.rmtree(hidden / "checkpoints", ignore_errors=True)
        manifest["files"] = {path.name: path.stat().st_size for path in sorted(hidden.iterdir()) if path.is_file()}
        atomic_write(hidden / "manifest.json", json.dumps(manifest, indent=2))
        old = final.with_name(f".{final.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        if final.exists():  # with resume=never
            final.rename(old)
        hidden.rename(final)
        shutil.rmtree(old, ignore_errors=True)
        barrier()

    def _load(self, stage: str, key: str, final: Path, found: bool) -> Stage:
        try:
            manifest = json.loads((final / "manifest.json").read_text())
            if not isinstance(manifest, dict) or not set(manifest) >= _KEYS:
                raise ValueError("keys are missing in manifest.json")
            for name, size in manifest["files"].items():
                if (final / name).stat().st_size != size:
                    raise ValueError(f"{name} does not have the size in the manifest")
        except (OSError, ValueError, AttributeError, TypeError) as error:
            unreadable = isinstance(error, json.JSONDecodeError | UnicodeDecodeError)
            reason = f"manifest.json: {error}" if unreadable else error
            raise StoreError(
                f"Expected a complete stage in {final}, but it is damaged ({reason}). Delete that folder and run the "
                f"same command again."
            ) from error
        return Stage(stage, key, final, manifest, found)
