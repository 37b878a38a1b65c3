"""Find the arrays that hold spikes: most of their values are zero, so products skip those.

Zeros may be skipped where a product with zero is zero: not where a weight is infinite or NaN.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from tracetorch.export.c_code.stages import (
    Array,
    Copy,
    Pointwise,
    Pool,
    Product,
    Role,
    StepProgram,
    Sum,
    reads_of,
    writes_of,
)
from tracetorch.fuse.ir.graph import Graph, Value

_ANY = frozenset({"mul", "and"})  # zero where one operand is
_ALL = frozenset({"add", "sub", "max", "min", "or", "xor"})  # zero where all operands are
_SAME = frozenset({"neg", "abs", "float", "round", "floor", "ceil", "trunc"})


def event_arrays(program: StepProgram, inputs: Collection[Array]) -> set[Array]:
    """Return the arrays whose values are spikes, or sums and multiples of spikes.

    Those that a product with an infinite weight or a NaN reads are left out.

    Args:
        program: one step.
        inputs: those inputs that hold spikes.
    """
    products = [stage for stage in program.stages if isinstance(stage, Product)]
    unsafe = {p.source.array for p in products if not bool(p.weight.isfinite().all())}
    return _sparse(program, inputs) - unsafe


def _sparse(program: StepProgram, inputs: Collection[Array]) -> set[Array]:
    # a state holds spikes where it starts from zero and every step gives it spikes
    states = {a for a in program.states.values() if a.values is None or not a.values.any()}
    while True:
        found = {*inputs, *states}
        for stage in program.stages:
            if isinstance(stage, Pointwise):
                known = {name: view.array in found for name, view in stage.reads.items()}
                results = _sparse_outputs(stage.graph, known)
                pairs = [(stage.writes[name].array, results[name]) for name in stage.writes]
            elif isinstance(stage, (Copy, Pool, Sum)):
                source, target = next(reads_of(stage)).array, next(writes_of(stage)).array
                pairs = [(target, source in found)]
            else:
                pairs = [(stage.target.array, False)]
            for array, sparse in pairs:
                if array.role is Role.STATE:
                    continue
                # a part of an array that is dense makes all of it dense
                dense = any(a is array and not s for a, s in pairs)
                (found.add if sparse and not dense else found.discard)(array)
        kept = {array for array in states if _stays(program, array, found)}
        if kept == states:
            return found
        states = kept


def _stays(program: StepProgram, state: Array, found: set[Array]) -> bool:
    for stage in program.stages:
        for name, view in _named_writes(stage):
            if view is not state:
                continue
            if isinstance(stage, Pointwise):
                known = {n: v.array in found for n, v in stage.reads.items()}
                if not _sparse_outputs(stage.graph, known)[name]:
                    return False
            elif not isinstance(stage, (Copy, Pool)) or stage.source.array not in found:
                return False
    return True


def _named_writes(stage: object) -> list[tuple[str, Array]]:
    if isinstance(stage, Pointwise):
        return [(name, view.array) for name, view in stage.writes.items()]
    return [("", view.array) for view in writes_of(stage)]  # type: ignore[arg-type]


def _sparse_outputs(graph: Graph, known: Mapping[str, bool]) -> dict[str, bool]:
    """Return whether each output of a graph is zero mostly, from what is known of its inputs."""
    sparse = dict(known)

    def of(value: Value) -> bool:
        return sparse[value] if isinstance(value, str) else value in (0.0, False)

    for line in graph.lines:
        flags = [of(arg) for arg in line.args]
        if line.op in _ANY:
            sparse[line.name] = any(flags)
        elif line.op in _ALL or line.op in _SAME:
            sparse[line.name] = all(flags)
        elif line.op == "where":
            sparse[line.name] = all(flags[1:])
        else:
            # a neuron crosses its threshold seldom
            sparse[line.name] = line.op in ("gt", "ge", "lt", "le")
    return {name: of(value) for name, value in graph.outputs.items()}
