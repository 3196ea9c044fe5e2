"""Check of the code that files may name: an allow-list, and code that the user trusts."""

import os
import pydoc
import re
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from kegnet_pl.networks.foreign import FILE_MODULE
from kegnet_pl.runtime.errors import UserError
from kegnet_pl.runtime.safe_files import printable

_CLASSES = (
    "kegnet_pl.networks", "kegnet_pl.compression", "kegnet_pl.sources", "torch.nn", "torchvision.models",
    "torchvision.ops", "timm.models", "timm.layers", "transformers",
)  # fmt: skip
"""Packages whose classes of networks, and of sources, files may name."""

_FUNCTIONS = ("torchvision.models", "timm.models", "timm.create_model")
"""Packages whose functions that return a network files may name."""

_FACTORIES = tuple(f"kegnet_pl.networks.foreign.{name}" for name in ("from_torchvision", "from_timm", "from_config"))

_VARIABLE = re.compile(r"\$\{oc\.env:(\w+)\}")


TRUST_HELP = "modules, classes and Python files whose code the files of the run may use"


class UntrustedCodeError(UserError):
    """A file names code that is neither on the allow-list nor trusted by the user."""


def read_recipe(recipe: Any, where: Path, trust: Collection[str] = ()) -> dict[str, Any]:
    """Return ``_target_`` and arguments of a network in a file, if the file may name that code.

    Args:
        recipe: Content of the file. ``${oc.env:NAME}`` is read from the environment; other variables are refused.
        where: The file, for messages.
        trust: Modules, classes and Python files that the user trusts.

    Raises:
        UntrustedCodeError: If it names other code.
        UserError: If it is not a recipe.
    """
    if not isinstance(recipe, dict) or not isinstance(recipe.get("_target_"), str):
        raise UserError(
            f"Expected `_target_` and arguments of a network in {printable(where)}, but got none. The file is damaged."
        )
    check_code(recipe, where, trust)
    resolved: dict[str, Any] = _resolve(recipe, where)
    return resolved


def check_code(specification: Any, where: Path, trust: Collection[str] = ()) -> None:
    """Check every ``_target_`` within plain values of a file, at any depth; see :func:`read_recipe`.

    Raises:
        UntrustedCodeError: If one is neither on the allow-list nor trusted.
    """
    if isinstance(specification, Mapping):
        if "_target_" in specification and not _is_allowed(specification, trust):
            _refuse(specification, where)
        specification = list(specification.values())
    if isinstance(specification, list | tuple):
        for value in specification:
            check_code(value, where, trust)


def _is_allowed(specification: Mapping[str, Any], trust: Collection[str]) -> bool:
    target, path = specification["_target_"], specification.get("path")
    if not isinstance(target, str) or not re.fullmatch(r"\w+(\.\w+)+", target):
        return False
    if target.startswith("kegnet_pl.networks.foreign."):  # some of them execute a file
        files = {os.path.realpath(entry) for entry in trust if os.sep in entry or "." in entry}
        executed = [module for name, module in list(sys.modules.items()) if name.startswith(FILE_MODULE)]
        files |= {os.path.realpath(str(module.__file__)) for module in executed}
        return target in _FACTORIES or (isinstance(path, str) and os.path.realpath(path) in files)
    if any(_is_within(target, entry) for entry in trust):
        return True
    if any(_is_within(target, package) for package in (*_CLASSES, *_FUNCTIONS)):
        return _is_network(_find(target))
    return _is_imported(target)


def _is_within(target: str, package: str) -> bool:
    return target == package or target.startswith(f"{package}.")


def _find(target: str) -> Any:
    try:
        return pydoc.locate(target)
    except Exception:  # there is no such object; instantiation reports it
        return None


def _is_network(found: Any) -> bool:
    """Return True for a class of networks or sources, or a function that makes networks, defined in the allow-list."""
    module = str(getattr(found, "__module__", ""))
    if isinstance(found, type):
        return _makes_samples_or_answers(found) and any(_is_within(module, one) for one in _CLASSES)
    return callable(found) and any(_is_within(module, one) for one in ("torchvision.models", "timm.models"))


def _is_imported(target: str) -> bool:
    """Return True for a class of networks or sources in the user's own module, if the program has imported it."""
    name, _, attribute = target.rpartition(".")
    module = sys.modules.get(name)
    file = getattr(module, "__file__", None)
    installed = file is None or bool(set(Path(file).parts) & {"site-packages", "dist-packages"})
    standard = name.partition(".")[0] in (*sys.stdlib_module_names, "kegnet_pl", "torch", "torchvision", "timm")
    found = getattr(module, attribute, None)
    if (installed or standard) and name != "__main__":
        return False
    return isinstance(found, type) and _makes_samples_or_answers(found) and found.__module__ == name


def _makes_samples_or_answers(found: type) -> bool:
    from kegnet_pl.sources import SyntheticSource

    return issubclass(found, nn.Module | SyntheticSource)


def _refuse(specification: Mapping[str, Any], where: Path) -> None:
    target, path = printable(specification["_target_"], 200), specification.get("path")
    is_file = target.startswith("kegnet_pl.networks.foreign.") and isinstance(path, str)
    entry = printable(path, 200) if is_file else target.rpartition(".")[0] or target
    raise UntrustedCodeError(
        f"Expected a network of kegnet_pl, torch.nn, torchvision, timm or transformers in {printable(where)}, but it "
        f"names {target}{f' with {entry}' if is_file else ''}: this code would run. If you trust it, pass "
        f"trust=[{entry!r}] (command line: --trust {entry}), or import the module first if it is yours."
    )


def _resolve(value: Any, where: Path) -> Any:
    if isinstance(value, str):
        text = _VARIABLE.sub(lambda match: os.environ.get(match[1], match[0]), value)
        if "${" in text:
            raise UntrustedCodeError(
                f"Expected plain arguments in {printable(where)}, but got {printable(text, 100)}. Set that environment "
                f"variable, or write a plain value."
            )
        return text
    if isinstance(value, dict):
        return {key: _resolve(one, where) for key, one in value.items()}
    return [_resolve(one, where) for one in value] if isinstance(value, list) else value
