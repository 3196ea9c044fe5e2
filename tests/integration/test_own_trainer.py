"""The example of a Lightning script runs as it is, and a student learns."""

import csv
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_own_trainer_teaches_a_student(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(ROOT / "examples" / "own_trainer.py"), run_name="__main__")
    last = [line for line in capsys.readouterr().out.splitlines() if line.endswith(" of the test images")]
    percent = {line.split(":")[0]: float(line.split()[1].rstrip("%")) for line in last}
    assert list(percent) == ["teacher", "student"]
    assert percent["teacher"] > 85
    assert 60 < percent["student"] <= percent["teacher"]
    for module in ("TeacherModule", "GeneratorModule", "StudentModule"):
        (path,) = (tmp_path / "logs" / module).rglob("metrics.csv")
        with path.open() as file:
            losses = [float(row["train/loss"]) for row in csv.DictReader(file) if row.get("train/loss")]
        assert losses[-1] < losses[0], module
