"""Read the executed pages of the documentation: their code cells, and what these define."""

from __future__ import annotations

import ast
import sys
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
TUTORIALS = sorted(f"tutorials/{path.stem}" for path in (DOCS / "tutorials").glob("*.md"))


def converter() -> Any:
    pytest.importorskip("myst_nb")
    return extension("notebooks")


def extension(name: str) -> Any:
    sys.path.insert(0, str(DOCS / "_extensions"))
    try:
        return import_module(name)
    finally:
        sys.path.pop(0)


@cache
def notebook(page: str) -> Any:
    return converter().read((DOCS / f"{page}.md").read_text())


def cells(page: str) -> list[str]:
    return [cell.source for cell in notebook(page).cells if cell.cell_type == "code"]


def definitions(page: str) -> dict[str, Any]:
    """Run what a page imports and defines, constants in capitals too, and nothing else."""
    namespace: dict[str, Any] = {"__name__": page}
    defining = ast.Import, ast.ImportFrom, ast.ClassDef, ast.FunctionDef
    for node in (node for cell in cells(page) for node in ast.parse(cell).body):
        targets = node.targets if isinstance(node, ast.Assign) else []
        names = [name for target in targets for name in getattr(target, "elts", [target])]
        constant = names and all(isinstance(n, ast.Name) and n.id.isupper() for n in names)
        if constant or isinstance(node, defining):
            exec(compile(ast.Module([node], []), page, "exec"), namespace)
    return namespace
