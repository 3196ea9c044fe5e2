"""Layers of packages: each package imports only those below it, and the library needs no pipeline."""

import ast
import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import kegnet_pl

SOURCE = Path(kegnet_pl.__file__).parent
CORE = {"networks", "losses", "compression", "runtime"}
ALLOWED = {
    "runtime": {"runtime"},
    "settings": {"settings", "runtime"},
    "networks": CORE,
    "losses": CORE,
    "compression": CORE,
    "sources": CORE | {"sources"},
    "data": CORE | {"sources", "data"},
    "training": CORE | {"settings", "sources", "data", "training"},
    "reporting": CORE | {"", "settings", "sources", "data", "training", "reporting"},
    "api": CORE | {"", "settings", "sources", "data", "training", "reporting", "api"},
}
"""Packages that each package may import; ``""`` is the root, with the version. The pipeline may import everything."""


def _parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _is_module(name: str) -> bool:
    path = SOURCE.parent.joinpath(*name.split("."))
    return path.is_dir() or path.with_suffix(".py").is_file()


def _imports(path: Path) -> Iterator[tuple[int, str]]:
    """Yield line and absolute name of every module of ours that a file imports, also within functions."""
    package = ".".join(path.relative_to(SOURCE.parent).parent.parts)
    for node in ast.walk(_parse(path)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            members = [f"{base}.{alias.name}" for alias in node.names]
            names = [member if _is_module(member) else base for member in members]
        else:
            continue
        yield from ((node.lineno, name) for name in dict.fromkeys(names) if name.split(".")[0] == "kegnet_pl")


def _layer(module: str) -> str:
    return [*module.split("."), ""][1]


@pytest.mark.parametrize("package", sorted(ALLOWED))
def test_a_package_imports_only_those_below_it(package: str) -> None:
    files = sorted((SOURCE / package).rglob("*.py"))
    assert files, f"{package} has no files"
    wrong = [
        f"{path.relative_to(SOURCE)}:{line} imports {module}"
        for path in files
        for line, module in _imports(path)
        if _layer(module) not in ALLOWED[package]
    ]
    assert not wrong, "\n".join(wrong)


def test_every_package_has_a_layer() -> None:
    packages = {path.relative_to(SOURCE).parts[0] for path in SOURCE.glob("*/**/*.py")}
    packages.discard("conf")  # YAML files, and a module without imports
    assert packages == {*ALLOWED, "pipeline"}


def test_imports_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "SOURCE", tmp_path / "kegnet_pl")
    path = tmp_path / "kegnet_pl/networks/example.py"
    path.parent.mkdir(parents=True)
    (tmp_path / "kegnet_pl/pipeline").mkdir()
    path.write_text(
        "import torch, kegnet_pl.data.base\n"
        "from kegnet_pl import pipeline, __version__\n"
        "def function():\n    from ..api import generators\n    from . import hooks\n"
    )
    found = list(_imports(path))
    assert found == [
        (1, "kegnet_pl.data.base"),
        (2, "kegnet_pl.pipeline"),
        (2, "kegnet_pl"),
        (4, "kegnet_pl.api"),
        (5, "kegnet_pl.networks"),
    ]
    assert [_layer(module) for _, module in found] == ["data", "pipeline", "", "api", "networks"]


def test_one_module_registers_forward_hooks() -> None:
    calls = {
        path.relative_to(SOURCE).as_posix()
        for path in SOURCE.rglob("*.py")
        for node in ast.walk(_parse(path))
        if isinstance(node, ast.Attribute) and node.attr in ("register_forward_hook", "register_forward_pre_hook")
    }
    assert calls == {"networks/hooks.py"}


_LOADED = """
import json, sys
import pytorch_lightning
# torchmetrics, which Lightning imports, loads matplotlib where it is installed. Here only our own imports count.
for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
    del sys.modules[name]
import kegnet_pl
kegnet_pl.train_generators
print(json.dumps(sorted(sys.modules)))
"""


def test_the_library_loads_no_command_line_and_no_plots() -> None:
    """Importing the library loads neither Hydra, nor the pipeline, nor matplotlib."""
    done = subprocess.run([sys.executable, "-c", _LOADED], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    loaded = set(json.loads(done.stdout))
    assert "kegnet_pl.api.generators" in loaded
    assert loaded.isdisjoint({"hydra", "kegnet_pl.pipeline", "matplotlib"})


def test_no_module_imports_what_few_commands_need_when_it_is_imported() -> None:
    """Functions import pandas, scikit-learn and TensorBoard, which load slowly, and matplotlib, except in reports."""
    rare = {"pandas", "sklearn", "tensorboard"}
    found = [
        f"{path.relative_to(SOURCE)}: {name}"
        for path in SOURCE.rglob("*.py")
        for node in _parse(path).body
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([one.name for one in node.names] if isinstance(node, ast.Import) else [node.module or ""])
        if name.split(".")[0] in rare | (set() if path.parent.name == "reporting" else {"matplotlib"})
    ]
    assert not found, "\n".join(found)
