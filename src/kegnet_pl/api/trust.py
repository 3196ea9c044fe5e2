"""Check of the code that files may name: an allow-list, and code that the user trusts."""

import os
import pydoc
import re
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from kegnet_pl.networks.foreign import FILE_MODULE, PACKAGES, executed_file, is_within
from kegnet_pl.runtime.errors import UserError
from kegnet_pl.runtime.safe_files import printable
from kegnet_pl.runtime.secrets import remember

_LOADERS = re.compile(r"pretrained|weights|checkpoint|auto_map|trust_remote_code|hub_id|url", re.IGNORECASE)
"""Arguments of networks that read or download files, which a stored network does not need."""

_FOREIGN = "kegnet_pl.networks.foreign"
_FACTORIES = tuple(f"{_FOREIGN}.{name}" for name in ("from_torchvision", "from_timm", "from_config"))

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
    target, path = specification["_target_"], executed_file(specification)
    trust = [trust] if isinstance(trust, str) else trust
    if not isinstance(target, str) or not re.fullmatch(r"\w+(\.\w+)+", target) or "\0" in (path or ""):
        return False
    if is_within(target, _FOREIGN):  # some of them execute a file
        files = {os.path.realpath(entry) for entry in trust if os.sep in entry or "." in entry}
        executed = [module for name, module in list(sys.modules.items()) if name.startswith(FILE_MODULE)]
        files |= {os.path.realpath(str(module.__file__)) for module in executed}
        if target in _FACTORIES:
            return not _reads_files(specification)
        return path is not None and os.path.realpath(path) in files
    if any(is_within(target, entry) for entry in trust):
        return True
    if target == "timm.create_model":
        return not _reads_files(specification) and _is_name_of_timm(specification.get("model_name"))
    if any(is_within(target, package) for package in PACKAGES):
        return not _reads_files(specification) and _is_network(_find(target))
    return _is_imported(target)


def _reads_files(value: Any) -> bool:
    """Return True if arguments, at any depth, make a network read or download further files."""
    if isinstance(value, Mapping):
        return any((_LOADERS.search(str(key)) and one) or _reads_files(one) for key, one in value.items())
    return isinstance(value, list | tuple) and any(_reads_files(one) for one in value)


def _is_name_of_timm(name: Any) -> bool:
    """Return True for the name of an architecture, which is no address or folder."""
    import timm

    return isinstance(name, str) and bool(re.fullmatch(r"\w+", name)) and bool(timm.is_model(name))


def _find(target: str) -> Any:
    try:
        return pydoc.locate(target)
    except Exception:  # there is no such object; instantiation reports it
        return None


def _is_network(found: Any) -> bool:
    """Return True for a class of networks or sources, or a function that makes networks, defined in the allow-list."""
    module = str(getattr(found, "__module__", ""))
    if isinstance(found, type):
        return _makes_samples_or_answers(found) and any(is_within(module, one) for one in PACKAGES)
    return _is_builder(found, module)


def _is_builder(found: Any, module: str) -> bool:
    """Return True for a function that torchvision or timm has registered as the builder of an architecture."""
    name = str(getattr(found, "__name__", ""))
    if is_within(module, "torchvision.models"):
        from torchvision.models import get_model_builder, list_models

        return name in list_models() and get_model_builder(name) is found
    if is_within(module, "timm.models"):
        import timm

        return timm.is_model(name) and timm.model_entrypoint(name) is found
    return False


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
    target, path = printable(specification["_target_"], 200), executed_file(specification)
    is_file = path is not None
    entry = printable(path, 200) if is_file else target.rpartition(".")[0] or target
    raise UntrustedCodeError(
        f"Expected a network of kegnet_pl, torch.nn, torchvision, timm or transformers in {printable(where)}, but it "
        f"names {target}{f' with {entry}' if is_file else ''}: this code would run, or read further files. If you "
        f"trust it, add --trust {entry} to the command; in Python, pass trust=[{entry!r}]"
        f"{'' if is_file else ', or import the module first if it is yours'}."
    )


def _read_variable(found: re.Match[str]) -> str:
    """Return the value of an environment variable, which no message shows from then on."""
    value = os.environ.get(found[1])
    if value is None:
        return found[0]
    remember(found[1], value)
    return value


def _resolve(value: Any, where: Path) -> Any:
    if isinstance(value, str):
        text = _VARIABLE.sub(_read_variable, value)
        if "${" in text:
            raise UntrustedCodeError(
                f"Expected plain arguments in {printable(where)}, but got {printable(text, 100)}. Set that environment "
                f"variable, or write a plain value."
            )
        return text
    if isinstance(value, dict):
        return {key: _resolve(one, where) for key, one in value.items()}
    return [_resolve(one, where) for one in value] if isinstance(value, list) else value
