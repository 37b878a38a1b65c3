"""Run neurons in a loop along a list of edges, in LLVM IR: all steps, by events, on threads.

A *window* is as many steps as pass before a spike reaches any neuron: within one no neuron knows of
another. ``inner`` samples lie side by side, a *group*, so that an edge is read once for all of them
that fired: a *row* of a step has a lane for each neuron and then sample of a group. The lanes of a
row are *chunks* of as many, and a task is a chunk in one window. It adds what comes along edges
from the spikes of the window before to the ``ring`` of what its own neurons are given, runs the
kernels of the neurons over the steps, tile by tile, and writes their spikes as bits. Backward goes
from the last window to the first: what comes back to an output is gathered along its edges, unless
the neuron does not let it through, as a surrogate of compact support does nearly everywhere.

The neurons of a tile are of one kind, with a kernel of its own: each kind begins with a tile.

Tasks are taken in their order by whichever thread is free, and each waits until those that it
depends on are done: they have been taken by then, so that any number of threads comes to an end.
Every sum has one order: what a neuron is given, by time, source and then edge.

``bits`` are ``[steps, groups, words]``, a bit for each lane; the steps before the first one of
the call, ``history``, come first. Edges are sorted by source and then by the chunk of the target:
those of a source to a chunk begin at ``starts[source * chunks + chunk]``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from tracetorch.fuse.codegen.llvm_tasks import HEADER, TaskWriter
from tracetorch.fuse.codegen.llvm_writer import WORD, Array, Operand, Value

TILE = 512  # lanes that a kernel of neurons is called for
LANES = 16  # that are read at once
BITS = 64  # of a word of bits, and lanes of a mark
_WORDS = 8  # of bits that are looked at together
_SPINS = 1 << 8  # looks at a counter before another thread is let run
# places in the block of a kernel of neurons: the geometry, and then the sizes of time
_COLUMNS, _STRIDE, _ROWS, _GROUP, _TILE, _NEURONS, _INNER, _STEPS, _EVERY = range(
    HEADER, HEADER + 9
)
SIZES: tuple[str, ...] = (
    *("total", "groups", "chunks", "per_chunk", "windows", "per_task", "steps", "window"),
    *("size", "ring", "history", "delay", "words", "wait", "valid", "behind"),
)
KERNEL = 7  # integers of a kernel of neurons: see `_Kernels`
_LINE = 8  # integers from the counter of a group to that of the next


@dataclass(frozen=True)
class _Where:
    """A task: a chunk of a group, in some windows."""

    number: Value
    group: Value
    chunk: Value
    low: Value
    high: Value


@dataclass(frozen=True)
class _Tile:
    """Lanes that a kernel is called for: the first, how many, and the kind of their neurons."""

    low: Value
    count: Value
    kind: Value


class _Loop:
    """Sizes, tasks, edges and bits, as the kernels of both directions read them."""

    def __init__(self, k: TaskWriter, real: str, delayed: bool, inner: int) -> None:
        self.k, self.real, self.inner = k, real, inner
        self.size = dict(zip(SIZES, k.integers(len(SIZES)), strict=True))
        self.counters, self.words, self.kinds = k.array(WORD), k.array(WORD), k.array(WORD)
        self.starts, self.targets = k.array(WORD), k.array("i32")
        self.weight = k.array(real)
        self.delays = k.array("i32") if delayed else None
        self.item = 4 if real == "float" else 8
        self.lanes = self.size["size"] * self.size["groups"]

    def __getitem__(self, name: str) -> Value:
        return self.size[name]

    def added(self, place: Array, number: int = 1) -> Value:
        return self.k.value(f"atomicrmw add {place.pointer}, i64 {number} seq_cst", WORD)

    @contextmanager
    def tasks(self) -> Iterator[_Where]:
        """Run what is written inside for the tasks that nobody has taken, in their order."""
        k, size = self.k, self.size
        with k.repeat(lambda c: c[0] < size["total"], self.added(self.counters)) as each:
            (ticket,) = each.carried
            chunks, groups = size["chunks"], size["groups"]
            number, rest = ticket // (chunks * groups), ticket % (chunks * groups)
            group, chunk = rest // chunks, rest % chunks
            done = self.counters.at((group + 1) * _LINE)
            self._wait(done, number * chunks)
            low = chunk * size["per_chunk"]
            yield _Where(number, group, chunk, low, k.least(low + size["per_chunk"], size["size"]))
            self.added(done)
            each.next = (self.added(self.counters),)

    def _wait(self, done: Array, needed: Value) -> None:
        k = self.k

        def goes_on(carried: Sequence[Value]) -> Value:
            return k.value(f"load atomic i64, {done.pointer} acquire, align 8", WORD) < needed

        with k.repeat(goes_on, k.literal(0, WORD)) as spin:
            (count,) = spin.carried
            yields = (count % _SPINS).equals(_SPINS - 1) & self.size["wait"].differs(0)
            with k.when(yields):
                function = k.convert("inttoptr", self.size["wait"], "ptr")
                k.value(f"call i32 {function.text}()", "i32")
            spin.next = (count + 1,)

    def bounds(self, window: Value) -> tuple[Value, Value]:
        """Return the first step of a window, and the one behind its last."""
        begin = window * self.size["window"]
        return begin, self.k.least(begin + self.size["window"], self.size["steps"])

    def valid(self, group: Value) -> Value:
        """Return which lanes of a word are of samples that there are."""
        return self.k.select(group.equals(self["groups"] - 1), self["valid"], -1)

    @contextmanager
    def sources(self, mask: Value) -> Iterator[tuple[Value, Value | None]]:
        """Run what is inside for each neuron of a mask of lanes: its first lane, its samples."""
        k, inner, exact = self.k, self.inner, Value(self.k, "true", "i1")
        with k.repeat(lambda carried: carried[0].differs(0), mask) as bit:
            (left,) = bit.carried
            first = k.intrinsic("llvm.cttz.i64", WORD, left, exact)
            if inner == 1:
                yield first, None
                bit.next = (left & (left - 1),)
                return
            first = first & -inner
            some = left >> first & 2**inner - 1
            short = k.convert("trunc", some, f"i{inner}")
            yield first, k.convert("bitcast", short, f"<{inner} x i1>")
            bit.next = (left ^ some << first,)

    @contextmanager
    def events(
        self, row: Value, first: Operand, last: Value
    ) -> Iterator[tuple[Value, Value | None]]:
        """Run what is written inside for each source that fired, by words of bits."""
        k, line = self.k, self.words.at(row * self.size["words"])
        with k.loop(first, last, step=_WORDS) as block:
            # nearly all are 0
            left = last - block.index
            some = line.some(block.index, left, _WORDS).differs(0)
            with (
                k.when(k.convert("bitcast", some, f"i{_WORDS}").differs(0)),
                k.loop(block.index, k.least(block.index + _WORDS, last)) as word,
                self.sources(line[word.index]) as (lane, which),
            ):
                yield (word.index * BITS + lane) // self.inner, which

    @contextmanager
    def tiles(self, where: _Where) -> Iterator[_Tile]:
        """Run what is written inside for each tile of a chunk."""
        with self.k.loop(where.low, where.high, step=TILE) as tile:
            row = self.kinds.at(tile.index // TILE * 2)
            yield _Tile(tile.index, row[0], row[1])

    @contextmanager
    def blocks(self, count: Value) -> Iterator[tuple[Value, Value]]:
        """Run what is written inside for some lanes at once: the first, and how many are left."""
        with self.k.loop(0, count, step=LANES) as block:
            yield block.index, count - block.index

    def pack(self, line: Array, count: Value, words: Array, valid: Value) -> None:
        """Write the bits of the spikes of a tile in a step."""
        k = self.k
        with k.loop(0, count, step=BITS) as block:
            first, left = block.index, count - block.index

            def whole(first: Value = first) -> list[Value]:
                return [line.vector(first, BITS)]

            def rest(first: Value = first, left: Value = left) -> list[Value]:
                return [line.some(first, left, BITS)]

            (values,) = k.choose(left >= BITS, whole, rest)
            words[first // BITS] = k.convert("bitcast", values.differs(0.0), WORD) & valid

    def pointer(self, number: Value, element: str = "") -> Array:
        """Return the memory at an address."""
        return Array(self.k.convert("inttoptr", number, "ptr"), element or self.real)

    # Samples side by side

    @property
    def zero(self) -> Value:
        return self.k.literal(
            0.0, self.real if self.inner == 1 else f"<{self.inner} x {self.real}>"
        )

    def spread(self, value: Value) -> Value:
        return value if self.inner == 1 else self.k.spread(value, self.inner)

    def of(self, which: Value | None, value: Value) -> Value:
        """Return a value for the samples in a mask, and 0 for the others."""
        return value if which is None else self.k.select(which, value, 0.0, value.type)

    def summed(self, value: Value) -> Value:
        """Return the sum over samples."""
        if self.inner == 1:
            return value
        name = f"llvm.vector.reduce.fadd.v{self.inner}f{8 * self.item}"
        self.k.declared.add(f"declare {self.real} @{name}({self.real}, {value.type})")
        start = self.k.literal(-0.0, self.real)
        return self.k.value(f"call reassoc {self.real} @{name}({start}, {value})", self.real)


class _Kernels:
    """The kernels of all kinds of neurons: a table, and the block of the one that is called.

    A row has the address of the function, lengths and addresses of the block that it is given and
    of what changes in it, and two places in the block that the loop writes.
    """

    def __init__(self, loop: _Loop) -> None:
        self.loop, self.table = loop, loop.k.array(WORD)

    def begin(self) -> None:
        """Declare the memory of a block."""
        self.block = self.loop.k.scratch(WORD)

    def call(
        self,
        tile: _Tile,
        at: tuple[Value, Value],
        time: tuple[Operand, Value, Value],
        written: Mapping[tuple[int, int], Operand],
        scratch: Array | None = None,
    ) -> None:
        """Run over some steps of a tile.

        Args:
            tile: its lanes.
            at: the group and the window.
            time: values from a step to the next, steps, and those to the end of the sequence.
            written: what else is written, by which of the two places, and how far behind it.
            scratch: memory of the kernel.
        """
        k, block, (stride, every, steps) = self.loop.k, self.block, time
        row = self.table.at(tile.kind * KERNEL)
        template, patches = (self.loop.pointer(row[i], WORD) for i in (2, 4))
        with k.loop(0, row[1]) as each:
            block[each.index] = template[each.index]
        # the addresses of a tile, a group and a window
        with k.loop(0, row[3]) as each:
            patch = patches.at(each.index * 5)
            found = patch[1]
            for i, number in enumerate((tile.low, *at), 2):
                found = found + patch[i] * number
            block[patch[0]] = found
        for place in (_COLUMNS, _TILE, _NEURONS):
            block[place] = tile.count
        for place, value in ((_STRIDE, stride), (_STEPS, steps), (_EVERY, every)):
            block[place] = value
        for (which, behind), value in written.items():
            block[row[5 + which] + behind] = value
        own = "ptr null" if scratch is None else str(scratch.pointer)
        k.line(f"call void {self.loop.pointer(row[0]).pointer.text}({block.pointer}, {own}, i64 0)")


def _address(k: TaskWriter, array: Array) -> Value:
    return k.convert("ptrtoint", array.pointer, WORD)


# Forward


def loop_forward(k: TaskWriter, real: str, delayed: bool, inner: int) -> None:
    """Run neurons forward."""
    loop = _Loop(k, real, delayed, inner)
    ring, bias = _Ring(loop, k.array(real), k.array("i16")), k.array(real)
    given = _Given(loop)
    kept, dense = k.integers(2)
    neurons = _Kernels(loop)
    neurons.begin()
    own_x, own_output = k.scratch(real), k.scratch(real)
    item, lanes = loop.item, loop.lanes
    with loop.tasks() as where:
        first = where.number * loop["per_task"]
        last = k.least(first + loop["per_task"], loop["windows"])
        valid = loop.valid(where.group)
        with k.loop(first, last) as window:
            begin, end = loop.bounds(window.index)
            _deliver(loop, where, (window.index, begin), ring)
            with loop.tiles(where) as tile:
                at = where.group * loop["size"] + tile.low
                # in the memory of the thread, unless somebody wants it
                keeps, wanted = kept.differs(0), dense.differs(0)
                place = (begin * lanes + at) * item
                x = k.select(keeps, kept + place, _address(k, own_x))
                step = k.select(keeps, lanes, TILE)
                out = k.select(wanted, dense + place, _address(k, own_output))
                stride = k.select(wanted, lanes, TILE)
                with k.loop(begin, end) as time:
                    target = loop.pointer(x).at((time.index - begin) * step)
                    source = given.line(where, time.index, tile)
                    ring.empty((where.group, time.index, tile), (bias.at(tile.low), target), source)
                    given.add(where, time.index, tile, target)
                written = {(0, 0): x, (0, 1): step, (1, 0): out}
                steps = end - begin
                neurons.call(tile, (where.group, window.index), (stride, steps, steps), written)
                with k.loop(begin, end) as time:
                    line = loop.pointer(out).at((time.index - begin) * stride)
                    row = (time.index + loop["history"]) * loop["groups"] + where.group
                    words = loop.words.at(row * loop["words"] + tile.low // BITS)
                    loop.pack(line, tile.count, words, valid)


class _Given:
    """A sequence from outside: a value for every lane, and events by lane."""

    def __init__(self, loop: _Loop) -> None:
        self.loop, k = loop, loop.k
        self.memory, self.step, self.row, self.exists = k.integers(4)
        self.starts, self.neurons, self.values = k.array(WORD), k.array("i32"), k.array(loop.real)

    def line(self, where: _Where, time: Value, tile: _Tile) -> tuple[Value, Array]:
        """Return whether there is a value for each lane, and those of a tile in a step."""
        place = time * self.step + where.group * self.row + tile.low
        return self.memory.differs(0), self.loop.pointer(self.memory).at(place)

    def add(self, where: _Where, time: Value, tile: _Tile, target: Array) -> None:
        """Add the events of a step that reach a tile to what its neurons are given."""
        k, row = self.loop.k, time * self.loop["groups"] + where.group
        with k.when(self.exists.differs(0)):
            first, end = self.starts[row], self.starts[row + 1]
            # the first one that is not before the tile
            with k.repeat(lambda c: c[0] < c[1], first, end) as search:
                low_end, high_end = search.carried
                middle = (low_end + high_end) // 2
                before = self.neurons[middle] < tile.low
                search.next = (
                    k.select(before, middle + 1, low_end),
                    k.select(before, high_end, middle),
                )
            begin = search.carried[0]
            last = tile.low + tile.count

            def goes_on(carried: Sequence[Value]) -> Value:
                inside = carried[0] < end
                # behind the last one nothing is read
                place = k.select(inside, carried[0], first)
                found = k.choose(inside, lambda: [self.neurons[place]], lambda: [last])
                return found[0] < last

            with k.repeat(goes_on, begin) as each:
                (place,) = each.carried
                lane = self.neurons[place] - tile.low
                target[lane] = self.values[place] + target[lane]
                each.next = (place + 1,)


class _Ring:
    """Sums along edges for steps to come, and marks of runs of lanes: unmarked memory is 0."""

    def __init__(self, loop: _Loop, values: Array, marks: Array) -> None:
        self.loop, self.values, self.marks = loop, values, marks
        # with samples side by side something has come to nearly all
        self.has_marks = loop.inner == 1

    def row(self, group: Value, step: Value) -> Value:
        return group * self.loop["ring"] + step % self.loop["ring"]

    def add(self, row: Value, target: Value, value: Value) -> None:
        lane, inner = target * self.loop.inner, self.loop.inner
        place = row * self.loop["size"] + lane
        self.values.store(place, self.values.vector(place, inner) + value)
        if self.has_marks:
            self.marks[row * self.loop["words"] + lane // BITS] = 1

    def empty(
        self, at: tuple[Value, Value, _Tile], memory: tuple[Array, ...], given: tuple[Value, Array]
    ) -> None:
        """Write what the neurons of a tile are given in a step, and clear what has come."""
        k, (group, step, tile), (bias, target) = self.loop.k, at, memory
        row = self.row(group, step)
        fed = self.values.at(row * self.loop["size"] + tile.low)
        marks = self.marks.at(row * self.loop["words"] + tile.low // BITS)
        with k.loop(0, tile.count, step=BITS) as block:
            mark, left = marks.at(block.index // BITS), tile.count - block.index
            is_marked = mark[0].differs(0) if self.has_marks else k.literal(True, "i1")
            for lanes, condition in ((BITS, left >= BITS), (LANES, left < BITS)):
                with k.when(condition ^ is_marked & condition):
                    _write(self.loop, (block.index, left, lanes), (target, bias, None), given)
                with k.when(condition & is_marked):
                    _write(self.loop, (block.index, left, lanes), (target, bias, fed), given)
            with k.when(is_marked):
                mark[0] = 0


def _write(
    loop: _Loop,
    some: tuple[Operand, Value, int],
    memory: tuple[Array, Array | None, Array | None],
    given: tuple[Value, Array],
) -> None:
    """Write ``some`` lanes, first, left, at a time: what is given, and memory, the last cleared."""
    k, (first, left, lanes), (target, bias, fed) = loop.k, some, memory

    def read(array: Array, lane: Value, rest: Value) -> Value:
        return array.vector(lane, lanes) if lanes == BITS else array.some(lane, rest, lanes)

    stop = k.literal(first, WORD) + (BITS if lanes == BITS else left)
    with k.loop(first, stop, step=lanes) as block:
        lane, rest = block.index, stop - block.index
        zeros = k.literal(0.0, f"<{lanes} x {loop.real}>")
        total = zeros if fed is None else read(fed, lane, rest)
        total = total if bias is None else total + read(bias, lane, rest)

        def outside(lane: Value = lane, rest: Value = rest, total: Value = total) -> list[Value]:
            return [read(given[1], lane, rest) + total]

        (x,) = k.choose(given[0], outside, lambda total=total: [total])  # type: ignore[misc]
        for array, value in ((target, x), (fed, zeros)):
            if array is not None and lanes == BITS:
                array.store(lane, value)
            elif array is not None:
                array.store_some(lane, rest, value)


def _deliver(loop: _Loop, where: _Where, now: tuple[Value, Value], ring: _Ring) -> None:
    """Add what comes along the edges of those that fired in the window before, or in history."""
    k, (window, begin), history, delays = loop.k, now, loop["history"], loop.delays
    last = begin + history
    first = k.select(window.equals(0), 0, last - loop["window"])
    length = loop["ring"]
    with k.loop(first, last) as row:
        after = row.index + 1 - history  # negative in history

        def deliver(row: Value = row.index, after: Value = after) -> list[Value]:
            # what is not negative has the same remainder
            base = (after + length * (history + 1)) % length
            if delays is None:
                base = (base + loop["delay"]) % length
            own = where.group * length
            line = row * loop["groups"] + where.group
            with loop.events(line, 0, loop["words"]) as (source, which):
                edges = source * loop["chunks"] + where.chunk
                with k.loop(loop.starts[edges], loop.starts[edges + 1]) as edge:
                    target = loop.targets[edge.index]
                    weight = loop.of(which, loop.spread(loop.weight[edge.index]))
                    if delays is None:
                        ring.add(own + base, target, weight)
                    else:
                        delay = delays[edge.index]
                        with k.when(after + delay >= begin):
                            place = base + delay
                            place = k.select(place < length, place, place - length)
                            ring.add(own + place, target, weight)
            return []

        if delays is None:
            k.choose(after + loop["delay"] >= begin, deliver, list)
        else:
            deliver()


# Backward


def loop_backward(k: TaskWriter, real: str, delayed: bool, inner: int) -> None:
    """Run neurons backward."""
    loop = _Loop(k, real, delayed, inner)
    grads = k.array(real)
    given = _Given(loop)
    reach, neurons = _Kernels(loop), _Kernels(loop)
    reach.begin()
    neurons.begin()
    own, reached, private = k.scratch(real), k.scratch(real), k.scratch(real)
    with loop.tasks() as where:
        window = loop["windows"] - 1 - where.number
        (begin, end), valid = loop.bounds(window), loop.valid(where.group)
        with loop.tiles(where) as tile:
            at, steps = (where.group, window), end - begin
            reach.call(tile, at, (TILE, steps, steps), {(1, 0): _address(k, reached)})
            with k.loop(begin, end) as time:
                place = (time.index - begin) * TILE
                line = own.at(place)
                source = given.line(where, time.index, tile)
                _write(loop, (0, tile.count, LANES), (line, None, None), source)
                given.add(where, time.index, tile, line)
                with loop.blocks(tile.count) as (lane, left):
                    some = reached.at(place).some(lane, left, LANES).differs(0.0)
                    mask = k.convert("zext", k.convert("bitcast", some, f"i{LANES}"), WORD)
                    with loop.sources(mask & valid) as (first, which):
                        own_lane = lane + first
                        total = _gathered(loop, where, (time.index, tile.low + own_lane), grads)
                        now = line.vector(own_lane, inner) + loop.of(which, total)
                        line.store(own_lane, now)
            written: dict[tuple[int, int], Operand] = {(0, 0): _address(k, own), (0, 1): TILE}
            to_end = loop["behind"] + loop["steps"] - begin
            neurons.call(tile, at, (loop.lanes, steps, to_end), written, private)


def _gathered(loop: _Loop, where: _Where, at: tuple[Value, Value], grads: Array) -> Value:
    """Return the sum of what comes back along a source's edges; ``at`` are step and first lane."""
    k, (time, lane), chunks = loop.k, at, loop["chunks"]
    first = (time + 1) * loop.lanes + where.group * loop["size"]
    if loop.delays is None:
        first = first + loop["delay"] * loop.lanes
    line = grads.at(first)
    edges = lane // loop.inner * chunks
    with k.loop(loop.starts[edges], loop.starts[edges + chunks], loop.zero) as edge:
        place = loop.targets[edge.index] * loop.inner
        if loop.delays is not None:
            place = place + loop.delays[edge.index] * loop.lanes
        weight = loop.spread(loop.weight[edge.index])
        edge.next = (edge.carried[0] + weight * line.vector(place, loop.inner),)
    return edge.carried[0]


def loop_by_weight(k: TaskWriter, real: str, delayed: bool, inner: int) -> None:
    """Add to the gradient of the weights of some sources, a task of them, where they fired."""
    loop = _Loop(k, real, delayed, inner)
    delays, grads = loop.delays, k.array(real)
    history, groups, starts = loop["history"], loop["groups"], loop.starts
    low = k.number * loop["per_chunk"] // BITS
    high = k.least(low + loop["per_chunk"] // BITS, loop["words"])
    with k.loop(0, history + loop["steps"]) as row, k.loop(0, groups) as group:
        after = row.index + 1 - history

        def add(
            row: Value = row.index, group: Value = group.index, after: Value = after
        ) -> list[Value]:
            with loop.events(row * groups + group, low, high) as (source, which):
                edges = source * loop["chunks"]
                with k.loop(starts[edges], starts[edges + loop["chunks"]]) as edge:
                    delay = loop["delay"] if delays is None else delays[edge.index]
                    step = after + delay
                    with k.when((step >= 0) & (step < loop["steps"])):
                        place = step * loop.lanes + group * loop["size"]
                        place = place + loop.targets[edge.index] * inner
                        found = loop.summed(loop.of(which, grads.vector(place, inner)))
                        loop.weight[edge.index] = loop.weight[edge.index] + found
            return []

        if delays is None:
            step = after + loop["delay"]
            k.choose((step >= 0) & (step < loop["steps"]), add, list)
        else:
            add()
