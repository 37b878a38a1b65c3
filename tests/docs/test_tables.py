"""Tables of pages that repeat the code: findings of the diagnosis, surrogates, parameters."""

from __future__ import annotations

import inspect
import math
import re

import pytest
import torch

from tests.cases import LAYERS, SURROGATES
from tests.docs.pages import DOCS
from tracetorch import functional, snn
from tracetorch.diagnosis import finding

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
ROWS = dict(re.findall(ROW, (DOCS / "use/surrogates.md").read_text(), re.M))


def test_all_surrogates_parameters_and_layers_are_in_the_tables() -> None:
    assert ROWS.keys() == {repr(type(surrogate)()) for surrogate in SURROGATES}
    assert parameters().keys() == snn.BSRLIF(2).constraints.keys()
    assert [name for name in LAYERS if f'circuit("{name}")' not in TWELVE_LAYERS] == []


@pytest.mark.parametrize("call", ROWS)
def test_the_derivative_at_the_threshold(call: str) -> None:
    name, arguments = call.rstrip(")").split("(")
    values = dict(pair.split("=") for pair in arguments.split(", ") if pair)
    surrogate = getattr(functional, name)(**{key: float(value) for key, value in values.items()})
    peak = surrogate.derivative(torch.zeros((), dtype=torch.float64))
    assert float(peak) == pytest.approx(PEAKS[ROWS[call]](surrogate))


CONSTRAINTS = {
    "unbounded": "none",
    "sigmoid": "`sigmoid`",
    "softplus": "`softplus`",
    "negative_softplus": "`-softplus`",
}
RANGES = {"none": "any", "`sigmoid`": "(0, 1)", "`softplus`": "positive"}


def parameters() -> dict[str, list[str]]:
    """Read the rows of the parameters: unit, range, default and constraint by name."""
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
