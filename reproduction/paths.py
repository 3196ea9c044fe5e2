"""Paths: the root of the repository, how a path is displayed, and how it is passed to Hydra."""

from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException

ROOT = Path(__file__).parents[1]


def display_path(path: Path) -> Path:
    """Return a path relative to the current folder if it lies below it, and absolute otherwise."""
    path = path.resolve()
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def hydra_value(path: Path) -> str:
    """Return a path as the value of a Hydra override, in quotes if Hydra cannot read it without them."""
    text = str(display_path(path))
    try:
        if OverridesParser.create().parse_override(f"path={text}").value() == text:
            return text
    except HydraException:
        pass
    return QuotedString(text, Quote.single).with_quotes()
