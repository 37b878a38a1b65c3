"""Print a plan as two time loops for JavaScript: one lane, its states kept at every step.

Each source is an expression, a function of its memory::

    forward(literals, steps, x, params, start, output, record)
    backward(literals, steps, x, params, start, record, dOutput, dRecord, dX, dParams, dStart)

``x``, ``output`` and their gradients hold one number for each step, ``record`` and ``dRecord`` an
array of them for each state, ``params``, ``start`` and their gradients one number for each. Nothing
is computed again: a lane is small, and its trajectories are drawn anyway.
"""

from __future__ import annotations

from collections.abc import Mapping

from tracetorch.fuse.codegen.emitter import Emitter
from tracetorch.fuse.codegen.targets import javascript_target
from tracetorch.fuse.ir.graph import Graph
from tracetorch.fuse.ir.plan import Plan


def unknown(graph: Graph) -> str | None:
    """Return the first operation of ``graph`` that JavaScript lacks, or ``None``."""
    return javascript_target().unknown_operation(graph)


def forward_source(plan: Plan) -> str:
    """Print the pass that fills ``output`` and ``record``."""
    program, graph = plan.program, plan.program.forward
    emitter = Emitter(javascript_target(), plan.literals)
    with emitter.indent("(literals, steps, x, params, start, output, record) => {"):
        _read_constants(emitter, plan, graph)
        for k, name in enumerate(program.states):
            emitter.line(f"let s_{name} = start[{k}];")
        with emitter.indent("for (let t = 0; t < steps; t++) {"):
            results = emitter.graph(graph, {"x": "x[t]"})
            emitter.line(f"output[t] = {results['output']};")
            for k, name in enumerate(program.states):
                emitter.line(f"record[{k}][t] = {results[f'next_{name}']};")
            _assign(emitter, {f"s_{name}": results[f"next_{name}"] for name in program.states})
    return emitter.source().rstrip()


def backward_source(plan: Plan) -> str:
    """Print the pass that fills ``dX``, ``dParams`` and ``dStart``, from the last step on."""
    program, read = plan.program, plan.backward.reads()
    emitter = Emitter(javascript_target(), plan.literals)
    arguments = "literals, steps, x, params, start, record, dOutput, dRecord, dX, dParams, dStart"
    with emitter.indent(f"({arguments}) => {{"):
        _read_constants(emitter, plan, plan.backward)
        for name in program.states:
            emitter.line(f"let g_{name} = 0;")
        for name in plan.trained:
            emitter.line(f"let sum_{name} = 0;")
        with emitter.indent("for (let t = steps - 1; t >= 0; t--) {"):
            for k, name in enumerate(program.states):
                if f"s_{name}" in read:
                    emitter.line(f"const s_{name} = t > 0 ? record[{k}][t - 1] : start[{k}];")
            # A state has two uses, the next step and the trajectory: their cotangents add up.
            for k, name in enumerate(program.states):
                emitter.line(f"g_{name} += dRecord[{k}][t];")
            results = emitter.graph(plan.backward, {"x": "x[t]", "g_output": "dOutput[t]"})
            emitter.line(f"dX[t] = {results['d_x']};")
            for name in plan.trained:
                emitter.line(f"sum_{name} += {results[f'd_p_{name}']};")
            _assign(emitter, {f"g_{name}": results[f"d_s_{name}"] for name in program.states})
        for k, name in enumerate(program.params):
            emitter.line(f"dParams[{k}] = {f'sum_{name}' if name in plan.trained else 0};")
        for k, name in enumerate(program.states):
            emitter.line(f"dStart[{k}] = g_{name};")
    return emitter.source().rstrip()


def _read_constants(emitter: Emitter, plan: Plan, graph: Graph) -> None:
    """Print the numbers and the parameters that a graph reads."""
    emitter.read_literals([graph])
    read = graph.reads()
    for k, name in enumerate(plan.program.params):
        if f"p_{name}" in read:
            emitter.line(f"const p_{name} = params[{k}];")


def _assign(emitter: Emitter, values: Mapping[str, str]) -> None:
    """Assign to variables all at once: a value may be the name of another of them."""
    changed = {name: value for name, value in values.items() if value != name}
    if len(changed) > 1:
        emitter.line(f"[{', '.join(changed)}] = [{', '.join(changed.values())}];")
    for name, value in changed.items() if len(changed) == 1 else ():
        emitter.line(f"{name} = {value};")
