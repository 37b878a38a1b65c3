"""Find the arrays that hold spikes: most of their values are zero, so products skip those.

Zeros may be skipped where a product with zero is zero: not where a weight is infinite or NaN.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

from tracetorch.export.c_code.stages import (
    Array,
    Pointwise,
    Product,
    Role,
    Stage,
    StepProgram,
)
from tracetorch.fuse.ir.graph import Graph, Value

_ANY = frozenset({"mul", "and"})  # zero where one operand is
_ALL = frozenset({"add", "sub", "max", "min", "or", "xor"})  # zero where all operands are
_SAME = frozenset({"neg", "abs", "float", "round", "floor", "ceil", "trunc"})


def event_arrays(program: StepProgram, inputs: Collection[Array]) -> set[Array]:
    """Return the arrays of spikes, their sums and multiples, but where a weight is not finite."""
    # a state holds spikes where it starts from zero and every step gives it spikes
    states = {array for array in program.states.values() if not array.values.any()}
    while True:
        found, lost = {*inputs, *states}, set[Array]()
        for stage in program.stages:
            written = list(_written(stage, found))
            # a part of an array that is dense makes all of it dense
            dense = {array for array, sparse in written if not sparse}
            lost |= dense & states
            found |= {array for array, _ in written if array.role is not Role.STATE}
            found -= dense - states
        if not lost:
            break
        states -= lost
    products = [stage for stage in program.stages if isinstance(stage, Product)]
    return found - {p.source.array for p in products if not bool(p.weight.isfinite().all())}


def _written(stage: Stage, found: Collection[Array]) -> Iterator[tuple[Array, bool]]:
    """Yield each array that a stage writes to, and whether it writes spikes."""
    if isinstance(stage, Pointwise):
        known = {name: view.array in found for name, view in stage.reads.items()}
        results = _sparse_outputs(stage.graph, known)
        yield from ((view.array, results[name]) for name, view in stage.writes.items())
    else:
        spikes = not isinstance(stage, Product) and stage.source.array in found
        yield stage.target.array, spikes


def _sparse_outputs(graph: Graph, known: Mapping[str, bool]) -> dict[str, bool]:
    """Return whether each output of a graph is zero mostly, from what is known of its inputs."""
    sparse = dict(known)

    def of(value: Value) -> bool:
        return sparse[value] if isinstance(value, str) else value in (0.0, False)

    for line in graph.lines:
        # of a bound that leaves zero what it is, as of zero
        flags = [of(arg) or _keeps_zero(line.op, arg) for arg in line.args]
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


def _keeps_zero(op: str, bound: Value) -> bool:
    """Whether the larger, or the smaller, of zero and a number is zero."""
    sign = {"max": -1.0, "min": 1.0}.get(op)
    return sign is not None and not isinstance(bound, str) and sign * bound >= 0
