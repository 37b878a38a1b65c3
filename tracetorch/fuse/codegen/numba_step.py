"""Print a plan as one step without a loop over time, on memory given by addresses."""

from __future__ import annotations

from typing import Any

from tracetorch.fuse.codegen.numba_loops import named_literals, print_lines, real_name
from tracetorch.fuse.ir.plan import Plan

_SOURCE = '''"""One step of {layer}, printed by tracetorch.fuse."""

import math

import numpy as np
from numba import carray

real = np.{real}
zero = real(0.0)
one = real(1.0)


def step({arguments}):
    lanes = rows * columns
    x = carray(x_at, lanes)
    output = carray(output_at, lanes)
    params = carray(params_at, {params} * columns)
    literals = carray(literals_at, {literals})
{arrays}
    for row in range(rows):
        low = row * columns
        for i in range(columns):
{body}
'''


def step_source(plan: Plan) -> tuple[str, str, Any]:
    """Return the source of a step, the function's name, and Numba's signature of it."""
    from numba import types

    program, graph = plan.program, plan.program.forward
    states = [f"{end}_{name}" for end in ("start", "end") for name in program.states]
    pointers = ["params", "literals", "x", "output", *states]
    literals = named_literals(plan)
    arrays = [f"{name} = carray({name}_at, lanes)" for name in states]
    arrays += [f"{name} = literals[{i}]" for i, name in enumerate(literals.values())]
    body = ["x_ = x[low + i]"]
    body += [f"s_{name} = start_{name}[low + i]" for name in program.states]
    body += [
        f"p_{name} = params[{k} * columns + i]"
        for k, name in enumerate(program.params)
        if f"p_{name}" in graph.reads()
    ]
    lines, ends = print_lines(graph, {**literals, "x": "x_"}, "", 0)
    body += [*lines, f"output[low + i] = {ends['output']}"]
    body += [f"end_{name}[low + i] = {ends[f'next_{name}']}" for name in program.states]
    real = real_name(program.dtype)
    text = _SOURCE.format(
        layer=program.layer,
        real=real,
        arguments=", ".join(["rows", "columns", *(f"{name}_at" for name in pointers)]),
        params=max(1, len(program.params)),
        literals=max(1, len(literals)),
        arrays="\n".join(" " * 4 + line for line in arrays),
        body="\n".join(" " * 12 + line for line in body),
    )
    address = types.CPointer(getattr(types, real))  # type: ignore[no-untyped-call]
    return text, "step", types.void(types.int64, types.int64, *[address] * len(pointers))
