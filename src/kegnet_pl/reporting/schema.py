"""Check of rows by ``results.schema.json``, with the keywords that it uses."""

import functools
import importlib.resources
import json
import re
from collections.abc import Iterator
from typing import Any

_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,), "integer": (int,), "number": (int, float), "boolean": (bool,), "object": (dict,),
    "array": (list, tuple), "null": (type(None),),
}  # fmt: skip

_MOST = 2_000
"""Maximum number of entries of a list or dict within a row."""


@functools.cache
def read_schema() -> dict[str, Any]:
    """Return the schema of ``results.json``."""
    text = (importlib.resources.files(__package__) / "results.schema.json").read_text(encoding="utf-8")
    schema: dict[str, Any] = json.loads(text)
    return schema


def resolve(rule: dict[str, Any]) -> dict[str, Any]:
    """Return the rule that a ``$ref`` names, or the rule itself."""
    if "$ref" not in rule:
        return rule
    named: dict[str, Any] = functools.reduce(
        lambda part, key: part[key], rule["$ref"].removeprefix("#/").split("/"), read_schema()
    )
    return named | {key: value for key, value in rule.items() if key != "$ref"}


def find_faults(row: dict[str, Any]) -> Iterator[str]:
    """Yield a description for everything in a row of ``results.json`` that the schema does not allow."""
    yield from _check(row, read_schema()["items"], "")


def _check(value: Any, rule: dict[str, Any], where: str) -> Iterator[str]:
    rule = resolve(rule)
    name = where or "the row"
    types = [rule["type"]] if isinstance(rule.get("type"), str) else rule.get("type")
    if types is not None and not any(_is(value, kind) for kind in types):
        yield f"{name} is {_short(value)}, not {' or '.join(types)}"
        return
    if "enum" in rule and value not in rule["enum"]:
        yield f"{name} is {_short(value)}, not one of {', '.join(map(str, rule['enum']))}"
    elif isinstance(value, str):
        if "pattern" in rule and not re.search(rule["pattern"], value):
            yield f"{name} is {_short(value)}, which has another form"
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield from _check_range(value, rule, name)
    elif isinstance(value, dict | list) and len(value) > _MOST:
        yield f"{name} has {len(value):,} entries"
    elif isinstance(value, dict):
        yield from _check_object(value, rule, where)
    elif isinstance(value, list):
        for index, one in enumerate(value):
            yield from _check(one, rule.get("items", {}), f"{name}[{index}]")


def _is(value: Any, kind: str) -> bool:
    return isinstance(value, _TYPES[kind]) and (kind == "boolean" or not isinstance(value, bool))


def _check_range(value: float, rule: dict[str, Any], name: str) -> Iterator[str]:
    low, high = rule.get("minimum", -float("inf")), rule.get("maximum", float("inf"))
    if not low <= value <= high or value <= rule.get("exclusiveMinimum", -float("inf")):
        yield f"{name} is {_short(value)}, which is out of range"


def _check_object(value: dict[str, Any], rule: dict[str, Any], where: str) -> Iterator[str]:
    known, rest = rule.get("properties", {}), rule.get("additionalProperties", {})
    missing = [key for key in rule.get("required", ()) if key not in value]
    unknown = [str(key) for key in value if key not in known] if rest is False else []
    for title, names in (("missing", missing), ("unknown", unknown)):
        if names:
            yield f"{title} {'in ' + where if where else 'keys'}: {', '.join(map(_short, names[:8]))}"
    if len(value) < rule.get("minProperties", 0):
        yield f"{where} is empty"
    for key, one in value.items():
        yield from _check(key, rule.get("propertyNames", {}), f"{where}.{_short(key)}")
        if key in known or rest is not False:
            yield from _check(one, known.get(key, rest), f"{where}.{_short(key)}".lstrip("."))


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else repr(value) if not isinstance(value, dict | list) else "a container"
    return text if len(text) < 60 else f"{text[:57]}..."
