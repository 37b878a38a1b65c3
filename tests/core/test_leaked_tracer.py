import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import grad, jvp, vjp, vmap

import tracetorch as tt
from tracetorch import snn

LEAKED = r"holds a state mem without values, left behind by .* Call zero_states\(\)"
X = torch.ones(3, 1, 2)

TRANSFORMS: dict[str, Callable[[nn.Module], Any]] = {
    "vmap": lambda neurons: vmap(neurons)(X),
    "grad": lambda neurons: grad(lambda x: neurons(x).sum())(X[0]),
    "vjp": lambda neurons: vjp(neurons, X[0]),
    "vmap of grad": lambda neurons: vmap(grad(lambda x: neurons(x).sum()))(X),
    "grad of vmap": lambda neurons: grad(lambda x: vmap(neurons)(x).sum())(X),
}


def after_detaching(neurons: snn.LIF) -> snn.LIF:
    neurons.detach_states()
    return neurons


USES: dict[str, Callable[[snn.LIF], Any]] = {
    "a step": lambda neurons: neurons(X[0]),
    "a step of another batch": lambda neurons: neurons(torch.ones(4, 2)),
    "a step without a graph": lambda neurons: torch.no_grad()(neurons)(X[0]),
    "a sequence": lambda neurons: tt.unroll(neurons, X),
    "another transform": lambda neurons: grad(lambda x: neurons(x).sum())(X[0]),
    "another size": lambda neurons: vmap(neurons)(torch.ones(4, 1, 2)),
    "a mask": lambda neurons: tt.zero_states(neurons, where=torch.tensor([True])),
    "a copy of the states": tt.get_states,
    "deepcopy": copy.deepcopy,
    "pickle": pickle.dumps,
    "a step after detach_states": lambda neurons: after_detaching(neurons)(X[0]),
    "a step after a move": lambda neurons: neurons.double()(X[0].double()),
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_error_explains_a_leaked_state_and_zeroing_recovers(transform: str, use: str) -> None:
    neurons = snn.LIF(2)
    TRANSFORMS[transform](neurons)
    held = neurons.mem
    with pytest.raises(ValueError, match=LEAKED):
        USES[use](neurons)
    assert neurons.mem is held
    neurons.zero_states()
    assert neurons(X[0].to(neurons.raw_beta.dtype)).shape == (1, 2)
    assert list(tt.get_states(neurons)) == ["mem"]


def test_error_names_the_layer() -> None:
    net: Any = nn.Sequential(nn.Linear(2, 2), snn.LIF(2))
    vmap(net)(X)
    for use in (lambda net: net(X[0]), tt.get_states, USES["a mask"]):
        with pytest.raises(ValueError, match=rf"layer '1', LIF\(2\), {LEAKED}"):
            use(net)


def test_states_continue_inside_a_transform() -> None:
    """Steps in a transform, and in one nested in it, continue from each other's states."""
    net = nn.Sequential(nn.Linear(2, 2), snn.SLIF(2)).double()
    x = torch.rand(4, 3, 2, dtype=torch.float64)

    def loss(x: Tensor) -> Tensor:
        tt.zero_states(net)
        first = net(x[0]).sum()
        inner = grad(lambda x: net(x).sum())(x[1])  # leaks its own states
        tt.zero_states(net)
        return first + net(x[2]).sum() + net(x[3]).sum() + inner.sum()

    found = grad(loss)(x.unsqueeze(2)[:, 0])
    assert bool(found[2].any())
    together = vmap(grad(loss), in_dims=1)(x.unsqueeze(2))
    torch.testing.assert_close(together[0], found)


def test_states_of_before_a_transform_are_constants_in_it() -> None:
    neurons = snn.Readout(2, beta=0.5)
    neurons(X[0])
    found = grad(lambda x: neurons(x).square().sum())(X[0])
    assert found.tolist() == [[0.75, 0.75]]  # 2 * (0.5 * 0.5 + 0.5 * 1) * 0.5


def test_vmap_of_the_same_size_continues_from_its_states() -> None:
    neurons, alone = snn.Readout(2), snn.Readout(2)
    for _ in range(2):
        y = vmap(neurons)(X)
        expected = alone(X[0])
    assert torch.equal(y[0], expected)


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")  # PyTorch's own use
def test_state_leaked_by_forward_mode() -> None:
    neurons = snn.Readout(2)
    jvp(neurons, (X[0],), (X[0],))
    with pytest.raises(ValueError, match=LEAKED):
        neurons(X[0])
    neurons.zero_states()
    neurons(X[0])
