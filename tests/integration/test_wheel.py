"""The built wheel runs from another directory, configuration and all."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_wheel_runs_from_another_directory(tmp_path: Path) -> None:
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    source = tmp_path / "source"  # a copy, so that building leaves nothing in the checkout
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n")
    for name in filter(None, files):
        if name.startswith(("src/", "conf/", "README", "LICENSE", "pyproject")) and (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    site = tmp_path / "site"  # pip builds the wheel of a folder and installs that
    subprocess.run([*pip, "install", "--no-deps", "--no-build-isolation", "--target", site, source], check=True)

    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(site)}
    where = "import kegnet_pl, kegnet_pl.conf; print(kegnet_pl.__file__, kegnet_pl.conf.__file__)"
    run = {"cwd": elsewhere, "env": environment, "capture_output": True, "text": True, "check": True}
    places = subprocess.run([sys.executable, "-c", where], **run).stdout.split()  # type: ignore[call-overload]
    assert all(place.startswith(str(site)) for place in places)
    done = subprocess.run([sys.executable, "-m", "kegnet_pl", "+debug=fast", "sources=[normal]"], **run)  # type: ignore[call-overload]
    assert "student (normal noise)" in done.stdout
    assert "Warning" not in done.stderr, done.stderr
    assert list(elsewhere.glob("outputs/runs/*/results.json"))
