from __future__ import annotations

import pytest
import torch
from torch import nn

import tracetorch as tt
from tests.cases import LAYERS, layer, sequence, stepped
from tracetorch import snn


@pytest.mark.parametrize("name", LAYERS)
def test_a_second_backward_says_detach_states(name: str) -> None:
    net = nn.Sequential(nn.Linear(3, 3), layer(name, 3))
    x = sequence(4, 2, 3, dtype=torch.float32)
    stepped(net, x[:2]).sum().backward()
    out = stepped(net, x[2:])
    with pytest.raises(RuntimeError, match=r"Call detach_states\(\) after each backward\(\)"):
        out.sum().backward()


@pytest.mark.parametrize("name", LAYERS)
def test_detached_or_retained_it_is_right(name: str) -> None:
    x = sequence(4, 2, 3)
    made = layer(name, 3).double()
    first = stepped(made, x[:2]).sum()
    first.backward(retain_graph=True)
    second = stepped(made, x[2:]).sum()
    second.backward()
    grads = {n: p.grad.clone() for n, p in made.named_parameters()}

    made.zero_grad()
    made.zero_states()
    stepped(made, x).sum().backward()
    for n, p in made.named_parameters():
        torch.testing.assert_close(p.grad, grads[n])

    made.zero_states()
    stepped(made, x[:2]).sum().backward()
    made.detach_states()
    stepped(made, x[2:]).sum().backward()


def test_a_state_alone_notices_too() -> None:
    made = snn.Readout(2)
    made(torch.ones(1, 2))
    made.mem.sum().backward()
    made(torch.ones(1, 2))
    with pytest.raises(RuntimeError, match="detach_states"):
        made.mem.sum().backward()


def test_second_derivatives_pass_through() -> None:
    net = nn.Sequential(nn.Linear(2, 2), snn.Readout(2)).double()
    x = sequence(2, 2).requires_grad_()

    def run(x: torch.Tensor) -> torch.Tensor:
        tt.zero_states(net)
        return net(x).square()

    assert torch.autograd.gradgradcheck(run, (x,))


def test_without_a_graph_there_is_no_guard() -> None:
    made = snn.LIF(2, learn_beta=False, learn_pos_threshold=False)
    assert made(torch.ones(1, 2)).grad_fn is None
