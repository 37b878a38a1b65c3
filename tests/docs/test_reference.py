"""The reference documents every public name of every room, and all code of pages is executed."""

from __future__ import annotations

import inspect
import math
import re

import pytest
import torch

import tracetorch as tt
from tests.cases import LAYERS, SURROGATES
from tests.docs.pages import DOCS
from tests.test_package import ROOMS, ROOT
from tracetorch import functional, snn
from tracetorch.diagnosis import finding

PAGES = sorted((ROOT / "docs" / "reference").glob("*.md"))


def documented_names(text: str) -> list[str]:
    """Full names that a page documents: by ``.. names::``, by a directive each, or as a module."""
    found: list[str] = re.findall(r"^\.\. py:module:: (\S+)", text, flags=re.MULTILINE)
    data = re.findall(r"^\.\. py:data:: (\S+)\n {3}:module: (\S+)", text, flags=re.MULTILINE)
    found += [f"{module}.{name}" for name, module in data]
    for module, names in re.findall(r"^\.\. names:: (\S+)\n\n((?: {3}.*\n)+)", text, re.MULTILINE):
        found += [f"{module}.{name}" for name in names.split()]
    return found


def public_names() -> set[str]:
    rooms = [tt, *ROOMS]
    return {"tracetorch"} | {f"{room.__name__}.{n}" for room in rooms for n in room.__all__}


def test_every_public_name_is_documented_once() -> None:
    found = [name for page in PAGES for name in documented_names(page.read_text())]
    assert sorted(set(found)) == sorted(found)
    assert set(found) == public_names()
    page = ".. py:module:: a\n\n.. names:: a.b\n\n   c d\n   e\n\n.. py:data:: f\n   :module: a\n"
    assert documented_names(page) == ["a", "a.f", "a.b.c", "a.b.d", "a.b.e"]


def test_every_page_has_its_place_in_the_contents() -> None:
    docs = ROOT / "docs"
    contents = re.findall(r"```\{toctree\}\n(.*?)```", (docs / "index.md").read_text(), re.DOTALL)
    listed = re.findall(r"^([a-z]\S*)$", "".join(contents), flags=re.MULTILINE)
    assert sorted(listed) == sorted(set(listed))
    pages = {path.relative_to(docs).with_suffix("").as_posix() for path in docs.rglob("*.md")}
    assert set(listed) == pages - {"index"}, "list a new page in docs/index.md, in its order"
    assert listed.index("understand/time") < listed.index("understand/states")
    assert next(page for page in listed if page.startswith("tutorials/")) == "tutorials/row_digits"


# pages of plain Python, for other processes or other libraries, and the test that runs each
TESTED = {
    "docs/use/coming_from.md": "tests/docs/test_coming_from.py",
    "docs/use/scale_out.md": "tests/scale_out/test_scripts.py",
    "docs/use/with_other_tools.md": "tests/tools/test_page.py",
}
FENCE = re.compile(r"^[ \t>]*(?:`{3,}|~{3,}|:{3,})\s*(\{?[\w-]*\}?)(.*)$", flags=re.MULTILINE)


def unexecuted_code(text: str) -> list[str]:
    """Fences of Python that no build executes, and cells of a page that is not a notebook."""
    is_notebook = text.startswith("---\nfile_format: mystnb\n")
    found = []
    for kind, rest in FENCE.findall(text):
        is_literal = kind in ("{code}", "{code-block}", "{sourcecode}") and " py" in rest
        is_stray_cell = kind == "{code-cell}" and not is_notebook
        if kind in ("python", "py", "pycon") or is_literal or is_stray_cell:
            found.append(f"{kind}{rest}")
    return found + re.findall("skip-execution", text)


def test_all_code_is_executed() -> None:
    found = {
        page.relative_to(ROOT).as_posix(): unexecuted_code(page.read_text())
        for page in (ROOT / "docs").rglob("*.md")
    }
    for path, test in TESTED.items():
        assert found.pop(path)
        assert path.removeprefix("docs/") in (ROOT / test).read_text()
    assert {path: code for path, code in found.items() if code} == {}


# Tables that repeat the code: findings of the diagnosis, surrogates, parameters

NOT_LEARNING = (DOCS / "use/not_learning.md").read_text()
TWELVE_LAYERS = (DOCS / "understand/twelve_layers.md").read_text()


def test_every_finding_has_a_section_and_a_row_with_its_severities() -> None:
    findings: dict[str, set[str]] = {}
    for row, (kinds, _) in finding.ROWS.items():
        findings.setdefault(row.partition("/")[0], set()).update(kinds)
    assert len(findings) > 20
    sections = dict(re.findall(r"^### (\S+)\n(.*?)(?=^##|\Z)", NOT_LEARNING, flags=re.M | re.S))
    assert sections.keys() == findings.keys()
    for name, section in sections.items():
        assert f'repair("{name}", ' in section
    rows = re.findall(r"^\| \[`(\S+)`\]\(#(\S+)\) \| ([\w, ]+) \| .+ \|$", NOT_LEARNING, flags=re.M)
    assert all(name == anchor for name, anchor, _ in rows)
    assert [name for name, *_ in rows] == re.findall(r"^### (\S+)$", NOT_LEARNING, flags=re.M)
    assert {name: set(severities.split(", ")) for name, _, severities in rows} == findings


PEAKS = {
    r"$\alpha / 2$": lambda s: s.alpha / 2,
    "$k / 4$": lambda s: s.slope / 4,
    "$1 / w$": lambda s: 1 / s.width,
    r"$1 / (\sigma \sqrt{2 \pi})$": lambda s: 1 / (s.sigma * math.sqrt(2 * math.pi)),
    "1": lambda s: 1.0,
}
ROW = r"^\| `(\w+_surrogate\(.*?\))`[^|]*\|[^\n]*\| ([^|]+) \| [^|]+ \|$"
SURROGATE_ROWS = dict(re.findall(ROW, (DOCS / "use/surrogates.md").read_text(), re.M))


def test_all_surrogates_parameters_and_layers_are_in_the_tables() -> None:
    assert SURROGATE_ROWS.keys() == {repr(type(surrogate)()) for surrogate in SURROGATES}
    assert parameters().keys() == snn.BSRLIF(2).constraints.keys()
    assert [name for name in LAYERS if f'circuit("{name}")' not in TWELVE_LAYERS] == []


@pytest.mark.parametrize("call", SURROGATE_ROWS)
def test_the_derivative_at_the_threshold(call: str) -> None:
    name, arguments = call.rstrip(")").split("(")
    values = dict(pair.split("=") for pair in arguments.split(", ") if pair)
    surrogate = getattr(functional, name)(**{key: float(value) for key, value in values.items()})
    peak = surrogate.derivative(torch.zeros((), dtype=torch.float64))
    assert float(peak) == pytest.approx(PEAKS[SURROGATE_ROWS[call]](surrogate))


CONSTRAINTS = {
    "unbounded": "none",
    "sigmoid": "`sigmoid`",
    "softplus": "`softplus`",
    "negative_softplus": "`-softplus`",
}
RANGES = {"none": "any", "`sigmoid`": "(0, 1)", "`softplus`": "positive"}


def parameters() -> dict[str, list[str]]:
    rows = re.findall(r"^\| `(\w+)` \|(.*)\|$", TWELVE_LAYERS, flags=re.M)
    return {name: [cell.strip() for cell in cells.split("|")][1:] for name, cells in rows}


@pytest.mark.parametrize("name", LAYERS)
def test_defaults_and_constraints_are_those_of_the_code(name: str) -> None:
    layer = getattr(snn, name)(2)
    signature = inspect.signature(getattr(snn, name)).parameters
    for parameter, constraint in layer.constraints.items():
        _, allowed, default, kept = parameters()[parameter]
        assert float(default) == signature[parameter].default, parameter
        assert kept == CONSTRAINTS[constraint.name], parameter
        assert allowed == RANGES[kept.replace("-", "")], parameter
