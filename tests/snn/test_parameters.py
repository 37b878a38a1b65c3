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
from tracetorch import snn
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
        torch.testing.assert_close(getattr(assigned, name), getattr(made, name))
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
