"""Hooks of mkdocs: README, results, notebooks and linked files of the repository become parts of the site."""

import posixpath
import re
from html import unescape
from pathlib import Path

import nbformat
from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from nbconvert import MarkdownExporter
from nbconvert.preprocessors import CoalesceStreamsPreprocessor

ROOT = Path(__file__).parents[1]

_PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "CONTRIBUTING.md", "CHANGELOG.md": "CHANGELOG.md"}
"""Pages outside of ``docs`` and ``results`` -> their paths in the site."""

_FENCE = re.compile(r"(^```.*?^```)", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\((?![a-z]+:|#)([^)\s#]+)(#[^)\s]+)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are not in ``docs``."""
    pages = {ROOT / path: uri for path, uri in _PAGES.items()}
    pages |= {path: f"results/{path.name}" for path in ROOT.glob("results/*.md")}
    for path, uri in pages.items():
        files.append(File.generated(config, uri, abs_src_path=str(path)))
    exporter = MarkdownExporter()
    exporter.register_preprocessor(CoalesceStreamsPreprocessor, enabled=True)  # else a blank line follows every print
    for path in ROOT.glob("notebooks/*.ipynb"):
        body, resources = exporter.from_notebook_node(nbformat.read(path, as_version=4))
        for name, picture in resources["outputs"].items():
            body = body.replace(f"({name})", f"({path.stem}_{name})")
            files.append(File.generated(config, f"notebooks/{path.stem}_{name}", content=picture))
        files.append(File.generated(config, f"notebooks/{path.stem}.md", content=body))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point links to files of the repository at their places in the site."""
    origin = _origin(page.file)

    def move(link: re.Match[str]) -> str:
        mark, text, path, anchor = link.groups()
        target = posixpath.normpath(posixpath.join(posixpath.dirname(origin), path))
        if not (ROOT / target).is_file():  # a folder, which a site cannot show; or a picture of a notebook
            return text if (ROOT / target).is_dir() else link.group()
        uri = _place(target)
        if files.get_file_from_path(uri) is None:
            files.append(File.generated(config, uri, abs_src_path=str(ROOT / target)))
        there = posixpath.relpath(uri, posixpath.dirname(page.file.src_uri) or ".")
        return f"{mark}[{text}]({there}{anchor or ''})"

    parts = _FENCE.split(markdown)
    return "".join(part if part.startswith("```") else _LINK.sub(move, part) for part in parts)


def on_page_content(html: str, page: Page, **_: object) -> str:
    """Turn the parts of docstrings that are no Markdown into HTML: formulas (as MathML), roles, literal blocks."""
    if page.file.src_uri != "reference/api.md":
        return html
    html = re.sub(r"<p>\.\. math::(.*?)</p>", lambda math: f"<p>{_mathml(math[1], 'block')}</p>", html, flags=re.DOTALL)
    html = re.sub(r":math:<code>(.*?)</code>", lambda math: _mathml(math[1], "inline"), html)
    return re.sub(r"::(?=</p>)", ":", re.sub(r":(?:class|func|meth|mod|attr|data|exc):(?=<code>)", "", html))


def _mathml(formula: str, display: str) -> str:
    text: str = convert(unescape(" ".join(formula.split())), display=display)
    return text


def _origin(file: File) -> str:
    """Return the path of a page in the repository."""
    if file.abs_src_path is None:
        return file.src_uri.replace(".md", ".ipynb")
    return Path(file.abs_src_path).relative_to(ROOT).as_posix()


def _place(path: str) -> str:
    """Return the path in the site of a file of the repository."""
    if path.startswith("notebooks/"):
        return path.replace(".ipynb", ".md")
    return _PAGES.get(path, path.removeprefix("docs/"))
