"""The store of finished stages: fingerprint, lock, manifest, atomic publication, resume."""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kegnet_pl.pipeline.provenance import command_line, git_state, versions
from kegnet_pl.pipeline.publication import (
    check_stage,
    discard,
    finish,
    hidden,
    needs_repair,
    publish,
    repair,
    set_aside,
    wait_for,
)
from kegnet_pl.runtime.costs import StageCosts
from kegnet_pl.runtime.distributed import barrier, distributed, rank, share_decision, shared_decision
from kegnet_pl.runtime.errors import FULL, StoreError, named_stage
from kegnet_pl.runtime.locks import group_modes, locked
from kegnet_pl.runtime.manifests import DamagedError, UnreadableError, Verify
from kegnet_pl.runtime.memory import peak_memory, reset_peak_memory
from kegnet_pl.runtime.secrets import conceal
from kegnet_pl.settings import Resume

Build = Callable[[Path, StageCosts], Mapping[str, Any]]
"""Function that computes a stage in a folder, adds to its costs and returns its metrics."""

FORMAT = 2
"""Version of the content of stages; a change makes all fingerprints new."""

_FORBIDDEN = (errno.EROFS, errno.EACCES, errno.EPERM)
"""Errors about permissions."""

_IN_THE_WAY = (errno.EEXIST, errno.EISDIR, errno.ENOTDIR, errno.ENOTEMPTY, errno.ELOOP)
"""Errors about a file or folder that is in the way."""

_ROOM = 64 * 2**20
"""Free bytes below which a store counts as full, if an error does not name the file."""


def fingerprint(stage: str, config: Mapping[str, Any], parents: Sequence[str]) -> str:
    """Return the key of a stage: a hash of its name, its settings and the fingerprints of the stages that it reads.

    Settings that do not change the result (paths, devices, workers, loggers) are not among them.
    """
    content = json.dumps([FORMAT, stage, config, list(parents)], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


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

    A stage is built in a hidden folder. Its manifest is written last, and one rename publishes it: a visible stage is
    complete, and a kill at any moment leaves a stage that is finished or one that the next build continues. A
    finished stage whose files have changed since is set aside and built again.

    Args:
        root: The folder; created if it is missing.
        resume: ``"auto"`` uses finished stages and continues interrupted ones, ``"never"`` builds all stages again,
            ``"require"`` refuses to build, and accepts a store that is read-only.
        notify: Called with messages for the user.
        verify: Check of the files of finished stages: ``"auto"`` compares their contents once per process, ``"always"``
            each time a stage is found, ``"never"`` compares only sizes.

    Raises:
        StoreError: If the folder cannot be written and stages may have to be built.
    """

    def __init__(
        self,
        root: str | Path,
        resume: Resume = "auto",
        notify: Callable[[str], None] = print,
        verify: Verify = "auto",
    ) -> None:
        self.root = Path(root).absolute()
        self.resume = resume
        self.notify = notify
        self.verify: Verify = verify
        if resume == "require" and self.root.is_dir():
            return
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            with group_modes(self.root):
                (self.root / ".locks").mkdir(exist_ok=True)
            if not os.access(self.root / ".locks", os.W_OK) or not os.access(self.root, os.W_OK):
                raise PermissionError(errno.EACCES, "Permission denied")
        except OSError as error:
            raise self._unwritable(error) from error

    def _concerns_store(self, error: OSError) -> bool:
        """Return True if an error is about writing to the store, not about the input of a stage or other files."""
        if isinstance(error.filename, str | bytes):
            inside = Path(os.fsdecode(error.filename)).absolute().is_relative_to(self.root)
            return inside and error.errno in (*FULL, *_FORBIDDEN, *_IN_THE_WAY)
        full = error.errno in FULL and shutil.disk_usage(self.root).free < _ROOM
        return full or error.errno in (errno.EROFS, errno.EDQUOT)

    def _unwritable(self, error: OSError) -> StoreError:
        choose = "Free some space, or choose" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "Choose"
        where = ""
        if error.errno in _IN_THE_WAY and isinstance(error.filename, str | bytes):
            where, choose = f" ({os.fsdecode(error.filename)})", "Remove the file or folder at this path, or choose"
        read_only = "" if self.resume == "require" else " To only read finished stages, set resume=require."
        return StoreError(
            f"Expected to write to the store {self.root}, but got: {error.strerror or error}{where}. {choose} another "
            f"folder with store=FOLDER. Finished stages are unchanged; run the command again to continue.{read_only}"
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
            StoreError: If the stage is missing or damaged under ``resume="require"``, or cannot be written.
        """
        key = fingerprint(stage, config, [parent.fingerprint for parent in parents])
        final = self.root / f"{stage}-{key}"
        if rank() != 0:
            if not shared_decision(key, final):
                if collective:
                    build(hidden(final), StageCosts())
                barrier()
                wait_for(final)
            return self._load(stage, key, final, found=False, verify="never")
        try:
            if self.resume == "require" or (self.resume == "auto" and not needs_repair(final)):
                try:
                    found = self._find(stage, key, final)  # a finished stage needs no lock
                except StoreError:
                    share_decision(key, True)  # the other ranks find out, too
                    raise
                if found is not None:
                    share_decision(key, True)
                    return found
            with self._locked(final):
                repair(final, stage, key)
                found = None if self.resume == "never" else self._find(stage, key, final, replace=True)
                share_decision(key, found is not None)
                if found is None:
                    self._build(stage, key, config, parents, build, final)
                    if not distributed():  # ranks that start later load the stage
                        share_decision(key, True)
        except OSError as error:
            if self._concerns_store(error):
                raise self._unwritable(error) from error
            raise
        return found or self._load(stage, key, final, found=False, verify="never")

    @contextmanager
    def _locked(self, final: Path) -> Iterator[None]:
        def say(owner: str) -> None:
            self.notify(f"Waiting for {owner}, which is building {final.name}.")

        with group_modes(self.root), locked(self.root / ".locks" / f"{final.name}.lock", say):
            yield

    def _find(self, stage: str, key: str, final: Path, *, replace: bool = False) -> Stage | None:
        """Return the stage if it is finished; ``replace`` sets a damaged one aside.

        Raises:
            StoreError: If it is missing or damaged under ``resume="require"``.
        """
        if final.is_symlink() and not final.exists():
            raise StoreError(
                f"Expected a folder at {final}, but it is a link to {os.path.realpath(final)}, which does not exist. "
                f"Mount the disk of that folder, or delete the link."
            )
        if not final.is_dir():
            if self.resume != "require":
                return None
            raise StoreError(
                f"Expected the stage {stage!r} ({key}) in the store {self.root}, since resume=require, but it is "
                f"missing. Run with resume=auto to build it, or check store=FOLDER."
            )
        try:
            return self._load(stage, key, final, found=True, verify=self.verify)
        except StoreError as error:
            if self.resume == "require" or isinstance(error.__cause__, UnreadableError):
                raise
            if replace:
                away = self._set_aside(final, error)
                self.notify(
                    f"Warning: the stage {final.name} is damaged ({error.__cause__}). It is renamed to {away.name} and "
                    f"built again."
                )
            return None

    def _set_aside(self, final: Path, damage: StoreError) -> Path:
        try:
            return set_aside(final)
        except PermissionError as error:  # such as a folder of another user in a folder with the sticky bit
            raise StoreError(
                f"Expected to rename the damaged stage {final} ({damage.__cause__}), but got: {error.strerror}. Ask "
                f"{_owner(final)} to delete that folder, or choose another store with store=FOLDER."
            ) from error

    def _build(
        self, stage: str, key: str, config: Mapping[str, Any], parents: Sequence[Stage], build: Build, final: Path
    ) -> None:
        building = hidden(final)
        if building.is_symlink() or building.is_file():
            building.unlink()
        if self.resume == "never":
            discard(building)
        building.mkdir(exist_ok=True)
        costs_file = building / "costs.json"
        costs = StageCosts.load(costs_file, self.notify)
        reset_peak_memory()
        with costs.recorded(costs_file), named_stage(stage):
            metrics = build(building, costs)
        finish(
            building,
            {
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
            },
        )
        publish(final)
        barrier()

    def _load(self, stage: str, key: str, final: Path, *, found: bool, verify: Verify) -> Stage:
        try:
            manifest = check_stage(final, stage, key, verify)
        except UnreadableError as error:
            raise StoreError(
                f"Expected to read the stage {final}, but got: {error}. It may be intact, and was not changed. Ask "
                f"{_owner(final)} for permission to read it, or choose another store with store=FOLDER."
            ) from error
        except DamagedError as error:
            raise StoreError(
                f"Expected a complete stage in {final}, but it is damaged ({error}). Run the command with resume=auto "
                f"to build it again, or copy that folder again."
            ) from error
        return Stage(stage, key, final, manifest, found)


def _owner(folder: Path) -> str:
    """Return the name of the user that a folder belongs to."""
    try:
        return folder.owner()
    except (KeyError, OSError):  # the user is not known on this machine
        return "its owner"
