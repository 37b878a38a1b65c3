"""The pass: states read where a layer is met, committed at once, refused where no step is known."""

import copy
from typing import Any

import torch
from torch import nn

import tracetorch as tt
from tests.cases import module
from tracetorch import snn
from tracetorch.snn.passes import Pass, current_pass, states_of

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


def test_a_copy_within_a_pass_by_step_has_the_states_of_the_step() -> None:
    copies: list[Any] = []
    keep: Any = copies.append
    model = module(lambda s, x: (s.lif(x), keep(copy.deepcopy(s.lif)))[0], lif=snn.LIF(N))
    with torch.no_grad():
        tt.unroll(model, torch.rand(3, 2, N), by="step")
    assert torch.equal(copies[-1].mem, model.lif.mem)
    assert not torch.equal(copies[0].mem, model.lif.mem)
