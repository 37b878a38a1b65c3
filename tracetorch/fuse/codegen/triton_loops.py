"""Prints a plan as two time loops for Triton: a program is a block of lanes, all of time.

States and the gradients that walk back stay in registers over time. A kernel is told strides and
sizes, so that one source serves every shape.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import torch

from tracetorch.fuse.ir.graph import INFIX, Graph, Ref
from tracetorch.fuse.ir.plan import Plan

EXPRESSIONS = {
    **INFIX,
    "abs": "libdevice.abs({})",
    "max": "tl.where(({0} >= {1}) | ({0} != {0}), {0}, {1})",
    "min": "tl.where(({0} <= {1}) | ({0} != {0}), {0}, {1})",
    "where": "tl.where({}, {}, {})",
    "float": "tl.where({}, one, zero)",
    "not": "{} ^ true",
    "sigmoid": "one / (one + libdevice.exp(-{}))",
    "round": "libdevice.rint({})",
    "sqrt": "tl.sqrt({})",
    **{
        op: f"libdevice.{op}({{}})"
        for op in ("atan", "ceil", "cos", "cosh", "erf", "exp", "expm1", "floor", "log", "log1p")
    },
    **{op: f"libdevice.{op}({{}})" for op in ("log2", "sin", "sinh", "tan", "tanh", "trunc")},
    "pow": "libdevice.pow({}, {})",
    "atan2": "libdevice.atan2({}, {})",
}

# Triton's own division and root of float32 are approximations.
_ROUNDED = {
    "div": "tl.div_rn({}, {})",
    "sigmoid": "tl.div_rn(one, one + libdevice.exp(-{}))",
    "sqrt": "tl.sqrt_rn({})",
}

_HEADER = '''"""{what} of {layer}, printed by tracetorch.fuse."""

import triton
import triton.language as tl
from triton.language.extra import libdevice


@triton.jit(do_not_specialize=["steps", "every"])
def {name}(
    {arguments},
    BLOCK: tl.constexpr,
):
    lane = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = lane < lanes
    row = lane // width
    column = lane % width
    neuron = column // inner
    zero = tl.full((BLOCK,), 0.0, {real})
    one = tl.full((BLOCK,), 1.0, {real})
    true = one > zero
    first = tl.full((), 0, tl.int64)
    segments = (steps + every - 1) // every
'''


def unknown(graph: Graph) -> str | None:
    """The first operation that this printer lacks."""
    return next((line.op for line in graph.lines if line.op not in EXPRESSIONS), None)


def real_name(dtype: torch.dtype) -> str:
    """Triton's name of the dtype of the arithmetic."""
    return f"tl.{str(dtype).removeprefix('torch.')}"


def expression(op: str, args: Sequence[Ref], env: Mapping[str, str], dtype: torch.dtype) -> str:
    """One line's right hand side."""
    spelled = [spell(arg, env) for arg in args]
    known = EXPRESSIONS | _ROUNDED if dtype == torch.float32 else EXPRESSIONS
    return known[op].format(*spelled)


def spell(ref: Ref, env: Mapping[str, str]) -> str:
    """A value in the source; the names of literals are in ``env`` too."""
    if isinstance(ref, str):
        return env.get(ref, ref)
    if isinstance(ref, bool):
        return "true" if ref else "(true ^ true)"
    if ref not in (0.0, 1.0):
        return env[ref.hex()]
    return "one" if ref == 1.0 else "zero" if math.copysign(1.0, ref) > 0 else "(-zero)"


def print_lines(
    plan: Plan, graph: Graph, env: Mapping[str, str], indent: int
) -> tuple[list[str], dict[str, str]]:
    """The lines of ``graph`` with ``env`` for its inputs, and how its outputs are spelled."""
    printed = []
    for line in graph.lines:
        value = expression(line.op, line.args, env, plan.program.dtype)
        printed.append(" " * indent + f"{line.name} = {value}")
    return printed, {name: spell(ref, env) for name, ref in graph.outputs.items()}


def _header(
    plan: Plan, name: str, what: str, arguments: Sequence[str], graphs: Sequence[Graph]
) -> list[str]:
    """Up to the first step: the lanes, the numbers, the parameters."""
    program, real = plan.program, real_name(plan.program.dtype)
    head = _HEADER.format(
        what=what,
        layer=program.layer,
        name=name,
        real=real,
        arguments=",\n    ".join(arguments),
    )
    source = [head.rstrip("\n")]
    refs = [ref for graph in graphs for line in graph.lines for ref in line.args]
    refs += [ref for graph in graphs for ref in graph.outputs.values()]
    used = {ref.hex() for ref in refs if isinstance(ref, float)}
    for i, number in enumerate(plan.literals):
        if number.hex() in used:
            source.append(f"    c{i} = tl.full((BLOCK,), tl.load(literals + {i}), {real})")
    read = {name for graph in graphs for name in graph.reads()}
    for param in program.params:
        if f"p_{param}" in read:
            place = f"param_{param} + neuron * stride_{param}"
            source.append(_load(f"p_{param}", place, 4))
    return source


def _literals(plan: Plan) -> dict[str, str]:
    return {number.hex(): f"c{i}" for i, number in enumerate(plan.literals)}


def _load(name: str, place: str, indent: int, mask: str = "inside") -> str:
    return " " * indent + f"{name} = tl.load({place}, mask={mask}, other=0.0)"


def _store(place: str, value: str, indent: int, mask: str = "inside") -> str:
    return " " * indent + f"tl.store({place}, {value}, mask={mask})"


def _move(names: Iterable[str], values: Mapping[str, str], indent: int) -> list[str]:
    """``names`` become ``values`` all at once: a value may be another's name."""
    pairs = [(name, values[name]) for name in names if values[name] != name]
    source = [f"moved_{name} = {value}" for name, value in pairs]
    source += [f"{name} = moved_{name}" for name, _ in pairs]
    return [" " * indent + line for line in source]


def _inputs(plan: Plan) -> list[str]:
    given = ["steps", "every", "lanes", "width", "inner", "x_step", "x_row", "x", "literals"]
    for name in plan.program.params:
        given += [f"param_{name}", f"stride_{name}"]
    return given


def _checkpoint(plan: Plan, k: int) -> str:
    """Where the ``k``-th state at the beginning of a segment lies."""
    return f"checkpoints + ((segment - 1) * {len(plan.recomputed)} + {k}) * lanes + lane"


# Forward


def forward_arguments(plan: Plan) -> list[str]:
    """The arguments of the forward kernel."""
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
    """The forward kernel."""
    graph, states, kept = plan.program.forward, plan.program.states, plan.recomputed
    source = _header(plan, "forward", "Forward pass", forward_arguments(plan), [graph])
    source.append("    x_lane = row * x_row + column")
    source += [_load(f"s_{name}", f"start_{name} + lane", 4) for name in states]
    source += [
        "    for segment in range(first, segments):",
        "        begin = segment * every",
        "        end = tl.minimum(begin + every, steps)",
    ]
    if kept:
        source.append("        stored = lane < tl.where(begin > 0, lanes, 0)")
    for k, name in enumerate(kept):
        source.append(_store(_checkpoint(plan, k), f"s_{name}", 8, "stored"))
    source.append("        for t in range(begin, end):")
    if "x" in graph.reads():
        source.append(_load("x_now", "x + t * x_step + x_lane", 12))
    lines, ends = print_lines(plan, graph, {**_literals(plan), "x": "x_now"}, 12)
    source += lines
    source.append(_store("output + t * lanes + lane", ends["output"], 12))
    for name in plan.record:
        source.append(_store(f"record_{name} + t * lanes + lane", ends[f"next_{name}"], 12))
    moved = {f"s_{name}": ends[f"next_{name}"] for name in states}
    source += _move(moved, moved, 12)
    source += [_store(f"end_{name} + lane", f"s_{name}", 4) for name in states]
    return "\n".join(source) + "\n"


# Backward


def backward_arguments(plan: Plan) -> list[str]:
    """The arguments of the backward kernel."""
    states = plan.program.states
    return [
        *_inputs(plan),
        *(f"start_{name}" for name in plan.recomputed),
        *("checkpoints", "past", "g_step", "g_row", "g_output"),
        *(f"g_end_{name}" for name in states),
        *(f"h_{part}{name}" for name in plan.record for part in ("step_", "row_", "")),
        *(["d_x"] if plan.x else []),
        *(f"d_start_{name}" for name in states),
        "sums",
    ]


def backward_source(plan: Plan) -> str:
    """The backward kernel."""
    program, graph, kept = plan.program, plan.backward, plan.recomputed
    advance = program.graph.select([f"next_{name}" for name in kept])
    arguments = backward_arguments(plan)
    source = _header(plan, "backward", "Backward pass", arguments, [graph, advance])
    source += ["    x_lane = row * x_row + column", "    g_lane = row * g_row + column"]
    for name in plan.record:
        source.append(f"    h_lane_{name} = row * h_row_{name} + column")
    source += [_load(f"g_{name}", f"g_end_{name} + lane", 4) for name in program.states]
    for name in plan.trained:
        source.append(f"    total_{name} = tl.full((BLOCK,), 0.0, tl.float64)")
    source += [
        "    for back in range(first, segments):",
        "        segment = segments - 1 - back",
        "        begin = segment * every",
        "        end = tl.minimum(begin + every, steps)",
        *_recompute(plan, advance),
        *(f"        sum_{name} = zero" for name in plan.trained),
        *_walk_back(plan, graph),
    ]
    for name in plan.trained:
        source.append(f"        total_{name} += sum_{name}.to(tl.float64)")
    for name in program.states:
        source.append(_store(f"d_start_{name} + lane", f"g_{name}", 4))
    for k, name in enumerate(plan.trained):
        source.append(_store(f"sums + {k} * lanes + lane", f"total_{name}", 4))
    return "\n".join(source) + "\n"


def _past(plan: Plan, k: int) -> str:
    """Where the ``k``-th state before step ``t`` of the segment lies."""
    return f"past + ((t - begin) * {len(plan.recomputed)} + {k}) * lanes + lane"


def _recompute(plan: Plan, advance: Graph) -> list[str]:
    """The states before every step of the segment, into ``past``.

    The barriers are there because what one thread writes another may read.
    """
    kept = plan.recomputed
    if not kept:
        return []
    source = [
        "        fresh = lane < tl.where(begin == 0, lanes, 0)",
        "        stored = lane < tl.where(begin > 0, lanes, 0)",
    ]
    for k, name in enumerate(kept):
        source += [
            _load(f"start_s_{name}", f"start_{name} + lane", 8, "fresh"),
            _load(f"checkpoint_s_{name}", _checkpoint(plan, k), 8, "stored"),
            f"        s_{name} = tl.where(fresh, start_s_{name}, checkpoint_s_{name})",
        ]
    source += ["        tl.debug_barrier()", "        for t in range(begin, end):"]
    source += [_store(_past(plan, k), f"s_{name}", 12) for k, name in enumerate(kept)]
    if "x" in advance.reads():
        source.append(_load("x_now", "x + t * x_step + x_lane", 12))
    lines, ends = print_lines(plan, advance, {**_literals(plan), "x": "x_now"}, 12)
    moved = {f"s_{name}": ends[f"next_{name}"] for name in kept}
    return [*source, *lines, *_move(moved, moved, 12), "        tl.debug_barrier()"]


def _walk_back(plan: Plan, graph: Graph) -> list[str]:
    source = ["        for after in range(first, end - begin):", "            t = end - 1 - after"]
    read = graph.reads()
    env = {**_literals(plan), "x": "x_now", "g_output": "g_now"}
    for k, name in enumerate(plan.recomputed):
        source.append(_load(f"past_{name}", _past(plan, k), 12))
        env[f"s_{name}"] = f"past_{name}"
    if "x" in read:
        source.append(_load("x_now", "x + t * x_step + x_lane", 12))
    if "g_output" in read:
        source.append(_load("g_now", "g_output + t * g_step + g_lane", 12))
    for name in plan.record:
        place = f"h_{name} + t * h_step_{name} + h_lane_{name}"
        source.append(_load(f"h_now_{name}", place, 12))
        source.append(f"            g_{name} += h_now_{name}")
    lines, ends = print_lines(plan, graph, env, 12)
    source += lines
    if plan.x:
        source.append(_store("d_x + t * lanes + lane", ends["d_x"], 12))
    for name in plan.trained:
        source.append(f"            sum_{name} += {ends[f'd_p_{name}']}")
    moved = {f"g_{name}": ends[f"d_s_{name}"] for name in plan.program.states}
    return [*source, *_move(moved, moved, 12)]
