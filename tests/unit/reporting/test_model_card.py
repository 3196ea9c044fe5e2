"""Model cards of exported networks."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from kegnet_pl.networks import Answers
from kegnet_pl.reporting.model_card import write_model_card
from kegnet_pl.reporting.run_page import StageFolders
from tests.unit.reporting.rows import TEACHER, student

ROW = student(0.8)


def _write(path: Path, data: dict[str, Any], **options: Any) -> str:
    config = {"data": {"classes": 2, "input_shape": [3, 6, 8]} | data, "compression": {}}
    write_model_card(path, ROW, TEACHER, StageFolders(config, {ROW.method: {}}), [], **options)
    return path.read_text()


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ({"mean": [0.5, 0.4, 0.3], "std": [0.25, 0.2, 0.2]}, [(1 - 0.5) / 0.25, (0 - 0.4) / 0.2, (0.6 - 0.3) / 0.2]),
        ({"value_range": [-1, 1]}, [1.0, -1.0, 0.2]),
        ({"value_range": [0, 255]}, [255.0, 0.0, 153.0]),
        ({"mean": 0, "std": 0.5}, [2.0, 0.0, 1.2]),
        ({"mean": [0.5], "std": [0.25], "input_shape": [1, 6, 8]}, None),
    ],
)
def test_the_code_of_an_image_runs(
    data: dict[str, Any], expected: list[float] | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (20, 10), (255, 0, 153)).save("image.png")
    code = re.findall(r"```python\n(.*?)```", _write(tmp_path / "README.md", data), re.DOTALL)[0]
    made: dict[str, Any] = {}
    exec(code, made)
    channels = data.get("input_shape", [3])[0]
    assert made["x"].shape == (1, channels, 6, 8) and made["x"].dtype == np.float32
    if expected is not None:
        np.testing.assert_allclose(made["x"][0, :, 0, 0], expected, atol=1e-5)


def test_no_code_without_the_range_of_pixels(tmp_path: Path) -> None:
    text = _write(tmp_path / "README.md", {})
    assert "image.png" not in text and "Inputs are normalised like those of the teacher." in text
    assert "image.png" not in _write(tmp_path / "README.md", {"input_shape": [6], "mean": 0.5, "std": 0.2})
    for damaged in ("__import__('os')", 7, [0], ["a", 1], [0.0, float("nan")], {}):
        text = _write(tmp_path / "README.md", {"value_range": damaged, "mean": damaged, "std": [0.5]})
        assert "__import__" not in text and "(None" not in text


@pytest.mark.parametrize(
    ("answers", "shape", "said"),
    [
        (None, (2,), "logits (scores before the softmax) of 2 classes, `(N, 2)`."),
        (
            Answers("logits"),
            (1,),
            "Output: logits (scores before the sigmoid), one value per sample for the second of two classes, `(N, 1)`.",
        ),
        (
            Answers("sigmoid"),
            (),
            "(sigmoid), one value per sample for the second of two classes, `(N,)`.",
        ),
        (Answers("probabilities"), (2,), "probabilities of 2 classes, `(N, 2)`."),
        (
            Answers("logits", "scores"),
            None,
            "with logits (scores before the softmax) of 2 classes at key or position 'scores'.",
        ),
    ],
)
def test_the_output_is_described(
    answers: Answers | None, shape: tuple[int, ...] | None, said: str, tmp_path: Path
) -> None:
    assert said in _write(tmp_path / "README.md", {}, answers=answers, output_shape=shape)


def test_unreliable_times_are_named(tmp_path: Path) -> None:
    def measured(spread: float) -> dict[str, Any]:
        return {"device": "cpu", "threads": 1, "batches": {"1": {"ms": 1.0, "spread": spread, "speedup": 2.0}}}

    for of_student, of_teacher, said in ((0.1, 0.1, False), (0.6, 0.1, True), (0.1, 0.6, True)):
        rows = [
            dataclasses.replace(row, latency=measured(spread))
            for row, spread in ((ROW, of_student), (TEACHER, of_teacher))
        ]
        stages = StageFolders({"data": {"classes": 2, "input_shape": [6]}, "compression": {}}, {ROW.method: {}})
        write_model_card(tmp_path / "README.md", *rows, stages, [])
        assert ("; not reliable, since the measured times vary" in (tmp_path / "README.md").read_text()) is said


def test_the_accuracy_has_an_interval(tmp_path: Path) -> None:
    folder = tmp_path / "evaluation-0123456789abcdef"
    folder.mkdir()
    (folder / "manifest.json").write_text('{"metrics": {"samples": 100}}')
    stages = StageFolders(
        {"data": {"classes": 2, "input_shape": [4]}, "compression": {}}, {ROW.method: {"evaluation": folder}}
    )
    write_model_card(tmp_path / "README.md", ROW, TEACHER, stages, [])
    assert "(95 % interval: 71.1 % to 86.7 %)" in (tmp_path / "README.md").read_text(), "Wilson, 80 of 100"
    untested = dataclasses.replace(ROW, accuracy=None)
    write_model_card(tmp_path / "README.md", untested, TEACHER, stages, [])
    assert "interval" not in (tmp_path / "README.md").read_text()
