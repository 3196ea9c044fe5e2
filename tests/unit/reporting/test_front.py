"""The plot of accuracy against size on disk and speed."""

import dataclasses
from pathlib import Path

import pytest
from matplotlib.colors import to_hex

from kegnet_pl.reporting.front import can_draw_front, choose_ticks, draw_front, find_front, make_front_columns
from kegnet_pl.reporting.results import Row
from kegnet_pl.reporting.runs import FinishedRun
from kegnet_pl.reporting.style import COLOURS
from kegnet_pl.reporting.summary import Point, summarize
from tests.unit.reporting.rows import TEACHER, quantized, student


def _sized(row: Row, size: int, speedup: float) -> Row:
    latency = {"device": "cpu", "threads": 1, "batches": {"64": {"ms": 1.0, "spread": 0.0, "speedup": speedup}}}
    return dataclasses.replace(row, size=size, latency=latency)


def _points(*rows: Row) -> list[Point]:
    return summarize([FinishedRun(Path("run"), {}, rows)])


ROWS = (
    _sized(TEACHER, 4_000_000, 1.0),
    _sized(student(0.5, method="T"), 2_000_000, 0.8),
    _sized(student(0.85), 2_000_000, 0.8),
    _sized(student(0.88, method="T+Real"), 2_000_000, 0.8),
    _sized(dataclasses.replace(quantized(TEACHER), accuracy=0.89), 1_000_000, 1.5),
)


def test_the_front_has_what_nothing_beats() -> None:
    assert find_front([(1, 5), (2, 4), (2, 3), (3, 1), (0, 5), (1, 2)]) == [0, 1, 3]
    assert find_front([(1, 1), (1, 1)]) in ([0], [1]) and find_front([]) == []


def test_networks_are_at_their_size_and_speed() -> None:
    figure = draw_front(_points(*ROWS))
    size, speed = figure.axes
    markers = {
        container.get_label(): (container.lines[0].get_marker(), *container.lines[0].get_xydata()[0])
        for container in size.containers
    }
    assert markers == {
        "teacher": ("o", 4.0, 0.9),
        "option1 compressed, untrained": ("x", 2.0, 0.5),
        "option1 student (KegNet)": ("o", 2.0, 0.85),
        "teacher, int8": ("s", 1.0, 0.89),
    }, "the ceiling is left out"
    front, of_speed = size.lines[0], speed.lines[0]
    assert list(front.get_xdata()) == [4.0, 1.0] and list(front.get_ydata()) == [0.9, 0.89]
    assert list(of_speed.get_xdata()) == [1.0, 1.5]
    assert speed.get_xlabel() == "speed-up for a batch of 64" and size.get_xscale() == "log"


@pytest.mark.parametrize("narrow", [False, True])
def test_rows_without_speed_or_size_are_left_out(narrow: bool) -> None:
    figure = draw_front(_points(*(dataclasses.replace(row, latency=None) for row in ROWS[:3])), narrow)
    assert len(figure.axes[0].containers) == 3 and not figure.axes[1].containers
    assert not can_draw_front(_points(TEACHER, student(0.5)))
    assert not can_draw_front(_points(ROWS[0]))
    assert can_draw_front(_points(*ROWS[:2]))


def test_the_size_has_several_round_ticks_in_any_range() -> None:
    assert choose_ticks(0.9, 11_000) == [1, 10, 100, 1_000, 10_000]
    assert choose_ticks(0.05, 0.3) == [0.05, 0.07, 0.1, 0.15, 0.2, 0.3]
    assert choose_ticks(1.05, 3.1) == [1.5, 2, 2.5, 3]
    size = draw_front(_points(*ROWS[:2])).axes[0]
    assert len(size.get_xticks()) >= 4 and len(size.get_xticks(minor=True)) == 0
    assert not any(container.has_yerr for container in size.containers), "one seed has no standard deviation"


def test_the_table_has_the_networks_of_the_fronts() -> None:
    columns = make_front_columns(_points(*ROWS))
    assert columns["network"] == ["teacher", "teacher, int8"] and columns["front"] == ["size, speed", "size, speed"]


def test_colors_tell_sources_apart_where_there_is_one_compression() -> None:
    def colors(*rows: Row) -> dict[str, str]:
        containers = draw_front(_points(*rows)).axes[0].containers
        return {str(container.get_label()): to_hex(container.lines[0].get_color()) for container in containers}

    one = colors(*ROWS[:3])
    assert one["teacher"] == COLOURS["teacher"] and len(set(one.values())) == 3
    assert one["option1 student (KegNet)"] == ROWS[2].source["color"], "that of the bars above"  # type: ignore[index]
    other = _sized(student(0.7, student="option2", compression_ratio=4.0), 1_000_000, 0.9)
    several = colors(*ROWS[:3], other)
    assert several["option1 compressed, untrained"] == several["option1 student (KegNet)"]
    assert several["option2 student (KegNet)"] not in (several["teacher"], several["option1 student (KegNet)"])
