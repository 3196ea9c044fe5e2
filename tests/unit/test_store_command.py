"""``python -m kegnet_pl.store``: list, check and gc."""

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from kegnet_pl.pipeline import store as store_module
from kegnet_pl.pipeline.store import Stage, Store
from kegnet_pl.runtime.locks import locked
from kegnet_pl.store import main

DAY = 86_400


@pytest.fixture
def stages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Stage]:
    """Return the stages of a store: a run uses teacher, student and its latency; ``old`` is used by none."""
    monkeypatch.chdir(tmp_path)
    for name in ("git_state", "versions"):
        monkeypatch.setattr(store_module, name, dict)
    store = Store(tmp_path / "store")

    def get(name: str, size: int, *parents: Stage, **config: Any) -> Stage:
        def build(folder: Path, costs: Any) -> dict[str, Any]:
            (folder / "weights.bin").write_bytes(bytes(size))
            return {}

        return store.get(name, config, parents, build)

    teacher = get("teacher", 1000)
    student = get("student", 20_000, teacher)
    made = {"teacher": teacher, "student": student, "latency": get("latency", 10, teacher, student)}
    made["old"] = get("teacher", 5000, lr=2)
    run = tmp_path / "outputs" / "runs" / "today"
    run.mkdir(parents=True)
    content = {"config": {}, "networks": {"T": {"student": os.path.relpath(student.folder, run)}}}
    (run / "stages.json").write_text(json.dumps(content))
    (run.parent / "stages.json").write_text("{")
    (store.root / ".student-0123456789abcdef.building").mkdir()
    (store.root / "notes").mkdir()
    return made


def _age(stage: Stage, days: float) -> None:
    for path in (stage.folder, *stage.folder.rglob("*")):
        os.utime(path, (time.time() - days * DAY,) * 2)


def _left(tmp_path: Path) -> set[str]:
    return {path.name for path in (tmp_path / "store").iterdir()} - {".locks", "notes"}


def test_list(stages: dict[str, Stage], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _age(stages["old"], 40)
    assert main(["list", "store"]) == 0
    head, *lines, total = capsys.readouterr().out.splitlines()
    assert head.split() == ["stage", "fingerprint", "state", "size", "age", "runs"]
    found = {line.split()[1]: line.split() for line in lines}
    assert len(found) == 5 and total.startswith("5 folders, ")
    for name, stage in stages.items():
        stage_name, _, state, size, _, age, _, *runs = found[stage.fingerprint]
        assert (stage_name, state) == (stage.name, "finished")
        assert runs == (["-"] if name == "old" else [str(Path("outputs/runs/today"))])
        assert float(size) > 0 and age == ("40" if name == "old" else "0")
    assert found["0123456789abcdef"][2] == "unfinished"


def test_check(stages: dict[str, Stage], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "store"]) == 0
    assert "4 stages are intact, 0 damaged, 0 renamed earlier, 1 unfinished." in capsys.readouterr().out
    path = stages["student"].folder / "weights.bin"
    stat = path.stat()
    path.write_bytes(b"x" + bytes(19_999))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # the disk does not tell
    assert main(["check", "store"]) == 1
    out = capsys.readouterr().out
    assert (
        f"{stages['student'].folder.name}: weights.bin was changed" in out and "3 stages are intact, 1 damaged" in out
    )


@pytest.mark.parametrize(
    ("options", "gone"),
    [
        (["--older-than", "30d"], {"old", "latency"}),
        (["--older-than", "30d", "--unreachable"], {"old"}),
        (["--unreachable"], {"old"}),
        (["--larger", "15k"], {"student"}),
        (["--max-size", "22k"], {"old", "latency", "teacher"}),
        (["--max-size", "1G"], set()),
        (["--unfinished"], {"begun"}),
        (["--unfinished", "--older-than", "1d"], set()),
        (["--damaged"], set()),
    ],
)
def test_gc_removes_what_it_lists_and_only_with_yes(
    stages: dict[str, Stage], tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], gone: set[str]
) -> None:
    _age(stages["old"], 40)
    _age(stages["latency"], 35)
    _age(stages["teacher"], 3)
    names = {stage.folder.name: name for name, stage in stages.items()} | {
        ".student-0123456789abcdef.building": "begun"
    }
    before = _left(tmp_path)
    assert before == set(names)
    assert main(["gc", "store", *options]) == 0
    assert "Nothing was removed. Add --yes to remove these folders." in capsys.readouterr().out
    assert _left(tmp_path) == before
    assert main(["gc", "store", *options, "--yes"]) == 0
    assert {names[name] for name in before - _left(tmp_path)} == gone
    assert list((tmp_path / "store" / ".locks").iterdir()) == []


def test_gc_leaves_a_stage_in_work(stages: dict[str, Stage], tmp_path: Path) -> None:
    with locked(tmp_path / "store" / ".locks" / "student-0123456789abcdef.lock", None):
        assert main(["gc", "store", "--unfinished", "--yes"]) == 1
        assert ".student-0123456789abcdef.building" in _left(tmp_path)
    assert main(["gc", "store", "--unfinished", "--yes"]) == 0
    assert ".student-0123456789abcdef.building" not in _left(tmp_path)


def test_gc_removes_damaged_stages_and_leftovers(stages: dict[str, Stage], tmp_path: Path) -> None:
    (stages["old"].folder / "weights.bin").unlink()
    for ending in ("old", "discarded", "damaged", "2.damaged"):
        (tmp_path / "store" / f".teacher-0123456789abcdef.{ending}").mkdir()
    assert main(["gc", "store", "--damaged", "--yes"]) == 0
    assert _left(tmp_path) == {stages[name].folder.name for name in ("teacher", "student", "latency")} | {
        ".student-0123456789abcdef.building"
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["list", "none"], "Expected a store at none"),
        (["gc", "store", "--unreachable", "--runs", "store"], "Expected runs that use the store in store"),
        (["list", "store", "--runs", "none"], "there is no none"),
    ],
)
def test_errors(
    stages: dict[str, Stage], capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(arguments) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("option", [["--older-than", "thirty"], ["--larger", "1X"]])
def test_values_that_cannot_be_read(
    stages: dict[str, Stage], capsys: pytest.CaptureFixture[str], option: list[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["gc", "store", *option])
    assert f"but got {option[1]!r}" in capsys.readouterr().err


def test_gc_without_a_condition_is_refused_with_an_example(
    stages: dict[str, Stage], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = _left(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        main(["gc", "store", "--yes"])
    said = capsys.readouterr().err
    assert stopped.value.code == 2 and _left(tmp_path) == before
    assert "Expected at least one condition, but got none" in said and "gc --unreachable --older-than 30d" in said


def test_links_are_followed_and_only_the_link_is_removed(
    stages: dict[str, Stage], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    targets = {name: disk / stages[name].folder.name for name in ("student", "old")}
    for name, target in targets.items():
        stages[name].folder.rename(target)
        stages[name].folder.symlink_to(target)
    (tmp_path / "store" / "teacher-0123456789abcdef").symlink_to("/nowhere")
    (tmp_path / "store" / "teacher-1123456789abcdef").symlink_to(tmp_path)
    assert main(["list", "store"]) == 0
    out = capsys.readouterr().out
    row = next(line.split() for line in out.splitlines() if stages["student"].fingerprint in line)
    assert row[2:5] == ["finished", row[3], "kB"] and float(row[3]) > 20 and row[-1] == "outputs/runs/today"
    assert f"{targets['old'].name} is a link to {targets['old']}" in out
    assert "teacher-0123456789abcdef: manifest.json: " in out and "is a link to /nowhere" in out
    assert main(["check", "store"]) == 1
    assert "4 stages are intact, 2 damaged" in capsys.readouterr().out
    (targets["student"] / "weights.bin").write_bytes(bytes(20_001))
    assert main(["check", "store"]) == 1
    assert "3 stages are intact, 3 damaged" in capsys.readouterr().out
    assert main(["gc", "store", "--max-size", "0", "--yes"]) == 0
    assert stages["old"].folder.is_symlink(), "a link takes no space"
    assert main(["gc", "store", "--older-than", "0m", "--yes"]) == 0
    assert (
        f"{targets['old'].name}: the link was removed. Its folder {targets['old']} was not removed."
        in capsys.readouterr().out
    )
    assert not os.path.lexists(stages["old"].folder) and (targets["old"] / "weights.bin").exists()
    assert main(["gc", "store", "--damaged", "--yes"]) == 0
    assert _left(tmp_path) == {".student-0123456789abcdef.building"} and (disk / targets["student"].name).is_dir()


def test_gc_says_what_it_cannot_delete(
    stages: dict[str, Stage], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "store" / ".teacher-0123456789abcdef.damaged").mkdir()
    monkeypatch.setattr("shutil.rmtree", lambda *_, **__: None)  # as of another user's folder
    for _ in range(2):
        assert main(["gc", "store", "--damaged", "--yes"]) == 1
        assert "was not removed" in capsys.readouterr().out
        assert (tmp_path / "store" / ".teacher-0123456789abcdef.discarded").is_dir()
