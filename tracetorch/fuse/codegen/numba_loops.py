"""Print a plan as two time loops for Numba: serial, over a range of tasks.

A task is a tile: ``TILE`` neighbouring lanes of a row, walked through all of time, for a group of
rows one after the other. The kernels name its memory::

    registers     every value of a step, while one lane is computed
    S             scratch of the tile, one slot of TILE values for each name: parameters, sums of
                  their gradients (backward), states (forward) or their cotangents (backward)
    checkpoints   states at the beginning of every segment but the first; forward stores them
    past          scratch of the tile: states before every step of one segment; backward
                  recomputes them there from the segment's checkpoint
    P, T          the part of past or S that a loop works on

A segment is ``every`` steps, from ``begin`` to ``end``; the forward kernel visits segments and
steps ``t`` in order, the backward kernel both in reverse.

The kernel runs the tasks from ``first`` to ``last``; ``rows`` of ``columns`` lanes are cut into
tiles and into groups of ``per_group`` rows. Of the ``lanes`` of one step, lane ``i`` of a tile is
``base + i``; inputs and cotangents have strides of time and of rows instead.

``S`` and ``past`` are one array each, with slots at multiples of the width of a tile: separate
arrays would keep the vectoriser busy proving that they do not overlap.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from tracetorch.fuse.codegen.emitter import Emitter
from tracetorch.fuse.codegen.targets import numba_target
from tracetorch.fuse.ir.graph import Graph
from tracetorch.fuse.ir.plan import TILE, Plan

MODULE = '''"""{title} of {layer}, printed by tracetorch.fuse."""

import math

import numpy as np
from numba.extending import register_jitable

from tracetorch.fuse.codegen.numba_functions import fma

real = {real}
zero = real(0.0)
one = real(1.0)


@register_jitable
def spread(values, size, lanes, low, neurons, inner):
    """Write the value of each lane's neuron, or the one value of all; the first lane is low."""
    width, i = len(lanes), 0
    place = low % (neurons * inner)
    neuron = place // inner
    run = inner - place % inner
    if size == 1:
        for i in range(width):
            lanes[i] = values[0]
    elif inner == 1:
        while i < width:
            end = min(i + neurons - neuron, width)
            for k in range(end - i):
                lanes[i + k] = values[neuron + k]
            i, neuron = end, 0
    else:
        while i < width:
            end = min(i + run, width)
            for k in range(i, end):
                lanes[k] = values[neuron]
            i, run = end, inner
            neuron = neuron + 1 if neuron + 1 < neurons else 0


'''

# Numbers that both kernels take first, after the range of tasks.
_SIZES = ("steps", "every", "columns", "lanes", "rows", "per_group", "neurons", "inner")


class Slots:
    """Places of a tile's values in its scratch ``S``, by name.

    Args:
        names: their names, in order.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self.names = list(names)

    def at(self, name: str) -> str:
        """Return the expression ``S[...]`` of the value of lane ``i``."""
        return f"S[{self.names.index(name) * TILE} + i]"


def unroll_factors(graph: Graph) -> list[int]:
    """Return for how many steps at a time the loops over time are printed.

    A short step is printed twice in a row, so that its values stay in registers instead of going
    through ``S``; a second loop runs what is left. A long one has no registers to spare.
    """
    return [2, 1] if len(graph.lines) <= 16 else [1]


def prefixed(prefix: str, names: Iterable[str]) -> list[str]:
    """Return ``<prefix>_<name>`` for each name."""
    return [f"{prefix}_{name}" for name in names]


def strides(inputs: Iterable[str]) -> list[str]:
    """Return the names of the strides of time and of rows of the inputs."""
    return [f"{part}_{name}" for name in inputs for part in ("step", "row")]


def _read(emitter: Emitter, slots: Slots, names: Iterable[str]) -> None:
    """Load values of lane ``i`` from ``S`` into registers."""
    for name in names:
        emitter.line(f"{name} = {slots.at(name)}")


def _slice(emitter: Emitter, name: str, array: str, start: str) -> None:
    """Make ``name`` the values of the tile's lanes in ``array``, the first at ``start``."""
    emitter.line(f"begin_{name} = {start}")
    emitter.line(f"{name} = {array}[begin_{name} : begin_{name} + width]")


def _slice_inputs(emitter: Emitter, names: Iterable[str], j: int, t: str) -> None:
    """Print the slices of inputs at step ``t``, the ``j``-th of a pass."""
    for name in names:
        start = f"({t}) * step_{name} + row * row_{name} + low"
        _slice(emitter, f"now{j}_{name}", name, start)


def _read_inputs(emitter: Emitter, names: Iterable[str], j: int) -> dict[str, str]:
    """Load inputs of lane ``i`` into registers; return their spelling by name."""
    spelled = {name: f"in{j}_{name}" for name in names}
    for name, register in spelled.items():
        emitter.line(f"{register} = now{j}_{name}[i]")
    return spelled


@contextmanager
def _tiles(
    emitter: Emitter,
    plan: Plan,
    name: str,
    arguments: tuple[Sequence[str], Sequence[str]],
    graphs: Sequence[Graph],
) -> Iterator[None]:
    """Open the function and its loop over tasks; load the parameters of the tile into ``S``."""
    title = f"{name.capitalize()} pass"
    real = emitter.target.real
    module = MODULE.format(title=title, layer=plan.program.layer, real=real)
    emitter.lines(*module.splitlines())
    integers, arrays = arguments
    with emitter.indent(f"def {name}({', '.join(('first', 'last', *integers, *arrays))}):"):
        emitter.read_literals(graphs)
        emitter.line(f"tiles = (columns + {TILE} - 1) // {TILE}")
        with emitter.indent("for task in range(first, last):"):
            # The last tile of a row may be narrower than the others.
            emitter.line(f"low = task % tiles * {TILE}")
            emitter.line(f"full = min({TILE}, columns - low)")
            emitter.line("")
            # Parameters have the first slots of S. They are the same in all rows, and stay.
            for k, param in enumerate(plan.program.params):
                emitter.line(f"T = S[{k * TILE} : {k * TILE} + full]")
                emitter.line(f"spread(param_{param}, size_{param}, T, low, neurons, inner)")
            yield


@contextmanager
def _rows(emitter: Emitter) -> Iterator[None]:
    """Open the loop over the rows of the task's group."""
    emitter.line("group = task // tiles")
    last = "min((group + 1) * per_group, rows)"
    with emitter.indent(f"for row in range(group * per_group, {last}):"):
        # The last row may end early: the runtime lays several narrow rows into one.
        emitter.line("base = row * columns + low")
        emitter.line("width = min(full, lanes - base)")
        with emitter.indent("if width <= 0:"):
            emitter.line("continue")
        yield


# Forward


def forward_arguments(plan: Plan) -> tuple[list[str], list[str]]:
    """Return the names of the forward kernel's integers and of its arrays, in order."""
    program, states = plan.program, plan.program.states
    integers = [*_SIZES, *strides(program.inputs), *prefixed("size", program.params)]
    return integers, [
        *(*program.inputs, *prefixed("param", program.params), "literals", "output"),
        *prefixed("start", states),
        *prefixed("end", states),
        *prefixed("record", plan.record),
        *("checkpoints", "S"),
    ]


def forward_source(plan: Plan) -> tuple[str, int]:
    """Print the forward kernel.

    Returns:
        Its source, and how many slots it needs in ``S``.

    """
    program = plan.program
    emitter = Emitter(numba_target(program.dtype), plan.literals)
    slots = Slots([*prefixed("p", program.params), *prefixed("s", program.states)])
    arguments = forward_arguments(plan)
    with _tiles(emitter, plan, "forward", arguments, [program.forward]), _rows(emitter):
        # Initial states into S, where they stay between two passes of a loop over time.
        with emitter.indent("for i in range(width):"):
            for name in program.states:
                emitter.line(f"{slots.at(f's_{name}')} = start_{name}[base + i]")
        # One segment after the other; within it, time runs outside of the lanes.
        with emitter.indent("for begin in range(0, steps, every):"):
            emitter.line("end = min(begin + every, steps)")
            store_checkpoint(emitter, plan, slots)
            emitter.line("t = begin")
            for count in unroll_factors(program.forward):
                _walk_forward(emitter, plan, slots, count)
        # Final states out of S.
        with emitter.indent("for i in range(width):"):
            for name in program.states:
                emitter.line(f"end_{name}[base + i] = {slots.at(f's_{name}')}")
    return emitter.source(), len(slots.names)


def store_checkpoint(emitter: Emitter, plan: Plan, slots: Slots) -> None:
    """Print the copy of the states at the beginning of a segment from ``S`` to ``checkpoints``."""
    if not plan.recomputed:
        return
    # The first segment begins with the initial states, which the backward kernel gets anyway.
    with emitter.indent("if begin > 0:"):
        emitter.line(f"m = (begin // every - 1) * {len(plan.recomputed)} * lanes + base")
        for index, name in enumerate(plan.recomputed):
            emitter.line(f"k = m + {index} * lanes")
            emitter.line("checkpoint = checkpoints[k : k + width]")
            with emitter.indent("for i in range(width):"):
                emitter.line(f"checkpoint[i] = {slots.at(f's_{name}')}")


def _walk_forward(emitter: Emitter, plan: Plan, slots: Slots, count: int) -> None:
    """Print the loop over time that computes ``count`` steps of all lanes in one pass."""
    with emitter.indent(f"while t + {count} <= end:"):
        steps_forward(emitter, plan, slots, count)
        emitter.line(f"t += {count}")


def steps_forward(emitter: Emitter, plan: Plan, slots: Slots, count: int) -> None:
    """Print ``count`` steps of all lanes of the tile, from step ``t`` on."""
    program, graph = plan.program, plan.program.forward
    states = prefixed("s", program.states)
    reads = graph.reads()
    params = [name for name in prefixed("p", program.params) if name in reads]
    # Inputs and results of the steps t ... t + count - 1, as slices that begin at the tile:
    # with a plain index the loop over lanes is vectorised.
    for j in range(count):
        _slice_inputs(emitter, program.inputs, j, f"t + {j}")
        for result in ("output", *prefixed("record", plan.record)):
            _slice(emitter, f"{result}{j}", result, f"(t + {j}) * lanes + base")
    with emitter.indent("for i in range(width):"):
        # From here to the stores all values are in registers; states come from S once ...
        _read(emitter, slots, [*states, *params])
        env = {state: state for state in states}
        for j in range(count):
            env |= _read_inputs(emitter, program.inputs, j)
            results = emitter.graph(graph, env, f"_{j}")
            emitter.line(f"output{j}[i] = {results['output']}")
            for name in plan.record:
                emitter.line(f"record_{name}{j}[i] = {results[f'next_{name}']}")
            # ... pass from step to step by name ...
            env = {f"s_{name}": results[f"next_{name}"] for name in program.states}
        # ... and go back after the last step.
        for state in states:
            emitter.line(f"{slots.at(state)} = {env[state]}")


# Backward


def backward_arguments(plan: Plan) -> tuple[list[str], list[str]]:
    """Return the names of the backward kernel's integers and of its arrays, in order."""
    program, states = plan.program, plan.program.states
    integers = [*_SIZES, *strides(program.inputs), *prefixed("size", program.params)]
    integers += ["g_step", "g_row"]
    integers += [f"h_{part}_{name}" for name in plan.record for part in ("step", "row")]
    return integers, [
        *(*program.inputs, *prefixed("param", program.params), "literals", "checkpoints"),
        *prefixed("start", plan.recomputed),
        "g_output",
        *prefixed("g_end", states),
        *prefixed("h", plan.record),
        *prefixed("d", plan.differentiated),
        *prefixed("d_start", states),
        *("sums", "S", "past"),
    ]


def backward_source(plan: Plan) -> tuple[str, int]:
    """Print the backward kernel.

    Returns:
        Its source, and how many slots it needs in ``S``.

    """
    program = plan.program
    emitter = Emitter(numba_target(program.dtype), plan.literals)
    params, sums = prefixed("p", program.params), prefixed("d_p", plan.trained)
    slots = Slots([*params, *sums, *prefixed("g", program.states)])
    arguments, graphs = backward_arguments(plan), [plan.backward, plan.advance]
    with _tiles(emitter, plan, "backward", arguments, graphs):
        if sums:
            emitter.line(f"T = S[{len(params) * TILE} : {(len(params) + len(sums)) * TILE}]")
            with emitter.indent(f"for i in range({len(sums) * TILE}):"):
                emitter.line("T[i] = zero")
        with _rows(emitter):
            # Cotangents of the final states into S.
            with emitter.indent("for i in range(width):"):
                for name in program.states:
                    emitter.line(f"{slots.at(f'g_{name}')} = g_end_{name}[base + i]")
            # The last segment first. Its states are computed again in order, then its steps are
            # visited in reverse.
            with emitter.indent("for segment in range((steps - 1) // every, -1, -1):"):
                emitter.line("begin = segment * every")
                emitter.line("end = min(begin + every, steps)")
                recompute(emitter, plan, slots)
                emitter.line("t = end - 1")
                for count in unroll_factors(plan.backward):
                    _walk_back(emitter, plan, slots, count)
                add_sums(emitter, plan)
            # What is left in S are the gradients of the initial states.
            with emitter.indent("for i in range(width):"):
                for name in program.states:
                    emitter.line(f"d_start_{name}[base + i] = {slots.at(f'g_{name}')}")
    return emitter.source(), len(slots.names)


def recompute(emitter: Emitter, plan: Plan, slots: Slots) -> None:
    """Print how ``past`` is filled with the states before every step of the segment.

    ``past`` holds for each step, counted from ``begin``, one slot per recomputed state.
    """
    kept, size = plan.recomputed, len(plan.recomputed)
    if not kept:
        return
    # Step 0 of past: the initial states in the first segment, its checkpoint in any other.
    with emitter.indent("if begin == 0:"), emitter.indent("for i in range(width):"):
        for index, name in enumerate(kept):
            emitter.line(f"past[{index * TILE} + i] = start_{name}[base + i]")
    with emitter.indent("else:"), emitter.indent(f"for k in range({size}):"):
        emitter.line(f"m = ((segment - 1) * {size} + k) * lanes + base")
        emitter.line("checkpoint = checkpoints[m : m + width]")
        emitter.line(f"P = past[k * {TILE} : k * {TILE} + width]")
        with emitter.indent("for i in range(width):"):
            emitter.line("P[i] = checkpoint[i]")
    emitter.line("t = begin")
    for count in unroll_factors(plan.advance):
        _walk_past(emitter, plan, slots, count)


def _walk_past(emitter: Emitter, plan: Plan, slots: Slots, count: int) -> None:
    """Print the loop over time that advances ``past`` by ``count`` steps in one pass."""
    kept, size = plan.recomputed, len(plan.recomputed)
    used = plan.advance.reads()
    inputs = [name for name in plan.program.inputs if name in used]
    # Nothing reads the states after the last step: < end, where the forward kernel has <= end.
    with emitter.indent(f"while t + {count} < end:"):
        # P begins at the states before step t and ends with those before step t + count.
        emitter.line(f"p = (t - begin) * {size * TILE}")
        emitter.line(f"P = past[p : p + {(count + 1) * size * TILE}]")
        for j in range(count):
            _slice_inputs(emitter, inputs, j, f"t + {j}")
        with emitter.indent("for i in range(width):"):
            for index, name in enumerate(kept):
                emitter.line(f"s_{name} = P[{index * TILE} + i]")
            params = prefixed("p", plan.program.params)
            _read(emitter, slots, [name for name in params if name in used])
            env: dict[str, str] = {}
            for j in range(count):
                env |= _read_inputs(emitter, inputs, j)
                results = emitter.graph(plan.advance, env, f"_{j}")
                # States pass to the next step in registers; past gets a copy.
                env = {f"s_{name}": results[f"next_{name}"] for name in kept}
                for index, name in enumerate(kept):
                    place = ((j + 1) * size + index) * TILE
                    emitter.line(f"P[{place} + i] = {env[f's_{name}']}")
        emitter.line(f"t += {count}")


def _walk_back(emitter: Emitter, plan: Plan, slots: Slots, count: int) -> None:
    """Print the loop over time, in reverse, that pulls cotangents through ``count`` steps."""
    with emitter.indent(f"while t - {count - 1} >= begin:"):
        steps_back(emitter, plan, slots, count)
        emitter.line(f"t -= {count}")


def steps_back(emitter: Emitter, plan: Plan, slots: Slots, count: int) -> None:
    """Print how cotangents of all lanes of the tile are pulled through ``count`` steps.

    One pass visits the steps ``t``, ``t - 1``, ... ``t - count + 1``, here numbered ``j`` = 0, 1,
    ...; ``g_<state>`` is the cotangent of the state after the step, ``d_s_<state>`` that of the
    state before it, which is ``g_<state>`` of the step visited next.
    """
    read = plan.backward.reads()
    carried, sums = prefixed("g", plan.program.states), prefixed("d_p", plan.trained)
    params = [name for name in prefixed("p", plan.program.params) if name in read]
    # P begins at the states before the earliest of these steps.
    if plan.recomputed:
        size = len(plan.recomputed) * TILE
        emitter.line(f"p = (t - {count - 1} - begin) * {size}")
        emitter.line(f"P = past[p : p + {count * size}]")
    for j in range(count):
        _slice_back(emitter, plan, j)
    with emitter.indent("for i in range(width):"):
        # Cotangents and sums stay in registers for all steps of the pass, then go back to S.
        _read(emitter, slots, [*params, *carried, *sums])
        env = {name: name for name in carried}
        for j in range(count):
            env = _step_back(emitter, plan, env, j, count)
        for name in carried:
            emitter.line(f"{slots.at(name)} = {env[name]}")
        for name in sums:
            emitter.line(f"{slots.at(name)} = {name}")


def _slice_back(emitter: Emitter, plan: Plan, j: int) -> None:
    """Print the slices of inputs, cotangents and results of step ``t - j``."""
    read = plan.backward.reads()
    _slice_inputs(emitter, [n for n in plan.program.inputs if n in read], j, f"t - {j}")
    if "g_output" in read:
        _slice(emitter, f"g{j}", "g_output", f"(t - {j}) * g_step + row * g_row + low")
    # Cotangents of recorded trajectories have strides of their own.
    for name in plan.record:
        start = f"(t - {j}) * h_step_{name} + row * h_row_{name} + low"
        _slice(emitter, f"h_{name}{j}", f"h_{name}", start)
    for name in plan.differentiated:
        _slice(emitter, f"d{j}_{name}", f"d_{name}", f"(t - {j}) * lanes + base")
    if "output" in plan.backward.outputs:
        _slice(emitter, f"output{j}", "output", f"(t - {j}) * lanes + base")


def _step_back(
    emitter: Emitter, plan: Plan, env: dict[str, str], j: int, count: int
) -> dict[str, str]:
    """Print the vector-Jacobian product of step ``t - j`` in one lane.

    Returns:
        The spelling of the cotangents before the step, by the names they have after the next.

    """
    read, env = plan.backward.reads(), dict(env)
    # States before the step, from past: P counts steps forwards, j backwards.
    for index, name in enumerate(plan.recomputed):
        place = ((count - 1 - j) * len(plan.recomputed) + index) * TILE
        emitter.line(f"s_{name}_{j} = P[{place} + i]")
        env[f"s_{name}"] = f"s_{name}_{j}"
    env |= _read_inputs(emitter, [n for n in plan.program.inputs if n in read], j)
    if "g_output" in read:
        emitter.line(f"g_{j} = g{j}[i]")
    # A recorded state has two uses, the next step and the trajectory: its cotangents add up.
    for name in plan.record:
        emitter.line(f"h_{name}_{j} = {env[f'g_{name}']} + h_{name}{j}[i]")
        env[f"g_{name}"] = f"h_{name}_{j}"
    env["g_output"] = f"g_{j}"
    results = emitter.graph(plan.backward, env, f"_{j}")
    for name in plan.differentiated:
        emitter.line(f"d{j}_{name}[i] = {results[f'd_{name}']}")
    if "output" in results:
        emitter.line(f"output{j}[i] = {results['output']}")
    for name in plan.trained:
        emitter.line(f"d_p_{name} = d_p_{name} + {results[f'd_p_{name}']}")
    return {f"g_{name}": results[f"d_s_{name}"] for name in plan.program.states}


def add_sums(emitter: Emitter, plan: Plan) -> None:
    """Print how the sums of a segment, in the dtype of the arithmetic, go into those in float64."""
    if not plan.trained:
        return
    size, start = len(plan.trained), len(plan.program.params)
    # Short sums in float32 are exact enough and fast; the long one over time and rows is not.
    with emitter.indent(f"for k in range({size}):"):
        emitter.line(f"a = (group * {size} + k) * columns + low")
        emitter.line("total = sums[a : a + width]")
        emitter.line(f"T = S[({start} + k) * {TILE} : ({start} + k) * {TILE} + width]")
        with emitter.indent("for i in range(width):"):
            emitter.line("total[i] += T[i]")
            emitter.line("T[i] = zero")
