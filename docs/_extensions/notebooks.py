"""Write the notebook (.ipynb) of executed pages beside the built page, and link to it there."""

from __future__ import annotations

import hashlib
import posixpath
import re
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import nbformat
from myst_nb.core.read import is_myst_markdown_notebook, read_myst_markdown_notebook
from myst_parser.config.main import MdParserConfig
from nbformat import NotebookNode
from sphinx.application import Sphinx

INSTALL = "pip install -e '.[examples]'"


def digest(*folders: Path) -> str:
    """Hash the Python sources in folders, which pages run.

    The cache of executed pages compares a page with what it was, and not the code that it calls.
    """
    sources = hashlib.sha256()
    for folder in folders:
        for path in sorted(folder.rglob("*.py")):
            sources.update(f"{path.relative_to(folder)}\0{path.stat().st_size}\0".encode())
            sources.update(path.read_bytes())
    return sources.hexdigest()[:16]


def convert(
    text: str, page: str, site: str = "", extensions: Sequence[str] = ("colon_fence",)
) -> NotebookNode:
    """Convert the source of an executed page to a notebook without outputs.

    Args:
        text: the page, MyST Markdown.
        page: its name, ``course/1_membrane``.
        site: the site's address; links to other pages lead there.
        extensions: the syntax extensions of MyST that the page may use.
    """
    config = MdParserConfig(enable_extensions=set(extensions))
    notebook = read_myst_markdown_notebook(text, config=config)
    notebook.metadata = nbformat.from_dict(
        {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    )
    note = f"The page [{page}]({site}{page}.html) as a notebook. " if site else ""
    note += f"It needs traceTorch: from a clone of its repository, `{INSTALL}`."
    notebook.cells.insert(0, nbformat.v4.new_markdown_cell(note))
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number}"  # nbformat's are random, and no two builds would be equal
        if cell.cell_type == "markdown" and site:
            cell.source = _absolute_links(cell.source, page, site)
        # JupyterLab folds what the page folds, and what it leaves out: what is asserted of pictures
        if {"hide-cell", "remove-cell"} & set(cell.metadata.get("tags", [])):
            cell.metadata.jupyter = {"source_hidden": True, "outputs_hidden": True}
    nbformat.validate(notebook)
    return notebook


def _absolute_links(markdown: str, page: str, site: str) -> str:
    """Replace links to other pages' sources by links to the site."""

    def absolute(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(page), match[1]))
        return f"]({site}{target}.html{match[2] or ''})"

    return re.sub(r"\]\((?!\w+:)([^)#\s]+)\.md(#[^)\s]*)?\)", absolute, markdown)


def add_notebook(app: Sphinx, page: str, template: str, context: dict[str, Any], tree: Any) -> None:
    """Write the notebook of one page and put the link below its title."""
    if tree is None or not any(fnmatch(page, p) for p in app.config.notebooks_pages):
        return
    text = Path(app.env.doc2path(page)).read_text(encoding="utf-8")
    if not is_myst_markdown_notebook(text):
        return
    target = Path(app.builder.get_outfilename(page)).with_name(f"{posixpath.basename(page)}.ipynb")
    target.parent.mkdir(parents=True, exist_ok=True)
    notebook = convert(text, page, app.config.html_baseurl, app.config.myst_enable_extensions)
    nbformat.write(notebook, target)
    link = f'<p><a href="{target.name}" download>Download this page as a notebook</a></p>'
    context["body"] = context["body"].replace("</h1>", f"</h1>\n{link}", 1)


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect to Sphinx; ``notebooks_pages`` lists patterns of page names."""
    app.add_config_value("notebooks_pages", [], "html", types=[list])
    app.connect("html-page-context", add_notebook)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
