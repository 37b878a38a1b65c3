"""The pass: states read where a layer is met, committed at once, refused where no step is known."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tracetorch as tt
from tests.cases import FEW_LAYERS, layer
from tracetorch import snn
from tracetorch.snn.passes import Pass, current_pass, in_one_commit, states_of

N = 3


def made() -> Any:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(N, N), snn.SLIF(N), snn.Readout(N))


def test_states_are_those_of_the_pass_until_it_is_committed() -> None:
    net, x = made(), torch.ones(2, N)
    before = net[1].mem
    run = Pass()
    run.call(net, x)
    assert net[1].mem is before is None
    assert run.call(lambda: net[1].mem) is run.call(lambda: states_of(net[1]))["mem"]
    run.commit()
    expected = made()
    expected(x)
    for name, state in tt.get_states(expected).items():
        assert torch.equal(tt.get_states(net)[name], state), name
    assert current_pass() is None


@pytest.mark.parametrize("name", FEW_LAYERS)
def test_two_calls_in_a_pass_are_two_steps(name: str) -> None:
    one, other, x = layer(name, N), layer(name, N), torch.rand(2, 4, N)
    other.load_state_dict(one.state_dict())
    run = Pass()
    found = [run.call(one, step) for step in x]
    run.commit()
    assert all(torch.equal(a, other(step)) for a, step in zip(found, x, strict=True))
    assert all(torch.equal(getattr(one, n), getattr(other, n)) for n in one.active_states)


def test_from_rest_a_pass_reads_and_touches_no_layer() -> None:
    net, x = made(), torch.ones(2, N)
    first = net(x)
    states = {id(m): dict(vars(m)) for m in net}
    assert torch.equal(Pass(from_rest=True).call(net, x), first)
    for module in net:
        assert all(vars(module)[name] is value for name, value in states[id(module)].items())


def test_a_pass_inside_reads_from_the_outer_one_and_commits_to_it() -> None:
    net, x = made(), torch.ones(2, N)
    outer = Pass()

    def nested() -> None:
        net(x)
        inner = Pass()
        inner.call(net, x)
        assert inner.went_on
        inner.commit()

    outer.call(nested)
    assert net[1].mem is None
    outer.commit()
    other = made()
    other(x)
    other(x)
    assert torch.equal(net[1].syn, other[1].syn)


def test_a_call_that_fails_leaves_no_pass_and_no_state() -> None:
    net, x = made(), torch.ones(2, N)
    with pytest.raises(ZeroDivisionError):
        in_one_commit(lambda: (net(x), 1 // 0))
    assert current_pass() is None
    assert tt.get_states(net) == {}


class Acting(nn.Module):
    """A forward that does something with the states of its layer."""

    def __init__(self, act: Any) -> None:
        super().__init__()
        self.lif, self.act = snn.LIF(N), act

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.lif(x)
        self.act(self.lif)
        return y


ACTS: dict[str, tuple[Any, str]] = {
    "reads": (lambda each: each.mem, "read its state mem"),
    "sets": (lambda each: setattr(each, "mem", None), "set its state mem"),
    "clears": (tt.zero_states, r"call zero_states\(\)"),
    "detaches": (tt.detach_states, r"call detach_states\(\)"),
    "reads all": (tt.get_states, "read its states"),
    "copies": (copy.deepcopy, "copy it"),
    "pickles": (pickle.dumps, "copy it"),
    "moves": (lambda each: each.double(), "move it"),
}


@pytest.mark.parametrize("name", ACTS)
def test_what_a_forward_does_with_states_is_refused_by_layer_with_the_verb(name: str) -> None:
    act, verb = ACTS[name]
    model = Acting(act)
    message = rf"layer 'lif', .* runs all of its time steps at once, so a forward cannot {verb}"
    with pytest.raises(ValueError, match=message):
        tt.unroll(model, torch.rand(4, 2, N))
    assert model.lif.mem is None


@pytest.mark.parametrize("name", ["reads", "clears", "reads all", "copies", "pickles"])
def test_by_step_it_is_what_a_loop_computes(name: str) -> None:
    x = torch.rand(4, 2, N)
    model, other = Acting(ACTS[name][0]), Acting(ACTS[name][0])
    with torch.no_grad():
        assert torch.equal(tt.unroll(model, x, by="step"), torch.stack([other(t) for t in x]))
    assert (model.lif.mem is None) == (other.lif.mem is None)


def test_a_copy_within_a_pass_by_step_has_the_states_of_the_step() -> None:
    copies: list[Any] = []
    model, x = Acting(lambda each: copies.append(copy.deepcopy(each))), torch.rand(3, 2, N)
    with torch.no_grad():
        tt.unroll(model, x, by="step")
    assert torch.equal(copies[-1].mem, model.lif.mem)
    assert not torch.equal(copies[0].mem, model.lif.mem)


def test_a_vmap_leaves_no_states() -> None:
    net, x = made(), torch.rand(4, 2, N)
    with pytest.raises(ValueError, match=r"would keep a state mem of all samples of a vmap.*from_"):
        torch.vmap(lambda each: tt.unroll(net, each, batched=False), in_dims=1)(x)
    assert tt.get_states(net) == {}
    found = torch.vmap(
        lambda each: tt.unroll(net, each, batched=False, from_rest=True), in_dims=1, out_dims=1
    )(x)
    torch.testing.assert_close(found, tt.unroll(net, x))


def test_a_neuron_inside_and_outside_of_a_recurrent_is_refused() -> None:
    class Twice(nn.Module):
        def __init__(self, first: bool) -> None:
            super().__init__()
            self.neuron, self.first = snn.LIF(N), first
            self.loop = snn.Recurrent(self.neuron, nn.Linear(N, N))

        def forward(self, x: Tensor) -> Tensor:
            parts = (self.neuron, self.loop) if self.first else (self.loop, self.neuron)
            return parts[1](parts[0](x))

    for first in (True, False):
        with pytest.raises(ValueError, match=r"inside of a layer that runs .* also outside of it"):
            tt.unroll(Twice(first), torch.rand(4, 2, N))
        tt.unroll(Twice(first), torch.rand(4, 2, N), by="step")
