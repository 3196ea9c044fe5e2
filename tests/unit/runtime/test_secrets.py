"""Secrets in records."""

import json
import time
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
        ("git+https://me:p@ss@example.org/a@v1 b", "git+https://me:***@example.org/a@v1 b"),
        ("https://me:pa/ss@example.org/x", "https://me:***@example.org/x"),
        ("https://me:p@s/s@example.org/x", "https://me:***@example.org/x"),
        ("https://t0ken@example.org/x", "https://***@example.org/x"),
        ("ssh://git@example.org/x", "ssh://git@example.org/x"),
        ("https://git@example.org/x", "https://git@example.org/x"),
        ("https://example.org/a:b/c@v1", "https://example.org/a:b/c@v1"),
        ("https://example.org/?sig=a%2Fb&x=1", "https://example.org/?sig=***&x=1"),
    ],
)
def test_passwords_in_addresses(text: str, expected: str) -> None:
    assert conceal(text) == expected


HEX = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"Authorization": "Bearer abc.def"}', '{"Authorization": "Bearer ***"}'),
        ("curl -H 'authorization: Basic bWU6cGFzcw==' x", "curl -H 'authorization: Basic ***' x"),
        ("it sent Bearer abcdefgh1jklmnop to x", "it sent Bearer *** to x"),
        (f"key hf_{34 * 'a'}.", "key ***."),
        (f"ghp_{36 * 'a'} github_pat_{30 * 'b'} glpat-{20 * 'c'}", "*** *** ***"),
        (f"sk-proj-A1{30 * 'a'} AKIAABCDEFGHIJKLMNOP xoxb-{20 * '1'}", "*** *** ***"),
        ("wandb.password=p&q, r", "wandb.password=***"),
        ("- +logger.wandb.api_key='a b'\n- seed=1", "- +logger.wandb.api_key='***'\n- seed=1"),
        ("python -m x seed=1 a.secret=abc b=2", "python -m x seed=1 a.secret=*** b=2"),
        (f"x: 1\n  wandb_key: {HEX}\ny: 2", "x: 1\n  wandb_key: ***\ny: 2"),
        ('{"token": "abcdefg8", "x": 1}', '{"token": "***", "x": 1}'),
        ("https://h/?token=abcdefg8&x=1", "https://h/?token=***&x=1"),
    ],
)
def test_what_looks_like_a_secret_is_hidden(text: str, expected: str) -> None:
    assert conceal(text) == expected
    assert conceal(expected) == expected


@pytest.mark.parametrize(
    "text",
    [
        f"commit {HEX}", f"commit: {HEX}", f"sha256={HEX}", f"student-{HEX[:16]}", f"/data/{HEX}/hf_cache/token.txt",
        "teacher.output_key=logits", "compression.key=model.layers.12", "max_tokens=1024", "tokenizer: bert-base-v2",
        "token recognition error at: 'abcdefg8'", "unexpected token: abcdefgh", "api_key=${oc.env:MY_KEY}",
        "token: null", "credentials=/home/me/credentials2.json", "timm.models.sk-resnet-like-network-of-2020-x",
        "task-specific-learning-rate-A1-of-the-student", "hf_hub_download", "basic operations of networks",
        "Bearer tokens are hidden", "python -m kegnet_pl teacher.weights=a@b.pt store=/tmp/x:y@z", "10:30:00@host",
    ],
)  # fmt: skip
def test_hashes_paths_and_prose_stay(text: str) -> None:
    assert conceal(text) == text


def test_values_are_judged_by_the_name_of_their_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = {"output_key": "logits", "fingerprint": HEX, "pad_token": "[PAD]", "class_token": True, "password": None}
    assert conceal(plain) == plain
    given = {"a": [{"wandb_key": HEX, "hf_token": "abcdefg8"}], "password": "ab", "db_secret": "${oc.env:X}"}
    assert conceal(given) == {
        "a": [{"wandb_key": "***", "hf_token": "***"}], "password": "***", "db_secret": "${oc.env:X}"
    }  # fmt: skip
    monkeypatch.setenv("PIN_OF_MINE", "12345678")
    assert to_plain(OmegaConf.create({"a": "${oc.decode:${oc.env:PIN_OF_MINE}}"})) == {"a": 12345678}
    assert conceal({"a": 12345678, "b": 1}) == {"a": "${oc.env:PIN_OF_MINE}", "b": 1}


def test_concealing_long_texts_is_fast() -> None:
    start = time.perf_counter()
    for piece in ("a.", "sk-", "token", "https://a:b@", "key=", "Bearer ", "=", "x", "- "):
        conceal(piece * (10_000 // len(piece)))
    assert time.perf_counter() - start < 3


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
