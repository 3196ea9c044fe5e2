"""Manifests of finished stages: every file with its size and SHA-256, and the manifest with its own hash."""

import errno
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from kegnet_pl.runtime.safe_files import RefusedFileError, printable, read_bytes

MANIFEST = "manifest.json"
"""File in the folder of a finished stage."""

UNFINISHED = ("checkpoints", "costs.json")
"""Files and folders that only an unfinished stage needs; no manifest names them."""

Verify = Literal["auto", "always", "never"]
"""When the contents of files are compared with the manifest: once per process, each time, or never (sizes only)."""

SEAL = "sha256"
"""Key of a hash: of a file, or of all other keys of the content of a JSON file."""

_TYPES: dict[str, type | tuple[type, ...]] = {
    "stage": str, "fingerprint": str, "seconds": (int, float),
    **dict.fromkeys(("config", "costs", "files", "metrics", "parents", "peak_memory", "versions"), dict),
}  # fmt: skip
"""Types of the values of a manifest."""

_STAGE_FOLDER = re.compile(r"([a-z]+)-([0-9a-f]{16})")
_MANY = 10_000

_known: dict[tuple[int, int, int, int], str] = {}
"""Device, inode, size and time of change of a file -> SHA-256, as this process has seen it."""


_NOT_NOW = (errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE)
"""Errors of reading that concern this user or this moment, not the file."""


class DamagedError(ValueError):
    """A finished stage is damaged; the message is the reason."""


class UnreadableError(DamagedError):
    """A finished stage cannot be read by this user, or at this moment; it may be intact."""


def _failure(name: str, error: OSError) -> DamagedError:
    kind = UnreadableError if error.errno in _NOT_NOW else DamagedError
    return kind(f"{name}: {error.strerror or error}")


def file_digest(path: Path, *, again: bool = False) -> str:
    """Return the SHA-256 of a file; an unchanged file is read once per process, unless ``again`` is set."""
    stat = path.stat()
    key = (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns)
    if again or key not in _known:
        if len(_known) >= _MANY:
            _known.clear()
        with path.open("rb") as file:
            _known[key] = hashlib.file_digest(file, "sha256").hexdigest()
    return _known[key]


def describe_files(folder: Path) -> dict[str, dict[str, Any]]:
    """Return size and SHA-256 of all files of a finished stage, also in folders below, by relative path."""
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file() and not path.is_symlink())
    names = ((path.relative_to(folder), path) for path in paths)
    return {
        name.as_posix(): {"bytes": path.stat().st_size, SEAL: file_digest(path)}
        for name, path in names
        if name.parts[0] not in (*UNFINISHED, MANIFEST) and not name.name.endswith(".draft")
    }


def seal(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return content for a JSON file with the hash of all of it as ``sha256``."""
    plain: dict[str, Any] = json.loads(json.dumps(content))
    return plain | {SEAL: _own_hash(plain)}


def is_sealed(content: Mapping[str, Any]) -> bool:
    """Return True if the content of a JSON file has the hash that :func:`seal` gave it."""
    return SEAL in content and content[SEAL] == _own_hash(content)


def _own_hash(content: Mapping[str, Any]) -> str:
    plain = {name: value for name, value in content.items() if name != SEAL}
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read the manifest of a finished stage, and compare it with its own hash and with the name of the folder.

    Manifests of earlier versions have no hash. A folder may have any name, but a name of a stage must match.

    Raises:
        DamagedError: If it is missing, damaged, or belongs to another stage.
        UnreadableError: If this user may not read it.
    """
    try:
        content = json.loads(read_bytes(folder / MANIFEST, None))
    except (RefusedFileError, ValueError, RecursionError) as error:
        if isinstance(error.__cause__, OSError):
            raise _failure(MANIFEST, error.__cause__) from error
        raise DamagedError(f"{MANIFEST}: {error}") from error
    if not isinstance(content, dict):
        raise DamagedError(f"{MANIFEST}: it is not an object")
    for key, kind in _TYPES.items():
        if key in content and (not isinstance(content[key], kind) or content[key] is True or content[key] is False):
            raise DamagedError(f"{MANIFEST}: `{key}` has another type")
    new = SEAL in content or any(isinstance(entry, dict) for entry in content.get("files", {}).values())
    if new and not is_sealed(content):
        raise DamagedError(f"{MANIFEST} was changed")
    named = _STAGE_FOLDER.fullmatch(folder.name)
    if named and "stage" in content and (content["stage"], content.get("fingerprint")) != named.groups():
        raise DamagedError(f"{MANIFEST} belongs to {printable(content['stage'], 60)}-{content.get('fingerprint')}")
    return content


def check_files(
    folder: Path, manifest: Mapping[str, Any], names: Iterable[str] | None = None, verify: Verify = "auto"
) -> None:
    """Compare all files, or those in ``names``, with a manifest; earlier versions recorded only sizes.

    Raises:
        DamagedError: If one is missing or differs; or if the manifest has hashes and does not name it.
    """
    files = manifest.get("files", {})
    for name in files if names is None else names:
        entry, path = files.get(name), folder / name
        name = printable(name, 200)
        if entry is None:
            if SEAL in manifest:
                raise DamagedError(f"{MANIFEST} does not name {name}")
            continue
        size = entry.get("bytes") if isinstance(entry, dict) else entry
        try:
            if not path.resolve().is_relative_to(folder.resolve()):
                raise DamagedError(f"{name} is outside of the folder")
            if path.stat().st_size != size:
                raise DamagedError(f"{name} does not have the size in the manifest")
            compared = isinstance(entry, dict) and verify != "never"
            if compared and file_digest(path, again=verify == "always") != entry.get(SEAL):
                raise DamagedError(f"{name} was changed: its SHA-256 differs from the manifest")
        except OSError as error:
            raise _failure(name, error) from error
        except ValueError as error:
            if isinstance(error, DamagedError):
                raise
            raise DamagedError(f"{name}: {error}") from error  # no name of a file


def check_parts(folder: Path, names: Iterable[str]) -> None:
    """Compare the files that are read from a folder with its manifest; a folder without a manifest is not checked.

    Raises:
        DamagedError: If the manifest or one of these files is damaged.
    """
    if (folder / MANIFEST).is_file():
        check_files(folder, read_manifest(folder), names)
