"""Teacher cards: YAML files that describe a trained network and its inputs, for ``teacher_card=FILE``."""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from kegnet_pl.runtime.atomic_files import atomic_write
from kegnet_pl.runtime.errors import ConfigError, first_line
from kegnet_pl.runtime.secrets import conceal, conceal_password

FILE_NAME = "teacher_card.yaml"
"""Name of the card in the folder of a run."""

_TEACHER = ("name", "arch", "path", "factory", "pretrained", "weights", "outputs", "output_key", "network")
_DATA = ("input_shape", "classes", "mean", "std", "value_range")
_REQUIRED = ("teacher", "input_shape", "classes")
_PATHS = ("weights", "path")

_HEAD = """\
# Teacher card: python -m kegnet_pl teacher_card=THIS_FILE compression.target=4
# It names code that is executed: use only cards that you trust. Relative paths start in the folder of the card.
"""


def expand_card(arguments: Sequence[str]) -> list[str]:
    """Return arguments of the command line with the settings of the card in place of ``teacher_card=FILE``.

    The settings come first, so that later arguments replace them. Without ``data=...`` there is no real data.

    Raises:
        ConfigError: If there is no such card, its content is wrong, or another argument chooses the teacher.
    """
    given = [argument for argument in arguments if argument.startswith("teacher_card=")]
    if not given:
        return list(arguments)
    others = [argument for argument in arguments if argument not in given]
    if len(given) > 1 or any(argument.startswith("teacher=") for argument in others):
        raise ConfigError("Expected one teacher, but got several. Give teacher_card=FILE once, without teacher=...")
    path = Path(given[0].partition("=")[2].strip("'\"")).expanduser()
    card = read_card(path)
    settings = [f"teacher={card['teacher']}"]
    settings += [] if any(argument.startswith("data=") for argument in others) else ["data=none"]
    for group, names in (("teacher", _TEACHER), ("data", _DATA)):
        chosen = {name: card[name] for name in names if card.get(name) is not None}
        settings += [f"++{key}={_literal(value, key)}" for key, value in _flatten(group, chosen)]
    start = next(
        (number for number, text in enumerate(others) if "=" in text and not text.startswith("-")), len(others)
    )
    return [*others[:start], *settings, *others[start:]]


def read_card(path: Path) -> dict[str, Any]:
    """Return the content of a card; paths of files in its folder become absolute.

    Raises:
        ConfigError: If there is no such file, or its content is wrong.
    """
    try:
        card = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"Expected a teacher card at {path}, but it cannot be read: {first_line(error)}") from error
    known = ("teacher", *_TEACHER, *_DATA)
    if not isinstance(card, dict):
        raise ConfigError(f"Expected settings by name in {path}, but got {card!r}. A card has: {', '.join(known)}.")
    unknown = [str(key) for key in card if key not in known]
    if unknown:
        raise ConfigError(
            f"Expected the keys {', '.join(known)} in {path}, but got {', '.join(unknown)}. Remove other keys."
        )
    missing = [key for key in _REQUIRED if card.get(key) is None]
    if missing:
        raise ConfigError(f"Expected {', '.join(missing)} in {path}, but got none. Add the missing keys.")
    if not re.fullmatch(r"[\w-]+", str(card["teacher"])):
        raise ConfigError(
            f"Expected `teacher` in {path} to be an option of teacher=..., such as torchvision, timm or file, but got "
            f"{card['teacher']!r}."
        )
    holders: list[Any] = [card, card.get("network")]
    for holder in holders:
        for key in _PATHS if isinstance(holder, dict) else ():
            file = path.parent / str(holder.get(key))
            if isinstance(holder.get(key), str) and file.exists():
                holder[key] = str(file.resolve())
    return card


def write_card(
    folder: Path, teacher: Mapping[str, Any], data: Mapping[str, Any], weights: str | None, outputs: str
) -> None:
    """Write the card of a run's teacher.

    Args:
        folder: Folder of the run.
        teacher: Settings of the teacher.
        data: Settings of the data.
        weights: File of its weights, None if its constructor loads them.
        outputs: Type of its output, as it was given or found.
    """
    card: dict[str, Any] = {"teacher": "custom", "name": teacher["name"]}
    card["network"] = dict(teacher["network"])
    if isinstance(card["network"].get("path"), str):
        card["network"]["path"] = _portable(card["network"]["path"], folder)
    if weights is None:
        card["pretrained"] = True
    else:
        card["weights"] = _portable(weights, folder)
    card |= {"outputs": outputs, "output_key": teacher.get("output_key")}
    card |= {name: data.get(name) for name in _DATA}
    kept = conceal({key: value for key, value in card.items() if value is not None and key not in _PATHS})
    kept |= {key: conceal_password(card[key]) for key in _PATHS if card.get(key) is not None}
    atomic_write(folder / FILE_NAME, _HEAD + yaml.safe_dump(kept, sort_keys=False, default_flow_style=None, width=120))


def _portable(path: str, folder: Path) -> str:
    """Return a path relative to the card's folder if both are below the working directory, else as it was given."""
    here, place = Path.cwd().resolve(), folder.resolve()
    file = Path(os.path.realpath(Path(path).parent), Path(path).name)
    below = file.exists() and file.is_relative_to(here) and place.is_relative_to(here)
    return os.path.relpath(file, place) if below else path


def _flatten(prefix: str, values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        _check_name(key, prefix)
        if isinstance(value, Mapping) and value:
            yield from _flatten(f"{prefix}.{key}", value)
        else:
            yield f"{prefix}.{key}", value


def _check_name(name: Any, where: str) -> None:
    """Check that Hydra can read a name within a card."""
    if not re.fullmatch(r"\w+", str(name)):
        raise ConfigError(
            f"Expected names of letters, digits and _ in the teacher card, but got {name!r} in {where}. Rename it."
        )


def _literal(value: Any, key: str) -> str:
    """Return a value in the grammar of Hydra's overrides."""
    if isinstance(value, str):
        if "${" in value or "\n" in value:
            raise ConfigError(f"Expected a plain value for {key} in the teacher card, but got {value!r}.")
        escaped = re.sub(r"(\\*)'", r"\1\1\\'", value)
        return f"'{escaped}'"
    if isinstance(value, list):
        return f"[{','.join(_literal(item, key) for item in value)}]"
    if isinstance(value, Mapping):
        for name in value:
            _check_name(name, key)
        return f"{{{','.join(f'{name}:{_literal(item, key)}' for name, item in value.items())}}}"
    return {True: "true", False: "false", None: "null"}[value] if isinstance(value, bool | None) else repr(value)
