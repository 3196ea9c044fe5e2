"""A source from outside the package: it is shown everywhere without changes of the package."""

import dataclasses
import importlib.resources
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from matplotlib.colors import to_hex
from rich.console import Console

from kegnet_pl.compression.automatic import plans_to_compare
from kegnet_pl.compression.rules import Rule
from kegnet_pl.report import main
from kegnet_pl.reporting.results import Row, write_results
from kegnet_pl.reporting.runs import FinishedRun, read_runs
from kegnet_pl.reporting.style import COLOURS, SERIES, distinct_colors, looks_of
from kegnet_pl.reporting.summary import summarize
from kegnet_pl.reporting.sweep import make_summary_table
from kegnet_pl.reporting.tables import make_results_table
from kegnet_pl.reporting.tradeoff import draw_tradeoff
from kegnet_pl.reporting.wandb import report_objects
from kegnet_pl.runtime.costs import KINDS
from kegnet_pl.sources import SourceInfo, describe_mixture
from tests.unit.reporting.rows import TEACHER, student
from tests.unit.sources.external import TARGET, Stripes, offer_as_entry_point

SCHEMA = json.loads((importlib.resources.files("kegnet_pl.reporting") / "results.schema.json").read_text())
COSTS = {
    "seconds": dict.fromkeys((*KINDS, "other"), 0.0), "samples_made": 0, "teacher_forwards": 0,
    "peak_memory": {"host_mb": 1.0, "device_mb": 0.0},
}  # fmt: skip


@pytest.fixture(params=["entry of the configuration", "entry point"])
def specifications(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Define the source ``mine`` in one of the two ways."""
    if request.param == "entry point":
        offer_as_entry_point(monkeypatch, "mine")
        return {}
    return {"mine": {"_target_": TARGET}}


def _row(info: SourceInfo, accuracy: float) -> Row:
    return student(accuracy, method=f"T+{info.title}", source=info.to_dict())


def _rows(specifications: dict[str, Any]) -> list[Row]:
    infos = [describe_mixture(shares, specifications) for shares in ({"mine": 1.0}, {"mine": 0.5, "normal": 0.5})]
    rows = [
        TEACHER,
        student(0.3, method="T"),
        student(0.5, method="T+Normal"),
        _row(infos[0], 0.6),
        _row(infos[1], 0.7),
    ]
    return [dataclasses.replace(row, costs=COSTS, fingerprint=f"{index:016x}") for index, row in enumerate(rows)]


def _print(table: Any) -> list[list[str]]:
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: PTH123, SIM115
    console.print(table)
    return [
        [cell.strip() for cell in line.split("│")[1:-1]] for line in console.export_text().splitlines() if "│" in line
    ]


def test_tables_name_the_source_and_its_prior_knowledge(specifications: dict[str, Any]) -> None:
    rows = _rows(specifications)
    expected = [
        ["teacher", ""], ["compressed, untrained", ""], ["student (normal noise)", "none"],
        ["student (Stripes)", "procedural"],
        ["student (Stripes 50 % + normal noise 50 %)", "procedural"],
    ]  # fmt: skip
    assert [line[:2] for line in _print(make_results_table(rows))] == expected
    points = summarize([FinishedRun(Path(), {}, tuple(rows))])
    assert [line[1:3] for line in _print(make_summary_table(points))] == expected


def test_the_plot_has_its_color_marker_and_title(specifications: dict[str, Any]) -> None:
    figure = draw_tradeoff(summarize([FinishedRun(Path(), {}, tuple(_rows(specifications)))]))
    (legend,) = figure.legends
    titles = [text.get_text() for text in legend.get_texts()]
    assert titles == [
        "teacher", "student (Stripes)", "student (Stripes 50 % + normal noise 50 %)", "student (normal noise)",
        "compressed, untrained",
    ]  # fmt: skip
    container = next(c for c in figure.axes[0].containers if c.get_label() == "student (Stripes)")
    line = container.lines[0]
    assert to_hex(line.get_color()) == Stripes.color and line.get_marker() == Stripes.marker
    assert list(line.get_ydata()) == [0.6]


def test_results_follow_the_schema_and_are_read_again(specifications: dict[str, Any], tmp_path: Path) -> None:
    rows = _rows(specifications)
    write_results(rows, tmp_path / "results.json")
    records = json.loads((tmp_path / "results.json").read_text())
    jsonschema.validate(records, SCHEMA)
    methods = plans_to_compare([Rule("*", "target")], 2.0)
    assert set(SCHEMA["items"]["properties"]["compression"]["enum"]) == {None, *methods}
    assert [record["source"] and record["source"]["title"] for record in records] == [
        None, None, "Normal", "Stripes", "Stripes 50 % + Normal 50 %",
    ]  # fmt: skip
    assert records[4]["source"]["shares"] == {"mine": 0.5, "normal": 0.5}
    assert read_runs(tmp_path)[0].rows == tuple(rows)
    broken = [record | {"source": {"name": "mine"}} for record in records]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(broken, SCHEMA)


def test_the_report_needs_results_alone(
    specifications: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The source is not imported: another machine need not have it."""
    run = tmp_path / "run"
    run.mkdir()
    write_results(_rows(specifications), run / "results.json")

    def fail(*_: object) -> None:
        raise AssertionError("the source was looked for")

    monkeypatch.setattr("kegnet_pl.sources.registry.find_source_class", fail)
    assert main([str(run), "--out", str(tmp_path / "out")]) == 0
    assert "student (Stripes)" in capsys.readouterr().out
    for page in (run / "report.html", tmp_path / "out" / "report.html"):
        text = page.read_text()
        assert "<td>student (Stripes)</td><td>procedural</td>" in text
        assert "<td>student (normal noise)</td><td>none</td>" in text
        assert Stripes.color in text, "the colour of its marks"
    story = (run / "report.html").read_text().replace("\N{NO-BREAK SPACE}", " ")
    assert "64 samples of Stripes 50 % + normal noise 50 % (prior knowledge in them: procedural)" in story
    header, *lines = (tmp_path / "out" / "results.csv").read_text().splitlines()
    assert {"source.prior", "source.title", "source.shares.mine"} <= set(header.split(","))
    assert sum(",procedural," in line for line in lines) == 2


def test_every_page_tells_a_ceiling_and_highlights_another_row(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [TEACHER, student(0.3, method="T"), student(0.6), student(0.8, method="T+Real")]
    rows = [dataclasses.replace(row, costs=COSTS, fingerprint=f"{index:016x}") for index, row in enumerate(rows)]
    run = tmp_path / "run"
    run.mkdir()
    write_results(rows, run / "results.json")
    jsonschema.validate(json.loads((run / "results.json").read_text()), SCHEMA)
    assert main([str(run), "--out", str(tmp_path / "out")]) == 0
    told = "student (real data) is not a data-free result: it was trained on real data, as a ceiling for the others."
    assert told in capsys.readouterr().out
    for page in (run / "report.html", tmp_path / "out" / "report.html"):
        text = page.read_text()
        assert told in text and "<td>student (real data)</td><td>real data</td>" in text
        assert "student (real data): ceiling, not data-free" in text, "the legend of the plot"
    assert '<tr class="best"><td>student (KegNet)</td>' in (run / "report.html").read_text()
    assert make_results_table(rows).rows[3].style == "dim italic"


def test_wandb_shows_the_prior_knowledge(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    wandb = pytest.importorskip("wandb")
    monkeypatch.setattr(wandb, "Html", str)
    page = tmp_path / "report.html"
    table = report_objects(_rows({"mine": {"_target_": TARGET}}), page, None)["results"]
    assert table.get_column("prior") == ["", "", "none", "procedural", "procedural"]


def test_rows_of_older_versions_get_the_source_that_their_method_names() -> None:
    for row in (student(0.5), student(0.5, method="S+Normal"), student(0.5, method="T"), TEACHER):
        record = dataclasses.asdict(row)
        assert Row.from_dict(record) == row
        del record["source"]
        assert Row.from_dict(record) == row


def test_settings_of_generators_and_sources_matter_where_they_are_used() -> None:
    info = describe_mixture({"mine": 1.0}, {"mine": {"_target_": TARGET}})
    mixed = describe_mixture({"mine": 0.5, "kegnet": 0.5}, {"mine": {"_target_": TARGET}})
    runs = [
        FinishedRun(
            Path(),
            {"generator.epochs": str(value), "source.mine.height": str(value)},
            (TEACHER, student(0.5), *(_row(one, 0.5 + value / 10) for one in (info, mixed))),
            name=str(value),
        )
        for value in (1, 2)
    ]  # fmt: skip
    settings: dict[str, list[str]] = {}
    for point in summarize(runs):
        settings.setdefault(point.row.method, []).append(point.settings)
    assert settings == {
        "teacher": [""],
        "T+KegNet": ["generator.epochs=1", "generator.epochs=2"],
        "T+Stripes": ["source.mine.height=1", "source.mine.height=2"],
        "T+KegNet 50 % + Stripes 50 %": [
            "generator.epochs=1 source.mine.height=1", "generator.epochs=2 source.mine.height=2",
        ],
    }  # fmt: skip


def test_series_of_one_color_are_distinguishable() -> None:
    blue = "#2468d8"
    assert distinct_colors(["#d9730d", blue]) == ["#d9730d", blue]
    colors = distinct_colors([COLOURS["compressed"], blue, blue, None, "#2468d0", COLOURS["teacher"]])
    assert colors[:2] == [COLOURS["compressed"], blue]
    assert len(set(colors)) == 6 and set(colors[2:]) <= set(SERIES) and COLOURS["teacher"] not in colors
    assert len(distinct_colors([None] * 20)) == 20, "more series than colours"
    looks = looks_of([TEACHER, student(0.3, method="T"), student(0.5), student(0.6, method="S+KegNet")])
    assert looks["T+KegNet"].color == blue != looks["S+KegNet"].color
    assert looks["T"].marker == "x" and looks["S+KegNet"].marker == "o"
