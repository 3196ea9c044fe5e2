"""Typed settings: what they refuse, and what they say of it."""

import copy
import importlib.resources
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from kegnet_pl.pipeline.configuration import to_plain
from kegnet_pl.runtime.errors import ConfigError, UserError
from kegnet_pl.settings import (
    DistillationSettings,
    GeneratorTrainingSettings,
    RunSettings,
    Settings,
    read_arguments,
)
from kegnet_pl.settings.__main__ import render
from kegnet_pl.settings.training import LIGHTNING
from tests.integration.conftest import configure

CONF = Path(str(importlib.resources.files("kegnet_pl.conf")))


@cache
def _compose(*overrides: str) -> dict[str, Any]:
    GlobalHydra.instance().clear()
    with initialize_config_module("kegnet_pl.conf", version_base="1.3"):
        return to_plain(compose("config", overrides=list(overrides)))


@pytest.mark.parametrize(
    ("given", "title"),
    [
        (["teacher=file", "teacher.path=models/net.py", "teacher.factory=make_net"], "make_net"),
        (["teacher=file", "teacher.path=models/net.pt2", "student=lenet5"], "net"),
        (["teacher=file", "teacher.path=net.py", "teacher.factory=make", "teacher.name=mine"], "mine"),
        (["teacher=huggingface", "teacher.path=models/resnet-1.5"], "resnet-1.5"),
        (["teacher=lenet5"], "lenet5"),
    ],
)
def test_a_network_of_a_file_has_its_name(given: list[str], title: str) -> None:
    assert RunSettings.from_config(configure(*given)).teacher.title == title


def _config(changes: dict[str, Any]) -> dict[str, Any]:
    """Return the default configuration with some values changed, by dotted names."""
    config = copy.deepcopy(_compose())
    for name, value in changes.items():
        *path, last = name.split(".")
        node = config
        for part in path:
            node = node[part]
        node[last] = value
    return config


def _read(**changes: Any) -> RunSettings:
    return RunSettings.from_config(_config({name.replace("__", "."): value for name, value in changes.items()}))


def _problems(changes: dict[str, Any]) -> list[str]:
    """Return what is said of a configuration, a line each."""
    with pytest.raises(ConfigError) as caught:
        RunSettings.from_config(_config(changes))
    return str(caught.value).splitlines()


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["debug=fast"],
        ["~experiment"],
        ["trainer=ddp"],
        ["trainer=ddp", "trainer.num_nodes=4", "generator.processes=spread"],
        ["trainer=gpu", "trainer.precision=bf16-mixed"],
        ["data=none", "data.input_shape=[5]", "data.classes=2", "teacher=mlp", "compression=option1", "generator=dense",
         "teacher.weights=teacher.pt"],
        ["student=lenet5", "student.selection=synthetic", "student.patience=3", "student.min_epochs=2"],
        ["student.selection=real", "sources=[]"],
        ["teacher.patience=3", "teacher.min_epochs=10"],
        ["quantization=int8", "quantization.source={procedural: 0.5, normal: 0.5}"],
        ["quantization=int8_weights"],
    ],
)  # fmt: skip
def test_choices_of_groups_pass(overrides: list[str]) -> None:
    RunSettings.from_config(_compose(*overrides))


def test_the_example_of_the_help_passes() -> None:
    """``kegnet_pl --help`` shows settings to copy."""
    text = (CONF / "hydra" / "default.yaml").read_text()
    example = re.search(r"^\s*(\S+=\S+(?: \S+=\S+)*)\s+for example$", text, re.MULTILINE)
    assert example is not None
    RunSettings.from_config(_compose(*example.group(1).split()))


WHOLE = {
    "seed": 0, "trainer.devices": 1, "data.classes": 2, "teacher.epochs": 1, "teacher.batch_size": 1,
    "generator.epochs": 1, "generator.batch_size": 2, "generator.count": 1, "generator.noise_dim": 1,
    "generator.steps_per_epoch": 1, "generator.seed": 0, "student.epochs": 1, "student.batch_size": 1,
    "student.samples": 1, "student.validation_samples": 1, "student.baselines.samples": 1,
    "student.baselines.epochs": 1,
}  # fmt: skip
OPTIONAL = ["teacher.patience", "teacher.min_epochs", "student.patience", "student.min_epochs"]


@pytest.mark.parametrize("kind", ["too small", "float", "string", "bool", "null"])
def test_whole_numbers(kind: str) -> None:
    """All at once: a wrong setting hides no other."""
    bounds = WHOLE | (dict.fromkeys(OPTIONAL, 1) if kind != "null" else {})
    values = {
        name: {"too small": least - 1, "float": 4.0, "string": "4", "bool": True, "null": None}[kind]
        for name, least in bounds.items()
    }
    said = _problems(values)
    for name, least in bounds.items():
        null = " or null" if name in OPTIONAL else ""
        text = f"Expected `{name}` to be a whole number of at least {least}{null}, but got {values[name]!r}."
        assert text in said
    assert len(said) == len(bounds), "nothing else is wrong"


@pytest.mark.parametrize("value", [0, -1e-3, float("nan"), float("inf"), "1e-3", True, None])
def test_numbers_above_zero(value: Any) -> None:
    names = ["teacher.optimizer.lr", "generator.optimizer.lr", "student.temperature", "student.baselines.temperature"]
    automatic = ["student.optimizer.lr", "student.baselines.lr"]
    expected = {f"Expected `{name}` to be a number above 0, but got {value!r}." for name in names}
    expected |= {f"Expected `{name}` to be a number above 0, or auto, but got {value!r}." for name in automatic}
    assert set(_problems(dict.fromkeys(names + automatic, value))) == expected


def test_learning_rates_are_chosen_for_adam_alone() -> None:
    for name, lr in (("AdamW", "auto"), ("SGD", 0.1)):
        given = {"student.optimizer._target_": f"torch.optim.{name}", "student.optimizer.lr": lr}
        assert RunSettings.from_config(_config(given)).student.optimizer.lr == lr
    (line,) = _problems({"student.optimizer._target_": "torch.optim.SGD", "student.optimizer.lr": "auto"})
    assert "auto compares learning rates for Adam and AdamW" in line and "student.optimizer.lr=0.01" in line


@pytest.mark.parametrize("value", [-0.1, float("nan"), "1", None, True])
def test_numbers_of_at_least_zero(value: Any) -> None:
    names = [f"generator.objective.{term}.weight" for term in ("classifier", "decoder", "diversity", "statistics")]
    names += ["student.noise_std", "student.feature_distillation.weight"]
    expected = {f"Expected `{name}` to be a number of at least 0, but got {value!r}." for name in names}
    assert set(_problems(dict.fromkeys(names, value))) == expected


CHOICES = {
    "resume": "auto, never, require",
    "verify_store": "auto, always, never",
    "generator.parallel": "auto, vmap, sequential",
    "generator.teacher_norm": "batch, running",
    "generator.lr_scheduler": "constant, cosine",
    "student.lr_scheduler": "constant, cosine",
    "student.norm": "batch, frozen, adapt",
    "student.sampling_norm": "batch, running",
    "student.selection": "last, synthetic, real",
    "trainer.precision": "32-true, bf16-mixed, 16-mixed",
    "trainer.accelerator": "cpu, gpu",
}
BOOLEANS = [
    "generator.teacher_dropout", "generator.compile", "generator.cuda_graphs", "student.shuffle", "student.dropout",
    "student.resample_each_epoch", "student.compile", "student.cuda_graphs",
]  # fmt: skip


@pytest.mark.parametrize("value", ["other", None, 32, 1.5])
def test_choices(value: Any) -> None:
    expected = {f"Expected `{name}` to be one of {allowed}, but got {value!r}." for name, allowed in CHOICES.items()}
    expected |= {f"Expected `{name}` to be true or false, but got {value!r}." for name in BOOLEANS}
    assert set(_problems(dict.fromkeys([*CHOICES, *BOOLEANS], value))) == expected


@pytest.mark.parametrize(
    ("name", "values", "said"),
    [
        ("recipe", [None, 3], "to be a name, but got"),
        ("store", [None, "", 3], "to be a folder, but got"),
        ("sweep", [3, ["a"]], "to be a name or null, but got"),
        ("data.input_shape", [None, 32, [], [1, 32, 0], [1, 32, 32.0], ["a"], [1, 2, 3, 4, 5], [True]],
         "to be [channels, height, width] for images, [channels, length] for signals"),
        ("data.value_range", [[0], [255, 0], [0, 0], "0, 1", 255, [0, float("inf")], [False, True]],
         "to be null, or the values of a black and a white pixel, such as [0, 1], [0, 255] or [-1, 1], but got"),
        ("student.feature_distillation.layers", ["*.norm2", [], [1]],
         "to be a list of patterns of layer names or null"),
        ("student.network", ["lenet5", {"channels": 1}],
         "To choose a group, write student=..., for example student=lenet5."),
        ("generator.objective", [None, ["classifier"]], "to be losses by name, but got"),
        ("compression.rules", ["*", [{"layers": "*"}], [{"layers": "*", "rank": 1, "more": 2}], [None]],
         "to be a list of {layers: ..., rank: ...}"),
        ("compression.target", [1, 0.5, "4", True], "to be a number above 1 or null, but got"),
        ("trainer.num_nodes", [0, "1", None], "to be a whole number of at least 1, but got"),
        ("callbacks", [["csv"], None], "to be objects by name, but got"),
        ("logger", [["csv"]], "to be objects by name, but got"),
        ("callbacks.resume", [None, {"dirpath": "x"}], "to be an object with `_target_`, but got"),
        ("logger.csv", [None], "Remove it with ~logger.csv."),
        ("sources", ["kegnet", None, [["kegnet"]], [{}], [{"kegnet": 0}], [{"kegnet": True}], [{"kegnet": "1"}]],
         "to be a list of different sources: names, or mixtures with positive shares"),
        ("sources", [["normal", "normal"], ["normal", {"normal": 3}], [{"a": 1, "b": 1}, {"a": 2, "b": 2}]],
         "a list of different sources"),
        ("student", [None], "to be settings by name, but got None"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_other_values(name: str, values: list[Any], said: str) -> None:
    for value in values:
        lines = _problems({name: value})
        assert len(lines) == 1 and lines[0].startswith(f"Expected `{name}` to be ") and said in lines[0], lines


@pytest.mark.parametrize(
    ("changes", "pattern"),
    [
        ({"sources": ["gan", "kegnet"]}, r"`sources` to be a list of names from blobs, correlated, .*, but got gan"),
        ({"data.input_shape": [8], "data.value_range": [0, 1]}, r"images or volumes for `data\.value_range`.*\[8\]"),
        ({"data._target_": None}, r"`teacher\.weights`.*data=none.*teacher\.weights=FILE"),
        ({"teacher.min_epochs": 5}, r"`teacher\.patience`, since `teacher\.min_epochs` is set, but got null"),
        ({"student.min_epochs": 5}, r"`student\.patience`, since `student\.min_epochs` is set, but got null"),
        ({"student.patience": 3}, r"`student\.selection`.*synthetic or real.*`student\.patience`.*'last'"),
        ({"data._target_": None, "teacher.weights": "w", "student.selection": "real"}, r"selection=real.*data=none"),
        ({"trainer.strategy": "ddp_spawn"}, r"`trainer\.strategy` .* but got ddp_spawn"),
        ({"trainer.strategy": "ddp_notebook"}, r"`trainer\.strategy` .* but got ddp_notebook"),
        ({"trainer.limit_train_batches": 0}, r"`trainer\.limit_train_batches` above 0"),
        ({"trainer.precision": "16-mixed"}, r"bf16-mixed on a CPU, but got '16-mixed'"),
        ({"student.samples": 32_001}, r"`student\.samples` to be a multiple of generator\.count=5, but got 32001"),
        ({"student.validation_samples": 2001, "student.selection": "synthetic"},
         r"`student\.validation_samples` to be a multiple of generator\.count=5, but got 2001"),
        ({f"generator.objective.{term}.weight": 0.0 for term in ("classifier", "decoder", "diversity")},
         r"positive weight for at least one term of `generator\.objective`"),
        ({"generator.objective": {}}, r"positive weight for at least one term of `generator\.objective`"),
        ({"generator.parallel": "vmap", "trainer.gradient_clip_val": 1.0}, r"clip_algorithm` to be value.*sequential"),
        ({"quantization.format": "int8", "quantization.source": "magic"},
         r"`quantization\.source` to be one of .*procedural.*, but got magic"),
        ({"compression.rules": None}, r"a plan of compression=ratio8 for teacher=lenet5.*compression=ratio"),
        ({"compression.method": "pruning", "compression.rules": None, "compression.target": None},
         r"`compression\.target`, the ratio to reach, with compression\.method=pruning"),
        ({"compression.method": "pruning"}, r"no `compression\.rules` with.*compression=ratio"),
        ({"compression.method": "pruning", "compression.fold": True}, r"no `compression\.fold` with"),
        ({"compression.method": "pruning", "compression.when_larger": "compress"},
         r"no `compression\.when_larger` with"),
        ({"compression.method": "pruning", "compression.fit": "weights"},
         r"`compression\.fit` to be function with compression\.method=pruning"),
        ({"trainer.devices": 256}, r"`generator\.batch_size` to be a whole number of at least 512, but got 256"),
    ],
)  # fmt: skip
def test_rules_across_settings(changes: dict[str, Any], pattern: str) -> None:
    assert any(re.search(pattern, line) for line in _problems(changes)), _problems(changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"data._target_": None, "teacher.weights": "teacher.pt"},
        {"teacher.patience": 5, "teacher.min_epochs": 5},
        {"student.patience": 3, "student.selection": "synthetic"},
        {"student.samples": 32_001, "sources": ["uniform", "normal"]},
        {"student.samples": 32_001, "sources": [{"kegnet": 0.5, "normal": 0.5}]},
        {"student.validation_samples": 2001},
        {"generator.parallel": "vmap", "trainer.gradient_clip_val": 1.0, "trainer.gradient_clip_algorithm": "value"},
        {"generator.parallel": "vmap", "trainer.gradient_clip_val": 1.0, "generator.count": 1},
        {"logger": None},
        {"quantization.source": "magic"},  # nothing is quantised
    ],
)
def test_rules_across_settings_allow(changes: dict[str, Any]) -> None:
    RunSettings.from_config(_config(changes))


@pytest.mark.parametrize("part", ["teacher", "generator", "student"])
def test_processes_divide_batches(part: str) -> None:
    sizes = {f"{name}.batch_size": 24 for name in ("teacher", "generator", "student")}
    sizes |= {"trainer.devices": 4, "trainer.num_nodes": 2}
    RunSettings.from_config(_config(sizes))
    said = _problems(sizes | {f"{part}.batch_size": 20})
    expected = (
        f"Expected `{part}.batch_size` to be a multiple of the 8 processes (trainer.devices x trainer.num_nodes), but "
        f"got 20."
    )
    assert said == [expected]


@pytest.mark.parametrize(
    ("processes", "how", "spread"), [(4, "auto", True), (7, "auto", False), (7, "spread", True), (4, "shared", False)]
)
def test_generators_that_are_spread_have_whole_batches(processes: int, how: str, spread: bool) -> None:
    sizes = {"generator.batch_size": 27, "teacher.batch_size": 28, "student.batch_size": 28}
    changes = sizes | {"trainer.devices": processes, "generator.processes": how}
    if spread:
        RunSettings.from_config(_config(changes))
    else:
        assert "`generator.batch_size` to be a multiple" in _problems(changes)[0]


@pytest.mark.parametrize("name", sorted(LIGHTNING))
def test_the_trainer_refuses_what_other_settings_decide(name: str) -> None:
    assert _problems({f"trainer.{name}": 1}) == [f"Expected no setting `trainer.{name}`: {LIGHTNING[name]}."]


def test_every_problem_of_a_command_is_named_at_once() -> None:
    """Settings that are wrong by themselves and rules across groups, also of a group with a wrong setting."""
    changes = {"student.temperature": 0, "student.samples": 7, "student.patience": 2, "trainer.max_epochs": 3,
               "teacher.min_epochs": 3, "sources": ["gan", "kegnet"], "generator.noise_dim": 0}  # fmt: skip
    said = _problems(changes)
    assert len(said) == len(changes)
    for name in ("student.temperature", "student.samples", "student.patience", "trainer.max_epochs",
                 "teacher.min_epochs", "gan", "generator.noise_dim"):  # fmt: skip
        assert sum(name in line for line in said) == 1, name


def test_a_rule_is_silent_about_a_setting_that_is_wrong_by_itself() -> None:
    assert _problems({"generator.count": 0, "student.samples": 7}) == [
        "Expected `generator.count` to be a whole number of at least 1, but got 0."
    ]


def test_unknown_settings_name_the_close_one() -> None:
    said = _problems({"student.epoch": 3, "generator.objective.decoder.size": 1, "data.extra": 1, "colour": "red"})
    assert (
        said[0] == "Expected only known settings, but got `generator.objective.decoder.size`. "
        "The known settings are: weight, term."
    )
    assert said[1].endswith("but got `student.epoch`. Did you mean `student.epochs`?")
    assert said[2].startswith(
        "Expected only known settings, but got `colour`. The known settings are: seed, preset, recipe,"
    )
    assert len(said) == 3, "further settings of data are arguments of its class"


def test_missing_settings_are_named() -> None:
    config = _config({})
    del config["teacher"]["network"], config["data"]
    with pytest.raises(ConfigError) as caught:
        RunSettings.from_config(config)
    assert str(caught.value).splitlines() == [
        "Expected a value for `data`, but got none. Add data=... to the command.",
        "Expected a value for `teacher.network`, but got none. Add teacher.network=... to the command.",
    ]


def test_sources_become_shares() -> None:
    assert _read(sources=["normal", {"kegnet": 3, "normal": 1}]).sources == [
        {"normal": 1.0},
        {"kegnet": 0.75, "normal": 0.25},
    ]
    assert _read(sources={"kegnet": 0.5, "normal": 0.5}).sources == [{"kegnet": 0.5, "normal": 0.5}], "one student"


def test_plans_are_resolved_by_the_teacher() -> None:
    plans = {"lenet5": {"rules": [{"layers": "conv3", "rank": "evbmf"}], "when_larger": "compress"}}
    given = {"name": "mine", "rules": None, "target": None, "plans": plans}
    found = _read(compression=given).compression
    assert [rule.model_dump() for rule in found.rules or []] == plans["lenet5"]["rules"]
    assert (found.when_larger, found.target) == ("compress", None)
    assert _read(compression=given | {"when_larger": "keep"}).compression.when_larger == "keep", "the user's wins"
    assert _read(compression=given | {"when_larger": None}).compression.when_larger == "compress"


def test_arguments_of_the_library_have_no_group_in_their_names() -> None:
    found = read_arguments(GeneratorTrainingSettings, "generator", count=2)
    assert (found.count, found.epochs) == (2, GeneratorTrainingSettings().epochs)
    with pytest.raises(ValueError) as caught:
        read_arguments(DistillationSettings, "student", samples=0, min_epochs=3, lr_scheduler="steep")
    assert str(caught.value).splitlines() == [
        "Expected `samples` to be a whole number of at least 1, but got 0.",
        "Expected `lr_scheduler` to be one of constant, cosine, but got 'steep'.",
        "Expected a value for `patience`, since `min_epochs` is set, but got null. Set `patience`, or leave out "
        "`min_epochs`.",
    ]


@pytest.mark.parametrize(
    ("group", "option", "more"),
    [
        *[("teacher", name, []) for name in ("lenet5", "resnet14", "resnet20", "resnet56", "mlp")],
        ("teacher", "custom", ["teacher.network._target_=torch.nn.Identity"]),
        *[("generator", name, []) for name in ("image", "dense", "conv")],
        ("generator", "custom", ["generator.network._target_=torch.nn.Identity"]),
        *[("student", name, []) for name in ("tucker", "lenet5", "resnet14", "resnet20", "mlp")],
        ("trainer", "cpu", []),
        ("quantization", "none", []),
        ("compression", "ratio", ["compression.fit=weights"]),  # the file says function
        *[("compression", name, []) for name in ("evbmf", "fraction", "option1", "option2", "option3")],
    ],
)
def test_defaults_of_files_and_of_settings_are_the_same(group: str, option: str, more: list[str]) -> None:
    """A group's file says what the library does by default; a preset says otherwise."""
    config = _compose("~experiment", f"{group}={option}", *more)
    _same_defaults(getattr(RunSettings.from_config(config), group), config[group])


def _same_defaults(settings: Settings, given: dict[str, Any]) -> None:
    chosen = {"name", "network", "decoder", "objective", "rules", "plans", "target", "rank"}  # the option's own
    for name, field in type(settings).model_fields.items():
        value = getattr(settings, name)
        if isinstance(value, Settings):
            _same_defaults(value, given[field.alias or name])
        elif name == "when_larger":  # null: as in the plan, or the default
            assert given[name] in (None, field.default)
        elif name == "fold":  # off for the paper's plans
            assert given[name] is (False if given["name"].startswith("option") else field.default)
        elif name == "source":  # a name, or a mixture
            assert value == field.default
        elif name not in chosen:
            assert given.get(field.alias or name) == field.default, name


def test_defaults_of_the_run_and_of_settings_are_the_same() -> None:
    config = _compose("~experiment")
    for name in ("seed", "recipe", "store", "resume", "verify_store", "sweep"):
        assert config[name] == RunSettings.model_fields[name].default, name


def test_the_reference_page_is_that_of_the_settings() -> None:
    page = (Path(__file__).parents[2] / "docs" / "settings.md").read_text()
    assert render() == page, "make settings"
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    assert rows and all(cell.strip() for line in rows for cell in line.split("|")[1:-1]), "every setting is explained"


def test_a_missing_value_names_its_key() -> None:
    with pytest.raises(ConfigError, match=r"`data\.input_shape`.*Add data\.input_shape=\.\.\. to the command"):
        _compose("data=none")


def test_a_reference_to_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"resolve.*nowhere"):
        to_plain(OmegaConf.create({"seed": "${nowhere}"}))


def test_plain_is_plain() -> None:
    plain = to_plain(OmegaConf.create({"a": {"b": [1, "${c}"]}, "c": 3}))
    assert plain == {"a": {"b": [1, 3]}, "c": 3}
    assert type(plain["a"]) is dict
    assert type(plain["a"]["b"]) is list


def test_the_user_can_repair_wrong_settings() -> None:
    assert issubclass(ConfigError, UserError)


@pytest.mark.parametrize("name", ["train", "test"])
def test_files_without_a_reader_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"data=files for the file in `data\.{name}`, but got data=none"):
        configure("data=none", "data.input_shape=[6]", "data.classes=3", f"+data.{name}=x.npz", "teacher.weights=w")
    with pytest.raises(
        ConfigError, match=rf"got data=mnist, .* Set data=files data\.{name}=x\.npz, with data\.input_sh"
    ):
        configure("data=mnist", f"+data.{name}=x.npz")
