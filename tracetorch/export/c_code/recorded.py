"""Record a step for a program: read it on a sample, and find the ranges of its integers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from tracetorch import integers
from tracetorch.core.hooks import call_is_forward
from tracetorch.core.torch_private import pytree
from tracetorch.core.version import __version__
from tracetorch.export.c_code.arrangement import living
from tracetorch.export.c_code.read_program import read_step
from tracetorch.export.c_code.stages import StepProgram
from tracetorch.export.c_code.widths import Widths, found_widths
from tracetorch.fuse.ir.intervals import Interval, interval_of
from tracetorch.integers.border import Quantize
from tracetorch.integers.width import limits
from tracetorch.unrolling.inputs import Inputs, tensors_by_name
from tracetorch.unrolling.unroll import explain_dtype


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
        explain_dtype(error, model, tensors_by_name(inputs.tensors))
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
        with _naming_quantize(model):
            ranges = {name: _range_of(name, values) for name, values in named.items()}
            if split is not None:  # the border saturates whatever comes, beyond the sample too
                low, high = map(float, limits(border.bits, signed=border.signed))
                ranges = dict.fromkeys(ranges, Interval(low, high, 0.0))
            widths = found_widths(program, ranges)
    input_range = {name: (float(r.low), float(r.high)) for name, r in ranges.items()}
    notes += [f"input {name}: {low:.0f} to {high:.0f}" for name, (low, high) in input_range.items()]
    return RecordedStep(model, tuple(notes), inputs, named, program, widths, input_range)


@contextmanager
def _naming_quantize(model: nn.Module) -> Iterator[None]:
    """Name the way to integers first, where a network of floats is refused."""
    try:
        yield
    except ValueError as error:
        ours = integers.__name__
        modules = [m for m in model.modules() if not type(m).__module__.startswith(ours)]
        own = [p.detach() for m in modules for p in m.parameters(recurse=False)]
        if all(torch.equal(p, p.round()) for p in own if p.is_floating_point()):
            raise
        raise ValueError(
            f"{type(model).__name__} is a network of floats. Quantise it first, with "
            f"tt.quantize.prepare and tt.quantize.convert, or give dtype='float32': {error}"
        ) from error


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
            f"the sample's {name} holds what is no integer, and dtype='int' takes integers. Scale "
            "and round it, tt.integers.round(scale * x), or make tt.integers.Quantize the first "
            "child of the nn.Sequential itself, which has no hooks."
        )
    # zero is what a silent input is
    return Interval(min(0.0, float(np.min(found.low))), max(0.0, float(np.max(found.high))), 0.0)
