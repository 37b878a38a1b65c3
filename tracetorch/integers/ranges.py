"""Ranges of all that a model computes, from the range of its inputs, over any number of steps.

The model is read as graphs, its own and those inside of every ``Recurrent``, and run over intervals
instead of numbers, by the rules with which ``tt.export.c`` finds the widths of its integers: steps
and functions line by line (``fuse/ir/intervals.py``), products by the sums of their weights. States
grow until nothing grows any more, those of all layers together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import reduce
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from tracetorch.core.torch_private import pytree
from tracetorch.core.walk import join_path
from tracetorch.fuse.dispatch.plans import program_of
from tracetorch.fuse.ir.graph import Builder, Graph, Unfusable
from tracetorch.fuse.ir.intervals import (
    MOST_EXACT,
    Bounds,
    Interval,
    bounds,
    constant,
    hull,
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
from tracetorch.snn.model_graph import ModelGraph, Node, is_layer, read_model
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


class Ranges(NamedTuple):
    """Proof about a model: by path the bounds of every neuron layer's step, and of its inputs."""

    steps: dict[str, Bounds]
    inputs: dict[str, dict[str, Interval]]


class _Step(NamedTuple):
    """States that a step over intervals reads, those that it leaves, and what it finds."""

    states: Mapping[Key, Interval]
    ends: dict[Key, Interval]
    found: Ranges
    check: bool


def ranges_of(model: nn.Module, x: Tensor) -> Ranges:
    """Return the ranges of a model for inputs in the range of a sample and zero.

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

    def step(states: Mapping[Key, Interval], check: bool = False) -> Any:
        run = _Step(states, {}, Ranges({}, {}), check)
        read.run("", [values], run)
        return run.found, run.ends

    _, states = invariant(read.starts, step)
    found: Ranges = step(states, check=True)[0]
    return found


def interval_of(values: Tensor) -> Interval:
    """Return the range of the values of a tensor, and whether they are integers."""
    values = values.detach().double()
    if not bool(torch.isfinite(values).all()):
        return Interval(-math.inf, math.inf, -math.inf)
    step = 0.0 if torch.equal(values, values.round()) else -math.inf
    return Interval(float(values.min()), float(values.max()), step)


class StepRanges:
    """Graph of a layer's step, the intervals of its parameters, and what its states start from.

    Args:
        layer: a neuron layer.
        ndim: number of dimensions of the tensor of one step.
        dtype: of the arithmetic.

    Raises:
        ValueError: the step cannot be traced.
    """

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

    def bounds(
        self, inputs: Mapping[str, Interval], states: Mapping[str, Interval]
    ) -> tuple[Bounds, dict[str, Interval]]:
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
    """Graphs of a model: its own, and by path those inside of every ``Recurrent``.

    Args:
        model: any module.
        x: one step.
    """

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
            layer, inner = node.module, within(path, node.path)
            if isinstance(layer, Recurrent):
                self.starts[inner, "prev_output"] = Interval(0.0, 0.0)
                for name, of in (("neuron", node.inputs[0]), ("connection", node)):
                    given = x.new_zeros(of.shape or ())
                    self.read(getattr(layer, name), given, join_path(inner, name))
            elif has_step(layer):
                made = self.steps[inner] = StepRanges(layer, len(node.shape or ()), self.dtype)
                self.starts |= {(inner, name): each for name, each in made.starts.items()}

    def run(self, path: str, inputs: list[Interval], step: _Step) -> Interval:
        """Return the interval of the output of a module that was read."""
        graph = self.graphs[path]
        values = dict(zip(graph.inputs, inputs, strict=True))
        for node in graph.nodes[len(inputs) :]:
            if node.module is None:
                values[node] = self.function(node, values, step)
                continue
            here, own = within(path, node.path), type(node.module).forward
            if not own.__module__.startswith(("tracetorch.", "torch.")):
                raise ValueError(f"{_label(here, node.module)} has a forward of its own: no rule.")
            names = getattr(node.module, "inputs", ("x",))
            given = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
            ranges = {
                name: values[each] if isinstance(each, Node) else interval_of(each)
                for name, each in given.items()
            }
            values[node] = self.module(here, node.module, ranges, step)
            self.check(_label(here, node.module), values[node], step)
        return reduce(hull, (values[each] for each in pytree.tree_leaves(graph.output)))

    def check(self, place: str, value: Interval, step: _Step, reached: float = 0.0) -> None:
        """Raise where integers may be rounded."""
        reached, most = max(reached, value.magnitude), MOST_EXACT[self.dtype]
        if step.check and not np.isneginf(value.step) and not reached <= most:
            raise ValueError(
                f"{place} can reach {reached:.0f}, and {self.dtype} holds every "
                f"integer up to {most:.0f} only. Give x.double(), and model.double()."
            )

    def module(
        self, path: str, module: Any, given: Mapping[str, Interval], step: _Step
    ) -> Interval:
        """Return the interval of what a module returns."""
        if has_step(module):
            return self.neuron(path, module, given, step)
        (source,) = given.values()
        if isinstance(module, Recurrent):
            key = path, "prev_output"
            before = step.ends.get(key, step.states[key])
            fed = self.run(join_path(path, "connection"), [before], step)
            ends = source.low + fed.low, source.high + fed.high
            drive = Interval(*ends, step=np.minimum(source.step, fed.step))
            self.check(_label(path, module), drive, step)
            step.ends[key] = self.run(join_path(path, "neuron"), [drive], step)
            return step.ends[key]
        if isinstance(module, (*_PRODUCTS, SynapticDelays)) or hasattr(module, "terms"):
            return self.sums(path, module, source, step)
        if isinstance(module, Delay):
            whole = interval_of(module.delay).step == 0 and module.sigma == 0
            self.check_whole(path, module, source if whole else Interval(0, 1, -math.inf), step)
            return with_zero(source)
        found = _plain(module, source)
        if found is None:
            average = isinstance(module, nn.AvgPool1d | nn.AvgPool2d | nn.AvgPool3d)
            raise ValueError(
                f"{_label(path, module)} averages, and an average is no integer. Sum, "
                "tt.integers.SumPool2d."
                if average
                else f"{_label(path, module)} has no rule of ranges: nothing is proved of what it "
                "returns. Prove neuron layers one by one, tt.integers.prove."
            )
        return found

    def neuron(
        self, path: str, layer: Neuron, inputs: Mapping[str, Interval], step: _Step
    ) -> Interval:
        """Return the interval of the output of a neuron layer."""
        label, beside = _label(path, layer), beside_step(layer)
        missing = [name for name in layer.inputs if name not in inputs]
        if missing or beside is not None:
            what = beside or f"computes {', '.join(missing)} itself"
            raise ValueError(f"{label} {what}, which is not proved.")
        for name, each in inputs.items() if step.check else ():
            if not np.min(each.step) >= 0:
                raise ValueError(
                    f"{label} gets {name} that is no integer. Scale and round what comes before, "
                    "tt.integers.round(scale * x)."
                )
        keys = {name: (path, name) for name in layer.cell.active}
        # one that is called again in a step goes on from where it was left
        states = {name: step.ends.get(key, step.states[key]) for name, key in keys.items()}
        found, ends = self.steps[path].bounds(inputs, states)
        step.ends.update({(path, name): end for name, end in ends.items()})
        if step.check and not found.exact:
            raise ValueError(
                f"{label} is not exact in {self.dtype} for inputs up to "
                f"{max(each.magnitude for each in inputs.values()):.0f}: {found.fault}. Give fewer "
                "bits, smaller inputs, or x.double() and model.double()."
            )
        output = overall(found.outputs["output"])
        if path in step.found.steps:
            earlier = step.found.steps[path].outputs
            outputs = {name: hull(each, earlier[name]) for name, each in found.outputs.items()}
            found = replace(found, outputs=outputs)
            inputs = {
                name: hull(each, step.found.inputs[path][name]) for name, each in inputs.items()
            }
        step.found.steps[path], step.found.inputs[path] = found, dict(inputs)
        return output

    def check_whole(self, path: str, module: nn.Module, value: Interval, step: _Step) -> None:
        """Raise where a module gets or holds what is no integer."""
        if step.check and not np.min(value.step) >= 0:
            raise ValueError(
                f"{_label(path, module)} gets, holds or returns what is no integer. Scale and "
                "round it, tt.integers.round(scale * x)."
            )

    def sums(self, path: str, module: Any, source: Interval, step: _Step) -> Interval:
        """Return the interval of sums of products, those on the way checked."""
        self.check_whole(path, module, source, step)
        product = module
        if isinstance(module, SynapticDelays):
            product, source = module.product, with_zero(source)
        weight, bias, shift = terms_of(product)
        if product is not module:  # a delay between two steps spreads a weight over both
            weight = module.kernel_of(torch.float64)
        for each in (weight, bias):
            if each is not None:
                self.check_whole(path, module, interval_of(each), step)
        plain, reached = weighted_sums(weight, None, source)
        self.check(_label(path, module), plain, step, reached)
        if shift < 0:
            return mapped(plain, lambda x: np.floor(x * 2.0**shift), 0.0)
        found, reached = weighted_sums(weight.double() * 2.0**shift, bias, source)
        self.check(_label(path, module), found, step, reached)
        return found

    def function(self, node: Node, values: Mapping[Node, Interval], step: _Step) -> Interval:
        """Return the interval of what a function between modules returns."""
        name = node.operation.removesuffix("_")
        if name in _SHAPES:
            given = pytree.tree_leaves((node.args, node.kwargs))
            ranges = [interval_of(each) for each in given if isinstance(each, Tensor)]
            found = reduce(hull, [*ranges, *(values[each] for each in node.inputs)])
            self.check(node.place, found, step)
            return found
        builder, reads = Builder(), dict[str, Interval]()

        def operand(given: Any) -> Any:
            if not isinstance(given, Node | Tensor):
                return given
            label = f"r{len(reads)}"
            reads[label] = values[given] if isinstance(given, Node) else interval_of(given)
            return label

        args, kwargs = pytree.tree_map(
            operand, (node.args, node.kwargs), is_leaf=lambda each: isinstance(each, Node)
        )
        kwargs = {_NAMES.get(key, key): each for key, each in kwargs.items()}
        try:
            value = lower(builder, name, name in _COMPARISONS, args, kwargs)
            graph = Graph(tuple(builder.lines), {"output": value})
            found_bounds = bounds(graph, reads, self.dtype)
        except (Unfusable, ValueError) as reason:
            raise ValueError(
                f"{node.place} has no rule of ranges, so that nothing is proved of what it "
                f"returns: {reason}."
            ) from None
        found = overall(found_bounds.outputs["output"])
        self.check(node.place, found, step)
        if step.check and not found_bounds.exact:
            raise ValueError(f"{node.place} is not exact in {self.dtype}: {found_bounds.fault}.")
        return found


def _plain(module: Any, source: Interval) -> Interval | None:
    """Return the interval of what a module without weights and states returns, if it has a rule."""
    low, high = 0.0, math.inf  # nn.ReLU
    if isinstance(module, Quantize):
        scale, ends = float(module.scale), limits(module.bits, signed=module.signed)
        # the model divides in its own dtype
        found = np.floor(np.divide(source.low, scale)), np.ceil(np.divide(source.high, scale))
        return Interval(float(np.clip(found[0], *ends)), float(np.clip(found[1], *ends)))
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


def within(path: str, inner: str) -> str:
    """Return the path of a module by that of one around it; either may be empty."""
    return join_path(path, inner) if inner else path


def terms_of(product: Any) -> tuple[Tensor, Tensor | None, int]:
    """Return the weights, the bias and the shift of a product."""
    if isinstance(product, _PRODUCTS):
        return product.weight, product.bias, 0
    found: tuple[Tensor, Tensor | None, int] = product.terms()
    return found


def _label(path: str, module: nn.Module) -> str:
    kind: Any = type(module)
    if is_parametrized(module):
        kind = kind.__base__
    return f"{path or 'the model'} ({kind.__name__})"
