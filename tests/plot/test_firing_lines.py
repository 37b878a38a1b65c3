"""The lines of the playground: a neuron fires where its state passes one, and only there."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import tracetorch as tt
from tests.cases import LAYERS, NEURONS, READOUTS
from tests.plot.test_save_playground import Plain, neurons_of, page_of
from tracetorch import snn
from tracetorch.plot.firing_lines import firing_lines, silent_step
from tracetorch.snn.neuron import spike_functions

# how many, where it is not one
COUNTS = dict.fromkeys(READOUTS, 0) | {"SigmaDelta": 0, "MultiLevelLIF": 4}
COUNTS |= {name: 2 for name in LAYERS if name.startswith("B")}
# of which state, where it is not the first
STATES = {"RF": "imag", "TCLIF": "soma"}
# values of parameters, where they are: of the other neurons a number, or what changes in time
CONSTANT = {"AdLIF", "SEAdLIF", "AlphaLIF", "RF", "TCLIF", "GLIF", "EIF", "QIF", "AdEx"}
INPUTS = {"AdLIF": 10.0, "SEAdLIF": 10.0, "BRF": 60.0, "EIF": 15.0, "QIF": 20.0, "AdEx": 60.0}
INPUTS |= {"Izhikevich": 30.0, "MultiLevelLIF": 3.0}


def made(name: str) -> snn.Neuron:
    layer: snn.Neuron = getattr(snn if name in LAYERS else tt.neurons, name)(1).double()
    return layer


@pytest.mark.parametrize("name", [*LAYERS, *NEURONS])
def test_a_neuron_fires_beyond_its_lines_and_nowhere_else(name: str) -> None:
    layer = made(name)
    cell, spikes = layer.cell, spike_functions(layer)
    with torch.no_grad():
        kwargs = layer.step_kwargs(1, torch.float64)
        layer(torch.zeros(1, dtype=torch.float64))
        start = {state: float(getattr(layer, state)) for state in cell.active}
        found = firing_lines(cell, spikes, start, kwargs)
        lines, names = [line for line, _ in found], [parameter for _, parameter in found]
        assert len(lines) == COUNTS.get(name, 1)
        assert [cell.states[line.place] for line in lines] == [
            STATES.get(name, cell.active[0] if name not in LAYERS else "mem")
        ] * len(lines)
        if name in LAYERS:
            assert names == ["pos_threshold", "neg_threshold"][: len(lines)]
        else:
            assert (names != [None] * len(lines)) == (name in CONSTANT)

        torch.manual_seed(0)
        states: dict[str, Any] = {state: getattr(layer, state) for state in cell.active}
        fired = 0
        for x in INPUTS.get(name, 0.8) * torch.randn(150, 1, dtype=torch.float64).add(0.5):
            tensors = (x, *map(states.get, cell.states))
            ends, _ = silent_step(cell.step, spikes, tensors, kwargs)
            output, following = cell.run((x,), states, kwargs)
            expected = 0.0
            for line in lines:
                level = line(*tensors, **kwargs)[0]
                assert (level - ends[line.place]).abs() > 1e-12  # else rounding would decide
                if line.sign * (ends[line.place] - level) > 0:
                    expected += line.sign
            if lines:
                ready = states.get("countdown", torch.zeros(1)) == 0
                assert float(output) == (expected if ready else 0.0)
                fired += expected != 0
            states = following
        assert fired > 3 or not lines


def test_a_line_goes_on_from_the_states_of_the_neuron() -> None:
    layer = made("ALIF").requires_grad_(False)
    kwargs = layer.step_kwargs(1, torch.float64)
    start = {"mem": 0.0, "adaptation": 0.0}
    ((line, _),) = firing_lines(layer.cell, ["spike"], start, kwargs)
    mem, adaptation = torch.tensor([0.9], dtype=torch.float64), torch.tensor([2.0]).double()
    level, *after = line(mem.new_tensor([3.0]), mem, adaptation, **kwargs)
    assert float(level) == pytest.approx(1 + 0.257 * 2, abs=1e-6)
    _, *expected = layer.step(mem.new_tensor([3.0]), mem, adaptation, **kwargs)
    assert all(map(torch.equal, after, expected))


class Distant(snn.Neuron):
    """Neuron that fires by what no state shows: the product of its input and its membrane."""

    states = ("mem",)

    def __init__(self, num_neurons: int) -> None:
        super().__init__(num_neurons)
        self.decay("beta", 0.9)
        self.threshold("theta", 1.0)

    @staticmethod
    def step(x: Tensor, mem: Any, *, beta: Any, theta: Any, spike: Any) -> tuple[Any, ...]:
        mem = beta * mem + x
        return spike(mem * x - theta), mem


def test_the_page_has_parameters_and_loops_and_no_line_where_none_is(tmp_path: Any) -> None:
    (neuron,) = neurons_of(page_of(Plain(2), tmp_path, neuron=1))
    names = [each["name"] for each in neuron["params"]]
    assert [names[line["param"]] for line in neuron["lines"]] == ["base", "floor"]
    assert [line["sign"] for line in neuron["lines"]] == [1.0, -1.0]
    assert neuron["variants"][0][3] == [None, None]
    (neuron,) = neurons_of(page_of(tt.neurons.ALIF(1), tmp_path))
    assert neuron["lines"] == [{"state": "mem", "sign": 1.0, "param": None}]
    (moving,) = neuron["variants"][0][3]
    assert len(moving) == 2
    (neuron,) = neurons_of(page_of(Distant(1), tmp_path))
    assert neuron["lines"] == []
