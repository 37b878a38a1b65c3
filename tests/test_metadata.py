"""What is written in two files about the package agrees."""

from __future__ import annotations

import re
from pathlib import Path

import tracetorch as tt

ROOT = Path(__file__).parent.parent


def field(name: str, page: str) -> str:
    """Return the value of ``name: value`` or ``name = "value"`` at the start of a line."""
    found = re.findall(rf'^{name}(?::| =) "?([^"\n]*)"?$', (ROOT / page).read_text(), re.MULTILINE)
    assert len(found) == 1, f"{name} in {page}: {found}"
    return str(found[0])


def test_the_citation_is_of_this_version() -> None:
    assert field("version", "CITATION.cff") == tt.__version__
    assert field("license", "CITATION.cff") == field("license", "pyproject.toml")
    assert field("repository-code", "CITATION.cff") == field("Source", "pyproject.toml")
    assert field("url", "CITATION.cff") == field("Documentation", "pyproject.toml")


def test_every_supported_python_has_a_classifier() -> None:
    bounds = re.fullmatch(r">=3\.(\d+),<3\.(\d+)", field("requires-python", "pyproject.toml"))
    assert bounds is not None
    text = (ROOT / "pyproject.toml").read_text()
    minors = re.findall(r'"Programming Language :: Python :: 3\.(\d+)"', text)
    assert [int(minor) for minor in minors] == list(range(int(bounds[1]), int(bounds[2])))
