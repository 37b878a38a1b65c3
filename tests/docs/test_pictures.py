"""Every picture of a page says in words what it shows, and a cell asserts it."""

from __future__ import annotations

import re

import pytest

from tests.docs.pages import DOCS, notebook

PATHS = [path for path in DOCS.rglob("*.md") if "{code-cell}" in path.read_text()]
DRAWS = re.compile(r"^[^ #\n][^#\n]*(\bsubplots\(|\.figure;?$|\bplt\.figure\()", re.MULTILINE)


@pytest.mark.parametrize("page", sorted(str(p.relative_to(DOCS).with_suffix("")) for p in PATHS))
def test_every_picture_is_described_and_asserted(page: str) -> None:
    cells = [cell for cell in notebook(page).cells if cell.cell_type == "code"]
    for cell, below in zip(cells, [*cells[1:], None], strict=True):
        text = cell.metadata.get("alt")
        assert text or not DRAWS.search(cell.source)
        if text:
            assert re.fullmatch(r"[A-Z0-9`].{20,}\.", text)
            assert "assert " in cell.source + (below.source if below else ""), text
