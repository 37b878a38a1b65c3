"""The pass: states read where a layer is met, committed at once, refused where no step is known."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

import tracetorch as tt
from tests.cases import FEW_LAYERS, layer, module
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
    torch.testing.assert_close(tt.get_states(net), tt.get_states(expected), rtol=0, atol=0)
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
    for part in net:
        assert all(vars(part)[name] is value for name, value in states[id(part)].items())


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


def test_a_copy_within_a_pass_by_step_has_the_states_of_the_step() -> None:
    copies: list[Any] = []
    keep: Any = copies.append
    model = module(lambda s, x: (s.lif(x), keep(copy.deepcopy(s.lif)))[0], lif=snn.LIF(N))
    with torch.no_grad():
        tt.unroll(model, torch.rand(3, 2, N), by="step")
    assert torch.equal(copies[-1].mem, model.lif.mem)
    assert not torch.equal(copies[0].mem, model.lif.mem)
