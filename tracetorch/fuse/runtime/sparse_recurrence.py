"""Run the loop of neurons along a list of edges on the CPU: segments, memory and kernels around it.

Forward keeps the spikes of every step as bits, and the states before every segment. Backward
computes a segment again from there: the states before each window, and what neurons were given,
unless the caller has that for every step. Nothing has a value for every step and neuron but what
the caller gives or wants so.
"""

from __future__ import annotations

import ctypes
import functools
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

from tracetorch.fuse.codegen import sparse_loop
from tracetorch.fuse.codegen.llvm_kernel import Printed, print_kernel
from tracetorch.fuse.codegen.llvm_tasks import HEADER
from tracetorch.fuse.codegen.sparse_loop import BITS, TILE
from tracetorch.fuse.ir import schedule as schedules
from tracetorch.fuse.ir.kernel import Kernel as Schedule
from tracetorch.fuse.ir.plan import Plan
from tracetorch.fuse.runtime.allocation import large_empty
from tracetorch.fuse.runtime.cpu import own_buffers, parameter_gradients, scratch_values
from tracetorch.fuse.runtime.layout import layout_of, strided
from tracetorch.fuse.runtime.machine_code import compiled, this_machine
from tracetorch.fuse.runtime.written_kernels import run_written

_MOST_STEPS = 32  # of a window, so that what a tile is given stays in a core's cache
_CHUNKS = 8  # of a row, where there are few: enough to share out among threads
_LEAST = 8  # tiles of a chunk where samples lie side by side: those of a source are read together
_BESIDE = 16, 8  # samples that may lie side by side
_SEGMENT = 1 << 27  # bytes of what a segment of more steps than the root computes again
_WORDS = 1 << 20  # of spikes that are listed at once
_LONG = 1 << 12  # steps whose events from outside are there at once, where nothing is kept
_PAIRS = 1 << 22  # edges and samples at a time, in the gradient of the outputs before the first


@dataclass(frozen=True)
class Layout:
    """Layout of neurons in memory: ``[..., samples, neurons]`` as ``[..., groups, lanes]``.

    ``inner`` samples are a group, side by side, and a row has a *slot* of as many lanes for each
    neuron. Neurons of each population begin with a tile.
    """

    sizes: tuple[int, ...]
    samples: int
    inner: int = 1

    @classmethod
    def beside(cls, sizes: tuple[int, ...], samples: int) -> Layout:
        """Return one that puts as many samples side by side as fill their groups."""
        least = -(-samples // _BESIDE[-1]) * _BESIDE[-1]
        inner = next((each for each in _BESIDE if least % each == 0), 1)
        return cls(sizes, samples, inner if samples > _BESIDE[-1] // 2 else 1)

    @cached_property
    def begins(self) -> tuple[int, ...]:
        """The first slot of each population, and the one behind the last of all."""
        every = TILE // self.inner
        rounded = [-(-size // every) * every for size in self.sizes[:-1]]
        first = tuple(accumulate(rounded, initial=0))
        return *first, first[-1] + self.sizes[-1]

    @property
    def slots(self) -> int:
        """Slots of a row."""
        return self.begins[-1]

    @property
    def lanes(self) -> int:
        """Lanes of a row."""
        return self.slots * self.inner

    @property
    def groups(self) -> int:
        """Rows of a step."""
        return -(-self.samples // self.inner)

    @property
    def words(self) -> int:
        """Words of the bits of a row."""
        return -(-self.lanes // BITS)

    @property
    def valid(self) -> int:
        """Lanes of a word, as bits, that are of samples that there are, in the last group."""
        some = (1 << self.samples - (self.groups - 1) * self.inner) - 1
        whole = sum(some << first for first in range(0, BITS, self.inner))
        return whole - (whole >> BITS - 1 << BITS)

    @cached_property
    def chunks(self) -> tuple[int, int]:
        """Chunks of a row, and their lanes. One: a source's edges have one thread, none waits."""
        tiles = -(-self.lanes // TILE)
        most = tiles if self.inner == 1 else max(1, tiles // _LEAST)
        count = 1 if self.groups >= _CHUNKS else min(most, -(-_CHUNKS // self.groups))
        per_chunk = -(-tiles // count) * TILE
        return -(-self.lanes // per_chunk), per_chunk

    @cached_property
    def places(self) -> Tensor:
        """The slot of each neuron."""
        each = zip(self.begins, self.sizes, strict=False)
        return torch.cat([torch.arange(n, n + size, device="cpu") for n, size in each])

    @cached_property
    def kinds(self) -> Tensor:
        """The number of lanes of each tile, and the population that they are of."""
        rows = []
        for i, size in enumerate(self.sizes):
            lanes = size * self.inner
            rows += [(min(TILE, lanes - low), i) for low in range(0, lanes, TILE)]
        return _integers(rows)

    @property
    def is_plain(self) -> bool:
        """Whether values lie as they are given."""
        return self.inner == len(self.sizes) == 1

    def of(self, population: int) -> Layout:
        """Return the layout of a population by itself."""
        return Layout(self.sizes[population : population + 1], self.samples, self.inner)

    def enter(self, values: Tensor, lanes: Tensor | None = None) -> Tensor:
        """Write values ``[..., samples, neurons]`` by lane, ``[..., groups, lanes]``."""
        if lanes is None:
            lanes = values.new_zeros(*values.shape[:-2], self.groups, self.lanes)
        for lane, value in self._pairs(lanes, values):
            lane.copy_(value)
        return lanes

    def leave(self, lanes: Tensor, values: Tensor | None = None) -> Tensor:
        """Write values ``[..., groups, lanes]`` by sample and neuron."""
        if values is None:
            values = lanes.new_empty(*lanes.shape[:-2], self.samples, sum(self.sizes))
        for lane, value in self._pairs(lanes, values):
            value.copy_(lane)
        return values

    def _pairs(self, lanes: Tensor, values: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield parts of the memory by lane and by neuron that have the same values."""
        apart = lanes.view(*lanes.shape[:-1], self.slots, self.inner)
        samples, (whole, rest) = self.samples, divmod(self.samples, self.inner)
        for begin, part in zip(self.begins, values.split_with_sizes(self.sizes, -1), strict=False):
            own = apart[..., begin : begin + part.shape[-1], :]
            shape = (*part.shape[:-2], whole, self.inner, part.shape[-1])
            yield own[..., :whole, :, :], part[..., : samples - rest, :].view(shape).mT
            if rest:
                yield own[..., whole, :, :rest], part[..., -rest:, :].mT

    def by_lane(self, values: Tensor) -> Tensor:
        """Return a value for each neuron ``[neurons]`` as one for each lane."""
        one = Layout(self.sizes, self.inner, self.inner)
        return one.enter(values.reshape(1, -1).expand(self.inner, -1)).reshape(-1)


class Edges(NamedTuple):
    """Edges sorted by source and then by the chunk of the target."""

    starts: Tensor  # ``[sources * chunks + 1]`` int64
    targets: Tensor  # ``[E]`` int32
    delays: Tensor | None  # ``[E]`` int32; ``None``: all have ``delay``
    order: Tensor | None  # place of each edge in the weights, ``[E]``; ``None``: its own
    least: int  # the smallest delay
    most: int  # the largest delay


class Rows(NamedTuple):
    """Events of some steps, by lane; of step t and group g from ``starts[t * groups + g]``."""

    starts: Tensor  # ``[steps * groups + 1]`` int64
    lanes: Tensor  # ``[n]`` int32
    values: Tensor  # ``[n]``


class Part(NamedTuple):
    """A sequence from one step to another: the sum of what there is."""

    values: Tensor | None = None  # ``[steps, groups, lanes]``
    rows: Rows | None = None


Sequences: TypeAlias = "Callable[[int, int], Part]"
"""Returns a part of a sequence, from a step to before another."""


@dataclass(frozen=True)
class Population:
    """Neurons of one kind: the plan of their kernels, their layout, and their parameters."""

    plan: Plan
    layout: Layout
    params: Sequence[Tensor]

    @cached_property
    def by_lane(self) -> list[Tensor]:
        """Parameters, with a value for each lane where they have one for each neuron."""
        return [self.layout.by_lane(p) if p.numel() > 1 else p for p in self.params]

    @property
    def states(self) -> tuple[str, ...]:
        """Names of the states."""
        return self.plan.program.states


@dataclass(frozen=True, eq=False)
class Loop:
    """Sizes of one call, and what all its kernels read; ``edges`` and weights in memory's order."""

    populations: Sequence[Population]
    layout: Layout
    edges: Edges
    weight: Tensor
    bias: Tensor
    steps: int

    @property
    def dtype(self) -> torch.dtype:
        """Of the arithmetic."""
        return self.populations[0].plan.program.dtype

    @property
    def states(self) -> int:
        """Most states of a population: as many have memory, of all lanes."""
        return max(len(each.states) for each in self.populations)

    @property
    def taps(self) -> int:
        """Steps from a spike to the last one that it reaches."""
        return self.edges.most + 1

    @property
    def window(self) -> int:
        """Steps in which no neuron knows of another."""
        return max(1, min(self.edges.least + 1, _MOST_STEPS, self.steps))

    @property
    def row(self) -> tuple[int, int]:
        """Shape of a step."""
        return self.layout.groups, self.layout.lanes

    @property
    def lanes(self) -> int:
        """Lanes of a step."""
        return math.prod(self.row)

    def segments(self, least: int = 1) -> list[tuple[int, int]]:
        """Segments of whole windows, first step and end: the root of all, more if memory lasts."""
        states = self.states / self.window
        few = int(_SEGMENT / ((states + 3) * self.lanes * self.dtype.itemsize))
        every = max(self.taps, math.isqrt(self.steps), min(few, self.steps), least)
        every = -(-every // self.window) * self.window
        return [(t, min(t + every, self.steps)) for t in range(0, self.steps, every)]

    def span(self, population: int) -> slice:
        """Return the lanes of a population."""
        inner, begin = self.layout.inner, self.layout.begins[population]
        return slice(begin * inner, (begin + self.layout.sizes[population]) * inner)


# Kernels of neurons


class _Called(NamedTuple):
    """A kernel of neurons that other kernels call."""

    address: int
    printed: Printed
    literals: Tensor
    own: tuple[tuple[int, tuple[int, ...]], ...]


def _called(plan: Plan, name: str, build: Callable[[Any], Schedule]) -> _Called:
    kernel: _Called | None = plan.kernels.get(name)
    if kernel is None:
        schedule = build(plan)
        printed = print_kernel(schedule, this_machine().processor, called=True)
        literals = torch.tensor(plan.literals, dtype=plan.program.dtype, device="cpu")
        address = compiled(printed.text, printed.name).address
        kernel = _Called(address, printed, literals, own_buffers(schedule))
        plan.kernels[name] = kernel
    return kernel


class _Memory(NamedTuple):
    """Memory of a buffer of a kernel of neurons: an address, and bytes from one to the next."""

    start: int
    lane: int = 0
    sample: int = 0
    window: int = 0


class _Table(NamedTuple):
    """Kernels of all populations as the loop takes them; the tensors are kept alive."""

    rows: Tensor
    nbytes: int  # of the largest block
    values: int  # values of scratch of the one that has most
    alive: list[Tensor]


def _table(
    loop: Loop,
    name: str,
    build: Callable[[Any], Schedule],
    memory: Callable[[Population], Mapping[str, _Memory]],
    places: tuple[str, str],
) -> _Table:
    """Return each population's kernel, made by ``build``; ``places`` are what the loop writes."""
    rows, alive, values = [], [], 0
    for i, population in enumerate(loop.populations):
        kernel = _called(population.plan, name, build)
        names = kernel.printed.arguments
        at = {each: HEADER + place for place, each in enumerate(names)}
        template = [0] * (HEADER + len(names))
        for each in ("rows", "per_group", "inner", "segments"):
            template[at[each]] = 1
        found = {"literals": _Memory(kernel.literals.data_ptr()), **memory(population)}
        low = loop.span(i).start
        for each, value in zip(population.plan.program.params, population.by_lane, strict=True):
            size = value.itemsize if value.numel() > 1 else 0
            found[f"parameter_{each}"] = _Memory(value.data_ptr() - low * size, size)
            template[at[f"parameter_{each}.size"]] = value.numel()
        if "input_x" in found:
            template[at["input_x.step"]] = loop.lanes
        # those that are not here change with the thread, and the loop writes them itself
        patches = [[at[each], *place] for each, place in found.items() if each in at]
        tables = [
            torch.tensor(each, dtype=torch.int64, device="cpu") for each in (template, patches)
        ]
        sizes = [(len(each), each.data_ptr()) for each in tables]
        rows.append([kernel.address, *sizes[0], *sizes[1], *(at.get(each, 0) for each in places)])
        alive += tables
        every = (loop.window, loop.window, 1)
        values = max(values, scratch_values(kernel.own, every, kernel.printed.width))
    largest = max(row[1] for row in rows)
    return _Table(_integers(rows), largest * 8, values, alive)


def _integers(values: Sequence[Any]) -> Tensor:
    return torch.tensor(values, dtype=torch.int64, device="cpu")


def _of_step(loop: Loop, tensor: Tensor, window: int = 0) -> _Memory:
    """Return the memory of a value for each neuron, ``window`` bytes apart."""
    item = loop.dtype.itemsize
    return _Memory(tensor.data_ptr(), item, loop.layout.lanes * item, window)


@functools.cache
def _yield() -> int:
    """Return the address of the function that lets another thread run; 0: there is none."""
    if sys.platform == "win32":
        return 0
    try:
        function = ctypes.CDLL(None).sched_yield
    except (OSError, AttributeError):
        return 0
    return ctypes.cast(function, ctypes.c_void_p).value or 0


def _sizes(loop: Loop, steps: int, per_task: int, behind: int = 0) -> tuple[int, ...]:
    """Return the sizes of a call over some steps, in the order of ``sparse_loop.SIZES``."""
    edges, layout = loop.edges, loop.layout
    windows = -(-steps // loop.window)
    total = -(-windows // per_task) * layout.groups * layout.chunks[0]
    first = (total, layout.groups, layout.chunks[0], layout.chunks[1], windows, per_task)
    more = (steps, loop.window, layout.lanes, edges.most + loop.window, loop.taps, edges.most)
    return *first, *more, layout.words, _yield(), layout.valid, behind


def _run(
    loop: Loop,
    write: Callable[..., None],
    sizes: tuple[int, ...],
    bits: Tensor,
    weight: Tensor,
    letters: str,
    *arguments: int | Tensor,
    tasks: int = 0,
    scratch: Sequence[int] = (),
) -> None:
    """Run a kernel of the loop; ``bits`` begin with the history of the first step."""
    edges, layout = loop.edges, loop.layout
    counters = torch.zeros((layout.groups + 1) * 8, dtype=torch.int64)
    delays = () if edges.delays is None else (edges.delays,)
    run_written(
        write,
        "i" * len(sizes) + "llllnr" + "n" * len(delays) + letters,
        loop.dtype,
        tasks or torch.get_num_threads(),
        *sizes,
        *(counters, bits, layout.kinds, edges.starts, edges.targets, weight, *delays),
        *arguments,
        work=len(bits) * loop.lanes * 16,
        scratch=scratch,
        form=(bool(delays), layout.inner),
    )


# Forward


class Kept(NamedTuple):
    """Results of a forward pass that the backward pass reads."""

    bits: Tensor
    checkpoints: Tensor  # ``[segments, states, groups, lanes]``
    drive: Tensor | None  # the sum that each step was given, where there is memory for it


def packed(loop: Loop, first: Tensor, steps: int) -> Tensor:
    """Return bits of the outputs ``[taps, ...]`` before the first step, and of steps to come."""
    layout = loop.layout
    bits = torch.zeros(loop.taps + steps, layout.groups, layout.words, dtype=torch.int64)
    rows = layout.enter(first).view(-1, layout.lanes).numpy() != 0
    rows = np.packbits(rows, axis=1, bitorder="little")
    memory = bits[: loop.taps].view(-1, layout.words).numpy().view(np.uint8)
    memory[:, : rows.shape[1]] = rows
    return bits


def _outside(loop: Loop, part: Part) -> tuple[Tensor | None, tuple[int | Tensor, ...]]:
    """Return memory to keep alive, and the arguments of a sequence: strides, and its events."""
    none = Rows(loop.edges.starts[:0], loop.edges.targets[:0], loop.weight[:0])
    events = (int(part.rows is not None), *(part.rows or none))
    values = part.values
    if values is None:
        return None, (0, 0, 0, *events)
    if not any(values.stride()):  # one value, as the gradient of a sum: a row stands for all
        flat = values[0, 0].contiguous()
        return flat, (flat.data_ptr(), 0, 0, *events)
    flat, step, row = strided(values, layout_of(values, -1)._replace(in_order=True))
    return flat, (flat.data_ptr(), step, row, *events)


_OUTSIDE = "iiiilnr"  # letters of these


def _advance(
    loop: Loop,
    bits: Tensor,
    given: Part,
    states: Tensor,
    steps: int,
    *,
    output: Tensor | None = None,
    kept: Tensor | None = None,
) -> None:
    """Run the neurons over some steps, whose history ``bits`` begin with; ``states`` go on."""
    window = states[0].nbytes if len(states) > 1 else 0

    def memory(population: Population) -> dict[str, _Memory]:
        found: dict[str, _Memory] = {}
        for i, name in enumerate(population.states):
            found[f"start_{name}"] = _of_step(loop, states[0, i], window)
            found[f"end_{name}"] = _of_step(loop, states[-1 if not window else 1, i], window)
        return found

    places = "input_x", "output"
    table = _table(loop, "called forward", schedules.forward_kernel, memory, places)
    edges, layout = loop.edges, loop.layout
    length = edges.most + loop.window
    ring = large_empty((layout.groups, length, layout.lanes), loop.dtype).zero_()
    marks = torch.zeros(layout.groups * length * layout.words, dtype=torch.int16)
    flat, outside = _outside(loop, given)
    tile = loop.window * TILE * loop.dtype.itemsize
    _run(
        loop,
        sparse_loop.loop_forward,
        _sizes(loop, steps, -(-steps // loop.window) if layout.chunks[0] == 1 else 1),
        bits,
        loop.weight,
        "rir" + _OUTSIDE + "iil",
        *(ring, marks.data_ptr(), loop.bias, *outside),
        *(0 if each is None else each.data_ptr() for each in (kept, output)),
        table.rows,
        scratch=(table.nbytes, tile, tile),
    )
    del flat, marks, table


def forward(
    loop: Loop,
    given: Sequences,
    first: Tensor,
    states: Sequence[Tensor],
    *,
    output: Tensor | None = None,
    drive: Tensor | None = None,
    keep: bool,
    seen: Callable[[int, Tensor], None] | None = None,
) -> tuple[list[Tensor], Kept]:
    """Run all steps; return the final states, and what the backward pass needs.

    ``states`` are those of each population in turn, and ``first`` the outputs, before the first
    step. Outputs, and the sum that each step is given, are written where there is memory for them.
    ``seen`` is called with the first of some steps and their spikes, in order.
    """
    now = torch.zeros(1, loop.states, *loop.row, dtype=loop.dtype)
    parts = _by_population(loop, now[0])
    for (layout, part), state in zip(parts, states, strict=True):
        layout.enter(state, part)
    # values of samples side by side are copied, so that few steps are there at once
    least = 1 if keep or loop.layout.inner > 1 else _LONG
    segments, taps = loop.segments(least), loop.taps
    longest = max(end - begin for begin, end in segments)
    bits = packed(loop, first, loop.steps if keep else longest)
    checkpoints = large_empty((len(segments) * keep, *now.shape[1:]), loop.dtype)
    for i, (begin, end) in enumerate(segments):
        if keep:
            checkpoints[i] = now[0]
        elif i:  # the memory of the segment before
            bits[:taps] = bits[longest : longest + taps].clone()
        part = bits[begin:] if keep else bits
        whole = [None if each is None else each[begin:end] for each in (output, drive)]
        steps = end - begin
        _advance(loop, part, given(begin, end), now, steps, output=whole[0], kept=whole[1])
        if seen is not None:
            seen(begin, part[taps : taps + steps])
    return [layout.leave(part) for layout, part in parts], Kept(bits, checkpoints, drive)


def _by_population(loop: Loop, states: Tensor) -> list[tuple[Layout, Tensor]]:
    """Return the layout and the memory of the states of each population in turn."""
    found = []
    for i, each in enumerate(loop.populations):
        found += [(each.layout, states[j, :, loop.span(i)]) for j in range(len(each.states))]
    return found


# Backward


class Wanted(NamedTuple):
    """The gradients that somebody wants, besides those of states and parameters."""

    given: bool
    first: bool
    weight: bool
    bias: bool


class Gradients(NamedTuple):
    """Gradients of a backward pass; ``None``: nobody wants them."""

    first: Tensor | None
    weight: Tensor | None
    bias: Tensor | None
    states: list[Tensor]  # of each population in turn
    params: list[dict[str, Tensor]]  # of each population, by name


def backward(
    loop: Loop,
    given: Sequences,
    kept: Kept,
    grads: tuple[Sequences, Sequence[Tensor | None]],
    wanted: Wanted,
    seen: Callable[[int, Tensor], None],
) -> Gradients:
    """Return the gradients, from those of outputs and of final states.

    ``seen`` is called with the first of some steps and the gradient of what they are given, from
    the last ones on.
    """
    g_output, g_ends = grads
    layout, dtype = loop.layout, loop.dtype
    cotangents = torch.zeros(loop.states, *loop.row, dtype=dtype)
    ends = _by_population(loop, cotangents)
    for (one, cotangent), grad in zip(ends, g_ends, strict=True):
        if grad is not None:
            one.enter(grad, cotangent)
    shape = (layout.groups, len(layout.kinds), _trained(loop) * TILE)
    sums = torch.zeros(shape, dtype=torch.float64)
    d_bias = torch.zeros(loop.row, dtype=dtype) if wanted.bias else None
    d_weight = large_empty((len(loop.weight),), dtype).zero_() if wanted.weight else None
    tail = torch.zeros(loop.taps, *loop.row, dtype=dtype)
    for i, (begin, end) in reversed(list(enumerate(loop.segments()))):
        steps = end - begin
        windows = -(-steps // loop.window)
        states = large_empty((windows + 1, *cotangents.shape), dtype)
        states[0] = kept.checkpoints[i]
        if kept.drive is None:
            x = large_empty((steps, *loop.row), dtype)
            _advance(loop, kept.bits[begin:], given(begin, end), states, steps, kept=x)
        else:
            x = kept.drive[begin:end]
            _advance(_without_edges(loop), kept.bits[begin:], Part(x), states, steps)
        d_part = large_empty((steps + loop.taps, *loop.row), dtype)
        d_part[steps:] = tail
        for j, population in enumerate(loop.populations):
            if not population.plan.differentiated:  # nothing comes back to its input
                d_part[:steps, :, loop.span(j)] = 0
        past = x, states, g_output(begin, end)
        _back(loop, (steps, loop.steps - end), past, (cotangents, d_part, sums))
        if d_weight is not None:
            _add_by_weight(loop, kept.bits[begin:], d_part, d_weight, steps)
        if d_bias is not None:
            d_bias += d_part[:steps].sum(0)
        seen(begin, d_part[:steps])
        tail = d_part[: loop.taps]
    d_first = _by_first(loop, tail) if wanted.first else None
    if d_weight is not None and loop.edges.order is not None:
        d_weight = torch.empty_like(d_weight).index_copy_(0, loop.edges.order.long(), d_weight)
    if d_bias is not None:
        d_bias = layout.leave(d_bias).sum(0)
    with np.errstate(all="ignore"):  # gradients that are not finite are the user's to find
        totals = _totals(loop, sums)
        each = zip(loop.populations, totals, strict=True)
        d_params = [parameter_gradients(one.plan, one.params, total) for one, total in each]
    of_states = [one.leave(cotangent) for one, cotangent in ends]
    return Gradients(d_first, d_weight, d_bias, of_states, d_params)


def _without_edges(loop: Loop) -> Loop:
    """Return a call in which neurons are given what comes from outside alone."""
    edges = loop.edges._replace(starts=torch.zeros_like(loop.edges.starts))
    return replace(loop, edges=edges, bias=torch.zeros_like(loop.bias))


def _trained(loop: Loop) -> int:
    """Return the most parameters of a population that learn, at least one."""
    return max(1, *(len(each.plan.trained) for each in loop.populations))


def _back(
    loop: Loop,
    time: tuple[int, int],
    past: tuple[Tensor, Tensor, Part],
    results: tuple[Tensor, Tensor, Tensor],
) -> None:
    """Run a segment backward, window by window; ``time`` are its steps, and those behind it."""
    (x, states, g_output), (cotangents, d_x, sums) = past, results
    item, count = loop.dtype.itemsize, _trained(loop)
    row = loop.window * loop.lanes * item

    def memory(population: Population) -> dict[str, _Memory]:
        found = {"input_x": _of_step(loop, x, row), "grad_input_x": _of_step(loop, d_x, row)}
        found["sums"] = _Memory(sums.data_ptr(), count * 8, sums[0].nbytes)
        for i, name in enumerate(population.states):
            found[f"start_{name}"] = _of_step(loop, states[0, i], states[0].nbytes)
            cotangent = _of_step(loop, cotangents[i])
            found[f"grad_end_{name}"] = found[f"grad_start_{name}"] = cotangent
        return found

    places = "grad_output", "output"
    reach = _table(loop, "called reach", schedules.reach_kernel, memory, places)
    table = _table(loop, "called backward", schedules.backward_kernel, memory, places)
    flat, outside = _outside(loop, g_output)
    tile = loop.window * TILE * item
    _run(
        loop,
        sparse_loop.loop_backward,
        _sizes(loop, time[0], 1, time[1]),
        loop.edges.starts[:0],
        loop.weight,
        "r" + _OUTSIDE + "ll",
        *(d_x, *outside, reach.rows, table.rows),
        scratch=(reach.nbytes, table.nbytes, tile, tile, table.values * item),
    )
    del flat, reach, table


def _add_by_weight(loop: Loop, bits: Tensor, d_x: Tensor, total: Tensor, steps: int) -> None:
    """Add to the gradient of the weights what a segment gives, where sources fired."""
    words = -(-loop.layout.words // (4 * torch.get_num_threads()))
    sizes = list(_sizes(loop, steps, 1))
    sizes[sparse_loop.SIZES.index("per_chunk")] = words * BITS
    tasks = -(-loop.layout.words // words)
    write = sparse_loop.loop_by_weight
    _run(loop, write, tuple(sizes), bits, total, "r", d_x, tasks=tasks)


def _by_first(loop: Loop, d_x: Tensor) -> Tensor:
    """Return the gradient of the outputs before the first step, along all edges."""
    edges, taps, layout = loop.edges, loop.taps, loop.layout
    counts = edges.starts[:: layout.chunks[0]].diff()
    sources = torch.repeat_interleave(torch.arange(layout.slots), counts)
    d_x = d_x.view(taps, layout.groups, layout.slots, layout.inner)
    total = torch.zeros_like(d_x)
    for row in range(taps):
        every = max(1, _PAIRS // layout.samples)
        for begin in range(0, len(sources), every):
            some = torch.arange(begin, min(begin + every, len(sources)))
            delay = edges.most if edges.delays is None else edges.delays[some].long()
            step = torch.as_tensor(row + 1 - taps + delay).expand(len(some))
            reached = step >= 0
            some, step = some[reached], step[reached]
            values = d_x[step, :, edges.targets[some].long()] * loop.weight[some].view(-1, 1, 1)
            total[row].index_add_(1, sources[some], values.transpose(0, 1))
    return layout.leave(total.view(taps, *loop.row))


def _totals(loop: Loop, sums: Tensor) -> Iterator[np.ndarray[Any, Any]]:
    """Yield for each population the sums of the gradients of parameters, ``[trained, neurons]``."""
    first = 0
    for each in loop.populations:
        count, layout = len(each.plan.trained), each.layout
        # of a tile those of a parameter follow each other
        parts = [sums.new_zeros(layout.groups, count, 0)]
        for low in range(0, layout.lanes, TILE):
            lanes = min(TILE, layout.lanes - low)
            parts.append(sums[:, first, : count * lanes].reshape(layout.groups, count, lanes))
            first += 1
        yield layout.leave(torch.cat(parts, 2).transpose(0, 1)).sum(1).numpy()


# Spikes


def spikes_of(bits: Tensor, lanes: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the outputs of some lanes ``[steps, groups, k]``."""
    words = bits.index_select(-1, lanes // BITS)
    return (words.bitwise_right_shift_(lanes % BITS) & 1).to(dtype)


def all_spikes_of(layout: Layout, bits: Tensor, outputs: Tensor) -> None:
    """Write the outputs of all neurons ``[steps, samples, neurons]``."""
    rows = np.unpackbits(bits.numpy().view(np.uint8), -1, layout.lanes, "little")
    layout.leave(torch.from_numpy(rows), outputs)


def events_of(bits: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield rows and lanes of the spikes in ``[..., words]``, in order, some rows at a time."""
    rows = bits.reshape(-1, bits.shape[-1]).numpy()
    every = max(1, _WORDS // rows.shape[1])
    for begin in range(0, len(rows), every):
        part = rows[begin : begin + every].reshape(-1)
        place = np.flatnonzero(part)
        for some in range(0, len(place), _WORDS):
            words = place[some : some + _WORDS]
            each = np.unpackbits(part[words].view(np.uint8), bitorder="little").reshape(-1, 64)
            which, bit = np.nonzero(each)
            found = words[which]
            row = torch.from_numpy(begin + found // rows.shape[1])
            yield row, torch.from_numpy(found % rows.shape[1] * 64 + bit)
