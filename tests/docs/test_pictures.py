"""Every picture of a page says in words what it shows, and a cell below asserts it."""

from __future__ import annotations

import ast
import re
from collections.abc import Collection
from typing import Any

import pytest

from tests.docs.pages import DOCS, ROOT, notebook

PATHS = [path for path in DOCS.rglob("*.md") if "{code-cell}" in path.read_text()]
PAGES = sorted(str(path.relative_to(DOCS).with_suffix("")) for path in PATHS)
GALLERY = (DOCS / "gallery.md").read_text()
DRAWS = re.compile(r"\bsubplots\(|\bresponses\(\{|\.figure\b(?!_)|\bplt\.figure\(")
# pictures that a command has made, and the test of what they show
MADE = {
    "media/demo.png": "tests/examples/test_demo.py",
    "benchmarks/results/density.png": "tests/benchmarks",
}


def draws(source: str, helpers: Collection[str] = ()) -> bool:
    """Whether the code of a cell, or a helper of the page that it calls, makes a picture."""
    calls = [node for node in ast.parse(magic_free(source)).body if not is_definition(node)]
    called = {
        node.func.id
        for each in calls
        for node in ast.walk(each)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    return bool(called.intersection(helpers)) or any(
        DRAWS.search(ast.unparse(node)) for node in calls
    )


def drawing_helpers(source: str) -> set[str]:
    """Return the names of the functions of a cell that draw."""
    nodes = ast.parse(magic_free(source)).body
    functions = [node for node in nodes if isinstance(node, ast.FunctionDef)]
    return {each.name for each in functions if DRAWS.search(ast.unparse(each))}


def magic_free(source: str) -> str:
    return re.sub(r"^[%!].*$", "", source, flags=re.MULTILINE)


def is_definition(node: ast.stmt) -> bool:
    return isinstance(node, (ast.FunctionDef, ast.ClassDef))


def asserts(source: str) -> bool:
    """Whether a cell asserts something that it does not merely state."""
    tree = ast.parse(magic_free(source))
    found = [node.test for node in ast.walk(tree) if isinstance(node, ast.Assert)]
    return any(not isinstance(test, ast.Constant) for test in found)


def faults(cells: list[Any]) -> list[str]:
    """Pictures among the cells of a page without a sentence, or without an assertion below."""
    found = []
    helpers: set[str] = set()
    for number, cell in enumerate(cells):
        text = cell.metadata.get("alt")
        if ".show()" in cell.source:  # docs/_extensions/kernel/look.py looks when a cell has run
            found.append(f"a picture is shown before its cell ends:\n{cell.source}")
        helpers |= drawing_helpers(cell.source)
        if text is None and draws(cell.source, helpers):
            found.append(f"no `:alt:` in the cell that draws:\n{cell.source}")
        if text is None:
            continue
        if not re.fullmatch(r"[A-Z0-9`].{20,}\.", text):
            found.append(f"`:alt:` is no sentence: {text}")
        below = cells[number + 1] if number + 1 < len(cells) else None
        hidden = below is not None and "remove-cell" in below.metadata.get("tags", [])
        if not asserts(cell.source) and not (hidden and asserts(below.source)):
            found.append(f"nothing asserted of: {text}")
    return found


@pytest.mark.parametrize("page", PAGES)
def test_every_picture_is_described_and_asserted(page: str) -> None:
    cells = [cell for cell in notebook(page).cells if cell.cell_type == "code"]
    assert faults(cells) == []


def test_every_picture_from_a_file_is_described_and_has_a_test() -> None:
    for path in sorted(DOCS.rglob("*.md")):
        text = path.read_text()
        images = re.findall(r"!\[([^\]]*)\]\(([^)]+)\)", text)
        given = re.findall(r"\{image\} (\S+)\n:alt: (.*)\n", text)
        images += [(alt, target) for target, alt in given]
        assert text.count("{image}") + text.count("![") == len(images), path
        for alt, target in images:
            assert len(alt.split()) > 4, (path, target)
            made = (path.parent / target).resolve().relative_to(ROOT)
            assert made.as_posix() in MADE, path
            assert (ROOT / MADE[made.as_posix()]).exists()


def test_gallery_shows_pictures_that_their_pages_assert() -> None:
    """Find for each line the one picture that it names; the build repeats it with its text."""
    lines = re.findall(r"^```\{gallery\}\n(.*?)^```$", GALLERY, re.DOTALL | re.MULTILINE)
    chosen = [line.split(": ", 1) for line in "".join(lines).splitlines()]
    assert len(chosen) > 20
    assert len({tuple(each) for each in chosen}) == len(chosen)
    for page, beginning in chosen:
        assert page in PAGES
        found = re.findall(r"^:alt: (.*)$", (DOCS / f"{page}.md").read_text(), re.MULTILINE)
        assert sum(text.startswith(beginning) for text in found) == 1, (page, beginning)
