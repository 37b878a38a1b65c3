"""Write one time step of a model as C99 without any dependency: ``c``."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from tracetorch.core.checks import check_module
from tracetorch.core.files import write_texts
from tracetorch.core.torch_private import one_trace_at_a_time
from tracetorch.export.c_code.arrangement import event_arrays, planned
from tracetorch.export.c_code.files import MAKEFILE, header, main_source, sample_header
from tracetorch.export.c_code.printer import c_words
from tracetorch.export.c_code.recorded import holds_spikes, record_step
from tracetorch.export.c_code.source import model_source, names_of
from tracetorch.export.c_code.stages import Product
from tracetorch.unrolling.inputs import Inputs, parse_inputs


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
    have the width that they need, 8 to 64 bits. That nothing overflows is proved, over any number
    of steps, for inputs in the range of the sample (``input_range`` of the report). A first
    ``tt.integers.Quantize`` is left to the caller, who gives what it would return, whatever that
    is; it may stand first in an ``nn.Sequential`` that stands first.

    Args:
        model: any module whose call is one time step; it is unchanged afterwards.
        folder: made if it is not there; files of these names are replaced, and none where an
            error is raised.
        sample: a recorded input ``[T, B, ...]``: a tensor, or a tuple or a dict of them, of which
            the first stream is written.
        dtype: ``"float32"`` or ``"int"``.

    Shape:
        ``sample`` ``[T, B, ...]``; in C one stream, ``x`` and ``y`` flat in PyTorch's order.

    Returns:
        What the network needs: :class:`tt.export.CReport`.

    Raises:
        TypeError: ``model`` is no module, or ``sample`` holds anything but tensors, or those of
            another dtype than the model's.
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
    if dtype not in ("float32", "int"):
        raise ValueError(f"dtype must be 'float32' or 'int', got {dtype!r}.")
    inputs = parse_inputs(sample)
    if not inputs.batch:
        raise ValueError("x has no sample: its batch is 0, and a recorded input is needed.")
    files, report = _files(model, inputs, dtype == "int")
    write_texts(folder, files)
    return report


@dataclass(frozen=True)
class CReport:
    """Needs of a network in C.

    Args:
        files: names of the files.
        flash_bytes: size of the constant tables; the code itself is measured by ``make size``.
        ram_bytes: size of the struct of one stream: states and work memory.
        stack_bytes: bound of the stack that ``tt_step`` takes, without that of the functions of
            ``math.h``.
        input_range: least and largest value of each input for which integers are proved not to
            overflow, by name; empty for float32. Those of the sample, or of the bits of a first
            ``integers.Quantize``.
        types: C type of every input, state and output, by name.
        events: names of the modules whose products skip zeros.

    Example:
        >>> import tempfile
        >>> net = nn.Sequential(nn.Linear(8, 4), LIF(4))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     report = c(net, folder, torch.rand(5, 1, 8).round())
        >>> report.flash_bytes, report.ram_bytes
        (144, 32)
    """

    files: tuple[str, ...]
    flash_bytes: int
    ram_bytes: int
    stack_bytes: int
    input_range: dict[str, tuple[float, float]]
    types: dict[str, str]
    events: tuple[str, ...]

    def __str__(self) -> str:
        ranges = ", ".join(
            f"{n} {low:.0f} to {high:.0f}" for n, (low, high) in self.input_range.items()
        )
        lines = [
            f"flash        {self.flash_bytes} bytes of tables, and the code (make size)",
            f"RAM          {self.ram_bytes} bytes for each stream",
            f"stack        at most {self.stack_bytes} bytes, without math.h",
            *([f"inputs       {ranges}"] if ranges else []),
            *(f"type         {name}: {kind}" for name, kind in self.types.items()),
        ]
        return "\n".join(lines) + "\n"


@one_trace_at_a_time
def _files(model: nn.Module, inputs: Inputs, integer: bool) -> tuple[dict[str, str], CReport]:
    """Return the text of every file, and the report."""
    recorded = record_step(model, inputs, integer)
    widths = recorded.widths if integer else None
    program = planned(recorded.program)
    given = program.inputs.items()
    events = event_arrays(program, [a for name, a in given if holds_spikes(recorded.named[name])])
    names = names_of(program, c_words(), widths)
    source = model_source(program, names, events, widths)
    products = [stage for stage in program.stages if isinstance(stage, Product)]
    report = CReport(
        ("model.h", "model.c", "sample.h", "main.c", "Makefile", "report.txt"),
        source.table_bytes,
        source.struct_bytes,
        source.stack_bytes,
        recorded.input_range,
        {label: names.types[array] for label, array in program.ends.items()},
        tuple(each.path for each in products if each.source.array in events),
    )
    sample = [x[:, 0].detach().cpu() for x in recorded.named.values()]
    texts = [
        header(program, names, recorded.notes),
        source.text,
        sample_header(source.inputs, sample),
        main_source(source.inputs, source.outputs),
        MAKEFILE,
        str(report).encode("ascii", "replace").decode(),
    ]
    return dict(zip(report.files, texts, strict=True)), report
