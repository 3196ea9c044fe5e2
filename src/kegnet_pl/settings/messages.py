"""Error messages of settings: a line for each problem with the allowed values, the given value and a remedy."""

import difflib
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, TypeGuard, TypeVar, Union, get_args, get_origin

import annotated_types as at
from pydantic import Field, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from kegnet_pl.settings.base import Settings

_KINDS: dict[Any, str] = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}

Location = tuple[int | str, ...]
Chosen = TypeVar("Chosen", bound=Settings)


def explain(error: ValidationError, model: type[Settings], values: Mapping[str, Any]) -> str:
    """Return a line for each problem of single settings and of rules across them.

    ``error`` was raised by ``model.model_validate(values)``.
    """
    errors = error.errors(include_url=False)
    single = [found for found in errors if found["type"] != "complete"]
    lines = [_explain_one(found["type"], found["loc"], model, values) for found in single]
    lines += [line for found in errors if found["type"] == "complete" for line in found["msg"].splitlines()]
    lines += _broken_rules(_valid_part(model, values, [found["loc"] for found in single]))
    return "\n".join(dict.fromkeys(lines))


def read_arguments(model: type[Chosen], part: str, renamed: Mapping[str, str] | None = None, **values: Any) -> Chosen:
    """Return the settings that keyword arguments of a function of the library describe.

    Args:
        model: Class of the settings.
        part: Name of the group in the configuration; messages for the library leave it out.
        renamed: Name of a setting -> name of the argument, where they differ.
        values: Arguments by name.

    Raises:
        ValueError: If values are wrong. The message has a line for each, with the allowed and the given value.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        message = explain(error, model, values).replace(f"`{part}.", "`")
        for setting, argument in (renamed or {}).items():
            message = message.replace(f"`{setting}`", f"`{argument}`")
        raise ValueError(message) from error


def describe(annotation: Any, metadata: Sequence[Any] = ()) -> str:
    """Return the allowed values of a setting in words: ``a whole number of at least 1 or null``."""
    if get_origin(annotation) is Annotated:
        inner, *own = get_args(annotation)
        return describe(inner, [*metadata, *own])
    expected = _extra(metadata, "expected")
    arguments = get_args(annotation)
    if get_origin(annotation) in (Union, types.UnionType):
        words = expected or " or ".join(describe(part) for part in arguments if part is not types.NoneType)
        return words if types.NoneType not in arguments or "null" in words else f"{words} or null"
    if expected:
        return expected
    if get_origin(annotation) is Literal:
        return f"one of {', '.join(map(str, arguments))}"
    if get_origin(annotation) is list:
        return "a list"
    if annotation is Any:
        return "see the meaning"
    return _KINDS.get(annotation, "settings by name") + _bound(metadata)


def _extra(metadata: Iterable[Any], key: str) -> str:
    """Return a text that :func:`kegnet_pl.settings.base.explained` has stored for a field."""
    extras = [item.json_schema_extra for item in metadata if isinstance(item, FieldInfo)]
    return next((str(extra[key]) for extra in extras if isinstance(extra, dict) and extra.get(key)), "")


def _bound(metadata: Iterable[Any]) -> str:
    for item in metadata:
        for part in item.metadata if isinstance(item, FieldInfo) else [item]:
            if isinstance(part, at.Ge):
                return f" of at least {part.ge}"
            if isinstance(part, at.Gt):
                return f" above {part.gt}"
    return ""


def is_group(annotation: Any) -> TypeGuard[type[Settings]]:
    """Return True if a type is a group of settings."""
    return isinstance(annotation, type) and issubclass(annotation, Settings)


def _keys(model: type[Settings]) -> dict[str, tuple[str, FieldInfo]]:
    """Return name in the configuration -> name in Python, and the field."""
    return {field.alias or name: (name, field) for name, field in model.model_fields.items()}


def _explain_one(kind: str, loc: Location, model: type[Settings], values: Any) -> str:
    """Return the message of one error of pydantic."""
    annotation: Any = model
    metadata: list[Any] = []
    path: list[str] = []
    hint = ""
    for part in map(str, loc):
        if is_group(annotation):
            if part not in _keys(annotation):
                return _explain_unknown(part, annotation, path)
            field = _keys(annotation)[part][1]
            annotation, metadata, hint = field.annotation, [field], _extra([field], "hint")
            hint = hint if "NAME" not in hint else ""
        elif get_origin(annotation) is dict:
            hint = _extra(metadata, "hint").replace("NAME", part)
            annotation, metadata = get_args(annotation)[1], []
        else:
            break
        path.append(part)
    name = ".".join(path)
    if kind == "missing" and len(path) == len(loc):
        return f"Expected a value for `{name}`, but got none. Add {name}=... to the command."
    for part in path:
        values = values[part]
    return f"Expected `{name}` to be {describe(annotation, metadata)}, but got {values!r}. {hint}".strip()


def _explain_unknown(key: str, model: type[Settings], path: list[str]) -> str:
    parent = "".join(f"{part}." for part in path)
    known = list(_keys(model))
    close = difflib.get_close_matches(key, known, n=1)
    hint = f"Did you mean `{parent}{close[0]}`?" if close else f"The known settings are: {', '.join(known)}."
    return f"Expected only known settings, but got `{parent}{key}`. {hint}"


def _valid_part(model: type[Settings], values: Mapping[str, Any], wrong: Sequence[Location]) -> Settings:
    """Return the settings without wrong ones. Reading a wrong one raises AttributeError."""
    kept, broken = dict(values), []
    for key, (name, field) in _keys(model).items():
        inside = [loc[1:] for loc in wrong if loc and loc[0] == key]
        if is_group(field.annotation) and isinstance(values.get(key), Mapping):
            kept[key] = _valid_part(field.annotation, values[key], inside)
        elif inside:
            broken.append(name)
        elif key in values:
            adapter: TypeAdapter[Any] = TypeAdapter(Annotated[field.annotation, Field(), *field.metadata])  # type: ignore[arg-type]
            try:
                kept[key] = adapter.validate_python(values[key])
            except ValidationError:  # null that stands for the default
                broken.append(name)
    part = model.model_construct(**kept)
    for name in broken:
        vars(part).pop(name, None)
    return part


def _broken_rules(settings: Settings) -> Iterator[str]:
    """Yield the messages of all rules whose settings are right by themselves."""
    for value in vars(settings).values():
        if isinstance(value, Settings):
            yield from _broken_rules(value)
    for rule in settings.RULES:
        try:
            yield from list(rule(settings))
        except AttributeError:  # reads a setting that is wrong by itself
            continue
