"""Print a plan as two time loops for JavaScript, the kernels of one lane.

::

    forward(literals, steps, x, params, start, output, record)
    backward(literals, steps, x, params, start, record, dOutput, dRecord, dX, dParams, dStart)

``x``, ``output``, their gradients hold a number for each step; ``record``, ``dRecord`` an array of
them for each state; all others one number for each. Time is one segment, without checkpoints.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from tracetorch.fuse.codegen.emitter import BraceEmitter
from tracetorch.fuse.codegen.targets import javascript_target
from tracetorch.fuse.ir.graph import Graph
from tracetorch.fuse.ir.kernel import Axis, Buffer, Index, Role, Schedule, Var
from tracetorch.fuse.ir.plan import Plan
from tracetorch.fuse.ir.schedule import backward_kernel, forward_kernel

FUNCTIONS = """
const copysign = (x, y) => (y < 0 || Object.is(y, -0) ? -Math.abs(x) : Math.abs(x));
// in C a power of 1 is 1, whatever the exponent
const pow = (x, y) =>
    x === 1 || (x === -1 && Math.abs(y) === Infinity) ? 1 : Math.pow(x, y);
// half to even, as NumPy and PyTorch round
const round = (x) => {
    const low = Math.floor(x), above = x - low;
    return copysign(above > 0.5 || (above === 0.5 && low % 2 !== 0) ? low + 1 : low, x);
};
"""
"""Definitions of the functions that printed operations call, to stand before them."""

# The spelling of a place in each kind of memory: k is the number of the state or parameter, t the
# first index, i the second one.
_PLACES = {
    Role.INPUT: "x[{t}]", Role.PARAMETER: "params[{k}]", Role.LITERALS: "literals[{t}]",
    Role.START: "start[{k}]", Role.OUTPUT: "output[{t}]", Role.RECORD: "record[{k}][{t}]",
    Role.PAST: "past[{i}][{t}]", Role.GRAD_OUTPUT: "dOutput[{t}]",
    Role.GRAD_RECORD: "dRecord[{k}][{t}]", Role.GRAD_INPUT: "dX[{t}]",
    Role.GRAD_START: "dStart[{k}]",
}  # fmt: skip


SLOPES = ("acosh", "atanh", "tan", "log10", "asinh", "acos")
"""Operations that may stand for the derivative of a spike, in a step that has no use of them."""


def unknown(graph: Graph) -> str | None:
    """Return the first operation of ``graph`` that JavaScript lacks, or ``None``."""
    return javascript_target().unknown_operation(graph)


def forward_source(plan: Plan) -> str:
    """Print the pass that fills ``output`` and ``record``; the plan records all states."""
    printer = _JavaScript(forward_kernel(plan), plan)
    return printer.print("literals, steps, x, params, start, output, record")


def backward_source(plan: Plan, slope: str | None = None) -> str:
    """Print the pass that fills the gradients; the operation ``slope`` calls its last argument."""
    printer = _JavaScript(backward_kernel(plan), plan)
    arguments = "literals, steps, x, params, start, record, dOutput, dRecord, dX, dParams, dStart"
    if slope is not None:
        expressions = {**printer.target.expressions, slope: "slope({})"}
        printer.target = replace(printer.target, expressions=expressions)
        arguments += ", slope"
    return printer.print(arguments)


class _JavaScript(BraceEmitter):
    counter = "let"

    def __init__(self, kernel: Schedule, plan: Plan) -> None:
        super().__init__(kernel, javascript_target())
        self.plan = plan

    def print(self, arguments: str) -> str:
        with self.indent(f"({arguments}) => {{"):
            self.line("const every = steps, segments = 1;")
            roles = self.kernel.roles
            if Role.PAST in roles:
                self.line(
                    f"const past = Array.from({{ length: {len(self.plan.recomputed)} }}, () => []);"
                )
            if Role.SUMS in roles:
                self.line("dParams.fill(0);")
            self.body(self.kernel.body)
        return self.source().rstrip()

    def declare(self, value: Var, spelled: str) -> None:
        self.line(f"const {self.spell(value)} = {spelled};")

    def declare_variable(self, value: Var, spelled: str) -> None:
        self.line(f"let {self.spell(value)} = {spelled};")

    def place(self, buffer: Buffer, index: Sequence[Index]) -> str:
        inner = [self.spell(each) for each in index if not isinstance(each, Axis)]
        first, second = [*inner, "", ""][:2]
        program = self.plan.program
        if buffer.role is Role.SUMS:
            return f"dParams[{program.params.index(self.plan.trained[int(first)])}]"
        names = program.params if buffer.role is Role.PARAMETER else program.states
        k = names.index(buffer.name) if buffer.name in names else 0
        return _PLACES[buffer.role].format(k=k, t=first, i=second)

    def load(self, buffer: Buffer, index: Sequence[Index]) -> str:
        # nothing comes back to the final states but by way of their trajectories
        return self.place(buffer, index) if buffer.role in (*_PLACES, Role.SUMS) else "0"

    def store(self, buffer: Buffer, index: Sequence[Index], value: str) -> None:
        # the last of the trajectories are the final states
        if buffer.role in (*_PLACES, Role.SUMS):
            super().store(buffer, index, value)
