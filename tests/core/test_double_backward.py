from __future__ import annotations

import pytest
import torch
import torch.autograd.forward_ad as fwAD  # noqa: N812 (PyTorch's own convention)
from torch import nn
from torch.utils.checkpoint import checkpoint

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


def test_a_state_without_a_graph_is_not_given_one() -> None:
    made = snn.LIF(2, learn_beta=False, reset="none")
    for _ in range(3):
        made(torch.ones(1, 2)).sum().backward()
    assert not made.mem.requires_grad


def test_another_error_while_saved_tensors_are_unpacked_is_left_alone() -> None:
    def unpack(_: object) -> torch.Tensor:
        raise RuntimeError("the disk is gone")

    made = snn.LIF(2)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t, unpack):
        out = made(torch.ones(1, 2))
    with pytest.raises(RuntimeError, match="the disk is gone"):
        out.sum().backward()


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")  # PyTorch's own use
def test_forward_mode_passes_a_readout() -> None:
    made = snn.Readout(2, beta=0.5)
    with fwAD.dual_level():
        y = made(fwAD.make_dual(torch.ones(1, 2), torch.ones(1, 2)))
        assert fwAD.unpack_dual(y).tangent.tolist() == [[0.5, 0.5]]


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_a_step_is_refused(reentrant: bool) -> None:
    made = snn.LIF(2)
    x = torch.ones(1, 2, requires_grad=True)
    made(x)
    made.detach_states()
    out = checkpoint(made, x, use_reentrant=reentrant)
    with pytest.raises(RuntimeError, match=r"run again inside backward.*calls zero_states\(\) fi"):
        out.sum().backward()


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("resumed", [False, True])
def test_checkpointing_a_whole_sequence_is_exact(reentrant: bool, resumed: bool) -> None:
    made = layer("SRLIF", 3)
    x = sequence(5, 2, 3, dtype=torch.float32).requires_grad_()
    made(x[0].detach())
    start = tt.get_states(made)

    def run(x: torch.Tensor) -> torch.Tensor:
        if resumed:
            tt.set_states(made, start)
        else:
            made.zero_states()
        return stepped(made, x)

    run(x).sum().backward()
    grads = [x.grad.clone(), *(p.grad.clone() for p in made.parameters())]
    x.grad = None
    made.zero_grad()
    checkpoint(run, x, use_reentrant=reentrant).sum().backward()
    for found, grad in zip([x.grad, *(p.grad for p in made.parameters())], grads, strict=True):
        torch.testing.assert_close(found, grad)


def test_without_a_graph_there_is_no_guard() -> None:
    made = snn.LIF(2, learn_beta=False, learn_pos_threshold=False)
    assert made(torch.ones(1, 2)).grad_fn is None
