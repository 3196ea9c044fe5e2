"""Means over seeds, and the picture of them."""

import dataclasses
import itertools
from pathlib import Path

import pytest

from kegnet_pl.reporting.results import Row
from kegnet_pl.reporting.runs import FinishedRun
from kegnet_pl.reporting.style import house_style, to_svg
from kegnet_pl.reporting.summary import Point, make_columns, summarize
from kegnet_pl.reporting.sweep import describe_sweep, explain_noisy_runs
from kegnet_pl.reporting.tradeoff import draw_accuracy, draw_bars, draw_tradeoff
from kegnet_pl.sources import RealSource
from tests.unit.reporting.rows import TEACHER, quantized, student

HERE = Path()


def _runs() -> list[FinishedRun]:
    runs = []
    for seed in (0, 1):
        for option, ratio in (("option1", 2.0), ("option2", 4.0)):
            rows = (
                dataclasses.replace(TEACHER, seed=seed, accuracy=0.9 + 0.02 * seed, fingerprint=f"t{seed}"),
                student(0.7 + 0.1 * seed, seed=seed, student=option, compression_ratio=ratio, macs=int(8000 / ratio)),
            )
            runs.append(FinishedRun(HERE, {"compression": option, "seed": str(seed)}, rows))
    return runs


def test_mean_and_spread_over_seeds_and_the_teacher_once_a_seed() -> None:
    points = summarize(_runs())
    assert [(p.row.method, p.row.student, len(p.accuracies)) for p in points] == [
        ("teacher", None, 2), ("T+KegNet", "option1", 2), ("T+KegNet", "option2", 2),
    ]  # fmt: skip
    assert points[0].mean == pytest.approx(0.91) and points[0].sd == pytest.approx(0.02 / 2**0.5)
    assert points[1].mean == pytest.approx(0.75) and points[1].sd == pytest.approx(0.1 / 2**0.5)
    assert points[1].settings == "" and points[1].average("compression_ratio") == 2.0


def test_what_else_was_varied_tells_points_apart_where_it_matters() -> None:
    uniform = student(0.4, method="T+Uniform")
    runs = [
        FinishedRun(HERE, {"generator.epochs": n}, (TEACHER, uniform, student(accuracy, samples=int(n))))
        for n, accuracy in (("1", 0.5), ("2", 0.6))
    ]
    found = {(p.row.method, p.settings): p.accuracies for p in summarize(runs)}
    assert found == {
        ("teacher", ""): (0.9,),
        ("T+Uniform", ""): (0.4,),  # noise knows no generators
        ("T+KegNet", "generator.epochs=1"): (0.5,),
        ("T+KegNet", "generator.epochs=2"): (0.6,),
    }


def test_a_teacher_of_other_settings_is_no_seed() -> None:
    """Seed 0 in full, seed 1 with +debug=fast: two teachers, not two seeds of one."""
    runs = [
        FinishedRun(HERE, {"seed": "0"}, (TEACHER, student(0.8, method="T"))),
        FinishedRun(HERE, {"seed": "1", "debug": "fast"}, tuple(
            dataclasses.replace(row, seed=1, fingerprint=f"{row.fingerprint}1", accuracy=0.3)
            for row in (TEACHER, student(0.8, method="T"))
        )),
    ]  # fmt: skip
    assert {(p.row.method, p.settings, p.accuracies) for p in summarize(runs)} == {
        ("teacher", "", (0.9,)), ("teacher", "debug=fast", (0.3,)), ("T", "", (0.8,)), ("T", "debug=fast", (0.3,)),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (({"experiment": "mine"}, {"experiment": "yours"}), {"experiment=mine", "experiment=yours"}),
        (({}, {}), {"a", "b"}),
    ],
)
def test_two_networks_of_one_seed_are_never_averaged(
    settings: tuple[dict[str, str], dict[str, str]], told: set[str]
) -> None:
    """Whatever made them differ: an experiment of the user's own, or nothing that a command line says."""
    runs = [
        FinishedRun(HERE, settings[0], (TEACHER, student(0.8)), name="a"),
        FinishedRun(HERE, settings[1], (TEACHER, student(0.4)), name="b"),
    ]
    found = [p for p in summarize(runs) if p.row.method == "T+KegNet"]
    assert {(p.settings, len(p.accuracies)) for p in found} == {(name, 1) for name in told}
    assert [p.accuracies for p in summarize(runs) if p.row.method == "teacher"] == [(0.9,)], "one teacher, seen twice"


def test_a_single_seed_has_no_spread_and_no_test_data_no_mean() -> None:
    points = summarize([FinishedRun(HERE, {}, (TEACHER, student(None)))])
    assert points[0].sd is None
    assert points[1].accuracies == ()


def _drawn(points: list[Point]) -> str:
    with house_style():
        return to_svg(draw_tradeoff(points), "accuracy against size")


def test_the_picture_names_what_it_shows_and_follows_the_page() -> None:
    svg = _drawn(summarize(_runs()))
    for word in ("teacher", "KegNet", "compression ratio", "multiply-accumulates", "test accuracy", "toy"):
        assert word in svg
    assert 'aria-label="accuracy against size"' in svg and "var(--ink)" in svg and "#1b1f24" not in svg


def test_the_picture_is_at_the_numbers() -> None:
    figure = draw_tradeoff(summarize(_runs()))
    for panel, xs in zip(figure.axes, ([2.0, 4.0], [2000, 4000]), strict=True):
        (container,) = panel.containers
        line, _, (bars,) = container.lines
        assert list(line.get_xdata()) == xs
        assert sorted(line.get_ydata()) == pytest.approx([0.75, 0.75])
        lengths = [segment[1][1] - segment[0][1] for segment in bars.get_segments()]
        assert lengths == pytest.approx([2**0.5 * 0.1] * 2)
        assert panel.lines[0].get_ydata()[0] == pytest.approx(0.91), "the teacher"


def test_a_sweep_says_where_noise_is_better() -> None:
    rows = (TEACHER, student(0.5, method="T"), student(0.7, method="T+Uniform"), student(0.6))
    runs = [FinishedRun(HERE, {}, rows)]
    assert (
        describe_sweep(runs, summarize(runs))[-1]
        == "Without prior knowledge in the samples the same network is better: student (uniform noise) 70.00 %."
    )
    runs = [FinishedRun(HERE, {}, (*rows[:3], student(0.8)))]
    assert "Without prior" not in " ".join(describe_sweep(runs, summarize(runs)))


def test_a_sweep_names_the_smallest_network_where_another_is_better() -> None:
    for ratio, told in ((2.0, False), (4.0, True)):
        runs = [
            FinishedRun(HERE, {}, (TEACHER, student(0.7, compression_ratio=ratio), student(0.8, method="T+Leaves")))
        ]
        assert ("; the smallest, option1 student (KegNet)" in describe_sweep(runs, summarize(runs))[1]) == told


def test_an_untrained_network_can_be_the_best() -> None:
    source = {"prior": "procedural"}
    rows = (TEACHER, student(0.8, method="T", compression_source=source), student(0.7, compression_source=source))
    runs = [FinishedRun(HERE, {}, rows)]
    told = describe_sweep(runs, summarize(runs))
    assert "The best network is option1 compressed, untrained: 80.00 %" in told[1] and "Without prior" not in str(told)


def test_of_equal_networks_the_smallest_is_the_best() -> None:
    rows = (TEACHER, student(0.7), student(0.7, method="T+Leaves", compression_ratio=4.0))
    runs = [FinishedRun(HERE, {}, rows)]
    assert "The best network is option1 student (Leaves): 70.00 %" in describe_sweep(runs, summarize(runs))[1]
    agreement = {"mean": 0.9, "over": [], "sources": {}, "worst": None, "unreached": [], "unreached_classes": 0}
    runs = [
        FinishedRun(HERE, {}, tuple(dataclasses.replace(row, accuracy=None, agreement=agreement) for row in rows[1:]))
    ]
    assert "highest agreement with its teacher is option1 student (Leaves)" in describe_sweep(runs, summarize(runs))[1]


def test_unreliable_speed_ups_of_a_sweep_are_named() -> None:
    def measured(spread: float) -> Row:
        batches = {size: {"ms": 1.0, "spread": spread, "speedup": 2.0} for size in ("1", "64")}
        return student(0.7, latency={"device": "cpu", "threads": 1, "batches": batches})

    calm, noisy = (FinishedRun(HERE, {}, (TEACHER, measured(spread))) for spread in (0.1, 0.6))
    assert explain_noisy_runs([calm, FinishedRun(HERE)]) == []
    (line,) = explain_noisy_runs([calm, noisy])
    assert line.startswith("Speed-ups at batch size 1 and 64 are not reliable")
    assert line.endswith("This holds for 1 of 2 runs.")


def test_a_sweep_names_a_ceiling_and_compares_nothing_with_it() -> None:
    rows = (TEACHER, student(0.5, method="T"), student(0.6), student(0.85, method="T+Real", compression_ratio=9.0))
    runs = [FinishedRun(HERE, {}, rows)]
    plain = [FinishedRun(HERE, {}, rows[:3])]
    *sentences, told = describe_sweep(runs, summarize(runs))
    assert sentences == describe_sweep(plain, summarize(plain))
    assert (
        told
        == "student (real data) is not a data-free result: it was trained on real data, as a ceiling for the others."
    )


def test_the_picture_shows_a_ceiling_dashed_outlined_and_named() -> None:
    rows = (TEACHER, student(0.6), student(0.85, method="T+Real"))
    figure = draw_tradeoff(summarize([FinishedRun(HERE, {}, rows)]))
    kegnet, ceiling = (container.lines[0] for container in figure.axes[0].containers)
    assert (kegnet.get_linestyle(), kegnet.get_fillstyle()) == ("-", "full")
    assert (ceiling.get_linestyle(), ceiling.get_fillstyle()) == ("--", "none")
    assert ceiling.get_color() == RealSource.color
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "teacher", "student (KegNet)", "student (real data): ceiling, not data-free",
    ]  # fmt: skip


def test_a_sweep_over_quantisations_has_each_network_in_float32_once() -> None:
    kegnet = student(0.7)
    runs = [
        FinishedRun(HERE, {"quantization": "none"}, (TEACHER, kegnet)),
        FinishedRun(HERE, {"quantization": "int8"}, (TEACHER, kegnet, quantized(TEACHER), quantized(kegnet))),
        FinishedRun(HERE, {"quantization": "int8_weights"}, (TEACHER, kegnet, quantized(kegnet, source=None))),
    ]
    points = summarize(runs)
    assert [(point.row.method, point.settings, len(point.rows)) for point in points] == [
        ("teacher", "", 1),
        ("T+KegNet", "", 1),
        ("teacher int8", "", 1),
        ("T+KegNet int8", "quantization=int8", 1),
        ("T+KegNet int8", "quantization=int8_weights", 1),
    ]
    plain = [FinishedRun(HERE, {}, run.rows[:2]) for run in runs[:1]]
    assert describe_sweep(runs, points)[1:] == describe_sweep(plain, summarize(plain))[1:]
    figure = draw_tradeoff(points)
    assert [len(panel.containers) for panel in figure.axes] == [1, 1], "networks in float32 alone are drawn"


def test_the_column_of_sizes_is_there_where_they_are_known() -> None:
    kegnet = dataclasses.replace(student(0.7), size=1_234_000)
    points = summarize([FinishedRun(HERE, {}, (TEACHER, kegnet, quantized(kegnet)))])
    assert make_columns(points)["MB"] == ["", "1.23", "0.0003"]
    assert "MB" not in make_columns(summarize([FinishedRun(HERE, {}, (TEACHER, student(0.7)))]))


def test_one_ratio_is_drawn_as_bars_with_their_spread() -> None:
    runs = [
        FinishedRun(HERE, {"compression": "option1"}, run.rows) for run in _runs() if run.rows[1].student == "option1"
    ]
    (axis,) = draw_accuracy(summarize(runs)).axes
    assert [bar.get_width() for bar in axis.patches] == pytest.approx([0.91, 0.75])
    assert [text.get_text() for text in axis.get_yticklabels()] == ["teacher", "option1 student (KegNet)"]
    assert len(draw_accuracy(summarize(_runs())).axes) == 2, "two ratios: accuracy and size, accuracy and work"


def test_without_accuracy_bars_are_agreements() -> None:
    agreement = {"over": ["waves"], "mean": 0.5, "worst": None, "sources": {"waves": {"samples": 10}}}
    points = summarize([FinishedRun(HERE, {}, (TEACHER, student(None, agreement=agreement)))])
    points = [point for point in points if point.agreement is not None]
    (axis,) = draw_bars(points).axes
    assert [bar.get_width() for bar in axis.patches] == [0.5] and "not accuracy" in axis.title.get_text()


def test_error_bars_at_one_ratio_do_not_hide_each_other() -> None:
    runs = [
        FinishedRun(HERE, {"seed": str(seed)}, (
            dataclasses.replace(TEACHER, seed=seed, fingerprint=f"t{seed}"),
            *(student(0.5 + 0.1 * seed, seed=seed, method=method) for method in ("T", "T+KegNet", "T+Normal")),
        ))
        for seed in (0, 1)
    ]  # fmt: skip
    figure = draw_tradeoff(summarize(runs))
    figure.canvas.draw()
    axis = figure.axes[0]
    places = [bars.get_transform().transform((2.0, 0.55)) for *_, (bars,) in (c.lines for c in axis.containers)]
    xs = sorted(x for x, _ in places)
    assert len(xs) == 3 and min(b - a for a, b in itertools.pairwise(xs)) > 5
    low, high = axis.get_ylim()
    assert low < 0.55 - 0.1 / 2**0.5 and high > 0.55 + 0.1 / 2**0.5, "the whole bars are visible"
