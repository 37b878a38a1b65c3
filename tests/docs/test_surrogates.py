"""The page on surrogates: its table has all of them, with their defaults and their peaks."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import torch

from tests.cases import SURROGATES
from tracetorch import functional

PAGE = (Path(__file__).parents[2] / "docs/use/surrogates.md").read_text()
PEAKS = {
    r"$\alpha / 2$": lambda s: s.alpha / 2,
    "$k / 4$": lambda s: s.slope / 4,
    "$1 / w$": lambda s: 1 / s.width,
    r"$1 / (\sigma \sqrt{2 \pi})$": lambda s: 1 / (s.sigma * math.sqrt(2 * math.pi)),
    "1": lambda s: 1.0,
}
ROWS = dict(
    re.findall(r"^\| `(\w+_surrogate\(.*?\))`[^|]*\|[^\n]*\| ([^|]+) \| [^|]+ \|$", PAGE, re.M)
)


def test_all_surrogates_are_in_the_table() -> None:
    assert ROWS.keys() == {repr(type(surrogate)()) for surrogate in SURROGATES}


@pytest.mark.parametrize("call", ROWS)
def test_the_derivative_at_the_threshold(call: str) -> None:
    name, arguments = call.rstrip(")").split("(")
    values = dict(pair.split("=") for pair in arguments.split(", ") if pair)
    surrogate = getattr(functional, name)(**{key: float(value) for key, value in values.items()})
    peak = surrogate.derivative(torch.zeros((), dtype=torch.float64))
    assert float(peak) == pytest.approx(PEAKS[ROWS[call]](surrogate))
