"""Print a plan as one step without a loop over time, on memory at raw addresses."""

from __future__ import annotations

from typing import Any

from tracetorch.fuse.codegen.emitter import Emitter
from tracetorch.fuse.codegen.targets import numba_target, real_name
from tracetorch.fuse.ir.plan import Plan

_MODULE = '''"""One step of {layer}, printed by tracetorch.fuse."""

import math

import numpy as np
from numba import carray

from tracetorch.fuse.codegen.numba_functions import fma

real = {real}
zero = real(0.0)
one = real(1.0)


'''


def step_source(plan: Plan) -> tuple[str, str, Any]:
    """Return the source of a step, the function's name, and Numba's signature of it."""
    from numba import types

    program = plan.program
    emitter = Emitter(numba_target(program.dtype), plan.literals)
    module = _MODULE.format(layer=program.layer, real=emitter.target.real)
    emitter.lines(*module.splitlines())
    states = [f"{end}_{name}" for end in ("start", "end") for name in program.states]
    pointers = ["params", "literals", "x", "output", *states]
    arguments = ["rows", "columns", *(f"{name}_at" for name in pointers)]
    with emitter.indent(f"def step({', '.join(arguments)}):"):
        # Arguments are addresses: building array arguments takes longer than the step itself.
        emitter.line("lanes = rows * columns")
        emitter.line("x = carray(x_at, lanes)")
        emitter.line("output = carray(output_at, lanes)")
        emitter.line(f"params = carray(params_at, {max(1, len(program.params))} * columns)")
        emitter.line(f"literals = carray(literals_at, {max(1, len(plan.literals))})")
        for name in states:
            emitter.line(f"{name} = carray({name}_at, lanes)")
        emitter.read_literals([program.graph])
        # A parameter has one value per column, which all rows share.
        with emitter.indent("for row in range(rows):"):
            emitter.line("low = row * columns")
            with emitter.indent("for i in range(columns):"):
                _lane(emitter, plan)
    address = types.CPointer(getattr(types, real_name(program.dtype)))  # type: ignore[no-untyped-call]
    signature = types.void(types.int64, types.int64, *[address] * len(pointers))
    return emitter.source(), "step", signature


def _lane(emitter: Emitter, plan: Plan) -> None:
    """Print the step of lane ``i`` of a row: load all, compute in registers, store all."""
    program, graph = plan.program, plan.program.forward
    emitter.line("x_ = x[low + i]")
    for name in program.states:
        emitter.line(f"s_{name} = start_{name}[low + i]")
    reads = graph.reads()
    for k, name in enumerate(program.params):
        if f"p_{name}" in reads:
            emitter.line(f"p_{name} = params[{k} * columns + i]")
    results = emitter.graph(graph, {"x": "x_"})
    emitter.line(f"output[low + i] = {results['output']}")
    for name in program.states:
        emitter.line(f"end_{name}[low + i] = {results[f'next_{name}']}")
