"""The integer neuron: against int64, on every road, at every width; its gradients and errors."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import tracetorch as tt
from tests.cases import LAYERS, stepped, weighted_sum
from tests.integers import reference
from tests.integers.compiled import assert_compiled_is_eager
from tests.integers.reference import Noisy
from tracetorch import integers, snn

T, B, N = 40, 2, 3
LEAKS: dict[str, integers.Multiplier | integers.Shift] = {
    "multiplier": integers.Multiplier(8),
    "multiplier of 12 bits, nearest": integers.Multiplier(12, "nearest"),
    "multiplier, floor": integers.Multiplier(bits=6, rounding="floor"),
    "shift": integers.Shift(),
    "shift, trunc": integers.Shift(rounding="trunc"),
}


def parts(name: str, leak: integers.Multiplier | integers.Shift) -> dict[str, Any]:
    """Arguments of the layer that ``tt.snn`` calls by this name."""
    shift = isinstance(leak, integers.Shift)
    decays = [1.0, 3.0, 5.0] if shift else [leak.largest * share // 1 for share in (0.3, 0.8, 1)]
    decay = torch.tensor(decays)
    given: dict[str, Any] = {"beta": decay}
    letters = name.removesuffix("LIF").removesuffix("Readout")
    if name.endswith("LIF"):
        given["pos_threshold"] = torch.tensor([25.0, 40.0, 150.0])
    if "B" in letters:
        given |= {"neg_threshold": 35, "pos_scale": 3, "neg_scale": torch.tensor([1.0, 2.0, 5.0])}
    # the S of a synapse, not that of a readout
    if "S" in letters:
        given["alpha"] = decay.flip(0)
    if "R" in letters:
        given |= {"gamma": decay, "rec_weight": torch.tensor([-3.0, 2.0, 7.0]), "bias": 4}
    return given


def arrays(given: dict[str, Any]) -> dict[str, Any]:
    return {
        name: np.asarray(value.long()) if isinstance(value, torch.Tensor) else value
        for name, value in given.items()
    }


def run_reference(
    x: torch.Tensor, leak: integers.Multiplier | integers.Shift, given: dict[str, Any]
) -> tuple[np.ndarray[Any, Any], reference.LeakyIntegrator]:
    kind = "shift" if isinstance(leak, integers.Shift) else "multiplier"
    how = {"kind": kind, "rounding": leak.rounding, "bits": getattr(leak, "bits", 0)}
    model = reference.LeakyIntegrator(tuple(x.shape[1:]), **how, **arrays(given))
    return np.stack([model.step(step) for step in x.long().numpy()]), model


@pytest.mark.one_in(2)
@pytest.mark.parametrize("overflow", ["saturate", "wrap"])
@pytest.mark.parametrize("leak", LEAKS)
@pytest.mark.parametrize("name", LAYERS)
def test_every_layer_equals_int64(name: str, leak: str, overflow: Any) -> None:
    decay, given = LEAKS[leak], parts(name, LEAKS[leak])
    options: dict[str, Any] = {
        "state_bits": 10,
        "overflow": overflow,
        "alpha_ema": True,
        "beta_ema": leak == "multiplier, floor",
        "gamma_ema": leak == "multiplier",
        "rec_weight_fraction": 2,
        "reset": {"shift": "zero", "multiplier, floor": "none"}.get(leak, "subtract"),
    }
    layer = integers.LeakyIntegrator(N, decay=decay, **given, **options)
    x = torch.randint(-200, 330, (T, B, N), generator=torch.Generator().manual_seed(0)).float()
    expected, model = run_reference(x, decay, {**given, **options})
    output = stepped(layer, x)
    assert np.array_equal(output.numpy(), expected)
    assert np.any(expected)
    for state in layer.active_states:
        ours, theirs = getattr(layer, state), model.output
        theirs = theirs if state == "prev_output" else getattr(model, state)
        assert np.array_equal(ours.numpy(), theirs), state


@pytest.mark.parametrize("bits", range(4, 33))
@pytest.mark.parametrize("overflow", ["saturate", "wrap"])
def test_overflow_at_every_width(bits: int, overflow: Any) -> None:
    """A membrane that forgets nothing, filled from within one step of its end to beyond it."""
    low, high = integers.limits(bits)
    dtype = torch.float64 if bits > 23 else torch.float32
    layer = integers.LeakyIntegrator(2, beta=256, state_bits=bits, overflow=overflow)  # a readout
    x = torch.tensor([[[high, low]], [[1, -1]], [[1, -1]]], dtype=dtype)
    seen = stepped(layer, x)[:, 0].tolist()
    ends = [[high, low]] * 3
    if overflow == "wrap":
        ends = [[high, low], [low, high], [low + 1, high - 1]]
    assert seen == ends


COMPILED = [
    ("LIF", "multiplier", "saturate"),
    pytest.param("BSRLIF", "multiplier of 12 bits, nearest", "wrap", marks=pytest.mark.slow),
    pytest.param("BSRLIF", "shift", "saturate", marks=pytest.mark.slow),
    pytest.param("SRReadout", "shift, trunc", "saturate", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("name", "leak", "overflow"), COMPILED)
def test_a_compiled_sequence_is_the_eager_one_with_its_gradients(
    name: str, leak: str, overflow: Any
) -> None:
    given = parts(name, LEAKS[leak])
    learning = "beta" if leak.startswith("multiplier") else "bias"
    value = torch.as_tensor(given.get(learning, 0.0), dtype=torch.float32)
    given[learning] = {"value": value - 0.2, "learnable": True}  # rounded in the step
    eager = integers.LeakyIntegrator(
        N, decay=LEAKS[leak], overflow=overflow, state_bits=11, unit=50.0, **given
    )
    x = torch.randint(-90, 230, (T, B, N), generator=torch.Generator().manual_seed(1)).float()
    assert_compiled_is_eager(eager, x)


@pytest.mark.slow
def test_stochastic_rounding_is_the_same_in_a_compiled_sequence() -> None:
    x = torch.randint(-9, 90, (T, B, N), generator=torch.Generator().manual_seed(1)).float()
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    outputs = stepped(Noisy(N), inputs[0]), tt.unroll(Noisy(N), inputs[1])
    assert torch.equal(*outputs)
    whole = outputs[0].detach()
    assert torch.equal(whole, whole.round())
    assert not torch.equal(whole[:, 0], whole[:, 0, :1].expand(-1, N))
    for output in outputs:
        weighted_sum(output).backward()
    torch.testing.assert_close(inputs[1].grad, inputs[0].grad, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_a_recurrent_connection_of_integers_is_the_same_in_one_compiled_loop() -> None:
    def made() -> snn.Recurrent:
        neuron = integers.LeakyIntegrator(N, **parts("LIF", LEAKS["shift"]), decay=LEAKS["shift"])
        connection = nn.Linear(N, N, bias=False)
        connection.weight.data = torch.tensor([[3.0, -20, 7], [40, 0, -9], [-1, 60, 5]])
        return snn.Recurrent(neuron, connection)

    x = torch.randint(-9, 60, (T, B, N), generator=torch.Generator().manual_seed(1)).float()
    eager, fused = made(), made()
    assert torch.equal(stepped(eager, x), tt.unroll(fused, x))
    assert torch.equal(eager.neuron.mem, fused.neuron.mem)


@pytest.mark.slow
def test_a_step_is_the_same_without_a_graph_and_compiled_by_torch() -> None:
    eager = integers.LeakyIntegrator(N, **parts("LIF", LEAKS["multiplier"]), state_bits=11)
    other, compiled = copy.deepcopy(eager), copy.deepcopy(eager)
    x = torch.randint(-90, 230, (T, B, N), generator=torch.Generator().manual_seed(1)).float()
    expected = stepped(eager, x.requires_grad_()).detach()
    with torch.no_grad():
        assert torch.equal(stepped(other, x), expected)
    single: Any = torch.compile(compiled, backend="eager", fullgraph=True)
    assert torch.equal(stepped(single, x[:3].detach()), expected[:3])


def test_detached_resets_and_other_surrogates_change_gradients_alone() -> None:
    x = torch.full((6, 1, 1), 70.0)
    found = []
    for options in (
        {},
        {"detach_reset": True},
        {"surrogate_derivative": tt.functional.boxcar_surrogate(4.0)},
        {"unit": 7.0},
    ):
        layer = integers.LeakyIntegrator(1, pos_threshold=100, **options)
        given = x.clone().requires_grad_()
        output = stepped(layer, given)
        weighted_sum(output).backward()
        found.append((output.flatten().tolist(), given.grad))
    assert all(spikes == found[0][0] for spikes, _ in found)
    assert sum(found[0][0]) > 0
    gradients = [gradient.flatten().tolist() for _, gradient in found if gradient is not None]
    assert len({tuple(gradient) for gradient in gradients}) == 4


def test_a_parameter_that_learns_stays_an_integer_in_use() -> None:
    learning = {"value": 99.6, "learnable": True}
    layer = integers.LeakyIntegrator(1, pos_threshold=learning)
    fixed = integers.LeakyIntegrator(1, pos_threshold=100)
    x = torch.full((9, 1, 1), 60.0)
    assert torch.equal(stepped(layer, x), stepped(fixed, x))
    assert torch.equal(layer.mem, fixed.mem)
