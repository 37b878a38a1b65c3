"""The tutorials build the networks of the example scripts, and quote their results."""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import nn

import tracetorch as tt
from examples import networks
from tests.docs.pages import DOCS, ROOT, TUTORIALS, cells, definitions

CASES: dict[str, tuple[Callable[[dict[str, Any]], nn.Module], Callable[[Any], nn.Module], Any]] = {
    "memorise": (lambda page: page["network"](), lambda s: s.network(), (torch.rand, 100)),
    "rate_digits": (lambda page: page["network"](), lambda s: s.network(), (torch.rand, 784)),
    "row_digits": (
        lambda page: page["Spiking"](28, 10),
        lambda s: networks.Spiking(28, 10),
        (torch.rand, 28),
    ),
    "vowels": (
        lambda page: page["Spiking"](12, 9),
        lambda s: networks.Spiking(12, 9, width=64, longest=16.0),
        (torch.randn, 12),
    ),
    "language": (lambda page: page["Model"]("BLIF"), lambda s: s.Model("BLIF"), None),
    "cartpole": (
        lambda page: page["ActorCritic"](),
        lambda s: s.ActorCritic(forget=False),
        (torch.randn, 4),
    ),
}


def test_every_script_of_the_table_has_a_tutorial() -> None:
    assert {f"tutorials/{name}" for name in CASES} == set(TUTORIALS)


@pytest.mark.parametrize("name", CASES)
def test_network_of_the_page_is_that_of_the_script(name: str) -> None:
    of_page, of_script, draw = CASES[name]
    torch.manual_seed(0)
    ours = of_page(definitions(f"tutorials/{name}")).eval()
    torch.manual_seed(0)
    theirs = of_script(import_module(f"examples.{name}")).eval()
    assert repr(ours) == repr(theirs)
    expected = theirs.state_dict()
    assert {name: value.tolist() for name, value in ours.state_dict().items()} == {
        name: value.tolist() for name, value in expected.items()
    }
    x = torch.randint(256, (5, 3)) if draw is None else 2 * draw[0](5, 3, draw[1])
    results = [tt.unroll(model, x) for model in (ours, theirs)]
    first, second = (y if isinstance(y, tuple) else (y,) for y in results)
    assert all(map(torch.equal, first, second))


@pytest.mark.parametrize("page", TUTORIALS)
def test_quoted_results_are_those_of_the_table(page: str) -> None:
    table = (ROOT / "examples/README.md").read_text()
    # a line may end within a command
    text = " ".join((DOCS / f"{page}.md").read_text().split())
    quoted = re.findall(r"\d[\d.]* ± [\d.]*\d", text)
    commands = re.findall(r"`(python -m examples\.\w+ --[^`]+)`", text)
    assert commands
    assert [each for each in (*quoted, *commands) if each not in table] == []


@pytest.mark.parametrize("page", TUTORIALS)
def test_code_imports_nothing_of_the_examples(page: str) -> None:
    assert not any(re.search(r"^(from|import) examples", cell, re.M) for cell in cells(page))
