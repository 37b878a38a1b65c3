from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tracetorch as tt
from tests.unrolling.models import MODELS, dyadic, made
from tracetorch import snn
from tracetorch.unrolling.first_run import is_close


class Centred(nn.Module):
    """Mixes the batch in its own code, which no list of known modules contains."""

    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(0)


class Reversed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell = snn.Readout(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.cell(x.flip(0))


@pytest.mark.parametrize("name", MODELS)
def test_valid_model_passes_and_is_restored(name: str) -> None:
    model = nn.Sequential(*made(name), nn.Dropout(0.5), nn.Identity()).double()
    x = dyadic(6, *MODELS[name][1])
    tt.unroll(model, x[:2])
    state, random = tt.get_states(model), torch.get_rng_state()
    model[-1].eval()
    expected = tt.unroll(model, x[2:])
    tt.set_states(model, state)
    torch.set_rng_state(random)
    assert torch.equal(tt.unroll(model, x[2:], check=True), expected)
    assert (model.training, model[-1].training) == (True, False)


def test_a_batch_norm_differs_in_training_and_its_statistics_stay() -> None:
    model: Any = nn.Sequential(nn.BatchNorm1d(3), snn.LIF(3))
    x = torch.randn(5, 4, 3)
    with pytest.raises(ValueError, match=r"0 \(BatchNorm1d\) .* its statistics over the batch"):
        tt.unroll(model, x, check=True)
    assert model[0].num_batches_tracked == 0
    assert model[0].running_mean.count_nonzero() == 0
    tt.unroll(model.eval(), x, check=True)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Sequential(nn.Linear(3, 3), Centred(), snn.LIF(3)), r"1 \(Centred\) gives other outp"),
        (nn.Sequential(nn.Sequential(snn.LIF(3), Centred())), r"0\.1 \(Centred\) gives other out"),
        (
            nn.Sequential(snn.Readout(3), Reversed()),
            r"1 \(Reversed\) gives 1\.cell .* other",
        ),
    ],
)
def test_error_names_the_first_module_that_differs(model: Any, message: str) -> None:
    x = 2 * torch.rand(5, 4, 3)
    model[0](torch.ones(4, 3))
    before = tt.get_states(model)
    with pytest.raises(ValueError, match=message):
        tt.unroll(model, x, check=True)
    assert all(torch.equal(before[name], s) for name, s in tt.get_states(model).items())
    assert model.training


class Drifting(nn.Module):
    """Computes something else in a batch that is larger than three: by layer."""

    def __init__(self, factor: float, offset: float) -> None:
        super().__init__()
        self.factor, self.offset = factor, offset

    def forward(self, x: Tensor) -> Tensor:
        return x * (1 + self.factor) + self.offset if len(x) > 3 else x


@pytest.mark.parametrize(
    ("scale", "factor", "offset", "is_found"),
    [
        (1.0, 1.09e-4, 0.0, False),  # rtol of 1e-4, and 1e-5 of the largest value
        (1.0, 1.11e-4, 0.0, True),
        (1.0, -1.09e-4, 0.0, False),
        (1.0, -1.11e-4, 0.0, True),
        (0.0, 0.0, 0.9e-8, False),  # all values are zero, the largest counts as a thousandth
        (0.0, 0.0, 1.1e-8, True),
    ],
)
def test_tolerance_of_a_value(scale: float, factor: float, offset: float, is_found: bool) -> None:
    model = nn.Sequential(Drifting(factor, offset), snn.Readout(4)).double()
    x = torch.full((5, 3, 4), scale, dtype=torch.float64)
    if is_found:
        with pytest.raises(ValueError, match=r"0 \(Drifting\) gives other outputs"):
            tt.unroll(model, x, check=True)
    else:
        tt.unroll(model, x, check=True)


def test_small_values_are_measured_by_the_largest() -> None:
    for offset, is_found in ((0.9e-4, False), (1.1e-4, True)):
        one = torch.tensor([10.0, 0.0], dtype=torch.float64)
        other = torch.tensor([10.0, offset], dtype=torch.float64)
        assert is_close(one, other) is not is_found


@pytest.mark.parametrize("limit", [0.005, 5.0])
def test_faults_among_small_and_among_large_values_are_found(limit: float) -> None:
    """The values of the run itself, 1, show neither."""

    class Limited(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            hit = x.abs() > limit if limit > 1 else x.abs() < limit
            return torch.where(hit & (len(x) > 3), 2 * x + 1, x)

    model = nn.Sequential(Limited(), snn.Readout(40))
    with pytest.raises(ValueError, match=r"0 \(Limited\) gives other outputs"):
        tt.unroll(model, torch.ones(5, 3, 40), check=True)


def test_module_called_on_a_constant_is_skipped() -> None:
    class Scaled(snn.TTModule):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Linear(1, 3)
            self.cell = snn.Readout(3)

        def forward(self, x: Tensor) -> Any:
            return self.cell(x * self.table(torch.ones(1, dtype=x.dtype)))

    assert tt.unroll(Scaled(), torch.rand(5, 4, 3), check=True).shape == (5, 4, 3)


def test_difference_hidden_by_spikes_is_found_in_the_states() -> None:
    class Hidden(snn.TTModule):
        def __init__(self) -> None:
            super().__init__()
            self.cell = snn.LIF(3, pos_threshold=100.0)

        def forward(self, x: Tensor) -> Tensor:
            return self.cell(x - x.mean(0, keepdim=True))

    with pytest.raises(ValueError, match=r"the model \(Hidden\) gives cell .* other inputs"):
        tt.unroll(Hidden(), torch.rand(5, 4, 3), check=True)


def test_modules_without_tensor_inputs_are_skipped() -> None:
    class Held:
        def __init__(self, x: Tensor) -> None:
            self.x = x

    class Inner(snn.TTModule):
        def __init__(self) -> None:
            super().__init__()
            self.cell = snn.Readout(3)

        def forward(self, held: Held) -> Tensor:
            return self.cell(held.x)

    class Outer(snn.TTModule):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Inner()

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.inner(Held(x))
            return y

    assert tt.unroll(Outer(), torch.rand(5, 4, 3), check=True).shape == (5, 4, 3)


def test_replaced_buffer_is_restored() -> None:
    class Counting(nn.Module):
        calls: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.calls = self.calls + 1
            return x

    model = nn.Sequential(Counting(), snn.LIF(3))
    with pytest.raises(ValueError, match=r"0\.calls was changed"):
        tt.unroll(model, torch.randn(5, 4, 3), check=True)
    assert model[0].calls == 0


def test_modules_in_a_plain_list_are_checked_in_their_own_modes() -> None:
    class Listed(snn.TTModule):
        def __init__(self) -> None:
            super().__init__()
            self.parts = [nn.BatchNorm1d(3), nn.Dropout(0.5), snn.LIF(3)]

        def forward(self, x: Tensor) -> Tensor:
            for part in self.parts:
                x = part(x)
            return x

    model = Listed()
    for part in model.parts[:2]:
        part.eval()
    tt.unroll(model, torch.randn(5, 4, 3), check=True)
    model.parts[0].train()
    with pytest.raises(ValueError, match=r"parts\.0 \(BatchNorm1d\)"):
        tt.unroll(model, torch.randn(5, 4, 3), check=True)
    assert [part.training for part in model.parts] == [True, False, True]
