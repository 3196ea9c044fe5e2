"""Inventory of a store: its stages with sizes and users, and the choice of stages to remove."""

import json
import os
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from kegnet_pl.pipeline.publication import BUILDING, DAMAGED, DISCARDED, REPLACED, check_stage, discard
from kegnet_pl.runtime.locks import locked
from kegnet_pl.runtime.manifests import MANIFEST, DamagedError, Verify, read_manifest

State = Literal["finished", "unfinished", "damaged", "leftover"]
"""State of a folder: a finished stage; an interrupted one; a damaged one, also if set aside; remains of a kill."""

MEASUREMENTS = ("agreement", "evaluation", "latency")
"""Stages that belong to a run if all of their parents do; some are not named in its ``stages.json``."""

_FOLDER = re.compile(r"(\.?)([a-z]+)-([0-9a-f]{16})(?:\.(?:\d+\.)?([a-z]+))?")
_STATES: dict[str, State] = {
    BUILDING: "unfinished",
    DAMAGED: "damaged",
    REPLACED: "leftover",
    DISCARDED: "leftover",
}


@dataclass(frozen=True)
class Entry:
    """A folder of a store.

    Attributes:
        folder: The folder.
        stage: Name of the stage.
        fingerprint: Its fingerprint.
        state: Its state.
        bytes: Size of all files.
        changed: Time of the last change, in seconds since 1970.
        parents: Names of the folders of the stages that it read.
        reason: Description of the damage.
        runs: Folders of the runs that use it.
        target: Target folder, if the folder is a link; size, change and state are those of the target.
    """

    folder: Path
    stage: str
    fingerprint: str
    state: State
    bytes: int
    changed: float
    parents: tuple[str, ...] = ()
    reason: str = ""
    runs: tuple[str, ...] = ()
    target: str = ""

    @property
    def name(self) -> str:
        """Name of the stage's folder when it is finished."""
        return f"{self.stage}-{self.fingerprint}"


def read_store(root: Path, runs: Iterable[Path] = (), verify: Verify = "never") -> list[Entry]:
    """Return the folders of a store, in the order of their names; other folders and files are ignored.

    A link that has the name of a stage is followed.

    Args:
        root: Folder of the store.
        runs: Folders of runs, or folders above them, which may use stages.
        verify: Check of files; see :class:`kegnet_pl.pipeline.store.Store`.
    """
    entries = [entry for path in sorted(root.iterdir()) if (entry := _read(path, verify)) is not None]
    users = find_users(root, runs)
    parents = {entry.name: entry.parents for entry in entries if entry.state == "finished"}
    for run, used in users.items():
        users[run] = _closure(used, parents)
    return [
        Entry(**{**vars(entry), "runs": tuple(run for run, used in users.items() if entry.name in used)})
        for entry in entries
    ]


def _read(path: Path, verify: Verify) -> Entry | None:
    match = _FOLDER.fullmatch(path.name)
    linked = path.is_symlink()
    if match is None or not (linked or path.is_dir()) or bool(match[1]) != bool(match[4]):
        return None
    _, stage, fingerprint, ending = match.groups()
    if ending is not None and ending not in _STATES:
        return None
    state: State = "finished" if ending is None else _STATES[ending]
    reason = ""
    parents: tuple[str, ...] = ()
    try:
        manifest = check_stage(path, stage, fingerprint, verify) if state == "finished" else read_manifest(path)
        parents = tuple(f"{name}-{key}" for name, key in dict(manifest.get("parents", {})).items())
    except (DamagedError, TypeError, ValueError) as error:
        if state == "finished":
            state, reason = "damaged", str(error)
    size, changed = 0, path.lstat().st_mtime
    for file in path.rglob("*") if not linked or (path / MANIFEST).is_file() else ():  # else it may be any folder
        stat = file.lstat()
        size += stat.st_size if not file.is_dir() else 0
        changed = max(changed, stat.st_mtime)
    target = os.path.realpath(path) if linked else ""
    return Entry(path, stage, fingerprint, state, size, changed, parents, reason, target=target)


def find_users(root: Path, runs: Iterable[Path]) -> dict[str, set[str]]:
    """Return the runs below some folders, each with the names of the stages of this store that it uses."""
    found: dict[str, set[str]] = {}
    for file in (file for folder in runs for file in sorted(folder.rglob("stages.json"))):
        try:
            networks = json.loads(file.read_text())["networks"]
            paths = [file.parent / path for stages in networks.values() for path in stages.values()]
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            continue
        names = {path.name for path in paths if path.parent.resolve() == root.resolve()}  # the stage may be a link
        if names:
            found[str(file.parent)] = names
    return found


def _closure(used: set[str], parents: dict[str, tuple[str, ...]]) -> set[str]:
    """Return stages with all of their ancestors and their measurements."""
    todo, found = list(used), set(used)
    while todo:
        for name in parents.get(todo.pop(), ()):
            if name not in found:
                found.add(name)
                todo.append(name)
    measurements = {name: of for name, of in parents.items() if of and name.split("-")[0] in MEASUREMENTS}
    return found | {name for name, of in measurements.items() if found.issuperset(of)}


def choose(
    entries: Sequence[Entry],
    *,
    states: Sequence[State] = ("finished",),
    older_than: float | None = None,
    larger_than: int | None = None,
    unreachable: bool = False,
    max_size: int | None = None,
) -> list[Entry]:
    """Return the folders to remove, the oldest first: those that meet all conditions.

    Args:
        entries: The store.
        states: States of these folders.
        older_than: Minimum age in seconds since the last change.
        larger_than: Minimum size of a folder in bytes.
        unreachable: True for only those that no run uses.
        max_size: Maximum size of the store in bytes, without linked folders; the oldest folders are chosen until the
            rest fits.
    """
    now = time.time()
    found = sorted(
        (
            entry
            for entry in entries
            if entry.state in states
            and (older_than is None or now - entry.changed > older_than)
            and (larger_than is None or entry.bytes > larger_than)
            and not (unreachable and entry.runs)
        ),
        key=lambda entry: entry.changed,
    )
    if max_size is None:
        return found
    left, gone = sum(entry.bytes for entry in entries if not entry.target), []
    for entry in (entry for entry in found if not entry.target):
        if left <= max_size:
            break
        left -= entry.bytes
        gone.append(entry)
    return gone


def remove(root: Path, entries: Iterable[Entry]) -> Iterator[tuple[Entry, bool]]:
    """Delete folders of a store; yield each with True, or with False if it is in use or cannot be deleted.

    Of a link, only the link is deleted.
    """
    (root / ".locks").mkdir(exist_ok=True)
    for entry in entries:
        try:
            with locked(root / ".locks" / f"{entry.name}.lock", None):
                done = discard(entry.folder)
        except BlockingIOError:
            done = False
        yield entry, done
