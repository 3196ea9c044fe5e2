"""Publication of a stage: one atomic rename turns a hidden folder into a finished stage."""

import json
import os
import shutil
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from kegnet_pl.runtime.atomic_files import atomic_write
from kegnet_pl.runtime.manifests import (
    MANIFEST,
    UNFINISHED,
    DamagedError,
    Verify,
    check_files,
    describe_files,
    read_manifest,
    seal,
)
from kegnet_pl.runtime.safe_files import printable

KEYS = {"metrics", "seconds", "costs", "peak_memory", "config", "files"}
"""Required keys of a manifest."""

BUILDING, DAMAGED, REPLACED, DISCARDED = "building", "damaged", "old", "discarded"
"""Endings of hidden folders: unfinished; damaged; replaced under ``resume=never``; to be deleted."""

_VISIBLE_SECONDS = 60
"""Time until a new file is visible on all machines: NFS may keep the absence of a file for a minute."""


def hidden(final: Path, ending: str = BUILDING) -> Path:
    """Return the hidden folder of a stage, in the same store, with an ending."""
    return final.with_name(f".{final.name}.{ending}")


def check_stage(folder: Path, stage: str, key: str, verify: Verify = "auto") -> dict[str, Any]:
    """Return the manifest of a finished stage.

    Raises:
        DamagedError: If a file is missing or differs, or the manifest is damaged or belongs to another stage.
    """
    manifest = read_manifest(folder)
    if not set(manifest) >= KEYS:
        raise DamagedError(f"keys are missing in {MANIFEST}")
    found = manifest.get("stage", stage), manifest.get("fingerprint", key)
    if found != (stage, key):
        raise DamagedError(f"{MANIFEST} belongs to {printable('-'.join(found), 100)}")
    check_files(folder, manifest, verify=verify)
    return manifest


def finish(building: Path, content: Mapping[str, Any]) -> None:
    """Write the manifest of a stage, with all of its files, as the last file of its hidden folder."""
    files = describe_files(building)
    for name in files:
        _flush(building / name)
    atomic_write(building / MANIFEST, json.dumps(seal({**content, "files": files}), indent=2), durable=True)


def publish(final: Path) -> None:
    """Rename the hidden folder of a stage to its final name; an existing stage is replaced."""
    replaced = hidden(final, REPLACED)
    if final.exists():
        discard(replaced)
        final.rename(replaced)
    hidden(final).rename(final)
    _flush(final.parent)
    clean(final)


def wait_for(final: Path) -> None:
    """Wait until a stage that another process has published is visible: on a network file system it may be late."""
    end = time.monotonic() + _VISIBLE_SECONDS
    while not (final / MANIFEST).exists() and time.monotonic() < end:
        time.sleep(0.1)


def repair(final: Path, stage: str, key: str) -> None:
    """Complete an interrupted publication of a stage, if there is one; the caller holds the lock."""
    building, replaced = hidden(final), hidden(final, REPLACED)
    if (building / MANIFEST).exists():
        try:
            check_stage(building, stage, key)
        except DamagedError:
            (building / MANIFEST).unlink()  # its checkpoints are still there, and the next build continues
        else:
            publish(final)
    if replaced.exists() and not final.exists():
        replaced.rename(final)
    if final.exists():
        clean(final)


def needs_repair(final: Path) -> bool:
    """Return True if an interrupted publication of a finished stage left files behind."""
    return hidden(final, REPLACED).exists() or any((final / name).exists() for name in UNFINISHED)


def clean(final: Path) -> None:
    """Remove checkpoints and costs of a finished stage, and the stage that it replaced; errors are ignored."""
    shutil.rmtree(final / UNFINISHED[0], ignore_errors=True)
    with suppress(OSError):
        (final / UNFINISHED[1]).unlink(missing_ok=True)
    discard(hidden(final, REPLACED))
    for left in final.parent.glob(f".{final.name}.*{DISCARDED}"):
        discard(left)


def discard(folder: Path) -> bool:
    """Delete a folder, or a link to one; return False if it could not be deleted completely.

    It is renamed first, so a killed process leaves no incomplete folder under the old name. A folder that cannot be
    deleted, such as that of another user, keeps the new name.
    """
    away = folder
    with suppress(OSError):
        if os.path.lexists(folder) and not folder.name.endswith(f".{DISCARDED}"):
            away = _free(folder.with_name(folder.name.removeprefix(".").split(".", 1)[0]), DISCARDED)
            folder.rename(away)
        if away.is_symlink():
            away.unlink()
    shutil.rmtree(away, ignore_errors=True)
    return not os.path.lexists(away) and not os.path.lexists(folder)


def set_aside(final: Path) -> Path:
    """Rename a damaged stage to a hidden folder, which replaces an older one if possible; return that folder.

    Raises:
        PermissionError: If this user may not rename it.
    """
    discard(hidden(final, DAMAGED))
    away = _free(final, DAMAGED)
    final.rename(away)
    return away


def _free(final: Path, ending: str) -> Path:
    """Return a hidden folder of a stage that does not exist; its name has a number if others are there."""
    number, folder = 1, hidden(final, ending)
    while os.path.lexists(folder):
        number += 1
        folder = hidden(final, f"{number}.{ending}")
    return folder


def _flush(path: Path) -> None:
    """Flush the content of a file, or the entries of a folder, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if not path.is_dir():  # some file systems refuse it for folders
            error.filename = str(path)
            raise
    finally:
        os.close(descriptor)
