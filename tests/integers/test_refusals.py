"""Arguments that are no integers, or out of range, are refused."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tracetorch as tt
from tests.integers.reference import Noisy
from tests.refusals import check, refusals
from tracetorch import integers as i
from tracetorch import snn
from tracetorch.integers import Interval

X, ONE = torch.tensor([5.5, -300.0]), torch.ones(1, 1, 1)
LEARNS, SHIFT = {"value": 2, "learnable": True}, i.Shift()
DELAYED: Any = i.DelayedLinear(2, 3, max_delay=3, delay=torch.tensor([[1.0, 0], [2, 3], [0, 0]]))


def spread() -> Any:
    made = i.DelayedLinear(2, 3, max_delay=2)
    made.sigma = 0.5
    return made


def proved(step: Any, *wrap: Any) -> Any:
    kind: Any = type("Mine", (snn.Neuron,), {"states": ("held",), "step": staticmethod(step)})
    layer = kind(1)
    for each in wrap:
        layer = each(layer)
    return i.prove(layer, {"x": Interval(0, 9)})


def whole(x: Tensor, held: Tensor) -> tuple[Tensor, Tensor]:
    return x, held


# torch.func.jvp imports decompositions that PyTorch itself scripts
@pytest.mark.filterwarnings("ignore:.*torch.jit.script.* is deprecated")
@refusals(
    r"""
    i.limits(1) -> ValueError: bits must be 2 to 53, got 1
    i.limits(54, signed=False) -> ValueError: bits must be 1 to 53, got 54
    i.limits(8.0) -> TypeError: bits must be an integer, got 8.0
    i.saturate(X, 99) -> ValueError: bits must be 2 to 53
    i.shift_right(X, 32) -> ValueError: bits must be 0 to 31, got 32
    i.shift_right(X, 1, "up") -> ValueError: or .at_least_one., got .up
    i.multiply(X, 1, 1, "at_least_one") -> ValueError: .nearest., got
    i.Multiplier(17) -> ValueError: bits must be 1 to 16, got 17
    i.Multiplier(8, "at_least_one") -> ValueError: .nearest., got
    i.Shift("up") -> ValueError: rounding must be .floor., .trunc., .nearest. or
    torch.func.jvp(i.round, (X,), (X,)) -> RuntimeError: forward mode AD
    i.Linear(2, 3, shift=17) -> ValueError: shift must be 0 to 16, got 17
    i.Linear(2, 3, weight_bits=1) -> ValueError: weight_bits must be 2 to 16, got 1
    i.Linear(0, 3) -> ValueError: in_features must be at least 1
    i.Conv1d(3, 4, 3, groups=2) -> ValueError: groups must divide both channels, 3 and
    i.Conv2d(3, 4, (3, 3, 3)) -> ValueError: kernel_size must be an integer of at least
    i.Conv2d(3, 4, 3, padding=-1) -> ValueError: padding must be an integer
    i.Quantize(0.0) -> ValueError: scale must be
    i.DelayedLinear(2, 3, max_delay=2, delay=0.5) -> ValueError: whole steps, got 0.5
    i.DelayedLinear(2, 3, max_delay=2, delay=3.0) -> ValueError: between 0 and max_
    i.DelayedLinear(2, 3, max_delay=0) -> ValueError: max_delay must be at least 1
    DELAYED(torch.ones(1, 4)) -> ValueError: has 2 neurons
    DELAYED(torch.ones(1, 2).half()) -> TypeError: float32 or float64, got torch.float16: x.float
    setattr(DELAYED, "delay", 1.5) -> ValueError: delay must be whole steps, got .*Round it
    spread()(torch.ones(1, 2)) -> ValueError: has sigma=0\.5, and integers take delays in
    tt.init.fluctuation_(nn.Sequential(DELAYED, snn.LIF(3)))
        -> ValueError: there is nothing to initialise
    i.LeakyIntegrator(1, beta=257) -> ValueError: beta must be at .*257
    i.LeakyIntegrator(1, beta=0.9) -> ValueError: integers, got 0.9
    i.LeakyIntegrator(1, pos_threshold=2**15) -> ValueError: at most 32767
    i.LeakyIntegrator(1, rec_weight=1) -> ValueError: rec_weight needs gamma
    i.LeakyIntegrator(1, gamma=1) -> ValueError: gamma needs rec_weight
    i.LeakyIntegrator(1, neg_scale=1) -> ValueError: neg_scale needs neg_th
    i.LeakyIntegrator(1, beta=LEARNS, decay=SHIFT) -> ValueError: cannot learn
    i.LeakyIntegrator(1, state_bits=33) -> ValueError: 4 to 32, got 33
    i.LeakyIntegrator(1, overflow="stop") -> ValueError: overflow must be .saturate
    i.LeakyIntegrator(1, reset="soft") -> ValueError: reset must be .subtract
    i.LeakyIntegrator(1, decay=8) -> TypeError: decay must be tt.integers.Mul
    i.LeakyIntegrator(1, rec_weight_fraction=17) -> ValueError: 0 to 16, got
    i.LeakyIntegrator(1, unit=0.0) -> ValueError: unit must be positive
    i.LeakyIntegrator(1, state_bits=32)(ONE[0])
        -> ValueError: states of 32 bits need float64, got torch.float32.*x.double
    tt.unroll(i.LeakyIntegrator(1, state_bits=32), ONE) -> ValueError: 32 bits need float64, got
    i.check_exact(3, ONE) -> TypeError: expected an nn.Module, got int
    i.check_exact(nn.Identity(), ONE.long()) -> TypeError: in floats, got torch.int64: x.float\(\)
    i.check_exact(Noisy(1, halved=True), ONE) -> ValueError: computes noise itself, .* not proved
    proved(lambda x, held: (torch.exp(x), held))
        -> ValueError: exp has no rule of interval arithmetic
    proved(lambda x, held: (x.flip(0), held))
        -> ValueError: Mine.*cannot be proved exact: its step uses
    proved(whole, nn.Sequential)
        -> TypeError: layer must be a neuron layer with a step, got Sequential
    Interval(0, 1, float("-inf")).bits -> ValueError: no width that holds every real number
    """
)
def test_wrong_arguments_are_refused(call: str, error: str) -> None:
    check(call, error, {**globals(), "tt": tt, "Noisy": Noisy, "nn": nn})
