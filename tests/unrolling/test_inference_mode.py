"""Models that inference mode has made, whose tensors count no writes, work wherever others do."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tracetorch as tt
from tracetorch import metrics, snn
from tracetorch.export.program import step_signature


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(4, 5), snn.LIF(5), snn.Delay(5, max_delay=2), nn.BatchNorm1d(5), snn.Readout(5)
    ).eval()


ROADS: dict[str, Callable[[Any, Tensor], Any]] = {
    "layer": lambda m, x: tt.unroll(m, x),
    "step": lambda m, x: tt.unroll(m, x, by="step"),
    "check": lambda m, x: tt.unroll(m, x, check=True),
    "segments": lambda m, x: tt.unroll(m, x, segment=2),
    "segments by step": lambda m, x: tt.unroll(m, x, segment=2, by="step"),
    "signature of an export": lambda m, x: step_signature(m, x[0]).initial_states(2, x.device),
    "profile": lambda m, x: torch.tensor(metrics.profile(m, x, repeats=1).operations.dense),
}


@pytest.mark.parametrize("inside", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("road", ROADS)
def test_a_model_built_in_inference_mode(road, inside):
    x = torch.rand(5, 2, 4) * 3
    with torch.no_grad():
        expected = ROADS[road](net(), x)
    with torch.inference_mode():
        model = net()
    held = dict(model.named_parameters())
    with inside():
        found = ROADS[road](model, x)
        tt.zero_states(model)
        torch.testing.assert_close(found, expected)
    assert all(p is held[name] and p.is_inference() for name, p in model.named_parameters())


def test_an_in_place_change_beside_a_tensor_of_inference_mode_is_found() -> None:
    class Counting(nn.Module):
        count: Tensor

        def __init__(self) -> None:
            super().__init__()
            with torch.inference_mode():
                self.register_buffer("constant", torch.ones(3))
            self.register_buffer("count", torch.zeros(()))
            self.cell = snn.LIF(3)

        def forward(self, x: Tensor) -> Tensor:
            self.count += 1
            return self.cell(x * self.count)

    with (
        torch.no_grad(),
        pytest.raises(ValueError, match=r"cell .LIF. is given other inputs .* the model remembers"),
    ):
        tt.unroll(Counting(), torch.ones(4, 2, 3))
    with pytest.raises(ValueError, match="one step changes 'count'"):
        tt.export.step(Counting(), torch.ones(2, 3))
