"""Test ``torch.func`` over sequences: functional parameters, gradients, per-sample gradients."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, hessian, jacfwd, jacrev, jvp, stack_module_state, vmap

import tracetorch as tt
from tests.cases import sequence
from tests.unrolling.models import Whole, dyadic, made
from tracetorch import fuse, snn


class Restarting(Whole):
    def forward(self, x: Tensor) -> Tensor:
        mask = torch.arange(x[..., 0].numel()).view(x.shape[:2]) % 3 == 1
        return tt.unroll(self.model, x, reset=mask, from_rest=True)


def delayed() -> nn.Module:
    return nn.Sequential(snn.DelayedLinear(3, 3, max_delay=2), snn.LIF(3)).double()


def masked() -> nn.Module:
    connection = snn.connect(nn.Linear(3, 3), mask=torch.rand(3, 3) < 0.6)
    return snn.Recurrent(snn.LIF(3), connection).double()


ENSEMBLES = [lambda: Whole(made("dense")), lambda: Restarting(delayed()),
             lambda: Restarting(masked())]  # fmt: skip


@pytest.mark.parametrize("make", ENSEMBLES)
def test_ensemble_in_one_call(make: Any) -> None:
    """Also of buffers that differ, and with restarts."""
    members = [make() for _ in range(3)]
    for i, member in enumerate(members):
        for parameter in member.parameters():
            parameter.data.mul_(1 + i / 8)
    x = dyadic(5, 2, 3)
    call = lambda p, b: functional_call(members[0], (p, b), (x,))  # noqa: E731
    together = vmap(call)(*stack_module_state(members))
    torch.testing.assert_close(together, torch.stack([member(x) for member in members]))


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")  # jvp imports it
@pytest.mark.parametrize("by", ["layer", "step"])
@pytest.mark.parametrize("name", ["dense", "recurrent"])
def test_forward_mode_agrees_with_reverse_mode(name: str, by: str) -> None:
    whole, x = Whole(made(name), by=by), sequence(4, 2, 3)
    tangent = torch.linspace(-1, 1, x.numel()).double().view_as(x)
    jacobian = jacrev(whole)(x)
    _, moved, *_ = jvp(whole, (x,), (tangent,))
    assert moved.any()
    torch.testing.assert_close(moved, (jacobian * tangent).sum((-3, -2, -1)))
    torch.testing.assert_close(jacfwd(whole)(x), jacobian)
    loss = lambda x: whole(x).square().sum()  # noqa: E731
    torch.testing.assert_close(hessian(loss)(x[:, :1]), jacrev(jacrev(loss))(x[:, :1]))


@pytest.mark.parametrize("by", ["layer", "step"])
def test_states_of_a_vmap_are_not_left_behind(by: Any) -> None:
    model, x = made("dense"), dyadic(4, 2, 3)
    with pytest.raises(ValueError, match=r"BSRLIF.* keep a state mem of all .*from_rest=T"):
        vmap(lambda sample: tt.unroll(model, sample[:, None], by=by), in_dims=1)(x)
    assert tt.get_states(model) == {}
    rest = lambda sample: tt.unroll(model, sample[:, None], by=by, from_rest=True)[:, 0]  # noqa: E731
    torch.testing.assert_close(vmap(rest, in_dims=1, out_dims=1)(x), tt.unroll(model, x, by=by))


def test_backend_chosen_by_name_raises_its_reason() -> None:
    whole = Whole(made("dense"))
    with (
        fuse.backend("cpu"),
        pytest.raises(RuntimeError, match=r"torch\.func transforms see through plain operations"),
    ):
        vmap(whole, in_dims=1)(dyadic(4, 2, 3)[:, :, None])
