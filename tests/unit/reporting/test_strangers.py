"""Reports on folders from a stranger: nothing outside is read or written, everything ends, and a sentence says why."""

import base64
import dataclasses
import hashlib
import json
import os
import re
import socket
import time
from pathlib import Path
from typing import Any

import pytest

import kegnet_pl
from kegnet_pl.report import main
from kegnet_pl.reporting.run_page import StageFolders
from kegnet_pl.reporting.runs import FinishedRun, read_runs
from kegnet_pl.reporting.sweep import explain_warnings
from kegnet_pl.runtime.atomic_files import atomic_write
from kegnet_pl.runtime.errors import UserError
from kegnet_pl.runtime.safe_files import RefusedFileError, printable, read_bytes, read_json, read_png
from tests.unit.reporting.rows import TEACHER, student, write_run

ROWS = [dataclasses.replace(row, fingerprint=f"{index:016x}") for index, row in enumerate([TEACHER, student(0.5)])]


def _files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _without_own_script(page: str) -> str:
    """Return a page without the script of the package, the only one that its policy lets a browser run."""
    found = re.findall(r"<script>(.*?)</script>", page, re.S)
    own = Path(kegnet_pl.__file__).parent / "reporting/templates/page.js"
    assert found[-1].strip() == own.read_text().strip()
    digest = base64.b64encode(hashlib.sha256(found[-1].encode()).digest()).decode()
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', page)
    assert policy.startswith("default-src 'none';") and policy.endswith(f"script-src 'sha256-{digest}'")
    return page.replace(f"<script>{found[-1]}</script>", "", 1)


def test_links_that_leave_the_folder_are_not_followed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine = tmp_path / "mine"
    write_run(mine / "important", ROWS)
    (mine / "diary.txt").write_text("private")
    given = tmp_path / "given"
    write_run(given / "run", ROWS)
    (given / "elsewhere").symlink_to(mine / "important")
    for name in (".report.html.draft", "report.html"):
        (given / "run" / name).symlink_to(mine / "diary.txt")
    write_run(given / "other", [])
    (given / "other" / "results.json").symlink_to(mine / "important" / "results.json")
    out = tmp_path / "out"
    out.mkdir()
    for name in ("results.csv", "results.json", "tradeoff.png", "report.html", ".results.csv.draft"):
        (out / name).symlink_to(mine / "diary.txt")
    before = _files(mine)
    assert main([str(given), "--out", str(out)]) == 0
    assert _files(mine) == before
    said = re.sub(r"\s+", " ", capsys.readouterr().out)
    assert "1 of 3 runs finished" in said and "name its target instead" in said and "a link that leaves" in said
    assert not (given / "run" / "report.html").is_symlink() and not (out / "results.csv").is_symlink()
    assert "private" not in (out / "report.html").read_text()


def test_loops_of_links_end(tmp_path: Path) -> None:
    write_run(tmp_path / "a" / "run", ROWS)
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    (tmp_path / "a" / "again").symlink_to(tmp_path / "a")
    (tmp_path / "b").symlink_to(tmp_path / "c")
    (tmp_path / "c").symlink_to(tmp_path / "b")
    (tmp_path / "a" / "run" / "failure.json").symlink_to("failure.json")
    assert [run.name for run in read_runs(tmp_path)] == ["run"]


def test_pipes_and_sockets_are_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_run(tmp_path / "good", ROWS)
    for name in ("results.json", "failure.json"):
        os.mkfifo(write_run(tmp_path / f"{name} pipe", []) / name)
        monkeypatch.chdir(write_run(tmp_path / f"{name} socket", []))  # addresses of sockets are short
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(name)
    os.mkfifo(tmp_path / "good" / "stages.json")
    failures = {run.name: run.failure or "" for run in read_runs(tmp_path)}
    assert failures.pop("good") == "" and len(failures) == 4
    for name, failure in failures.items():
        assert f"a {name.split()[1]}. Only regular files are opened" in failure
    with pytest.raises(UserError, match="a pipe"):
        StageFolders.read(tmp_path / "good")


def test_devices_and_large_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RefusedFileError, match="a device"):
        read_bytes(Path("/dev/zero"), None)
    large = tmp_path / "large"
    with large.open("wb") as file:
        file.truncate(2_000_000)
    with pytest.raises(RefusedFileError, match="more than 1,000 bytes"):
        read_bytes(large, None, most=1_000)
    with pytest.raises(RefusedFileError, match="a file that is not PNG"):
        read_png(large, tmp_path)
    with pytest.raises(RefusedFileError, match="No such file"):
        read_bytes(tmp_path / "none", tmp_path)


CHANGES: list[tuple[Any, str]] = [
    ({"accuracy": float("nan")}, "not a finite number"),
    ({"accuracy": 1e999}, "not a finite number"),
    ({"seconds": 1e308}, "1e\\+308, which is too large"),
    ({"seconds": -1.0}, "seconds is -1.0, which is out of range"),
    ({"parameters": 10**30}, "31 digits"),
    ({"parameters": 0}, "parameters is 0, which is out of range"),
    ({"accuracy": "high"}, "accuracy is high, not number or null"),
    ({"accuracy": True}, "accuracy is True, not number"),
    ({"method": "<script>"}, "another form"),
    ({"costs": {}}, "missing in costs"),
    ({"source": {"prior": 1}}, "missing in source"),
    ({"latency": {"device": "", "threads": None, "batches": {"x": {}}}}, "another form"),
    ({"versions": {str(i): "1" for i in range(3_000)}}, "versions has 3,000 entries"),
    ({"surprise": 1}, "unknown keys: surprise"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "expected"), CHANGES, ids=[str(change)[:40] for change, _ in CHANGES])
def test_hostile_results_are_named_and_the_others_reported(
    tmp_path: Path, change: dict[str, Any], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_run(tmp_path / "bad", [])
    (folder / "results.json").write_text(
        json.dumps([dataclasses.asdict(ROWS[0]), dataclasses.asdict(ROWS[1]) | change])
    )
    with pytest.raises(UserError, match=expected):
        read_runs(folder)
    write_run(tmp_path / "good", ROWS)
    runs = read_runs(tmp_path)
    assert [(run.name, bool(run.rows), run.broken) for run in runs] == [("bad", False, True), ("good", True, False)]
    assert not capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("[" * 100_000, "too deep"),
        (json.dumps([{}] * 1_000_000), "at most 500 rows"),
        (f"[{'9' * 5_000}]", "digits"),
        ("[1, 2]", "list of rows"),
        ('"\\ud800"', "list of rows"),
        ("", "Expecting value"),
    ],
    ids=["deep", "many", "digits", "numbers", "surrogate", "empty"],
)
def test_odd_json_is_refused_within_seconds(tmp_path: Path, content: str, expected: str) -> None:
    folder = write_run(tmp_path, [])
    (folder / "results.json").write_text(content, encoding="utf-8")
    start = time.perf_counter()
    with pytest.raises(UserError, match=expected):
        read_runs(folder)
    assert time.perf_counter() - start < 20


def test_settings_that_are_no_list_of_texts(tmp_path: Path) -> None:
    folder = write_run(tmp_path, ROWS)
    bomb = "a: &a [x, x]\n" + "".join(
        f"{chr(98 + i)}: &{chr(98 + i)} [*{chr(97 + i)}, *{chr(97 + i)}]\n" for i in range(24)
    )
    for text in (bomb, "- [1, 2]\n- 7\n- a=1", "{: :", "[" * 5_000, "- !!python/object/apply:os.system [ls]"):
        (folder / ".hydra" / "overrides.yaml").write_text(text)
        try:
            (run,) = read_runs(folder)
        except UserError as error:
            assert "settings of a run" in str(error)
        else:
            assert run.settings in ({}, {"a": "1"})


def test_everything_from_files_is_escaped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script, red = "<script>alert(1)</script>", "\x1b[31mred\x1b]8;;http://x\x07"
    rows = [
        dataclasses.replace(row, dataset=f"{script}{red}$\\frac$", teacher=f"$x_{red}", command=f"a\n{red}{script}")
        for row in ROWS
    ]
    for name, key in (("javascript:alert(1)", "0"), ('a"onmouseover="b', "1")):
        write_run(tmp_path / name, rows, [f"{script}{red}={key}", f"seed={key}"])
    failed = write_run(tmp_path / "\x1b[2Jcleared", [])
    (failed / "failure.json").write_text(json.dumps({"error": f"{red}{script}"}))
    assert main([str(tmp_path), "--out", str(tmp_path / "out")]) == 0
    said = "".join(capsys.readouterr())
    assert "\x1b" not in said and "\\x1b[31mred" in said
    for page in tmp_path.rglob("report.html"):
        text = page.read_text()
        assert "<script" not in _without_own_script(text) and "\x1b" not in text and 'onmouseover="b' not in text
        for address in re.findall(r'href="([^"]*)"', text):
            assert re.match(r"#|[\w./%-]+$", address) and "script:" not in address, address
    text = (tmp_path / "out" / "report.html").read_text()
    assert "javascript%3Aalert%281%29/report.html" in text
    assert "\x1b" not in (tmp_path / "out" / "results.csv").read_text()


def test_names_in_a_summary_stay_in_its_folder(tmp_path: Path) -> None:
    records = [{"run": "../../victim", "settings": {"seed": "0"}, **dataclasses.asdict(row)} for row in ROWS]
    given = tmp_path / "a" / "b"
    given.mkdir(parents=True)
    (given / "results.json").write_text(json.dumps(records))
    (tmp_path / "victim").mkdir()
    assert main([str(given), "--out", str(tmp_path / "out")]) == 0
    assert not list((tmp_path / "victim").iterdir())
    assert read_runs(given)[0].folder.is_relative_to(given)


@pytest.mark.parametrize(
    "content",
    [
        {"config": {}, "networks": {"teacher": {"teacher": "../../home"}}},
        {"config": {}, "networks": {"teacher": {"generators": "/etc"}}},
        {"config": [], "networks": {}},
        {"networks": {}},
        [],
        {"config": {}, "networks": {"T": {"../x": "../x-0123456789abcdef/.."}}},
    ],
)
def test_stages_elsewhere_are_refused(tmp_path: Path, content: Any, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_run(tmp_path / "run", ROWS)
    (folder / "stages.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"Expected .*stages\.json"):
        StageFolders.read(folder)
    if content == []:
        assert main([str(folder), "--out", str(tmp_path / "out")]) == 0
        assert "The page of run run was not written: Expected" in capsys.readouterr().err


def test_texts_are_made_printable() -> None:
    assert printable("Größe 3\N{NO-BREAK SPACE}·") == "Größe 3\N{NO-BREAK SPACE}·"
    assert printable("a\x1b[2J\n\u202eb\ud800") == "a\\x1b[2J\\n\\u202eb\\ud800"
    assert printable("a\nb", lines=True) == "a\nb"
    assert printable("x" * 50, 10) == "x" * 9 + "…"


def test_a_number_too_long_for_python(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"a": [1, 2.5, "x", None, True]}))
    assert read_json(tmp_path / "a.json", tmp_path) == {"a": [1, 2.5, "x", None, True]}


def test_an_atomic_write_follows_no_link(tmp_path: Path) -> None:
    victim, target = tmp_path / "victim", tmp_path / "folder" / "file"
    victim.write_text("kept")
    target.parent.mkdir()
    (target.parent / ".file.draft").symlink_to(victim)
    target.symlink_to(victim)
    atomic_write(target, "new")
    assert victim.read_text() == "kept" and target.read_text() == "new" and not target.is_symlink()


def test_warnings_of_all_runs_are_grouped_and_escaped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for index in range(3):
        texts = [f"The agreement is {index}.5 %.", "<script>x</script> [red]y[/red] \x1b[2J"][: 2 if index else 1]
        rows = [dataclasses.replace(row, fingerprint=f"{index}{row.fingerprint[1:]}", seed=index) for row in ROWS]
        write_run(tmp_path / f"run{index}", [rows[0], dataclasses.replace(rows[1], warnings=texts)], [f"seed={index}"])
    assert main([str(tmp_path), "--out", str(tmp_path / "out")]) == 0
    said, page = capsys.readouterr().out, (tmp_path / "out" / "report.html").read_text()
    assert "Warning about student (KegNet) (3 of 3 runs): The agreement is 0.5 %." in re.sub(r"\s+", " ", said)
    assert "(2 of 3 runs): <script>x</script> [red]y[/red] \\x1b[2J" in re.sub(r"\s+", " ", said)
    assert said.count("The agreement is") == 1 and "\x1b" not in said
    assert "(2 of 3 runs): &lt;script&gt;x&lt;/script&gt; [red]y[/red]" in page and "<script>x" not in page
    many = [dataclasses.replace(ROWS[1], warnings=[40 * "a" + "b" * i for i in range(40)])]
    lines = explain_warnings([FinishedRun(tmp_path, rows=(*many,))])
    assert len(lines) == 31 and lines[-1] == "10 more warnings are in the pages of the runs."


def test_tiny_numbers_are_drawn(tmp_path: Path) -> None:
    rows = [ROWS[0], dataclasses.replace(ROWS[1], accuracy=5e-324, compression_ratio=5e-324, seconds=1e100)]
    write_run(tmp_path / "run", rows)
    assert main([str(tmp_path), "--out", str(tmp_path / "out")]) == 0
    assert (tmp_path / "run" / "report.html").exists() and (tmp_path / "out" / "tradeoff.png").exists()
