"""Every picture of a page says in words what it shows, and a cell below asserts it."""

from __future__ import annotations

import ast
import re
from collections.abc import Collection
from typing import Any

import pytest

from tests.docs.pages import DOCS, notebook

PATHS = [path for path in DOCS.rglob("*.md") if "{code-cell}" in path.read_text()]
PAGES = sorted(str(path.relative_to(DOCS).with_suffix("")) for path in PATHS)
DRAWS = re.compile(r"\bsubplots\(|\bresponses\(\{|\.figure\b(?!_)|\bplt\.figure\(")


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
