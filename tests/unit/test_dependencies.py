"""The lock and the audit of dependencies."""

import re
from importlib import metadata

import pytest

from reproduction.dependencies import find_dependencies, find_licence, lock, main


def test_the_lock_has_names_and_versions_alone() -> None:
    head, *lines = lock().splitlines()
    assert head.startswith("# Versions with Python")
    assert all(re.fullmatch(r"[a-z0-9-]+==[0-9][0-9a-z.!]*", line) for line in lines), "no addresses, no local labels"
    names = [line.partition("==")[0] for line in lines]
    assert names == sorted(names) and "kegnet-pl" not in names
    assert {"torch", "ruff", "sympy"} <= set(names), "of the library, of its development, and of torch"


def test_extras_decide_what_is_needed() -> None:
    assert "ruff" not in find_dependencies("kegnet_pl") and "ruff" in find_dependencies("kegnet_pl[dev]")


def test_the_audit_names_licences(capsys: pytest.CaptureFixture[str]) -> None:
    assert find_licence(metadata.distribution("pytest")) == "MIT"
    assert main(["lock"]) == 0 and "pytest==" in capsys.readouterr().out
