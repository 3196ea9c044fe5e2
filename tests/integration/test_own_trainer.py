"""The example of a Lightning script of one's own runs as it is, and a student learns."""

import csv
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_own_trainer_teaches_a_student(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "own_trainer.py")],
        cwd=tmp_path, capture_output=True, text=True, check=True, timeout=600,
    )  # fmt: skip
    last = [line for line in done.stdout.splitlines() if line.endswith(" of the test images")]
    percent = {line.split(":")[0]: float(line.split()[1].rstrip("%")) for line in last}
    assert list(percent) == ["teacher", "student"]
    assert percent["teacher"] > 85
    assert 60 < percent["student"] <= percent["teacher"]
    for module in ("TeacherModule", "GeneratorModule", "StudentModule"):
        (path,) = (tmp_path / "logs" / module).rglob("metrics.csv")
        with path.open() as file:
            losses = [float(row["train/loss"]) for row in csv.DictReader(file) if row.get("train/loss")]
        assert losses[-1] < losses[0], module
