"""Prove that a model's integers stay within what their dtype represents exactly."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from tracetorch.core.checks import check_module
from tracetorch.fuse.ir.intervals import Bounds, Interval, invariant, overall
from tracetorch.integers.ranges import StepRanges, ranges_of
from tracetorch.snn.neuron import Neuron


def prove(
    layer: Neuron,
    inputs: Mapping[str, Interval],
    *,
    ndim: int = 2,
    dtype: torch.dtype = torch.float32,
) -> Bounds:
    """Prove how large every number of a layer's step can become, over any number of steps.

    The step is traced, and its lines are followed in interval arithmetic from the parameters that
    the layer has now, until the states do not grow any more. Each line then has its least and its
    largest value, and with them the bits that a circuit needs.

    Args:
        layer: a neuron layer.
        inputs: where its inputs lie, by name: ``{"x": Interval(-128, 127)}``.
        ndim: number of dimensions of the tensor of one step.
        dtype: float32 or float64.

    Raises:
        ValueError: the step cannot be traced, or does what has no rule of interval arithmetic.

    Example:
        >>> from tracetorch import integers
        >>> layer = integers.LeakyIntegrator(3, beta=128, pos_threshold=100, state_bits=16)
        >>> found = prove(layer, {"x": Interval(-64, 63)})
        >>> found.outputs["next_mem"].bits, found.outputs["output"].bits
        (11, 2)
        >>> found.exact
        True
    """
    step = StepRanges(layer, ndim, dtype)
    return invariant(step.starts, lambda states, _: step.bounds(inputs, states))[0]


def check_exact(model: nn.Module, x: Tensor) -> dict[str, dict[str, Interval]]:
    """Check that no number of an integer model leaves the exact range of its dtype.

    float32 holds every integer up to 2^24, float64 up to 2^53; beyond, sums are rounded, and what
    runs here is not what integer hardware computes. Ranges are followed from the inputs through
    the whole model, whatever fires, over any number of steps: of neurons line by line of their
    step, of linear layers and convolutions through their sums, in whatever order these are made.

    Args:
        model: a module that can be read as a graph: integer products, neurons, pools, delays,
            branches and functions between them, as they are in evaluation. Nothing of it changes,
            its states included.
        x: a sequence ``[T, B, ...]`` of integers. The proof holds for all inputs between its least
            value and its largest, and for zero; behind a ``Quantize``, which saturates, for any.

    Returns:
        The intervals of outputs and states of every neuron layer, by the layer's name.

    Raises:
        TypeError: ``model`` is not a module.
        ValueError: a layer may leave the exact range, or get or compute what is no integer, or a
            module or function has no rule. The message names it and says what.

    Example:
        >>> from tracetorch import integers
        >>> linear = nn.Linear(2, 2, bias=False)
        >>> linear.weight.data = torch.tensor([[100.0, -7.0], [3.0, 127.0]])
        >>> model = nn.Sequential(linear, integers.LeakyIntegrator(2, pos_threshold=100))
        >>> found = check_exact(model, torch.ones(5, 1, 2))
        >>> found["1"]["mem"].high, found["1"]["mem"].bits
        (1969.0, 13)
    """
    check_module(model)
    return {
        path: {name.removeprefix("next_"): overall(each) for name, each in found.outputs.items()}
        for path, found in ranges_of(model, x).steps.items()
    }
