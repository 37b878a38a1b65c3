from __future__ import annotations

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

DEAD = r"holds a state mem without values, left behind by .* Call zero_states\(\)"
X = torch.ones(3, 1, 2)

TRANSFORMS: dict[str, Callable[[nn.Module], Any]] = {
    "vmap": lambda made: vmap(made)(X),
    "grad": lambda made: grad(lambda x: made(x).sum())(X[0]),
    "vjp": lambda made: vjp(made, X[0]),
    "vmap of grad": lambda made: vmap(grad(lambda x: made(x).sum()))(X),
    "grad of vmap": lambda made: grad(lambda x: vmap(made)(x).sum())(X),
}

USES: dict[str, Callable[[snn.LIF], Any]] = {
    "a step": lambda made: made(X[0]),
    "a step of another batch": lambda made: made(torch.ones(4, 2)),
    "a step without a graph": lambda made: torch.no_grad()(made)(X[0]),
    "a sequence": lambda made: tt.unroll(made, X),
    "another transform": lambda made: grad(lambda x: made(x).sum())(X[0]),
    "another size": lambda made: vmap(made)(torch.ones(4, 1, 2)),
    "a mask": lambda made: made.zero_states(where=torch.tensor([True])),
    "a copy of the states": tt.get_states,
    "deepcopy": copy.deepcopy,
    "pickle": pickle.dumps,
    "a step after detach_states": lambda made: (made.detach_states(), made(X[0])),
    "a step after a move": lambda made: made.double()(X[0].double()),
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_what_a_transform_left_behind_is_told_and_zeroed(transform: str, use: str) -> None:
    made = snn.LIF(2)
    TRANSFORMS[transform](made)
    held = made.mem
    with pytest.raises(ValueError, match=DEAD):
        USES[use](made)
    assert made.mem is held
    made.zero_states()
    assert made(X[0].to(made.raw_beta.dtype)).shape == (1, 2)
    assert list(tt.get_states(made)) == ["mem"]


def test_the_message_names_the_layer() -> None:
    net = nn.Sequential(nn.Linear(2, 2), snn.LIF(2))
    vmap(net)(X)
    with pytest.raises(ValueError, match=rf"layer '1', LIF\(2\), {DEAD}"):
        net(X[0])
    with pytest.raises(ValueError, match=rf"layer '1', LIF\(2\), {DEAD}"):
        tt.get_states(net)
    with pytest.raises(ValueError, match=rf"layer '1', LIF\(2\), {DEAD}"):
        tt.zero_states(net, where=torch.tensor([True]))


def test_a_running_transform_has_its_states() -> None:
    """Within one transform, and in those inside it, steps go on from each other's states."""
    net = nn.Sequential(nn.Linear(2, 2), snn.SLIF(2)).double()
    x = torch.rand(4, 3, 2, dtype=torch.float64)

    def loss(x: Tensor) -> Tensor:
        tt.zero_states(net)
        first = net(x[0]).sum()
        inner = grad(lambda x: net(x).sum())(x[1])  # leaves its own states behind
        tt.zero_states(net)
        return first + net(x[2]).sum() + net(x[3]).sum() + inner.sum()

    found = grad(loss)(x.unsqueeze(2)[:, 0])
    assert bool(found[2].any())
    together = vmap(grad(loss), in_dims=1)(x.unsqueeze(2))
    torch.testing.assert_close(together[0], found)


def test_states_from_before_a_transform_are_constants_in_it() -> None:
    made = snn.Readout(2, beta=0.5)
    made(X[0])
    found = grad(lambda x: made(x).square().sum())(X[0])
    assert found.tolist() == [[0.75, 0.75]]  # 2 * (0.5 * 0.5 + 0.5 * 1) * 0.5


def test_a_map_of_the_same_size_goes_on() -> None:
    made, alone = snn.Readout(2), snn.Readout(2)
    for _ in range(2):
        y = vmap(made)(X)
        expected = alone(X[0])
    assert torch.equal(y[0], expected)


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")  # PyTorch's own use
def test_forward_mode() -> None:
    made = snn.Readout(2)
    jvp(made, (X[0],), (X[0],))
    with pytest.raises(ValueError, match=DEAD):
        made(X[0])
    made.zero_states()
    made(X[0])
