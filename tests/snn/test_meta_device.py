"""Every layer on the meta device: built, run, moved off it, and loaded."""

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

import tracetorch as tt
from tests.cases import LAYER_MAKERS, LAYERS, NEURONS, sequence
from tracetorch import snn

T, B, N = 5, 2, 4


def made_on_meta(name: str, way: str) -> nn.Module:
    if way == "moved":
        return LAYER_MAKERS[name]().to("meta")
    with torch.device("meta"):
        return LAYER_MAKERS[name]()


@pytest.mark.parametrize("way", ["built", pytest.param("moved", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] * (name in {*LAYERS, *NEURONS} - {"BSRLIF"}))
        for name in LAYER_MAKERS
    ],
)
def test_a_layer_on_meta_runs_and_is_loaded(name: str, way: str, tmp_path: Path) -> None:
    model, true = made_on_meta(name, way), LAYER_MAKERS[name]()
    shape = (T, B, N, 6) if "Conv" in name else (T, B, N)
    x = sequence(*shape, dtype=torch.float32) * NEURONS.get(name.partition(",")[0], 1.0)
    assert all(t.is_meta for t in (*model.parameters(), *model.buffers()))
    shapes = {key: value.shape for key, value in true.state_dict().items()}
    assert {key: value.shape for key, value in model.state_dict().items()} == shapes
    unknown = x.to("meta")
    for training in (True, False):
        model.train(training)
        for by in ("layer", "step"):
            y = tt.unroll(model, unknown, by=by, from_rest=True)
            assert y.is_meta
            assert y.shape == x.shape[:2] + y.shape[2:]
            if y.requires_grad:
                y.sum().backward()
        for _ in range(2):  # a second step finds states
            assert model(unknown[0]).is_meta
        with torch.no_grad():
            for _ in range(3):
                assert model(unknown[0]).is_meta
    tt.detach_states(model)
    assert all(state.is_meta for state in tt.get_states(copy.deepcopy(model)).values())
    tt.save(true, tmp_path / "file")
    if shapes:
        with pytest.raises(ValueError, match=r"on the device meta .*to_empty"):
            tt.load(tmp_path / "file", model)
    model.to_empty(device="cpu")
    assert not tt.get_states(model)
    tt.load(tmp_path / "file", model)
    with tt.fuse.backend("eager"):
        for training in (False, True):
            torch.manual_seed(0)
            expected = tt.unroll(true.train(training), x, from_rest=True)
            torch.manual_seed(0)
            y = tt.unroll(model.train(training), x, from_rest=True)
            assert torch.equal(y, expected)
            assert expected.abs().sum() > 0


def test_a_delay_out_of_range_is_refused_on_meta_too() -> None:
    with (
        torch.device("meta"),
        pytest.raises(ValueError, match=r"delay must lie between 0 and max_delay=3"),
    ):
        snn.Delay(N, max_delay=3, delay=4.0)
