"""Loihi's CUBA neuron against int64, and against Lava's model where Python 3.10 has it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import tracetorch as tt
from tests.cases import few
from tests.chips.reference import Loihi
from tests.integers.compiled import assert_compiled_is_eager
from tracetorch.chips import loihi

N = 6


def random_neurons(seed: int) -> dict[str, Any]:
    """Any decays; thresholds and biases of any size."""
    rng = np.random.default_rng(seed)
    slow = rng.random() < 0.5
    most = 64 if slow else 4096
    return {
        "du": rng.integers(0, most, N),
        "dv": rng.integers(0, most, N),
        "threshold": rng.integers(0, 2 ** rng.integers(1, 18), N),
        "bias": rng.integers(-4096, 4096, N) << rng.integers(0, 8, N),
    }


def random_input(seed: int, steps: int) -> Any:
    """Sums of weights: of 16 bits at their largest, and long of one sign."""
    rng = np.random.default_rng(seed)
    x = rng.integers(-(2**15), 2**15, (steps, 1, N)) >> rng.integers(0, 12)
    return (x, np.abs(x), -np.abs(x))[seed % 3]


def layer(neurons: dict[str, Any]) -> loihi.LIF:
    given: dict[str, Any] = {
        name: torch.tensor(value, dtype=torch.float32) for name, value in neurons.items()
    }
    return loihi.LIF(N, pos_threshold=given.pop("threshold"), **given)


def run_reference(neurons: dict[str, Any], x: Any) -> tuple[Any, Any, Any]:
    model = Loihi(**neurons)
    rows = [(model.step(step[0]), model.u.copy(), model.v.copy()) for step in x]
    spikes, u, v = (np.array(each)[:, None] for each in zip(*rows, strict=True))
    return spikes, u, v


@pytest.mark.parametrize("seed", few(range(12), *range(4)))
def test_random_neurons_equal_int64(seed: int) -> None:
    neurons, x = random_neurons(seed), random_input(seed, 150)
    made = layer(neurons)
    rows = []
    for step in torch.tensor(x).float():
        spikes = made(step)
        rows.append((spikes, made.u, made.v))
    for name, ours, theirs in zip(
        ("spikes", "u", "v"), zip(*rows, strict=True), run_reference(neurons, x), strict=True
    ):
        assert np.array_equal(torch.stack(ours).numpy(), theirs), name


def test_the_random_neurons_wrap_saturate_and_fire() -> None:
    found = [run_reference(random_neurons(s), random_input(s, 150)) for s in range(12)]
    assert any((np.abs(np.diff(u, axis=0)) > 2**23).any() for _, u, _ in found)
    assert any((v == 1 - 2**23).any() for _, _, v in found)
    assert sum(int(spikes.sum()) for spikes, _, _ in found) > 100


def lava_model(neurons: dict[str, Any], place: int) -> Any:
    """Lava's process model of one neuron, without its runtime."""
    models = pytest.importorskip(
        "lava.proc.lif.models", reason="pip install -e '.[test-chips]' with Python 3.10"
    )
    model = models.PyLifModelBitAcc({"shape": (1,)})
    model.u, model.v = np.zeros(1, np.int32), np.zeros(1, np.int32)
    model.du, model.dv = int(neurons["du"][place]), int(neurons["dv"][place])
    model.bias_mant = neurons["bias"][place : place + 1].astype(np.int32)
    model.bias_exp = np.zeros(1, np.int32)
    model.vth = int(neurons["threshold"][place])
    model.scale_bias()
    model.scale_threshold()
    return model


@pytest.mark.parametrize("steps", [200, pytest.param(10**4, marks=pytest.mark.slow)])
def test_lavas_model_is_the_same(steps: int) -> None:
    for seed in range(10):
        neurons, x = random_neurons(seed), random_input(seed, steps)
        spikes, u, v = run_reference(neurons, x)
        for place in range(N):
            model = lava_model(neurons, place)
            for t in range(steps):
                model.subthr_dynamics(x[t, 0, place : place + 1].astype(np.int32))
                fired = model.spiking_activation()
                model.reset_voltage(fired)
                seen = int(fired[0]), int(model.u[0]), int(model.v[0])
                assert seen == tuple(int(each[t, 0, place]) for each in (spikes, u, v))


@pytest.mark.slow
def test_a_million_steps_in_one_compiled_loop_equal_int64() -> None:
    neurons, x = random_neurons(3), random_input(3, 10**6)
    with torch.no_grad():
        spikes, seen = tt.unroll(layer(neurons), torch.tensor(x).float(), record=["u", "v"])
    wanted = run_reference(neurons, x)
    for name, ours, theirs in zip("suv", (spikes, seen["u"], seen["v"]), wanted, strict=True):
        assert np.array_equal(ours.numpy(), theirs), name


def test_a_compiled_sequence_is_the_eager_one_with_its_gradients() -> None:
    eager = loihi.LIF(
        3,
        du={"value": torch.tensor([3.4, 300, 4095]), "learnable": True},
        dv={"value": 99.0, "learnable": True},
        pos_threshold={"value": 400.0, "learnable": True},
    )
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(-200, 400, (40, 2, 3), generator=generator).float()
    assert 0 < assert_compiled_is_eager(eager, x).mean() < 1


@pytest.mark.parametrize("sign_mode", ["mixed", "excitatory", "inhibitory"])
@pytest.mark.parametrize("bits", [8, 5, 1])
def test_weights_are_cut_as_the_chip_cuts_them(sign_mode: Any, bits: int) -> None:
    dense = loihi.Dense(601, 1, sign_mode=sign_mode, weight_bits=bits)
    values = np.arange(-300, 301)
    dense.weight.data = torch.tensor(values[None], dtype=torch.float32)
    sign = -1 if sign_mode == "inhibitory" else 1
    low, drop = (-256, 9 - bits) if sign_mode == "mixed" else (0, 8 - bits)
    expected = sign * (np.clip(sign * values, low, 255) >> drop << drop)
    assert np.array_equal(dense.integers()[0].detach().numpy(), expected)
    modes = {"mixed": 1, "excitatory": 2, "inhibitory": 3}
    weights = pytest.importorskip("lava.utils.weightutils", reason="Lava, with Python 3.10")
    mode = weights.SignMode(modes[sign_mode])
    theirs = weights.truncate_weights(weights.clip_weights(values, mode, 8), mode, bits)
    assert np.array_equal(expected, theirs)


@pytest.mark.parametrize("exponent", [-3, 0, 7])
def test_sums_are_shifted_by_the_exponent(exponent: int) -> None:
    dense = loihi.Dense(8, 5, exponent=exponent)
    x = torch.randint(0, 2, (4, 8), generator=torch.Generator().manual_seed(0)).float()
    total = (x @ dense.integers().T).detach().numpy().astype(int)
    expected = total << exponent if exponent >= 0 else total >> -exponent
    assert np.array_equal(dense(x).detach().numpy(), expected)


def test_a_network_trains_through_the_forward_of_the_chip() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(loihi.Dense(5, 4, exponent=3), loihi.LIF(4), loihi.Dense(4, 2))
    x = (torch.rand(20, 3, 5) < 0.5).float()
    tt.unroll(model, x).sum().backward()
    for dense in (model[0], model[2]):
        assert isinstance(dense.weight, torch.Tensor)
        assert dense.weight.grad is not None
        assert dense.weight.grad.any()
    assert repr(model[0]) == ("Dense(5, 4, exponent=3, sign_mode='mixed', weight_bits=8)")
    assert (loihi.Dense(5, 4, sign_mode="inhibitory").weight <= 0).all()


ANY: Any = loihi  # for arguments that no type checker lets pass


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: ANY.LIF(1, du=4096), ValueError, "du must be .* at most 4095, got 4096"),
        (lambda: ANY.LIF(1, dv=0.5), ValueError, "dv must be integers, got 0.5"),
        (lambda: ANY.LIF(1, pos_threshold=2**17), ValueError, "at most 131071"),
        (lambda: ANY.LIF(1, bias=2**20), ValueError, "bias must be .*at most 524288"),
        (lambda: ANY.Dense(0, 1), ValueError, "in_features must be at least 1"),
        (lambda: ANY.Dense(1, 1, exponent=8), ValueError, "exponent must be -8 to 7, got 8"),
        (
            lambda: ANY.Dense(1, 1, sign_mode="both"),
            ValueError,
            "sign_mode must be .* or",
        ),
        (lambda: ANY.Dense(1, 1, weight_bits=9), ValueError, "weight_bits must be 1 to 8, got 9"),
    ],
)
def test_errors(call: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
