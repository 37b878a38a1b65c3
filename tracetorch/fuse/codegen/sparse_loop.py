"""Run neurons in a loop along a list of edges, in LLVM IR: all steps, by events, on threads.

A *window* is as many steps as pass before a spike reaches any neuron: within one no neuron knows of
another. The neurons of a sample are *chunks* of as many lanes, and a task is a chunk in one window.
It adds what comes along edges from the spikes of the window before to the ``ring`` of what its own
neurons are given, runs the kernel of the neurons over the steps, tile by tile, and writes their
spikes as bits. Backward goes from the last window to the first: what comes back to an output is
gathered along its edges, unless the neuron does not let it through, as a surrogate of compact
support does nearly everywhere.

Tasks are taken in their order by whichever thread is free, and each waits until those that it
depends on are done: they have been taken by then, so that any number of threads comes to an end.
Every sum has one order: what a neuron is given, by time, source and then edge.

``bits`` are ``[steps, samples, words]``, a bit for each neuron; the steps before the first one of
the call, ``history``, come first. Edges are sorted by source and then by the chunk of the target:
those of a source to a chunk begin at ``starts[source * chunks + chunk]``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tracetorch.fuse.codegen.llvm_tasks import HEADER, TaskWriter
from tracetorch.fuse.codegen.llvm_writer import WORD, Array, Operand, Value

TILE = 512  # lanes that a kernel of neurons is called for
LANES = 16  # that are read at once
GROUP = 64  # of a word of bits, and of a mark
_WORDS = 8  # of bits that are looked at together
_SPINS = 1 << 8  # looks at a counter before another thread is let run
# places in the block of a kernel of neurons: the geometry, and then the sizes of time
_COLUMNS, _STRIDE, _ROWS, _GROUP, _TILE, _NEURONS, _INNER, _STEPS, _EVERY = range(
    HEADER, HEADER + 9
)
SIZES: tuple[str, ...] = (
    *("total", "samples", "chunks", "per_chunk", "windows", "per_task", "steps", "window"),
    *("size", "ring", "history", "delay", "words", "wait"),
)
_LINE = 8  # integers from the counter of a sample to that of the next


@dataclass(frozen=True)
class _Where:
    """A task: a chunk of a sample, in some windows."""

    number: Value
    sample: Value
    chunk: Value
    low: Value
    high: Value


class _Loop:
    """Sizes, tasks, edges and bits, as the kernels of both directions read them."""

    def __init__(self, k: TaskWriter, real: str) -> None:
        self.k, self.real = k, real
        self.size = dict(zip(SIZES, k.integers(len(SIZES)), strict=True))
        self.counters, self.words = k.array(WORD), k.array(WORD)
        self.starts, self.targets = k.array(WORD), k.array("i32")
        self.weight = k.array(real)

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
            chunks, samples = size["chunks"], size["samples"]
            number, rest = ticket // (chunks * samples), ticket % (chunks * samples)
            sample, chunk = rest // chunks, rest % chunks
            done = self.counters.at((sample + 1) * _LINE)
            self._wait(done, number * chunks)
            low = chunk * size["per_chunk"]
            yield _Where(number, sample, chunk, low, k.least(low + size["per_chunk"], size["size"]))
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

    @contextmanager
    def events(self, row: Value, sample: Value, first: Operand, last: Value) -> Iterator[Value]:
        """Run what is written inside for each source that fired, by words of bits."""
        k = self.k
        line = self.words.at((row * self.size["samples"] + sample) * self.size["words"])
        exact = Value(k, "true", "i1")
        with k.loop(first, last, step=_WORDS) as block:
            # nearly all are 0
            left = last - block.index
            some = line.some(block.index, left, _WORDS).differs(0)
            with (
                k.when(k.convert("bitcast", some, f"i{_WORDS}").differs(0)),
                k.loop(block.index, k.least(block.index + _WORDS, last)) as word,
                k.repeat(lambda carried: carried[0].differs(0), line[word.index]) as bit,
            ):
                (mask,) = bit.carried
                yield word.index * 64 + k.intrinsic("llvm.cttz.i64", WORD, mask, exact)
                bit.next = (mask & (mask - 1),)

    @contextmanager
    def tiles(self, where: _Where) -> Iterator[tuple[Value, Value]]:
        """Run what is written inside for each tile of a chunk: its first lane, and how many."""
        with self.k.loop(where.low, where.high, step=TILE) as tile:
            yield tile.index, self.k.least(where.high - tile.index, TILE)

    @contextmanager
    def blocks(self, count: Value) -> Iterator[tuple[Value, Value]]:
        """Run what is written inside for some lanes at once: the first, and how many are left."""
        with self.k.loop(0, count, step=LANES) as block:
            yield block.index, count - block.index

    def pack(self, line: Array, count: Value, words: Array) -> None:
        """Write the bits of the spikes of a tile in a step."""
        k = self.k
        with k.loop(0, count, step=GROUP) as group:
            first, left = group.index, count - group.index

            def whole(first: Value = first) -> list[Value]:
                return [line.vector(first, GROUP)]

            def rest(first: Value = first, left: Value = left) -> list[Value]:
                return [line.some(first, left, GROUP)]

            (values,) = k.choose(left >= GROUP, whole, rest)
            words[first // GROUP] = k.convert("bitcast", values.differs(0.0), WORD)

    def patch(
        self, block: Array, patches: tuple[Value, Array], place: tuple[Value, Value, Value]
    ) -> None:
        """Write the addresses of a tile, a sample and a window into the block of a kernel."""
        count, table = patches
        with self.k.loop(0, count) as each:
            row = table.at(each.index * 5)
            found = row[1]
            for i, number in enumerate(place, 2):
                found = found + row[i] * number
            block[row[0]] = found

    def pointer(self, number: Value) -> Array:
        """Return the memory at an address."""
        return Array(self.k.convert("inttoptr", number, "ptr"), self.real)

    def copied(self, block: Array, template: Array, length: Value) -> None:
        with self.k.loop(0, length) as each:
            block[each.index] = template[each.index]

    def call(
        self, function: Value, block: Array, scratch: Array | None, numbers: Mapping[Any, Operand]
    ) -> None:
        """Call a kernel of neurons on a tile, whose lanes are all of its columns."""
        for place, number in numbers.items():
            block[place] = number
        pointer = self.k.convert("inttoptr", function, "ptr")
        own = "ptr null" if scratch is None else str(scratch.pointer)
        self.k.line(f"call void {pointer.text}({block.pointer}, {own}, i64 0)")


class Kernel:
    """The block of a kernel of neurons: arguments of a loop, in order."""

    def __init__(self, loop: _Loop) -> None:
        k = loop.k
        self.loop = loop
        self.function, self.length, self.count = k.integers(3)
        self.template, self.patches = k.array(WORD), k.array(WORD)

    def begin(self) -> None:
        """Write what does not change into a block of the thread."""
        self.block = self.loop.k.scratch(WORD)
        self.loop.copied(self.block, self.template, self.length)

    def call(
        self,
        tile: tuple[Value, Value],
        at: tuple[Value, Value],
        stride: Operand,
        steps: Value,
        more: Mapping[Any, Operand],
        scratch: Array | None = None,
    ) -> None:
        """Run over some steps of a tile; ``at`` are the sample and the window."""
        low, count = tile
        self.loop.patch(self.block, (self.count, self.patches), (low, *at))
        numbers: dict[Any, Operand] = {
            _COLUMNS: count,
            _STRIDE: stride,
            _TILE: count,
            _NEURONS: count,
        }
        numbers |= {_STEPS: steps, _EVERY: steps, **more}
        self.loop.call(self.function, self.block, scratch, numbers)


def _address(k: TaskWriter, array: Array) -> Value:
    return k.convert("ptrtoint", array.pointer, WORD)


# Forward


def _forward(k: TaskWriter, real: str, delayed: bool) -> None:
    loop = _Loop(k, real)
    delays = k.array("i32") if delayed else None
    ring, bias = _Ring(loop, k.array(real), k.array("i16")), k.array(real)
    given, given_step, given_row = k.integers(3)
    incoming = _Incoming(k, real)
    kept, dense, output_place, input_place = k.integers(4)
    neurons = Kernel(loop)
    neurons.begin()
    own_x, own_output = k.scratch(real), k.scratch(real)
    item, size, lanes = 4 if real == "float" else 8, loop["size"], loop["size"] * loop["samples"]
    with loop.tasks() as where:
        first = where.number * loop["per_task"]
        last = k.least(first + loop["per_task"], loop["windows"])
        with k.loop(first, last) as window:
            begin, end = loop.bounds(window.index)
            _deliver(loop, where, (window.index, begin), ring, delays)
            with loop.tiles(where) as (low, count):
                at = where.sample * size + low
                # in the memory of the thread, unless somebody wants it
                keeps, wanted = kept.differs(0), dense.differs(0)
                place = (begin * lanes + at) * item
                x = k.select(keeps, kept + place, _address(k, own_x))
                step = k.select(keeps, lanes, TILE)
                out = k.select(wanted, dense + place, _address(k, own_output))
                stride = k.select(wanted, lanes, TILE)
                with k.loop(begin, end) as time:
                    source = (
                        given + (time.index * given_step + where.sample * given_row + low) * item
                    )
                    target = loop.pointer(x).at((time.index - begin) * step)
                    ring.empty(
                        (where.sample, time.index, low),
                        count,
                        (bias.at(low), target),
                        (given, source),
                    )
                    row = time.index * loop["samples"] + where.sample
                    incoming.add(row, low, count, target)
                more = {input_place: x, input_place + 1: step, output_place: out}
                steps = end - begin
                neurons.call((low, count), (where.sample, window.index), stride, steps, more)
                with k.loop(begin, end) as time:
                    line = loop.pointer(out).at((time.index - begin) * stride)
                    row = (time.index + loop["history"]) * loop["samples"] + where.sample
                    loop.pack(line, count, loop.words.at(row * loop["words"] + low // 64))


class _Incoming:
    """Events from outside: those of a step and a sample, in the order of the neurons."""

    def __init__(self, k: TaskWriter, real: str) -> None:
        self.k, self.exists = k, k.integer()
        self.starts, self.neurons, self.values = k.array(WORD), k.array("i32"), k.array(real)

    def add(self, row: Value, low: Value, count: Value, target: Array) -> None:
        """Add those of a row that reach a tile to what its neurons are given."""
        k = self.k
        with k.when(self.exists.differs(0)):
            first, end = self.starts[row], self.starts[row + 1]
            # the first one that is not before the tile
            with k.repeat(lambda c: c[0] < c[1], first, end) as search:
                low_end, high_end = search.carried
                middle = (low_end + high_end) // 2
                before = self.neurons[middle] < low
                search.next = (
                    k.select(before, middle + 1, low_end),
                    k.select(before, high_end, middle),
                )
            begin = search.carried[0]
            last = low + count

            def goes_on(carried: Sequence[Value]) -> Value:
                inside = carried[0] < end
                # behind the last one nothing is read
                place = k.select(inside, carried[0], first)
                found = k.choose(inside, lambda: [self.neurons[place]], lambda: [last])
                return found[0] < last

            with k.repeat(goes_on, begin) as each:
                (place,) = each.carried
                lane = self.neurons[place] - low
                target[lane] = self.values[place] + target[lane]
                each.next = (place + 1,)


class _Ring:
    """Sums along edges for the neurons of the steps to come, and marks of groups of lanes.

    Where a group is not marked nothing has come, and its memory is 0.
    """

    def __init__(self, loop: _Loop, values: Array, marks: Array) -> None:
        self.loop, self.values, self.marks = loop, values, marks

    def row(self, sample: Value, step: Value) -> Value:
        return sample * self.loop["ring"] + step % self.loop["ring"]

    def add(self, row: Value, lane: Value, value: Value) -> None:
        place = row * self.loop["size"] + lane
        self.values[place] = self.values[place] + value
        self.marks[row * self.loop["words"] + lane // 64] = 1

    def empty(
        self,
        at: tuple[Value, Value, Value],
        count: Value,
        memory: tuple[Array, Array],
        given: tuple[Value, Value],
    ) -> None:
        """Write what the neurons of a tile are given in a step, and clear what has come."""
        k, (sample, step, low), (bias, target) = self.loop.k, at, memory
        row = self.row(sample, step)
        fed = self.values.at(row * self.loop["size"] + low)
        marks = self.marks.at(row * self.loop["words"] + low // 64)
        with k.loop(0, count, step=GROUP) as group:
            mark, left = marks.at(group.index // GROUP), count - group.index
            is_marked = mark[0].differs(0)
            for lanes, condition in ((GROUP, left >= GROUP), (LANES, left < GROUP)):
                with k.when(condition ^ is_marked & condition):
                    self._write((group.index, left, lanes), None, (bias, target), given)
                with k.when(condition & is_marked):
                    self._write((group.index, left, lanes), fed, (bias, target), given)
            with k.when(is_marked):
                mark[0] = 0

    def _write(
        self,
        some: tuple[Value, Value, int],
        fed: Array | None,
        memory: tuple[Array, Array],
        given: tuple[Value, Value],
    ) -> None:
        """Write a group of lanes: all of them at once, or some at a time."""
        k, (first, left, lanes), (bias, target) = self.loop.k, some, memory

        def read(array: Array, lane: Value, rest: Value) -> Value:
            return array.vector(lane, lanes) if lanes == GROUP else array.some(lane, rest, lanes)

        stop = first + (GROUP if lanes == GROUP else left)
        with k.loop(first, stop, step=lanes) as block:
            lane, rest = block.index, stop - block.index
            shift = read(bias, lane, rest)
            zeros = k.literal(0.0, shift.type)
            total = (zeros if fed is None else read(fed, lane, rest)) + shift

            def outside(
                lane: Value = lane, rest: Value = rest, total: Value = total
            ) -> list[Value]:
                return [read(self.loop.pointer(given[1]), lane, rest) + total]

            (x,) = k.choose(given[0].differs(0), outside, lambda total=total: [total])  # type: ignore[misc]
            for array, value in ((target, x), (fed, zeros)):
                if array is not None and lanes == GROUP:
                    array.store(lane, value)
                elif array is not None:
                    array.store_some(lane, rest, value)


def _deliver(
    loop: _Loop, where: _Where, now: tuple[Value, Value], ring: _Ring, delays: Array | None
) -> None:
    """Add what comes along the edges of those that fired in the window before, or in history."""
    k, (window, begin), history = loop.k, now, loop["history"]
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
            own = where.sample * length
            with loop.events(row, where.sample, 0, loop["words"]) as source:
                edges = source * loop["chunks"] + where.chunk
                with k.loop(loop.starts[edges], loop.starts[edges + 1]) as edge:
                    target, weight = loop.targets[edge.index], loop.weight[edge.index]
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


def _backward(k: TaskWriter, real: str, delayed: bool) -> None:
    loop = _Loop(k, real)
    delays = k.array("i32") if delayed else None
    grads = k.array(real)
    given, given_step, given_row = k.integers(3)
    incoming = _Incoming(k, real)
    grad_place, out_place = k.integers(2)
    reach, neurons = Kernel(loop), Kernel(loop)
    reach.begin()
    neurons.begin()
    own, reached, private = k.scratch(real), k.scratch(real), k.scratch(real)
    item, lanes = 4 if real == "float" else 8, loop["size"] * loop["samples"]
    with loop.tasks() as where:
        window = loop["windows"] - 1 - where.number
        begin, end = loop.bounds(window)
        with loop.tiles(where) as (low, count):
            tile, at, steps = (low, count), (where.sample, window), end - begin
            reach.call(tile, at, TILE, steps, {out_place: _address(k, reached)})
            with k.loop(begin, end) as time:
                place = (time.index - begin) * TILE
                source = given + (time.index * given_step + where.sample * given_row + low) * item
                line = own.at(place)
                _copied(loop, count, line, (given, source))
                row = time.index * loop["samples"] + where.sample
                incoming.add(row, low, count, line)
                with loop.blocks(count) as (lane, left):
                    some = reached.at(place).some(lane, left, LANES).differs(0.0)
                    mask = k.convert("zext", k.convert("bitcast", some, "i16"), WORD)
                    with k.repeat(lambda carried: carried[0].differs(0), mask) as bit:
                        (rest,) = bit.carried
                        exact = Value(k, "true", "i1")
                        which = lane + k.intrinsic("llvm.cttz.i64", WORD, rest, exact)
                        total = _gathered(loop, where, (time.index, low + which), grads, delays)
                        line[which] = line[which] + total
                        bit.next = (rest & (rest - 1),)
            more = {grad_place: _address(k, own), grad_place + 1: k.literal(TILE, WORD)}
            neurons.call(tile, at, lanes, steps, more, private)


def _copied(loop: _Loop, count: Value, line: Array, given: tuple[Value, Value]) -> None:
    """Write the gradient of a step's outputs that comes from outside."""
    k = loop.k
    none = k.literal(0.0, f"<{LANES} x {loop.real}>")
    with loop.blocks(count) as (lane, left):

        def read(lane: Value = lane, left: Value = left) -> list[Value]:
            return [loop.pointer(given[1]).some(lane, left, LANES)]

        (found,) = k.choose(given[0].differs(0), read, lambda: [none])
        line.store_some(lane, left, found)


def _gathered(
    loop: _Loop,
    where: _Where,
    at: tuple[Value, Value],
    grads: Array,
    delays: Array | None,
) -> Value:
    """Return the sum of what comes back along the edges of a source to a step's output."""
    k, (time, source), chunks = loop.k, at, loop["chunks"]
    rows = loop["samples"] * loop["size"]
    first = (time + 1) * rows + where.sample * loop["size"]
    if delays is None:
        first = first + loop["delay"] * rows
    line = grads.at(first)
    edges = source * chunks
    zero = k.literal(0.0, loop.real)
    with k.loop(loop.starts[edges], loop.starts[edges + chunks], zero) as edge:
        place = loop.targets[edge.index]
        if delays is not None:
            place = place + delays[edge.index] * rows
        edge.next = (edge.carried[0] + loop.weight[edge.index] * line[place],)
    return edge.carried[0]


def _by_weight(k: TaskWriter, real: str, delayed: bool) -> None:
    """Add to the gradient of the weights of some sources, where they fired.

    ``weight`` is what is added to; a task is ``per_chunk`` sources, the tasks are ``total``.
    """
    loop = _Loop(k, real)
    delays = k.array("i32") if delayed else None
    grads = k.array(real)
    size, history, samples = loop["size"], loop["history"], loop["samples"]
    low = k.number * loop["per_chunk"] // 64
    high = k.least(low + loop["per_chunk"] // 64, loop["words"])
    rows = samples * size
    with k.loop(0, history + loop["steps"]) as row, k.loop(0, samples) as sample:
        after = row.index + 1 - history

        def add(
            row: Value = row.index, sample: Value = sample.index, after: Value = after
        ) -> list[Value]:
            with loop.events(row, sample, low, high) as source:
                edges = source * loop["chunks"]
                starts = loop.starts
                with k.loop(starts[edges], starts[edges + loop["chunks"]]) as edge:
                    delay = loop["delay"] if delays is None else delays[edge.index]
                    step = after + delay
                    with k.when((step >= 0) & (step < loop["steps"])):
                        place = step * rows + sample * size + loop.targets[edge.index]
                        loop.weight[edge.index] = loop.weight[edge.index] + grads[place]
            return []

        if delays is None:
            step = after + loop["delay"]
            k.choose((step >= 0) & (step < loop["steps"]), add, list)
        else:
            add()


def loop_forward(k: TaskWriter, real: str) -> None:
    """Run neurons forward, all edges of one delay."""
    _forward(k, real, False)


def loop_forward_delayed(k: TaskWriter, real: str) -> None:
    """Run neurons forward, each edge with a delay of its own."""
    _forward(k, real, True)


def loop_backward(k: TaskWriter, real: str) -> None:
    """Run neurons backward, all edges of one delay."""
    _backward(k, real, False)


def loop_backward_delayed(k: TaskWriter, real: str) -> None:
    """Run neurons backward, each edge with a delay of its own."""
    _backward(k, real, True)


def loop_by_weight(k: TaskWriter, real: str) -> None:
    """Add to the gradient of the weights of some sources, all edges of one delay."""
    _by_weight(k, real, False)


def loop_by_weight_delayed(k: TaskWriter, real: str) -> None:
    """Add to the gradient of the weights of some sources, each edge with a delay of its own."""
    _by_weight(k, real, True)
