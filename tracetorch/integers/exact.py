"""Guard: prove that a model's integers stay within what their dtype represents exactly."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from tracetorch.core.checks import check_module
from tracetorch.core.snapshot import restored
from tracetorch.core.walk import named_modules
from tracetorch.fuse.dispatch.plans import program_of
from tracetorch.fuse.ir.graph import Unfusable
from tracetorch.fuse.ir.intervals import MOST_EXACT, Bounds, Interval, bounds, hull, invariant
from tracetorch.fuse.ir.trace import input_names
from tracetorch.integers.delays import IntegerDelays
from tracetorch.integers.products import Product
from tracetorch.snn.delay import SynapticDelays
from tracetorch.snn.module import zero_states
from tracetorch.snn.neuron import Neuron, has_step
from tracetorch.snn.stateful_layer import ARITHMETIC_DTYPE

_LINEAR = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, Product, SynapticDelays)


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
    cell = layer.cell
    kwargs = layer.step_kwargs(ndim, dtype)
    try:
        program = program_of(cell, ndim, dtype, kwargs)
    except Unfusable as reason:
        raise ValueError(f"{layer.label()} cannot be proved exact: {reason}.") from None
    known = dict(zip(input_names(cell), (inputs[name] for name in cell.inputs), strict=True))
    for name in program.params:
        known[f"p_{name}"] = _each(kwargs[name])
    shape = torch.Size([1] * ndim)
    starts = {}
    for name in cell.active:
        start = getattr(layer, f"initial_{name}", None)
        starts[name] = interval_of(torch.zeros(shape) if start is None else start)

    def step(states: dict[str, Interval]) -> tuple[Bounds, dict[str, Interval]]:
        read = {**known, **{f"s_{name}": state for name, state in states.items()}}
        found = bounds(program.forward, read, dtype)
        return found, {name: found.outputs[f"next_{name}"] for name in states}

    return invariant(starts, step)[0]


def interval_of(values: Tensor) -> Interval:
    """Return the range of the values of a tensor, and whether they are integers."""
    values = values.detach().double()
    if not bool(torch.isfinite(values).all()):
        return Interval(-math.inf, math.inf, -math.inf)
    step = 0.0 if torch.equal(values, values.round()) else -math.inf
    return Interval(float(values.min()), float(values.max()), step)


def _each(values: Tensor) -> Interval:
    """Return the values of a parameter, one of every neuron."""
    numbers = values.detach().double().flatten().numpy(force=True)
    whole = numbers == numbers.round()
    return Interval(numbers, numbers, np.where(whole, 0.0, -math.inf))


def check_exact(model: nn.Module, x: Tensor) -> dict[str, dict[str, Interval]]:
    """Check that no number of an integer model leaves the exact range of its dtype.

    float32 holds every integer up to 2^24, float64 up to 2^53; beyond, sums are rounded, and what
    runs here is not what integer hardware computes. The model runs over a sample from rest, step by
    step; of every neuron layer it is then proved that its step is exact, over any number of steps,
    for inputs as large as those of the sample; of linear layers and convolutions that their sums
    are, in any order; of other modules it is seen that their outputs are integers in the range.

    Args:
        model: any ``nn.Module``. Nothing of it changes, its states included.
        x: a sequence ``[T, B, ...]`` of integers, with the largest inputs that there will be.

    Returns:
        The intervals of outputs and states of every neuron layer, by the layer's name.

    Raises:
        TypeError: ``model`` is not a module.
        ValueError: a layer leaves the exact range, or gets or computes what is no integer. The
            message names it and says what.

    Example:
        >>> from tracetorch import integers
        >>> linear = nn.Linear(2, 2, bias=False)
        >>> linear.weight.data = torch.tensor([[100.0, -7.0], [3.0, 127.0]])
        >>> model = nn.Sequential(linear, integers.LeakyIntegrator(2, pos_threshold=100))
        >>> found = check_exact(model, torch.ones(5, 1, 2))
        >>> found["1"]["mem"].high, found["1"]["mem"].bits
        (1969.0, 12)
    """
    check_module(model)
    seen: dict[str, dict[str, Interval]] = {}
    layers: dict[str, Neuron] = {}
    facts: dict[str, Any] = {}
    linear: dict[str, nn.Module] = {}
    largest: dict[nn.Module, Tensor] = {}
    with restored(model), torch.no_grad(), ExitStack() as hooks:
        for path, module in named_modules(model):
            if any(not above or path.startswith(f"{above}.") for above in layers):
                continue  # it computes an input of a neuron layer
            if has_step(module):
                layers[path] = module
                record: Any = partial(_record_inputs, path, seen, facts)
            elif isinstance(module, _LINEAR):
                record = partial(_record_largest, largest)
                linear[path] = module
            elif next(module.children(), None) is None:
                record = partial(_check_output, path)
            else:
                continue
            handle = module.register_forward_hook(record)
            hooks.callback(handle.remove)
        zero_states(model)
        for step in x.unbind(0):
            model(step)
        hooks.close()
        for path, module in linear.items():
            if module in largest:
                _check_sums(path, module, largest[module])
    return {path: _proved(path, layers[path], seen[path], *facts[path]) for path in seen}


def _record_inputs(
    path: str,
    seen: dict[str, dict[str, Interval]],
    facts: dict[str, Any],
    layer: Neuron,
    args: tuple[Tensor, ...],
    output: Tensor,
) -> None:
    """Keep the hull of every input of a neuron layer."""
    known = seen.setdefault(path, {})
    facts[path] = args[0].ndim, ARITHMETIC_DTYPE[args[0].dtype]
    for name, value in zip(layer.inputs, args, strict=False):
        found = interval_of(value)
        if not found.step > -math.inf:
            raise ValueError(
                f"{_named(path, layer)} gets {name} that is no integer. Scale and round what comes "
                "before, tt.integers.round(scale * x)."
            )
        known[name] = hull(known[name], found) if name in known else found


def _check_output(path: str, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
    """Raise where a module other than a neuron layer leaves the integers."""
    if not isinstance(output, Tensor) or output.dtype not in MOST_EXACT:
        return
    largest = float(output.detach().abs().max()) if output.numel() else 0.0
    _check_range(path, module, output, largest)


def _record_largest(
    largest: dict[nn.Module, Tensor],
    module: nn.Module,
    args: tuple[Tensor, ...],
    output: Tensor,
) -> None:
    """Keep the largest magnitude of every value that a product with weights receives."""
    given = args[0].detach().abs()
    known = largest.get(module)
    if known is None or known.shape != given.shape:
        largest[module] = given
    else:
        largest[module] = torch.maximum(known, given)


def _check_sums(path: str, module: nn.Module, x: Tensor) -> None:
    """Raise where a sum of products may leave the exact range, in whatever order it is made."""
    held: list[Tensor | None]
    if isinstance(module, Product):
        bound, held = module.largest(x.double()), [module.weight, module.bias]
    elif isinstance(module, SynapticDelays):
        bound, held = _largest_delayed(module, x.double())
    else:
        parameters = dict(module.named_parameters())
        weights = {name: value.abs().double() for name, value in parameters.items()}
        bound, held = functional_call(module, weights, (x.double(),)), [*parameters.values()]
    for each in (x, *(value.to(x.dtype) for value in held if value is not None)):
        _check_range(path, module, each, float(bound.max()) if bound.numel() else 0.0)


def _largest_delayed(module: SynapticDelays, x: Tensor) -> tuple[Tensor, list[Tensor | None]]:
    """Return how large sums over the past can become, and the numbers that the layer holds."""
    kernel, bias = module.kernel_of(torch.float64), module.product.bias
    if isinstance(module, IntegerDelays):
        return module.largest(x), [kernel, bias]
    window = x.unsqueeze(-1).expand(*x.shape, module.max_delay + 1)
    sums = module.convolve(window, kernel.abs(), None if bias is None else bias.abs().double())
    return sums.squeeze(-1), [kernel, bias]


def _check_range(path: str, module: nn.Module, output: Tensor, largest: float) -> None:
    """Raise where values are no integers, or where the largest is beyond those of the dtype."""
    name = _named(path, module)
    if not interval_of(output).step > -math.inf:
        raise ValueError(
            f"{name} gets, holds or returns what is no integer. Scale and round it, "
            "tt.integers.round(scale * x)."
        )
    if largest > MOST_EXACT[output.dtype]:
        raise ValueError(
            f"{name} can reach {largest:.0f}, and {output.dtype} holds every integer up to "
            f"{MOST_EXACT[output.dtype]:.0f} only. Give x.double(), and model.double()."
        )


def _proved(
    path: str, layer: Neuron, inputs: dict[str, Interval], ndim: int, dtype: torch.dtype
) -> dict[str, Interval]:
    """Return the intervals of a layer's output and states; raise where they are not exact."""
    if len(inputs) < len(layer.inputs):
        missing = ", ".join(name for name in layer.inputs if name not in inputs)
        raise ValueError(f"{_named(path, layer)} computes {missing} itself, which is not proved.")
    found = prove(layer, inputs, ndim=ndim, dtype=dtype)
    if not found.exact:
        raise ValueError(
            f"{_named(path, layer)} is not exact in {dtype} for inputs up to "
            f"{max(each.magnitude for each in inputs.values()):.0f}: {found.fault}. Give fewer "
            "bits, smaller inputs, or x.double() and model.double()."
        )
    return {
        name.removeprefix("next_"): Interval(
            float(np.min(each.low)), float(np.max(each.high)), float(np.min(each.step))
        )
        for name, each in found.outputs.items()
    }


def _named(path: str, module: nn.Module) -> str:
    return f"{path or 'the model'} ({type(module).__name__})"
