"""A prepared network is the model that was given: nothing lost, nothing silently another."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tracetorch as tt
from tests.quantize.networks import spikes, widened
from tracetorch import chips, quantize, snn


class Calls(nn.Module):
    def __init__(self, modules: dict[str, nn.Module]) -> None:
        super().__init__()
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x: Tensor) -> Tensor:
        for module in self.children():
            x = module(x)
        return x


def widths(*sizes: int) -> list[nn.Module]:
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


def test_names_are_kept_apart_and_those_of_its_own_given_to_nobody() -> None:
    a, b, c, d, e, f = widths(4, 6, 6, 5)
    model = Calls({"b": nn.Sequential(a, b), "b_0": c, "b_1": d, "b_0_": e, "b_2": f})
    prepared = nearly(model, spikes(20, 4, 4), weight_bits=12)
    labels = [(layer.label, layer.neurons_label) for layer in prepared.plan.layers]
    assert list(itertools.chain(*labels)) == ["b.0", "b.1", "b_0", "b_1", "b_0_", "b_2"]
    assert list(prepared._modules) == ["b_0__", "b_1_", "b_0", "b_1", "b_0_", "b_2"]
    for name in ("input", "plan", "output_scale"):
        first, neurons = widths(4, 6)
        prepared = nearly(Calls({name: first, "n": neurons}), torch.rand(20, 4, 4), weight_bits=12)
        assert list(prepared._modules) == ["input", f"{name}_", "n"]
    model = Calls({"a": a, "b": b, "b_later": c, "d": d, "e": e, "f": f})
    later = quantize.prepare(model, spikes(9, 2, 4), chip=chips.xylo.XYLO_2)
    names = ["input", "a", "b", "b_later_", "b_later", "d", "d_later", "e", "f"]
    assert list(later._modules) == names


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


SPREAD = torch.tensor([1.0, 2.0, 0.5, 3.0, 0.3])


@pytest.mark.parametrize("name", ["Linear", "Conv1d", "Recurrent"])
def test_units_are_those_of_neurons_in_another_dimension(name: str) -> None:
    torch.manual_seed(0)
    model, x = {
        "Linear": lambda: (nn.Sequential(nn.Linear(7, 5), snn.LIF(5, dim=-2)), spikes(20, 4, 5, 7)),
        "Conv1d": lambda: (nn.Sequential(nn.Conv1d(2, 5, 1), snn.LIF(5)), spikes(20, 4, 2, 5)),
        "Recurrent": lambda: (
            nn.Sequential(nn.Conv1d(2, 5, 1), snn.Recurrent(snn.LIF(5, dim=-2), nn.Linear(5, 5))),
            spikes(20, 4, 2, 5),
        ),
    }[name]()
    for weight in model.parameters():
        if weight.ndim > 1:
            weight.data *= SPREAD.reshape(-1, *[1] * (weight.ndim - 1))
    prepared = nearly(model, x, weight_bits=12)
    assert prepared.plan.layers[0].unit.ndim == 0


def test_units_are_kept_for_each_channel_where_they_can_be() -> None:
    model = nn.Sequential(
        *(nn.Conv1d(2, 5, 3), snn.LIF(5, dim=1), nn.Conv1d(5, 4, 2), nn.Flatten(), snn.LIF(4)),
        *(nn.Linear(4, 3), snn.LIF(3)),
    )
    prepared = nearly(model, spikes(20, 4, 2, 4), weight_bits=12)
    assert [layer.unit.shape for layer in prepared.plan.layers] == [(5,), (4,), (3,)]


def test_sizes_of_spikes_that_stop_to_learn_are_reported() -> None:
    x = spikes(9, 2, 4)

    def differences(**arguments: Any) -> tuple[str, ...]:
        neurons = snn.BSRLIF(6, **arguments)
        model = nn.Sequential(nn.Linear(4, 6), neurons, nn.Linear(6, 2), snn.Readout(2))
        return quantize.convert(quantize.prepare(model, x))[1].differences

    assert differences(pos_scale=0.5, neg_scale=0.5) == (
        "1 (BSRLIF) has spikes of one size, 0.5: pos_scale and neg_scale will not learn",
    )
    assert differences(pos_scale=0.5, neg_scale=0.5, learn_pos_scale=False) == (
        "1 (BSRLIF) has spikes of one size, 0.5: neg_scale will not learn",
    )
    assert differences(pos_scale=0.5, neg_scale=1.0) == ()


@pytest.mark.parametrize("steps", [1, 2])
def test_a_short_sample_is_compared_when_its_spikes_arrive(steps: int) -> None:
    model = widened(nn.Sequential(*widths(4, 6, 5, 3)), 4.0)
    x = 9 * spikes(steps, 4, 4, share=0.9)
    _, report = quantize.convert(quantize.prepare(model, x, chip=chips.xylo.XYLO_2))
    errors = [layer.output_error for layer in report.layers]
    assert all(0 <= error < 1 for error in errors)


@pytest.mark.parametrize("convolution", [False, True])
def test_autocast_does_not_reach_the_integers(convolution: bool) -> None:
    torch.manual_seed(0)
    first: list[nn.Module] = [nn.Linear(60, 8)]
    x = torch.rand(12, 3, 60)
    if convolution:
        first = [nn.Conv1d(6, 8, 5), nn.AvgPool1d(2), nn.Flatten()]
        x = x.reshape(12, 3, 6, 10)
    width = 24 if convolution else 8
    model = nn.Sequential(
        *(*first, snn.Recurrent(snn.LIF(width), nn.Linear(width, width))),
        *(nn.Linear(width, 2), snn.Readout(2)),
    )
    prepared = quantize.prepare(widened(model), x)
    integer, _ = quantize.convert(prepared)
    with torch.no_grad():
        wanted = tt.unroll(integer, x, from_rest=True)
        assert wanted.any()
        with torch.autocast("cpu", torch.bfloat16):
            for quantised in (prepared, integer):
                assert torch.equal(tt.unroll(quantised, x, from_rest=True), wanted)
    with pytest.raises(TypeError, match="expected an input of float32 or float64, got"):
        integer[-2](torch.ones(1, width).bfloat16())
