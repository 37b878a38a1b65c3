"""Write one time step of a model as C99 without any dependency: ``c``."""

from __future__ import annotations

import keyword
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from tracetorch.core.checks import check_module
from tracetorch.core.files import atomic_replace_all
from tracetorch.core.hooks import call_is_forward
from tracetorch.core.torch_private import one_trace_at_a_time, pytree
from tracetorch.core.version import __version__
from tracetorch.core.walk import named_modules
from tracetorch.export.c_code.costs import mean_events, memory_accesses
from tracetorch.export.c_code.event_sources import event_arrays
from tracetorch.export.c_code.files import (
    MAKEFILE,
    Port,
    header,
    main_source,
    sample_header,
)
from tracetorch.export.c_code.plan import living, planned
from tracetorch.export.c_code.printer import c_words
from tracetorch.export.c_code.read_program import read_program
from tracetorch.export.c_code.report import CReport
from tracetorch.export.c_code.source import model_source, names_of, struct_bytes
from tracetorch.export.c_code.stages import Product, StepProgram
from tracetorch.export.c_code.widths import found_widths
from tracetorch.export.step import export_step
from tracetorch.export.trace_errors import explain_trace_errors
from tracetorch.fuse.ir.intervals import Interval
from tracetorch.integers.border import Quantize
from tracetorch.integers.exact import interval_of
from tracetorch.metrics.observe import observe
from tracetorch.metrics.operations import SynapticOperations, check_counted, sum_operations
from tracetorch.snn.noise import Noise
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
            stream is written; costs are means over its first 100 steps.
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
    check_names(model)
    check_no_noise(model)
    inputs = parse_inputs(sample, None, 0, True)
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


def check_names(model: nn.Module) -> None:
    """Raise ``ValueError`` where ``torch.export`` would take a module's name for code."""
    for path, module in named_modules(model):
        for name in (path, *module._parameters, *module._buffers):
            words = any(map(keyword.iskeyword, name.split(".")))
            if words or re.search(r'["\\\x00-\x1f\x7f]', name):
                raise ValueError(
                    f"the name {name!r} in the model holds a word of Python, a quotation mark, a "
                    "backslash or a control character, which torch.export cannot write. Rename it."
                )


def check_no_noise(model: nn.Module) -> None:
    """Raise ``ValueError`` where a model draws random numbers."""
    for path, module in named_modules(model):
        if isinstance(module, Noise):
            raise ValueError(
                f"{path or 'the model'} ({type(module).__name__}) cannot be written in C: its "
                "stream is a counter of 64 bits through integers that wrap (Threefry), and its "
                "normal numbers take log and cos, which no two math.h round alike; the stream here "
                "would not be that of PyTorch. Let forward take the random numbers as an input, "
                "and draw them in C as you like."
            )


@one_trace_at_a_time
def _files(model: nn.Module, inputs: Inputs, integer: bool) -> tuple[dict[str, str], CReport]:
    """Return the text of every file, and the report."""
    notes = [f"{type(model).__name__}, traceTorch {__version__}"]
    if integer:
        model, inputs, more = _without_border(model, inputs)
        notes += more
    # first, as it names what is wrong with a sample
    operations, updates = _operations(model, inputs.first(_COUNTED))
    stream = replace(inputs, tensors=inputs.map(lambda x: x.detach()[:, :1].cpu()), batch=1)
    steps = list(stream.each_step())
    try:
        exported, program, states = read_step(model, steps[0])
    except RuntimeError as error:  # of shapes: whoever tells why raises a ValueError
        shapes = [list(x.shape) for x in pytree.tree_leaves(inputs.tensors)]
        raise ValueError(
            f"{type(model).__name__} fails on one step of one sample: {error} The sample is a "
            f"sequence [T, B, ...], got {shapes}. One sequence [T, F]? Give sample[:, None]."
        ) from error
    program = living(program)
    leaves: list[Tensor] = pytree.tree_leaves(inputs.tensors)
    named = dict(zip(program.inputs, leaves, strict=True))
    ranges = {name: _range_of(name, values) for name, values in named.items()} if integer else {}
    if program.double and not integer:
        raise ValueError(
            f"{type(model).__name__} computes in float64; C is written for float32, or for float64 "
            "that holds integers. Give model.float() and sample.float(), or dtype='int'."
        )
    widths = found_widths(program, ranges) if integer else None
    spikes = [array for name, array in program.inputs.items() if holds_spikes(named[name])]
    program = planned(program)
    events = event_arrays(program, spikes)
    names = names_of(program, c_words(), widths)
    ports = tuple(
        [
            Port(names.fields[array], label, names.types[array], array.size)
            for label, array in arrays.items()
        ]
        for arrays in (program.inputs, program.outputs)
    )
    inputs_, outputs = ports
    notes += [
        f"input {name}: {low:.0f} to {high:.0f}" for name, (low, high) in _ends(ranges).items()
    ]
    source = model_source(program, names, (inputs_, outputs), events, widths)
    held = {names.fields[a]: (label, a, names.types[a]) for label, a in program.states.items()}
    members = [(kind, array.size) for _, array, kind in held.values()]
    members += list(names.memory.sizes.items())
    products = {each.node: each for each in program.stages if isinstance(each, Product)}
    counted = mean_events(exported, steps[:_COUNTED], states, set(products))
    kinds = {
        label: names.types[array]
        for arrays in (program.inputs, program.states, program.outputs)
        for label, array in arrays.items()
    }
    files = ("model.h", "model.c", "sample.h", "main.c", "Makefile", "report.txt")
    report = CReport(
        files,
        source.table_bytes,
        struct_bytes(members),
        source.stack_bytes,
        operations,
        updates,
        memory_accesses(program.stages, counted, events, source.sparse),
        _ends(ranges),
        kinds,
        tuple(each.path for each in products.values() if each.source.array in events),
    )
    sequences = [x[:, 0].detach().cpu() for x in leaves]
    texts = (
        header((inputs_, outputs), held, names.memory, notes),
        source.text,
        sample_header(inputs_, sequences),
        main_source(inputs_, outputs),
        MAKEFILE,
        _ascii(str(report)),
    )
    return dict(zip(files, texts, strict=True)), report


def read_step(
    model: nn.Module, x: Any, record: Mapping[str, nn.Module] | None = None
) -> tuple[ExportedProgram, StepProgram, dict[str, Tensor]]:
    """Return the program of one step, its stages, and the states that it starts from.

    Most models consist of operations that have C without being decomposed. Only where one has
    none, or writes in place, the program is decomposed, which takes as long as tracing does.

    Args:
        model: any module.
        x: an input of one step, with a batch of one.
        record: modules whose outputs the program returns too, as :func:`export_step` takes them.
    """
    traced, signature = export_step(model, x, batch=1, record=record, as_traced=True)
    states = signature.initial_states(1, torch.device("cpu"))
    schemas = [getattr(node.target, "_schema", None) for node in traced.graph.nodes]
    if not any(schema is not None and schema.is_mutable for schema in schemas):
        try:
            return traced, read_program(traced, x, states), states
        except ValueError:
            pass  # the same error comes again, where its parts have no C either
    with torch.no_grad(), explain_trace_errors(model, RuntimeError, free_batch=False):
        exported = traced.run_decompositions({})
    return exported, read_program(exported, x, states), states


def _without_border(model: nn.Module, inputs: Inputs) -> tuple[nn.Module, Inputs, list[str]]:
    """Return a model without a first ``Quantize``, the inputs that the rest gets, and a note."""
    found = _split(model)
    if found is None:
        return model, inputs, []
    border, rest = found
    with torch.no_grad():
        inputs = replace(inputs, tensors=inputs.map(border))
    note = f"x is in units of {float(border.scale):.9g}: divide by it, round, {border.bits} bits"
    return rest, inputs, [note]


def _split(model: nn.Module) -> tuple[Quantize, nn.Sequential] | None:
    """Return the ``Quantize`` that a chain begins with, and the rest of it."""
    # a hook of the chain, or a forward of its own, might see what is split off
    plain = isinstance(model, nn.Sequential) and type(model).forward is nn.Sequential.forward
    if not plain or not call_is_forward(model):
        return None
    parts = list(model._modules.items())  # a module may be there twice
    name, first = parts[0] if parts else ("", None)
    if isinstance(first, Quantize):
        return (first, _chain(parts[1:])) if call_is_forward(first) else None
    inner = None if first is None else _split(first)
    if inner is None:
        return None
    return inner[0], _chain([(name, inner[1]), *parts[1:]])


def _chain(parts: Iterable[tuple[str, nn.Module | None]]) -> nn.Sequential:
    chain = nn.Sequential()
    for name, part in parts:
        chain.add_module(name, part)
    return chain


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


def _ends(ranges: Mapping[str, Interval]) -> dict[str, tuple[float, float]]:
    return {name: (float(r.low), float(r.high)) for name, r in ranges.items()}


def holds_spikes(values: Tensor) -> bool:
    """Whether most values of an input are zero."""
    return bool((values == 0).double().mean() > 0.5)


def _operations(model: nn.Module, inputs: Inputs) -> tuple[SynapticOperations, float]:
    """Return the operations of a step and the membranes that it updates, means over the sample."""
    # one run counts both: step by step, a run takes milliseconds a step
    modules, _ = observe(model, inputs.tensors, steps=None, by="step")
    check_counted(modules)
    found = sum_operations(modules, inputs.batch)
    parts = (found.effective_macs, found.effective_acs, found.dense)
    updates = sum(stats.updates for stats in modules) / inputs.batch
    return SynapticOperations(*(part / inputs.steps for part in parts)), updates / inputs.steps


def _ascii(text: str) -> str:
    return text.encode("ascii", "replace").decode()
