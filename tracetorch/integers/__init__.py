"""Integer arithmetic in floats, exact, with straight-through gradients; products, a neuron of it.

An integer neuron is a step whose numbers are integers. float32 holds every integer up to 2^24,
float64 up to 2^53, and ``floor``, ``trunc`` and ``clamp`` are exact; so the graph that is traced,
the loops that are compiled and the files that are exported serve it unchanged, and training runs
through the very forward that a chip will run. A chip's own neurons are in ``tracetorch.chips``.

Exactness. Functions that may be off in the last place, ``exp2`` and ``pow`` above all, have no
place in a step here; a product of many bits is split before it is held. What a step computes is
proved to be exact by interval arithmetic over its traced graph, ``prove``; a model is checked on a
sample, ``check_exact``, which names the layer that leaves the exact range. Every state passes
through a saturation at its width at the end of a step, also where nothing can saturate: it tells
whoever reads the graph how wide the state is.

Gradients. What rounds passes the gradient; what saturates passes it within its range.
"""

from tracetorch.fuse.ir.intervals import Bounds, Interval
from tracetorch.integers.border import Add, Quantize, SumPool1d, SumPool2d
from tracetorch.integers.delays import DelayedConv1d, DelayedLinear
from tracetorch.integers.fixed_point import Multiplier, Rounding, Shift, multiply, shift_right
from tracetorch.integers.layers import Conv1d, Conv2d, Linear
from tracetorch.integers.leaky_integrator import LeakyIntegrator
from tracetorch.integers.ranges import check_exact, prove
from tracetorch.integers.rounding import (
    floor,
    round,  # noqa: A004
    stochastic_round,
    straight_through,
    trunc,
)
from tracetorch.integers.width import limits, saturate, wrap

__all__ = [
    "Add", "Bounds", "Conv1d", "Conv2d", "DelayedConv1d", "DelayedLinear", "Interval",
    "LeakyIntegrator", "Linear", "Multiplier", "Quantize", "Rounding", "Shift", "SumPool1d",
    "SumPool2d", "check_exact", "floor", "limits", "multiply", "prove", "round", "saturate",
    "shift_right", "stochastic_round", "straight_through", "trunc", "wrap",
]  # fmt: skip
