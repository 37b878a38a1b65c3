"""Run neurons in a loop along a list of edges, in LLVM IR: all steps, by events, on threads.

A *window* is as many steps as pass before a spike reaches any neuron. A task is a chunk of a sample
in one window: it adds what comes along edges to the ``ring``, runs its neurons by tiles, and writes
spikes as bits. Each waits for those before it; every sum has one order, by time, source, edge.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import NamedTuple

from tracetorch.fuse.codegen.llvm_tasks import HEADER, TaskWriter
from tracetorch.fuse.codegen.llvm_writer import WORD, Array, Operand, Value

TILE = 512  # neurons that their kernel is called for
LANES = 16  # of them that are looked at together backward
BITS = 64  # of a word of bits, and neurons of a mark
_WORDS = 8  # of bits that are looked at together
_SPINS = 1 << 8  # looks at a counter before another thread is let run
# places in the block of a kernel of neurons: the geometry, and then the sizes of time
_COLUMNS, _STRIDE, _ROWS, _GROUP, _TILE, _NEURONS, _INNER, _STEPS, _EVERY = range(
    HEADER, HEADER + 9
)
SIZES: tuple[str, ...] = (
    *("total", "samples", "chunks", "per_chunk", "windows", "per_task", "steps", "window"),
    *("size", "ring", "history", "delay", "words", "wait", "behind"),
)
# Integers of a kernel of neurons: address of the function, length and address of the block, those
# of what changes in it with the tile, and two places in the block that the loop writes.
KERNEL = 7
LINE = 8  # integers from the counter of a sample to that of the next


class _Chunk(NamedTuple):
    """A chunk of a sample, in some windows."""

    number: Value
    sample: Value
    chunk: Value
    low: Value
    high: Value


class _Lanes(NamedTuple):
    """Neurons that a kernel is called for: the first, and how many."""

    low: Value
    width: Value


class _LoopWriter:
    """Sizes, tasks, edges and bits ``[history + steps, samples, words]``, in both directions."""

    def __init__(self, k: TaskWriter, real: str, delayed: bool) -> None:
        self.k, self.real = k, real
        self.size = dict(zip(SIZES, k.integers(len(SIZES)), strict=True))
        self.counters, self.bits = k.array(WORD), k.array(WORD)
        self.starts, self.targets = k.array(WORD), k.array("i32")
        self.weight = k.array(real)
        self.delays = k.array("i32") if delayed else None
        self.item = 4 if real == "float" else 8
        self.lanes = self.size["size"] * self.size["samples"]

    def __getitem__(self, name: str) -> Value:
        return self.size[name]

    def pointer(self, number: Value, element: str = "") -> Array:
        return Array(self.k.convert("inttoptr", number, "ptr"), element or self.real)

    def values(self, array: Array, first: Value, left: Value) -> Value:
        """Return as many neighbours as a word has bits, those that are not left as 0."""
        whole, some = array.vector, array.some
        (found,) = self.k.choose(
            left >= BITS, lambda: [whole(first, BITS)], lambda: [some(first, left, BITS)]
        )
        return found

    def store(self, array: Array, first: Value, left: Value, values: Value) -> None:
        """Write those of some neighbours that are left."""
        with self.k.when(left >= BITS):
            array.store(first, values)
        with self.k.when(left < BITS):
            array.store_some(first, left, values)

    def _added(self, place: Array) -> Value:
        return self.k.value(f"atomicrmw add {place.pointer}, i64 1 seq_cst", WORD)

    @contextmanager
    def tasks(self) -> Iterator[_Chunk]:
        """Run what is written inside for the tasks that nobody has taken, in their order."""
        k, size = self.k, self.size
        with k.repeat(lambda c: c[0] < size["total"], self._added(self.counters)) as each:
            (ticket,) = each.carried
            chunks, samples = size["chunks"], size["samples"]
            number, rest = ticket // (chunks * samples), ticket % (chunks * samples)
            sample, chunk = rest // chunks, rest % chunks
            done = self.counters.at((sample + 1) * LINE)
            self._wait(done, number * chunks)
            low = chunk * size["per_chunk"]
            yield _Chunk(number, sample, chunk, low, k.least(low + size["per_chunk"], size["size"]))
            self._added(done)
            each.next = (self._added(self.counters),)

    def _wait(self, done: Array, needed: Value) -> None:
        k = self.k

        def goes_on(carried: Sequence[Value]) -> Value:
            return k.value(f"load atomic i64, {done.pointer} acquire, align 8", WORD) < needed

        with k.repeat(goes_on, k.literal(0, WORD)) as spin:
            (count,) = spin.carried
            yields = (count % _SPINS).equals(_SPINS - 1) & self.size["wait"].differs(0)
            with k.when(yields):
                k.value(f"call i32 {self.pointer(self.size['wait']).pointer.text}()", "i32")
            spin.next = (count + 1,)

    def bounds(self, window: Value) -> tuple[Value, Value]:
        """Return the first step of a window, and the one behind its last."""
        begin = window * self.size["window"]
        return begin, self.k.least(begin + self.size["window"], self.size["steps"])

    @contextmanager
    def set_bits(self, mask: Value) -> Iterator[Value]:
        """Run what is inside for the number of each bit that is set."""
        k, exact = self.k, Value(self.k, "true", "i1")
        with k.repeat(lambda carried: carried[0].differs(0), mask) as bit:
            (left,) = bit.carried
            yield k.intrinsic("llvm.cttz.i64", WORD, left, exact)
            bit.next = (left & (left - 1),)

    @contextmanager
    def events(self, row: Value, first: Operand, last: Value) -> Iterator[Value]:
        """Run what is written inside for each source that fired, by words of bits."""
        k, line = self.k, self.bits.at(row * self.size["words"])
        with k.loop(first, last, step=_WORDS) as block:
            # nearly all are 0
            some = line.some(block.index, last - block.index, _WORDS).differs(0)
            with (
                k.when(k.convert("bitcast", some, f"i{_WORDS}").differs(0)),
                k.loop(block.index, k.least(block.index + _WORDS, last)) as word,
                self.set_bits(line[word.index]) as bit,
            ):
                yield word.index * BITS + bit

    @contextmanager
    def tiles(self, task: _Chunk) -> Iterator[_Lanes]:
        with self.k.loop(task.low, task.high, step=TILE) as tile:
            yield _Lanes(tile.index, self.k.least(task.high - tile.index, TILE))

    @contextmanager
    def blocks(self, count: Value, lanes: int = BITS) -> Iterator[tuple[Value, Value]]:
        """Run what is written inside for some neurons at once: the first, and how many are left."""
        with self.k.loop(0, count, step=lanes) as block:
            yield block.index, count - block.index


class _CalledKernel:
    """A kernel of neurons, and the block that it is given."""

    def __init__(self, loop: _LoopWriter) -> None:
        self.loop, self.numbers = loop, loop.k.integers(KERNEL)

    def begin(self) -> None:
        """Write the block into memory of the thread, which scratch is declared for."""
        self.block = self.loop.k.scratch(WORD)
        with self.loop.k.loop(0, self.numbers[1]) as each:
            self.block[each.index] = self.loop.pointer(self.numbers[2], WORD)[each.index]

    def call(
        self,
        tile: _Lanes,
        at: tuple[Value, Value],
        time: tuple[Operand, Value, Value],  # values from step to step, steps, those to the end
        written: Mapping[tuple[int, int], Operand],  # by one of two places, and how far behind it
        scratch: Array | None = None,
    ) -> None:
        """Run over some steps of a tile, ``at`` a sample and a window."""
        k, block, (stride, every, steps) = self.loop.k, self.block, time
        patches = self.loop.pointer(self.numbers[4], WORD)
        # the addresses of a tile, a sample and a window
        with k.loop(0, self.numbers[3]) as each:
            patch = patches.at(each.index * 5)
            found = patch[1]
            for i, number in enumerate((tile.low, *at), 2):
                found = found + patch[i] * number
            block[patch[0]] = found
        for place in (_COLUMNS, _TILE, _NEURONS):
            block[place] = tile.width
        for place, value in ((_STRIDE, stride), (_STEPS, steps), (_EVERY, every)):
            block[place] = value
        for (which, behind), value in written.items():
            block[self.numbers[5 + which] + behind] = value
        own = "ptr null" if scratch is None else str(scratch.pointer)
        function = self.loop.pointer(self.numbers[0]).pointer.text
        k.line(f"call void {function}({block.pointer}, {own}, i64 0)")


def _address(k: TaskWriter, array: Array) -> Value:
    return k.convert("ptrtoint", array.pointer, WORD)


class _Given:
    """A sequence from outside: a value for every neuron, and events."""

    def __init__(self, loop: _LoopWriter) -> None:
        self.loop, k = loop, loop.k
        self.memory, self.step, self.row, self.has_events = k.integers(4)
        self.starts, self.neurons, self.values = k.array(WORD), k.array("i32"), k.array(loop.real)

    def line(self, task: _Chunk, time: Value, tile: _Lanes) -> Array:
        place = time * self.step + task.sample * self.row + tile.low
        return self.loop.pointer(self.memory).at(place)

    def with_values(self, line: Array, some: tuple[Value, Value], total: Value) -> Value:
        """Return the sum with the values of a line, if there are any."""
        (found,) = self.loop.k.choose(
            self.memory.differs(0),
            lambda: [self.loop.values(line, *some) + total],
            lambda: [total],
        )
        return found

    def add_events(self, task: _Chunk, time: Value, tile: _Lanes, target: Array) -> None:
        """Add the events of a step that reach a tile to what its neurons are given."""
        loop, k = self.loop, self.loop.k
        with k.when(self.has_events.differs(0)):
            tiles = (loop["size"] + TILE - 1) // TILE
            place = (time * loop["samples"] + task.sample) * tiles + tile.low // TILE
            with k.loop(self.starts[place], self.starts[place + 1]) as each:
                lane = self.neurons[each.index] - tile.low
                target[lane] = self.values[each.index] + target[lane]


# Forward


def loop_forward(k: TaskWriter, real: str, delayed: bool) -> None:
    """Run neurons forward."""
    loop = _LoopWriter(k, real, delayed)
    ring, bias = _Ring(loop), k.array(real)
    given = _Given(loop)
    kept, dense = k.integers(2)
    neurons = _CalledKernel(loop)
    neurons.begin()
    own_x, own_output = k.scratch(real), k.scratch(real)
    item, lanes = loop.item, loop.lanes
    with loop.tasks() as task:
        first = task.number * loop["per_task"]
        last = k.least(first + loop["per_task"], loop["windows"])
        with k.loop(first, last) as window:
            begin, end = loop.bounds(window.index)
            _deliver(loop, task, (window.index, begin), ring)
            with loop.tiles(task) as tile:
                at = task.sample * loop["size"] + tile.low
                # in the memory of the thread, unless somebody wants it
                keeps, wanted = kept.differs(0), dense.differs(0)
                place = (begin * lanes + at) * item
                x = k.select(keeps, kept + place, _address(k, own_x))
                step = k.select(keeps, lanes, TILE)
                out = k.select(wanted, dense + place, _address(k, own_output))
                stride = k.select(wanted, lanes, TILE)
                with k.loop(begin, end) as time:
                    target = loop.pointer(x).at((time.index - begin) * step)
                    line = given.line(task, time.index, tile)
                    with ring.taken(task.sample, time.index, tile) as (lane, left, came):
                        total = came + bias.vector(tile.low + lane, BITS)
                        total = given.with_values(line, (lane, left), total)
                        loop.store(target, lane, left, total)
                    given.add_events(task, time.index, tile, target)
                written = {(0, 0): x, (0, 1): step, (1, 0): out}
                steps = end - begin
                neurons.call(tile, (task.sample, window.index), (stride, steps, steps), written)
                with k.loop(begin, end) as time:
                    line = loop.pointer(out).at((time.index - begin) * stride)
                    row = (time.index + loop["history"]) * loop["samples"] + task.sample
                    words = loop.bits.at(row * loop["words"] + tile.low // BITS)
                    with loop.blocks(tile.width) as (lane, left):
                        fired = loop.values(line, lane, left).differs(0.0)
                        words[lane // BITS] = k.convert("bitcast", fired, WORD)


class _Ring:
    """Sums along edges for steps to come, and marks of their words: unmarked ones are 0."""

    def __init__(self, loop: _LoopWriter) -> None:
        self.loop, self.values, self.marks = loop, loop.k.array(loop.real), loop.k.array("i16")

    def row(self, row: Value) -> tuple[Array, Array]:
        """Return the sums and the marks of a step."""
        words = row * self.loop["words"]
        return self.values.at(words * BITS), self.marks.at(words)

    @contextmanager
    def taken(
        self, sample: Value, step: Value, tile: _Lanes
    ) -> Iterator[tuple[Value, Value, Value]]:
        """Yield the first of some neurons, how many are left, and what has come: it is cleared."""
        loop, k = self.loop, self.loop.k
        row = sample * loop["ring"] + step % loop["ring"]
        values, marks = self.row(row)
        values, marks = values.at(tile.low), marks.at(tile.low // BITS)
        zeros = k.literal(0.0, f"<{BITS} x {loop.real}>")
        with loop.blocks(tile.width) as (lane, left):
            mark = marks.at(lane // BITS)

            def came(lane: Value = lane, mark: Array = mark) -> list[Value]:
                found = values.vector(lane, BITS)
                values.store(lane, zeros)
                mark[0] = 0
                return [found]

            yield lane, left, k.choose(mark[0].differs(0), came, lambda: [zeros])[0]


def _deliver(loop: _LoopWriter, task: _Chunk, now: tuple[Value, Value], ring: _Ring) -> None:
    """Add what comes along the edges of those that fired in the window before, or in history."""
    k, (window, begin), history, delays = loop.k, now, loop["history"], loop.delays
    last = begin + history
    first = k.select(window.equals(0), 0, last - loop["window"])
    length = loop["ring"]
    with k.loop(first, last) as row:
        after = row.index + 1 - history  # negative in history
        # what is not negative has the same remainder
        base = (after + length * (history + 1)) % length
        own = task.sample * length
        line = row.index * loop["samples"] + task.sample
        if delays is None:  # computed once for all edges
            reached = ring.row(own + (base + loop["delay"]) % length)
        reaches = nullcontext() if delays else k.when(after + loop["delay"] >= begin)
        with reaches, loop.events(line, 0, loop["words"]) as source:
            edges = source * loop["chunks"] + task.chunk
            with k.loop(loop.starts[edges], loop.starts[edges + 1]) as edge:
                target, weight = loop.targets[edge.index], loop.weight[edge.index]
                if delays is None:
                    _add(reached, target, weight)
                else:
                    delay = delays[edge.index]
                    with k.when(after + delay >= begin):
                        place = base + delay
                        place = k.select(place < length, place, place - length)
                        _add(ring.row(own + place), target, weight)


def _add(row: tuple[Array, Array], target: Value, value: Value) -> None:
    """Add to what a neuron is given in a step."""
    values, marks = row
    values[target] = values[target] + value
    marks[target // BITS] = 1


# Backward


def loop_backward(k: TaskWriter, real: str, delayed: bool) -> None:
    """Run neurons backward, window by window; edges of those that let nothing through rest."""
    loop = _LoopWriter(k, real, delayed)
    grads = k.array(real)
    given = _Given(loop)
    reach, neurons = _CalledKernel(loop), _CalledKernel(loop)
    reach.begin()
    neurons.begin()
    own, reached, private = k.scratch(real), k.scratch(real), k.scratch(real)
    zeros = k.literal(0.0, f"<{BITS} x {real}>")
    with loop.tasks() as task:
        window = loop["windows"] - 1 - task.number
        begin, end = loop.bounds(window)
        with loop.tiles(task) as tile:
            at, steps = (task.sample, window), end - begin
            reach.call(tile, at, (TILE, steps, steps), {(1, 0): _address(k, reached)})
            with k.loop(begin, end) as time:
                place = (time.index - begin) * TILE
                line, passes = own.at(place), reached.at(place)
                source = given.line(task, time.index, tile)
                with loop.blocks(tile.width) as (lane, left):
                    line.store(lane, given.with_values(source, (lane, left), zeros))
                given.add_events(task, time.index, tile, line)
                with loop.blocks(tile.width, LANES) as (lane, left):
                    some = passes.some(lane, left, LANES).differs(0.0)
                    mask = k.convert("zext", k.convert("bitcast", some, f"i{LANES}"), WORD)
                    with loop.set_bits(mask) as bit:
                        own_lane = lane + bit
                        total = _gathered(loop, task, (time.index, tile.low + own_lane), grads)
                        line[own_lane] = line[own_lane] + total
            written: dict[tuple[int, int], Operand] = {(0, 0): _address(k, own), (0, 1): TILE}
            to_end = loop["behind"] + loop["steps"] - begin
            neurons.call(tile, at, (loop.lanes, steps, to_end), written, private)


def _gathered(loop: _LoopWriter, task: _Chunk, at: tuple[Value, Value], grads: Array) -> Value:
    """Return the sum of what comes back along a source's edges; ``at`` are step and source."""
    k, (time, source), chunks = loop.k, at, loop["chunks"]
    first = (time + 1) * loop.lanes + task.sample * loop["size"]
    if loop.delays is None:
        first = first + loop["delay"] * loop.lanes
    line = grads.at(first)
    edges = source * chunks
    zero = k.literal(0.0, loop.real)
    with k.loop(loop.starts[edges], loop.starts[edges + chunks], zero) as edge:
        place = loop.targets[edge.index]
        if loop.delays is not None:
            place = place + loop.delays[edge.index] * loop.lanes
        edge.next = (edge.carried[0] + loop.weight[edge.index] * line[place],)
    return edge.carried[0]


def loop_by_weight(k: TaskWriter, real: str, delayed: bool) -> None:
    """Add to the gradient of the weights of some sources, a task of them, where they fired."""
    loop = _LoopWriter(k, real, delayed)
    delays, grads = loop.delays, k.array(real)
    history, samples, starts = loop["history"], loop["samples"], loop.starts

    def inside(step: Value) -> AbstractContextManager[None]:
        return k.when((step >= 0) & (step < loop["steps"]))

    low = k.number * loop["per_chunk"] // BITS
    high = k.least(low + loop["per_chunk"] // BITS, loop["words"])
    with k.loop(0, history + loop["steps"]) as row, k.loop(0, samples) as sample:
        after = row.index + 1 - history
        reaches = nullcontext() if delays else inside(after + loop["delay"])
        with reaches, loop.events(row.index * samples + sample.index, low, high) as source:
            edges = source * loop["chunks"]
            with k.loop(starts[edges], starts[edges + loop["chunks"]]) as edge:
                step = after + (delays[edge.index] if delays else loop["delay"])
                with inside(step):
                    place = step * loop.lanes + sample.index * loop["size"]
                    found = grads[place + loop.targets[edge.index]]
                    loop.weight[edge.index] = loop.weight[edge.index] + found
