"""Write one time step of a model as C99 without any dependency: ``c``."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from tracetorch import integers
from tracetorch.core.checks import check_module
from tracetorch.core.files import atomic_replace_all
from tracetorch.core.hooks import call_is_forward
from tracetorch.core.torch_private import one_trace_at_a_time, pytree
from tracetorch.core.version import __version__
from tracetorch.core.walk import join_path, named_modules
from tracetorch.export.c_code.arrangement import living, planned
from tracetorch.export.c_code.costs import memory_accesses, step_costs
from tracetorch.export.c_code.event_sources import event_arrays
from tracetorch.export.c_code.files import MAKEFILE, header, main_source, sample_header
from tracetorch.export.c_code.printer import Names, c_words
from tracetorch.export.c_code.read_program import ExportedStep, holds_spikes, read_step
from tracetorch.export.c_code.report import CReport
from tracetorch.export.c_code.source import Source, model_source, names_of
from tracetorch.export.c_code.stages import Array, Product, StepProgram
from tracetorch.export.c_code.widths import found_widths
from tracetorch.fuse.ir.intervals import Interval, interval_of
from tracetorch.integers.border import Quantize
from tracetorch.metrics.observe import membrane_name
from tracetorch.unrolling.inputs import Inputs, parse_inputs

_COUNTED = 100  # steps over which costs are measured: counting takes milliseconds a step


def c(
    model: nn.Module,
    folder: str | os.PathLike[str],
    sample: Any,
    *,
    dtype: Literal["float32", "int"] = "float32",
) -> CReport:
    """Write one time step of ``model`` as C99: a header, a source, and what tries them.

    ::

        tt_stream stream;                    one struct for each stream
        tt_init(&stream);
        tt_step(&stream, x, y);              one time step, as often as you like
        tt_reset(&stream);                   the next step is the first one again

    ``model.h`` and ``model.c`` need nothing but the C library's headers, and functions of
    ``math.h`` where a neuron calls one; they allocate nothing, and do not recurse. Sizes are
    constants, weights are ``const`` tables. Products whose input is spikes skip zeros.
    ``sample.h``, ``main.c`` and a ``Makefile`` stream the sample (``make run``) and print the
    outputs; ``report.txt`` holds what is returned.

    The program is that of the model in eval mode. Neurons compute bit for bit what they compute in
    PyTorch, with functions such as ``exp`` to two units in the last place. Products begin with
    their bias and add in ascending order of the input: the sums of PyTorch to rounding, and bit for
    bit where sums are exact.

    With ``dtype="int"`` all arithmetic is integer: of a model whose numbers are integers
    (``tt.quantize``, ``tt.integers``, ``tt.chips``), equal to PyTorch exactly. Tables and states
    have the width that they need, 8 to 64 bits, weights of -8 to 7 are two in a byte. That nothing
    overflows is proved, over any number of steps, for inputs in the range of the sample
    (``input_range`` of the report). A first ``tt.integers.Quantize`` is left to the caller, who
    gives what it would return; it may stand first in an ``nn.Sequential`` that stands first.

    Args:
        model: any module whose call is one time step; it is unchanged afterwards.
        folder: made if it is not there; files of these names are replaced, and none where an
            error is raised.
        sample: a recorded input ``[T, B, ...]``: a tensor, or a tuple or a dict of them. Its first
            stream is written; costs are means over the first 100 steps of that.
        dtype: ``"float32"`` (default) or ``"int"``.

    Shape:
        ``sample`` ``[T, B, ...]``; in C one stream, ``x`` and ``y`` flat in PyTorch's order.

    Returns:
        What the network needs: :class:`tt.export.CReport`.

    Raises:
        TypeError: ``model`` is no module, or ``sample`` holds anything but tensors.
        ValueError: as :func:`tt.export.step`; or an operation has no C, which is named with the
            path of its module; with ``"int"``, what is no integer or may overflow.
        OSError: the files cannot be written; those that there are stay as they are.

    Example:
        >>> import tempfile
        >>> net = nn.Sequential(nn.Linear(4, 3), LIF(3))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     report = c(net, folder, torch.rand(10, 1, 4))
        ...     sorted(os.listdir(folder))
        ['Makefile', 'main.c', 'model.c', 'model.h', 'report.txt', 'sample.h']
        >>> report.ram_bytes  # three membranes and the sums that enter them, in float32
        24
    """
    check_module(model)
    if dtype not in get_args(Literal["float32", "int"]):
        raise ValueError(f"dtype must be 'float32' or 'int', got {dtype!r}.")
    inputs = parse_inputs(sample, None, 0, True)
    if not inputs.batch:
        raise ValueError("x has no sample: its batch is 0, and a recorded input is needed.")
    files, report = _files(model, inputs, dtype == "int")
    path = Path(folder)
    made = not path.exists()
    path.mkdir(exist_ok=True)
    try:
        with atomic_replace_all([path / name for name in files]) as unfinished:
            for file, text in zip(unfinished, files.values(), strict=True):
                file.write_text(text, encoding="ascii")
    except OSError:
        if made and not any(path.iterdir()):
            path.rmdir()
        raise
    return report


@one_trace_at_a_time
def _files(model: nn.Module, inputs: Inputs, integer: bool) -> tuple[dict[str, str], CReport]:
    """Return the text of every file, and the report."""
    notes = [f"{type(model).__name__}, traceTorch {__version__}"]
    split = _without_border(model) if integer else None
    if split is not None:
        border, model = split
        with torch.no_grad():
            inputs = replace(inputs, tensors=inputs.map(border))
        scale = f"{float(border.scale):.9g}"
        notes.append(f"x is in units of {scale}: divide by it, round, {border.bits} bits")
    stream = replace(inputs, tensors=inputs.map(lambda x: x.detach()[:, :1].cpu()), batch=1)
    steps = list(stream.each_step())
    try:
        step = read_step(model, steps[0])
    except RuntimeError as error:  # of shapes: whoever tells why raises a ValueError
        shapes = [list(x.shape) for x in pytree.tree_leaves(inputs.tensors)]
        raise ValueError(
            f"{type(model).__name__} fails on one step of one sample: {error} The sample is a "
            f"sequence [T, B, ...], got {shapes}. One sequence [T, F]? Give sample[:, None]."
        ) from error
    program = living(step.program)
    named = dict(zip(program.inputs, pytree.tree_leaves(inputs.tensors), strict=True))
    if program.double and not integer:
        raise ValueError(
            f"{type(model).__name__} computes in float64; C is written for float32, or for float64 "
            "that holds integers. Give model.float() and sample.float(), or dtype='int'."
        )
    ranges: dict[str, Interval] = {}
    widths = None
    if integer:
        with _naming_quantize(model):
            ranges = {name: _range_of(name, values) for name, values in named.items()}
            widths = found_widths(program, ranges)
    spikes = [array for name, array in program.inputs.items() if holds_spikes(named[name])]
    program = planned(program)
    events = event_arrays(program, spikes)
    names = names_of(program, c_words(), widths)
    source = model_source(program, names, events, widths)
    input_range = {name: (float(r.low), float(r.high)) for name, r in ranges.items()}
    notes += [f"input {name}: {low:.0f} to {high:.0f}" for name, (low, high) in input_range.items()]
    report = _report(model, step, steps[:_COUNTED], program, names, events, source, input_range)
    sample = [x[:, 0].detach().cpu() for x in named.values()]
    texts = (
        header(program, names, notes),
        source.text,
        sample_header(source.inputs, sample),
        main_source(source.inputs, source.outputs),
        MAKEFILE,
        str(report).encode("ascii", "replace").decode(),
    )
    return dict(zip(report.files, texts, strict=True)), report


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


def _report(
    model: nn.Module,
    step: ExportedStep,
    steps: list[Any],
    program: StepProgram,
    names: Names,
    events: set[Array],
    source: Source,
    input_range: dict[str, tuple[float, float]],
) -> CReport:
    membranes = {join_path(p, name) for p, m in named_modules(model) if (name := membrane_name(m))}
    membranes &= program.states.keys()
    costs = step_costs(step.exported, steps, step.states, program.stages, membranes)
    products = [stage for stage in program.stages if isinstance(stage, Product)]
    return CReport(
        ("model.h", "model.c", "sample.h", "main.c", "Makefile", "report.txt"),
        source.table_bytes,
        source.struct_bytes,
        source.stack_bytes,
        costs.operations,
        costs.updates,
        memory_accesses(program.stages, costs.events, events, source.sparse),
        input_range,
        {label: names.types[array] for label, array in program.ends.items()},
        tuple(each.path for each in products if each.source.array in events),
    )


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
