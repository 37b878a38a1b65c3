"""Ranges of all that a model computes, over any number of steps, and the proof that they are exact.

Graphs of the model and of each ``Recurrent`` in it are run over intervals until no state grows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import reduce
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from tracetorch.core.checks import check_module
from tracetorch.core.torch_private import pytree
from tracetorch.core.walk import join_path
from tracetorch.fuse.dispatch.plans import program_of
from tracetorch.fuse.ir import intervals
from tracetorch.fuse.ir.graph import Builder, Graph, Unfusable
from tracetorch.fuse.ir.intervals import Bounds, Interval, hull, interval_of, overall, with_zero
from tracetorch.fuse.ir.lower import lower
from tracetorch.fuse.ir.trace import input_names
from tracetorch.integers.arithmetic import limits
from tracetorch.integers.layers import Product, Quantize, SumPool
from tracetorch.snn.delay import Delay, DelayedLinear
from tracetorch.snn.dropout import LockedDropout
from tracetorch.snn.model_graph import ModelGraph, Node, is_layer, label, read_model
from tracetorch.snn.neuron import Neuron, beside_step, has_step
from tracetorch.snn.recurrent import Recurrent
from tracetorch.snn.sequence_layer import ARITHMETIC_DTYPE

PRODUCTS = (Product, nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
# what they return are values that they are given, or zero
_PASSING = (
    *(nn.Identity, nn.Flatten, nn.Unflatten, nn.Dropout, nn.Dropout1d, nn.Dropout2d),
    *(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, LockedDropout),
)
_SHAPES = {
    *("flatten", "unflatten", "reshape", "view", "unsqueeze", "squeeze", "permute", "transpose"),
    *("movedim", "contiguous", "clone", "detach", "expand", "getitem", "chunk", "split", "unbind"),
    *("cat", "stack", "max_pool1d", "max_pool2d"),
}
_COMPARISONS = {"gt", "ge", "lt", "le", "eq", "ne", "logical_and", "logical_or", "logical_not"}
_NAMES = {"min": "low", "max": "high"}  # of arguments that a rule calls otherwise

States: TypeAlias = dict[tuple[str, str], Interval]  # by path of a layer, and name of a state
Found: TypeAlias = dict[str, dict[str, Interval]]
Given: TypeAlias = Mapping[str, Interval]
Step: TypeAlias = Callable[[Given, Given], tuple[Bounds, dict[str, Interval]]]


def prove(
    layer: Neuron,
    inputs: Mapping[str, Interval],
    *,
    ndim: int = 2,
    dtype: torch.dtype = torch.float32,
) -> Bounds:
    """Prove how large every number of a layer's step can become, over any number of steps.

    The lines of the step are followed in interval arithmetic from the parameters that the layer
    has now, until the states grow no more; each then has the bits that a circuit needs.

    Args:
        layer: a neuron layer.
        inputs: where its inputs lie, by name: ``{"x": Interval(-128, 127)}``.
        ndim: number of dimensions of the tensor of one step.
        dtype: float32 or float64.

    Raises:
        TypeError: ``layer`` is no neuron layer.
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
    if not has_step(layer):
        raise TypeError(f"layer must be a neuron layer with a step, got {type(layer).__name__}.")
    start, step = _read_step(layer, ndim, dtype)
    return intervals.invariant(start, lambda states, _: step(inputs, states))[0]


def check_exact(model: nn.Module, x: Tensor) -> dict[str, dict[str, Interval]]:
    """Check that no number of an integer model leaves the exact range of its dtype.

    float32 holds every integer up to 2^24, float64 up to 2^53, and rounds beyond, which integer
    hardware does not. Ranges are followed whatever fires, over any number of steps and orders.

    Args:
        model: a module that can be read as a graph: integer products, neurons, pools, delays,
            branches and functions between them, as they are in evaluation. Nothing of it changes.
        x: a sequence ``[T, B, ...]`` of integers. The proof holds for all inputs between its least
            value and its largest, and for zero; behind a ``Quantize``, which saturates, for any.

    Returns:
        The intervals of outputs and states of every neuron layer, by the layer's name.

    Raises:
        TypeError: ``model`` is not a module, or ``x`` holds no floats.
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
    if not x.is_floating_point():
        raise TypeError(f"x must hold its integers in floats, got {x.dtype}: x.float().")
    read = _Model(model, x[0])
    values = with_zero(interval_of(x))
    return intervals.invariant(read.starts, lambda states, last: read.step(values, states, last))[0]


def _read_step(layer: Neuron, ndim: int, dtype: torch.dtype) -> tuple[Given, Step]:
    """Return what the states of a layer start from, and its step: of inputs and states."""
    cell, kwargs = layer.cell, layer.step_kwargs(ndim, dtype)
    try:
        program = program_of(cell, ndim, dtype, kwargs)
    except Unfusable as reason:
        raise ValueError(f"{layer._label()} cannot be proved exact: {reason}.") from None
    known = dict[str, Interval]()
    for name, value in zip(program.params, program.tensors(kwargs), strict=True):
        numbers = value.detach().double().flatten().numpy(force=True)  # each neuron has its own
        whole = np.where(numbers == numbers.round(), 0.0, -math.inf)
        known[f"p_{name}"] = Interval(numbers, numbers, whole)
    values = {name: getattr(layer, f"initial_{name}", None) for name in cell.active}
    starts = {n: interval_of(torch.zeros(1) if v is None else v) for n, v in values.items()}

    def step(inputs: Given, states: Given) -> tuple[Bounds, dict[str, Interval]]:
        names = zip(input_names(cell), cell.inputs, strict=True)
        read = known | {in_graph: inputs[name] for in_graph, name in names}
        read |= {f"s_{name}": state for name, state in states.items()}
        found = intervals.bounds(program.forward, read, dtype)
        return found, {name: found.outputs[f"next_{name}"] for name in states}

    return starts, step


def is_node(module: nn.Module) -> bool:
    return is_layer(module) or isinstance(module, Product | Quantize | SumPool)


class _Model:
    def __init__(self, model: nn.Module, x: Tensor) -> None:
        self.dtype = ARITHMETIC_DTYPE[x.dtype]
        self.graphs: dict[str, ModelGraph] = {}
        self.starts: States = {}
        self.steps: dict[str, Step] = {}
        self.read(model, x, "")

    def read(self, module: nn.Module, x: Tensor, path: str) -> None:
        graph = self.graphs[path] = read_model(module, x, is_leaf=is_node)
        for node in graph.nodes:
            layer, inner = node.module, join_path(path, node.path)
            if isinstance(layer, Recurrent):
                self.starts[inner, "prev_output"] = Interval(0.0, 0.0)
                for name, of in (("neuron", node.inputs[0]), ("connection", node)):
                    given = x.new_zeros(of.shape or ())
                    self.read(getattr(layer, name), given, join_path(inner, name))
            elif has_step(layer):
                starts, self.steps[inner] = _read_step(layer, len(node.shape or ()), self.dtype)
                self.starts |= {(inner, name): each for name, each in starts.items()}

    def step(self, x: Interval, states: States, check: bool) -> tuple[Found, States]:
        """Return what neurons compute, and the states that they leave; raise, if ``check``."""
        # a layer that is called again in a step goes on from where it was left
        self.states, self.check, self.found = states.copy(), check, Found()
        self.run("", x)
        return self.found, self.states

    def run(self, path: str, x: Interval) -> Interval:
        def call(node: Node, args: Any, kwargs: Any) -> Interval:
            if node.module is None:
                return self.function(node.place, node.operation.removesuffix("_"), args, kwargs)
            here = join_path(path, node.path)
            place = label(here, node.module)
            if not type(node.module).forward.__module__.startswith(("tracetorch.", "torch.")):
                raise ValueError(f"{place} has a forward of its own: no rule.")
            names = getattr(node.module, "inputs", ("x",))
            given = {**dict(zip(names, args, strict=False)), **kwargs}
            given = {name: interval_of(each) for name, each in given.items()}
            return self.reached(place, self.module(here, place, node.module, given))

        output = self.graphs[path].run(x, call=call)
        return reduce(hull, map(interval_of, pytree.tree_leaves(output)))

    def reached(self, place: str, value: Interval) -> Interval:
        if self.check:
            intervals.check_reach(place, value, self.dtype)
        return value

    def check_whole(
        self, place: str, x: Interval, what: str = "gets, holds or returns what"
    ) -> None:
        if self.check and not np.min(x.step) >= 0:
            raise ValueError(
                f"{place} {what} is no integer. Scale and round it, tt.integers.round(scale * x)."
            )

    def module(self, path: str, place: str, module: Any, given: Given) -> Interval:
        if has_step(module):
            return self.neuron(path, place, module, given)
        (source,) = given.values()
        if isinstance(module, Recurrent):
            key = path, "prev_output"
            fed = self.run(join_path(path, "connection"), self.states[key])
            drive = self.function(place, "add", (source, fed), {})
            self.states[key] = self.run(join_path(path, "neuron"), drive)
            return self.states[key]
        if isinstance(module, (*PRODUCTS, DelayedLinear)):
            return self.sums(place, module, source)
        if isinstance(module, Delay):
            whole = interval_of(module.delay).step == 0 and module.sigma == 0
            self.check_whole(place, source if whole else Interval(0, 1, -math.inf))
            return with_zero(source)
        if isinstance(module, Quantize):
            # whatever comes: inputs may be larger than those of a sample, and saturate here
            low, high = map(float, limits(module.bits, signed=module.signed))
            return Interval(low, high)
        if isinstance(module, SumPool):
            ones = torch.ones(1, math.prod(module.kernel_size))
            return intervals.weighted_sums(ones, None, source)[0]
        if isinstance(module, nn.ReLU):
            return self.function(place, "relu", (source,), {})
        if isinstance(module, nn.Hardtanh):
            return self.function(place, "clamp", (source, module.min_val, module.max_val), {})
        if isinstance(module, _PASSING):
            return source
        raise ValueError(
            f"{place} has no rule of ranges. Prove neuron layers one by one, tt.integers.prove; "
            "sum where it averages, tt.integers.SumPool2d."
        )

    def neuron(self, path: str, place: str, layer: Neuron, inputs: Given) -> Interval:
        missing = [name for name in layer.inputs if name not in inputs]
        beside = beside_step(layer)
        if missing or beside is not None:
            what = beside or f"computes {', '.join(missing)} itself"
            raise ValueError(f"{place} {what}, which is not proved.")
        for name, each in inputs.items():
            self.check_whole(place, each, f"gets {name} that")
        states = {name: self.states[path, name] for name in layer.cell.active}
        found, ends = self.steps[path](inputs, states)
        self.states.update({(path, name): end for name, end in ends.items()})
        if self.check and not found.exact:
            raise ValueError(
                f"{place} is not exact in {self.dtype} for inputs up to "
                f"{max(each.magnitude for each in inputs.values()):.0f}: {found.fault}. Give fewer "
                "bits, smaller inputs, or x.double() and model.double()."
            )
        table = self.found.setdefault(path, {})
        for name, each in found.outputs.items():
            short, new = name.removeprefix("next_"), overall(each)
            table[short] = hull(table[short], new) if short in table else new
        return overall(found.outputs["output"])

    def sums(self, place: str, module: Any, source: Interval) -> Interval:
        self.check_whole(place, source)
        product, weight = module, module.weight
        if isinstance(module, DelayedLinear):
            # a delay between two steps spreads a weight over both
            product, weight = module.linear, module.kernel_of(torch.float64)
            source = with_zero(source)
        for each in (weight, product.bias):
            if each is not None:
                self.check_whole(place, interval_of(each))
        shift = product.shift if isinstance(product, Product) else 0
        found, reached = intervals.weighted_sums(weight.double() * 2.0**shift, product.bias, source)
        self.reached(place, reached)
        return found

    def function(self, place: str, name: str, args: Any, kwargs: Any) -> Interval:
        if name in _SHAPES:
            given = pytree.tree_leaves((args, kwargs))
            ranges = [interval_of(each) for each in given if isinstance(each, Interval | Tensor)]
            return self.reached(place, reduce(hull, ranges))
        builder, reads = Builder(), dict[str, Interval]()

        def operand(given: Any) -> Any:
            if not isinstance(given, Interval | Tensor):
                return given
            reads[f"r{len(reads)}"] = interval_of(given)
            return f"r{len(reads) - 1}"

        args, kwargs = pytree.tree_map(operand, (args, kwargs))
        kwargs = {_NAMES.get(key, key): each for key, each in kwargs.items()}
        try:
            value = lower(builder, name, name in _COMPARISONS, args, kwargs)
            graph = Graph(tuple(builder.lines), {"output": value})
            proved = intervals.bounds(graph, reads, self.dtype)
        except (Unfusable, ValueError) as reason:
            raise ValueError(f"{place} has no rule of ranges: {reason}.") from None
        found = self.reached(place, overall(proved.outputs["output"]))
        if self.check and not proved.exact:
            raise ValueError(f"{place} is not exact in {self.dtype}: {proved.fault}.")
        return found
