import pytest
import torch
import torch.autograd.forward_ad as fwAD  # noqa: N812 (PyTorch's own convention)
from torch import nn
from torch.utils.checkpoint import checkpoint

import tracetorch as tt
from tests.cases import LAYERS, layer, sequence, stepped
from tracetorch import snn


@pytest.mark.parametrize("name", LAYERS)
def test_second_backward_error_names_detach_states(name: str) -> None:
    net = nn.Sequential(nn.Linear(3, 3), layer(name, 3))
    x = sequence(4, 2, 3, dtype=torch.float32)
    stepped(net, x[:2]).sum().backward()
    out = stepped(net, x[2:])
    with pytest.raises(RuntimeError, match=r"Call detach_states\(\) after each backward\(\)"):
        out.sum().backward()


@pytest.mark.parametrize("name", LAYERS)
def test_detaching_or_retaining_the_graph_gives_exact_gradients(name: str) -> None:
    x = sequence(4, 2, 3)
    neurons = layer(name, 3).double()
    first = stepped(neurons, x[:2]).sum()
    first.backward(retain_graph=True)
    second = stepped(neurons, x[2:]).sum()
    second.backward()
    grads = {n: p.grad.clone() for n, p in neurons.named_parameters()}

    neurons.zero_grad()
    neurons.zero_states()
    stepped(neurons, x).sum().backward()
    for n, p in neurons.named_parameters():
        torch.testing.assert_close(p.grad, grads[n])

    neurons.zero_states()
    stepped(neurons, x[:2]).sum().backward()
    neurons.detach_states()
    stepped(neurons, x[2:]).sum().backward()


def test_second_backward_through_a_state_is_explained_too() -> None:
    neurons = snn.Readout(2)
    neurons(torch.ones(1, 2))
    neurons.mem.sum().backward()
    neurons(torch.ones(1, 2))
    with pytest.raises(RuntimeError, match="detach_states"):
        neurons.mem.sum().backward()


def test_second_derivatives_are_exact() -> None:
    net = nn.Sequential(nn.Linear(2, 2), snn.Readout(2)).double()
    x = sequence(2, 2).requires_grad_()

    def run(x: torch.Tensor) -> torch.Tensor:
        tt.zero_states(net)
        return net(x).square()

    assert torch.autograd.gradgradcheck(run, (x,))


def test_state_without_a_graph_stays_without_one() -> None:
    neurons = snn.LIF(2, learn_beta=False, reset="none")
    for _ in range(3):
        neurons(torch.ones(1, 2)).sum().backward()
    assert not neurons.mem.requires_grad


def test_other_errors_of_unpacking_saved_tensors_pass_unchanged() -> None:
    def unpack(_: object) -> torch.Tensor:
        raise RuntimeError("the disk is gone")

    neurons = snn.LIF(2)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t, unpack):
        out = neurons(torch.ones(1, 2))
    with pytest.raises(RuntimeError, match="the disk is gone"):
        out.sum().backward()


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")  # PyTorch's own use
def test_forward_mode_through_a_readout() -> None:
    neurons = snn.Readout(2, beta=0.5)
    with fwAD.dual_level():
        y = neurons(fwAD.make_dual(torch.ones(1, 2), torch.ones(1, 2)))
        assert fwAD.unpack_dual(y).tangent.tolist() == [[0.5, 0.5]]


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoint_around_a_step_is_refused(reentrant: bool) -> None:
    neurons = snn.LIF(2)
    x = torch.ones(1, 2, requires_grad=True)
    neurons(x)
    neurons.detach_states()
    out = checkpoint(neurons, x, use_reentrant=reentrant)
    with pytest.raises(RuntimeError, match=r"run again inside backward.*calls zero_states\(\) fi"):
        out.sum().backward()


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("resumed", [False, True])
def test_checkpoint_around_a_sequence_is_exact(reentrant: bool, resumed: bool) -> None:
    neurons = layer("SRLIF", 3)
    x = sequence(5, 2, 3, dtype=torch.float32).requires_grad_()
    neurons(x[0].detach())
    start = tt.get_states(neurons)

    def run(x: torch.Tensor) -> torch.Tensor:
        if resumed:
            tt.set_states(neurons, start)
        else:
            neurons.zero_states()
        return stepped(neurons, x)

    run(x).sum().backward()
    grads = [x.grad.clone(), *(p.grad.clone() for p in neurons.parameters())]
    x.grad = None
    neurons.zero_grad()
    checkpoint(run, x, use_reentrant=reentrant).sum().backward()
    torch.testing.assert_close([x.grad, *(p.grad for p in neurons.parameters())], grads)


def test_output_without_a_graph_has_no_grad_fn() -> None:
    neurons = snn.LIF(2, learn_beta=False, learn_pos_threshold=False)
    assert neurons(torch.ones(1, 2)).grad_fn is None
