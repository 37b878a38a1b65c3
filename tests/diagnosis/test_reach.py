from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tracetorch as tt
from tests.cases import LAYERS, PLACES, SPIKING, SURROGATES, Slope, layer, sequence
from tests.networks import Leaky
from tracetorch import snn
from tracetorch.diagnosis.reach import derivative, spike_inputs
from tracetorch.snn.neuron import spike_functions


def run(module: snn.Neuron, x: Tensor, **options: Any) -> tuple[Tensor, Any]:
    """Run a layer; return its outputs and the inputs of its spike functions."""
    y, seen = tt.unroll(module, x, record=[*module.active_states, "output"], **options)
    states = {name: seen[name].detach() for name in module.active_states}
    return y.detach(), spike_inputs(module, x, states)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", LAYERS)
def test_spike_inputs_reproduce_the_spikes_of_a_run(name, place) -> None:
    dim, shape = place
    y, inputs = run(layer(name, 3, dim=dim).double(), sequence(12, *shape))
    if name not in SPIKING:
        assert inputs is None
        return
    assert set(inputs.above) == ({"pos_spike", "neg_spike"} if "B" in name else {"pos_spike"})
    fired = sum(u > 0 for u in inputs.above.values()) > 0
    assert torch.equal(fired, y != 0)
    assert 0 < fired.double().mean() < 1


@pytest.mark.parametrize("surrogate", SURROGATES, ids=repr)
def test_derivative_equals_the_closed_form_of_the_surrogate(surrogate) -> None:
    u = torch.linspace(-2, 2, 101, dtype=torch.float64)
    torch.testing.assert_close(derivative(surrogate, u), surrogate.derivative(u))
    peak = surrogate.derivative(torch.zeros((), dtype=torch.float64))
    x = sequence(20, 4, 5)
    _, inputs = run(snn.LIF(5, beta=0.5, surrogate_derivative=surrogate).double(), x)
    mem = torch.zeros(4, 5, dtype=torch.float64)
    wanted = []
    for step in x:
        above = 0.5 * mem + step - 1
        wanted.append(surrogate.derivative(above) >= 0.1 * peak)
        mem = above + 1 - (above > 0).double()
    torch.testing.assert_close(inputs.in_reach, torch.stack(wanted))


def test_derivative_of_a_user_defined_module_with_parameters() -> None:
    soft = lambda u: torch.sigmoid(u) + ((u > 0).to(u) - torch.sigmoid(u)).detach()  # noqa: E731
    spike = Slope(soft).double()
    u = torch.tensor([-1.0, 0.0, 0.3], dtype=torch.float64)
    s = torch.sigmoid(2 * u)
    torch.testing.assert_close(derivative(spike, u), 2 * s * (1 - s))
    module = snn.LIF(3, surrogate_derivative=spike).double()
    assert run(module, sequence(5, 2, 3))[1] is not None
    module.option("shape", torch.tanh)
    assert spike_functions(module) == ["pos_spike"]
    assert spike_functions(snn.Readout(3)) == spike_functions(nn.Linear(3, 3)) == []


def test_a_step_that_is_not_pointwise_has_no_spike_inputs() -> None:
    class Competing(Leaky):
        @staticmethod
        def step(x: Tensor, mem: Tensor, *, beta: Tensor, base: Tensor, spike: Any) -> Any:
            mem = beta * mem + x - x.flatten().cumsum(0).view_as(x)
            fired = spike(mem - base)
            return fired, mem - fired * base

    assert run(Competing(4).double(), sequence(6, 2, 4), by="step")[1] is None
