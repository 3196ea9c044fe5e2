"""Prints the reference page of all settings: ``python -m kegnet_pl.settings > docs/settings.md``."""

from collections.abc import Iterator
from typing import Any, get_args, get_origin

from kegnet_pl.settings.base import Settings
from kegnet_pl.settings.messages import describe, is_group
from kegnet_pl.settings.run import RunSettings

_HEAD = """# Settings

This page lists every setting of a run with its default, its allowed values and its meaning. On the command line, write
for example `student.epochs=20`. `python -m kegnet_pl --cfg job` prints the values of all settings. The functions of the
library accept the settings of `generator` and `student` as keyword arguments. A preset (`experiment=...`, a file in
`conf/experiment`) sets many of them. `make settings` generates this page from `kegnet_pl.settings`.
"""


def render() -> str:
    """Return the page in Markdown."""
    return _HEAD + "".join(_sections(RunSettings, ""))


def _sections(model: type[Settings], prefix: str) -> Iterator[str]:
    """Yield the section of a group, and those of the groups in it."""
    title = f"`{prefix.rstrip('.')}`" if prefix else "Run"
    rows, groups = [], []
    for name, field in model.model_fields.items():
        key = field.alias or name
        inner = _inner_group(field.annotation)
        if inner is not None:
            groups.append((inner[0], f"{prefix}{key}{inner[1]}."))
        if is_group(field.annotation):
            continue
        default = "required" if field.is_required() else f"`{_show(field.get_default(call_default_factory=True))}`"
        allowed = describe(field.annotation, [field])
        rows.append(f"| `{key}` | {default} | {allowed} | {_meaning(model, name)} |")
    summary = " ".join((model.__doc__ or "").split("\n\n")[0].split())
    yield f"\n## {title}\n\n{summary}\n\n| Setting | Default | Allowed | Meaning |\n| --- | --- | --- | --- |\n"
    yield "\n".join(rows) + "\n"
    for group, path in groups:
        yield from _sections(group, path)


def _inner_group(annotation: Any) -> tuple[type[Settings], str] | None:
    """Return the group that a field holds, and what follows the field's name in the path to it."""
    if is_group(annotation):
        return annotation, ""
    if get_origin(annotation) is dict and is_group(get_args(annotation)[1]):
        return get_args(annotation)[1], ".NAME"
    return None


def _meaning(model: type[Settings], name: str) -> str:
    """Return the description of a field; a group that only changes its default inherits it."""
    fields = [base.model_fields.get(name) for base in model.__mro__ if issubclass(base, Settings)]
    return next((" ".join(field.description.split()) for field in fields if field and field.description), "")


def _show(value: Any) -> str:
    """Return a default as the command line writes it."""
    words = {None: "null", True: "true", False: "false"}
    return words[value] if value is None or isinstance(value, bool) else str(value)


if __name__ == "__main__":
    print(render(), end="")  # noqa: T201
