"""Prints the page of ``results.json``: ``python -m kegnet_pl.reporting > docs/reference/results_json.md``."""

from collections.abc import Iterator
from typing import Any

from kegnet_pl.reporting.schema import read_schema, resolve

_HEAD = """# results.json

Every run writes `results.json` to its folder. The file is a list of rows, one per network. `T` is the compressed
network before training. `T+TITLE` is trained on samples of the source with this title. The `results.json` of a sweep
has the rows of all jobs. Each row also has `run` (the folder of the job) and `settings` (the settings that the job
changed). `results.csv` has the same rows as a flat table. `results/*.jsonl` in the repository has one line per run of a
study.

`make settings` generates this page from the JSON schema of the rows
([results.schema.json](../../src/kegnet_pl/reporting/results.schema.json)). Rows of older versions lack the keys that
are marked with *.
"""


def render() -> str:
    """Return the page in Markdown."""
    return _HEAD + "".join(_sections("Row", "", read_schema()["items"]))


def _sections(title: str, prefix: str, rule: dict[str, Any]) -> Iterator[str]:
    """Yield the section of an object, and those of the objects in it."""
    rows, inner = [], []
    for key, given in rule["properties"].items():
        one, path = resolve(given), f"{prefix}{key}"
        mark = "" if key in rule.get("required", ()) else "*"
        rows.append(f"| `{key}`{mark} | {_values(one)} | {one.get('description', '')} |")
        if "$ref" in given:
            continue
        if "properties" in one:
            inner.append((path, one))
        elif "properties" in one.get("additionalProperties", {}):
            inner.append((f"{path}.KEY", one["additionalProperties"]))
    yield f"\n## {title}\n\n| key | value | meaning |\n| --- | --- | --- |\n" + "\n".join(rows) + "\n"
    for path, one in inner:
        yield from _sections(f"`{path}`", f"{path}.", one)


def _values(rule: dict[str, Any]) -> str:
    """Return the values that a rule allows, in words."""
    if "enum" in rule:
        return ", ".join("null" if value is None else f"`{value}`" for value in rule["enum"])
    types = [rule["type"]] if isinstance(rule["type"], str) else rule["type"]
    text = " or ".join(types)
    if "maximum" in rule:
        return f"{text}, {rule['minimum']} to {rule['maximum']}"
    return text


if __name__ == "__main__":
    print(render(), end="")  # noqa: T201
