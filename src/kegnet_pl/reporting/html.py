"""Rendering of templates: HTML pages that are one file, with pictures."""

import base64
import hashlib
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup
from matplotlib.figure import Figure

from kegnet_pl import __version__
from kegnet_pl.reporting.style import house_style, to_svg
from kegnet_pl.runtime.atomic_files import atomic_write
from kegnet_pl.runtime.safe_files import printable, read_png

_MOST_PICTURE = 16 * 2**20
"""Maximum size of a picture in a page, in bytes."""

_ENVIRONMENT = Environment(
    loader=PackageLoader("kegnet_pl.reporting"),
    autoescape=select_autoescape(),
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_ENVIRONMENT.filters["percent"] = lambda value: "not measured" if value is None else f"{100 * value:.2f} %"
_ENVIRONMENT.filters["markdown"] = lambda value: _escape_markdown(printable(value))


_SCRIPT = _ENVIRONMENT.get_template("page.js").render()
_HASH = base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode()
"""Hash of the only script that a browser may run in a page, whatever texts from files are in it."""


def _escape_markdown(text: str) -> str:
    """Return a text in which no character marks up Markdown or HTML."""
    for char, entity in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;")):
        text = text.replace(char, entity)
    return re.sub(r"([\\`*\[\]|~#$]|(?<![^\W_])_|_(?![^\W_])|!(?=\[))", r"\\\1", text)


def write_page(template: str, path: Path, title: str, sections: Sequence[tuple[str, str]], **values: Any) -> Path:
    """Render a template into one self-contained file.

    Args:
        template: Name of a file in ``templates``.
        path: Path of the page, which is returned.
        title: Title of the page.
        sections: Identifiers and names of the sections that its head links to.
        values: Values of the template.
    """
    page = {"title": title, "sections": sections, "version": __version__, "script": Markup(_SCRIPT), "hash": _HASH}
    text = render(template, **page, **values)
    text = re.sub(r"(?<=\d) %", "\N{NO-BREAK SPACE}%", text)  # a number and its unit stay on one line
    atomic_write(path, text)
    return path


def render(template: str, **values: Any) -> str:
    """Return the text of a template of the folder ``templates``; values are escaped in HTML."""
    return _ENVIRONMENT.get_template(template).render(**values)


def embed(path: Path, folder: Path) -> str:
    """Return a PNG file within a folder as a data URL.

    Raises:
        RefusedFileError: If it is outside the folder, or not a PNG file.
    """
    return f"data:image/png;base64,{base64.b64encode(read_png(path, folder, _MOST_PICTURE)).decode()}"


def link_to(path: str) -> str:
    """Return a relative path as an address: no part of it is read as a scheme, such as ``javascript:``."""
    return quote(path.encode(errors="surrogateescape"))


def draw(title: str, make: Callable[..., Figure], data: Any, *more: Any) -> Markup | None:
    """Return a picture for a page in two shapes: one for a screen, the other for a phone. None where data is empty.

    Args:
        title: Description for screen readers.
        make: Draws the picture of its arguments; ``narrow=True`` is for a phone.
        data: First argument of ``make``.
        more: Further arguments.
    """
    if not data:
        return None
    with house_style():
        wide, narrow = to_svg(make(data, *more), title), to_svg(make(data, *more, narrow=True), title, " narrow")
    return Markup(f'<div class="on-wide">{wide}</div><div class="on-narrow">{narrow}</div>')
