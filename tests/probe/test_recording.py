import sys

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


def test_xarray_dataset_has_named_dimensions() -> None:
    pytest.importorskip("xarray", reason="xarray is not installed")
    net = nn.Sequential(nn.Conv2d(1, 3, 3), snn.LIF(3, dim=-3), nn.Flatten(), snn.Readout(12))
    _, seen = tt.probe.record(net, torch.rand(5, 2, 1, 4, 4), ["mem", "output"])
    data = seen.xarray()
    assert data["1.mem"].dims == ("time", "batch", "1.neuron", "1.1", "1.2")
    assert data["3.output"].dims == ("time", "batch", "3.neuron")
    assert dict(data.sizes) == {
        "time": 5, "batch": 2, "1.neuron": 3, "1.1": 2, "1.2": 2, "3.neuron": 12,
    }  # fmt: skip
    np.testing.assert_array_equal(data["1.mem"].isel(time=3), seen["1.mem"][3].detach())
    bare = Recording({"mem": torch.ones(2, 1, 3), "x.mem": torch.ones(2, 1, 4)}).xarray()
    assert bare["mem"].dims == ("time", "batch", "0")
    assert bare["x.mem"].dims == ("time", "batch", "x.0")


def test_dims_and_sources_of_a_recording_made_by_hand() -> None:
    pytest.importorskip("xarray", reason="xarray is not installed")
    whole, steps = torch.ones(2, 1, 3, requires_grad=True), torch.ones(2, 1, 3).requires_grad_()
    each = list(steps.unbind())
    for step in each:
        step.retain_grad()
    trajectories = {"a.mem": whole, "b.mem": torch.stack(each)}
    names = ("time", "batch", "unit")
    made = Recording(trajectories, dims={"a.mem": names}, sources={"a.mem": [whole], "b.mem": each})
    (2 * whole.sum() + 3 * each[1].sum()).backward()
    gradients = made.gradients()
    assert torch.equal(gradients["a.mem"], torch.full((2, 1, 3), 2.0))
    assert torch.equal(gradients["b.mem"], torch.tensor([0.0, 3.0])[:, None, None].expand(2, 1, 3))
    for recording in (made, made.select("a.*"), made.detach(), gradients):
        assert recording.xarray()["a.mem"].dims == names
    assert made.xarray()["b.mem"].dims == ("time", "batch", "b.0")


def test_error_without_xarray_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "xarray", None)
    monkeypatch.setattr("tracetorch.core.optional.find_spec", lambda _: None)
    with pytest.raises(ModuleNotFoundError, match=r"xarray.*pip install -e '\.\[xarray\]'"):
        Recording({}).xarray()


def test_recording_errors() -> None:
    with pytest.raises(TypeError, match=r"names to tensors, got list at 'mem'"):
        Recording({"mem": [1.0]})  # type: ignore[dict-item]
