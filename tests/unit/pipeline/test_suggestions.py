"""Old spellings of the command line, and suggestions for wrong names."""

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from kegnet_pl.pipeline import suggestions
from kegnet_pl.pipeline.configuration import to_plain
from kegnet_pl.pipeline.suggestions import (
    RENAMED,
    accept_old_spellings,
    explain_options,
    refuse_old_names,
    rename,
    suggest,
)
from kegnet_pl.runtime.errors import ConfigError


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("+experiment=svhn_resnet", "experiment=svhn_resnet"),
        ("-m +experiment=svhn_resnet,mnist_lenet seed=0,1", "-m experiment=svhn_resnet,mnist_lenet seed=0,1"),
        ("compression=ratio -m compression.target=2,4", "-m compression=ratio compression.target=2,4"),
        ("seed=0,1 --multirun", "--multirun seed=0,1"),
        ("+experiment=letter_mlp +debug=fast", "experiment=letter_mlp debug=fast"),
        ("recipe=fast +experiment=svhn_resnet", "experiment=svhn_resnet"),
        ("+experiment=svhn_resnet seed=1 recipe=paper", "experiment=paper/svhn_resnet seed=1"),
        ("experiment=svhn_resnet recipe=strict", "experiment=strict/svhn_resnet"),
        ("-m +experiment=svhn_resnet recipe=strict,fast", "-m experiment=strict/svhn_resnet,svhn_resnet"),
        ("-m +experiment=svhn_resnet,mnist_lenet recipe=strict,fast",
         "-m experiment=strict/svhn_resnet,strict/mnist_lenet,svhn_resnet,mnist_lenet"),
        ("recipe=strict", "recipe=strict"),
        ("sources={kegnet:0.5,normal:0.5}", "sources=[{kegnet:0.5,normal:0.5}]"),
        ("sources=[{kegnet:0.5,normal:0.5},normal]", "sources=[{kegnet:0.5,normal:0.5},normal]"),
        ("recipe=mine +experiment=svhn_resnet", "recipe=mine experiment=svhn_resnet"),
        ("experiment=paper/svhn_resnet recipe=paper", "experiment=paper/svhn_resnet recipe=paper"),
        ("experiment=custom/table recipe=fast", "experiment=custom/table recipe=fast"),
    ],
)  # fmt: skip
def test_old_spellings_are_accepted(old: str, new: str) -> None:
    assert accept_old_spellings(old.split()) == new.split()


@pytest.mark.parametrize(
    "command", ["recipe=fast", "recipe=paper", "recipe=paper experiment=digits_lenet", "recipe=strict,fast"]
)
def test_a_recipe_without_an_experiment_of_the_paper_is_refused(command: str) -> None:
    with pytest.raises(ConfigError, match="Expected an experiment that has a preset for recipe="):
        accept_old_spellings(command.split())


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("methods=[kegnet]", "sources=[kegnet]"),
        ("student.jitter=0.3,0.6", "student.noise_std=0.3,0.6"),
        ("+student.features.weight=3", "+student.feature_distillation.weight=3"),
        ("generator.training=together,one_by_one,auto", "generator.parallel=vmap,sequential,auto"),
        ("generator.network.adjust=none", "generator.network.output_norm=none"),
        ("~student.features", "~student.feature_distillation"),
        ("student.featuresque=3", "student.featuresque=3"),
        ("student.epochs=3", "student.epochs=3"),
        ("--config-dir", "--config-dir"),
    ],
)
def test_settings_are_renamed(old: str, new: str) -> None:
    assert rename(old) == new
    assert rename(new) == new


def test_old_names_answer_with_the_new_ones() -> None:
    old = [f"{name}=1" for name in RENAMED] + ["schedule=batch_norm", "schedule=mine"]
    with pytest.raises(ConfigError) as caught:
        refuse_old_names(["seed=1", *old])
    said = str(caught.value).splitlines()
    assert len(said) == len(old), "one line for each"
    for line, new in zip(said, RENAMED.values(), strict=False):
        assert line == f"Expected `{new}`, but got its old name. Use {new}=1."
    assert said[-2].endswith("Use experiment=custom/batch_norm.") and "custom/table" in said[-1]
    refuse_old_names([rename(name) for name in old[:-2]])


@pytest.mark.parametrize(
    ("typo", "answer"),
    [
        ("generator.epoch=2", "Did you mean generator.epochs?"),
        ("generator.epoch=2", "`generator` has: count, noise_dim"),
        ("sed=1", "Did you mean seed?"),
        ("generator.objective.diversty.weight=1", "`generator.objective` has: classifier, decoder, diversity"),
        ("generator.netwrk.noise_dim=4", "Did you mean generator.network.noise_dim?"),
        ("student.network._target_=a.B", "`student.network` is null: set student.network=..., or +"),
        ("store.dir=x", "`store` has no parts: set store=..."),
        ("experiment=svhn", "Did you mean experiment=svhn_resnet?"),
        ("experiment=paper/svhn", "Did you mean experiment=paper/svhn_resnet?"),
        ("compression=option4", "Did you mean compression=option3?"),
        ("generator=imgae", "There is no generator=imgae. Did you mean generator=image?"),
        ("teacher=mine", "There is no teacher=mine."),
        ("hydra/launcher=joblib", "pip install '.[joblib]'"),
        ("target=4", "'target' does not exist. Did you mean compression.target?"),
        ("epochs=4", "Did you mean teacher.epochs or generator.epochs or student.epochs?"),
        ("data.input_shape=3,32,32", "Hydra writes a list in square brackets. Use 'data.input_shape=[3,32,32]'."),
        ("compression.target=2,4", "compression.target=2,4 has several values. Add -m to run one job for each"),
    ],
)
def test_a_typo_lists_what_exists(typo: str, answer: str) -> None:
    (hint,) = suggest([typo])
    assert answer in hint


def test_a_wrong_option_does_not_hide_the_others() -> None:
    (hint,) = suggest(["teacher=torchvision", "teacher.arch=resnet18", "compression=prunning"])
    assert "There is no compression=prunning. Did you mean compression=pruning?" in hint


def test_several_values_are_accepted_in_a_sweep() -> None:
    assert list(suggest(["-m", "compression.target=2,4", "sources=[normal,kegnet]"])) == []
    assert list(suggest(["sources=[normal,kegnet]"])) == []


def test_dashes_in_front_of_a_setting_are_named() -> None:
    assert list(explain_options(["-m", "--config-dir", "x", "seed=1"])) == []
    first, second, third, fourth = explain_options(["--epochs", "3", "--compression.target=4", "--target", "--foo=2"])
    assert first.startswith("There is no option --epochs. Settings have no dashes: write KEY=VALUE, such as student.ep")
    assert "such as compression.target=4." in second and "such as compression.target=...." in third
    assert "such as student.epochs=20." in fourth
    for given, example in (("--compression=pruning", "compression=pruning"), ("--seed=3", "seed=3")):
        (hint,) = explain_options([given])
        assert f"such as {example}." in hint


def test_a_file_in_place_of_settings_is_named() -> None:
    (hint,) = suggest(["data=digits", "mine.yaml"])
    assert "got the file mine.yaml" in hint and "--config-dir myconf experiment=NAME" in hint


def test_paths_in_the_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    given = {"store": "~/store", "data": {"files": ["~/a.npz", "b~/c", "~", "~me/x"]}, "seed": 1}
    expected = {"store": "/home/me/store", "data": {"files": ["/home/me/a.npz", "b~/c", "~", "~me/x"]}, "seed": 1}
    assert to_plain(OmegaConf.create(given)) == expected


def test_options_of_the_user_are_known(tmp_path: Path) -> None:
    (tmp_path / "teacher").mkdir()
    (tmp_path / "teacher" / "mynet.yaml").write_text("defaults: [custom, _self_]\n")
    assert list(suggest(["--config-dir", str(tmp_path), "teacher=mynet", "seed=1"])) == []
    (hint,) = suggest([f"--config-dir={tmp_path}", "teacher=mynets"])
    assert "Did you mean teacher=mynet?" in hint


def test_a_preset_that_a_recipe_lacks_is_named() -> None:
    with pytest.raises(ConfigError, match=r"recipe=best, but got .*cifar10_resnet20 \(there is no best/cifar10_"):
        accept_old_spellings(["experiment=cifar10_resnet20", "recipe=best"])
    assert accept_old_spellings(["experiment=mnist_lenet", "recipe=best"]) == ["experiment=best/mnist_lenet"]


@pytest.mark.parametrize("argument", ["hydra/sweeper=optuna", "hparams_search=agreement"])
def test_the_extra_of_a_search_is_named_where_it_is_missing(argument: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for installed in (False, True):
        monkeypatch.setattr(suggestions, "_finds_optuna", lambda installed=installed: installed)
        assert any("pip install '.[optuna]'" in hint for hint in suggest([argument])) is not installed
    assert any("Did you mean hparams_search=latency" in hint for hint in suggest(["hparams_search=latencies"]))


def test_settings_of_chosen_groups_exist() -> None:
    given = [
        "data=files",
        "data.test=x.npz",
        "teacher=file",
        "teacher.path=n.py",
        "data.value_range=[0,1]",
        "student.foo=1",
    ]
    (hint,) = suggest(given)
    assert hint.startswith("'student.foo' does not exist.")


def test_the_option_that_has_a_setting_is_named() -> None:
    (hint,) = suggest(["data.test=x.npz"])
    assert hint.startswith("'data.test' belongs to data=files. Use data=files data.test=x.npz.")
    (hint,) = suggest(["data=mnist", "data.test=my x.npz"])
    assert hint.startswith("'data.test' belongs to data=files, but the command has data=mnist. Use data=files 'data.te")
    (hint,) = suggest(["teacher.arch=resnet18"])
    assert hint.startswith(
        "'teacher.arch' belongs to teacher=timm or teacher=torchvision. Use teacher=timm teacher.arch=resnet18 or"
    )


def test_a_tuple_is_written_as_a_list() -> None:
    (hint,) = suggest(["data.input_shape=(3,32,32)"])
    assert hint == "Hydra writes a list in square brackets. Use 'data.input_shape=[3,32,32]'."
