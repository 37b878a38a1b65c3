"""Print a plan as two time loops for Numba with a linear recurrence inside: ``snn.Recurrent``.

::

    x[t] = input[t] + bias + output[t - 1] @ weight,  output[t] = step(x[t], states)

Neurons of a row (a sample) are coupled, rows are not. So a task is a group of ``columns`` lanes:
some whole rows of ``neurons`` lanes, walked through time together, each step in tiles of ``TILE``
lanes. Names are those of :mod:`~tracetorch.fuse.codegen.numba_loops`; besides::

    input         what the layer is given, with strides of time and of rows
    x             the sum above; forward keeps it for the backward pass, which so needs neither the
                  input nor the outputs
    feedback      backward: the cotangent of the outputs of a step, by way of the next step
    scratch       the S of all tiles of the task
    segments      the past of all tiles of the task
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from tracetorch.fuse.codegen.emitter import Emitter
from tracetorch.fuse.codegen.numba_loops import (
    MODULE,
    Slots,
    add_sums,
    prefixed,
    recompute,
    steps_back,
    steps_forward,
    store_checkpoint,
)
from tracetorch.fuse.codegen.numba_product import product_source
from tracetorch.fuse.codegen.targets import numba_target
from tracetorch.fuse.ir.graph import Graph
from tracetorch.fuse.ir.plan import TILE, RecurrentPlan

_SIZES = ("first", "last", "steps", "every", "columns", "neurons", "lanes")
INTEGERS = frozenset((*_SIZES, "step_x", "input_step", "input_row"))
# Arrays that each worker has its own of: the last arguments, in this order.
FORWARD_SCRATCH = ("sums_of_product", "events", "scratch")
BACKWARD_SCRATCH = (*FORWARD_SCRATCH, "segments", "feedback")


@contextmanager
def _tasks(
    emitter: Emitter, plan: RecurrentPlan, name: str, arguments: Sequence[str], graphs: list[Graph]
) -> Iterator[None]:
    """Open the function and its loop over tasks."""
    title = f"{name.capitalize()} pass in a linear recurrence"
    real = emitter.target.real
    module = MODULE.format(title=title, layer=plan.program.layer, real=real)
    emitter.lines(*module.splitlines())
    emitter.lines(*product_source().splitlines(), "", "")
    with emitter.indent(f"def {name}({', '.join(arguments)}):"):
        emitter.read_literals(graphs)
        with emitter.indent("for task in range(first, last):"):
            # The lanes of the task; the last one may have fewer. Everything is as for one row of
            # them, the row ``task``.
            emitter.line("row = group = task")
            emitter.line("left = task * columns")
            emitter.line("full = min(columns, lanes - left)")
            yield


@contextmanager
def _tiles(emitter: Emitter, slots: Slots) -> Iterator[None]:
    """Open the loop over the tiles of the task, each with its part of the scratch."""
    with emitter.indent(f"for low in range(0, full, {TILE}):"):
        emitter.line("base = left + low")
        emitter.line(f"width = min({TILE}, full - low)")
        size = len(slots.names)
        emitter.line(f"S = scratch[low * {size} : (low + {TILE}) * {size}]")
        yield


def _load_parameters(emitter: Emitter, count: int) -> None:
    """Print the copy of the parameters of the tile into the first slots of ``S``."""
    with emitter.indent(f"for k in range({count}):"):
        emitter.line("param = params[k * columns + low : k * columns + low + width]")
        emitter.line(f"T = S[k * {TILE} : k * {TILE} + width]")
        with emitter.indent("for i in range(width):"):
            emitter.line("T[i] = param[i]")


@contextmanager
def _rows(emitter: Emitter, name: str, at: str) -> Iterator[None]:
    """Open the loops over the rows of the task, at ``a`` in its lanes, and over the neurons."""
    with emitter.indent("for r in range(full // neurons):"):
        emitter.line("a = r * neurons")
        emitter.line(f"b = t * {name}_step + (left // neurons + r) * {name}_row")
        emitter.line(f"given = {name}[b : b + neurons]")
        emitter.line(f"T = {at}[a : a + neurons]")
        with emitter.indent("for i in range(neurons):"):
            yield


# Forward


def forward_arguments(plan: RecurrentPlan) -> list[str]:
    """Return the names of the forward kernel's arguments, in order."""
    states = plan.program.states
    return [
        *_SIZES,
        *("input_step", "input_row", "input", "params", "literals", "weight", "bias"),
        *("step_x", "x", "start_output", "output", "end_output"),
        *prefixed("start", states),
        *prefixed("end", states),
        *("checkpoints", *FORWARD_SCRATCH),
    ]


def forward_source(plan: RecurrentPlan) -> tuple[str, int]:
    """Print the forward kernel.

    Returns:
        Its source, and how many slots of a tile it needs as scratch.

    """
    program = plan.program
    emitter = Emitter(numba_target(program.dtype), plan.literals)
    slots = Slots([*prefixed("p", program.params), *prefixed("s", program.states)])
    with _tasks(emitter, plan, "forward", forward_arguments(plan), [program.forward]):
        emitter.line("row_x = columns")
        with _tiles(emitter, slots):
            _load_parameters(emitter, len(program.params))
            with emitter.indent("for i in range(width):"):
                for name in program.states:
                    emitter.line(f"{slots.at(f's_{name}')} = start_{name}[base + i]")
        with emitter.indent("for t in range(steps):"):
            if plan.recomputed:
                emitter.line("begin = t")
                with emitter.indent("if t % every == 0:"), _tiles(emitter, slots):
                    store_checkpoint(emitter, plan, slots)
            # The recurrent product of all rows, then the step of all tiles.
            with emitter.indent("if t == 0:"):
                emitter.line("previous = start_output[left : left + full]")
            with emitter.indent("else:"):
                emitter.line("k = (t - 1) * lanes + left")
                emitter.line("previous = output[k : k + full]")
            emitter.line("drive = x[t * step_x + left : t * step_x + left + full]")
            product = "weight, drive, full // neurons, neurons, sums_of_product, events"
            emitter.line(f"multiply(previous, {product})")
            with _rows(emitter, "input", "drive"):
                emitter.line("T[i] = given[i] + (T[i] + bias[i])")
            with _tiles(emitter, slots):
                steps_forward(emitter, plan, slots, 1)
        with _tiles(emitter, slots), emitter.indent("for i in range(width):"):
            for name in program.states:
                emitter.line(f"end_{name}[base + i] = {slots.at(f's_{name}')}")
            emitter.line("end_output[base + i] = output[(steps - 1) * lanes + base + i]")
    return emitter.source(), len(slots.names)


# Backward


def backward_arguments(plan: RecurrentPlan) -> list[str]:
    """Return the names of the backward kernel's arguments, in order."""
    states = plan.program.states
    return [
        *_SIZES,
        *("x", "params", "literals", "weight", "checkpoints"),
        *prefixed("start", plan.recomputed),
        *("input_step", "input_row", "input", "g_end_output"),
        *prefixed("g_end", states),
        *("d_x", "output", "d_start_output"),
        *prefixed("d_start", states),
        *("sums", *BACKWARD_SCRATCH),
    ]


def backward_source(plan: RecurrentPlan) -> tuple[str, int]:
    """Print the backward kernel; ``input`` is the cotangent of the outputs.

    Returns:
        Its source, and how many slots of a tile it needs as scratch.

    """
    program = plan.program
    emitter = Emitter(numba_target(program.dtype), plan.literals)
    params, sums = prefixed("p", program.params), prefixed("d_p", plan.trained)
    slots = Slots([*params, *sums, *prefixed("g", program.states)])
    arguments, graphs = backward_arguments(plan), [plan.backward, plan.advance]
    # One slot of a tile for each recomputed state at each step of a segment.
    size = f"every * {max(1, len(plan.recomputed))}"
    past = f"past = segments[low * {size} : (low + {TILE}) * {size}]"
    with _tasks(emitter, plan, "backward", arguments, graphs):
        # The loops within a tile read x, and the cotangent of the outputs from ``feedback``.
        emitter.line("step_x, row_x, g_step, g_row = lanes, columns, 0, 0")
        emitter.line("g_output = feedback")
        with _tiles(emitter, slots):
            _load_parameters(emitter, len(params))
            with emitter.indent(f"for i in range({len(sums) * TILE}):"):
                emitter.line(f"S[{len(params) * TILE} + i] = zero")
            with emitter.indent("for i in range(width):"):
                for name in program.states:
                    emitter.line(f"{slots.at(f'g_{name}')} = g_end_{name}[base + i]")
                emitter.line("feedback[low + i] = g_end_output[base + i]")
        with emitter.indent("for segment in range((steps - 1) // every, -1, -1):"):
            emitter.line("begin = segment * every")
            emitter.line("end = min(begin + every, steps)")
            with _tiles(emitter, slots):
                emitter.line(past)
                recompute(emitter, plan, slots)
            with emitter.indent("for t in range(end - 1, begin - 1, -1):"):
                with _rows(emitter, "input", "feedback"):
                    emitter.line("T[i] = T[i] + given[i]")
                with _tiles(emitter, slots):
                    emitter.line(past)
                    steps_back(emitter, plan, slots, 1)
                emitter.line("drive = d_x[t * lanes + left : t * lanes + left + full]")
                product = "weight, feedback, full // neurons, neurons, sums_of_product, events"
                emitter.line(f"multiply(drive, {product})")
            with _tiles(emitter, slots):
                add_sums(emitter, plan)
        with _tiles(emitter, slots), emitter.indent("for i in range(width):"):
            for name in program.states:
                emitter.line(f"d_start_{name}[base + i] = {slots.at(f'g_{name}')}")
            emitter.line("d_start_output[base + i] = feedback[low + i]")
    return emitter.source(), len(slots.names)
