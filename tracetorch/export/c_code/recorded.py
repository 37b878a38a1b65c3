"""Record a step for a program: read it on a sample, and find the ranges of its integers."""

from __future__ import annotations

import keyword
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from tracetorch.core import __version__
from tracetorch.core.hooks import call_is_forward
from tracetorch.core.torch_private import pytree
from tracetorch.core.walk import named_modules
from tracetorch.export.c_code.arrangement import living
from tracetorch.export.c_code.operations import RULES
from tracetorch.export.c_code.reader import FLOATS, Reader
from tracetorch.export.c_code.stages import Array, Copy, Role, StepProgram, View
from tracetorch.export.c_code.widths import Widths, found_widths
from tracetorch.export.program import constants_of, named_leaves, run_step
from tracetorch.export.step import decomposed, export_step
from tracetorch.fuse.ir.intervals import Interval, interval_of
from tracetorch.integers.arithmetic import limits
from tracetorch.integers.layers import Quantize
from tracetorch.snn.batch_norm import needs_batch
from tracetorch.snn.noise import Noise
from tracetorch.unrolling.inputs import Inputs


@dataclass(frozen=True)
class RecordedStep:
    """Time step of a model as stages, and the sample on which it was read."""

    model: nn.Module  # what the caller runs: without a ``Quantize`` in front, for integers
    notes: tuple[str, ...]  # lines for whoever reads the files
    inputs: Inputs  # the sample, as the program takes it
    named: Mapping[str, Tensor]  # its tensors, by the program's names
    program: StepProgram
    widths: Widths  # of integers; of floats there are none
    input_range: dict[str, tuple[float, float]]  # of integers


def record_step(model: nn.Module, inputs: Inputs, integer: bool) -> RecordedStep:
    """Read one time step of a model on a sample; with ``integer``, find its numbers' ranges."""
    notes = [f"{type(model).__name__}, traceTorch {__version__}"]
    split = _without_border(model) if integer else None
    if split is not None:
        border, model = split
        with torch.no_grad():
            inputs = replace(inputs, tensors=inputs.map(border))
        scale = f"{float(border.scale):.9g}"
        notes.append(f"x is in units of {scale}: divide by it, round, {border.bits} bits")
    stream = replace(inputs, tensors=inputs.map(lambda x: x.detach()[:, :1].cpu()), batch=1)
    first = next(iter(stream.each_step()))
    try:
        step = read_step(model, first)
    except RuntimeError as error:  # of shapes: whoever tells why raises a ValueError
        leaves = pytree.tree_leaves(inputs.tensors)
        shapes = ", ".join(str(list(x.shape)) for x in leaves)
        way = " One sequence [T, F]? Give sample[:, None]." * any(x.ndim == 2 for x in leaves)
        raise ValueError(
            f"{type(model).__name__} fails on one step of one sample: {str(error).rstrip('.')}. "
            f"The sample is a sequence [T, B, ...], got {shapes}.{way}"
        ) from error
    program = living(step.program)
    named = dict(zip(program.inputs, pytree.tree_leaves(inputs.tensors), strict=True))
    if program.double and not integer:
        raise ValueError(
            f"{type(model).__name__} computes in float64; C is written for float32, or for float64 "
            "that holds integers. Give model.float() and sample.float(), or dtype='int'."
        )
    ranges: dict[str, Interval] = {}
    widths = Widths({}, {}, torch.float32)
    if integer:
        ranges = {name: _range_of(name, values) for name, values in named.items()}
        if split is not None:  # the border saturates whatever comes, beyond the sample too
            low, high = map(float, limits(border.bits, signed=border.signed))
            ranges = dict.fromkeys(ranges, Interval(low, high, 0.0))
        widths = found_widths(program, ranges)
    input_range = {name: (float(r.low), float(r.high)) for name, r in ranges.items()}
    notes += [f"input {name}: {low:.0f} to {high:.0f}" for name, (low, high) in input_range.items()]
    return RecordedStep(model, tuple(notes), inputs, named, program, widths, input_range)


def _without_border(model: nn.Module | None) -> tuple[Quantize, nn.Module] | None:
    """Return the ``Quantize`` that a chain begins with, and the chain with nothing in its place."""
    # a hook of the chain, or a forward of its own, might see what is split off
    if model is None or not call_is_forward(model):
        return None
    if isinstance(model, Quantize):
        return model, nn.Identity()
    if type(model).forward is not nn.Sequential.forward or not model._modules:
        return None
    name, first = next(iter(model._modules.items()))
    inner = _without_border(first)
    if inner is None:
        return None
    chain = nn.Sequential()
    for other, part in model._modules.items():  # a module may be there twice
        chain.add_module(other, inner[1] if other == name else part)
    return inner[0], chain


def _range_of(name: str, values: Tensor) -> Interval:
    found = interval_of(values)
    if not float(np.min(found.step)) >= 0:
        raise ValueError(
            f"the sample's {name} holds what is no integer. Quantise a network of floats, by "
            "tt.quantize.prepare and convert; scale and round the sample of integers, by "
            "tt.integers.round(scale * x), or make tt.integers.Quantize the first child of the "
            "nn.Sequential itself, which has no hooks."
        )
    # zero is what a silent input is
    return Interval(min(0.0, float(np.min(found.low))), max(0.0, float(np.max(found.high))), 0.0)


@dataclass(frozen=True)
class ExportedStep:
    exported: ExportedProgram  # the program of PyTorch
    program: StepProgram  # its stages
    states: Mapping[str, Tensor]  # what it starts from


def read_step(
    model: nn.Module, x: Any, record: Mapping[str, nn.Module] | None = None
) -> ExportedStep:
    """Export one time step of a model, and read it as stages; decomposed only where it must be."""
    for path, module in named_modules(model):
        for name in (path, *module._parameters, *module._buffers):
            words = any(map(keyword.iskeyword, name.split(".")))
            if words or re.search(r'["\\\x00-\x1f\x7f]', name):
                raise ValueError(
                    f"the name {name!r} in the model holds a word of Python, a quotation mark, a "
                    "backslash or a control character, which torch.export cannot write. Rename it."
                )
        if needs_batch(module):
            raise ValueError(
                f"{path or 'the model'} ({type(module).__name__}) cannot be written in C: it takes "
                "its statistics from the batch. It needs track_running_stats=True."
            )
        if isinstance(module, Noise):
            raise ValueError(
                f"{path or 'the model'} ({type(module).__name__}) cannot be written in C: its "
                "stream is a counter of 64 bits through integers that wrap (Threefry), and its "
                "normal numbers take log and cos, which no two math.h round alike; the stream here "
                "would not be that of PyTorch. Let forward take the random numbers as an input, "
                "and draw them in C as you like."
            )
    traced, signature = export_step(model, x, batch=1, record=record, as_traced=True)
    states = signature.initial_states(1, torch.device("cpu"))
    schemas = [getattr(node.target, "_schema", None) for node in traced.graph.nodes]
    if not any(schema is not None and schema.is_mutable for schema in schemas):
        try:
            return ExportedStep(traced, read_program(traced, x, states), states)
        except ValueError:
            pass  # the same error comes again, where its parts have no C either
    parts = decomposed(traced, model)
    return ExportedStep(parts, read_program(parts, x, states), states)


def read_program(program: ExportedProgram, x: Any, states: Mapping[str, Tensor]) -> StepProgram:
    """Return one time step of a program, on an input and states of a batch of one, as stages."""
    reader = Reader(program.graph_module, constants_of(program), RULES)
    signature, spec = program.graph_signature, program.call_spec
    arguments, _ = pytree.tree_unflatten(list(signature.user_inputs), spec.in_spec)
    given, given_states = arguments
    y, next_states = pytree.tree_unflatten(list(signature.user_outputs), spec.out_spec)
    leaves: list[Tensor] = pytree.tree_leaves(x)
    placed = [
        (Role.INPUT, name, node, value)
        for (name, node), value in zip(named_leaves("x", given), leaves, strict=True)
    ]
    placed += [(Role.STATE, name, node, states[name]) for name, node in given_states.items()]
    values: list[Tensor] = []
    step = StepProgram({}, {}, {}, reader.stages)
    for role, name, node, value in placed:
        if value.dtype not in (*FLOATS, torch.bool):
            raise ValueError(
                f"{'the state ' * (role is Role.STATE)}{name} is of {value.dtype}; C is written "
                "for float32, for float64 that holds integers, and for truth values. Convert the "
                "sample, sample.float(); keep such a state outside, and give what follows from it "
                "as an input."
            )
        dense = value.detach().contiguous().clone()
        values.append(dense)
        start = dense.flatten() if role is Role.STATE else None
        array = Array(role, name, dense.numel(), dense.dtype is torch.bool, start)
        (step.inputs if role is Role.INPUT else step.states)[name] = array
        reader.views[node] = View(array, tuple(dense.shape), tuple(dense.stride()))
        if dense.dtype in FLOATS:
            reader.dtypes.add(dense.dtype)
    at = len(leaves)
    with torch.no_grad():
        run_step(program, values[:at], dict(zip(given_states, values[at:], strict=True)), reader)
    reader.close()
    step.double = torch.float64 in reader.dtypes
    nodes = {node.name: node for node in program.graph.nodes}
    last = [(step.states[name], name, node) for name, node in next_states.items()]
    for name, node in named_leaves("y", y):
        result = reader.env.get(nodes[node]) if node in nodes else None
        if not isinstance(result, Tensor):
            raise ValueError(f"the output {name} of forward is no tensor: {node!r}.")
        array = Array(Role.OUTPUT, name, result.numel(), result.dtype is torch.bool)
        step.outputs[name] = array
        last.append((array, name, node))
    for array, name, node in last:
        view = reader.view(nodes[node])
        into = View(array, view.shape, tuple(torch.empty(view.shape).stride()))
        step.stages.append(Copy(name, view, into))
    return step


def holds_spikes(values: Tensor) -> bool:
    """Whether most values of an input are zero."""
    return bool((values == 0).double().mean() > 0.5)
