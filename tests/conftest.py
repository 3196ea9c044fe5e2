"""Fixtures of all tests."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hydra.core.global_hydra import GlobalHydra

# The networks are tiny, and the processes of a test are several: more threads than cores only wait for each other.
torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")


def _folder(variable: str) -> Path:
    """Return the folder that an environment variable names; skip where it is not set, fail where it leads nowhere."""
    value = os.environ.get(variable)
    if value is None:
        pytest.skip(f"{variable} is not set (see docs/contributing/tests.md)")
    folder = Path(value)
    assert folder.is_dir(), f"{variable}={value} is not a folder"
    return folder


@pytest.fixture
def data_dir() -> Path:
    """Folder with real data: mnist/, fashion/, svhn/, cifar10/, uci/, unpacked."""
    return _folder("KEGNET_DATA_DIR")


@pytest.fixture
def reference_dir() -> Path:
    """Folder with golden/ (reference numbers) and teachers/ (released weights of the authors and of CIFAR-10)."""
    return _folder("KEGNET_REFERENCE_DIR")


@pytest.fixture(autouse=True)
def _clean_state() -> Iterator[None]:
    """Leave no Hydra, no process group and no decisions of a run behind."""
    torch.manual_seed(0)
    yield
    GlobalHydra.instance().clear()
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    os.environ.pop("KEGNET_STAGES", None)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what takes long, so that no process is left with it at the end."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what tests recorded: figures that are measured, not only compared."""
    recorded = [line for report in terminalreporter.stats.get("passed", []) for line in report.user_properties]
    if recorded:
        terminalreporter.section("measured")
        for name, value in recorded:
            terminalreporter.write_line(f"{name}: {value}")
