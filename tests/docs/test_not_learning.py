"""The page on networks that do not learn: it shows every finding that the diagnosis has."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/use/not_learning.md").read_text()


def findings() -> set[str]:
    """Collect the names of the findings that the diagnosis makes."""
    names = set()
    for path in (ROOT / "tracetorch/diagnosis").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "measured":
                name = node.args[1]
                assert isinstance(name, ast.Constant), "a name that this test cannot read"
                names.add(str(name.value))
    return names


def test_every_finding_has_a_section_and_is_repaired_there() -> None:
    assert len(findings()) > 20
    sections = dict(re.findall(r"^### (\S+)\n(.*?)(?=^##|\Z)", PAGE, flags=re.M | re.S))
    assert sections.keys() == findings()
    for name, section in sections.items():
        assert f'repair("{name}", ' in section
