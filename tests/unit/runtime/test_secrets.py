"""Secrets in records."""

import json
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from kegnet_pl.api.checkpoints import load_network, save_network
from kegnet_pl.pipeline.configuration import as_written, conceal_hydra_files, to_plain
from kegnet_pl.pipeline.store import Store
from kegnet_pl.runtime import secrets
from kegnet_pl.runtime.secrets import conceal


@pytest.fixture(autouse=True)
def planted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(secrets, "_read", {})
    monkeypatch.setenv("SOMEWHERE", "mellon-mellon")
    monkeypatch.setenv("HF_TOKEN", "hf_1234567890")
    monkeypatch.setenv("SHORT_TOKEN", "1")


def test_what_is_read_from_the_environment_stays_as_written() -> None:
    cfg = OmegaConf.create(
        {
            "a": "${oc.env:SOMEWHERE}/x",
            "b": "${a}",
            "c": "${oc.env:NOT_SET_ANYWHERE,default}",
            "n": 3,
            "d": {"e": "${n}"},
        }
    )
    assert to_plain(cfg) == {"a": "mellon-mellon/x", "b": "mellon-mellon/x", "c": "default", "n": 3, "d": {"e": 3}}
    where = "${oc.env:SOMEWHERE}/x"
    assert as_written(cfg) == {"a": where, "b": where, "c": "default", "n": 3, "d": {"e": 3}}
    assert OmegaConf.create({"a": "${oc.env:SOMEWHERE}"}).a == "mellon-mellon", "resolved again afterwards"


def test_secrets_are_known_by_name_and_by_use() -> None:
    assert conceal("mellon-mellon 1") == "mellon-mellon 1"
    to_plain(OmegaConf.create({"a": "${oc.env:SOMEWHERE}"}))
    value = {"_target_": "mellon-mellon", "x": ["a mellon-mellon", ("hf_1234567890", 1)]}
    expected = {"_target_": "mellon-mellon", "x": ["a ${oc.env:SOMEWHERE}", ["${oc.env:HF_TOKEN}", 1]]}
    assert conceal(value) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("git clone https://me:pass@host/x", "git clone https://me:***@host/x"),
        ("s3://a:b@c", "s3://a:***@c"),
        ("https:/me:pass@host", "https:/me:***@host"),
        ("https://host:8080/me@x", "https://host:8080/me@x"),
        ("a: b@c", "a: b@c"),
        ("C:/x:y@z", "C:/x:y@z"),
    ],
)
def test_passwords_in_addresses(text: str, expected: str) -> None:
    assert conceal(text) == expected


def test_a_manifest_conceals_and_its_fingerprint_does_not_change(tmp_path: Path) -> None:
    config = {"path": "hf_1234567890"}
    made = Store(tmp_path).get("teacher", config, [], lambda folder, costs: {})
    assert json.loads((made.folder / "manifest.json").read_text())["config"] == {"path": "${oc.env:HF_TOKEN}"}
    again = Store(tmp_path, "require").get("teacher", config, [], lambda folder, costs: {})
    assert again.found and again.fingerprint == made.fingerprint


def test_a_recipe_reads_the_environment_again(tmp_path: Path) -> None:
    from torch import nn

    recipe = {"_target_": "torch.nn.Linear", "in_features": 2, "out_features": 3, "device": "${oc.env:DEVICE_NAME}"}
    save_network(nn.Linear(2, 3), tmp_path, "network", recipe)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DEVICE_NAME", "cpu")
        assert load_network(tmp_path).weight.shape == (3, 2)


def test_the_files_of_hydra(tmp_path: Path) -> None:
    (tmp_path / ".hydra").mkdir()
    (tmp_path / ".hydra" / "overrides.yaml").write_text("- a=hf_1234567890\n- b=https://me:pass@host\n")
    conceal_hydra_files(tmp_path)
    assert (tmp_path / ".hydra" / "overrides.yaml").read_text() == "- a=${oc.env:HF_TOKEN}\n- b=https://me:***@host\n"
