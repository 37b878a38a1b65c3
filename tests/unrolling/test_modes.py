"""Transforms of ``torch.func``, autocast and inference mode around whole sequences."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, hessian, jacfwd, jacrev, jvp, stack_module_state, vmap

import tracetorch as tt
from tests.cases import module, sequence
from tests.unrolling.memories import Says
from tests.unrolling.models import ROADS, Whole, dyadic, made
from tracetorch import fuse, metrics, snn
from tracetorch.export.program import step_signature


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


HALVES = (torch.bfloat16, torch.float16)


@pytest.mark.parametrize("dtype", HALVES)
def test_a_check_knows_how_products_are_rounded(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x, reset = 2 * torch.rand(7, 3, 4), torch.rand(7, 3) < 0.3
    model = nn.Sequential(snn.DelayedLinear(4, 4, max_delay=3), snn.LIF(4))
    with torch.autocast("cpu", dtype):
        tt.unroll(model, x, check=True, reset=reset)
        with pytest.raises(ValueError, match=r"gives other outputs .* treat the samples"):
            tt.unroll(nn.Sequential(*model, Says(lambda x: x - x.mean(0))), x, check=True)


@pytest.mark.parametrize("dtype", HALVES)
def test_segments_under_autocast(dtype: torch.dtype) -> None:
    x = dyadic(9, 2, 3).float()
    grads = []
    for segment in (None, 4):
        model = made("dense", torch.float32)
        with torch.autocast("cpu", dtype=dtype):
            y = tt.unroll(model, x, segment=segment)
        y.float().square().sum().backward()
        grads.append((y, [p.grad for p in model.parameters()]))
    assert torch.equal(grads[0][0], grads[1][0])
    torch.testing.assert_close(grads[1][1], grads[0][1], rtol=0.05, atol=0.05)


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(4, 5), snn.LIF(5), snn.Delay(5, max_delay=2), nn.BatchNorm1d(5), snn.Readout(5)
    ).eval()


RUNS: dict[str, Callable[[Any, Tensor], Any]] = {
    **{name: ROADS[name] for name in ("by step", "segments", "checked")},
    "segments by step": lambda m, x: tt.unroll(m, x, segment=2, by="step"),
    "signature of an export": lambda m, x: step_signature(m, x[0]).initial_states(2, x.device),
    "profile": lambda m, x: torch.tensor(metrics.profile(m, x, repeats=1).operations.dense),
}


@pytest.mark.parametrize("inside", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("road", RUNS)
def test_a_model_built_in_inference_mode(road, inside):
    x = torch.rand(5, 2, 4) * 3
    with torch.no_grad():
        expected = RUNS[road](net(), x)
    with torch.inference_mode():
        model = net()
    held = dict(model.named_parameters())
    with inside():
        torch.testing.assert_close(RUNS[road](model, x), expected)
        tt.zero_states(model)
    assert all(p is held[name] and p.is_inference() for name, p in model.named_parameters())


def test_an_in_place_change_beside_a_tensor_of_inference_mode_is_found() -> None:
    def forward(s: Any, x: Tensor) -> Tensor:
        s.count += 1
        return s.cell(x * s.count)

    model = module(forward, cell=snn.LIF(3))
    model.register_buffer("count", torch.zeros(()))
    with torch.inference_mode():
        model.register_buffer("constant", torch.ones(3))
    with (
        torch.no_grad(),
        pytest.raises(ValueError, match=r"cell .LIF. is given other inputs .* the model remembers"),
    ):
        tt.unroll(model, torch.ones(4, 2, 3))
    with pytest.raises(ValueError, match="one step changes 'count'"):
        tt.export.step(model, torch.ones(2, 3))
