"""Integer arithmetic in floats, exact, with straight-through gradients; products, a neuron of it.

float32 holds every integer up to 2^24, float64 up to 2^53, and ``floor``, ``trunc`` and ``clamp``
are exact; so what traces, compiles and exports a step serves integers unchanged. ``exp2`` and
``pow``, which may be off in the last place, have no place in a step, and a product of many bits is
split before it is held. Every state passes through a saturation at its width at the end of a step,
also where nothing can saturate: it tells whoever reads the graph how wide the state is.
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
