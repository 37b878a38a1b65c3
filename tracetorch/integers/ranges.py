"""Ranges of all that a model computes, from the range of its inputs, over any number of steps.

The model is read as graphs, its own and those inside of every ``Recurrent``, and run over intervals
instead of numbers, by the rules with which ``tt.export.c`` finds the widths of its integers: steps
and functions line by line (``fuse/ir/intervals.py``), products by the sums of their weights. States
grow until nothing grows any more, those of all layers together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping
from dataclasses import replace
from functools import reduce
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from tracetorch.core.torch_private import pytree
from tracetorch.core.walk import join_path
from tracetorch.fuse.dispatch.plans import program_of
from tracetorch.fuse.ir.graph import Builder, Graph, Unfusable
from tracetorch.fuse.ir.intervals import (
    Bounds,
    Interval,
    bounds,
    check_reach,
    constant,
    hull,
    interval_of,
    invariant,
    overall,
    weighted_sums,
    with_zero,
)
from tracetorch.fuse.ir.lower import lower
from tracetorch.fuse.ir.trace import input_names
from tracetorch.integers.border import Quantize, SumPool
from tracetorch.integers.width import limits
from tracetorch.snn.delay import Delay, SynapticDelays
from tracetorch.snn.dropout import LockedDropout
from tracetorch.snn.model_graph import ModelGraph, Node, is_layer, label, read_model
from tracetorch.snn.neuron import Neuron, beside_step, has_step
from tracetorch.snn.recurrent import Recurrent
from tracetorch.snn.sequence_layer import ARITHMETIC_DTYPE

_PRODUCTS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
# what they return are values that they are given, or zero
_PASSING = (
    *(nn.Identity, nn.Flatten, nn.Unflatten, nn.Dropout, nn.Dropout1d, nn.Dropout2d),
    *(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, LockedDropout),
)
_SHAPES = {
    *("flatten", "unflatten", "reshape", "view", "unsqueeze", "squeeze", "permute", "transpose"),
    *("movedim", "contiguous", "clone", "detach", "expand", "getitem", "item", "unbind", "chunk"),
    *("split", "cat", "stack", "t", "swapaxes", "flip", "roll", "max_pool1d", "max_pool2d"),
}
_COMPARISONS = {"gt", "ge", "lt", "le", "eq", "ne", "logical_and", "logical_or", "logical_not"}

_NAMES = {"min": "low", "max": "high"}  # of arguments that a rule calls otherwise

Key = tuple[str, str]  # path of a layer, name of a state
Given = Mapping[str, Interval]
Place = TypeVar("Place", bound=Hashable)


class Ranges(NamedTuple):
    """Table of all intervals that are proved of a model, by the path of a module.

    What is called several times in a step has the smallest interval that holds all of its calls.

    Args:
        steps: of every neuron layer the intervals of its step, :class:`Bounds`: ``lines``,
            ``outputs`` and next states.
        inputs: of every neuron layer those of its inputs, by name.
        sums: of every product that of a register that adds weights times inputs up, in any order,
            before its shift and its bias.
        outputs: of every module that of what it returns.
    """

    steps: dict[str, Bounds]
    inputs: dict[str, Given]
    sums: dict[str, Interval]
    outputs: dict[str, Interval]


def ranges_of(model: nn.Module, x: Tensor) -> Ranges:
    """Return the intervals of a model's sums and steps, for inputs in the range of a sample or 0.

    This is the one table of them, over any number of steps, that proofs, chips and circuits read;
    :func:`tracetorch.export.c_code.widths.found_widths` is that of a traced program's arrays.

    Args:
        model: nothing of it changes.
        x: a sequence ``[T, B, ...]``.

    Raises:
        TypeError: the sample is none of floats.
        ValueError: a number can leave the exact range or be no integer, or something in the model
            has no rule. The message names it.
    """
    if not x.is_floating_point():
        raise TypeError(f"x must hold its integers in floats, got {x.dtype}: x.float().")
    read = _Model(model, x[0])
    values = with_zero(interval_of(x))
    return invariant(read.starts, lambda states, last: read.step(values, states, last))[0]


class StepRanges:
    """Graph of a layer's step, the intervals of its parameters, and what its states start from."""

    def __init__(self, layer: Neuron, ndim: int, dtype: torch.dtype) -> None:
        self.cell, self.dtype = layer.cell, dtype
        kwargs = layer.step_kwargs(ndim, dtype)
        try:
            program = program_of(self.cell, ndim, dtype, kwargs)
        except Unfusable as reason:
            raise ValueError(f"{layer._label()} cannot be proved exact: {reason}.") from None
        self.graph, self.known = program.forward, dict[str, Interval]()
        for name, value in zip(program.params, program.tensors(kwargs), strict=True):
            # each neuron has its own
            numbers = value.detach().double().flatten().numpy(force=True)
            whole = np.where(numbers == numbers.round(), 0.0, -math.inf)
            self.known[f"p_{name}"] = Interval(numbers, numbers, whole)
        values = {name: getattr(layer, f"initial_{name}", None) for name in self.cell.active}
        zero = torch.zeros(1)
        self.starts = {n: interval_of(zero if v is None else v) for n, v in values.items()}

    def bounds(self, inputs: Given, states: Given) -> tuple[Bounds, dict[str, Interval]]:
        """Return the intervals of every line, for inputs and states in some; the states' next."""
        names = zip(input_names(self.cell), self.cell.inputs, strict=True)
        read = self.known | {in_graph: inputs[name] for in_graph, name in names}
        read |= {f"s_{name}": state for name, state in states.items()}
        found = bounds(self.graph, read, self.dtype)
        return found, {name: found.outputs[f"next_{name}"] for name in states}


def is_node(module: nn.Module) -> bool:
    """Whether a module is one node of the graphs that are read."""
    return is_layer(module) or hasattr(module, "terms") or isinstance(module, Quantize | SumPool)


class _Model:
    """Graphs of a model: its own, and by path those inside of every ``Recurrent``."""

    def __init__(self, model: nn.Module, x: Tensor) -> None:
        self.dtype = ARITHMETIC_DTYPE[x.dtype]
        self.graphs: dict[str, ModelGraph] = {}
        self.starts: dict[Key, Interval] = {}
        self.steps: dict[str, StepRanges] = {}
        self.read(model, x, "")

    def read(self, module: nn.Module, x: Tensor, path: str) -> None:
        """Read a module, and what is inside of it."""
        graph = self.graphs[path] = read_model(module, x, is_leaf=is_node)
        for node in graph.nodes:
            layer, inner = node.module, join_path(path, node.path)
            if isinstance(layer, Recurrent):
                self.starts[inner, "prev_output"] = Interval(0.0, 0.0)
                for name, of in (("neuron", node.inputs[0]), ("connection", node)):
                    given = x.new_zeros(of.shape or ())
                    self.read(getattr(layer, name), given, join_path(inner, name))
            elif has_step(layer):
                made = self.steps[inner] = StepRanges(layer, len(node.shape or ()), self.dtype)
                self.starts |= {(inner, name): each for name, each in made.starts.items()}

    def step(
        self, x: Interval, states: Mapping[Key, Interval], check: bool
    ) -> tuple[Ranges, dict[Key, Interval]]:
        """Return what a step computes, and the states that it leaves; raise, if ``check``."""
        # a layer that is called again in a step goes on from where it was left
        self.states, self.check, self.found = dict(states), check, Ranges({}, {}, {}, {})
        self.run("", x)
        return self.found, self.states

    def run(self, path: str, x: Interval) -> Interval:
        """Return the interval of the output of a module that was read."""

        def call(node: Node, args: Any, kwargs: Any) -> Interval:
            if node.module is None:
                return self.function(node, args, kwargs)
            here = join_path(path, node.path)
            place = label(here, node.module)
            if not type(node.module).forward.__module__.startswith(("tracetorch.", "torch.")):
                raise ValueError(f"{place} has a forward of its own: no rule.")
            names = getattr(node.module, "inputs", ("x",))
            given = {**dict(zip(names, args, strict=False)), **kwargs}
            given = {name: _interval(each) for name, each in given.items()}
            found = self.module(here, place, node.module, given)
            self.check_reach(place, found)
            _add(self.found.outputs, here, found)
            return found

        output = self.graphs[path].run(x, call=call)
        return reduce(hull, map(_interval, pytree.tree_leaves(output)))

    def check_reach(self, place: str, reached: Interval) -> None:
        """Raise where integers may be rounded."""
        if self.check:
            check_reach(place, reached, self.dtype)

    def module(self, path: str, place: str, module: Any, given: Given) -> Interval:
        """Return the interval of what a module returns."""
        if has_step(module):
            return self.neuron(path, place, module, given)
        (source,) = given.values()
        if isinstance(module, Recurrent):
            key = path, "prev_output"
            fed = self.run(join_path(path, "connection"), self.states[key])
            ends = source.low + fed.low, source.high + fed.high
            drive = Interval(*ends, step=np.minimum(source.step, fed.step))
            self.check_reach(place, drive)
            self.states[key] = self.run(join_path(path, "neuron"), drive)
            return self.states[key]
        if isinstance(module, (*_PRODUCTS, SynapticDelays)) or hasattr(module, "terms"):
            return self.sums(path, place, module, source)
        if isinstance(module, Delay):
            whole = interval_of(module.delay).step == 0 and module.sigma == 0
            self.check_whole(place, source if whole else Interval(0, 1, -math.inf))
            return with_zero(source)
        found = _plain(module, source)
        if found is None:
            average = isinstance(module, nn.AvgPool1d | nn.AvgPool2d | nn.AvgPool3d)
            raise ValueError(
                f"{place} averages, and an average is no integer. Sum, tt.integers.SumPool2d."
                if average
                else f"{place} has no rule of ranges: nothing is proved of what it returns. Prove "
                "neuron layers one by one, tt.integers.prove."
            )
        return found

    def neuron(self, path: str, place: str, layer: Neuron, inputs: Given) -> Interval:
        """Return the interval of the output of a neuron layer."""
        missing = [name for name in layer.inputs if name not in inputs]
        beside = beside_step(layer)
        if missing or beside is not None:
            what = beside or f"computes {', '.join(missing)} itself"
            raise ValueError(f"{place} {what}, which is not proved.")
        for name, each in inputs.items():
            self.check_whole(place, each, f"gets {name} that")
        states = {name: self.states[path, name] for name in layer.cell.active}
        found, ends = self.steps[path].bounds(inputs, states)
        self.states.update({(path, name): end for name, end in ends.items()})
        if self.check and not found.exact:
            raise ValueError(
                f"{place} is not exact in {self.dtype} for inputs up to "
                f"{max(each.magnitude for each in inputs.values()):.0f}: {found.fault}. Give fewer "
                "bits, smaller inputs, or x.double() and model.double()."
            )
        output = overall(found.outputs["output"])
        if path in self.found.steps:
            found = _union(self.found.steps[path], found)
            inputs = {n: hull(each, self.found.inputs[path][n]) for n, each in inputs.items()}
        self.found.steps[path], self.found.inputs[path] = found, inputs
        return output

    def check_whole(
        self, place: str, value: Interval, what: str = "gets, holds or returns what"
    ) -> None:
        """Raise where a module gets or holds what is no integer."""
        if self.check and not np.min(value.step) >= 0:
            raise ValueError(
                f"{place} {what} is no integer. Scale and round it, tt.integers.round(scale * x)."
            )

    def sums(self, path: str, place: str, module: Any, source: Interval) -> Interval:
        """Return the interval of sums of products, those on the way checked."""
        self.check_whole(place, source)
        product = module
        if isinstance(module, SynapticDelays):
            product, source = module.product, with_zero(source)
        weight, bias, shift = terms_of(product)
        if product is not module:  # a delay between two steps spreads a weight over both
            weight = module.kernel_of(torch.float64)
        for each in (weight, bias):
            if each is not None:
                self.check_whole(place, interval_of(each))
        plain, reached = weighted_sums(weight, None, source)
        self.check_reach(place, reached)
        _add(self.found.sums, path, reached)
        if shift < 0:
            return mapped(plain, lambda x: np.floor(x * 2.0**shift), 0.0)
        found, reached = weighted_sums(weight.double() * 2.0**shift, bias, source)
        self.check_reach(place, reached)
        return found

    def function(self, node: Node, args: Any, kwargs: Any) -> Interval:
        """Return the interval of what a function between modules returns."""
        name, place = node.operation.removesuffix("_"), node.place
        if name in _SHAPES:
            given = pytree.tree_leaves((args, kwargs))
            ranges = [_interval(each) for each in given if isinstance(each, Interval | Tensor)]
            found = reduce(hull, ranges)
            self.check_reach(place, found)
            return found
        builder, reads = Builder(), dict[str, Interval]()

        def operand(given: Any) -> Any:
            if not isinstance(given, Interval | Tensor):
                return given
            reads[f"r{len(reads)}"] = _interval(given)
            return f"r{len(reads) - 1}"

        args, kwargs = pytree.tree_map(operand, (args, kwargs))
        kwargs = {_NAMES.get(key, key): each for key, each in kwargs.items()}
        try:
            value = lower(builder, name, name in _COMPARISONS, args, kwargs)
            graph = Graph(tuple(builder.lines), {"output": value})
            proved = bounds(graph, reads, self.dtype)
        except (Unfusable, ValueError) as reason:
            raise ValueError(
                f"{place} has no rule of ranges, so that nothing is proved of what it returns: "
                f"{reason}."
            ) from None
        found = overall(proved.outputs["output"])
        self.check_reach(place, found)
        if self.check and not proved.exact:
            raise ValueError(f"{place} is not exact in {self.dtype}: {proved.fault}.")
        return found


def _interval(given: Any) -> Interval:
    return given if isinstance(given, Interval) else interval_of(given)


def _add(table: dict[Place, Interval], key: Place, found: Interval) -> None:
    """Enter an interval in a table, beside what is there."""
    table[key] = hull(table[key], found) if key in table else found


def _union(one: Bounds, other: Bounds) -> Bounds:
    """Return the intervals of two calls of one step."""
    pairs = zip(one.lines, other.lines, strict=True)
    lines = tuple((line, hull(first, second)) for (line, first), (_, second) in pairs)
    outputs = {name: hull(each, other.outputs[name]) for name, each in one.outputs.items()}
    inputs = {name: hull(each, other.inputs[name]) for name, each in one.inputs.items()}
    return replace(one, lines=lines, outputs=outputs, inputs=inputs)


def _plain(module: Any, source: Interval) -> Interval | None:
    """Return the interval of what a module without weights and states returns, if it has a rule."""
    low, high = 0.0, math.inf  # nn.ReLU
    if isinstance(module, Quantize):
        # whatever comes: inputs may be larger than those of a sample, and saturate here
        least, most = limits(module.bits, signed=module.signed)
        return Interval(float(least), float(most))
    if isinstance(module, SumPool):
        return weighted_sums(torch.ones(1, math.prod(module.kernel_size)), None, source)[0]
    if isinstance(module, nn.Hardtanh):
        low, high = module.min_val, module.max_val
    if isinstance(module, nn.ReLU | nn.Hardtanh):
        # an end that is reached is a value, of a step of its own
        steps = [constant(low).step] if np.min(source.low) < low else []
        steps += [constant(high).step] if np.max(source.high) > high else []
        return mapped(source, lambda x: np.clip(x, low, high), min([source.step, *steps]))
    return source if isinstance(module, _PASSING) else None


def mapped(x: Interval, function: Callable[[Any], Any], step: Any) -> Interval:
    """Return the interval of a function that never falls, of the step that its values have."""
    return Interval(float(function(x.low)), float(function(x.high)), step)


def terms_of(product: Any) -> tuple[Tensor, Tensor | None, int]:
    """Return the weights, the bias and the shift of a product."""
    if isinstance(product, _PRODUCTS):
        return product.weight, product.bias, 0
    found: tuple[Tensor, Tensor | None, int] = product.terms()
    return found
