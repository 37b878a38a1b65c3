"""States that start from other values than zero: every road gives what stepping from them gives."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tracetorch as tt
from tests.cases import PLACES, sequence, stepped, vary
from tests.fuse.cases import agree
from tests.unrolling.models import ROADS, Run
from tracetorch import snn
from tracetorch.diagnosis.evidence import _is_lost
from tracetorch.diagnosis.reach import spike_inputs

START = torch.tensor([-2.0, 0.0, 1.5])


class Resting(snn.Neuron):
    states = ("v", "w", "plain")

    def __init__(self, num_neurons: int = 3, dim: int = -1, init: Any = START) -> None:
        super().__init__(num_neurons, dim)
        self.decay("beta", 0.8)
        self.threshold("base", 1.0)
        self.state("v", init=init)
        self.state("w", init=0.25)

    @staticmethod
    def step(x, v, w, plain, *, beta, base, spike):
        v = beta * v + x - w + plain
        fired = spike(v - base)
        return fired, v - fired * base, 0.9 * w + 0.1 * fired, 0.5 * (plain + x)


def made(**arguments: Any) -> Resting:
    layer = Resting(**arguments)
    vary(layer)
    return layer


def zeroed(layer: nn.Module, x: Tensor) -> Tensor:
    """Step the same neuron without initial values, its states set before the first step."""
    other: Any = copy.deepcopy(layer)
    del other.initial_v, other.initial_w
    shape = [1] * (x.ndim - 1)
    shape[other.dim] = 3
    like = torch.zeros(x.shape[1:], dtype=x.dtype)
    states = {"v": START.to(x.dtype).view(shape) + like, "w": 0.25 + like, "plain": like}
    tt.set_states(other, states)
    return stepped(other, x)


@pytest.mark.parametrize(("dim", "shape"), PLACES)
@pytest.mark.parametrize("road", [stepped, torch.no_grad()(stepped), *ROADS.values()])
def test_every_road_starts_from_the_initial_values(road: Run, dim: int, shape: Any) -> None:
    layer, x = made(dim=dim), sequence(6, *shape, dtype=torch.float32)
    expected = zeroed(layer, x)
    for _ in range(2):  # the second time by what the first has prepared
        assert torch.equal(road(layer, x), expected)
        layer.zero_states()
    assert expected.any()


@pytest.mark.parametrize("name", ["cpu", "eager"])
def test_gradients_agree(name: str) -> None:
    agree(made(), sequence(9, 2, 3, dtype=torch.float32), name)


def test_masked_samples_restart_from_copies_of_the_initial_values() -> None:
    layer, x = made(), sequence(4, 2, 3, dtype=torch.float32)
    stepped(layer, x)
    before = layer.v
    layer.zero_states(where=torch.tensor([True, False]))
    assert torch.equal(layer.v[0], START)
    assert torch.equal(layer.w[0], torch.full((3,), 0.25))
    assert not layer.plain[0].any()
    assert torch.equal(layer.v[1], before[1])
    layer.zero_states()
    assert layer.v is None
    start = layer.initial_state("v", torch.Size([2, 3]), torch.float32, torch.device("cpu"))
    start.add_(1)
    assert torch.equal(layer.initial_v, START)


def test_values_that_are_loaded_later_count_if_they_fit(tmp_path: Path) -> None:
    layer, x = made(), sequence(4, 2, 3, dtype=torch.float32)
    tt.save(layer, tmp_path / "layer.safetensors")
    with pytest.raises(ValueError, match="initial_v"):
        tt.load(tmp_path / "layer.safetensors", Resting(init=0.5))
    tt.unroll(layer, x, from_rest=True)  # prepares a sequence
    layer.load_state_dict({**layer.state_dict(), "initial_v": torch.zeros(3)})
    tt.unroll(layer, 0 * x[:1])
    assert torch.equal(layer.v, torch.full((2, 3), -0.25))


def test_states_of_one_layer_given_the_other_initial() -> None:
    net, x = nn.Sequential(made(), made()), sequence(2, 2, 3, dtype=torch.float32)
    net(x[0])
    tt.set_states(net, {f"0.{n}": s for n, s in tt.get_states(net[0]).items()})
    y = net[0](x[1])
    assert torch.equal(net[1](y), zeroed(net[1], y[None])[0])


def test_nir_has_no_place_for_them() -> None:
    layer = snn.LIF(3)
    layer.state("mem", init=0.0)
    tt.nir.to_nir(layer, (3,))
    layer.initial_mem += 0.5
    with pytest.raises(ValueError, match="starts from states other than zero"):
        tt.nir.to_nir(layer, (3,))


def test_diagnosis_knows_where_states_start() -> None:
    layer, x = made(), sequence(6, 2, 3, dtype=torch.float32)
    y, seen = tt.unroll(layer, x, record=layer.states)
    inputs = spike_inputs(layer, x, {name: state.detach() for name, state in seen.items()})
    assert inputs is not None
    assert torch.equal(inputs.above["spike"] > 0, y > 0)
    before = layer.v
    assert not _is_lost(layer, "v", before)
    layer.zero_states(where=torch.ones(2, dtype=torch.bool))
    assert _is_lost(layer, "v", before)
    assert not _is_lost(layer, "v", layer.v)
