from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from tests import cases
from tests.unrolling.models import Skip, conv, recurrent
from tracetorch import param_groups, snn
from tracetorch.core.walk import named_modules


class MixedModel(snn.TTModule):
    """Model with norms, tied weights, and layers in a list, frozen and recurrent."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.tied = nn.Linear(4, 4)
        self.tied.weight = self.first.weight
        self.norms = nn.ModuleList([nn.BatchNorm1d(4), nn.LayerNorm((2, 2, 4))])
        self.hidden = [snn.LIF(4), nn.Linear(4, 2)]
        self.frozen = snn.SLIF(4).requires_grad_(False)
        self.recurrent = snn.Recurrent(snn.LIF(4), nn.Linear(4, 4))
        self.free = nn.Parameter(torch.zeros(3))


def by_name(groups: list[dict[str, Any]]) -> dict[str, set[int]]:
    return {group["name"]: {id(p) for p in group["params"]} for group in groups}


@pytest.mark.parametrize("make", [MixedModel, Skip, conv, recurrent])
@pytest.mark.parametrize("decay_biases", [True, False])
def test_every_parameter_is_in_one_group(make: Any, decay_biases: bool) -> None:
    model = make()
    groups = param_groups(model, 0.1, decay_biases=decay_biases)
    put = [id(p) for group in groups for p in group["params"]]
    every = {id(p) for _, module in named_modules(model) for p in module.parameters()}
    assert len(put) == len(set(put))
    assert set(put) == every
    torch.optim.AdamW(groups)  # raises where a parameter is in two groups


def test_groups_and_their_weight_decay() -> None:
    model = MixedModel()
    raw = {
        id(p)
        for layer in (model.hidden[0], model.frozen, model.recurrent.neuron)
        for p in layer.parameters()
    }
    norms = {id(p) for norm in model.norms for p in norm.parameters()}
    linear = (model.first, model.tied, model.hidden[1], model.recurrent.connection)
    matrices, biases = {id(m.weight) for m in linear}, {id(m.bias) for m in linear}
    biases.add(id(model.free))
    assert by_name(param_groups(model, 0.1)) == {
        "weights": matrices | biases | norms,
        "neurons": raw,
    }
    groups = param_groups(model, 0.1, decay_biases=False)
    assert by_name(groups) == {
        "weights": matrices,
        "biases and norms": biases | norms,
        "neurons": raw,
    }
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0, 0.0]
    assert all("lr" not in group for group in groups)


@pytest.mark.parametrize("name", cases.LAYERS)
def test_parameters_of_a_layer_are_in_the_neuron_group(name: str) -> None:
    (group,) = param_groups(cases.layer(name), 0.1)
    assert group["name"] == "neurons"
    assert len(group["params"]) == len(list(cases.layer(name).parameters()))


def test_groups_exempt_neurons_from_the_weight_decay_of_adamw() -> None:
    def after(groups: Any, model: Any) -> Tensor:
        optimizer = torch.optim.AdamW(groups, lr=0.1, weight_decay=0.5)
        for _ in range(50):
            for p in model.parameters():
                p.grad = torch.zeros_like(p)
            optimizer.step()
        return model[1].beta

    torch.manual_seed(0)
    model: Any = nn.Sequential(nn.Linear(2, 3), snn.LIF(3, beta=0.95))
    before = model[0].weight.detach().clone()
    assert torch.equal(after(param_groups(model, 0.5), model), torch.full((3,), 0.95))
    torch.testing.assert_close(model[0].weight, before * 0.95**50)  # (1 - lr * decay) a step
    assert bool((after(model.parameters(), model) < 0.6).all())


def test_learnable_surrogate_and_parametrized_parameter_are_in_the_neuron_group() -> None:
    class Slope(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.slope = nn.Parameter(torch.tensor(2.0))

        def forward(self, u: Tensor) -> Tensor:
            return torch.sigmoid(self.slope * u)

    class Double(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * x

    class Weighted(snn.Neuron):
        """Neuron with a matrix, which counts as a weight."""

        def __init__(self) -> None:
            super().__init__(3)
            self.decay("beta", 0.9)
            self.mix = nn.Parameter(torch.zeros(3, 3))

    slope = Slope()
    layer = snn.LIF(3, surrogate_derivative=slope)
    parametrize.register_parametrization(layer, "raw_beta", Double())
    weighted = Weighted()
    groups = by_name(param_groups(nn.Sequential(layer, weighted), 0.1))
    assert groups["neurons"] == {id(p) for p in layer.parameters()} | {id(weighted.raw_beta)}
    assert id(slope.slope) in groups["neurons"]
    assert groups["weights"] == {id(weighted.mix)}


def test_learning_rates() -> None:
    model = nn.Sequential(nn.Linear(2, 3), snn.LIF(3))
    groups = param_groups(model, 0.1, lr=0.01, neuron_lr_scale=0.5)
    assert {g["name"]: g["lr"] for g in groups} == {"weights": 0.01, "neurons": 0.005}
    optimizer = torch.optim.SGD(groups)
    assert [g["lr"] for g in optimizer.param_groups] == [0.01, 0.005]


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        (([1], 0.1), {}, TypeError, "expected an nn.Module, got list"),
        ((snn.LIF(2), "0.1"), {}, TypeError, "weight_decay must be a number, got '0.1'"),
        ((snn.LIF(2), -0.1), {}, ValueError, r"weight_decay must be finite .* got -0\.1"),
        ((snn.LIF(2), 0.1), {"lr": float("nan")}, ValueError, "lr must be finite .* got nan"),
        ((snn.LIF(2), 0.1), {"neuron_lr_scale": 2.0}, ValueError, "multiple of lr: give lr= here"),
        ((snn.LIF(2), 0.1), {"neuron_lr_scale": True}, TypeError, "scale must be a number, got T"),
        ((snn.LIF(2), 0.1), {"decay_biases": 1}, TypeError, "must be True or False, got 1"),
        ((nn.Flatten(), 0.1), {}, ValueError, "Flatten has no parameters to put in groups"),
    ],
)
def test_error_names_a_bad_argument(
    arguments: Any, options: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        param_groups(*arguments, **options)
