"""The example with ordinary Lightning trainers runs, and a student learns."""

import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.filterwarnings("ignore")
def test_own_trainer_teaches_a_student(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = runpy.run_path(str(ROOT / "examples" / "own_trainer.py"))
    assert found["teacher_accuracy"] > 0.85
    assert 0.6 < found["student_accuracy"] <= found["teacher_accuracy"]
    code = (ROOT / "examples" / "own_trainer.py").read_text().split("seed_everything(0)")[1]
    assert len([line for line in code.splitlines() if line and not line.startswith("#")]) <= 20
