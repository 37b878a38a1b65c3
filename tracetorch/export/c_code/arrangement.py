"""Plan memory, and find the arrays that hold spikes.

What nothing reads is dropped, states are written in place, and work arrays share memory. Most of
the values of spikes are zero, so products skip those, where a product with zero is zero: not where
a weight is infinite or NaN.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from tracetorch.export.c_code.stages import (
    Array,
    Copy,
    Pointwise,
    Product,
    Role,
    Stage,
    StepProgram,
    View,
    moved,
    reads_of,
    writes_of,
)
from tracetorch.fuse.ir.graph import Graph, Value

_ANY = frozenset({"mul", "and"})  # zero where one operand is
_ALL = frozenset({"add", "sub", "max", "min", "or", "xor"})  # zero where all operands are
_SAME = frozenset({"neg", "abs", "float", "round", "floor", "ceil", "trunc"})


def living(program: StepProgram) -> StepProgram:
    """Return a program without what nothing reads; old states that are copied are copied first."""
    first: list[Stage] = []
    stages: list[Stage] = []
    for each in program.stages:
        if isinstance(each, Copy) and _is_end(each) and each.source.array.role is Role.STATE:
            old = each.source
            if old.array is each.target.array and old.same_places(each.target):
                continue
            array = Array(Role.WORK, each.path, old.size, old.array.boolean)
            view = View(array, each.target.shape, each.target.strides)
            first.append(Copy(each.path, old, view))
            each = replace(each, source=view)
        stages.append(each)
    needed: set[Array] = set()
    kept: list[Stage] = []
    for each in reversed(first + stages):
        written = {view.array for view in writes_of(each)}
        if not any(a in needed or a.role in (Role.STATE, Role.OUTPUT) for a in written):
            continue
        if isinstance(each, Pointwise):
            writes = {n: v for n, v in each.writes.items() if v.array in needed}
            graph = each.graph.select(writes)
            reads = {n: v for n, v in each.reads.items() if n in graph.reads()}
            each = replace(each, graph=graph, writes=writes, reads=reads)
        needed |= {view.array for view in reads_of(each)}
        kept.append(each)
    return replace(program, stages=kept[::-1])


def planned(program: StepProgram) -> StepProgram:
    """Return a living program whose states and outputs are written where they lie."""
    stages = program.stages
    for end in [each.target.array for each in stages if isinstance(each, Copy) and _is_end(each)]:
        copy = next(each for each in stages if isinstance(each, Copy) and each.target.array is end)
        if _may_replace(stages, copy):
            source = copy.source.array
            stages = [moved(each, source, end) for each in stages if each is not copy]
    return replace(program, stages=stages)


def _is_end(stage: Stage) -> bool:
    """Whether a stage copies a result to where the stream or the caller has it."""
    return isinstance(stage, Copy) and stage.target.array.role in (Role.STATE, Role.OUTPUT)


def _may_replace(stages: list[Stage], copy: Copy) -> bool:
    """Whether what a last copy reads may lie where it goes from the start."""
    source, target = copy.source, copy.target.array
    if source.array.role is not Role.WORK or not source.whole:
        return False
    at = [i for i, each in enumerate(stages) if source.array in {v.array for v in writes_of(each)}]
    for i, each in enumerate(stages[at[0] :], at[0]):
        for view in reads_of(each):
            if view.array is not target:
                continue
            # a loop may read each place of a state before it writes that very place
            if i > at[0] or not isinstance(each, Pointwise):
                return False
            if not all(
                view.same_places(w) for w in each.writes.values() if w.array is source.array
            ):
                return False
    return True


@dataclass(frozen=True)
class Memory:
    """Places of work arrays."""

    places: Mapping[Array, tuple[str, int]]  # pool and first place of each array, by the array
    sizes: Mapping[str, int]  # number of values of each pool, by its type


def work_memory(stages: Iterable[Stage], types: Mapping[Array, str]) -> Memory:
    """Let work arrays that are never needed at one time share memory, one pool for each type."""
    lives: dict[Array, tuple[int, int]] = {}
    for i, each in enumerate(stages):
        for view in (*writes_of(each), *reads_of(each)):
            if view.array.role is Role.WORK:
                lives[view.array] = lives.get(view.array, (i, i))[0], i
    places: dict[Array, tuple[str, int]] = {}
    sizes: dict[str, int] = {}
    # the largest first: what is small fills the gaps
    for array in sorted(lives, key=lambda each: -each.size):
        begin, end = lives[array]
        taken = sorted(
            (places[other][1], places[other][1] + other.size)
            for other in places
            if types[other] == types[array] and lives[other][0] <= end and begin <= lives[other][1]
        )
        place = 0
        for start, stop in taken:
            if place + array.size <= start:
                break
            place = max(place, stop)
        places[array] = types[array], place
        sizes[types[array]] = max(sizes.get(types[array], 0), place + array.size)
    return Memory(places, sizes)


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
