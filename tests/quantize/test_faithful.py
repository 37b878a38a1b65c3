"""A prepared network is the model that was given: nothing lost, nothing silently another."""

from __future__ import annotations

import itertools
from collections import OrderedDict
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tracetorch as tt
from tests.quantize.networks import spikes, widened
from tracetorch import chips, quantize, snn


class Calls(nn.Module):
    """Modules by name, called in order, and what a function does in between."""

    def __init__(self, modules: dict[str, nn.Module], between: Any = None) -> None:
        super().__init__()
        for name, module in modules.items():
            self.add_module(name, module)
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        for index, module in enumerate(self.children()):
            if self.between is not None:
                x = self.between(index, x)
            x = module(x)
        return x if self.between is None else self.between(len(self._modules), x)


def widths(*sizes: int) -> list[nn.Module]:
    """Linear layers and neurons in turn."""
    pairs = itertools.pairwise(sizes)
    return [module for a, b in pairs for module in (nn.Linear(a, b), snn.LIF(b))]


def nearly(model: nn.Module, x: Tensor, **arguments: Any) -> quantize.Prepared:
    """Prepare a model in many bits, and see that it fires nearly as the model does."""
    torch.manual_seed(0)
    prepared = quantize.prepare(widened(model), x, **arguments)
    integer, report = quantize.convert(prepared)
    with torch.no_grad():
        wanted = tt.unroll(model, x, from_rest=True)
        found = tt.unroll(prepared, x, from_rest=True)
        assert torch.equal(tt.unroll(integer, x), found)
    assert wanted.any()
    assert float((wanted != prepared.output_scale * found).double().mean()) < 0.02
    assert all(layer.output_error < 0.02 for layer in report.layers)
    return prepared


def test_names_are_kept_apart() -> None:
    a, b, c, d, e, f = widths(4, 6, 6, 5)
    outer = nn.Sequential(a, b)
    model = Calls({"b": outer, "b_0": c, "b_1": d, "b_0_": e, "b_2": f})
    prepared = nearly(model, spikes(20, 4, 4), weight_bits=12)
    assert list(prepared.plan.labels.values()) == ["b.0", "b.1", "b_0", "b_1", "b_0_", "b_2"]
    assert list(prepared._modules) == ["b_0__", "b_1_", "b_0", "b_1", "b_0_", "b_2"]


@pytest.mark.parametrize("name", ["input", "plan", "output_scale", "_get_name"])
def test_names_of_its_own_are_given_away_to_nobody(name: str) -> None:
    first, neurons = widths(4, 6)
    x = torch.rand(20, 4, 4)
    prepared = nearly(
        Calls({"lin": nn.Sequential(OrderedDict({name + "x": first})), "n": neurons}), x
    )
    assert list(prepared._modules) == ["input", f"lin_{name}x", "n"]
    if name != "_get_name":
        first, neurons = widths(4, 6)
        prepared = nearly(Calls({name: first, "n": neurons}), x, weight_bits=12)
        assert list(prepared._modules) == ["input", f"{name}_", "n"]


def test_a_step_later_has_a_name_of_its_own() -> None:
    a, b, c, d, e, f = widths(4, 6, 6, 5)
    model = Calls({"a": a, "b": b, "b_later": c, "d": d, "e": e, "f": f})
    prepared = quantize.prepare(model, spikes(9, 2, 4), chip=chips.xylo.XYLO_2)
    assert list(prepared._modules) == ["a", "b", "b_later_", "b_later", "d", "d_later", "e", "f"]


@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize("kind", ["delay", "Xylo"])
def test_what_is_converted_is_at_rest(kind: str, graph: bool) -> None:
    torch.manual_seed(0)
    a, b, c, d = widths(6, 8, 2)
    delay = snn.Delay(8, max_delay=2, delay=torch.arange(8.0) % 3)
    model = widened(nn.Sequential(a, b, *[delay] * (kind == "delay"), c, d))
    x = spikes(12, 3, 6)
    chip = chips.xylo.XYLO_2 if kind == "Xylo" else None
    prepared = quantize.prepare(model, x, chip=chip)
    with torch.set_grad_enabled(graph):
        tt.unroll(prepared, x)
    integer, _ = quantize.convert(prepared)
    assert not any(value.any() for value in tt.get_states(integer).values() if value is not None)
    with torch.no_grad():
        found = tt.unroll(integer, x)
        assert found.any()
        assert torch.equal(found, tt.unroll(prepared, x, from_rest=True))
