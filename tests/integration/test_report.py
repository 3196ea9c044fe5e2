"""The pages that runs and sweeps leave."""

import base64
import json
import os
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest

from kegnet_pl.report import main
from kegnet_pl.reporting.names import name_network
from tests.integration.conftest import FAST, configure, go


class _Page(HTMLParser):
    """Collects what a page asks for, its anchors, its identifiers, and whether its elements are closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.asked: list[str] = []
        self.ids: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.asked += [value for key in ("src", "href", "xlink:href") if (value := found.get(key))]
        self.ids += [value] if (value := found.get("id")) else []
        if tag not in ("meta", "img", "link", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if self.open and self.open[-1] == tag:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def _read(path: Path) -> tuple[str, _Page]:
    text = path.read_text()
    page = _Page(text)
    assert page.open == []
    assert all(address.startswith(("data:image/png", "#")) for address in page.asked if not address.endswith(".html"))
    assert "://" not in re.sub(r'xmlns(:\w+)?="[^"]*"|<metadata>.*?</metadata>', "", text, flags=re.S)
    for address in page.asked:
        if address.startswith("#") and len(address) < 12:
            assert address[1:] in page.ids, address
    return text, page


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    go(folder, draw=True)
    return folder


def test_the_page_of_a_run_shows_everything_and_needs_nothing(finished: Path) -> None:
    text, page = _read(finished / "run" / "report.html")
    rows = json.loads((finished / "run" / "results.json").read_text())
    assert {"results", "layers", "samples", "curves", "classes", "costs", "settings"} <= set(page.ids)
    for row in rows:
        prior = row["source"]["prior"] if row["source"] else ""
        assert f"<td>{name_network(row['method'])}</td><td>{prior}</td>" in text
        assert f"{100 * row['accuracy']:.2f}\N{NO-BREAK SPACE}%" in text
    assert text.count("<svg ") == 2 * 8, (
        "tradeoff, front, layers, walk, generators, students, classes, costs: wide, and narrow"
    )
    assert text.count('class="on-wide"') == text.count('class="on-narrow"') == 8
    # The large sheet, the first generator's after two epochs, the walk.
    assert sum(address.startswith("data:image/png") for address in page.asked) == 4
    assert "16,000 samples" not in text and "128 samples of 2 generators" in text
    assert "with no real data in training or selection" in text
    assert "prefers-color-scheme: dark" in text and 'name="viewport"' in text
    confusion = re.findall(r'<td style="--v:[\d.]+">(\d*)</td>', text)
    assert len(confusion) == 100 and sum(int(count or 0) for count in confusion) == 539
    assert "decoder" in text and "noise_dim: " in text
    student = json.loads((finished / "run" / "stages.json").read_text())["networks"][rows[-1]["method"]]["student"]
    assert f"kegnet_pl.load_network(&#34;{(finished / 'run' / student).resolve()}&#34;)" in text
    assert (
        len(re.findall('<pre class="copy">', text)) == 2 and ", the worst of" in text and " MB of the teacher" in text
    )
    assert re.search(r"<td>commit of kegnet_pl</td><td>[0-9a-f]{40}", text) or "commit of" not in text
    assert "trained on samples of NAME (T+NAME)" in text
    assert "The teacher does not recognise all of them" in text, "after four steps"
    assert "the teacher takes them for it" not in text


def test_it_is_made_again_from_what_lies_there(finished: Path, tmp_path: Path) -> None:
    page = finished / "run" / "report.html"
    before = page.read_text()
    page.unlink()
    assert main([str(finished / "run"), "--out", str(tmp_path)]) == 0
    assert page.read_text() == before
    text, _ = _read(tmp_path / "report.html")
    assert "1 of 1 runs finished" in text


def test_without_the_store_it_shows_what_is_left(finished: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(finished / "run", tmp_path / "elsewhere" / "run"))
    assert main([str(run), "--out", str(tmp_path / "out")]) == 0
    text, page = _read(run / "report.html")
    assert {"results", "costs", "settings"} <= set(page.ids) and "samples" not in page.ids
    assert text.count("<svg ") == 2 * 3


def test_tables_and_no_test_data(tmp_path: Path) -> None:
    shape = ["data=none", "data.input_shape=[16]", "data.classes=60", "teacher=mlp", "generator=dense"]
    import torch

    from kegnet_pl.pipeline.objects import build

    config = configure(FAST, *shape, "teacher.weights=x", "compression=ratio")
    torch.save(build(config["teacher"]["network"]).state_dict(), tmp_path / "t.pt")
    weights = f"teacher.weights={tmp_path / 't.pt'}"
    rows = go(tmp_path, *shape, weights, "compression=ratio", "sources=[kegnet,correlated]", draw=True)
    assert rows[-1]["source"]["name"] == "correlated" and rows[-1]["source"]["prior"] == "teacher"
    text, page = _read(tmp_path / "run" / "report.html")
    assert "since there was no test data" in text and "not measured" in text
    assert "<title>mlp: " in text, "not: on none"
    assert "one row per class, one strip per sample" in text
    assert "samples" in page.ids and "classes" not in page.ids
    assert text.count("&thinsp;%") == 24 and "Left out" not in text, "of 60 classes"
    (manifest,) = (tmp_path / "store").glob("generators-*/manifest.json")
    metrics = json.loads(manifest.read_text())["metrics"]
    assert len(metrics["confidence"]) == len(metrics["confidence_classes"]) == 24


def test_mistakes_get_one_clear_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "nowhere")]) == 1
    assert "does not exist" in capsys.readouterr().err
    assert main([str(tmp_path)]) == 1
    assert "Name folders such as outputs/runs" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_is_named(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(finished / "run"), "--out", "/proc/nowhere"]) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "Expected to write the report to /proc/nowhere" in line and "--out FOLDER" in line


def test_damaged_stages_are_left_out_with_a_sentence(finished: Path, tmp_path: Path) -> None:
    for name in ("run", "store"):
        shutil.copytree(finished / name, tmp_path / name, ignore=shutil.ignore_patterns(".*"))
    (tmp_path / "secret.png").write_bytes((finished / "run" / "samples.png").read_bytes())
    secret = base64.b64encode((tmp_path / "secret.png").read_bytes()).decode()
    (generators,) = (tmp_path / "store").glob("generators-*")
    (generators / "walk.png").unlink()
    (generators / "walk.png").symlink_to(tmp_path / "secret.png")
    for stage in (tmp_path / "store").glob("evaluation-*"):
        manifest = json.loads((stage / "manifest.json").read_text())
        manifest["metrics"]["confusion"][0] = ["<script>", None]
        (stage / "manifest.json").write_text(json.dumps(manifest))
    metrics = next((generators / "logs").glob("*/version_0/metrics.csv"))
    metrics.unlink()
    os.mkfifo(metrics)
    (next((tmp_path / "store").glob("compression-*")) / "compression.json").write_text("{}")
    assert main([str(tmp_path / "run"), "--out", str(tmp_path / "out")]) == 0
    text, page = _read(tmp_path / "run" / "report.html")
    assert secret not in text and text.count("<script") == 1 and "script-src 'sha256-" in text
    assert {"results", "costs", "settings"} <= set(page.ids) and not {"samples", "classes", "layers"} & set(page.ids)
    for part in ("layers", "samples", "classes"):
        assert f"Left out ({part}): " in text
