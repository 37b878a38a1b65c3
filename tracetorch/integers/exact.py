"""Guard: prove that a model's integers stay within what their dtype represents exactly."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils.parametrize import is_parametrized

from tracetorch.core.checks import check_module
from tracetorch.core.snapshot import restored
from tracetorch.core.walk import named_modules
from tracetorch.fuse.dispatch.plans import program_of
from tracetorch.fuse.ir.graph import Unfusable
from tracetorch.fuse.ir.intervals import MOST_EXACT, Bounds, Interval, bounds, hull, invariant
from tracetorch.fuse.ir.trace import input_names
from tracetorch.integers.border import Add
from tracetorch.integers.delays import IntegerDelays
from tracetorch.integers.layers import Product
from tracetorch.snn.delay import SynapticDelays
from tracetorch.snn.module import zero_states
from tracetorch.snn.neuron import Neuron, has_step
from tracetorch.snn.sequence_layer import ARITHMETIC_DTYPE

_PRODUCTS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, Product, SynapticDelays)


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
        raise ValueError(f"{layer._label()} cannot be proved exact: {reason}.") from None
    known = dict(zip(input_names(cell), (inputs[name] for name in cell.inputs), strict=True))
    for name in program.params:  # each neuron has its own
        numbers = kwargs[name].detach().double().flatten().numpy(force=True)
        whole = np.where(numbers == numbers.round(), 0.0, -math.inf)
        known[f"p_{name}"] = Interval(numbers, numbers, whole)
    starts = {}
    for name in cell.active:
        start = getattr(layer, f"initial_{name}", None)
        starts[name] = interval_of(torch.zeros(1) if start is None else start)

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
    with restored(model), torch.no_grad(), watched(model) as prove_all:
        zero_states(model)
        for step in x.unbind(0):
            model(step)
        return prove_all()


@contextmanager
def watched(model: nn.Module) -> Iterator[Callable[[], dict[str, dict[str, Interval]]]]:
    """Keep what a model's modules receive in a block, and yield what proves that all is exact."""
    layers: dict[str, tuple[Neuron, dict[str, Interval], list[Any]]] = {}
    products: dict[str, tuple[nn.Module, list[Tensor]]] = {}
    with ExitStack() as hooks:
        for path, module in named_modules(model):
            if any(not above or path.startswith(f"{above}.") for above in (*layers, *products)):
                continue  # it computes an input of a neuron layer, or a weight
            if has_step(module):
                layers[path] = module, {}, []
                record: Any = partial(_record_inputs, path, *layers[path][1:])
            elif isinstance(module, _PRODUCTS):
                products[path] = module, []
                record = partial(_record_largest, products[path][1])
            elif next(module.children(), None) is None or isinstance(module, Add):
                record = partial(_check_output, path)
            else:
                continue
            hooks.enter_context(module.register_forward_hook(record))

        def prove_all() -> dict[str, dict[str, Interval]]:
            hooks.close()
            for path, (module, given) in products.items():
                for largest in given:
                    _check_sums(path, module, largest)
            return {
                path: _proved(path, layer, inputs, *how)
                for path, (layer, inputs, how) in layers.items()
                if how
            }

        yield prove_all


def _record_inputs(
    path: str,
    inputs: dict[str, Interval],
    how: list[Any],
    layer: Neuron,
    args: tuple[Tensor, ...],
    output: Tensor,
) -> None:
    """Keep the hull of every input of a neuron layer, and its number of dimensions and dtype."""
    how[:] = args[0].ndim, ARITHMETIC_DTYPE[args[0].dtype]
    for name, value in zip(layer.inputs, args, strict=False):
        found = interval_of(value)
        if not found.step > -math.inf:
            raise ValueError(
                f"{_label(path, layer)} gets {name} that is no integer. Scale and round what comes "
                "before, tt.integers.round(scale * x)."
            )
        inputs[name] = hull(inputs[name], found) if name in inputs else found


def _record_largest(
    given: list[Tensor], module: nn.Module, args: tuple[Tensor, ...], output: Tensor
) -> None:
    """Keep the largest magnitude of every value that a product receives, for each shape of it."""
    x = args[0].detach().abs()
    if given and given[-1].shape == x.shape:
        x = torch.maximum(given.pop(), x)
    given.append(x)


def _check_output(path: str, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
    """Raise where a module other than a neuron layer leaves the integers."""
    if isinstance(output, Tensor) and output.dtype in MOST_EXACT:
        largest = float(output.detach().abs().max()) if output.numel() else 0.0
        _check_range(path, module, output, largest)


def _check_sums(path: str, module: Any, x: Tensor) -> None:
    """Raise where a sum of products may leave the exact range, in whatever order it is made."""
    given = x.double()
    delays = isinstance(module, SynapticDelays)
    product, kernel = module, None
    if delays:  # those between two steps spread a weight over both
        product, kernel = module.product, module.kernel_of(torch.float64)
    weight, bias = product.weight.double().abs(), product.bias
    bias = None if bias is None else bias.double().abs()
    numbers = [each.to(x.dtype) for each in (x, weight, bias, kernel) if each is not None]
    if isinstance(module, Product | IntegerDelays):
        sums = module.largest(given)
    elif delays:
        window = given.unsqueeze(-1).expand(*given.shape, module.max_delay + 1)
        sums = module.convolve(window, module.kernel_of(torch.float64).abs(), bias)
    elif not is_parametrized(module):
        magnitudes = {name: each.abs().double() for name, each in module.named_parameters()}
        sums = functional_call(module, magnitudes, (given,))
    elif isinstance(module, nn.Linear):  # mask and signs, which would act on magnitudes
        sums = nn.functional.linear(given, weight, bias)
    else:
        sums = module._conv_forward(given, weight, bias)
    largest = float(sums.max()) if sums.numel() else 0.0
    for each in numbers:
        _check_range(path, module, each, largest)


def _check_range(path: str, module: nn.Module, values: Tensor, largest: float) -> None:
    """Raise where values are no integers, or where the largest is beyond those of the dtype."""
    if not interval_of(values).step > -math.inf:
        raise ValueError(
            f"{_label(path, module)} gets, holds or returns what is no integer. Scale and round "
            "it, tt.integers.round(scale * x)."
        )
    if largest > MOST_EXACT[values.dtype]:
        raise ValueError(
            f"{_label(path, module)} can reach {largest:.0f}, and {values.dtype} holds every "
            f"integer up to {MOST_EXACT[values.dtype]:.0f} only. Give x.double(), and "
            "model.double()."
        )


def _proved(
    path: str, layer: Neuron, inputs: dict[str, Interval], ndim: int, dtype: torch.dtype
) -> dict[str, Interval]:
    """Return the intervals of a layer's output and states; raise where they are not exact."""
    if len(inputs) < len(layer.inputs):
        missing = ", ".join(name for name in layer.inputs if name not in inputs)
        raise ValueError(f"{_label(path, layer)} computes {missing} itself, which is not proved.")
    found = prove(layer, inputs, ndim=ndim, dtype=dtype)
    if not found.exact:
        raise ValueError(
            f"{_label(path, layer)} is not exact in {dtype} for inputs up to "
            f"{max(each.magnitude for each in inputs.values()):.0f}: {found.fault}. Give fewer "
            "bits, smaller inputs, or x.double() and model.double()."
        )
    return {
        name.removeprefix("next_"): Interval(
            float(np.min(each.low)), float(np.max(each.high)), float(np.min(each.step))
        )
        for name, each in found.outputs.items()
    }


def _label(path: str, module: nn.Module) -> str:
    kind: Any = type(module)
    if is_parametrized(module):
        kind = kind.__base__
    return f"{path or 'the model'} ({kind.__name__})"
