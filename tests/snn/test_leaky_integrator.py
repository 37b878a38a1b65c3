from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.cases import LAYERS, PLACES, SPIKING, configurations, few, layer, sequence, stepped, vary
from tests.oracle import simulate
from tests.unrolling.models import gradcheck
from tracetorch import fuse, snn
from tracetorch.functional import atan_surrogate

GOLDEN = torch.load(
    Path(__file__).parent.parent / "golden" / "tracetorch_0_9_2.pt", weights_only=True
)
PARAMETERS: tuple[str, ...] = ("alpha", "beta", "gamma", "pos_threshold", "neg_threshold")
PARAMETERS += ("pos_scale", "neg_scale", "rec_weight", "bias")


@pytest.mark.parametrize("case", GOLDEN, ids=[case["layer"] for case in GOLDEN])
def test_agrees_with_version_0_9_2(case: dict[str, Any]) -> None:
    neurons = getattr(snn, case["layer"])(**case["kwargs"]).double()
    neurons.load_state_dict(case["state_dict"])
    x = case["x"].clone().requires_grad_()
    out = stepped(neurons, x)
    (out * case["cotangent"]).sum().backward()
    parameters = dict(neurons.named_parameters())
    assert sorted(parameters) == sorted(case["learnable"])
    assert set(case["states"]) == set(neurons.active_states)
    grads = {name: parameters[name].grad for name in case["grads"]}
    states = {name: getattr(neurons, name) for name in case["states"]}
    expected = [case[key] for key in ("out", "grad_x", "grads", "states")]
    torch.testing.assert_close([out, x.grad, grads, states], expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("turn", few(range(4), 0))
@pytest.mark.parametrize("recurrence", [False, True])
@pytest.mark.parametrize("synapse", [False, True])
def test_agrees_with_the_simulator(synapse: bool, recurrence: bool, turn: int) -> None:
    """Every two options together; behind the slow turns, every configuration at every place."""
    fired = 0.0
    every = list(configurations(synapse, recurrence))
    for number, arguments in enumerate(every if turn else every[::7], turn):
        dim, shape = PLACES[number % len(PLACES)]
        x = sequence(5, *shape)
        neurons = snn.LeakyIntegrator(3, dim, **arguments).double()
        vary(neurons)
        with torch.no_grad(), fuse.backend("eager"):  # the step itself, not a kernel of it
            out = stepped(neurons, x).numpy()
        values = {n: getattr(neurons, n) for n in PARAMETERS if getattr(neurons, n) is not None}
        values = {name: value.detach().numpy() for name, value in values.items()}
        averaged = {name: getattr(neurons, f"{name}_ema") for name in ("alpha", "beta", "gamma")}
        expected, states = simulate(x.numpy(), dim, values, averaged, arguments["reset"])
        close: dict[str, Any] = {"rtol": 1e-12, "atol": 1e-14, "err_msg": str(neurons)}
        np.testing.assert_allclose(out, expected, **close)
        np.testing.assert_array_equal(out != 0, expected != 0, err_msg=str(neurons))
        for name in neurons.active_states:
            np.testing.assert_allclose(getattr(neurons, name).numpy(), states[name], **close)
        if neurons.pos_threshold is not None or neurons.neg_threshold is not None:
            fired += float((out != 0).mean())
    assert fired > 0


@pytest.mark.parametrize("sign", ["pos", "neg"])
@pytest.mark.parametrize(
    ("reset", "detached", "expected"),
    [
        ("subtract", False, [0.3111, 0.7349]),
        ("subtract", True, [0.9, 1.0]),
        ("zero", False, [-0.6027, 0.9727]),
        ("zero", True, [0.0, 1.0]),
        ("none", False, [0.9, 1.0]),
    ],
)
def test_gradient_through_the_reset(reset, detached, expected, sign):
    setups: dict[str, Any] = {f"{sign}_threshold_setup": {}, "beta_setup": 0.9}
    neurons = snn.LeakyIntegrator(1, **setups, reset=reset, detach_reset=detached)
    x = torch.tensor([1.3, 0.2], requires_grad=True)
    for step in (x if sign == "pos" else -x).unbind():
        neurons(step.reshape(1, 1))
    (neurons.mem if sign == "pos" else -neurons.mem).sum().backward()
    torch.testing.assert_close(x.grad, torch.tensor(expected), rtol=0, atol=5e-5)


@pytest.mark.parametrize("name", SPIKING)
@pytest.mark.parametrize("reset", ["subtract", "zero"])
def test_detached_reset_keeps_the_gradient_of_its_threshold(name: str, reset: str) -> None:
    neurons = layer(name, reset=reset, detach_reset=True).double()
    stepped(neurons, sequence(6, 2, 4))
    neurons.mem.sum().backward()
    grad = neurons.raw_pos_threshold.grad
    if reset == "subtract":
        assert bool((grad != 0).any())
    elif neurons.gamma is None:  # only the detached spike depends on the threshold
        assert grad is None or not bool(grad.any())


@pytest.mark.one_in(2)
@pytest.mark.parametrize(
    ("name", "reset"),
    [(n, r) for n in LAYERS for r in ("subtract", "zero", "none") if n in SPIKING or r[0] == "s"],
)
def test_gradients_against_finite_differences(name: str, reset: str) -> None:
    torch.manual_seed(0)
    options: dict[str, Any] = {"reset": reset} if name in SPIKING else {}
    for sign in ("pos_", "neg_") if name.startswith("B") else ("",) * (name in SPIKING):
        options[f"{sign}surrogate_derivative"] = lambda u: torch.sigmoid(3 * u)
    net: Any = layer(name, 2, **options)
    if reset == "subtract":
        net = nn.Sequential(nn.Linear(2, 3), layer(name, 3, **options), nn.Linear(3, 2), net)
    gradcheck(net.double(), sequence(3, 2, 2), by="step")


def test_setups_may_be_absent_or_a_dataclass() -> None:
    neurons = snn.LeakyIntegrator(2, alpha_setup={"value": 0.3}, beta_setup=None)
    assert neurons.beta.tolist() == pytest.approx([0.9, 0.9])
    assert neurons.alpha.tolist() == pytest.approx([0.3, 0.3])
    assert (neurons.alpha_ema, neurons.beta_ema) == (True, False)
    assert snn.LeakyIntegrator(2, alpha_setup=snn.Decay(0.3)).alpha_ema is True


# value, and use_averaging of a decay
DEFAULTS: dict[str, tuple[float, bool | None]] = {
    "alpha": (0.5, True), "beta": (0.9, False), "gamma": (0.5, True),
    "pos_threshold": (1.0, None), "neg_threshold": (-1.0, None), "pos_scale": (1.0, None),
    "neg_scale": (1.0, None), "rec_weight": (0.0, None), "bias": (0.0, None),
}  # fmt: skip


@pytest.mark.parametrize("empty", ["dict", "dataclass"])
@pytest.mark.parametrize("name", LAYERS)
def test_empty_setups_give_the_defaults_of_every_layer(name: str, empty: str) -> None:
    wrapper = getattr(snn, name)(3)
    kinds: dict[str, Any] = {"alpha": snn.Decay, "beta": snn.Decay, "gamma": snn.Decay}
    kinds |= {"pos_threshold": snn.Threshold, "neg_threshold": snn.Threshold}
    setups: dict[str, Any] = {
        f"{part}_setup": {} if empty == "dict" else kinds.get(part, snn.Weight)()
        for part in wrapper.constraints
    }
    made = snn.LeakyIntegrator(3, **setups)
    assert (made.dim, made.reset, made.detach_reset) == (-1, "subtract", False)
    assert dict(made.named_buffers()) == {}
    assert set(made.constraints) == set(wrapper.constraints)
    raws = dict(made.named_parameters())
    for part, (value, averaging) in DEFAULTS.items():
        if part not in wrapper.constraints:
            assert getattr(made, part) is None
            continue
        torch.testing.assert_close(getattr(made, part), torch.full((3,), value))
        assert torch.equal(raws[f"raw_{part}"], getattr(wrapper, f"raw_{part}"))
        if averaging is not None:
            assert getattr(made, f"{part}_ema") is averaging
            # a readout's membrane is an average, by its constructor
            assert getattr(wrapper, f"{part}_ema") is (averaging or name not in SPIKING)
        if part.endswith("threshold"):
            assert getattr(made, f"{part[:3]}_spike") == atan_surrogate(2.0)


@pytest.mark.parametrize("name", LAYERS)
def test_dir_lists_the_parts_that_exist(name: str) -> None:
    made = getattr(snn, name)(2)
    listed = dir(made)
    parts = {*DEFAULTS, "pos_spike", "neg_spike"}
    there = {part for part in parts if getattr(made, part) is not None}
    assert parts.intersection(listed) == there
    assert [state for state in made.states if state in listed] == list(made.active_states)
    assert {"beta", "raw_beta", "mem", "num_neurons", "zero_states"} <= set(listed)
    assert all(hasattr(made, each) for each in listed)
