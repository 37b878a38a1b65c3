from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

import tracetorch as tt
from tests.cases import LAYERS, NEURONS, Slope, layer, module, vary
from tests.refusals import check, refusals, unchanged
from tests.unrolling.models import Skip, conv, recurrent
from tracetorch import param_groups, snn
from tracetorch.core.walk import named_modules
from tracetorch.functional import atan_surrogate, boxcar_surrogate

SPIKE = boxcar_surrogate(3.0)


class Counted(Slope):
    """A module of a learnable slope and a random number, whose calls are counted."""

    calls = 0

    def forward(self, u: Tensor) -> Tensor:
        self.calls += 1
        torch.rand(1)
        return super().forward(u)


DERIVATIVES: dict[str, Any] = {
    "cauchy": lambda u: 1 / (1 + u**2),
    "triangle": lambda u: (1 - u.abs()).clamp(min=0),
    "narrow triangle": lambda u: (1 - 20 * u.abs()).clamp(min=0),
    "logistic": lambda u: 25 * torch.sigmoid(25 * u) * (1 - torch.sigmoid(25 * u)),
    "derivative of a surrogate": atan_surrogate(2.0).derivative,
    "module": Counted(lambda u: 1 / (1 + u**2)),
}
SPIKE_FUNCTIONS: dict[str, Any] = {
    "step": lambda u: (u > 0.5).to(u.dtype),
    "bool step": lambda u: u > 0,
    "both sides": lambda u: (u.abs() > 1).to(u.dtype),
    "flat smooth step": lambda u: torch.sigmoid(u / 1000),
    "odd": torch.tanh,
    "levels": lambda u: (2 * u).round().clamp(0, 4) / 4,
    "random": lambda u: torch.bernoulli(torch.sigmoid(u)),
    "module": Counted(torch.sigmoid),
    "meta module": Counted(lambda u: 1 / (1 + u**2)).to("meta"),
    "of two dimensions": lambda u: (u > 0).to(u.dtype)[:, 0],
    "failing": lambda u: 1 / 0,
}


@pytest.mark.parametrize("kind", DERIVATIVES)
def test_a_derivative_is_no_spike_function(kind: str) -> None:
    with pytest.raises(
        ValueError, match=r"pos_threshold: surrogate_derivative takes the spike .*2"
    ):
        snn.LIF(2, surrogate_derivative=DERIVATIVES[kind])
    with pytest.raises(ValueError, match="neg_threshold: surrogate_derivative takes the spike"):
        snn.LeakyIntegrator(2, neg_threshold_setup={"surrogate": DERIVATIVES[kind]})


@pytest.mark.parametrize("kind", SPIKE_FUNCTIONS)
def test_any_spike_function_is_allowed(kind: str) -> None:
    random_state = torch.get_rng_state()
    layer: Any = snn.LIF(2, surrogate_derivative=SPIKE_FUNCTIONS[kind])
    assert layer.pos_spike is SPIKE_FUNCTIONS[kind]
    assert torch.equal(torch.get_rng_state(), random_state)
    assert getattr(layer.pos_spike, "calls", 0) == 0


@pytest.mark.parametrize("decay", [1e-7, 1 - 1e-7])
@pytest.mark.parametrize("threshold", [1e-6, 1e6])
def test_extreme_values_work(decay: float, threshold: float) -> None:
    neurons = snn.LIF(2, beta=decay, pos_threshold=threshold)
    torch.testing.assert_close(neurons.beta.double(), torch.full((2,), decay, dtype=torch.float64))
    torch.testing.assert_close(neurons.pos_threshold, torch.full((2,), threshold))
    x = torch.tensor([[0.0, 2e6]], requires_grad=True)
    out = neurons(x) + neurons(x)
    out.sum().backward()
    assert out.tolist() == [[0.0, 2.0]]
    for value in (x.grad, neurons.raw_beta.grad, neurons.raw_pos_threshold.grad):
        assert bool(torch.isfinite(value).all())


def test_tensors_set_values_and_rank_and_are_copied(tmp_path: Path) -> None:
    neurons = snn.Readout(3, beta=torch.tensor([0.0, 0.5, 1.0]))
    expected = torch.tensor([1e-7, 0.5, 1 - 1e-7], dtype=torch.float64)
    torch.testing.assert_close(neurons.beta.double(), expected, rtol=1e-6, atol=1e-9)
    assert bool(torch.isfinite(neurons.raw_beta).all())
    assert snn.LIF(3, beta=torch.tensor(0.9)).raw_beta.ndim == 0
    assert snn.LIF(3, beta=torch.rand(3), beta_rank=0).raw_beta.shape == (3,)
    bias = torch.zeros(3)
    biased = snn.RLIF(3, bias=bias)
    bias += 1
    assert biased.bias.tolist() == [0.0, 0.0, 0.0]
    with torch.no_grad():
        snn.RLIF(3).raw_bias[0] += 1  # not an expanded view of one value
        biased.raw_bias[0] += 1
    assert biased.bias.tolist() == [1.0, 0.0, 0.0]
    for beta in (0.5, torch.tensor(0.5).expand(1)):  # nor of a single neuron
        one, other = snn.Readout(1, beta=beta), snn.Readout(1)
        assert one.raw_beta.stride() == (1,)
        tt.save(one, tmp_path / "one.safetensors")
        tt.load(tmp_path / "one.safetensors", other)
        assert torch.equal(other.raw_beta, one.raw_beta)


def test_numbers_of_numpy_and_default_dtype_and_device() -> None:
    assert snn.LIF(np.int64(2), beta=np.float32(0.5), dim=np.int32(-1)).beta.tolist() == [0.5, 0.5]
    torch.set_default_dtype(torch.float64)
    try:
        assert snn.LIF(2).raw_beta.dtype == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    with torch.device("meta"):
        assert snn.LIF(2).raw_beta.device.type == "meta"


@pytest.mark.parametrize("kind", [*LAYERS, *NEURONS])
def test_an_assigned_value_is_read_and_used(kind: str) -> None:
    made, assigned, on_meta = layer(kind), layer(kind), layer(kind).to("meta")
    vary(made, seed=1)
    held = dict(assigned.named_parameters())
    for name in made.constraints:
        for each in (assigned, on_meta):
            setattr(each, name, getattr(made, name).detach())
        assert getattr(on_meta, name).is_meta
    for name in made.constraints:
        torch.testing.assert_close(getattr(assigned, name), getattr(made, name))
    assert all(held[name] is each for name, each in assigned.named_parameters())


@refusals(
    r"""
    set(snn.LIF(2), beta=0.0) -> ValueError: beta must lie strictly between 0 and 1 .*, got 0.0
    set(snn.LIF(2), beta=torch.full((2, 1), 0.5)) -> ValueError: got shape \[2, 1\]
    set(snn.BLIF(2), neg_threshold=1.0) -> ValueError: must be negative and finite .*, got 1.0
    set(snn.RLIF(2), bias=10**400) -> ValueError: bias is too large for a floating-point number
    set(snn.LIF(2), beta=torch.empty(2, device="meta")) -> RuntimeError: Cannot copy out of meta
    set(snn.LIF(2, beta_rank=0), beta=torch.full((2,), 0.5))
        -> ValueError: LIF\(2, beta_rank=0\) has one beta for all neurons, got 2 values
    set(snn.Delay(2, max_delay=5), delay=6.0) -> ValueError: delay must lie between 0 and max_de
    set(snn.DelayedLinear(2, 3, max_delay=5), delay=torch.ones(2))
        -> ValueError: tensor of shape \[3, 2\], got shape \[2\]
    set(snn.LIF(2), alpha=0.5) -> AttributeError: alpha is fixed by the constructor: tensors and st
    set(halved(snn.LIF(2)), beta=0.5) -> ValueError: computes raw_beta before every call, by a param
    set(pruned(snn.LIF(2)), beta=0.5) -> ValueError: computes raw_beta before every call, by a param
    """
)
def test_a_bad_assignment_changes_nothing(call: str, error: str) -> None:
    def assign(layer: Any, **values: Any) -> None:
        ((name, value),) = values.items()
        with unchanged(layer):
            setattr(layer, name, value)

    check(call, error, {**globals(), "set": assign})


def test_an_assignment_takes_no_gradient_away() -> None:
    """It carries none, so a tensor that has one is refused, and functional_call as ever."""
    neurons, x = snn.LIF(3), torch.ones(2, 3)
    wanted = torch.full((3,), 0.5, requires_grad=True)
    for value in (wanted, 2 * wanted, nn.Parameter(torch.rand(3))):
        with pytest.raises(ValueError, match="given a tensor with a gradient, and none flows"):
            neurons.beta = value
    for value in (wanted, wanted.detach()):
        with pytest.raises(AttributeError, match="Give functional_call raw_beta"):
            torch.func.functional_call(neurons, {"beta": value}, (x,))
    with pytest.raises(AttributeError, match="beta follows from raw_beta: it is sigmoid"):
        torch.func.vmap(lambda b: torch.func.functional_call(neurons, {"beta": b}, (x,)))(
            torch.rand(2, 3)
        )
    assert torch.equal(neurons.raw_beta, snn.LIF(3).raw_beta)
    with torch.no_grad():
        neurons.beta = wanted
    assert neurons.beta.tolist() == pytest.approx([0.5] * 3)


def test_an_assignment_during_a_pass_is_refused_by_layer() -> None:
    def forward(s: Any, x: Tensor) -> Tensor:
        y: Tensor = s.lif(x)
        s.lif.beta = 0.5 * s.lif.beta.detach()
        return y

    x = torch.rand(4, 2, 3)
    with pytest.raises(ValueError, match=r"lif \(LIF\) was changed by .*same param"):
        tt.unroll(module(forward, lif=snn.LIF(3)), x)
    model = module(forward, lif=snn.LIF(3))
    tt.unroll(model, x, by="step")
    assert model.lif.beta.tolist() == pytest.approx([0.9 / 16] * 3)


def test_an_assignment_keeps_rank_and_what_learns() -> None:
    one: Any = snn.BLIF(3, beta_rank=0, learn_beta=False)
    one.beta = torch.tensor(0.25)
    one.beta *= 2
    one.neg_threshold = -3
    assert one.raw_beta.shape == ()
    assert "raw_beta" in dict(one.named_buffers())
    assert one.beta.item() == pytest.approx(0.5)
    assert one.neg_threshold.tolist() == pytest.approx([-3.0] * 3)
    one.beta = torch.tensor(1.0)  # a tensor may touch 0 and 1, as in the constructor
    assert 0.999 < one.beta.item() < 1
    synapses: Any = snn.DelayedLinear(2, 3, max_delay=5)
    synapses.delay = 2.5
    assert synapses.delay.tolist() == [[2.5, 2.5]] * 3


def halved(layer: Any) -> Any:
    half = module(lambda s, raw: raw / 2)
    parametrize.register_parametrization(layer, "raw_beta", half)
    return layer


def pruned(layer: Any) -> Any:
    return prune.identity(layer, "raw_beta")


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
