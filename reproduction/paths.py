"""Paths: the root of the repository, and paths as values of Hydra overrides."""

from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException

from kegnet_pl.runtime.environment import display_path

ROOT = Path(__file__).parents[1]


def hydra_value(path: Path) -> str:
    """Return a path as the value of a Hydra override, in quotes if Hydra cannot read it without them."""
    text = str(display_path(path))
    try:
        if OverridesParser.create().parse_override(f"path={text}").value() == text:
            return text
    except HydraException:
        pass
    return QuotedString(text, Quote.single).with_quotes()
