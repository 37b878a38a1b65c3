"""Integer arithmetic in floats, exact, with straight-through gradients; products, a neuron of it.

float32 holds every integer up to 2^24, float64 up to 2^53; ``floor``, ``trunc`` and ``clamp`` are
exact, ``exp2`` and ``pow`` are not and have no place in a step. Every state passes through a
saturation at its width, which tells whoever reads the graph how wide it is.
"""

from tracetorch.fuse.ir.intervals import Bounds, Interval
from tracetorch.integers.arithmetic import (
    Multiplier,
    Rounding,
    Shift,
    floor,
    limits,
    multiply,
    round,  # noqa: A004
    saturate,
    shift_right,
    straight_through,
    trunc,
    wrap,
)
from tracetorch.integers.layers import (
    Add,
    Conv1d,
    Conv2d,
    DelayedLinear,
    Linear,
    Quantize,
    SumPool1d,
    SumPool2d,
)
from tracetorch.integers.leaky_integrator import LeakyIntegrator
from tracetorch.integers.ranges import check_exact, prove

__all__ = [
    "Add", "Bounds", "Conv1d", "Conv2d", "DelayedLinear", "Interval",
    "LeakyIntegrator", "Linear", "Multiplier", "Quantize", "Rounding", "Shift", "SumPool1d",
    "SumPool2d", "check_exact", "floor", "limits", "multiply", "prove", "round", "saturate",
    "shift_right", "straight_through", "trunc", "wrap",
]  # fmt: skip
