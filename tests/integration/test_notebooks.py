"""The notebooks run, from an empty folder, and show what their stored outputs promise."""

import os
import shutil
import tempfile
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from tests.integration.conftest import FORKS

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))

SMALL = {
    "look_inside_a_generator": {
        "in range(30):\n    for rows": "in range(1):\n    for rows",
        "count=2, epochs=6": "count=2, epochs=1, steps_per_epoch=5",
    },
    "quickstart": {
        "in range(30):\n    for rows": "in range(1):\n    for rows",
        "count=2, epochs=4": "count=2, epochs=1, steps_per_epoch=5",
        "generators.dataset(8_000)": "generators.dataset(64)",
        "teacher, 8_000": "teacher, 64",
    },
    "read_a_sweep": {
        "in range(30):\n    for rows": "in range(1):\n    for rows",
        '"compression.target=2,4,8,16", "seed=0,1"': '"debug=fast", "compression.target=2,8", "seed=0"',
        '"student.samples=4000"': '"student.samples=128"',
        "8 of 8 runs": "2 of 2 runs",
    },
}
"""Replacements in the code of a notebook, as training takes minutes."""


def _serve(connection: str, folder: str, environment: dict[str, str], ready: Event) -> None:
    """Be a kernel: as ``python -m ipykernel_launcher``, but with torch and Lightning imported already."""
    os.setsid()  # its manager kills its whole group
    ready.set()
    os.environ.clear()
    os.environ.update(environment | {"JPY_PARENT_PID": str(os.getppid())})  # it would look for the manager's
    os.chdir(folder)
    tempfile.tempdir = None  # TMPDIR is read again
    import matplotlib
    from ipykernel.kernelapp import launch_new_instance

    matplotlib.rcParams["backend"] = "module://matplotlib_inline.backend_inline"  # read at its import otherwise
    launch_new_instance(argv=["-f", connection])


class _Kernel:
    """The process of a kernel, with the methods of ``Popen`` that its manager calls."""

    stdin = stdout = stderr = None

    def __init__(self, process: BaseProcess) -> None:
        self._process, self.pid = process, process.pid
        self.kill, self.terminate = process.kill, process.terminate

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self) -> int | None:
        self._process.join()
        return self.poll()

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)


def _fork_kernel(command: list[str], *, cwd: Path, env: dict[str, str], **_: Any) -> _Kernel:
    ready = FORKS.Event()
    connection = command[command.index("-f") + 1]
    process = FORKS.Process(target=_serve, args=(connection, str(cwd), dict(env), ready))
    process.start()
    assert ready.wait(60)
    return _Kernel(process)


def test_all_three_are_there() -> None:
    assert [path.stem for path in NOTEBOOKS] == list(SMALL)


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jupyter_client.provisioning.local_provisioner.launch_kernel", _fork_kernel)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    shutil.copy(path, tmp_path)
    notebook = nbformat.read(tmp_path / path.name, as_version=4)
    stored = [[output["output_type"] for output in cell.get("outputs", [])] for cell in notebook.cells]
    assert any(stored), "kept with its outputs: make notebooks"
    assert all("error" not in kinds for kinds in stored)
    for large, small in SMALL[path.stem].items():
        (cell,) = (cell for cell in notebook.cells if cell.cell_type == "code" and large in cell.source)
        cell.source = cell.source.replace(large, small)
    NotebookClient(notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": tmp_path}}).execute()
    for cell, kinds in zip(notebook.cells, stored, strict=True):
        now = {output["output_type"] for output in cell.get("outputs", [])}
        assert now == set(kinds), cell["source"]
        assert "\x1b" not in str(cell.get("outputs")), "plain lines, no bars for a terminal"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_names_no_machine(path: Path) -> None:
    text = path.read_text()
    assert len(text) < 1_000_000
    assert not any(word in text for word in ("/home/", "/work/", "/tmp/", "/root/"))
