"""The page on the twelve layers: its table of parameters is that of the code."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

from tests.cases import LAYERS
from tracetorch import snn

PAGE = (Path(__file__).parents[2] / "docs/understand/twelve_layers.md").read_text()
CONSTRAINTS = {
    "unbounded": "none",
    "sigmoid": "`sigmoid`",
    "softplus": "`softplus`",
    "negative_softplus": "`-softplus`",
}
RANGES = {"none": "any", "`sigmoid`": "(0, 1)", "`softplus`": "positive"}


def table() -> dict[str, list[str]]:
    """Read the rows of the parameters: unit, range, default and constraint by name."""
    rows = re.findall(r"^\| `(\w+)` \|(.*)\|$", PAGE, flags=re.M)
    return {name: [cell.strip() for cell in cells.split("|")][1:] for name, cells in rows}


def test_the_table_has_every_parameter_of_the_fullest_layer() -> None:
    assert table().keys() == snn.BSRLIF(2).constraints.keys()


@pytest.mark.parametrize("name", LAYERS)
def test_defaults_and_constraints_are_those_of_the_code(name: str) -> None:
    layer = getattr(snn, name)(2)
    signature = inspect.signature(getattr(snn, name)).parameters
    for parameter, constraint in layer.constraints.items():
        _, allowed, default, kept = table()[parameter]
        assert float(default) == signature[parameter].default, parameter
        assert kept == CONSTRAINTS[constraint.name], parameter
        assert allowed == RANGES[kept.replace("-", "")], parameter


@pytest.mark.parametrize("name", LAYERS)
def test_every_layer_is_drawn(name: str) -> None:
    assert f'circuit("{name}")' in PAGE
