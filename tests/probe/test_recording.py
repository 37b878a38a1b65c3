from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import tracetorch as tt
from tests.unrolling.models import dyadic, made
from tracetorch import snn
from tracetorch.probe import Recording


def test_recording_is_a_mapping() -> None:
    _, seen = tt.probe.record(made("dense"), dyadic(4, 2, 3), ["mem", "output"])
    assert list(seen) == ["1.mem", "1.output", "3.mem", "3.output"]
    assert len(seen) == 4
    assert "1.mem" in seen
    assert "9.mem" not in seen
    assert dict(seen)["1.mem"] is seen["1.mem"]
    with pytest.raises(KeyError, match=r"nothing is called '9\.mem'\. There are 1\.mem"):
        seen["9.mem"]
    assert repr(seen.select("3.*")) == "Recording(3.mem [4, 2, 2], 3.output [4, 2, 2])"
    with pytest.raises(ValueError, match=r"select: nothing is called '9\.mem'\. Did you mean"):
        seen.select("9.mem")


def test_selected_trajectories_keep_their_gradients_and_go_into_losses() -> None:
    y, seen = tt.probe.record(made("dense"), dyadic(4, 2, 3), ["input", "output"], gradients=True)
    y.sum().backward()
    part = seen.select("1.*").gradients()
    assert list(part) == ["1.input", "1.output"]
    assert torch.equal(part["1.input"], seen.gradients()["1.input"])
    _, seen = tt.probe.record(made("dense"), dyadic(4, 2, 3), "output")
    spikes = seen.select("1.*")
    assert torch.equal(tt.loss.spike_l1(spikes), tt.loss.spike_l1(seen["1.output"]))


def test_numpy_arrays_and_detached_tensors() -> None:
    _, seen = tt.probe.record(made("dense"), dyadic(4, 2, 3), "mem")
    assert seen["1.mem"].requires_grad
    assert not seen.detach()["1.mem"].requires_grad
    arrays = seen.numpy()
    assert arrays["1.mem"].dtype == np.float64
    np.testing.assert_array_equal(arrays["1.mem"], seen["1.mem"].detach())
    halves = Recording({"output": torch.ones(2, 1, 3, dtype=torch.bfloat16)}).numpy()
    assert halves["output"].dtype == np.float32


def test_sources_of_a_recording_made_by_hand() -> None:
    whole, steps = torch.ones(2, 1, 3, requires_grad=True), torch.ones(2, 1, 3).requires_grad_()
    each = list(steps.unbind())
    for step in each:
        step.retain_grad()
    trajectories = {"a.mem": whole, "b.mem": torch.stack(each)}
    made = Recording(trajectories, sources={"a.mem": [whole], "b.mem": each})
    (2 * whole.sum() + 3 * each[1].sum()).backward()
    gradients = made.gradients()
    assert torch.equal(gradients["a.mem"], torch.full((2, 1, 3), 2.0))
    assert torch.equal(gradients["b.mem"], torch.tensor([0.0, 3.0])[:, None, None].expand(2, 1, 3))


@pytest.mark.parametrize("by", ["layer", "step"])
def test_layers_tell_spikes_from_states(by: Any) -> None:
    recurrent = snn.Recurrent(snn.LIF(2), nn.Linear(2, 2, bias=False))
    net = nn.Sequential(recurrent, snn.RLIF(2), snn.Readout(2))
    what = ["input", "mem", "rec", "output", "prev_output"]
    _, seen = tt.probe.record(net, torch.zeros(5, 1, 2), what, by=by)  # all of it is 0
    spikes = {n for n in seen if n.endswith("output") and not n.startswith("2")}
    assert len(spikes) >= 4
    for recording in (seen, seen.detach(), seen.select("*")):
        assert {n for n, kind in recording.kinds.items() if kind == "spikes"} == spikes
        states = {name for name, kind in recording.kinds.items() if kind == "state"}
        assert states == {n for n in seen if n not in spikes and not n.endswith("input")}
    x = torch.ones(5, 1, 2, requires_grad=True)
    y, seen = tt.probe.record(snn.LIF(2), x, "output", by=by, gradients=True)
    y.sum().backward()
    assert set(seen.gradients().kinds.values()) == {"state"}
