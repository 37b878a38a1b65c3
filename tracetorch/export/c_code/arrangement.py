"""Plan memory: drop what nothing reads, write states in place, and let work arrays share memory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from tracetorch.export.c_code.stages import (
    Array,
    Copy,
    Pointwise,
    Role,
    Stage,
    StepProgram,
    View,
    moved,
    reads_of,
    writes_of,
)


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
