"""Print a plan as two time loops for JavaScript, the kernels of one lane, and what ``Math`` lacks.

Each source is an expression, a function of its memory::

    forward(literals, steps, x, params, start, output, record)
    backward(literals, steps, x, params, start, record, dOutput, dRecord, dX, dParams, dStart)

The backward pass of a plan that was traced with a stand-in for the surrogate (:data:`SLOPES`) takes
its derivative as a last argument, the function ``slope``: one loop serves all surrogates.

``x``, ``output`` and their gradients hold one number for each step, ``record`` and ``dRecord`` an
array of them for each state, ``params``, ``start`` and their gradients one number for each. All of
time is one segment, so there are no checkpoints.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from tracetorch.fuse.codegen.emitter import BraceEmitter
from tracetorch.fuse.codegen.targets import javascript_target
from tracetorch.fuse.ir.graph import Graph
from tracetorch.fuse.ir.kernel import Axis, Buffer, Index, Kernel, Role, Value
from tracetorch.fuse.ir.plan import Plan
from tracetorch.fuse.ir.schedule import backward_kernel, forward_kernel
from tracetorch.fuse.ir.simplify import without_memory

_BITS = """
const bits = new BigInt64Array(1), number = new Float64Array(bits.buffer);
// the next number after x towards larger magnitudes (by = 1n) or smaller ones (by = -1n)
const neighbour = (x, by) => {
    number[0] = x;
    bits[0] += by;
    return number[0];
};
"""

# Each function with the names of those that it calls.
_FUNCTIONS: dict[str, tuple[tuple[str, ...], str]] = {
    "bits": ((), _BITS),
    "copysign": (
        (),
        """
const copysign = (x, y) => {
    const negative = y < 0 || Object.is(y, -0);
    return negative ? -Math.abs(x) : Math.abs(x);
};
""",
    ),
    # In C a power of 1 is 1, whatever the exponent.
    "pow": (
        (),
        """
const pow = (x, y) => {
    const one = x === 1 || (x === -1 && Math.abs(y) === Infinity);
    return one ? 1 : Math.pow(x, y);
};
""",
    ),
    # Half to even, as NumPy and PyTorch round.
    "round": (
        ("copysign",),
        """
const round = (x) => {
    const low = Math.floor(x), above = x - low;
    const up = above > 0.5 || (above === 0.5 && low % 2 !== 0);
    return copysign(up ? low + 1 : low, x);
};
""",
    ),
    "nextafter": (
        ("bits",),
        """
const nextafter = (x, y) => {
    if (x !== x || y !== y) return NaN;
    if (x === y) return y;
    if (x === 0) return y > 0 ? Number.MIN_VALUE : -Number.MIN_VALUE;
    return neighbour(x, (y > x) === (x > 0) ? 1n : -1n);
};
""",
    ),
    # x * y + z, rounded once: exact product and sums of two parts, then a rounding to odd of the
    # lower ones. Boldo and Melquiond, "Emulation of a FMA and correctly rounded sums", IEEE
    # Transactions on Computers 57 (2008). Not exact where parts are subnormal.
    "fma": (
        ("bits",),
        """
const exactSum = (a, b) => {
    const sum = a + b, part = sum - a;
    return [sum, (a - (sum - part)) + (b - part)];
};
const exactProduct = (a, b) => {
    const high = (v) => { const w = 134217729 * v; return w - (w - v); };
    const ah = high(a), al = a - ah, bh = high(b), bl = b - bh, product = a * b;
    return [product, ((ah * bh - product) + ah * bl + al * bh) + al * bl];
};
const fma = (x, y, z) => {
    if (!Number.isFinite(x) || !Number.isFinite(y)) return x * y + z;
    if (!Number.isFinite(z)) return z;
    if (x * y === 0) return x * y + z;
    if (Math.abs(x) > 1e200 && Math.abs(y) > 1e200) return x * y;
    // Parts of large numbers overflow; powers of two scale exactly.
    if (Math.abs(y) > 1e250) return fma(y, x, z);
    if (Math.abs(x) > 1e250 && Math.abs(y) < 1) return fma(x / 2 ** 500, y * 2 ** 500, z);
    if (Math.max(Math.abs(x), Math.abs(x * y), Math.abs(z)) > 1e290)
        return fma(x / 2 ** 600, y, z / 2 ** 600) * 2 ** 600;
    const [uh, ul] = exactProduct(x, y), [th, tl] = exactSum(z, ul), [vh, vl] = exactSum(uh, th);
    const [low, rest] = exactSum(tl, vl);
    let odd = low;
    if (rest !== 0) {
        number[0] = low;
        if (bits[0] % 2n === 0n) odd = neighbour(low, (rest > 0) === (low > 0) ? 1n : -1n);
    }
    return vh + odd;
};
// of float32: the product is exact, the sum is rounded to odd, and then once to float32
const fmaf = (x, y, z) => {
    const [sum, rest] = exactSum(x * y, z);
    if (!Number.isFinite(sum) || !Number.isFinite(rest) || rest === 0) return Math.fround(sum);
    number[0] = sum;
    if (bits[0] % 2n !== 0n) return Math.fround(sum);
    return Math.fround(neighbour(sum, (rest > 0) === (sum > 0) ? 1n : -1n));
};
""",
    ),
    # Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.6 (a series of terms of one
    # sign) near 0, and 7.1.14 (a continued fraction) in the tail.
    "erf": (
        (),
        """
// exp(-x * x), without the error of the square: that of h, of half as many bits, is exact
const bell = (x) => {
    const h = Math.fround(x);
    return Math.exp(-h * h) * Math.exp((h - x) * (h + x));
};
const erfSeries = (x) => {
    let term = x, sum = x;
    for (let n = 1; Math.abs(term) > 1e-17 * Math.abs(sum); n++) {
        term *= 2 * x * x / (2 * n + 1);
        sum += term;
    }
    return 2 / Math.sqrt(Math.PI) * bell(x) * sum;
};
const erfTail = (x) => {
    let fraction = x;
    for (let n = Math.ceil(30 + 300 / (x * x)); n > 0; n--) fraction = x + n / 2 / fraction;
    return x > 30 ? 0 : bell(x) / Math.sqrt(Math.PI) / fraction;
};
const erf = (x) => {
    if (Math.abs(x) < 2.5 || x !== x) return erfSeries(x);
    return x > 0 ? 1 - erfTail(x) : erfTail(-x) - 1;
};
""",
    ),
    "erfc": (
        ("erf",),
        """
const erfc = (x) => (x < 0.5 || x !== x ? 1 - erf(x) : erfTail(x));
""",
    ),
}


def functions_source(graphs: Iterable[Graph]) -> str:
    """Return the source of the functions that the operations of ``graphs`` need, in order."""
    needed = {line.op for graph in graphs for line in graph.lines}
    # A function stands behind those that it calls.
    for name in reversed(_FUNCTIONS):
        if name in needed:
            needed.update(_FUNCTIONS[name][0])
    return "".join(source for name, (_, source) in _FUNCTIONS.items() if name in needed)


# The spelling of a place in each kind of memory: k is the number of the state or parameter, t the
# first index, i the second one.
_PLACES = {
    Role.INPUT: "x[{t}]", Role.PARAMETER: "params[{k}]", Role.LITERALS: "literals[{t}]",
    Role.START: "start[{k}]", Role.OUTPUT: "output[{t}]", Role.RECORD: "record[{k}][{t}]",
    Role.PAST: "past[{i}][{t}]", Role.GRAD_OUTPUT: "dOutput[{t}]",
    Role.GRAD_RECORD: "dRecord[{k}][{t}]", Role.GRAD_INPUT: "dX[{t}]",
    Role.GRAD_START: "dStart[{k}]",
}  # fmt: skip


SLOPES = ("erfc", "erf", "acosh", "atanh", "tan", "log10")
"""Operations that may stand for the derivative of a spike, in a step that has no use of them."""


def unknown(graph: Graph) -> str | None:
    """Return the first operation of ``graph`` that JavaScript lacks, or ``None``."""
    return javascript_target().unknown_operation(graph)


def forward_source(plan: Plan) -> str:
    """Print the pass that fills ``output`` and ``record``; the plan records all states."""
    # the last of the trajectories are the final states
    kernel = without_memory(forward_kernel(plan), (Role.CHECKPOINTS, Role.END))
    printer = _Printer(kernel, plan)
    return printer.print("literals, steps, x, params, start, output, record")


def backward_source(plan: Plan, slope: str | None = None) -> str:
    """Print the pass that fills ``dX``, ``dParams`` and ``dStart``, from the last step on.

    The operation ``slope`` is a call of the function of this name, the last argument.
    """
    kernel = without_memory(backward_kernel(plan), (Role.CHECKPOINTS,))
    printer = _Printer(kernel, plan)
    arguments = "literals, steps, x, params, start, record, dOutput, dRecord, dX, dParams, dStart"
    if slope is not None:
        expressions = {**printer.target.expressions, slope: "slope({})"}
        printer.target = replace(printer.target, expressions=expressions)
        arguments += ", slope"
    return printer.print(arguments)


class _Printer(BraceEmitter):
    counter = "let"

    def __init__(self, kernel: Kernel, plan: Plan) -> None:
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

    def declare(self, value: Value, spelled: str) -> None:
        self.line(f"const {self.spell(value)} = {spelled};")

    def declare_variable(self, value: Value, spelled: str) -> None:
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
        return "0" if buffer.role is Role.GRAD_END else self.place(buffer, index)
