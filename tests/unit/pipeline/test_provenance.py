"""Provenance of results: command, versions, commit."""

import platform
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest

import kegnet_pl
from kegnet_pl.pipeline import provenance
from kegnet_pl.pipeline.provenance import command_line, git_state, versions


@pytest.fixture(autouse=True)
def _ask_again() -> Iterator[None]:
    git_state.cache_clear()
    yield
    git_state.cache_clear()


def test_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    found = versions()
    assert found["python"] == platform.python_version()
    assert found["kegnet_pl"] == kegnet_pl.__version__
    assert found["torch"] == metadata.version("torch")
    assert found["hydra-core"] == metadata.version("hydra-core")
    monkeypatch.setattr(provenance, "_PACKAGES", ("torch", "no-such-package"))
    assert versions()["no-such-package"] == "not installed"


def _git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=Test", "-c", "user.email=test@example.org"]
    done = subprocess.run(["git", *identity, *arguments], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def _checkout(folder: Path) -> str:
    """Make a checkout whose only file is the source; return its commit."""
    _git(folder, "init", "-q")
    (folder / "store.py").write_text("# source")
    _git(folder, "add", "store.py")
    _git(folder, "commit", "-q", "-m", "source")
    return _git(folder, "rev-parse", "HEAD")


def test_git_state_of_a_checkout(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "provenance.py"))
    commit = _checkout(tmp_path)
    assert git_state() == {"commit": commit, "dirty": False}
    (tmp_path / "store.py").write_text("# changed")
    assert not git_state()["dirty"], "a process asks once"
    git_state.cache_clear()
    assert git_state() == {"commit": commit, "dirty": True}


def test_git_state_of_what_is_no_checkout(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "provenance.py"))
    (tmp_path / "store.py").touch()
    assert git_state() == {"commit": None, "dirty": None}


def test_git_state_inside_of_somebody_elses_checkout(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _checkout(tmp_path)
    installed = tmp_path / "venv" / "kegnet_pl"
    installed.mkdir(parents=True)
    (installed / "store.py").touch()
    monkeypatch.setattr(provenance, "__file__", str(installed / "provenance.py"))
    assert git_state() == {"commit": None, "dirty": None}


def test_git_state_without_git(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert git_state() == {"commit": None, "dirty": None}


def test_command_line_holds_no_folder_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/home/somebody/kegnet_pl/__main__.py", "+experiment=svhn_resnet", "seed=1"])
    assert command_line() == "python -m kegnet_pl +experiment=svhn_resnet seed=1"
