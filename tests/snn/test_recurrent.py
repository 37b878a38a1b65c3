from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import tracetorch as tt
from tests.cases import layer, sequence, stepped
from tracetorch import snn


@pytest.mark.parametrize("name", ["LIF", "BSRLIF", "Readout"])
def test_previous_output_returns_through_the_connection(name: str) -> None:
    x = sequence(6, 2, 3)
    connection = nn.Linear(3, 3).double()
    model = snn.Recurrent(layer(name, 3).double(), connection)
    alone = layer(name, 3).double()
    previous = torch.zeros(2, 3, dtype=torch.float64)
    expected = []
    for step in x.unbind():
        previous = alone(step + connection(previous))
        expected.append(previous)
    assert torch.equal(stepped(model, x), torch.stack(expected))
    assert torch.equal(model.prev_output, previous)
    model.zero_states()
    assert torch.equal(tt.unroll(model, x), torch.stack(expected))


def test_after_step_is_called_at_every_step() -> None:
    model = snn.Recurrent(snn.LIF(3), nn.Linear(3, 3))
    seen: list[torch.Tensor] = []
    y, _ = model.forward_sequence(
        torch.rand(5, 2, 3), after_step=lambda: seen.append(model.prev_output)
    )
    assert torch.equal(torch.stack(seen), y)


def test_bias_of_the_connection_acts_at_the_first_step() -> None:
    connection = nn.Linear(1, 1)
    nn.init.constant_(connection.bias, 2.0)
    assert snn.Recurrent(snn.LIF(1), connection)(torch.zeros(1, 1)).item() == 1.0


def test_connection_may_be_a_convolution() -> None:
    model = snn.Recurrent(snn.LIF(2, dim=-3), nn.Conv2d(2, 2, 3, padding=1))
    assert tt.unroll(model, torch.rand(4, 3, 2, 5, 5)).shape == (4, 3, 2, 5, 5)
    model(torch.rand(3, 2, 5, 5)).sum().backward()
    assert model.connection.weight.grad is not None


def test_states_of_a_recurrent_layer() -> None:
    model = snn.Recurrent(snn.LIF(3), nn.Linear(3, 3))
    model(torch.ones(2, 3))
    assert list(tt.get_states(model)) == ["prev_output", "neuron.mem"]
    model.zero_states(where=torch.tensor([True, False]))
    assert not bool(model.prev_output[0].any())
    assert not bool(model.neuron.mem[0].any())
    with pytest.raises(ValueError, match=r"prev_output of shape \[2, 3\].*shape \[4, 3\]"):
        model(torch.ones(4, 3))
    model.zero_states()
    assert tt.get_states(model) == {}
    model(torch.ones(4, 3, dtype=torch.float32).bfloat16().float())


def test_first_step_in_half_precision() -> None:
    model = snn.Recurrent(snn.LIF(3), nn.Linear(3, 3)).bfloat16()
    y, seen = tt.unroll(model, torch.ones(3, 2, 3).bfloat16(), record="prev_output")
    assert y.dtype == torch.bfloat16
    assert seen["prev_output"].dtype == model.prev_output.dtype == torch.float32


@pytest.mark.parametrize(
    ("neuron", "connection", "message"),
    [
        (nn.Linear(2, 2), nn.Linear(2, 2), "neuron must be a neuron layer, got Linear"),
        (snn.LIF(2), lambda x: x, r"connection must be an nn\.Module, got function"),
    ],
)
def test_error_names_a_bad_argument(neuron: Any, connection: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        snn.Recurrent(neuron, connection)


def test_connection_must_keep_the_shape() -> None:
    model = snn.Recurrent(snn.LIF(2), nn.Linear(2, 3))
    with pytest.raises(ValueError, match=r"keeps the shape \[1, 2\], got \[1, 3\]"):
        model(torch.ones(1, 2))
    assert tt.get_states(model) == {}
