"""Print a plan as two time loops for Triton: a program is a block of lanes, walked through time.

The kernels name their memory::

    registers     parameters, states (forward) or their cotangents and the sums of parameter
                  gradients (backward), for all of time
    checkpoints   states at the beginning of every segment but the first; forward stores them
    past          states before every step of one segment; backward recomputes them there from
                  the segment's checkpoint

A segment is ``every`` steps, from ``begin`` to ``end``; the forward kernel visits segments and
steps ``t`` in order, the backward kernel both in reverse. Sizes and strides are arguments, so that
one source serves every shape. All memory is flat: lane ``l`` of step ``t`` of a result is at
``t * lanes + l``, while inputs and their cotangents have strides of time and of rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch

from tracetorch.fuse.codegen.emitter import Emitter
from tracetorch.fuse.codegen.targets import triton_target
from tracetorch.fuse.ir.graph import Graph
from tracetorch.fuse.ir.plan import Plan

_MODULE = '''"""{title} of {layer}, printed by tracetorch.fuse."""

import triton
import triton.language as tl
from triton.language.extra import libdevice


'''


def unknown(graph: Graph) -> str | None:
    """Return the first operation of ``graph`` that Triton kernels lack, or ``None``."""
    return triton_target(torch.float32).unknown_operation(graph)


def _load(emitter: Emitter, name: str, place: str, mask: str = "inside") -> None:
    """Load the block's values at ``place`` into registers; 0 where ``mask`` is false."""
    emitter.line(f"{name} = tl.load({place}, mask={mask}, other=0.0)")


def _store(emitter: Emitter, place: str, value: str, mask: str = "inside") -> None:
    emitter.line(f"tl.store({place}, {value}, mask={mask})")


def _assign(emitter: Emitter, values: Mapping[str, str]) -> None:
    """Assign to variables, by name, all at once: a value may be the name of another of them."""
    changed = {name: value for name, value in values.items() if value != name}
    for name, value in changed.items():
        emitter.line(f"moved_{name} = {value}")
    for name in changed:
        emitter.line(f"{name} = moved_{name}")


def _checkpoint(plan: Plan, k: int) -> str:
    """Return the place of the ``k``-th state at the beginning of a segment."""
    return f"checkpoints + ((segment - 1) * {len(plan.recomputed)} + {k}) * lanes + lane"


def _past(plan: Plan, k: int) -> str:
    """Return the place of the ``k``-th state before step ``t`` of the segment."""
    return f"past + ((t - begin) * {len(plan.recomputed)} + {k}) * lanes + lane"


def _inputs(plan: Plan) -> list[str]:
    """Return the names of the arguments that both kernels begin with."""
    names = ["steps", "every", "lanes", "width", "inner", "literals"]
    for name in plan.program.inputs:
        names += [f"step_{name}", f"row_{name}", name]
    for name in plan.program.params:
        names += [f"param_{name}", f"stride_{name}"]
    return names


@contextmanager
def _kernel(
    emitter: Emitter, plan: Plan, name: str, arguments: Sequence[str], graphs: Sequence[Graph]
) -> Iterator[None]:
    """Open the function; print the indices of the block's lanes, literals and parameters."""
    program, real = plan.program, emitter.target.real
    module = _MODULE.format(title=f"{name.capitalize()} pass", layer=program.layer)
    emitter.lines(*module.splitlines())
    # Not compiled again for lengths that are 1 or a multiple of 16.
    emitter.line('@triton.jit(do_not_specialize=["steps", "every"])')
    with emitter.indent(f"def {name}("):
        emitter.lines(*(f"{argument}," for argument in arguments), "BLOCK: tl.constexpr,")
    with emitter.indent("):"):
        # int64, as offsets into a sequence may need it. A lane is row * width + column.
        emitter.lines(
            "lane = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)",
            "inside = lane < lanes",
            "row = lane // width",
            "column = lane % width",
            "neuron = column // inner",
        )
        # Blocks of literals: an operation on blocks alone keeps the dtype of the arithmetic.
        emitter.lines(
            f"zero = tl.full((BLOCK,), 0.0, {real})",
            f"one = tl.full((BLOCK,), 1.0, {real})",
            "true = one > zero",
        )
        # Loop variables take the dtype of the first bound; an int64 one keeps offsets from
        # overflowing.
        emitter.lines("first = tl.full((), 0, tl.int64)", "segments = (steps + every - 1) // every")
        emitter.read_literals(graphs)
        # One value per neuron (stride 1) or for the layer (stride 0), in registers from now on.
        read = {name for graph in graphs for name in graph.reads()}
        for param in program.params:
            if f"p_{param}" in read:
                _load(emitter, f"p_{param}", f"param_{param} + neuron * stride_{param}")
        for name in program.inputs:
            emitter.line(f"lane_{name} = row * row_{name} + column")
        yield


def _load_inputs(emitter: Emitter, plan: Plan, graph: Graph) -> dict[str, str]:
    """Load the inputs of step ``t`` that ``graph`` reads; return their spelling by name."""
    spelled = {name: f"now_{name}" for name in plan.program.inputs if name in graph.reads()}
    for name, register in spelled.items():
        _load(emitter, register, f"{name} + t * step_{name} + lane_{name}")
    return spelled


# Forward


def forward_arguments(plan: Plan) -> list[str]:
    """Return the names of the forward kernel's arguments, in order."""
    states = plan.program.states
    return [
        *_inputs(plan),
        *(f"start_{name}" for name in states),
        "output",
        *(f"end_{name}" for name in states),
        *(f"record_{name}" for name in plan.record),
        "checkpoints",
    ]


def forward_source(plan: Plan) -> str:
    """Print the forward kernel and return its source."""
    program, graph = plan.program, plan.program.forward
    emitter = Emitter(triton_target(program.dtype), plan.literals)
    with _kernel(emitter, plan, "forward", forward_arguments(plan), [graph]):
        for name in program.states:
            _load(emitter, f"s_{name}", f"start_{name} + lane")
        with emitter.indent("for segment in range(first, segments):"):
            emitter.line("begin = segment * every")
            emitter.line("end = tl.minimum(begin + every, steps)")
            # The first segment begins with the initial states, which the backward kernel gets
            # anyway: instead of a branch, a mask that holds no lane.
            if plan.recomputed:
                emitter.line("stored = lane < tl.where(begin > 0, lanes, 0)")
            for k, name in enumerate(plan.recomputed):
                _store(emitter, _checkpoint(plan, k), f"s_{name}", "stored")
            with emitter.indent("for t in range(begin, end):"):
                _step_forward(emitter, plan)
        for name in program.states:
            _store(emitter, f"end_{name} + lane", f"s_{name}")
    return emitter.source()


def _step_forward(emitter: Emitter, plan: Plan) -> None:
    """Print step ``t``: only inputs and results touch memory."""
    program, graph = plan.program, plan.program.forward
    results = emitter.graph(graph, _load_inputs(emitter, plan, graph))
    _store(emitter, "output + t * lanes + lane", results["output"])
    for name in plan.record:
        _store(emitter, f"record_{name} + t * lanes + lane", results[f"next_{name}"])
    _assign(emitter, {f"s_{name}": results[f"next_{name}"] for name in program.states})


# Backward


def backward_arguments(plan: Plan) -> list[str]:
    """Return the names of the backward kernel's arguments, in order."""
    states = plan.program.states
    return [
        *_inputs(plan),
        *(f"start_{name}" for name in plan.recomputed),
        *("checkpoints", "past", "g_step", "g_row", "g_output"),
        *(f"g_end_{name}" for name in states),
        *(f"h_{part}{name}" for name in plan.record for part in ("step_", "row_", "")),
        *(f"d_{name}" for name in plan.differentiated),
        *(f"d_start_{name}" for name in states),
        "sums",
    ]


def backward_source(plan: Plan) -> str:
    """Print the backward kernel and return its source."""
    program = plan.program
    emitter = Emitter(triton_target(program.dtype), plan.literals)
    arguments, graphs = backward_arguments(plan), [plan.backward, plan.advance]
    with _kernel(emitter, plan, "backward", arguments, graphs):
        # Cotangents have strides of their own: g_ that of the output, h_ those of trajectories.
        emitter.line("g_lane = row * g_row + column")
        for name in plan.record:
            emitter.line(f"h_lane_{name} = row * h_row_{name} + column")
        # Cotangents of the states start with those of the final states, and stay in registers.
        for name in program.states:
            _load(emitter, f"g_{name}", f"g_end_{name} + lane")
        for name in plan.trained:
            emitter.line(f"total_{name} = tl.full((BLOCK,), 0.0, tl.float64)")
        # The last segment first. Its states are computed again in order, then its steps are
        # visited in reverse.
        with emitter.indent("for back in range(first, segments):"):
            emitter.line("segment = segments - 1 - back")
            emitter.line("begin = segment * every")
            emitter.line("end = tl.minimum(begin + every, steps)")
            _recompute(emitter, plan)
            # Short sums in float32 are exact enough and fast; the long one over time is not.
            for name in plan.trained:
                emitter.line(f"sum_{name} = zero")
            with emitter.indent("for after in range(first, end - begin):"):
                _step_back(emitter, plan)
            for name in plan.trained:
                emitter.line(f"total_{name} += sum_{name}.to(tl.float64)")
        # What is left are the gradients of the initial states.
        for name in program.states:
            _store(emitter, f"d_start_{name} + lane", f"g_{name}")
        # One sum per lane; the runtime adds them up over rows.
        for k, name in enumerate(plan.trained):
            _store(emitter, f"sums + {k} * lanes + lane", f"total_{name}")
    return emitter.source()


def _recompute(emitter: Emitter, plan: Plan) -> None:
    """Print how ``past`` is filled with the states before every step of the segment."""
    kept = plan.recomputed
    if not kept:
        return
    # s_<state> begins as the initial state in the first segment, as its checkpoint in any other:
    # both are loaded, one of them with a mask that holds no lane.
    emitter.line("fresh = lane < tl.where(begin == 0, lanes, 0)")
    emitter.line("stored = lane < tl.where(begin > 0, lanes, 0)")
    for k, name in enumerate(kept):
        _load(emitter, f"start_s_{name}", f"start_{name} + lane", "fresh")
        _load(emitter, f"checkpoint_s_{name}", _checkpoint(plan, k), "stored")
        emitter.line(f"s_{name} = tl.where(fresh, start_s_{name}, checkpoint_s_{name})")
    # A value in past may be read by another thread than the one that wrote it: one barrier before
    # those of the segment visited before are overwritten, one before the new ones are read.
    emitter.line("tl.debug_barrier()")
    with emitter.indent("for t in range(begin, end):"):
        # Stored before the step: past holds what the step reads.
        for k, name in enumerate(kept):
            _store(emitter, _past(plan, k), f"s_{name}")
        results = emitter.graph(plan.advance, _load_inputs(emitter, plan, plan.advance))
        _assign(emitter, {f"s_{name}": results[f"next_{name}"] for name in kept})
    emitter.line("tl.debug_barrier()")


def _step_back(emitter: Emitter, plan: Plan) -> None:
    """Print the vector-Jacobian product of step ``t``, the ``after``-th from the segment's end.

    ``g_<state>`` is the cotangent of the state after the step at first, and before it at the end.
    """
    read = plan.backward.reads()
    emitter.line("t = end - 1 - after")
    env = {"g_output": "g_now"}
    # States before the step. A name of its own: s_<state>, assigned here, would be a variable that
    # the loop carries from step to step.
    for k, name in enumerate(plan.recomputed):
        _load(emitter, f"past_{name}", _past(plan, k))
        env[f"s_{name}"] = f"past_{name}"
    env |= _load_inputs(emitter, plan, plan.backward)
    if "g_output" in read:
        _load(emitter, "g_now", "g_output + t * g_step + g_lane")
    # A recorded state has two uses, the next step and the trajectory: its cotangents add up.
    for name in plan.record:
        _load(emitter, f"h_now_{name}", f"h_{name} + t * h_step_{name} + h_lane_{name}")
        emitter.line(f"g_{name} += h_now_{name}")
    results = emitter.graph(plan.backward, env)
    for name in plan.differentiated:
        _store(emitter, f"d_{name} + t * lanes + lane", results[f"d_{name}"])
    for name in plan.trained:
        emitter.line(f"sum_{name} += {results[f'd_p_{name}']}")
    _assign(emitter, {f"g_{name}": results[f"d_s_{name}"] for name in plan.program.states})
