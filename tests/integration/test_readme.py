"""Commands, code and tables of README.md are correct."""

import inspect
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jsonschema
import pytest
import torch

import kegnet_pl
from kegnet_pl.api.checkpoints import save_network
from kegnet_pl.compression import CompressionPlan, Rule
from kegnet_pl.networks import LeNet5, ResNet14
from kegnet_pl.pipeline.objects import build
from kegnet_pl.pipeline.suggestions import accept_old_spellings, refuse_old_names
from kegnet_pl.reporting.results import Row
from kegnet_pl.sources import NormalNoise
from tests.integration.conftest import SCHEMA, Command, configure

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT, flags=re.DOTALL | re.MULTILINE)


def commands() -> list[str]:
    lines = "\n".join(blocks("sh")).replace("\\\n", " ").split("\n")
    found = [line.split("  #")[0].strip() for line in lines if re.match(r"python -m kegnet_pl( |$)", line)]
    return sorted({command for command in found if "--help" not in command})


def test_there_are_commands() -> None:
    assert len(commands()) >= 8


@pytest.mark.parametrize("line", commands())
def test_command_composes(line: str) -> None:
    arguments = shlex.split(line)[3:]
    if "--config-dir" in arguments:
        pytest.skip("test_own_network runs it")
    if "-m" in arguments:  # a sweep: its first job
        arguments = [argument.split(",")[0] for argument in arguments if argument != "-m"]
    arguments = arguments[: arguments.index("--cfg")] if "--cfg" in arguments else arguments
    refuse_old_names(arguments)
    configure(*accept_old_spellings(arguments))


def test_own_network(command: Command, tmp_path: Path) -> None:
    """The YAML file of the README for the user's own network."""
    content = next(block for block in blocks("yaml") if "mypackage.MyNet" in block)
    folder = tmp_path / "myconf" / "teacher"
    folder.mkdir(parents=True)
    (folder / "mynet.yaml").write_text(content.replace("mypackage.MyNet", "kegnet_pl.networks.LeNet5"))
    network = command("--config-dir", "myconf", "teacher=mynet", "--cfg", "job", "--package", "teacher.network").stdout
    assert "channels" not in network, "the user's network gets no arguments that it may not have"
    done = command("--config-dir", "myconf", "teacher=mynet", "debug=fast", "sources=[]")
    assert "x smaller" in done.stdout


def test_the_section_for_an_own_network_begins_with_a_command() -> None:
    line = TEXT.split("### Your own network")[1].split("```sh\n")[1].split("```")[0].replace("\\\n", " ")
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
    assert set(re.findall(r"make ([a-z-]+)", TEXT)) <= targets


def test_every_key_of_results_is_explained() -> None:
    section = TEXT[TEXT.index("## results.json") :]
    for key in Row.__dataclass_fields__:
        assert f"`{key}`" in section, key
    assert set(SCHEMA["items"]["properties"]) == set(Row.__dataclass_fields__)
    # Rows of older versions lack them.
    later = {
        "epochs", "epoch", "source", "compression", "compression_source", "quantization", "size", "agreement",
        "latency", "warnings",
    }  # fmt: skip
    assert set(SCHEMA["items"]["required"]) == set(Row.__dataclass_fields__) - later


def test_stored_results_follow_the_schema_and_are_what_the_readme_shows() -> None:
    rows = json.loads((ROOT / "results" / "digits" / "results.json").read_text())
    own = ("run", "settings")  # what a sweep adds
    jsonschema.validate([{key: value for key, value in row.items() if key not in own} for row in rows], SCHEMA)
    shown = [row for row in rows if row["student"] in (None, "ratio8")]
    assert {row["seed"] for row in shown} == {0, 1, 2}
    for seed in (0, 1, 2):
        accuracy = {row["method"]: row["accuracy"] for row in shown if row["seed"] == seed}
        assert all(accuracy["teacher"] - value < 0.02 for value in accuracy.values())
        for value in accuracy.values():
            assert f"{100 * value:.2f}" in TEXT


def test_the_lines_of_python_run() -> None:
    code = next(block for block in blocks("python") if "import kegnet_pl\nfrom kegnet_pl.sources import Proc" in block)
    small = {
        "mean=mean, std=std)           #": "mean=mean, std=std, samples=50)  #",
        "8_000": "128",
        "train_generators(teacher, shape)": "train_generators(teacher, shape, count=1, epochs=1, steps_per_epoch=2)",
        "16_000": "128",
    }
    for before, after in small.items():
        assert before in code
        code = code.replace(before, after, 1)
    room: dict[str, Any] = {"teacher": LeNet5()}
    exec(code, room)
    assert len(code.strip().splitlines()) < 15
    assert room["small"].report.compression_ratio >= 8
    assert room["student"](torch.zeros(2, 1, 32, 32)).shape == (2, 10)


def test_the_lines_of_python_for_batch_norm_run() -> None:
    code = next(block for block in blocks("python") if "upsampling" in block)
    small = {"epochs=10, steps_per_epoch=100": "epochs=1, steps_per_epoch=2, batch_size=8", "6_400": "64",
             "epochs=10": "epochs=1", "target=3.0": "target=3.0, samples=50"}  # fmt: skip
    for before, after in small.items():
        assert before in code
        code = code.replace(before, after, 1)
    room: dict[str, Any] = {"teacher": ResNet14(), "kegnet_pl": kegnet_pl}
    exec(code, room)
    assert room["student"](torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def test_the_lines_for_batch_norm_have_the_settings_of_the_preset() -> None:
    code = next(block for block in blocks("python") if "upsampling" in block)
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

    drawn = SimpleNamespace(source=lambda: NormalNoise((3, 32, 32)))
    api = SimpleNamespace(
        train_generators=listen("generators", kegnet_pl.train_generators, drawn),
        compress=listen("compress", kegnet_pl.compress, SimpleNamespace(network=None)),
        distill=listen("student", kegnet_pl.distill),
        SyntheticDataset=lambda source, _, samples: (source, samples),
    )
    exec(code, {"kegnet_pl": api, "teacher": None})
    generator, student, mine = config["generator"], config["student"], said["generators"]
    for name in ("count", "epochs", "steps_per_epoch", "batch_size", "lr_scheduler", "teacher_norm", "noise_dim"):
        assert mine[name] == generator[name], name
    assert mine["lr"] == generator["optimizer"]["lr"]
    assert mine["objective"] == {name: term["weight"] for name, term in generator["objective"].items()}
    network, decoder = mine["make_generator"](), mine["make_decoder"]()
    assert (
        str(network) == str(build(generator["network"])) and network.output_norm == generator["network"]["output_norm"]
    )
    assert str(decoder) == str(build(generator["decoder"]))
    mine = said["student"]
    for name in (
        "epochs",
        "batch_size",
        "lr_scheduler",
        "temperature",
        "norm",
        "dropout",
        "resample_each_epoch",
        "shuffle",
    ):
        assert mine[name] == student[name], name
    source, samples = mine["data"]
    assert (mine["lr"], samples) == (student["optimizer"]["lr"], student["samples"])
    assert source.share == student["mixing"] and config["sources"] == [source.source.shares]
    assert (mine["feature_distillation"], mine["feature_distillation_layers"]) == (
        student["feature_distillation"]["weight"],
        student["feature_distillation"]["layers"],
    )


def test_public_names_are_explained() -> None:
    section = TEXT[TEXT.index("### From Python") : TEXT.index("### Sweeps")]
    for name in kegnet_pl.__all__:
        assert name in section or name in ("Compressed",), name


def test_pictures_exist() -> None:
    pictures = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", TEXT)
    assert pictures
    for picture in pictures:
        assert (ROOT / picture).read_bytes().startswith(b"\x89PNG")


def test_a_student_runs_without_us(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lines of the README that export a student."""
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
