"""Run the loop of neurons along a list of edges on the CPU: segments, memory and kernels around it.

Forward keeps the spikes of every step as bits, and the states before every segment, from where
backward computes it again. Only what the caller gives or wants has a value for every step.
"""

from __future__ import annotations

import ctypes
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

from tracetorch.fuse.codegen import sparse_loop
from tracetorch.fuse.codegen.llvm_kernel import print_kernel
from tracetorch.fuse.codegen.llvm_tasks import HEADER
from tracetorch.fuse.codegen.sparse_loop import BITS, LINE, TILE
from tracetorch.fuse.ir import schedule as schedules
from tracetorch.fuse.ir.plan import Plan
from tracetorch.fuse.runtime.allocation import large_empty, layout_of, strided
from tracetorch.fuse.runtime.cpu import own_buffers, parameter_gradients, scratch_values
from tracetorch.fuse.runtime.machine_code import compiled, this_machine
from tracetorch.fuse.runtime.threads import run_written

_MOST_STEPS = 32  # of a window, so that what a tile is given stays in a core's cache
_CHUNKS = 4  # of all samples together, where there are few: short lists of edges are read slowly
_SEGMENT = 1 << 27  # bytes of what a segment of more steps than the root computes again
_WORDS = 1 << 20  # of spikes that are listed at once
_LONG = 1 << 12  # steps whose events from outside are there at once, where nothing is kept
_PAIRS = 1 << 22  # edges and samples at a time, in the gradient of the outputs before the first


class Edges(NamedTuple):
    """Copies of edges by source, then by the chunk of the target, else in the order given."""

    starts: Tensor  # where those of a source to a chunk begin, ``[sources * chunks + 1]`` int64
    targets: Tensor  # ``[E]`` int32
    delays: Tensor | None  # ``[E]`` int32; ``None``: all have ``most``
    order: Tensor | None  # place of each edge in the weights, ``[E]``; ``None``: its own
    least: int  # the smallest delay
    most: int  # the largest delay
    chunked: dict[tuple[int, int], Edges]  # what :meth:`by_chunk` gave last

    def by_chunk(self, chunks: tuple[int, int]) -> Edges:
        """Return them for some chunks of a row, and their neurons, as the loop reads them."""
        if chunks in self.chunked:
            return self.chunked[chunks]
        self.chunked.clear()
        starts, targets, delays, order, *_ = self
        if chunks[0] > 1:
            sources = torch.repeat_interleave(torch.arange(len(starts) - 1), starts.diff())
            keys = sources.mul_(chunks[0]).add_(targets // chunks[1])
            starts = starts_of(keys, (len(starts) - 1) * chunks[0])
            place, (targets, delays) = _sorted_by(keys, targets, delays)
            if place is not None:
                order = place if order is None else order.index_select(0, place)
        delays = None if self.least == self.most else delays
        found = Edges(starts, targets, delays, order, self.least, self.most, {})
        return self.chunked.setdefault(chunks, found)


def starts_of(keys: Tensor, size: int) -> Tensor:
    """Return where each number below ``size`` begins in a sorted list of as many."""
    counts = torch.bincount(keys, minlength=size)
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)])


def _sorted_by(keys: Tensor, *lists: Tensor | None) -> tuple[Tensor | None, list[Any]]:
    """Return the order of keys, ``None`` where they are sorted, and lists in it."""
    if bool((keys[1:] >= keys[:-1]).all()):
        return None, [*lists]
    order = keys.argsort(stable=True).int()
    return order, [None if each is None else each.index_select(0, order) for each in lists]


def sorted_by_source(edges: Tensor, delay: Tensor | None, inputs: int) -> Edges:
    """Return edges ``[2, E]`` that are in range by source, with a delay of all or of each."""
    (sources, targets), short = edges, torch.int32
    starts, delays = starts_of(sources, inputs), delay if delay is not None and delay.ndim else None
    order, (targets, delays) = _sorted_by(sources, targets, delays)
    least = most = 0
    if delay is not None and delay.numel():
        least, most = (int(found) for found in torch.aminmax(delay))
    targets = targets.to(short, copy=order is None).contiguous()
    delays = None if delays is None else delays.to(short, copy=order is None).contiguous()
    return Edges(starts, targets, delays, order, least, most, {})


class Rows(NamedTuple):
    """Events of some steps by step, sample and tile, which begin at ``starts``, and neuron."""

    starts: Tensor  # ``[steps * samples * tiles + 1]`` int64
    neurons: Tensor  # ``[n]`` int32
    values: Tensor  # ``[n]``


class Part(NamedTuple):
    """A sequence from one step to another: the sum of what there is."""

    values: Tensor | None = None  # ``[steps, samples, neurons]``
    rows: Rows | None = None


Sequences: TypeAlias = "Callable[[int, int], Part]"
"""Returns a part of a sequence, from a step to before another."""


def chunks_of(samples: int, neurons: int) -> tuple[int, int]:
    """Return the chunks of a row, and their neurons. One: a source's edges have one thread."""
    tiles = -(-neurons // TILE)
    per_chunk = -(-tiles // min(tiles, -(-_CHUNKS // samples))) * TILE
    return -(-neurons // per_chunk), per_chunk


@dataclass(frozen=True, eq=False)
class SparseLoop:
    """Sizes of one call, and what all its kernels read; ``edges`` and weights in memory's order."""

    plan: Plan
    shape: tuple[int, int]  # samples and neurons
    edges: Edges
    steps: int
    params: Sequence[Tensor]
    weight: Tensor
    bias: Tensor  # of whole words

    @property
    def dtype(self) -> torch.dtype:
        return self.plan.program.dtype

    @property
    def words(self) -> int:
        return -(-self.shape[1] // BITS)

    @property
    def taps(self) -> int:
        """Steps from a spike to the last one that it reaches."""
        return self.edges.most + 1

    @property
    def window(self) -> int:
        """Steps in which no neuron knows of another."""
        return max(1, min(self.edges.least + 1, _MOST_STEPS, self.steps))

    @property
    def lanes(self) -> int:
        """Values of a step."""
        return math.prod(self.shape)

    def segments(self, least: int = 1) -> list[tuple[int, int]]:
        """Segments of whole windows, first step and end: the root of all, more if memory lasts."""
        states = len(self.plan.program.states) / self.window
        few = int(_SEGMENT / ((states + 3) * self.lanes * self.dtype.itemsize))
        every = max(self.taps, math.isqrt(self.steps), min(few, self.steps), least)
        every = -(-every // self.window) * self.window
        return [(t, min(t + every, self.steps)) for t in range(0, self.steps, every)]


# Kernels of neurons


_Strides: TypeAlias = tuple[int, int, int, int]
"""Memory of a buffer: an address, and bytes from a neuron, a sample and a window to the next."""


class _NeuronKernel(NamedTuple):
    """A kernel of neurons as the loop takes it; the tensors are kept alive."""

    numbers: tuple[int, ...]
    nbytes: int
    values: int  # of scratch
    alive: tuple[Tensor, Tensor]


def _block(
    loop: SparseLoop,
    name: str,
    build: Callable[[Any], Any],
    memory: Mapping[str, _Strides],
    places: tuple[str, str],
) -> _NeuronKernel:
    """Return the kernel that is made by ``build``; ``places`` are what the loop writes."""
    plan = loop.plan
    if name not in plan.kernels:
        schedule = build(plan)
        made = print_kernel(schedule, this_machine().processor, called=True)
        literals = torch.tensor(plan.literals, dtype=loop.dtype, device="cpu")
        address = compiled(made.text, made.name).address
        plan.kernels[name] = address, made.arguments, made.width, literals, own_buffers(schedule)
    address, names, width, literals, own = plan.kernels[name]
    at = {each: HEADER + place for place, each in enumerate(names)}
    template = [0] * (HEADER + len(names))
    for each in ("rows", "per_group", "inner", "segments"):
        template[at[each]] = 1
    found = {"literals": (literals.data_ptr(), 0, 0, 0), **memory}
    for each, value in zip(plan.program.params, loop.params, strict=True):
        size = value.itemsize if value.numel() > 1 else 0
        found[f"parameter_{each}"] = value.data_ptr(), size, 0, 0
        template[at[f"parameter_{each}.size"]] = value.numel()
    if "input_x" in found:
        template[at["input_x.step"]] = loop.lanes
    # those that are not here change with the thread, and the loop writes them itself
    patches = [[at[each], *place] for each, place in found.items() if each in at]
    alive = torch.tensor(template, device="cpu"), torch.tensor(patches, device="cpu")
    tables = [number for each in alive for number in (len(each), each.data_ptr())]
    numbers = (address, *tables, *(at.get(each, 0) for each in places))
    values = scratch_values(own, (loop.window, loop.window, 1), width)
    return _NeuronKernel(numbers, alive[0].nbytes, values, alive)


def _of_step(loop: SparseLoop, tensor: Tensor, window: int = 0) -> _Strides:
    """Return the memory of a value for each neuron, ``window`` bytes apart."""
    item = loop.dtype.itemsize
    return tensor.data_ptr(), item, loop.shape[1] * item, window


@functools.cache
def _yield() -> int:
    """Return the address of the function that lets another thread run; 0: there is none."""
    try:
        function = ctypes.CDLL(None).sched_yield
    except (OSError, AttributeError, TypeError):  # the last one on Windows
        return 0
    return ctypes.cast(function, ctypes.c_void_p).value or 0


def _run(
    loop: SparseLoop,
    write: Callable[..., None],
    steps: int,
    bits: Tensor,
    weight: Tensor,
    letters: str,
    *arguments: int | Tensor,
    per_task: int = 1,  # windows
    per_chunk: int = 0,  # neurons, where chunks are no tasks of the loop
    behind: int = 0,  # steps to come
    scratch: Sequence[int] = (),
) -> None:
    """Run a kernel of the loop over some steps, whose history ``bits`` begin with."""
    (samples, neurons), (chunks, size) = loop.shape, chunks_of(*loop.shape)
    edges, delay, windows = loop.edges, loop.edges.most, -(-steps // loop.window)
    total = -(-windows // per_task) * samples * chunks
    sizes = (total, samples, chunks, per_chunk or size, windows, per_task, steps, loop.window)
    more = (neurons, delay + loop.window, loop.taps, delay, loop.words, _yield(), behind)
    counters = torch.zeros((samples + 1) * LINE, dtype=torch.int64)
    delays = () if edges.delays is None else (edges.delays,)
    run_written(
        write,
        "i" * len(sparse_loop.SIZES) + "lllnr" + "n" * len(delays) + letters,
        loop.dtype,
        -(-neurons // per_chunk) if per_chunk else torch.get_num_threads(),
        *(*sizes, *more, counters, bits, edges.starts, edges.targets, weight, *delays),
        *arguments,
        work=len(bits) * loop.lanes * 16,
        scratch=scratch,
        form=(bool(delays),),
    )


# Forward


class Kept(NamedTuple):
    """Results of a forward pass that the backward pass reads."""

    bits: Tensor
    checkpoints: Tensor  # ``[segments, states, samples, neurons]``
    drive: Tensor | None  # the sum that each step was given, where there is memory for it


def packed(loop: SparseLoop, first: Tensor, steps: int) -> Tensor:
    """Return bits of the outputs ``[taps, ...]`` before the first step, and of steps to come."""
    bits = torch.zeros(loop.taps + steps, loop.shape[0], loop.words, dtype=torch.int64)
    rows = np.packbits(first.contiguous().numpy() != 0, axis=-1, bitorder="little")
    bits[: loop.taps].numpy().view(np.uint8)[..., : rows.shape[-1]] = rows
    return bits


def _outside(loop: SparseLoop, part: Part) -> tuple[Tensor | None, tuple[int | Tensor, ...]]:
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
    loop: SparseLoop,
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
    memory: dict[str, _Strides] = {}
    for i, name in enumerate(loop.plan.program.states):
        memory[f"start_{name}"] = _of_step(loop, states[0, i], window)
        memory[f"end_{name}"] = _of_step(loop, states[1 if window else 0, i], window)
    places = "input_x", "output"
    block = _block(loop, "called forward", schedules.forward_kernel, memory, places)
    shape = loop.shape[0], loop.edges.most + loop.window, loop.words
    ring = large_empty((*shape, BITS), loop.dtype).zero_()
    marks = torch.zeros(shape, dtype=torch.int16)
    _flat, outside = _outside(loop, given)  # alive until the kernel is done
    tile = loop.window * TILE * loop.dtype.itemsize
    _run(
        loop,
        sparse_loop.loop_forward,
        steps,
        bits,
        loop.weight,
        "rir" + _OUTSIDE + "ii" + "i" * len(block.numbers),
        *(ring, marks.data_ptr(), loop.bias, *outside),
        *(0 if each is None else each.data_ptr() for each in (kept, output)),
        *block.numbers,
        per_task=-(-steps // loop.window) if chunks_of(*loop.shape)[0] == 1 else 1,
        scratch=(block.nbytes, tile, tile),
    )


def forward(
    loop: SparseLoop,
    given: Sequences,
    first: Tensor,  # outputs before the first step
    states: Sequence[Tensor],
    *,
    output: Tensor | None = None,  # memory for all of them
    drive: Tensor | None = None,  # and for the sum that each step is given
    keep: bool,
    seen: Callable[[int, Tensor], None] | None = None,  # of steps and their spikes, in order
) -> tuple[list[Tensor], Tensor, Kept]:
    """Run all steps; return the final states, the last spikes, and what the backward pass needs."""
    now = torch.zeros(1, len(states), *loop.shape, dtype=loop.dtype)
    for part, state in zip(now[0], states, strict=True):
        part.copy_(state)
    segments, taps = loop.segments(1 if keep else _LONG), loop.taps
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
    recent = part[taps + steps - min(taps, loop.steps) : taps + steps]
    return list(now[0].clone()), recent, Kept(bits, checkpoints, drive)


# Backward


def backward(
    loop: SparseLoop,
    given: Sequences,
    kept: Kept,
    g_output: Sequences,
    g_ends: Sequence[Tensor | None],
    wanted: Sequence[bool],  # of what is given, and of the first three gradients
    seen: Callable[[int, Tensor], None],  # of steps and those of what is given, the last ones first
) -> tuple[Tensor | None, Tensor | None, Tensor | None, list[Tensor], dict[str, Tensor]]:
    """Return those of first outputs, weights, bias, states and parameters."""
    _, wants_first, wants_weight, wants_bias = wanted
    (samples, neurons), dtype = loop.shape, loop.dtype
    cotangents = torch.zeros(len(g_ends), *loop.shape, dtype=dtype)
    for cotangent, grad in zip(cotangents, g_ends, strict=True):
        if grad is not None:
            cotangent.copy_(grad.view_as(cotangent))
    trained, tiles = max(1, len(loop.plan.trained)), -(-neurons // TILE)
    sums = torch.zeros(samples, tiles, trained * TILE, dtype=torch.float64)
    d_bias = torch.zeros(loop.shape, dtype=dtype) if wants_bias else None
    d_weight = large_empty((len(loop.weight),), dtype).zero_() if wants_weight else None
    tail = torch.zeros(loop.taps, *loop.shape, dtype=dtype)
    for i, (begin, end) in reversed(list(enumerate(loop.segments()))):
        steps = end - begin
        windows = -(-steps // loop.window)
        states = large_empty((windows + 1, *cotangents.shape), dtype)
        states[0] = kept.checkpoints[i]
        if kept.drive is None:
            x = large_empty((steps, *loop.shape), dtype)
            _advance(loop, kept.bits[begin:], given(begin, end), states, steps, kept=x)
        else:  # neurons are given what comes from outside alone
            x, none = kept.drive[begin:end], torch.zeros_like(loop.edges.starts)
            alone = replace(loop, edges=loop.edges._replace(starts=none), bias=loop.bias * 0)
            _advance(alone, kept.bits[begin:], Part(x), states, steps)
        d_part = large_empty((steps + loop.taps, *loop.shape), dtype)
        d_part[steps:] = tail
        if not loop.plan.differentiated:  # nothing comes back to the input
            d_part[:steps] = 0
        past = x, states, g_output(begin, end)
        _back(loop, (steps, loop.steps - end), past, (cotangents, d_part, sums))
        if d_weight is not None:
            per_task = -(-loop.words // (4 * torch.get_num_threads())) * BITS
            write, bits = sparse_loop.loop_by_weight, kept.bits[begin:]
            _run(loop, write, steps, bits, d_weight, "r", d_part, per_chunk=per_task)
        if d_bias is not None:
            d_bias += d_part[:steps].sum(0)
        seen(begin, d_part[:steps])
        tail = d_part[: loop.taps]
    d_first = _by_first(loop, tail) if wants_first else None
    if d_weight is not None and loop.edges.order is not None:
        d_weight = torch.empty_like(d_weight).index_copy_(0, loop.edges.order.long(), d_weight)
    with np.errstate(all="ignore"):  # gradients that are not finite are the user's to find
        total, (whole, rest) = sums.sum(0), divmod(neurons, TILE)
        # of a tile those of a parameter follow each other
        parts = total[:whole].view(whole, trained, TILE).transpose(0, 1).reshape(trained, -1)
        last = total[whole:, : trained * rest].reshape(trained, rest)
        each = torch.cat([parts, last], 1)[: len(loop.plan.trained)]
        d_params = parameter_gradients(loop.plan, loop.params, each.numpy())
    d_bias = None if d_bias is None else d_bias.sum(0)
    return d_first, d_weight, d_bias, list(cotangents), d_params


def _back(
    loop: SparseLoop,
    time: tuple[int, int],
    past: tuple[Tensor, Tensor, Part],
    results: tuple[Tensor, Tensor, Tensor],
) -> None:
    """Run a segment backward, window by window; ``time`` are its steps, and those behind it."""
    (x, states, g_output), (cotangents, d_x, sums), (steps, behind) = past, results, time
    item = loop.dtype.itemsize
    row = loop.window * loop.lanes * item
    memory = {"input_x": _of_step(loop, x, row), "grad_input_x": _of_step(loop, d_x, row)}
    memory["sums"] = sums.data_ptr(), sums[0, 0].nbytes // TILE, sums[0].nbytes, 0
    for i, name in enumerate(loop.plan.program.states):
        memory[f"start_{name}"] = _of_step(loop, states[0, i], states[0].nbytes)
        cotangent = _of_step(loop, cotangents[i])
        memory[f"grad_end_{name}"] = memory[f"grad_start_{name}"] = cotangent
    places = "grad_output", "output"
    reach = _block(loop, "called reach", schedules.reach_kernel, memory, places)
    block = _block(loop, "called backward", schedules.backward_kernel, memory, places)
    _flat, outside = _outside(loop, g_output)
    tile = loop.window * TILE * item
    _run(
        loop,
        sparse_loop.loop_backward,
        steps,
        loop.edges.starts[:0],
        loop.weight,
        "r" + _OUTSIDE + "i" * len(reach.numbers + block.numbers),
        *(d_x, *outside, *reach.numbers, *block.numbers),
        behind=behind,
        scratch=(reach.nbytes, block.nbytes, tile, tile, block.values * item),
    )


def _by_first(loop: SparseLoop, d_x: Tensor) -> Tensor:
    """Return the gradient of the outputs before the first step, along all edges."""
    edges, taps = loop.edges, loop.taps
    counts = edges.starts[:: chunks_of(*loop.shape)[0]].diff()
    sources = torch.repeat_interleave(torch.arange(loop.shape[1]), counts)
    total = torch.zeros_like(d_x)
    for row in range(taps):
        every = max(1, _PAIRS // loop.shape[0])
        for begin in range(0, len(sources), every):
            some = torch.arange(begin, min(begin + every, len(sources)))
            delay = edges.most if edges.delays is None else edges.delays[some].long()
            step = torch.as_tensor(row + 1 - taps + delay).expand(len(some))
            reached = step >= 0
            some, step = some[reached], step[reached]
            values = d_x[step, :, edges.targets[some].long()] * loop.weight[some].view(-1, 1)
            total[row].index_add_(1, sources[some], values.t())
    return total


# Spikes


def spikes_of(bits: Tensor, neurons: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the outputs of some neurons ``[steps, samples, k]``."""
    words = bits.index_select(-1, neurons // BITS)
    return (words.bitwise_right_shift_(neurons % BITS) & 1).to(dtype)


def events_of(bits: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield rows and neurons of the spikes in ``[..., words]``, in order, some rows at a time."""
    rows = bits.reshape(-1, bits.shape[-1]).numpy()
    every = max(1, _WORDS // rows.shape[1])
    for begin in range(0, len(rows), every):
        row, word = rows[begin : begin + every].nonzero()
        words = rows[begin + row, word][:, None]
        which, bit = np.unpackbits(words.view(np.uint8), axis=1, bitorder="little").nonzero()
        yield torch.from_numpy(begin + row[which]), torch.from_numpy(word[which] * BITS + bit)
