"""Autocast and inference mode around whole sequences."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tracetorch as tt
from tests.cases import module
from tests.unrolling.memories import Says
from tests.unrolling.models import ROADS, dyadic, made
from tracetorch import metrics, snn
from tracetorch.export.program import step_signature

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


# Models that inference mode has made, whose tensors count no writes, work wherever others do


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
