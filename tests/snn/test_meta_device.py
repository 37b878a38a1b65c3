"""Every layer on the meta device: built, run, moved off it, and loaded."""

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

import tracetorch as tt
from tests.cases import LAYERS, NEURONS, sequence
from tracetorch import neurons, snn

T, B, N = 5, 2, 4
EDGES = torch.tensor([[0, 2, 1, 2, 3], [1, 0, 2, 0, 3]])


def recurrent(neuron: str, connection: Callable[[], nn.Module]) -> snn.Recurrent:
    return snn.Recurrent(getattr(snn, neuron)(N), connection())


MAKERS: dict[str, Callable[[], nn.Module]] = {
    **{name: partial(getattr(snn, name), N) for name in LAYERS},
    **{name: partial(getattr(neurons, name), N) for name in NEURONS},
    "a learned tensor": lambda: snn.LIF(N, beta=torch.linspace(0.1, 0.9, N)),
    "a tensor of one value": lambda: snn.LIF(N, beta=torch.tensor(0.7)),
    "fixed": lambda: snn.LIF(N, learn_beta=False, beta_rank=0),
    "Recurrent": partial(recurrent, "LIF", partial(nn.Linear, N, N)),
    "Recurrent, no bias": partial(recurrent, "SLIF", partial(nn.Linear, N, N, bias=False)),
    "Recurrent, delayed": partial(recurrent, "LIF", partial(snn.DelayedLinear, N, N, max_delay=3)),
    "BatchNormThroughTime": partial(snn.BatchNormThroughTime, N, steps=3),
    "BatchNormThroughTime, bias": partial(snn.BatchNormThroughTime, N, steps=3, bias=True),
    "Delay": partial(snn.Delay, N, max_delay=3),
    "Delay, a number": partial(snn.Delay, N, max_delay=3, delay=2.0),
    "Delay, a tensor": lambda: snn.Delay(N, max_delay=3, delay=torch.arange(N).float()),
    "Delay, wide": partial(snn.Delay, N, max_delay=3, sigma=0.5),
    "DelayedLinear": partial(snn.DelayedLinear, N, N, max_delay=3),
    "SparseLinear": partial(snn.SparseLinear, N, N, EDGES, signs=EDGES[0].new_ones(N)),
    "SparseLinear, delayed": partial(snn.SparseLinear, N, N, EDGES, delay=EDGES[1], group=EDGES[0]),
    "SparseLinear, made there": lambda: snn.SparseLinear(N, N, torch.ones(2, 3).long(), delay=2),
    "Populations": lambda: snn.Populations(e=snn.LIF(2), i=snn.SLIF(N - 2)),
    "LockedDropout": partial(snn.LockedDropout, N),
    "Noise": partial(snn.Noise, N, seed=3),
    "Noise, uniform": partial(snn.Noise, N, seed=2**40, distribution="uniform"),
    "SEWBlock": lambda: snn.SEWBlock(nn.Sequential(nn.Linear(N, N), snn.LIF(N))),
    "a network": lambda: nn.Sequential(nn.Linear(N, N), snn.LIF(N), nn.Linear(N, N)),
}


def test_every_layer_is_here() -> None:
    classes = {name: getattr(snn, name) for name in snn.__all__}
    layers = {n for n, k in classes.items() if isinstance(k, type) and issubclass(k, nn.Module)}
    named = {name.partition(",")[0] for name in MAKERS}
    assert layers - named == {"LeakyIntegrator", "Neuron", "SequenceLayer", "TTModule"}
    assert set(neurons.__all__) <= named


def made_on_meta(name: str, way: str) -> nn.Module:
    if way == "moved":
        return MAKERS[name]().to("meta")
    with torch.device("meta"):
        return MAKERS[name]()


@pytest.mark.parametrize("way", ["built", pytest.param("moved", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] * (name in {*LAYERS, *NEURONS} - {"BSRLIF"}))
        for name in MAKERS
    ],
)
def test_a_layer_on_meta_runs_and_is_loaded(name: str, way: str, tmp_path: Path) -> None:
    model, true = made_on_meta(name, way), MAKERS[name]()
    shape = (T, B, N, 6) if "Conv" in name else (T, B, N)
    x = sequence(*shape, dtype=torch.float32) * NEURONS.get(name, 1.0)
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
