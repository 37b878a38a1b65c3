"""First tries of a newcomer: one sequence without a batch, NaN."""

from typing import Any

import pytest
import torch
from torch import nn

import tracetorch as tt
from tests.cases import layer
from tracetorch import snn


@pytest.mark.parametrize("by", ["layer", "step"])
@pytest.mark.parametrize("segment", [None, 2])
def test_from_rest_starts_from_zero_and_leaves_no_states(by: Any, segment: Any) -> None:
    net, x = layer("SRLIF", 4), 2 * torch.rand(5, 3, 4)
    expected = tt.unroll(net, x)
    held = tt.get_states(net, detach=False)
    assert torch.equal(tt.unroll(net, x, by=by, segment=segment, from_rest=True), expected)
    assert all(state is held[name] for name, state in tt.get_states(net, detach=False).items())
    tt.zero_states(net)
    other = tt.unroll(net, torch.rand(5, 7, 4), by=by, from_rest=True)
    assert other.shape == (5, 7, 4)
    assert tt.get_states(net) == {}
    with pytest.raises(ValueError, match="has 4 neurons"):
        tt.unroll(net, torch.rand(5, 7, 3), by=by, from_rest=True)
    assert tt.get_states(net) == {}


def test_check_names_the_first_nan() -> None:
    net: Any = nn.Sequential(nn.Linear(4, 4), snn.LIF(4))
    x = torch.rand(5, 3, 4)
    x[2, 1, 0] = torch.nan
    assert torch.isfinite(tt.unroll(net, x, from_rest=True)).all()  # a spike of NaN is 0
    with pytest.raises(ValueError, match="the input has NaN"):
        tt.unroll(net, x, check=True)
    with torch.no_grad():
        net[0].weight[0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"the output of 0 \(Linear\) has NaN"):
        tt.unroll(net, torch.rand(5, 3, 4), check=True)


def test_check_names_infinite_values_that_make_a_membrane_nan() -> None:
    net: Any = nn.Sequential(nn.Linear(4, 4), snn.LIF(4))
    x = torch.rand(5, 3, 4) / 10  # times 3e38 finite
    x[2, 1, 0], x[3, 1, 0] = torch.inf, -torch.inf  # whose sum is NaN
    for check in (True, 3):
        with pytest.raises(ValueError, match=r"1\.mem is NaN.* and the input has infinite values"):
            tt.unroll(net, x, check=check, from_rest=True)
    x[3, 1, 0] = 0.0
    tt.unroll(net, x, check=True, from_rest=True)  # a membrane that is infinite is no NaN
    x[3, 1, 0], x[2, 1, 0] = -10.0, 10.0
    with torch.no_grad():
        net[0].weight.fill_(3e38)
    with pytest.raises(ValueError, match=r"and the output of 0 \(Linear\) has infinite values"):
        tt.unroll(net, x, check=True)


def test_check_says_that_a_state_was_nan_before() -> None:
    net = nn.Sequential(nn.Linear(4, 4), snn.LIF(4))
    tt.unroll(net, torch.full((5, 3, 4), torch.nan))
    with pytest.raises(ValueError, match=r"1\.mem is NaN .* states it began with, which tt"):
        tt.unroll(net, torch.rand(5, 3, 4), check=True)


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("by", ["layer", "step"])
def test_nan_is_logged_once(by: Any, grad: bool, caplog: pytest.LogCaptureFixture) -> None:
    net = nn.Sequential(nn.Linear(4, 4), snn.LIF(4), nn.Linear(4, 2), snn.Readout(2))
    x = torch.rand(5, 3, 4)
    with torch.set_grad_enabled(grad):
        tt.unroll(net, torch.rand(5, 3, 4), by=by, from_rest=True)
        assert caplog.text == ""
        x[0, 2, 1] = torch.nan
        for _ in range(2):
            y = tt.unroll(net, x, by=by, from_rest=True)
    assert torch.isfinite(y).all()
    (message,) = (record.getMessage() for record in caplog.records)
    assert message.startswith("1.mem is NaN, and stays so until zero_states(). A neuron's spike is")
    assert "tt.unroll(model, x, check=True) names where it begins" in message


def test_nan_is_not_looked_for_inside_a_transform(caplog: pytest.LogCaptureFixture) -> None:
    neurons = snn.LIF(4)
    x = torch.full((6, 5, 3, 4), torch.nan)
    torch.func.vmap(lambda each: tt.unroll(neurons, each, from_rest=True))(x)
    assert "NaN" not in caplog.text
