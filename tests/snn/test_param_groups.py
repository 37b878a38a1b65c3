from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from tests.cases import LAYERS, Slope, layer
from tests.unrolling.models import Skip, conv, recurrent
from tracetorch import param_groups, snn
from tracetorch.core.walk import named_modules

ONE = [partial(layer, name, 4) for name in LAYERS]


class MixedModel(snn.TTModule):
    """Model with norms, tied weights, and layers in a list, frozen and recurrent."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.tied = nn.Linear(4, 4), nn.Linear(4, 4)
        self.tied.weight = self.first.weight
        self.norms = nn.ModuleList([nn.BatchNorm1d(4), nn.LayerNorm((2, 2, 4))])
        self.hidden = [snn.LIF(4), nn.Linear(4, 2)]
        self.frozen = snn.SLIF(4).requires_grad_(False)
        self.recurrent = snn.Recurrent(snn.LIF(4), nn.Linear(4, 4))
        self.free = nn.Parameter(torch.zeros(3))


def by_name(groups: list[dict[str, Any]]) -> dict[str, set[int]]:
    return {group["name"]: {id(p) for p in group["params"]} for group in groups}


@pytest.mark.parametrize("make", [MixedModel, Skip, conv, recurrent, *ONE])
@pytest.mark.parametrize("decay_biases", [True, False])
def test_every_parameter_is_in_one_group(make: Any, decay_biases: bool) -> None:
    model, neurons = make(), []
    ways: list[dict[str, Any]] = [{}, {"lr": 1e-2, "relative": True}]
    for options in ways:
        groups = param_groups(model, 0.1, decay_biases=decay_biases, **options)
        put = [id(p) for group in groups for p in group["params"]]
        every = {id(p) for _, module in named_modules(model) for p in module.parameters()}
        assert len(put) == len(set(put))
        assert set(put) == every
        torch.optim.AdamW(groups)  # raises where a parameter is in two groups
        neurons.append(by_name(groups)["neurons"])
    assert neurons[0] == neurons[1]
    if isinstance(model, snn.Neuron):
        assert neurons[0] == every


def test_groups_and_their_weight_decay() -> None:
    model = MixedModel()
    layers = (model.hidden[0], model.frozen, model.recurrent.neuron)
    raw = {id(p) for layer in layers for p in layer.parameters()}
    norms = {id(p) for norm in model.norms for p in norm.parameters()}
    linear = (model.first, model.tied, model.hidden[1], model.recurrent.connection)
    matrices, biases = {id(m.weight) for m in linear}, {id(m.bias) for m in linear}
    biases.add(id(model.free))
    found = by_name(param_groups(model, 0.1, decay_biases=True))
    assert found == {"weights": matrices | biases | norms, "neurons": raw}
    groups = param_groups(model, 0.1)
    expected = {"weights": matrices, "biases and norms": biases | norms, "neurons": raw}
    assert by_name(groups) == expected
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0, 0.0]
    assert all("lr" not in group for group in groups)


def test_learnable_surrogate_and_parametrized_parameter_are_in_the_neuron_group() -> None:
    slope, weighted = Slope(), snn.Neuron(3)
    lif = snn.LIF(3, surrogate_derivative=slope)
    parametrize.register_parametrization(lif, "raw_beta", nn.Tanh())
    weighted.decay("beta", 0.9)
    weighted.mix = nn.Parameter(torch.zeros(3, 3))
    groups = by_name(param_groups(nn.Sequential(lif, weighted), 0.1))
    raw_beta = id(dict(weighted.named_parameters())["raw_beta"])
    assert groups["neurons"] == {id(p) for p in lif.parameters()} | {raw_beta}
    assert id(slope.k) in groups["neurons"]
    assert groups["weights"] == {id(weighted.mix)}


# what PyTorch initialises as it likes: the ratio of each is about 1
DEFAULTS: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Linear(300, 200),
    "convolution in time": lambda: nn.Conv1d(16, 64, 5),
    "convolution": lambda: nn.Conv2d(16, 64, 3),
    "groups": lambda: nn.Conv2d(16, 64, 3, groups=4),
    "transposed convolution": lambda: nn.ConvTranspose2d(32, 32, 3),
    "bilinear": lambda: nn.Bilinear(20, 30, 40),
    "embedding": lambda: nn.Embedding(200, 30),
    "gru": lambda: nn.GRU(20, 60, num_layers=2),
    "lstm cell": lambda: nn.LSTMCell(20, 60),
    "attention": lambda: nn.MultiheadAttention(64, 4),
    "delays": lambda: snn.DelayedLinear(100, 80, max_delay=5),
    "recurrent": lambda: snn.Recurrent(snn.LIF(80), nn.Linear(80, 80)),
}


@pytest.mark.parametrize("name", DEFAULTS)
def test_a_default_start_has_the_ratio_1_and_a_scaled_one_its_scale(name: str) -> None:
    torch.manual_seed(0)
    model = DEFAULTS[name]()
    for scale in (1.0, 25.0):
        groups = param_groups(model, 0.1, lr=1e-2, relative=True)
        weights = {g["name"]: g for g in groups if " x " in g["name"] and g["params"][0].ndim > 1}
        assert weights
        for label, group in weights.items():
            assert group["lr"] == pytest.approx(1e-2 * scale, rel=0.1), label
            assert group["lr"] * group["weight_decay"] == pytest.approx(1e-3)
            assert label.endswith(f" x {group['lr'] / 1e-2:.3g}")
        with torch.no_grad():
            for group in weights.values():
                group["params"][0].mul_(25.0)


def test_a_bias_has_the_rate_of_its_weight_and_norms_and_neurons_keep_theirs() -> None:
    model: Any = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), snn.LIF(3), nn.Linear(3, 2))
    for p, value in (
        *((model[0].weight, 5.0), (model[0].bias, 0.0)),
        *((model[1].weight, 20.0), (model[3].weight, 0.0)),
    ):
        p.data.fill_(value)
    options: dict[str, Any] = {"neuron_lr_scale": 0.5, "relative": True}
    groups = param_groups(model, 0.1, lr=0.01, decay_biases=True, **options)
    ratio = 5 * 12**0.5
    assert [(g["name"], g["lr"], g["weight_decay"]) for g in groups] == [
        ("0.weight x 17.3", pytest.approx(0.01 * ratio), pytest.approx(0.1 / ratio)),
        ("0.bias x 17.3", pytest.approx(0.01 * ratio), pytest.approx(0.1 / ratio)),
        ("3.weight x 1", 0.01, 0.1),  # of zeros, whose size says nothing
        ("3.bias x 1", 0.01, 0.1),
        ("weights", 0.01, 0.1),  # those of the norm
        ("neurons", 0.005, 0.0),
    ]
    groups = param_groups(model, 0.1, lr=0.01, relative=True)
    assert [g["weight_decay"] > 0 for g in groups] == [True, False, True, False, False, False]


@pytest.mark.parametrize("first", ["embedding", "linear"])
def test_a_tied_weight_has_one_rate_and_the_bias_beside_it_the_same(first: str) -> None:
    """By the default of an embedding the weight is small, by that of a linear layer large."""
    modules: dict[str, Any] = {"embedding": nn.Embedding(50, 12), "linear": nn.Linear(12, 50)}
    modules["linear"].weight = modules["embedding"].weight
    second = "linear" if first == "embedding" else "embedding"
    model = nn.ModuleDict({name: modules[name] for name in (first, second)})
    rms = float(modules["embedding"].weight.detach().square().mean().sqrt())
    groups = param_groups(model, 0.1, lr=1e-2, relative=True)
    assert [(g["name"].partition(" ")[0], g["lr"]) for g in groups] == [
        (f"{first}.weight", pytest.approx(1e-2 * rms)),
        ("linear.bias", pytest.approx(1e-2 * rms)),
    ]
    assert [len(g["params"]) for g in groups] == [1, 1]


def test_delays_and_parametrized_weights_keep_the_rate_and_a_small_weight_learns() -> None:
    model: Any = nn.Sequential(snn.DelayedLinear(4, 3, max_delay=25), nn.Linear(3, 2))
    with torch.no_grad():
        model[1].weight.mul_(1e-20)
    groups = param_groups(model, 0.1, lr=1e-2, relative=True)
    rates = {id(p): g["lr"] for g in groups for p in g["params"]}
    assert rates[id(model[0].raw_delay)] == 1e-2
    assert rates[id(model[1].weight)] == pytest.approx(1e-3)
    model = nn.utils.parametrizations.weight_norm(nn.Linear(4, 3))
    groups = param_groups(model, 0.1, lr=1e-2, relative=True)
    assert {g["lr"] for g in groups} == {1e-2}


def test_relative_rates_come_back_with_the_optimizer() -> None:
    def start(scale: float) -> torch.optim.Optimizer:
        model: Any = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        model[0].weight.data.mul_(scale)
        return torch.optim.AdamW(param_groups(model, 0.1, lr=1e-2, relative=True))

    first, second = start(30.0), start(1.0)  # as many groups, whatever the ratios are
    rates = [group["lr"] for group in first.param_groups]
    assert rates != [group["lr"] for group in second.param_groups]
    second.load_state_dict(first.state_dict())
    assert [group["lr"] for group in second.param_groups] == rates
