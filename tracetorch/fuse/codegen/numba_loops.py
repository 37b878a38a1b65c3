"""Prints a plan as two time loops for Numba: serial, on a range of tasks, without the GIL.

A task is a tile of lanes that walks through all of time, for some rows one after the other. What a
tile holds lies in one array, ``S``, at multiples of the tile's width: separate arrays would keep
the vectoriser busy proving that they do not overlap.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import torch

from tracetorch.fuse.ir.graph import INFIX, Graph, Ref
from tracetorch.fuse.ir.plan import TILE, Plan

EXPRESSIONS = {
    **INFIX,
    "abs": "abs({})",
    "max": "({0} if {0} >= {1} or {0} != {0} else {1})",
    "min": "({0} if {0} <= {1} or {0} != {0} else {1})",
    "where": "({1} if {0} else {2})",
    "float": "(one if {} else zero)",
    "not": "not {}",
    "sigmoid": "one / (one + np.exp(-{}))",
    "erf": "real(math.erf({}))",
    "pow": "np.power({}, {})",
    "round": "np.rint({})",
    "atan": "np.arctan({})",
    "atan2": "np.arctan2({}, {})",
}

_HEADER = '''"""{what} of {layer}, printed by tracetorch.fuse."""

import math

import numpy as np

real = np.{real}
zero = real(0.0)
one = real(1.0)


def {name}({arguments}):
{literals}    tiles = (columns + {tile} - 1) // {tile}
    for task in range(first, last):
        low = task % tiles * {tile}
        full = min({tile}, columns - low)
'''


def named_literals(plan: Plan) -> dict[str, str]:
    """How the source calls each literal, by its hexadecimal form."""
    return {number.hex(): f"c{i}" for i, number in enumerate(plan.literals)}


class Slots:
    """Names for places in a tile's array ``S``."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def at(self, name: str, index: str = "i") -> str:
        """``S[...]``, where ``name`` of lane ``index`` lies."""
        if name not in self.names:
            self.names.append(name)
        return f"S[{self.names.index(name) * TILE} + {index}]"


def real_name(dtype: torch.dtype) -> str:
    """NumPy's name of the dtype of the arithmetic."""
    return str(dtype).removeprefix("torch.")


def expression(op: str, args: Sequence[Ref], env: Mapping[str, str]) -> str:
    """One line's right hand side."""
    spelled = [spell(arg, env) for arg in args]
    return EXPRESSIONS.get(op, f"np.{op}({{}})").format(*spelled)


def spell(ref: Ref, env: Mapping[str, str]) -> str:
    """A value in the source; the names of literals are in ``env`` too."""
    if isinstance(ref, str):
        return env.get(ref, ref)
    if isinstance(ref, bool) or ref not in (0.0, 1.0):
        return str(ref) if isinstance(ref, bool) else env[ref.hex()]
    return "one" if ref == 1.0 else "zero" if math.copysign(1.0, ref) > 0 else "-zero"


def print_lines(
    graph: Graph, env: dict[str, str], suffix: str, indent: int
) -> tuple[list[str], dict[str, str]]:
    """The lines of ``graph`` with ``env`` for its inputs, and how its outputs are spelled."""
    env = dict(env)
    printed = []
    for line in graph.lines:
        made = f"{line.name}{suffix}"
        printed.append(" " * indent + f"{made} = {expression(line.op, line.args, env)}")
        env[line.name] = made
    return printed, {name: spell(ref, env) for name, ref in graph.outputs.items()}


def residency(graph: Graph) -> int:
    """Time steps for which values stay in registers before they go back to the tile."""
    return 2 if len(graph.lines) <= 16 else 1


def _read(names: Iterable[str], slots: Slots, indent: int) -> list[str]:
    return [" " * indent + f"{name} = {slots.at(name)}" for name in names]


def _ordered(names: Iterable[str], used: set[str]) -> list[str]:
    return [name for name in names if name in used]


# Forward


def forward_arguments(plan: Plan) -> list[str]:
    """The arguments of the forward kernel in order; capital S and integers as in the header."""
    states = plan.program.states
    return [
        *("first", "last", "steps", "every", "columns", "lanes", "rows", "per_group"),
        *("x_step", "x_row", "x", "params", "literals", "output"),
        *(f"start_{name}" for name in states),
        *(f"end_{name}" for name in states),
        *(f"record_{name}" for name in plan.record),
        *("checkpoints", "S"),
    ]


def forward_source(plan: Plan) -> tuple[str, int]:
    """The forward kernel, and how many tile widths of scratch it needs."""
    program, slots = plan.program, Slots()
    graph = program.forward
    states = [f"s_{name}" for name in program.states]
    params = _ordered((f"p_{name}" for name in program.params), graph.reads())
    source = [
        _HEADER.format(
            what="Forward pass",
            layer=program.layer,
            real=real_name(program.dtype),
            name="forward",
            arguments=", ".join(forward_arguments(plan)),
            literals=_read_literals(plan, [graph]),
            tile=TILE,
        ),
        *_load_params(plan, slots),
        *_rows(),
        "            for i in range(width):",
    ]
    for state in states:
        source.append(f"                {slots.at(state)} = start_{state[2:]}[base + i]")
    if not states:
        source.append("                pass")
    source += [
        "            for begin in range(0, steps, every):",
        "                end = min(begin + every, steps)",
    ]
    if plan.recomputed:
        source += [
            "                if begin > 0:",
            f"                    m = (begin // every - 1) * {len(plan.recomputed)} * lanes + base",
        ]
        for index, name in enumerate(plan.recomputed):
            source += [
                f"                    k = m + {index} * lanes",
                "                    checkpoint = checkpoints[k : k + width]",
                "                    for i in range(width):",
                f"                        checkpoint[i] = {slots.at(f's_{name}')}",
            ]
    source.append("                t = begin")
    counts = dict.fromkeys((residency(graph), 1))
    for count in counts:
        source.append(f"                while t + {count} <= end:")
        for j in range(count):
            source.append(_slice(f"x{j}", "x", f"(t + {j}) * x_step + row * x_row + low"))
            for kept in ("output", *(f"record_{name}" for name in plan.record)):
                source.append(_slice(f"{kept}{j}", kept, f"(t + {j}) * lanes + base"))
        source.append("                    for i in range(width):")
        source += _read([*states, *params], slots, 24)
        env = named_literals(plan) | {state: state for state in states}
        for j in range(count):
            source.append(f"                        x_{j} = x{j}[i]")
            lines, ends = print_lines(graph, {**env, "x": f"x_{j}"}, f"_{j}", 24)
            source += lines
            source.append(f"                        output{j}[i] = {ends['output']}")
            for name in plan.record:
                source.append(
                    f"                        record_{name}{j}[i] = {ends[f'next_{name}']}"
                )
            env |= {state: ends[f"next_{state[2:]}"] for state in states}
        for state in states:
            source.append(f"                        {slots.at(state)} = {env[state]}")
        source.append(f"                    t += {count}")
    source.append("            for i in range(width):")
    for state in states:
        source.append(f"                end_{state[2:]}[base + i] = {slots.at(state)}")
    if not states:
        source.append("                pass")
    return "\n".join(source) + "\n", len(slots.names)


def _load_params(plan: Plan, slots: Slots) -> list[str]:
    """The parameters first in the tile's array."""
    for name in plan.program.params:
        slots.at(f"p_{name}")
    return [
        f"        for k in range({len(plan.program.params)}):",
        "            param = params[k * columns + low : k * columns + low + full]",
        f"            T = S[k * {TILE} : k * {TILE} + full]",
        "            for i in range(full):",
        "                T[i] = param[i]",
    ]


def _read_literals(plan: Plan, graphs: Sequence[Graph]) -> str:
    refs = [ref for graph in graphs for line in graph.lines for ref in line.args]
    refs += [ref for graph in graphs for ref in graph.outputs.values()]
    used = {ref.hex() for ref in refs if isinstance(ref, float)}
    named = named_literals(plan)
    return "".join(
        f"    {name} = literals[{i}]\n"
        for i, (number, name) in enumerate(named.items())
        if number in used
    )


def _rows() -> list[str]:
    return [
        "        group = task // tiles",
        "        for row in range(group * per_group, min((group + 1) * per_group, rows)):",
        "            base = row * columns + low",
        "            width = min(full, lanes - base)",
        "            if width <= 0:",
        "                continue",
    ]


def _slice(name: str, array: str, start: str, indent: int = 20) -> str:
    return (
        " " * indent
        + f"begin_{name} = {start}\n"
        + " " * indent
        + (f"{name} = {array}[begin_{name} : begin_{name} + width]")
    )


# Backward


def backward_arguments(plan: Plan) -> list[str]:
    """The arguments of the backward kernel in order."""
    states = plan.program.states
    return [
        *("first", "last", "steps", "every", "columns", "lanes", "rows", "per_group"),
        *("x_step", "x_row", "x", "params", "literals", "checkpoints"),
        *(f"start_{name}" for name in plan.recomputed),
        *("g_step", "g_row", "g_output"),
        *(f"g_end_{name}" for name in states),
        *(
            argument
            for name in plan.record
            for argument in (f"h_step_{name}", f"h_row_{name}", f"h_{name}")
        ),
        *(["d_x"] if plan.x else []),
        *(f"d_start_{name}" for name in states),
        *("sums", "S", "past"),
    ]


def backward_source(plan: Plan) -> tuple[str, int]:
    """The backward kernel, and how many tile widths of scratch it needs."""
    program, slots, graph = plan.program, Slots(), plan.backward
    kept = plan.recomputed
    advance = program.graph.select([f"next_{name}" for name in kept])
    read = graph.reads() | advance.reads()
    params = _ordered((f"p_{name}" for name in program.params), read)
    carried = [f"g_{name}" for name in program.states]
    source = [
        _HEADER.format(
            what="Backward pass",
            layer=program.layer,
            real=real_name(program.dtype),
            name="backward",
            arguments=", ".join(backward_arguments(plan)),
            literals=_read_literals(plan, [graph, advance]),
            tile=TILE,
        ),
        *_load_params(plan, slots),
    ]
    sums = len(slots.names)
    if plan.trained:
        for name in plan.trained:
            slots.at(f"d_p_{name}")
        source += [
            f"        T = S[{sums * TILE} : {len(slots.names) * TILE}]",
            f"        for i in range({len(plan.trained) * TILE}):",
            "            T[i] = zero",
        ]
    source += [*_rows(), "            for i in range(width):"]
    for state in carried:
        source.append(f"                {slots.at(state)} = g_end_{state[2:]}[base + i]")
    if not carried:
        source.append("                pass")
    source += [
        "            for segment in range((steps - 1) // every, -1, -1):",
        "                begin = segment * every",
        "                end = min(begin + every, steps)",
        *_recompute(plan, advance, slots),
        "                t = end - 1",
    ]
    for count in dict.fromkeys((residency(graph), 1)):
        source += _walk_back(plan, graph, params, carried, slots, count)
    if plan.trained:
        source += [
            f"                for k in range({len(plan.trained)}):",
            f"                    a = (group * {len(plan.trained)} + k) * columns + low",
            "                    total = sums[a : a + width]",
            f"                    T = S[({sums} + k) * {TILE} : ({sums} + k) * {TILE} + width]",
            "                    for i in range(width):",
            "                        total[i] += T[i]",
            "                        T[i] = zero",
        ]
    source.append("            for i in range(width):")
    for state in carried:
        source.append(f"                d_start_{state[2:]}[base + i] = {slots.at(state)}")
    if not carried:
        source.append("                pass")
    return "\n".join(source) + "\n", len(slots.names)


def _recompute(plan: Plan, advance: Graph, slots: Slots) -> list[str]:
    """The states before every step of the segment, into ``past``."""
    kept, size = plan.recomputed, len(plan.recomputed)
    if not kept:
        return []
    source = ["                if begin == 0:", "                    for i in range(width):"]
    for index, name in enumerate(kept):
        source.append(f"                        past[{index * TILE} + i] = start_{name}[base + i]")
    source += [
        "                else:",
        f"                    for k in range({size}):",
        f"                        m = ((segment - 1) * {size} + k) * lanes + base",
        "                        checkpoint = checkpoints[m : m + width]",
        f"                        P = past[k * {TILE} : k * {TILE} + width]",
        "                        for i in range(width):",
        "                            P[i] = checkpoint[i]",
    ]
    source.append("                t = begin")
    for count in dict.fromkeys((residency(advance), 1)):
        source.append(f"                while t + {count} < end:")
        source.append(f"                    p = (t - begin) * {size * TILE}")
        source.append(f"                    P = past[p : p + {(count + 1) * size * TILE}]")
        if "x" in advance.reads():
            for j in range(count):
                source.append(_slice(f"x{j}", "x", f"(t + {j}) * x_step + row * x_row + low"))
        source.append("                    for i in range(width):")
        used = advance.reads()
        env = named_literals(plan)
        for index, name in enumerate(kept):
            source.append(f"                        s_{name} = P[{index * TILE} + i]")
        source += _read(_ordered((f"p_{n}" for n in plan.program.params), used), slots, 24)
        for j in range(count):
            if "x" in used:
                source.append(f"                        x_{j} = x{j}[i]")
            lines, ends = print_lines(advance, {**env, "x": f"x_{j}"}, f"_{j}", 24)
            source += lines
            env |= {f"s_{name}": ends[f"next_{name}"] for name in kept}
            for index, name in enumerate(kept):
                place = ((j + 1) * size + index) * TILE
                source.append(f"                        P[{place} + i] = {env[f's_{name}']}")
        source.append(f"                    t += {count}")
    return source


def _walk_back(
    plan: Plan, graph: Graph, params: list[str], carried: list[str], slots: Slots, count: int
) -> list[str]:
    kept, size = plan.recomputed, len(plan.recomputed)
    used = graph.reads()
    source = [f"                while t - {count - 1} >= begin:"]
    if kept:
        source.append(f"                    p = (t - {count - 1} - begin) * {size * TILE}")
        source.append(f"                    P = past[p : p + {count * size * TILE}]")
    for j in range(count):
        if "x" in used:
            source.append(_slice(f"x{j}", "x", f"(t - {j}) * x_step + row * x_row + low"))
        if "g_output" in used:
            source.append(_slice(f"g{j}", "g_output", f"(t - {j}) * g_step + row * g_row + low"))
        for name in plan.record:
            place = f"(t - {j}) * h_step_{name} + row * h_row_{name} + low"
            source.append(_slice(f"h_{name}{j}", f"h_{name}", place))
        if plan.x:
            source.append(_slice(f"d{j}", "d_x", f"(t - {j}) * lanes + base"))
    source.append("                    for i in range(width):")
    sums = [f"d_p_{name}" for name in plan.trained]
    source += _read([*_ordered(params, used), *carried, *sums], slots, 24)
    env = named_literals(plan) | {state: state for state in carried}
    for j in range(count):
        for index, name in enumerate(kept):
            offset = ((count - 1 - j) * size + index) * TILE
            source.append(f"                        s_{name}_{j} = P[{offset} + i]")
            env[f"s_{name}"] = f"s_{name}_{j}"
        if "x" in used:
            source.append(f"                        x_{j} = x{j}[i]")
        if "g_output" in used:
            source.append(f"                        g_{j} = g{j}[i]")
        for name in plan.record:
            source.append(
                f"                        h_{name}_{j} = {env[f'g_{name}']} + h_{name}{j}[i]"
            )
            env[f"g_{name}"] = f"h_{name}_{j}"
        env |= {"x": f"x_{j}", "g_output": f"g_{j}"}
        lines, ends = print_lines(graph, env, f"_{j}", 24)
        source += lines
        if plan.x:
            source.append(f"                        d{j}[i] = {ends['d_x']}")
        for name in plan.trained:
            source.append(
                f"                        d_p_{name} = d_p_{name} + {ends[f'd_p_{name}']}"
            )
        env |= {state: ends[f"d_s_{state[2:]}"] for state in carried}
    for state in carried:
        source.append(f"                        {slots.at(state)} = {env[state]}")
    for name in sums:
        source.append(f"                        {slots.at(name)} = {name}")
    if not (carried or sums or plan.x):
        source.append("                        pass")
    source.append(f"                    t -= {count}")
    return source
