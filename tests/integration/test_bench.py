"""The benchmark runs, stores what it promises, and the README shows what it stored."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.cases import EXPERIMENTS, make_case
from benchmarks.table import SHOWN
from benchmarks.worker import Task, count_operations

ROOT = Path(__file__).parents[2]

KEYS = {
    "work", "network", "device", "precision", "seconds", "direct_seconds", "floor_seconds", "times_faster_than_direct",
    "times_floor", "peak_mb", "direct_peak_mb", "repeats", "versions",
}  # fmt: skip


@pytest.mark.slow
def test_bench_measures_and_stores(tmp_path: Path) -> None:
    out = tmp_path / "bench.json"
    command = ["--networks", "mlp", "--works", "draw", "student_epoch", "--precisions", "32-true", "--repeats", "1"]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.bench", *command, "--samples", "320", "--out", str(out)],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    rows = json.loads(out.read_text())
    assert {row["work"] for row in rows} == {"draw", "student_epoch"}
    for row in rows:
        assert set(row) >= KEYS
        assert row["seconds"] > 0 and row["direct_seconds"] > 0 and row["floor_seconds"] > 0
        assert row["times_floor"] == pytest.approx(row["seconds"] / row["floor_seconds"])
        assert row["peak_mb"] > 100 and row["direct_peak_mb"] > 100
    assert "student_epoch" in done.stdout and "Matrix products" in done.stdout


@pytest.mark.slow
def test_a_failing_worker_says_why() -> None:
    program = (
        "from benchmarks.bench import Worker; from benchmarks.worker import Task\n"
        "if __name__ == '__main__': Worker(Task('nothing', 'mlp'))"
    )
    script = ROOT / "benchmarks" / "__init__.py"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=script.parents[1], capture_output=True, text=True, check=False
    )
    assert done.returncode != 0 and "KeyError: 'nothing'" in done.stderr


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


@pytest.mark.parametrize(("name", "show"), SHOWN.items())
def test_readme_shows_what_was_measured(name: str, show: object) -> None:
    text = (ROOT / "README.md").read_text()
    start = text.index(f"<!-- python -m benchmarks.table: results/{name}.json -->")
    shown = text[text.index("\n", start) : text.index("<!-- end -->", start)].strip()
    rows = json.loads((ROOT / "results" / f"{name}.json").read_text())
    assert shown == show(rows)  # type: ignore[operator]
