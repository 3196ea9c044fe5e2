"""Finished stages on disk, seen from one process."""

import errno
import json
import os
import resource
import shutil
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from pytorch_lightning.utilities import rank_zero_only
from torch import nn

from kegnet_pl.api.checkpoints import save_network
from kegnet_pl.api.sampling import load_generators
from kegnet_pl.pipeline import publication
from kegnet_pl.pipeline import store as store_module
from kegnet_pl.pipeline.inventory import read_store
from kegnet_pl.pipeline.provenance import git_state, versions
from kegnet_pl.pipeline.store import Build, Stage, Store, fingerprint
from kegnet_pl.runtime.costs import StageCosts
from kegnet_pl.runtime.errors import StoreError, UserError

CONFIG = {"lr": 0.1, "network": {"width": 3, "depth": 2}}


class Builder:
    """Writes one file, counts its calls, and keeps what it found in its folder."""

    def __init__(self, error: BaseException | None = None, seconds: float = 0.0) -> None:
        self.error, self.seconds = error, seconds
        self.calls = 0
        self.found: list[str] = []

    def __call__(self, folder: Path, costs: StageCosts) -> Mapping[str, Any]:
        self.calls += 1
        self.found = sorted(path.name for path in folder.iterdir())
        (folder / "half.txt").write_text("begun")
        time.sleep(self.seconds)
        if self.error is not None:
            raise self.error
        (folder / "done.txt").write_text("finished")
        return {"accuracy": 0.5, "call": self.calls}


def _get(root: Path, build: Build, config: Any = None, parents: Any = (), **options: Any) -> Stage:
    return Store(root, **options).get("teacher", CONFIG if config is None else config, list(parents), build)


def _visible(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir() if not path.name.startswith("."))


def test_fingerprint_depends_on_all_it_is_given() -> None:
    marks = [
        fingerprint("teacher", CONFIG, ["a", "b"]),
        fingerprint("student", CONFIG, ["a", "b"]),
        fingerprint("teacher", CONFIG | {"lr": 0.2}, ["a", "b"]),
        fingerprint("teacher", CONFIG | {"network": {"width": 3, "depth": 3}}, ["a", "b"]),
        fingerprint("teacher", CONFIG | {"extra": None}, ["a", "b"]),
        fingerprint("teacher", CONFIG, ["b", "a"]),
        fingerprint("teacher", CONFIG, ["a"]),
        fingerprint("teacher", CONFIG, []),
    ]
    assert len(set(marks)) == len(marks)
    assert all(len(mark) == 16 for mark in marks)


def test_fingerprint_does_not_depend_on_the_order_of_keys() -> None:
    other = {"network": {"depth": 2, "width": 3}, "lr": 0.1}
    assert list(other) != list(CONFIG)
    assert fingerprint("teacher", other, ["a"]) == fingerprint("teacher", CONFIG, ["a"])


def test_fingerprint_changes_with_the_format(monkeypatch: pytest.MonkeyPatch) -> None:
    before = fingerprint("teacher", CONFIG, [])
    monkeypatch.setattr(store_module, "FORMAT", store_module.FORMAT + 1)
    assert fingerprint("teacher", CONFIG, []) != before


def test_second_get_builds_nothing(tmp_path: Path) -> None:
    build = Builder()
    first, second = _get(tmp_path, build), _get(tmp_path, build)
    assert build.calls == 1
    assert (first.found, second.found) == (False, True)
    assert first == second
    assert (second.folder / "done.txt").read_text() == "finished"
    assert second.metrics == {"accuracy": 0.5, "call": 1}
    assert _visible(tmp_path) == [f"teacher-{first.fingerprint}"]


def test_other_settings_and_parents_are_other_stages(tmp_path: Path) -> None:
    build = Builder()
    parents = [_get(tmp_path, build, {"lr": lr}) for lr in (1, 2)]
    children = [_get(tmp_path, build, parents=[parent]) for parent in parents]
    assert build.calls == 4
    assert len({stage.fingerprint for stage in [*parents, *children]}) == 4
    assert _get(tmp_path, build, parents=[parents[0]]).folder == children[0].folder
    assert build.calls == 4


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), SystemExit(2)])
def test_build_that_raises_publishes_nothing_and_is_gone_on_with(tmp_path: Path, error: BaseException) -> None:
    with pytest.raises(type(error)):
        _get(tmp_path, Builder(error))
    assert _visible(tmp_path) == []
    second = Builder()
    stage = _get(tmp_path, second)
    assert "half.txt" in second.found, "the interrupted build was not found"
    assert _visible(tmp_path) == [stage.folder.name]
    assert not list(tmp_path.glob(".*.building"))


def test_checkpoints_and_clock_are_not_published(tmp_path: Path) -> None:
    def build(folder: Path, costs: StageCosts) -> dict[str, Any]:
        (folder / "checkpoints" / "teacher").mkdir(parents=True)
        (folder / "checkpoints" / "teacher" / "resume.ckpt").touch()
        return {}

    with pytest.raises(ValueError, match="no"):
        _get(tmp_path, Builder(ValueError("no")))
    assert sorted(path.name for path in _get(tmp_path, build).folder.iterdir()) == ["half.txt", "manifest.json"]


def test_never_builds_anew(tmp_path: Path) -> None:
    build = Builder()
    first = _get(tmp_path, build)
    (first.folder / "old.txt").touch()
    second = _get(tmp_path, build, resume="never")
    assert build.calls == 2
    assert not second.found
    assert second.folder == first.folder
    assert second.metrics["call"] == 2
    assert not (second.folder / "old.txt").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == [".locks", first.folder.name]


def test_never_forgets_an_interrupted_build(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no"):
        _get(tmp_path, Builder(ValueError("no")))
    build = Builder()
    _get(tmp_path, build, resume="never")
    assert build.found == []


def test_never_keeps_the_old_stage_until_the_new_one_is_whole(tmp_path: Path) -> None:
    first = _get(tmp_path, Builder())
    with pytest.raises(ValueError, match="no"):
        _get(tmp_path, Builder(ValueError("no")), resume="never")
    assert _get(tmp_path, Builder()).metrics == first.metrics


def test_require_refuses_to_build(tmp_path: Path) -> None:
    build = Builder()
    with pytest.raises(StoreError, match=r"'teacher'.*resume=require.*resume=auto.*store=FOLDER") as caught:
        _get(tmp_path, build, resume="require")
    assert str(tmp_path) in str(caught.value)
    assert build.calls == 0
    made = _get(tmp_path, build)
    assert _get(tmp_path, build, resume="require") == made
    assert build.calls == 1


def test_require_refuses_what_is_only_begun(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no"):
        _get(tmp_path, Builder(ValueError("no")))
    with pytest.raises(StoreError, match="resume=require"):
        _get(tmp_path, Builder(), resume="require")


def test_manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/somewhere/kegnet", "seed=3"])
    parent = Store(tmp_path).get("teacher", {}, [], Builder())
    child = Store(tmp_path).get("student", CONFIG, [parent], Builder(seconds=0.2))
    manifest = json.loads((child.folder / "manifest.json").read_text())
    assert manifest == child.manifest
    expected = {
        "stage": "student",
        "fingerprint": child.fingerprint,
        "config": CONFIG,
        "parents": {"teacher": parent.fingerprint},
        "metrics": {"accuracy": 0.5, "call": 1},
        "command": "python -m kegnet_pl seed=3",
    }
    assert {key: manifest[key] for key in expected} == expected
    assert child.seconds == manifest["seconds"] == pytest.approx(0.2, abs=0.15)
    assert 50 < manifest["peak_memory"]["host_mb"] < 100_000
    assert manifest["versions"] == versions()
    assert manifest["git"] == git_state()


def test_seconds_add_up_over_attempts(tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(ValueError, match="no"):
            _get(tmp_path, Builder(ValueError("no"), seconds=0.3))
    assert _get(tmp_path, Builder(seconds=0.1)).seconds == pytest.approx(0.7, abs=0.2)


@pytest.mark.parametrize("named", [True, False])
def test_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: bool) -> None:
    """Errors of a write without a name concern the store if it has little room left."""
    name = [str(tmp_path / ".teacher-0.building" / "half.txt")] if named else []
    full = OSError(errno.ENOSPC, "No space left on device", *name)
    usage = shutil.disk_usage(tmp_path)._replace(free=10**10 if named else 10**6)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(StoreError, match=r"write to the store.*No space left.*Free some space.*store=FOLDER"):
        _get(tmp_path, Builder(full))
    assert _visible(tmp_path) == []
    assert _get(tmp_path, Builder()).found is False


@pytest.mark.parametrize("name", [[], ["/elsewhere/temporary"]])
def test_another_disk_that_is_full_is_not_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: list[str]
) -> None:
    """Such as that of TMPDIR, or of the file that standard output goes to."""
    usage = shutil.disk_usage(tmp_path)._replace(free=10**10)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(OSError, match="No space left"):
        _get(tmp_path, Builder(OSError(errno.ENOSPC, "No space left on device", *name)))


def test_full_disk_at_the_manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path, text: str, *, durable: bool) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(publication, "atomic_write", fail)
        with pytest.raises(StoreError, match="No space left"):
            _get(tmp_path, Builder())
    assert _visible(tmp_path) == []
    second = Builder()
    _get(tmp_path, second)
    assert "done.txt" in second.found


def test_full_disk_while_weights_are_written(tmp_path: Path) -> None:
    """The library that writes weights has errors of its own; a limit on file sizes stands for the disk."""

    def build(folder: Path, costs: StageCosts) -> dict[str, Any]:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
        try:
            save_network(nn.Linear(100, 100), folder, "network", {})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        return {}

    with pytest.raises(StoreError, match="write to the store"):
        _get(tmp_path, build)
    assert _visible(tmp_path) == []


def test_a_file_that_a_build_misses_is_not_the_stores_fault(tmp_path: Path) -> None:
    error = FileNotFoundError("Expected the mnist files at one of: ... Then set data.root=FOLDER.")
    with pytest.raises(FileNotFoundError, match=r"^Expected the mnist files"):
        _get(tmp_path, Builder(error))


def test_store_is_a_file(tmp_path: Path) -> None:
    path = tmp_path / "store"
    path.touch()
    for root in (path, path / "below"):
        with pytest.raises(StoreError, match=r"write to the store.*store=FOLDER"):
            Store(root)


def test_store_is_not_writable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Store(tmp_path)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(StoreError, match=r"write to the store.*Permission denied"):
        Store(tmp_path)


def test_store_that_is_only_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = _get(tmp_path, Builder())
    shutil.rmtree(tmp_path / ".locks")
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    monkeypatch.setattr(Path, "mkdir", _forbidden)
    with pytest.raises(StoreError, match=r"Permission denied.*set resume=require\.$"):
        Store(tmp_path)
    assert _get(tmp_path, Builder(), resume="require") == made
    with pytest.raises(StoreError, match="since resume=require, but it is missing"):
        _get(tmp_path, Builder(), {"lr": 1}, resume="require")
    assert sorted(tmp_path.rglob("*")) == before
    with pytest.raises(StoreError, match="write to the store"):
        Store(tmp_path / "none", "require")


def _forbidden(path: Path, *_: Any, **__: Any) -> None:
    raise PermissionError(errno.EACCES, "Permission denied", str(path))


def _spoil(path: Path, content: str | None) -> None:
    path.unlink() if content is None else path.write_text(content)


@pytest.mark.parametrize("content", [None, "", '{"stage": "tea', "\x00\x01", "null", "{}", '{"files": 3}'])
def test_damaged_manifest(tmp_path: Path, content: str | None) -> None:
    path = _get(tmp_path, Builder()).folder / "manifest.json"
    _spoil(path, content)
    with pytest.raises(StoreError, match=r"complete stage in .*manifest\.json.*resume=auto") as caught:
        _get(tmp_path, Builder(), resume="require")
    assert str(path.parent) in str(caught.value)
    said: list[str] = []
    again = _get(tmp_path, Builder(), notify=said.append)
    assert (again.found, again.metrics["accuracy"]) == (False, 0.5)
    assert len(said) == 1 and said[0].startswith(f"Warning: the stage {path.parent.name} is damaged (")
    aside = tmp_path / f".{path.parent.name}.damaged"
    assert (aside / "done.txt").read_text() == "finished" and aside.name in said[0]
    assert _get(tmp_path, Builder()).found


@pytest.mark.parametrize(
    "change",
    [
        {"metrics": None}, {"metrics": [["a", 1]]}, {"seconds": "3"}, {"seconds": True}, {"costs": []}, {"config": 1},
        {"parents": ["x"]}, {"stage": 3}, {"fingerprint": None}, {"peak_memory": "1"}, {"files": ["done.txt"]},
        {"files": {"done.txt": "8"}}, {"files": {"done.txt": {"bytes": 8}}}, {"files": {"../x": 1}},
        {"files": {"a\0b": 1}}, {"files": {"x" * 5000: 1}}, {"stage": "x" * 5000}, 100_000,
    ],
    ids=lambda change: str(change)[:40],
)  # fmt: skip
def test_an_unsealed_manifest_of_other_types_is_damaged(tmp_path: Path, change: Any) -> None:
    path = _get(tmp_path, Builder()).folder / "manifest.json"
    content = {key: value for key, value in json.loads(path.read_text()).items() if key != "sha256"}
    content["files"] = {name: entry["bytes"] for name, entry in content["files"].items()}
    path.write_text(json.dumps(content))
    assert _get(tmp_path, Builder(), resume="require").seconds >= 0, "as of an earlier version"
    path.write_text("[" * change + "]" * change if isinstance(change, int) else json.dumps(content | change))
    with pytest.raises(StoreError, match="is damaged") as caught:
        _get(tmp_path, Builder(), resume="require")
    assert len(str(caught.value)) < 800
    assert read_store(tmp_path)[0].state == "damaged"
    with pytest.raises((UserError, FileNotFoundError), match=r"^Expected "):
        load_generators(path.parent, nn.Linear(2, 2))
    assert not _get(tmp_path, Builder(), notify=lambda _: None).found


def _build_folders(folder: Path, costs: StageCosts) -> dict[str, Any]:
    (folder / "logs" / "version_0").mkdir(parents=True, exist_ok=True)
    (folder / "logs" / "version_0" / "metrics.csv").write_text("epoch,loss\n0,0.25\n")
    (folder / "empty.txt").touch()
    (folder / "weights.bin").write_bytes(bytes(range(200)))
    return {"accuracy": 0.5}


@pytest.mark.parametrize("verify", ["auto", "always", "never"])
@pytest.mark.parametrize("name", ["weights.bin", "logs/version_0/metrics.csv", "manifest.json"])
@pytest.mark.parametrize("kind", ["flip", "cut", "zero", "delete", "grow"])
def test_damaged_file(tmp_path: Path, name: str, kind: str, verify: Any) -> None:
    """Never compares sizes only, so it finds no file of the same size; the manifest it checks always."""
    path = _get(tmp_path, _build_folders).folder / name
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    if kind == "flip":
        content[middle] ^= 1
    elif kind == "zero":
        content[middle : middle + 4] = bytes(4)
    path.write_bytes({"cut": content[:middle], "grow": content + b"x"}.get(kind, content))
    if kind == "delete":
        path.unlink()
    missed = verify == "never" and kind in ("flip", "zero") and name != "manifest.json"
    if not missed:
        with pytest.raises(StoreError, match="is damaged"):
            _get(tmp_path, _build_folders, resume="require", verify=verify)
    said: list[str] = []
    assert _get(tmp_path, _build_folders, verify=verify, notify=said.append).found is missed
    assert len(said) == (0 if missed else 1)
    assert _get(tmp_path, _build_folders).found is not missed


def test_files_and_manifests_of_other_stages_are_found(tmp_path: Path) -> None:
    one, other = (_get(tmp_path, _build_folders, {"lr": lr}).folder for lr in (1, 2))
    shutil.copy(other / "manifest.json", one)
    with pytest.raises(StoreError, match=rf"manifest\.json belongs to {other.name}"):
        _get(tmp_path, Builder(), {"lr": 1}, resume="require")
    shutil.rmtree(one)
    shutil.copytree(other, one)
    with pytest.raises(StoreError, match=rf"manifest\.json belongs to {other.name}"):
        _get(tmp_path, Builder(), {"lr": 1}, resume="require")


def test_manifests_of_earlier_versions_are_read(tmp_path: Path) -> None:
    folder = _get(tmp_path, _build_folders).folder
    content = json.loads((folder / "manifest.json").read_text())
    del content["sha256"]
    content["files"] = {"weights.bin": 200, "empty.txt": 0}
    (folder / "manifest.json").write_text(json.dumps(content))
    assert _get(tmp_path, Builder(), resume="require").manifest == content
    (folder / "weights.bin").write_bytes(b"")
    with pytest.raises(StoreError, match=r"weights\.bin does not have the size"):
        _get(tmp_path, Builder(), resume="require")


def test_copied_and_moved_stores_are_read(tmp_path: Path) -> None:
    made = _get(tmp_path / "a", _build_folders)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    (tmp_path / "a").rename(tmp_path / "c")
    for name in ("b", "c"):
        assert _get(tmp_path / name, Builder()).manifest == made.manifest


def test_locks_and_the_environment_do_not_grow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KEGNET_STAGES", raising=False)
    for index in range(20):
        _get(tmp_path, Builder(), {"lr": index})
    assert list((tmp_path / ".locks").iterdir()) == []
    assert "KEGNET_STAGES" not in os.environ


def test_a_lock_file_of_another_user_is_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may only be read; earlier versions left such files behind."""
    name = f"teacher-{fingerprint('teacher', CONFIG, [])}.lock"
    Store(tmp_path)
    (tmp_path / ".locks" / name).write_text("process 1 on host")
    real = os.open

    def open_as_another_user(path: Any, flags: int, *rest: Any, **options: Any) -> int:
        if str(path).endswith(".lock") and flags & os.O_RDWR:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path, flags, *rest, **options)

    monkeypatch.setattr(os, "open", open_as_another_user)
    assert _get(tmp_path, Builder(), notify=pytest.fail).metrics["call"] == 1


@pytest.mark.parametrize(("mode", "shared"), [(0o2775, True), (0o775, True), (0o755, False)])
def test_modes_follow_the_group_of_the_store(tmp_path: Path, mode: int, shared: bool) -> None:
    tmp_path.chmod(mode)
    before = os.umask(0o022)
    try:
        folder = _get(tmp_path, _build_folders).folder
    finally:
        assert os.umask(before) == 0o022
    paths = [tmp_path / ".locks", folder, *folder.rglob("*")]
    assert {bool(path.stat().st_mode & 0o020) for path in paths} == {shared}


def test_other_ranks_build_what_rank_0_decided(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = _get(tmp_path, Builder())
    monkeypatch.setattr(rank_zero_only, "rank", 1, raising=False)
    build = Builder()
    monkeypatch.setenv("KEGNET_STAGES", json.dumps({made.fingerprint: True}))
    assert Store(tmp_path).get("teacher", CONFIG, [], build, collective=True) == made
    assert build.calls == 0, "the stage is there"
    monkeypatch.setenv("KEGNET_STAGES", json.dumps({made.fingerprint: False}))
    Store(tmp_path).get("teacher", CONFIG, [], build)
    assert build.calls == 0, "rank 0 builds alone"
    made.folder.with_name(f".{made.folder.name}.building").mkdir()
    Store(tmp_path).get("teacher", CONFIG, [], build, collective=True)
    assert build.calls == 1, "every rank trains, though the stage may be there by now"


def _unreadable(monkeypatch: pytest.MonkeyPatch, name: str, code: int) -> None:
    """Let files of a name fail to open, as those of another user do; permissions do not bind root."""
    real, opened = os.open, Path.open

    def refuse(path: Any) -> None:
        if Path(str(path)).name == name:
            raise OSError(code, os.strerror(code), str(path))

    monkeypatch.setattr(os, "open", lambda path, *rest, **more: (refuse(path), real(path, *rest, **more))[1])
    monkeypatch.setattr(Path, "open", lambda path, *rest, **more: (refuse(path), opened(path, *rest, **more))[1])


@pytest.mark.parametrize(
    ("name", "code"), [("manifest.json", errno.EACCES), ("done.txt", errno.EACCES), ("done.txt", errno.EMFILE)]
)
def test_a_stage_that_cannot_be_read_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, code: int
) -> None:
    made = _get(tmp_path, Builder())
    with monkeypatch.context() as patch:
        _unreadable(patch, name, code)
        with pytest.raises(StoreError, match=rf"{name}: {os.strerror(code)}\. It may be intact.* permission to read"):
            _get(tmp_path, Builder(), verify="always")
    assert _visible(tmp_path) == [made.folder.name] and not list(tmp_path.glob(".teacher*"))
    assert _get(tmp_path, Builder()) == made


def test_a_damaged_stage_of_another_user_is_replaced_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its files cannot be deleted; damage after damage gets a free name, and no run builds twice."""
    monkeypatch.setattr(shutil, "rmtree", lambda *_, **__: None)
    for count in range(1, 4):
        folder = _get(tmp_path, Builder(), notify=lambda _: None).folder
        aside = {path.name for path in tmp_path.glob(".teacher*")}
        assert len(aside) == count - 1
        assert _get(tmp_path, Builder()).found
        assert {path.name for path in tmp_path.glob(".teacher*")} == aside, "a second run changes no name"
        (folder / "done.txt").unlink()
    monkeypatch.undo()
    (tmp_path / _visible(tmp_path)[0]).joinpath("done.txt").write_text("finished")
    _get(tmp_path, Builder(), resume="never")
    assert [path.name for path in tmp_path.glob(".teacher*")] == [f".{folder.name}.damaged"]


def test_a_damaged_stage_that_cannot_be_renamed_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, build = _get(tmp_path, Builder()), Builder()
    (made.folder / "done.txt").unlink()

    def refuse(path: Path, target: Path) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted", str(path), None, str(target))

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(
        StoreError, match=r"rename the damaged stage .*done\.txt.*Operation not permitted.*store=FOLDER"
    ):
        _get(tmp_path, build)
    assert build.calls == 0


def test_a_linked_stage_is_used_and_a_link_to_nowhere_refused(tmp_path: Path) -> None:
    made = _get(tmp_path / "store", Builder())
    elsewhere = tmp_path / "disk" / made.folder.name
    elsewhere.parent.mkdir()
    made.folder.rename(elsewhere)
    made.folder.symlink_to(elsewhere)
    assert _get(tmp_path / "store", Builder()) == made
    elsewhere.rename(tmp_path / "unmounted")
    for resume in ("auto", "require"):
        build = Builder()
        with pytest.raises(StoreError, match=rf"a link to {elsewhere}, which does not exist\. Mount"):
            _get(tmp_path / "store", build, resume=resume)
        assert build.calls == 0
    (tmp_path / "unmounted").rename(elsewhere)
    (elsewhere / "done.txt").write_text("damaged")
    assert not _get(tmp_path / "store", Builder(), notify=lambda _: None).found
    assert not made.folder.is_symlink() and (elsewhere / "done.txt").read_text() == "damaged"
