"""The two files with metadata of the package agree."""

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
    assert f"version = {{{tt.__version__}}}" in (ROOT / "docs/faq.md").read_text()
    assert field("license", "CITATION.cff") == field("license", "pyproject.toml")
    assert field("repository-code", "CITATION.cff") == field("Source", "pyproject.toml")
    assert field("url", "CITATION.cff") == field("Documentation", "pyproject.toml")


def test_supported_versions_are_the_same_everywhere() -> None:
    bounds = re.fullmatch(r">=3\.(\d+),<3\.(\d+)", field("requires-python", "pyproject.toml"))
    assert bounds is not None
    text = (ROOT / "pyproject.toml").read_text()
    minors = re.findall(r'"Programming Language :: Python :: 3\.(\d+)"', text)
    assert [int(minor) for minor in minors] == list(range(int(bounds[1]), int(bounds[2])))
    torch = re.search(r'"torch>=([\d.]+)"', (ROOT / "pyproject.toml").read_text())
    bounds = re.fullmatch(r">=3\.(\d+),<3\.(\d+)", field("requires-python", "pyproject.toml"))
    assert torch is not None
    assert bounds is not None
    readme = (ROOT / "README.md").read_text()
    assert f"`torch>={torch[1]}`" in readme
    assert f"Python 3.{bounds[1]} to 3.{int(bounds[2]) - 1}" in readme


def test_the_release_workflow_reads_the_version_where_it_is() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    path = re.search(r'\[tool\.hatch\.version\]\npath = "(.*)"', text)
    assert path is not None
    workflow = (ROOT / ".github/workflows/release.yml").read_text()
    command = re.search(r"sed -n '(.*)' (\S+\.py)", workflow)
    assert command is not None
    assert command[2] == path[1]
    assert f'__version__ = "{tt.__version__}"' in (ROOT / path[1]).read_text()
