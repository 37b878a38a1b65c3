from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import tracetorch as tt
from tests.cases import LAYERS, PLACES, SPIKING, SURROGATES, layer, sequence
from tracetorch import snn
from tracetorch.diagnosis.reach import SpikeInputs, derivative, spike_inputs
from tracetorch.snn.neuron import spike_functions


def run(module: snn.Neuron, x: Tensor) -> tuple[Tensor, SpikeInputs | None]:
    """Run a layer; return its outputs and the inputs of its spike functions."""
    names = [*module.active_states, "output"]
    y, seen = tt.unroll(module, x, record=names)
    states = {name: seen[name].detach() for name in module.active_states}
    return y.detach(), spike_inputs(module, x, states)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", LAYERS)
def test_spike_inputs_reproduce_the_spikes_of_a_run(name, place) -> None:
    dim, shape = place
    module = layer(name, 3, dim=dim).double()
    y, inputs = run(module, sequence(12, *shape))
    if name not in SPIKING:
        assert inputs is None
        return
    assert inputs is not None
    assert set(inputs.above) == ({"pos_spike", "neg_spike"} if "B" in name else {"pos_spike"})
    fired = torch.zeros_like(y, dtype=torch.bool)
    for u in inputs.above.values():
        fired |= u > 0
    assert torch.equal(fired, y != 0)
    assert 0 < fired.double().mean() < 1


@pytest.mark.parametrize("surrogate", SURROGATES, ids=repr)
def test_derivative_equals_the_closed_form_of_the_surrogate(surrogate) -> None:
    u = torch.linspace(-2, 2, 101, dtype=torch.float64)
    torch.testing.assert_close(derivative(surrogate, u), surrogate.derivative(u))
    peak = surrogate.derivative(torch.zeros((), dtype=torch.float64))
    module = snn.LIF(5, beta=0.5, surrogate_derivative=surrogate).double()
    x = sequence(20, 4, 5)
    _, inputs = run(module, x)
    mem = torch.zeros(4, 5, dtype=torch.float64)
    wanted = []
    for step in x:
        above = 0.5 * mem + step - 1
        wanted.append(surrogate.derivative(above) >= 0.1 * peak)
        mem = above + 1 - (above > 0).double()
    assert inputs is not None
    torch.testing.assert_close(inputs.in_reach, torch.stack(wanted))


def test_derivative_of_a_user_defined_module_with_parameters() -> None:
    class Learnable(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.slope = nn.Parameter(torch.tensor(4.0))

        def forward(self, u: Tensor) -> Tensor:
            soft = torch.sigmoid(self.slope * u)
            return soft + ((u > 0).to(u.dtype) - soft).detach()

    spike = Learnable().double()
    u = torch.tensor([-1.0, 0.0, 0.3], dtype=torch.float64)
    s = torch.sigmoid(4 * u)
    torch.testing.assert_close(derivative(spike, u), 4 * s * (1 - s))
    module = snn.LIF(3, surrogate_derivative=spike).double()
    assert spike_functions(module) == ["pos_spike"]
    _, inputs = run(module, sequence(5, 2, 3))
    assert inputs is not None
    assert spike_functions(snn.Readout(3)) == spike_functions(nn.Linear(3, 3)) == []
    module.option("shape", torch.tanh)
    assert spike_functions(module) == ["pos_spike"]


def test_a_step_that_is_not_pointwise_has_no_spike_inputs() -> None:
    class Competing(snn.Neuron):
        states = ("mem",)

        def __init__(self) -> None:
            super().__init__(4)
            self.decay("beta", 0.9)
            self.threshold("top", 1.0)

        @staticmethod
        def step(x, mem, *, beta, top, spike):
            mem = beta * mem + x - x.flatten().cumsum(0).view_as(x)
            fired = spike(mem - top)
            return fired, mem - fired * top

    module = Competing().double()
    _, seen = tt.unroll(module, sequence(6, 2, 4), by="step", record=["mem"])
    assert spike_inputs(module, sequence(6, 2, 4), {"mem": seen["mem"].detach()}) is None
