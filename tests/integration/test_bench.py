"""The benchmark runs, stores what it promises, and the documentation shows what it stored."""

import json
import multiprocessing
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import bench, scaling, turns, variants
from benchmarks.cases import EXPERIMENTS, make_case
from benchmarks.table import TABLES
from benchmarks.turns import Worker, ratio, running, take_turns
from benchmarks.worker import Task, count_operations, measure_rate, serve
from tests.integration.conftest import FORKS

ROOT = Path(__file__).parents[2]

KEYS = {
    "work", "network", "device", "precision", "seconds", "direct_seconds", "floor_seconds", "times_faster_than_direct",
    "times_floor", "peak_mb", "direct_peak_mb", "repeats", "versions",
}  # fmt: skip


def _bench(*arguments: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run ``python -m benchmarks.bench`` in this process; its workers are processes all the same."""
    monkeypatch.setattr(sys, "argv", ["bench", "--networks", "mlp", "--precisions", "32-true", *arguments])
    monkeypatch.setattr(bench, "measure_rate", lambda device, precision: measure_rate(device, precision, [64]))
    bench.main()


class _ForkedWorker(Worker):
    """A worker of this checkout that has everything imported already."""

    def __init__(self, task: Task, folder: Path = ROOT) -> None:
        self.folder = folder
        self.pipe, theirs = multiprocessing.Pipe()
        self.forked = FORKS.Process(target=serve, args=(task, theirs))
        self.forked.start()
        theirs.close()

    def stop(self) -> None:
        self.pipe.send("stop")
        self.forked.join()


@pytest.mark.slow
def test_bench_measures_and_stores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(turns, "Worker", _ForkedWorker)
    out = tmp_path / "bench.json"
    command = ["--works", "student_epoch", "--repeats", "1", "--samples", "320", "--out", str(out)]
    _bench(*command, monkeypatch=monkeypatch)
    (row,) = json.loads(out.read_text())
    assert set(row) >= KEYS and row["work"] == "student_epoch"
    assert row["seconds"] > 0 and row["direct_seconds"] > 0 and row["floor_seconds"] > 0
    assert row["times_floor"] == pytest.approx(row["seconds"] / row["floor_seconds"])
    assert row["peak_mb"] > 100 and row["direct_peak_mb"] > 100
    shown = capsys.readouterr().out
    assert "student_epoch" in shown and "Matrix products" in shown


_SMALL_CHECKOUT = """
from dataclasses import dataclass

SECONDS = {seconds}

@dataclass(frozen=True)
class Task:
    work: str
    network: str
    samples: int = 32_000

def serve(task, pipe):
    pipe.send("ready")
    while (asked := pipe.recv()) != "stop":
        pipe.send(SECONDS * task.samples)
"""


def _checkout(folder: Path, seconds: float) -> Path:
    """Make a checkout whose worker knows fewer settings and only says how long it takes for each sample."""
    for package in ("src/kegnet_pl", "benchmarks"):
        (folder / package).mkdir(parents=True)
        (folder / package / "__init__.py").touch()
    (folder / "benchmarks" / "worker.py").write_text(_SMALL_CHECKOUT.format(seconds=seconds))
    return folder


def test_a_folder_that_is_no_checkout_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        _bench("--against", str(tmp_path), monkeypatch=monkeypatch)
    assert "Expected `--against` to be a checkout of this project" in capsys.readouterr().err


def test_workers_of_two_checkouts_run_their_own_code(tmp_path: Path) -> None:
    folders = (_checkout(tmp_path / "before", 2.0), _checkout(tmp_path / "after", 3.0))
    task = Task("student_epoch", "mlp", samples=10)
    with running(task, task, folders=folders) as workers:
        before, after = take_turns(workers, repeats=3)
    assert before == [20.0] * 3 and after == [30.0] * 3
    assert ratio(after, before) == 1.5


def test_a_failing_worker_says_why() -> None:
    ours, theirs = multiprocessing.Pipe()
    serve(Task("nothing", "mlp"), theirs)
    assert "KeyError: 'nothing'" in ours.recv()


def test_a_worker_that_runs_other_code_or_dies_is_refused(tmp_path: Path) -> None:
    folder = _checkout(tmp_path / "before", 2.0)
    shutil.rmtree(folder / "src")  # the installed package would take its place
    task = Task("student_epoch", "mlp")
    with pytest.raises(RuntimeError, match="its process ended"), running(task, folders=(folder,)):
        pass


@pytest.mark.slow
def test_two_checkouts_are_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second is a link to this one: the ratio is noise, and everything else is as with another version."""

    def work(task: Task, folder: Path) -> Worker:
        return _ForkedWorker(task) if folder == ROOT else Worker(task, folder)

    monkeypatch.setattr(turns, "Worker", work)
    (tmp_path / "before").symlink_to(ROOT)
    out = tmp_path / "before_after.json"
    command = ["--works", "student_epoch", "--repeats", "2", "--samples", "320", "--out", str(out)]
    _bench(*command, "--against", str(tmp_path / "before"), monkeypatch=monkeypatch)
    (row,) = json.loads(out.read_text())
    assert (row["work"], row["network"], row["samples"], row["repeats"]) == ("student_epoch", "mlp", 320, 2)
    pairs = zip(row["all_seconds_after"], row["all_seconds_before"], strict=True)
    assert row["all_ratios"] == [after / before for after, before in pairs]
    assert min(row["all_ratios"]) <= row["after_over_before"] <= max(row["all_ratios"])
    assert row["commit_before"] == row["commit_after"]
    assert f"--against {tmp_path}" not in row["command"] and "--against" in row["command"]


def test_operations_are_those_of_the_networks() -> None:
    student = make_case("lenet5").student()
    assert sum(value.numel() for value in student.parameters()) == 15_045, "option 2 of the paper"
    draw = count_operations(Task("draw", "lenet5", samples=256))
    assert count_operations(Task("draw", "lenet5", samples=512)) == 2 * draw
    assert count_operations(Task("generator_step", "lenet5")) > 3 * draw


def test_stored_benchmark_is_whole() -> None:
    rows = json.loads((ROOT / "results" / "bench.json").read_text())
    assert all(set(row) >= KEYS and row["repeats"] >= 5 for row in rows)
    found = {(row["work"], row["network"]) for row in rows}
    assert found == {(work, name) for work in ("generator_step", "student_epoch", "draw") for name in EXPERIMENTS}
    assert {row["precision"] for row in rows} == {"32-true", "bf16-mixed"}


@pytest.mark.parametrize(("name", "show"), TABLES.items())
def test_documentation_shows_what_was_measured(name: str, show: object) -> None:
    mark = f"<!-- python -m benchmarks.table: results/{name}.json -->"
    (text,) = (text for page in (ROOT / "docs").rglob("*.md") if mark in (text := page.read_text()))
    start = text.index(mark)
    shown = text[text.index("\n", start) : text.index("<!-- end -->", start)].strip()
    rows = json.loads((ROOT / "results" / f"{name}.json").read_text())
    assert shown == show(rows)  # type: ignore[operator]


def test_five_students_are_measured_together() -> None:
    ours, theirs = multiprocessing.Pipe()
    ours.send("go")
    ours.send("stop")
    serve(Task("student_epoch", "mlp", samples=64, together=True, keep=False), theirs)
    assert ours.recv() == "ready" and ours.recv() > 0


@pytest.mark.slow
def test_all_stages_of_a_point_are_measured() -> None:
    found = scaling.run_stages(scaling.Point(samples=32, side=0, steps=1, batch_size=16))
    assert list(found["stages"]) == list(scaling.STAGES) and found["parameters"] > 1000
    assert all(figure > 0 for stage in found["stages"].values() for figure in stage.values())
    for axis in scaling.AXES.values():
        assert set(axis.work) <= set(scaling.STAGES)
        assert all(point.samples % point.generators == 0 for point in axis.points.values())


def test_growth_above_the_work_is_named() -> None:
    def row(value: int, student: float, memory: float) -> dict[str, Any]:
        stages = {stage: {"cpu_seconds": 1.0, "seconds": 1.0, "megabytes": 60.0} for stage in scaling.STAGES}
        stages["student"] = {"cpu_seconds": student, "seconds": student, "megabytes": memory}
        more = {"parameters": 10**4, "machine": "cpu", "command": "python -m this"}
        return {"axis": "samples", "label": f"{value:,}", "value": value, "stages": stages} | more

    linear = [row(1_000, 0.2, 10), row(10_000, 2.0, 100)]
    assert scaling.exponent(linear, "student", "cpu_seconds") == pytest.approx(1)
    page = scaling.render(linear)
    assert "No stage grows faster than its work." in page and "| student, s | 0.2 (0.2) | 2 (2) | 1.00 | 1 |" in page
    assert "Not measured: samples, 100,000; " in page
    square = [row(1_000, 0.2, 1), row(10_000, 20.0, 100)]
    assert [found[:3] for found in scaling.find_fast_growth(square)] == [
        ("samples", "student", "cpu_seconds"), ("samples", "student", "megabytes")
    ]  # fmt: skip
    assert "- student, CPU seconds, against samples: exponent 2.00" in scaling.render(square)
    panels = scaling.draw(square).axes
    assert len(panels) == 2 and panels[0].get_title() == "samples"


def test_the_page_of_scaling_is_that_of_the_stored_points() -> None:
    rows = json.loads(scaling.OUT.read_text())
    assert scaling.OUT.with_suffix(".md").read_text() == scaling.render(rows)
    assert {row["axis"] for row in rows} == set(scaling.AXES)


def test_every_way_is_measured_where_it_exists() -> None:
    def ways(device: str) -> dict[tuple[str, str], list[str]]:
        found: dict[tuple[str, str], list[str]] = {}
        for task, names in variants.groups(["mlp"], device, ["32-true", "bf16-mixed"], 320):
            found.setdefault((task.work, task.precision), []).extend(names)
        return found

    gpu, cpu = ways("cuda"), ways("cpu")
    for precision in ("32-true", "bf16-mixed"):
        assert set(gpu["generator_step", precision]) == set(variants.WAYS)
        assert gpu["student_epoch", precision] == ["direct", "eager", "CUDA graphs", "direct", "compile"]
        assert cpu["generator_step", precision] == ["direct", "eager", "stacked, eager", "direct", "compile"]
    assert gpu["draw", "32-true"] == cpu["draw", "32-true"] == ["direct", "eager"]
    assert ("draw", "bf16-mixed") not in gpu


@pytest.mark.slow
def test_variants_are_measured_until_the_time_is_over_and_not_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(turns, "Worker", _ForkedWorker)
    monkeypatch.setattr(variants, "measure_rate", lambda device, precision: measure_rate(device, precision, [64]))
    out = tmp_path / "bench_cpu.json"
    given = ["--device", "cpu", "--networks", "mlp", "--precisions", "32-true", "--samples", "320", "--repeats", "1"]
    monkeypatch.setattr(variants, "groups", lambda *_: [(Task("draw", "mlp", samples=320), ["direct", "eager"])])
    for minutes in ("0", "1", "1"):
        monkeypatch.setattr(sys, "argv", ["variants", *given, "--minutes", minutes, "--out", str(out)])
        variants.main()
    said = capsys.readouterr().out
    assert "0 rows in bench_cpu.json. 1 groups are missing" in said and said.count("eager") == 1
    rows = json.loads(out.read_text())
    assert [row["way"] for row in rows] == ["direct", "eager"]
    assert all(row["seconds"] > 0 and row["share_of_rate"] > 0 and row["peak_mb"] > 100 for row in rows)
