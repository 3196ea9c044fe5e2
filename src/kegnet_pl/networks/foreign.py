"""Networks of torchvision, timm and Hugging Face, of Python files and of exported programs.

A run writes the recipe of its networks to ``network.json``. The recipe has no pretrained weights: weights are read from
a file of the run, and nothing is downloaded again.
"""

import ast
import importlib.util
import json
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from kegnet_pl.runtime.errors import ConfigError, first_line, no_exit

_RECIPE = "_kegnet_recipe"

PACKAGES = (
    "kegnet_pl.networks", "kegnet_pl.compression", "kegnet_pl.sources", "torch.nn", "torchvision.models",
    "torchvision.ops", "timm.models", "timm.layers", "transformers",
)  # fmt: skip
"""Packages with classes of networks and sources that files may name."""

FILE_MODULE = "_kegnet_file_"
"""Prefix of the module names of executed files."""


def recipe_of(network: nn.Module, default: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``_target_`` and arguments that rebuild a network without its weights; ``default`` if it has none."""
    return dict(getattr(network, _RECIPE, default))


def executed_file(recipe: Mapping[str, Any]) -> str | None:
    """Return the path of the Python file or program that a recipe executes; None if it executes none."""
    path = recipe.get("path")
    executes = str(recipe.get("_target_")).startswith(f"{__name__}.")
    return path if executes and isinstance(path, str) else None


def is_within(target: str, package: str) -> bool:
    """Return True if a dotted name is a package, or is within it."""
    return target == package or target.startswith(f"{package}.")


def list_own_code(specification: Any) -> list[str]:
    """Return modules and Python files, within plain values, that load only with ``trust`` in a new program."""
    found: dict[str, None] = {}
    if isinstance(specification, Mapping):
        target, path = specification.get("_target_"), executed_file(specification)
        if path is not None:
            found[path] = None
        elif isinstance(target, str) and not any(is_within(target, one) for one in (*PACKAGES, __name__, "timm")):
            found[target.rpartition(".")[0]] = None
        specification = list(specification.values())
    if isinstance(specification, list | tuple):
        found |= dict.fromkeys(name for value in specification for name in list_own_code(value))
    return list(found)


def _list_definitions(file: Path) -> list[str]:
    """Return the names of the public classes and functions of a Python file, which is not executed."""
    try:
        body = ast.parse(file.read_bytes()).body
    except (SyntaxError, ValueError):
        return []
    kinds = (ast.ClassDef, ast.FunctionDef)
    return [node.name for node in body if isinstance(node, kinds) and not node.name.startswith("_")]


def _remember(network: nn.Module, function: str, **arguments: Any) -> nn.Module:
    setattr(network, _RECIPE, {"_target_": f"{__name__}.{function}", **arguments})
    return network


def from_torchvision(arch: str, classes: int | None = None, pretrained: bool = False, **options: Any) -> nn.Module:
    """Return a classifier of torchvision.

    Args:
        arch: Name of the architecture, such as ``"resnet18"``.
        classes: Number of classes; None for the architecture's default. Pretrained weights have their own number.
        pretrained: True to download the default weights of torchvision (ImageNet).
        options: Further arguments of the architecture.

    Raises:
        ConfigError: If there is no such architecture.
    """
    import torchvision

    known = torchvision.models.list_models(module=torchvision.models)
    if arch not in known:
        raise ConfigError(f"Expected `teacher.arch` to be one of torchvision's {', '.join(known)}, but got {arch!r}.")
    given = {} if classes is None or pretrained else {"num_classes": classes}
    network = torchvision.models.get_model(arch, weights="DEFAULT" if pretrained else None, **given, **options)
    if pretrained:  # the weights change arguments of some architectures
        changed = ("transform_input", "aux_logits", "image_size")
        options |= {name: getattr(network, name) for name in changed if hasattr(network, name)}
        again = torchvision.models.get_model(arch, weights=None, **options)
        if set(again.state_dict()) != set(network.state_dict()):
            raise ConfigError(
                f"Expected an architecture that can be rebuilt without its weights, but {arch!r} then has other "
                f"layers. Use teacher=custom with your own function that returns the network."
            )
    return _remember(network, "from_torchvision", arch=arch, classes=None if pretrained else classes, **options)


def from_timm(
    arch: str, classes: int | None = None, channels: int = 3, pretrained: bool = False, **options: Any
) -> nn.Module:
    """Return a classifier of timm.

    Args:
        arch: Name of the architecture, such as ``"vit_tiny_patch16_224"``.
        classes: Number of classes; None for the architecture's default. Pretrained weights have their own number.
        channels: Channels of an image.
        pretrained: True to download the weights of timm.
        options: Further arguments of ``timm.create_model``, such as ``img_size``.

    Raises:
        ConfigError: If timm is not installed, or there is no such architecture.
    """
    try:
        import timm
    except ImportError as error:
        raise ConfigError(
            "Expected timm for teacher=timm, but it is not installed. Run: pip install 'kegnet_pl[timm]'"
        ) from error

    if not timm.is_model(arch.split(".")[0]):
        similar = ", ".join(timm.list_models(f"*{arch.split('_')[0]}*")[:8]) or "see timm.list_models()"
        raise ConfigError(f"Expected `teacher.arch` to be an architecture of timm ({similar}), but got {arch!r}.")
    given: dict[str, Any] = {} if classes is None or pretrained else {"num_classes": classes}
    network: Any = timm.create_model(arch, pretrained=pretrained, in_chans=channels, **given, **options)
    own = int(network.num_classes)
    return _remember(network, "from_timm", arch=arch, classes=own, channels=channels, **options)


def from_huggingface(path: str, **options: Any) -> nn.Module:
    """Return an image classifier of transformers with its weights.

    Args:
        path: A folder of ``save_pretrained``, or the name of a model on the Hub.
        options: Further arguments of ``AutoModelForImageClassification.from_pretrained``.

    Raises:
        ConfigError: If transformers is not installed, or there is no such image classifier.
    """
    try:
        from transformers import AutoModelForImageClassification
    except ImportError as error:
        raise ConfigError(
            "Expected transformers for teacher=huggingface, but it is not installed. Run: pip install "
            "'kegnet_pl[transformers]'"
        ) from error
    try:
        network: Any = AutoModelForImageClassification.from_pretrained(path, **options)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"Expected `teacher.path` to be a folder or a Hub name of an image classifier, but {path!r} failed: "
            f"{first_line(error)}"
        ) from error
    return _remember(network, "from_config", config=json.loads(network.config.to_json_string(use_diff=False)))


def from_config(config: Mapping[str, Any]) -> nn.Module:
    """Return an image classifier of transformers for a configuration, with new weights."""
    from transformers import AutoConfig, AutoModelForImageClassification

    values = {key: value for key, value in config.items() if key != "auto_map"}  # it names code on the Hub
    made = AutoConfig.for_model(values.pop("model_type"), **values)
    network: nn.Module = AutoModelForImageClassification.from_config(made, trust_remote_code=False)  # type: ignore[no-untyped-call]
    return _remember(network, "from_config", config=dict(config))


class ProgramNetwork(nn.Module):
    """A program of TorchScript or torch.export as a module. It has weights, but no layers that can be replaced.

    Args:
        program: What ``torch.jit.load`` or ``torch.export.load(...).module()`` returns.
    """

    def __init__(self, program: nn.Module) -> None:
        super().__init__()
        self.program = program
        self.requires_grad_(False)  # else the weights of a copied TorchScript program are results of a computation

    def forward(self, x: Tensor) -> Any:
        """Return the output of the program.

        Raises:
            ValueError: If the program was exported for another batch size or shape.
        """
        try:
            return self.program(x)
        except AssertionError as error:  # guards of torch.export
            raise ValueError(
                f"{first_line(error).rstrip('.')}. Export the program again, with a dynamic batch size: "
                f"torch.export.export(network, (x,), dynamic_shapes=({{0: torch.export.Dim('batch')}},))"
            ) from error

    def train(self, mode: bool = True) -> Self:
        """Set the mode of a TorchScript program; a program of torch.export keeps the mode that it was exported in."""
        self.training = mode
        if isinstance(self.program, torch.jit.ScriptModule):
            self.program.train(mode)
        return self


def from_program(path: str) -> nn.Module:
    """Return the network of a file of TorchScript or torch.export, with its weights.

    Raises:
        ConfigError: If the file is not such a program.
    """
    file = Path(path).resolve()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # TorchScript is deprecated
            if file.suffix == ".pt2":
                program: nn.Module = torch.export.load(file).module()
            else:
                program = torch.jit.load(file, map_location="cpu")
    except Exception as error:  # damaged files raise many kinds
        raise ConfigError(
            f"Expected `teacher.path` to be a Python file (.py), a torch.export program (.pt2) or a TorchScript "
            f"program, but {path!r} is another file, or damaged. Give a state dict as teacher.weights=FILE."
        ) from error
    return _remember(ProgramNetwork(program), "from_program", path=str(file))


def from_file(path: str, factory: str | None = None, **options: Any) -> nn.Module:
    """Return a network of a Python file, which is executed, or of a program: use only files that you trust.

    Args:
        path: The file. Python code can import modules of its folder at its top level, not inside functions that run
            later. Other files are programs, see :func:`from_program`.
        factory: Name of a class or function of a Python file that returns the network.
        options: Arguments of the factory.

    Raises:
        ConfigError: If there is no such file or factory, it returns no module, or it ends the program.
    """
    file = Path(path).resolve()
    if not file.is_file():
        raise ConfigError(
            f"Expected `teacher.path` to be a file, but found none at {path!r}. Relative paths start in the working "
            f"directory ({Path.cwd()})."
        )
    if file.suffix != ".py":
        if factory is not None or options:
            raise ConfigError(
                f"Expected a Python file in `teacher.path` for a factory and its arguments, but got {file.name}."
            )
        return from_program(path)
    if factory is None:
        names = _list_definitions(file)
        raise ConfigError(
            f"Expected `teacher.factory`, a class or function of {file.name} that returns the network, but got null."
            + (f" The file defines {', '.join(names)}." if names else "")
        )
    name = f"{FILE_MODULE}{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # as an import does, for dataclasses and copies
    sys.path.insert(0, str(file.parent))
    try:
        with no_exit(file.name):
            spec.loader.exec_module(module)
    except ImportError as error:
        raise ConfigError(
            f"Expected to import {file.name}, but it failed: {first_line(error)}. Install the missing package, or put "
            f"the missing module into the folder of {file.name}."
        ) from error
    finally:
        sys.path.remove(str(file.parent))
    make = getattr(module, factory, None)
    if not callable(make):
        names = [
            key for key, value in vars(module).items() if callable(value) and getattr(value, "__module__", "") == name
        ]
        raise ConfigError(
            f"Expected `teacher.factory` to be a class or function of {file.name} ({', '.join(names) or 'it has none'})"
            f", but got {factory!r}."
        )
    with no_exit(f"{factory} of {file.name}"):
        network = make(**options)
    if not isinstance(network, nn.Module):
        raise ConfigError(f"Expected {factory} of {file.name} to return a torch.nn.Module, but got {network!r}.")
    return _remember(network, "from_file", path=str(file), factory=factory, **options)
