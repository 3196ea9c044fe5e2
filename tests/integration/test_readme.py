"""Commands, code, tables, links and numbers of README, CONTRIBUTING and the pages in ``docs`` are correct."""

import importlib
import inspect
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jsonschema
import pytest
import torch
from PIL import Image
from torch import nn

import kegnet_pl
from kegnet_pl.api.checkpoints import save_network
from kegnet_pl.compression import CompressionPlan, Rule
from kegnet_pl.networks import LeNet5, ResNet14
from kegnet_pl.pipeline.suggestions import accept_old_spellings, refuse_old_names
from kegnet_pl.reporting.__main__ import render as render_results_page
from kegnet_pl.reporting.results import Row
from kegnet_pl.runtime import errors
from kegnet_pl.sources import Procedural
from reproduction import guide, pipeline_figure
from tests.integration.conftest import SCHEMA, Command, configure

ROOT = Path(__file__).parents[2]
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text()
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md")))
}
"""Path of a page -> its text."""


def blocks(language: str) -> list[str]:
    pattern = re.compile(rf"^```{language}\n(.*?)^```", flags=re.DOTALL | re.MULTILINE)
    return [block for text in PAGES.values() for block in pattern.findall(text)]


def commands(start: str) -> list[str]:
    """Return the different commands of all pages that match a pattern, without comments."""
    lines = "\n".join(blocks("sh")).replace("\\\n", " ").split("\n")
    found = [" ".join(line.split("  #")[0].split(" # ")[0].split()) for line in lines if re.match(start, line)]
    return sorted({command for command in found if "--help" not in command})


RUNS, OTHERS = commands(r"python -m kegnet_pl( |$)"), commands(r"python -m kegnet_pl\.")


def test_there_are_commands() -> None:
    assert len(RUNS) >= 40 and len(OTHERS) >= 8


@pytest.mark.parametrize("line", RUNS)
def test_command_composes(line: str) -> None:
    arguments = shlex.split(line)[3:]
    if "--config-dir" in arguments:
        pytest.skip("test_own_network runs it")
    if "-m" in arguments:  # a sweep: its first job
        arguments = [argument.split(",")[0] for argument in arguments if argument != "-m"]
    arguments = arguments[: arguments.index("--cfg")] if "--cfg" in arguments else arguments
    refuse_old_names(arguments)
    configure(*accept_old_spellings(arguments))


@pytest.mark.parametrize("line", OTHERS)
def test_options_of_other_commands_exist(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    module, *arguments = shlex.split(line)[2:]
    command = [*arguments[:1], "--help"] if module == "kegnet_pl.store" else ["--help"]
    with pytest.raises(SystemExit) as stop:
        importlib.import_module(module).main(command)
    assert stop.value.code == 0
    usage = capsys.readouterr().out
    assert all(argument in usage for argument in arguments if argument.startswith("--"))


@pytest.mark.parametrize("code", blocks("python"))
def test_python_compiles(code: str) -> None:
    compile(code, "a page", "exec")


@pytest.mark.parametrize(
    "page", [*PAGES, *(f"results/{path.name}" for path in sorted((ROOT / "results").glob("*.md")))]
)
def test_links_lead_to_files(page: str) -> None:
    text = re.sub(r"^```.*?^```", "", (ROOT / page).read_text(), flags=re.DOTALL | re.MULTILINE)
    links = re.findall(r"\]\((?!https?:|#)([^)\s#]+)", text)
    missing = [link for link in links if not (ROOT / page).parent.joinpath(link).exists()]
    assert not missing


def test_the_site_is_built_and_needs_no_network(tmp_path: Path) -> None:
    """Strictly: links and anchors lead somewhere, every page is in the menu, every name of the API exists."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    pages = list(tmp_path.rglob("*.html"))
    assert len(pages) > len(PAGES)
    loaded = (
        r"<(?:script|img|iframe)[^>]* src=\"?https?:|<link[^>]* rel=\"?(?:stylesheet|preconnect)[^>]* href=\"?https?:"
    )
    assert not [page for page in pages if re.search(loaded, page.read_text())]


def test_the_page_of_the_command_line_has_every_group_and_extra() -> None:
    page = PAGES["docs/reference/cli.md"]
    for group in (ROOT / "conf").iterdir():
        if group.is_dir() and group.name not in ("callbacks", "hydra", "experiment", "source"):
            (row,) = re.findall(rf"^\| `{group.name}` \| (.*?) \|", page, flags=re.MULTILINE)
            assert set(re.findall(r"`(\w+)`", row)) == {path.stem for path in group.glob("*.yaml")}, group.name
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    table = page[page.index("## Optional packages") : page.index("## Environment variables")]
    assert set(extras) == {
        name for row in re.findall(r"^\| (`.*?) \|", table, re.M) for name in row.strip("`").split("`, `")
    }


def test_the_errors_of_the_page_of_messages_exist() -> None:
    rows = re.findall(r"^\| (`\w+Error`.*?) \|", PAGES["docs/reference/messages.md"], flags=re.MULTILINE)
    named = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    ours = {name for name in vars(errors) if name.endswith("Error")}
    assert named == ours | {"ValueError", "FileNotFoundError"}


def test_readme_and_contributing_are_short() -> None:
    assert len(PAGES["README.md"].splitlines()) <= 150
    assert len(PAGES["CONTRIBUTING.md"].splitlines()) <= 80


@pytest.mark.parametrize("page", guide.FILES)
def test_tables_are_those_of_the_stored_results(page: str) -> None:
    assert guide.render(PAGES[page]) == PAGES[page], "python -m reproduction.guide"
    assert PAGES[page].count("reproduction.guide: ") == PAGES[page].count("<!-- end -->") > 0


def test_the_figure_of_the_pipeline(tmp_path: Path) -> None:
    pipeline_figure.main(tmp_path / "pipeline.svg")
    stored = (ROOT / "docs" / "figures" / "pipeline.svg").read_text()
    size = re.compile(r'viewBox="[^"]+"')
    assert size.findall((tmp_path / "pipeline.svg").read_text()) == size.findall(stored) != []


def test_own_network(command: Command, tmp_path: Path) -> None:
    """The YAML file of the page for the user's own network."""
    content = next(block for block in blocks("yaml") if "mypackage.MyNet" in block)
    folder = tmp_path / "myconf" / "teacher"
    folder.mkdir(parents=True)
    (folder / "mynet.yaml").write_text(content.replace("mypackage.MyNet", "kegnet_pl.networks.LeNet5"))
    network = command("--config-dir", "myconf", "teacher=mynet", "--cfg", "job", "--package", "teacher.network").stdout
    assert "channels" not in network, "the user's network gets no arguments that it may not have"
    done = command("--config-dir", "myconf", "teacher=mynet", "debug=fast", "sources=[]")
    assert "x smaller" in done.stdout


def test_the_page_for_an_own_network_begins_with_a_command() -> None:
    line = PAGES["docs/how_to/own_network.md"].split("```sh\n")[1].split("```")[0].replace("\\\n", " ")
    config = configure(*shlex.split(line)[3:])
    assert (config["teacher"]["path"], config["data"]["name"], config["data"]["test"]) == (
        "net.py",
        "files",
        "test.npz",
    )


def test_the_example_of_a_plan() -> None:
    import yaml

    content = yaml.safe_load(next(block for block in blocks("yaml") if "rules:" in block))
    rules = [Rule(rule["layers"], rule["rank"]) for rule in content["rules"]]
    plan = CompressionPlan(rules, content["target"], content["when_larger"])
    assert plan.apply(ResNet14(), (3, 32, 32)).report.compression_ratio == pytest.approx(4, rel=0.05)


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    named = set(re.findall(r"`make ([a-z-]+)|^make ([a-z-]+)", "\n".join(PAGES.values()), flags=re.MULTILINE))
    assert {name for pair in named for name in pair if name} <= targets


def test_every_key_of_results_is_explained() -> None:
    page = PAGES["docs/reference/results_json.md"]
    assert render_results_page() == page, "make settings"
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    assert rows and all(cell.strip() for line in rows for cell in line.split("|")[1:-1])
    assert set(SCHEMA["items"]["properties"]) == set(Row.__dataclass_fields__)
    # Rows of older versions lack them.
    later = {
        "epochs", "epoch", "source", "compression", "compression_source", "quantization", "size", "agreement",
        "latency", "warnings", "learning_rate",
    }  # fmt: skip
    assert set(SCHEMA["items"]["required"]) == set(Row.__dataclass_fields__) - later


def test_stored_results_follow_the_schema_and_are_what_the_pages_show() -> None:
    rows = json.loads((ROOT / "results" / "digits" / "results.json").read_text())
    own = ("run", "settings")  # what a sweep adds
    jsonschema.validate([{key: value for key, value in row.items() if key not in own} for row in rows], SCHEMA)
    shown = [row for row in rows if row["student"] in (None, "ratio8")]
    assert {row["seed"] for row in shown} == {0, 1, 2}
    for seed in (0, 1, 2):
        accuracy = {row["method"]: row["accuracy"] for row in shown if row["seed"] == seed}
        assert all(accuracy["teacher"] - value < 0.02 for value in accuracy.values())
        values = [f"{100 * value:.2f} %" for value in accuracy.values()]
        assert f"| {seed} | {' | '.join(values)} |" in PAGES["docs/tutorials/first_run.md"]
        if seed == 0:
            printed = re.findall(r"^│ .*?(\d+\.\d\d %)", PAGES["README.md"], flags=re.MULTILINE)
            assert printed == values
            assert printed == re.findall(
                r"^│ .*?(\d+\.\d\d %)", PAGES["docs/tutorials/first_run.md"], flags=re.MULTILINE
            )


def test_the_lines_of_python_run() -> None:
    code = next(block for block in blocks("python") if "generators.dataset(16_000)" in block)
    small = {
        "mean=mean, std=std)           #": "mean=mean, std=std, samples=50)  #",
        "8_000": "128",
        "train_generators(teacher, shape)": "train_generators(teacher, shape, count=1, epochs=1, steps_per_epoch=2)",
        "16_000": "128",
    }
    for before, after in small.items():
        assert before in code
        code = code.replace(before, after, 1)
    names: dict[str, Any] = {"teacher": LeNet5()}
    exec(code, names)
    assert len(code.strip().splitlines()) < 15
    assert names["small"].report.compression_ratio >= 8
    assert names["student"](torch.zeros(2, 1, 32, 32)).shape == (2, 10)


def test_the_four_lines_of_the_readme_run() -> None:
    code = next(block for block in blocks("python") if "target=2.0, mean=0.45" in block)
    assert code in PAGES["README.md"]
    small = {"mean=0.45, std=0.2) ": "mean=0.45, std=0.2, samples=50) ", "8_000": "64", "epochs=5": "epochs=1"}
    for before, after in small.items():
        assert before in code
        code = code.replace(before, after, 1)
    layers = [nn.Flatten(), nn.Linear(3 * 32 * 32, 16), nn.ReLU(), nn.Linear(16, 10)]
    names: dict[str, Any] = {"teacher": nn.Sequential(*layers)}
    exec(code, names)
    assert names["small"].report.compression_ratio >= 2
    assert names["student"](torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def test_the_lines_of_python_for_batch_norm_run() -> None:
    code = next(block for block in blocks("python") if "MixedSource(MatchedSource" in block)
    small = {"8_000": "64", "epochs=10": "epochs=1", "target=3.0": "target=3.0, samples=50"}
    for before, after in small.items():
        assert before in code
        code = code.replace(before, after, 1)
    names: dict[str, Any] = {"teacher": ResNet14(), "kegnet_pl": kegnet_pl}
    exec(code, names)
    assert names["student"](torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def test_the_lines_for_batch_norm_have_the_settings_of_the_preset() -> None:
    code = next(block for block in blocks("python") if "MixedSource(MatchedSource" in block)
    config = configure(
        "experiment=custom/batch_norm", "data=none", "data.input_shape=[3,32,32]", "data.classes=10",
        "teacher=resnet14", "teacher.weights=w", "compression=ratio",
    )  # fmt: skip
    said: dict[str, dict[str, Any]] = {}

    def listen(name: str, function: Any, result: Any = None) -> Any:
        def heard(*args: Any, **kwargs: Any) -> Any:
            call = inspect.signature(function).bind(*args, **kwargs)
            call.apply_defaults()
            said[name] = dict(call.arguments)
            return result

        return heard

    api = SimpleNamespace(
        compress=listen("compress", kegnet_pl.compress, SimpleNamespace(network=None)),
        distill=listen("student", kegnet_pl.distill),
        SyntheticDataset=lambda source, _, samples: (source, samples),
    )
    exec(code, {"kegnet_pl": api, "teacher": ResNet14()})
    student, mine, theirs = config["student"], said["student"], config["compression"]
    for name in ("samples", "oversampling", "matching", "by", "round_to"):
        assert said["compress"][name] == theirs[name], name
    same = ("epochs", "batch_size", "lr_scheduler", "temperature", "norm", "dropout", "resample_each_epoch", "shuffle")
    for name in same:
        assert mine[name] == student[name], name
    mixed, samples = mine["data"]
    assert (mine["lr"], samples) == (student["optimizer"]["lr"], student["samples"])
    matched = mixed.source
    assert (mixed.share, matched.share) == (student["mixing"], student["matching"])
    assert matched.source.candidates == student["oversampling"]
    assert isinstance(matched.source.source, Procedural) and config["sources"] == ["procedural"]
    assert (mine["feature_distillation"], mine["feature_distillation_layers"]) == (
        student["feature_distillation"]["weight"],
        student["feature_distillation"]["layers"],
    )


def test_public_names_are_explained() -> None:
    names, reference = PAGES["docs/tutorials/python.md"], PAGES["docs/reference/api.md"]
    for name in kegnet_pl.__all__:
        assert f"{name}(" in names or name in ("Compressed", "Generators", "Split"), name
        assert f"{getattr(kegnet_pl, name).__module__}" in reference, name


def test_pictures_exist() -> None:
    pictures = [
        ROOT.joinpath(page).parent / name
        for page, text in PAGES.items()
        for name in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", text)
    ]
    assert pictures
    for picture in pictures:
        if picture.suffix == ".png":
            with Image.open(picture) as image:
                assert min(image.size) > 200
        else:
            assert "<svg" in picture.read_text()
    stored = {path.resolve() for kind in ("*.png", "*.svg") for path in (ROOT / "docs").rglob(kind)}
    assert stored <= {picture.resolve() for picture in pictures}, "each picture is in a page"


def test_a_student_runs_without_us(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lines of the page that export a student."""
    content = next(block for block in blocks("python") if "torch.export.save" in block)
    compressed = CompressionPlan([Rule("*", "target")], 2.0).apply(ResNet14(), (3, 32, 32))
    student, recipe = compressed.network.eval(), {"_target_": "kegnet_pl.networks.ResNet14"}
    save_network(student, tmp_path, "network", recipe)
    code = content.replace("outputs/store/student-...", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    x = torch.randn(1, 3, 32, 32)
    torch.save(x, tmp_path / "x.pt")
    elsewhere = """
import sys, torch
x = torch.load("x.pt")
answers = [torch.export.load("student.pt2").module()(x), torch.jit.load("student.ts")(x)]
assert "kegnet_pl" not in sys.modules
torch.save([answer.detach() for answer in answers], "answers.pt")
"""
    subprocess.run([sys.executable, "-c", elsewhere], check=True)
    for answer in torch.load(tmp_path / "answers.pt"):
        torch.testing.assert_close(answer, student(x), rtol=1e-4, atol=1e-5)
