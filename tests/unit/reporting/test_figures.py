"""Pictures of one run: they are at the numbers."""

from pathlib import Path

import pytest
import torch

from kegnet_pl.compression import CompressionReport, LayerReport
from kegnet_pl.reporting import figures
from kegnet_pl.reporting.classes import ClassCounts
from kegnet_pl.reporting.run_page import StageFolders
from kegnet_pl.reporting.run_parts import make_parts
from kegnet_pl.reporting.style import looks_of, new_figure, percent_axis, short_number
from kegnet_pl.sources import GeneratorSource, RealSource
from tests.unit.reporting.rows import TEACHER, student


def test_curves_of_a_resumed_fit_go_on(tmp_path: Path) -> None:
    for version, text in enumerate(
        ["epoch,step,a,b\n0,10,1.5,\n0,10,,7\n1,20,1.25,\n", "epoch,step,a\n1,20,1.25\n2,30,1.0\n,30,9\n"]
    ):
        (tmp_path / f"version_{version}").mkdir()
        (tmp_path / f"version_{version}" / "metrics.csv").write_text(text)
    assert figures.read_curves(tmp_path) == {"a": [(11, 1.5), (21, 1.25), (31, 1.0)], "b": [(11, 7)]}
    assert figures.read_curves(tmp_path / "nowhere") == {}


def test_values_that_cannot_be_drawn_are_left_out_by_name(tmp_path: Path) -> None:
    logs = tmp_path / "logs" / "kegnet" / "version_0"
    logs.mkdir(parents=True)
    values = ["0.5", "nan", "inf", "1e308", "-1e308", "what", "1e-320", "-1e99"]
    lines = [f"{epoch},{epoch},{value}\n" for epoch, value in enumerate(values)]
    (logs / "metrics.csv").write_text("epoch,step,train/loss\n" + "".join(lines) + "9,1e400,1\n")
    left_out: list[str] = []
    curves = figures.read_curves(logs.parent, left_out)
    assert curves == {"train/loss": [(1, 0.5), (7, 1e-320), (8, -1e99)]} and left_out == 6 * ["train/loss"]
    stages = StageFolders({}, {"T+KegNet": {"student": tmp_path}})
    parts, notes = make_parts(stages, [TEACHER, student(0.5)])
    assert parts["student_curves"] is not None
    assert notes == ["Left out (curves of students): 6 values that are NaN, above 1e100 or no number, in train/loss."]


@pytest.mark.parametrize("together", [True, False])
def test_curves_of_several_generators_are_found(tmp_path: Path, together: bool) -> None:
    """Of one fit, and of one fit after another."""
    for version in range(1 if together else 2):
        folder = tmp_path / f"version_{version}"
        folder.mkdir()
        names = ["generator_0", "generator_1"] if together else [f"generator_{version}"]
        header = ",".join(f"{name}/{metric}" for name in names for metric in ("train/loss", "samples/confidence"))
        values = ",".join(f"{name[-1]}.5,{name[-1]}.25" for name in names)
        (folder / "metrics.csv").write_text(f"epoch,step,{header}\n0,9,{values}\n")
    curves = figures.split_curves(figures.read_curves(tmp_path), "generators")
    assert curves == {
        f"generator_{index}": {"train/loss": [(10, index + 0.5)], "samples/confidence": [(10, index + 0.25)]}
        for index in range(2)
    }


def test_curves_of_one_generator_have_its_name() -> None:
    assert figures.split_curves({"train/loss": [(1, 2.0)]}, "generator_0") == {
        "generator_0": {"train/loss": [(1, 2.0)]}
    }


def test_curves_of_two_attempts_are_joined() -> None:
    """The second one has another number of processes, and so another folder."""
    curves: dict[str, figures.Curve] = {"train/loss": [(1, 3.0), (2, 2.0)]}
    figures.join_curves(curves, {"train/loss": [(2, 2.0), (3, 1.0)], "train/accuracy": [(3, 0.5)]})
    assert curves == {"train/loss": [(1, 3.0), (2, 2.0), (3, 1.0)], "train/accuracy": [(3, 0.5)]}


def test_curves_of_every_generator_and_every_term() -> None:
    one = {name: [(1.0, 2.0), (2.0, 1.0)] for name in ("train/loss", "train/loss_decoder", "samples/confidence")}
    figure = figures.draw_generator_curves({"generator_0": one, "generator_1": one})
    assert [axis.get_title(loc="left") or axis.get_title() for axis in figure.axes] == [
        "objective", "decoder", "teacher's confidence",
    ]  # fmt: skip
    for axis in figure.axes:
        assert len(axis.lines) == 2 and list(axis.lines[0].get_ydata()) == [2.0, 1.0]
        assert axis.get_xlabel() == "optimizer step"


def test_validation_accuracy_is_drawn_where_there_is_one() -> None:
    train = {"train/loss": [(1.0, 1.0)], "train/agreement": [(1.0, 0.5)]}
    looks = looks_of([student(0.8)])
    loss, agreement = figures.draw_student_curves({"T+KegNet": train}, looks).axes
    assert [axis.yaxis.get_major_formatter()(0.5) == "50 %" for axis in (loss, agreement)] == [False, True]
    assert len(figures.draw_student_curves({"T+KegNet": train | {"val/accuracy": [(1.0, 0.4)]}}, looks).axes) == 3


def test_bars_of_layers() -> None:
    rows = (
        LayerReport("conv1", "conv", 1, 2, 100, 40, 5000, 900),
        LayerReport("fc", "linear", None, None, 50, 50, 60, 60, "kept"),
    )
    figure = figures.draw_compression(CompressionReport(rows, 150, 90, 5060, 960))
    for axis, widths in zip(figure.axes, ([100, 50, 40, 50], [5000, 60, 900, 60]), strict=True):
        assert [bar.get_width() for bar in axis.patches] == widths


def test_accuracy_of_classes() -> None:
    confusions = {"teacher": [[9, 1], [0, 5]], "T+KegNet": [[5, 5], [1, 4]]}
    counts = {name: ClassCounts.of(torch.tensor(lines)) for name, lines in confusions.items()}
    figure = figures.draw_classes(counts, looks_of([TEACHER, student(0.8)]))
    of_teacher, of_student = figure.axes[0].lines
    assert list(of_teacher.get_ydata()) == pytest.approx([0.9, 1.0])
    assert list(of_student.get_ydata()) == pytest.approx([0.5, 0.8])
    assert (of_student.get_color(), of_student.get_marker()) == (GeneratorSource.color, GeneratorSource.marker)


def test_a_ceiling_is_dashed_outlined_and_named() -> None:
    looks = looks_of([TEACHER, student(0.8), student(0.9, method="T+Real")])
    label = "student (real data): ceiling, not data-free"
    confusion = ClassCounts.of(torch.tensor([[9, 1], [0, 5]]))
    classes = figures.draw_classes(dict.fromkeys(("teacher", "T+KegNet", "T+Real"), confusion), looks)
    assert [line.get_label() for line in classes.axes[0].lines] == ["teacher", "student (KegNet)", label]
    assert [line.get_fillstyle() for line in classes.axes[0].lines] == ["full", "full", "none"]
    train = {"train/loss": [(1.0, 1.0)], "train/agreement": [(1.0, 0.5)]}
    curves = {"T+KegNet": train, "T+Real": train}
    kegnet, ceiling = figures.draw_student_curves(curves, looks).axes[0].lines
    assert (kegnet.get_label(), kegnet.get_linestyle()) == ("student (KegNet)", "-")
    assert (ceiling.get_label(), ceiling.get_linestyle(), ceiling.get_color()) == (label, "--", RealSource.color)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.31, "0.3 s"), (59.9, "59.9 s"), (250, "4 min 10 s"), (7500, "2 h 5 min")]
)
def test_clock(seconds: float, text: str) -> None:
    assert figures.clock(seconds) == text


@pytest.mark.parametrize(("value", "text"), [(12, "12"), (416_520, "417 k"), (2_000_000, "2 M"), (3.1e9, "3.1 G")])
def test_short_numbers(value: float, text: str) -> None:
    assert short_number(value) == text


def test_no_accuracy_is_above_100_percent() -> None:
    axis = new_figure(3.0, False).subplots()
    percent_axis(axis)
    assert [axis.yaxis.get_major_formatter()(value, 0) for value in (0.98, 1.0, 1.02)] == ["98 %", "100 %", ""]
