"""First tries of a newcomer: a sequence from rest, NaN."""

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
    assert "tt.diagnose names where it begins" in message


def test_nan_is_not_looked_for_inside_a_transform(caplog: pytest.LogCaptureFixture) -> None:
    neurons = snn.LIF(4)
    x = torch.full((6, 5, 3, 4), torch.nan)
    torch.func.vmap(lambda each: tt.unroll(neurons, each, from_rest=True))(x)
    assert "NaN" not in caplog.text
