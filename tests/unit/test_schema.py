"""The check of a composed configuration."""

import copy
import importlib.resources
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from kegnet_pl.schema import check, to_plain
from omegaconf import DictConfig, OmegaConf

from kegnet_pl.runtime.errors import ConfigError, UserError

CONF = Path(str(importlib.resources.files("kegnet_pl.conf")))
EXPERIMENTS = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))


def _compose(*overrides: str) -> DictConfig:
    GlobalHydra.instance().clear()
    with initialize_config_module("kegnet_pl.conf", version_base="1.3"):
        return compose("config", overrides=list(overrides))


@cache
def _default() -> dict[str, Any]:
    plain = OmegaConf.to_container(_compose(), resolve=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def _config(**changes: Any) -> dict[str, Any]:
    """Return the default configuration with some values changed; ``__`` stands for the dot."""
    config = copy.deepcopy(_default())
    for name, value in changes.items():
        *path, last = name.split("__")
        node = config
        for part in path:
            node = node[part]
        assert last in node, f"{name} is no setting"
        node[last] = value
    return config


def test_default_passes() -> None:
    check(_config())


def test_there_are_experiments() -> None:
    assert {"mnist_lenet", "fashion_resnet", "svhn_resnet", "shuttle_mlp"} <= set(EXPERIMENTS)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiments_pass(name: str) -> None:
    check(to_plain(_compose(f"+experiment={name}")))


@pytest.mark.parametrize(
    "overrides",
    [
        ["+debug=fast"],
        ["trainer=ddp"],
        ["trainer=gpu", "trainer.precision=bf16-mixed"],
        ["data=none", "data.input_shape=[5]", "data.classes=2", "teacher=mlp", "compression=option1", "generator=dense",
         "teacher.weights=teacher.pt"],
        ["student=lenet5", "student.selection=synthetic", "student.patience=3", "student.min_epochs=2"],
        ["student.selection=real", "sources=[]"],
        ["teacher.patience=3", "teacher.min_epochs=10"],
    ],
    ids=lambda overrides: overrides[0],
)  # fmt: skip
def test_other_choices_pass(overrides: list[str]) -> None:
    check(to_plain(_compose(*overrides)))


def test_the_example_of_the_help_passes() -> None:
    """``kegnet_pl --help`` shows settings to copy."""
    text = (CONF / "hydra" / "default.yaml").read_text()
    example = re.search(r"^\s*(\S+=\S+(?: \S+=\S+)*)\s+for example$", text, re.MULTILINE)
    assert example is not None
    check(to_plain(_compose(*example.group(1).split())))


WHOLE = [
    ("seed", 0), ("trainer__devices", 1), ("data__classes", 2),
    ("teacher__epochs", 1), ("teacher__batch_size", 1), ("teacher__patience", 1), ("teacher__min_epochs", 1),
    ("generator__epochs", 1), ("generator__batch_size", 1), ("generator__count", 1), ("generator__noise_dim", 1),
    ("generator__steps_per_epoch", 1), ("student__epochs", 1), ("student__batch_size", 1), ("student__patience", 1),
    ("student__min_epochs", 1), ("student__samples", 1), ("student__validation_samples", 1),
    ("student__baselines__samples", 1), ("student__baselines__epochs", 1), ("generator__seed", 0),
]  # fmt: skip


@pytest.mark.parametrize(("name", "least"), WHOLE)
@pytest.mark.parametrize("kind", ["too small", "float", "string", "bool"])
def test_whole_numbers(name: str, least: int, kind: str) -> None:
    value = {"too small": least - 1, "float": 4.0, "string": "4", "bool": True}[kind]
    expected = f"`{name.replace('__', '.')}` to be a whole number of at least {least}, but got {value!r}"
    with pytest.raises(ConfigError, match=re.escape(expected)):
        check(_config(**{name: value}))


@pytest.mark.parametrize("name", [name for name, _ in WHOLE if not name.endswith(("patience", "min_epochs"))])
def test_numbers_that_must_be_given(name: str) -> None:
    with pytest.raises(ConfigError, match=f"`{name.replace('__', '.')}`.*None"):
        check(_config(**{name: None}))


@pytest.mark.parametrize("part", ["teacher", "generator", "student"])
@pytest.mark.parametrize("value", [0, -1e-3, float("nan"), float("inf"), "1e-3", True, None])
def test_learning_rates(part: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"`{part}\.optimizer\.lr` to be a number above 0, but got"):
        check(_config(**{f"{part}__optimizer__lr": value}))


@pytest.mark.parametrize("value", [0, -1.0, float("inf"), "2", None])
def test_temperature(value: Any) -> None:
    with pytest.raises(ConfigError, match=r"`student\.temperature` to be a number above 0"):
        check(_config(student__temperature=value))


@pytest.mark.parametrize("name", ["temperature", "lr"])
@pytest.mark.parametrize("value", [0, -1.0, float("nan"), "2", None])
def test_numbers_of_baselines(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"`student\.baselines\.{name}` to be a number above 0"):
        check(_config(**{f"student__baselines__{name}": value}))


@pytest.mark.parametrize("term", ["classifier", "decoder", "diversity"])
@pytest.mark.parametrize("value", [-0.1, float("nan"), "1", None])
def test_weights_of_losses(term: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"`generator\.objective\.{term}\.weight` to be a number of at least 0"):
        check(_config(**{f"generator__objective__{term}__weight": value}))


@pytest.mark.parametrize("objective", ["zeros", "empty"])
def test_an_objective_of_nothing(objective: str) -> None:
    config = _config()
    if objective == "empty":
        config["generator"]["objective"] = {}
    for term in config["generator"]["objective"].values():
        term["weight"] = 0.0
    with pytest.raises(ConfigError, match=r"positive weight for one term of `generator\.objective`"):
        check(config)


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("resume", "maybe", "auto, never, require"),
        ("resume", None, "auto, never, require"),
        ("generator__teacher_norm", "eval", "batch, running"),
        ("generator__teacher_dropout", "on", "True, False"),
        ("generator__lr_scheduler", None, "constant, cosine"),
        ("student__lr_scheduler", "steep", "constant, cosine"),
        ("student__norm", "running", "batch, frozen, adapt"),
        ("student__sampling_norm", "frozen", "batch, running"),
        ("student__resample_each_epoch", 1.5, "True, False"),
        ("student__dropout", 0.15, "True, False"),
        ("student__selection", "best", "last, synthetic, real"),
        ("trainer__precision", "16", "32-true, bf16-mixed, 16-mixed"),
        ("trainer__precision", 32, "32-true, bf16-mixed, 16-mixed"),
    ],
)
def test_choices(name: str, value: Any, allowed: str) -> None:
    expected = f"`{name.replace('__', '.')}` to be one of {allowed}, but got {value!r}"
    with pytest.raises(ConfigError, match=re.escape(expected)):
        check(_config(**{name: value}))


@pytest.mark.parametrize("value", ["*.norm2", [], [1]])
def test_layers_of_features(value: Any) -> None:
    with pytest.raises(ConfigError, match=r"`student\.feature_distillation\.layers` to be a list of patterns"):
        check(_config(student__feature_distillation__layers=value))


@pytest.mark.parametrize("value", ["kegnet", ["kegnet", "gan"], ["normal", "normal"], None, [["kegnet"]]])
def test_methods(value: Any) -> None:
    with pytest.raises(ConfigError, match="`sources` to be a list of some of uniform, normal, kegnet, but got"):
        check(_config(sources=value))


@pytest.mark.parametrize("value", [None, 32, [], [1, 32], [1, 32, 0], [1, 32, 32.0], ["a"], [1, 2, 3, 4], [True]])
def test_input_shape(value: Any) -> None:
    with pytest.raises(ConfigError, match=r"`data\.input_shape` to be \[channels, height, width\] or \[features\]"):
        check(_config(data__input_shape=value))


@pytest.mark.parametrize("part", ["teacher", "generator", "student"])
def test_batches_are_shared_out(part: str) -> None:
    good = {f"{name}__batch_size": 24 for name in ("teacher", "generator", "student")}
    check(_config(trainer__devices=8, **good))
    with pytest.raises(ConfigError, match=rf"`{part}\.batch_size` to be a multiple of the 8 processes.*got 20"):
        check(_config(trainer__devices=8, **(good | {f"{part}__batch_size": 20})))


@pytest.mark.parametrize("value", [0, 2, "1", None])
def test_a_run_is_on_one_machine(value: Any) -> None:
    with pytest.raises(ConfigError, match=r"`trainer\.num_nodes` to be 1, but got .*trainer=ddp trainer\.devices=N"):
        check(_config(trainer__num_nodes=value))


@pytest.mark.parametrize("value", ["auto", "mps", "cuda", None])
def test_accelerators(value: Any) -> None:
    with pytest.raises(ConfigError, match=r"`trainer\.accelerator` to be one of cpu, gpu, but got"):
        check(_config(trainer__accelerator=value))


@pytest.mark.parametrize(
    ("name", "instead"),
    [
        ("max_epochs", "teacher.epochs"), ("max_steps", "student.epochs"), ("min_epochs", "teacher.min_epochs"),
        ("limit_val_batches", "validation_samples"), ("logger", "group `logger`"),
        ("accumulate_grad_batches", "student.batch_size"), ("val_check_interval", "every epoch"),
    ],
)  # fmt: skip
def test_what_other_settings_decide_is_no_setting_of_the_trainer(name: str, instead: str) -> None:
    config = _config()
    config["trainer"] = config["trainer"] | {name: 1}
    with pytest.raises(ConfigError, match=rf"no setting `trainer\.{name}`: .*{instead}"):
        check(config)


def test_teacher_without_data_or_weights() -> None:
    with pytest.raises(ConfigError, match=r"`teacher\.weights`.*data=none.*teacher\.weights=FILE"):
        check(_config(data___target_=None))
    check(_config(data___target_=None, teacher__weights="teacher.pt"))


@pytest.mark.parametrize("part", ["teacher", "student"])
def test_min_epochs_mean_nothing_without_patience(part: str) -> None:
    with pytest.raises(ConfigError, match=rf"`{part}\.patience` beside `{part}\.min_epochs`"):
        check(_config(**{f"{part}__min_epochs": 5}))


def test_patience_needs_something_to_be_patient_about() -> None:
    with pytest.raises(ConfigError, match=r"`student\.selection`.*synthetic or real.*`student\.patience`.*'last'"):
        check(_config(student__patience=3))
    check(_config(student__patience=3, student__selection="synthetic"))


def test_real_selection_needs_real_data() -> None:
    with pytest.raises(ConfigError, match=r"student\.selection=real.*data=none"):
        check(_config(data___target_=None, teacher__weights="teacher.pt", student__selection="real"))


@pytest.mark.parametrize("name", ["samples", "validation_samples"])
def test_samples_are_shared_out_among_generators(name: str) -> None:
    change = {f"student__{name}": 32_001, "student__selection": "synthetic"}
    with pytest.raises(ConfigError, match=rf"`student\.{name}` to be a multiple of generator\.count=5.*got 32001"):
        check(_config(**change))
    check(_config(**change, sources=["uniform", "normal"]))


def test_validation_samples_matter_only_where_they_are_drawn() -> None:
    check(_config(student__validation_samples=2001, student__selection="last"))


def test_errors_are_the_users_to_mend() -> None:
    assert issubclass(ConfigError, UserError)


def test_missing_value_names_its_key() -> None:
    with pytest.raises(ConfigError, match=r"`data\.input_shape`.*Add data\.input_shape=\.\.\. to the command"):
        to_plain(_compose("data=none"))


def test_reference_to_nothing() -> None:
    with pytest.raises(ConfigError, match=r"resolve.*nowhere"):
        to_plain(OmegaConf.create({"seed": "${nowhere}"}))


def test_plain_is_plain() -> None:
    plain = to_plain(OmegaConf.create({"a": {"b": [1, "${c}"]}, "c": 3}))
    assert plain == {"a": {"b": [1, 3]}, "c": 3}
    assert type(plain["a"]) is dict
    assert type(plain["a"]["b"]) is list


@pytest.mark.parametrize("strategy", ["ddp_spawn", "ddp_fork", "ddp_notebook"])
def test_processes_are_started_anew(strategy: str) -> None:
    with pytest.raises(ConfigError, match=rf"`trainer\.strategy` .* but got {strategy}"):
        check(_config(trainer__strategy=strategy))


def test_nothing_to_train_on() -> None:
    config = _config()
    config["trainer"]["limit_train_batches"] = 0
    with pytest.raises(ConfigError, match=r"`trainer\.limit_train_batches` above 0"):
        check(config)


@pytest.mark.parametrize("group", ["callbacks", "logger"])
def test_callbacks_and_loggers_are_objects(group: str) -> None:
    name = next(iter(_config()[group]))
    with pytest.raises(ConfigError, match=rf"`{group}\.{name}` to be an object .* ~{group}\.{name} takes it out"):
        check(_config(**{f"{group}__{name}": None}))
    with pytest.raises(ConfigError, match=rf"`{group}` to be objects by name"):
        check(_config(**{group: ["csv"]}))


def test_generators_together_are_not_clipped_by_their_common_norm() -> None:
    config = _config(generator__parallel="vmap")
    config["trainer"]["gradient_clip_val"] = 1.0
    with pytest.raises(ConfigError, match=r"gradient_clip_algorithm` to be value.*sequential"):
        check(config)
    config["generator"]["count"] = 1
    check(config)
    config["generator"]["count"] = 2
    config["trainer"]["gradient_clip_algorithm"] = "value"
    check(config)


def test_a_missing_setting_is_told_with_what_is_there() -> None:
    config = _config()
    del config["callbacks"]
    with pytest.raises(
        ConfigError, match=r"a setting `callbacks`, but got only seed, sources, .* `callbacks` should be"
    ):
        check(config)
    with pytest.raises(ConfigError, match=r"`student\.features\.weight`, but got None where `weight` should be"):
        check(_config(student__feature_distillation=None))
