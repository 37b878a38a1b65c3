"""Test values whose gradients in the graph are replaced."""

import torch

from tracetorch.online_learning.lanes import LaneDerivatives
from tracetorch.online_learning.rewire import with_derivatives


def test_gradients_are_the_derivatives_that_are_given_in_the_shape_of_each_source() -> None:
    x = torch.ones(2, 3, dtype=torch.float32, requires_grad=True)
    state, decay = (torch.ones(n, 3, dtype=torch.float64, requires_grad=True) for n in (2, 1))
    values = [(x * state * decay).double(), state.square()]
    by_x = torch.arange(6.0).double().view(2, 3)
    derivatives = LaneDerivatives(
        by_state=[[None], [2 * by_x]],
        by_input=[by_x, None],
        by_parameter=[{"decay": 3 * by_x}, {"decay": None}],
    )
    first, second = with_derivatives(values, derivatives, x, [state], {"decay": decay})
    assert torch.equal(first, values[0])
    assert torch.equal(second, values[1])
    (first + 10 * second).sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, by_x.float())
    assert state.grad is not None
    assert torch.equal(state.grad, 20 * by_x)
    assert decay.grad is not None
    assert torch.equal(decay.grad, 3 * by_x.sum(0, keepdim=True))


def test_a_missing_state_and_an_unused_value_have_no_gradient() -> None:
    x = torch.ones(2, requires_grad=True)
    derivatives = LaneDerivatives([[None], [None]], [torch.ones(2), None], [{}, {}])
    first, second = with_derivatives([x.detach(), x.detach()], derivatives, x, [None], {})
    assert torch.autograd.grad(second.sum(), x, allow_unused=True, retain_graph=True) == (None,)
    assert torch.equal(torch.autograd.grad(first.sum(), x)[0], torch.ones(2))
