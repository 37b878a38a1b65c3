"""Test mixed precision: autocast and ``GradScaler`` around whole sequences."""

import pytest
import torch
from torch import nn

import tracetorch as tt
from tests.unrolling.memories import Says
from tests.unrolling.models import MODELS, By, dyadic, made
from tracetorch import snn

HALVES = (torch.bfloat16, torch.float16)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("by", ["layer", "step"])
@pytest.mark.parametrize("name", MODELS)
def test_autocast(name: str, by: By, dtype: torch.dtype) -> None:
    model, x = made(name, torch.float32), dyadic(5, *MODELS[name][1]).float()
    with torch.autocast("cpu", dtype=dtype):
        y = tt.unroll(model, x, by=by)
    assert y.dtype == dtype
    states = tt.get_states(model)
    assert {state.dtype for state in states.values()} == {torch.float32}
    y.float().square().sum().backward()
    for n, p in model.named_parameters():
        assert p.grad.dtype == torch.float32, n
        assert bool(torch.isfinite(p.grad).all()), n
    tt.zero_states(model)
    with torch.no_grad():
        expected = tt.unroll(model, x, by=by)
    # equal up to the rounding of the linear layers
    assert ((y.float() - expected).abs() < 0.05 * (1 + expected.abs())).float().mean() > 0.9


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
