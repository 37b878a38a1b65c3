"""The page on networks that do not learn: it shows every finding that the diagnosis has."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/use/not_learning.md").read_text()


def findings() -> dict[str, set[str]]:
    """Collect the names of the findings that the diagnosis makes, each with its severities."""
    names: dict[str, set[str]] = {}
    for path in (ROOT / "tracetorch/diagnosis").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "measured":
                name = node.args[1]
                assert isinstance(name, ast.Constant), "a name that this test cannot read"
                severities = {
                    each.value
                    for each in ast.walk(node.args[0])
                    if isinstance(each, ast.Constant) and isinstance(each.value, str)
                }
                names.setdefault(str(name.value), set()).update(severities)
    return names


def test_every_finding_has_a_section_and_is_repaired_there() -> None:
    assert len(findings()) > 20
    sections = dict(re.findall(r"^### (\S+)\n(.*?)(?=^##|\Z)", PAGE, flags=re.M | re.S))
    assert sections.keys() == findings().keys()
    for name, section in sections.items():
        assert f'repair("{name}", ' in section


def test_the_table_has_every_finding_with_its_severities() -> None:
    rows = re.findall(r"^\| \[`(\S+)`\]\(#(\S+)\) \| ([\w, ]+) \| .+ \|$", PAGE, flags=re.M)
    assert all(name == anchor for name, anchor, _ in rows)
    assert [name for name, *_ in rows] == re.findall(r"^### (\S+)$", PAGE, flags=re.M)
    assert {name: set(severities.split(", ")) for name, _, severities in rows} == findings()
