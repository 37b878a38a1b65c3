"""The tutorials build the networks of the example scripts, and quote their results."""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import tracetorch as tt
from examples import networks
from tests.data.files import write_heidelberg
from tests.docs.pages import DOCS, ROOT, TUTORIALS, cells, definitions
from tracetorch import snn

SPIKING = networks.Spiking
# the network of the page and that of the script, and the shape of a step of its input
CASES: dict[str, tuple[Callable[[Any], nn.Module], Callable[[Any], nn.Module], int | None]] = {
    "memorise": (lambda page: page["network"](), lambda s: s.network(), 100),
    "rate_digits": (lambda page: page["network"](), lambda s: s.network(), 784),
    "row_digits": (lambda page: page["Spiking"](28, 10), lambda s: SPIKING(28, 10), 28),
    "vowels": (lambda page: page["Spiking"](12, 9), lambda s: SPIKING(12, 9, width=64), 12),
    "events": (
        lambda page: page["Spiking"](40, 10, tt.neurons.SEAdLIF, delays=8),
        lambda s: SPIKING(40, 10, "SEAdLIF", width=64, delays=8),
        40,
    ),
    "spike_trains": (
        lambda page: page["network"](snn.LIF, delays=14),
        lambda s: s.spiking(snn.LIF, s.LAG),
        10,
    ),
    "language": (lambda page: page["Model"]("BLIF"), lambda s: s.Model("BLIF"), None),
    "cartpole": (lambda page: page["ActorCritic"](), lambda s: s.ActorCritic(forget=False), 4),
    "fly": (
        lambda page: page["network"](page["draw_graph"](200)),
        lambda s: s.network(s.draw_graph(200)),
        200,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_network_of_the_page_is_that_of_the_script(name: str) -> None:
    of_page, of_script, inputs = CASES[name]
    torch.manual_seed(0)
    ours = of_page(definitions(f"tutorials/{name}")).eval()
    torch.manual_seed(0)
    theirs = of_script(import_module(f"examples.{name}")).eval()
    assert repr(ours) == repr(theirs)
    expected = theirs.state_dict()
    torch.testing.assert_close(ours.state_dict(), expected, rtol=0, atol=0)
    x = torch.randint(256, (5, 3)) if inputs is None else 2 * torch.randn(5, 3, inputs)
    results = [tt.unroll(model, x) for model in (ours, theirs)]
    first, second = (y if isinstance(y, tuple) else (y,) for y in results)
    assert all(map(torch.equal, first, second))


@pytest.mark.parametrize("page", TUTORIALS)
def test_quoted_results_are_those_of_the_table_and_code_imports_nothing_of_the_examples(
    page: str,
) -> None:
    assert page.removeprefix("tutorials/") in CASES
    table = (ROOT / "examples/README.md").read_text()
    # a line may end within a command
    text = " ".join((DOCS / f"{page}.md").read_text().split())
    quoted = re.findall(r"\d[\d.]* ± [\d.]*\d", text)
    commands = re.findall(r"`(python -m examples\.\w+ --[^`]+)`", text)
    assert commands
    assert [each for each in (*quoted, *commands) if each not in table] == []
    assert not any(re.search(r"^(from|import) examples", cell, re.M) for cell in cells(page))


def test_page_of_events_runs_on_files_of_shd(tmp_path: Path) -> None:
    samples = [[(0.01 * k, 7 * k), (0.02 * k, 690), (0.3, 40 * k)] for k in range(8)]
    for part in ("train", "test"):
        write_heidelberg(tmp_path / f"shd_{part}.h5", samples)
    page = definitions("tutorials/events")
    learnt, test, size = page["recordings"](str(tmp_path))
    assert (len(learnt), len(test), size) == (8, 8, (700, 1, 1))
    train, held_out = (page["frames"](each, size) for each in (learnt, test))
    assert train[7][0].shape == (31, 140)
    assert train[7][0][30].nonzero().tolist() == [[56]]  # unit 280 at 300 ms
    torch.manual_seed(0)
    model = page["Spiking"](140, 20, tt.neurons.SEAdLIF, delays=2, width=8)
    page["fit"](model, train, passes=2)
    assert 0 <= page["accuracy"](model, held_out) <= 1
    for layer in (model.net[0], model.net[4]):
        assert layer.sigma == 0
        assert torch.equal(layer.delay, layer.delay.round())
