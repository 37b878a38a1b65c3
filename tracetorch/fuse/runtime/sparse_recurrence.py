"""Run the loop of neurons along a list of edges on the CPU: segments, memory and kernels around it.

Forward keeps the spikes of every step as bits, and the states before every segment. Backward
computes a segment again from there: the states before each window, and what neurons were given.
Nothing has a value for every step and neuron but what the caller gives or wants so.
"""

from __future__ import annotations

import ctypes
import functools
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

from tracetorch.fuse.codegen import sparse_loop
from tracetorch.fuse.codegen.llvm_kernel import Printed, print_kernel
from tracetorch.fuse.codegen.llvm_tasks import HEADER
from tracetorch.fuse.codegen.sparse_loop import TILE
from tracetorch.fuse.ir import schedule as schedules
from tracetorch.fuse.ir.kernel import Kernel as Schedule
from tracetorch.fuse.ir.plan import RecurrentPlan
from tracetorch.fuse.ir.verify import verify
from tracetorch.fuse.runtime.allocation import large_empty
from tracetorch.fuse.runtime.cpu import own_buffers, parameter_gradients, scratch_values
from tracetorch.fuse.runtime.layout import layout_of, strided
from tracetorch.fuse.runtime.machine_code import compiled, this_machine
from tracetorch.fuse.runtime.written_kernels import run_written

_MOST_STEPS = 32  # of a window, so that what a tile is given stays in a core's cache
_CHUNKS = 8  # of a sample, where there are few: enough to share out among threads
_SEGMENT = 1 << 27  # bytes of what a segment of more steps than the root computes again
_WORDS = 1 << 20  # of spikes that are listed at once
_LONG = 1 << 12  # steps whose events from outside are there at once, where nothing is kept
_PAIRS = (
    1 << 22
)  # edges and samples at a time, in the gradient of the outputs before the first step


class Edges(NamedTuple):
    """Edges sorted by source and then by the chunk of the target."""

    starts: Tensor
    """``[sources * chunks + 1]`` int64."""
    targets: Tensor
    """``[E]`` int32."""
    delays: Tensor | None
    """``[E]`` int32; ``None``: all have ``delay``."""
    order: Tensor | None
    """Place of each edge in the weights, ``[E]``; ``None``: its own."""
    chunks: int
    per_chunk: int
    least: int
    """The smallest delay."""
    most: int
    """The largest delay."""


class Rows(NamedTuple):
    """Events of some steps: those of a step and a sample follow each other, by neuron, each once.

    Those of step ``t`` and sample ``b`` begin at ``starts[t * samples + b]``.
    """

    starts: Tensor
    """``[steps * samples + 1]`` int64."""
    neurons: Tensor
    """``[n]`` int32."""
    values: Tensor
    """``[n]``."""


class Part(NamedTuple):
    """A sequence from one step to another: the sum of what there is."""

    values: Tensor | None = None
    """``[steps, samples, neurons]``."""
    rows: Rows | None = None


Sequences: TypeAlias = "Callable[[int, int], Part]"
"""Returns a part of a sequence, from a step to before another."""


def chunks_of(neurons: int, samples: int) -> tuple[int, int]:
    """Return into how many chunks a sample is divided, and how many lanes one has.

    Not divided, the edges of a source are read by one thread, and threads wait for nobody.
    """
    tiles = -(-neurons // TILE)
    count = 1 if samples >= _CHUNKS else min(tiles, -(-_CHUNKS // samples))
    per_chunk = -(-tiles // count) * TILE
    return -(-neurons // per_chunk), per_chunk


@dataclass(frozen=True, eq=False)
class Loop:
    """Sizes of one call, and what all its kernels read.

    Args:
        plan: of the neurons.
        edges: as they are in memory.
        weight: of each edge, in their order.
        bias: ``[neurons]``.
        params: parameters of the neurons.
        steps, samples, neurons: sizes.
    """

    plan: RecurrentPlan
    edges: Edges
    weight: Tensor
    bias: Tensor
    params: Sequence[Tensor]
    steps: int
    samples: int
    neurons: int

    @property
    def dtype(self) -> torch.dtype:
        """Of the arithmetic."""
        return self.plan.program.dtype

    @property
    def taps(self) -> int:
        """Steps from a spike to the last one that it reaches."""
        return self.edges.most + 1

    @property
    def window(self) -> int:
        """Steps in which no neuron knows of another."""
        return max(1, min(self.edges.least + 1, _MOST_STEPS, self.steps))

    @property
    def words(self) -> int:
        """Words of 64 bits of the spikes of a sample in a step."""
        return -(-self.neurons // 64)

    @property
    def lanes(self) -> int:
        """Neurons of all samples."""
        return self.samples * self.neurons

    def segments(self, least: int = 1) -> list[tuple[int, int]]:
        """Return the first step of each segment, and the one behind its last.

        A segment is of whole windows: the root of all steps, or more as long as there is memory.
        """
        states = len(self.plan.program.states) / self.window
        few = int(_SEGMENT / ((states + 3) * self.lanes * self.dtype.itemsize))
        every = max(self.taps, math.isqrt(self.steps), min(few, self.steps), least)
        every = -(-every // self.window) * self.window
        return [(t, min(t + every, self.steps)) for t in range(0, self.steps, every)]


# Kernels of neurons


class _Called(NamedTuple):
    """A kernel of neurons that other kernels call."""

    address: int
    printed: Printed
    literals: Tensor
    own: tuple[tuple[int, tuple[int, ...]], ...]


def _called(plan: RecurrentPlan, name: str, build: Callable[[Any], Schedule]) -> _Called:
    kernel: _Called | None = plan.kernels.get(name)
    if kernel is None:
        schedule = verify(build(plan))
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


class _Block(NamedTuple):
    """A block of a kernel of neurons as the loop takes it; the tensors are kept alive."""

    function: int
    template: Tensor
    patches: Tensor
    places: Mapping[str, int]

    @property
    def arguments(self) -> tuple[int | Tensor, ...]:
        return self.function, len(self.template), len(self.patches), self.template, self.patches

    @property
    def nbytes(self) -> int:
        return self.template.nbytes


_BLOCK = "iiill"  # letters of the arguments of one


def _block(loop: Loop, kernel: _Called, memory: Mapping[str, _Memory]) -> _Block:
    """Return the block of a kernel; ``memory`` is that of its buffers but parameters."""
    names = kernel.printed.arguments
    places = {name: HEADER + i for i, name in enumerate(names)}
    template = [0] * (HEADER + len(names))
    for name in ("rows", "per_group", "inner", "segments"):
        template[places[name]] = 1
    found = {"literals": _Memory(kernel.literals.data_ptr()), **memory}
    for name, value in zip(loop.plan.program.params, loop.params, strict=True):
        found[f"parameter_{name}"] = _Memory(
            value.data_ptr(), value.itemsize if value.numel() > 1 else 0
        )
        template[places[f"parameter_{name}.size"]] = value.numel()
    # those that are not here change with the thread, and the loop writes them itself
    patches = [[places[name], *each] for name, each in found.items() if name in places]
    for name, step in (("input_x", loop.lanes),):
        if name in found:
            template[places[f"{name}.step"]] = step
    table = torch.tensor(patches, dtype=torch.int64, device="cpu").reshape(-1, 5)
    numbers = torch.tensor(template, dtype=torch.int64, device="cpu")
    return _Block(kernel.address, numbers, table, places)


def _of_step(loop: Loop, tensor: Tensor, window: int = 0) -> _Memory:
    """Return the memory of a value for each neuron, ``window`` bytes apart."""
    item = loop.dtype.itemsize
    return _Memory(tensor.data_ptr(), item, loop.neurons * item, window)


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


def _sizes(loop: Loop, steps: int, per_task: int) -> tuple[int, ...]:
    """Return the sizes of a call over some steps, in the order of ``sparse_loop.SIZES``."""
    edges = loop.edges
    windows = -(-steps // loop.window)
    total = -(-windows // per_task) * loop.samples * edges.chunks
    first = (total, loop.samples, edges.chunks, edges.per_chunk, windows, per_task)
    ring = edges.most + loop.window
    more = (steps, loop.window, loop.neurons, ring, loop.taps, edges.most, loop.words, _yield())
    return *first, *more


def _run(
    loop: Loop,
    name: str,
    sizes: tuple[int, ...],
    bits: Tensor,
    weight: Tensor,
    letters: str,
    *arguments: int | Tensor,
    tasks: int = 0,
    scratch: Sequence[int] = (),
) -> None:
    """Run a kernel of the loop; ``bits`` begin with the history of the first step."""
    edges = loop.edges
    counters = torch.zeros((loop.samples + 1) * 8, dtype=torch.int64)
    delays = () if edges.delays is None else (edges.delays,)
    write = getattr(sparse_loop, f"{name}{'_delayed' if delays else ''}")
    run_written(
        write,
        "i" * len(sizes) + "lllnr" + "n" * len(delays) + letters,
        loop.dtype,
        tasks or torch.get_num_threads(),
        *sizes,
        *(counters, bits, edges.starts, edges.targets, weight, *delays),
        *arguments,
        work=len(bits) * loop.lanes * 16,
        scratch=scratch,
    )


# Forward


class Kept(NamedTuple):
    """Results of a forward pass that the backward pass reads."""

    bits: Tensor
    checkpoints: Tensor
    """``[segments, states, samples, neurons]``."""


def packed(loop: Loop, first: Tensor, steps: int) -> Tensor:
    """Return bits of the outputs ``[taps, ...]`` before the first step, and of steps to come."""
    bits = torch.zeros(loop.taps + steps, loop.samples, loop.words, dtype=torch.int64)
    rows = np.packbits(first.reshape(-1, loop.neurons).numpy() != 0, axis=1, bitorder="little")
    memory = bits[: loop.taps].view(-1, loop.words).numpy().view(np.uint8)
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
    given: Sequences,
    bounds: tuple[int, int],
    states: Tensor,
    *,
    output: Tensor | None = None,
    kept: Tensor | None = None,
) -> None:
    """Run the neurons over the steps of a segment; ``bits`` begin with its history.

    ``states`` are ``[1, states, samples, neurons]``, which go on, or those before each window and
    behind the last one. ``kept`` is where what the neurons are given is written, all segment.
    """
    program, (begin, end) = loop.plan.program, bounds
    kernel = _called(loop.plan, "called forward", schedules.forward_kernel)
    window = states[0].nbytes if len(states) > 1 else 0
    memory: dict[str, _Memory] = {}
    for i, name in enumerate(program.states):
        memory[f"start_{name}"] = _of_step(loop, states[0, i], window)
        memory[f"end_{name}"] = _of_step(loop, states[-1 if not window else 1, i], window)
    block = _block(loop, kernel, memory)
    edges, item = loop.edges, loop.dtype.itemsize
    windows = -(-(end - begin) // loop.window)
    sizes = _sizes(loop, end - begin, windows if edges.chunks == 1 else 1)
    length = edges.most + loop.window
    ring = large_empty((loop.samples, length, loop.neurons), loop.dtype).zero_()
    marks = torch.zeros(loop.samples * length * loop.words, dtype=torch.int16)
    flat, outside = _outside(loop, given(begin, end))
    wanted = 0 if output is None else output.data_ptr() + begin * loop.lanes * item
    keep = 0 if kept is None else kept.data_ptr()
    tile = loop.window * TILE * item
    _run(
        loop,
        "loop_forward",
        sizes,
        bits,
        loop.weight,
        "rir" + _OUTSIDE + "iiii" + _BLOCK,
        *(ring, marks.data_ptr(), loop.bias, *outside, keep, wanted),
        *(block.places["output"], block.places["input_x"]),
        *block.arguments,
        scratch=(block.nbytes, tile, tile),
    )
    del flat, marks


def forward(
    loop: Loop,
    given: Sequences,
    first: Tensor,
    states: Sequence[Tensor],
    *,
    output: Tensor | None,
    keep: bool,
    seen: Callable[[int, Tensor], None] | None = None,
) -> tuple[Tensor, Kept]:
    """Run all steps; return the final states, and what the backward pass needs.

    Args:
        loop: the call.
        given: what the neurons are given from outside.
        first: the outputs before the first step.
        states: those before the first step.
        output: where the outputs are written, ``None``: nowhere.
        keep: whether there will be a backward pass.
        seen: is called with the first of some steps and their spikes, in order, whatever is kept.
    """
    shape = (1, len(states), loop.samples, loop.neurons)
    now = large_empty(shape, loop.dtype)
    for i, state in enumerate(states):
        now[0, i] = state.reshape(shape[2:])
    segments, taps = loop.segments(1 if keep else _LONG), loop.taps
    longest = max(end - begin for begin, end in segments)
    bits = packed(loop, first, loop.steps if keep else longest)
    checkpoints = large_empty((len(segments) * keep, *shape[1:]), loop.dtype)
    for i, (begin, end) in enumerate(segments):
        if keep:
            checkpoints[i] = now[0]
        elif i:  # the memory of the segment before
            bits[:taps] = bits[longest : longest + taps].clone()
        part = bits[begin:] if keep else bits
        _advance(loop, part, given, (begin, end), now, output=output)
        if seen is not None:
            seen(begin, part[taps : taps + end - begin])
    return now[0], Kept(bits, checkpoints)


# Backward


class Wanted(NamedTuple):
    """The gradients that somebody wants, besides those of states and parameters."""

    x: bool
    first: bool
    weight: bool
    bias: bool


class Gradients(NamedTuple):
    """Gradients of a backward pass; ``None``: nobody wants them."""

    x: Tensor | None
    first: Tensor | None
    weight: Tensor | None
    bias: Tensor | None
    states: Tensor
    params: dict[str, Tensor]


def backward(
    loop: Loop,
    given: Sequences,
    kept: Kept,
    grads: tuple[Sequences, Sequence[Tensor | None]],
    wanted: Wanted,
) -> Gradients:
    """Return the gradients; ``grads`` are those of outputs and of final states."""
    g_output, g_ends = grads
    size, dtype, program = (loop.samples, loop.neurons), loop.dtype, loop.plan.program
    cotangents = torch.zeros(len(program.states), *size, dtype=dtype)
    for i, grad in enumerate(g_ends):
        if grad is not None:
            cotangents[i] = grad.reshape(size)
    tiles = -(-loop.neurons // TILE)
    sums = torch.zeros(
        loop.samples, tiles, max(1, len(loop.plan.trained)) * TILE, dtype=torch.float64
    )
    d_x = large_empty((loop.steps, *size), dtype) if wanted.x else None
    d_bias = torch.zeros(loop.neurons, dtype=dtype) if wanted.bias else None
    d_weight = large_empty((len(loop.weight),), dtype).zero_() if wanted.weight else None
    tail = torch.zeros(loop.taps, *size, dtype=dtype)
    for i, (begin, end) in reversed(list(enumerate(loop.segments()))):
        steps = end - begin
        windows = -(-steps // loop.window)
        states = large_empty((windows + 1, *cotangents.shape), dtype)
        states[0] = kept.checkpoints[i]
        x = large_empty((steps, *size), dtype)
        _advance(loop, kept.bits[begin:], given, (begin, end), states, kept=x)
        d_part = large_empty((steps + loop.taps, *size), dtype)
        d_part[steps:] = tail
        _back(loop, steps, (x, states), g_output(begin, end), (cotangents, d_part, sums))
        if d_weight is not None:
            _add_by_weight(loop, kept.bits[begin:], d_part, d_weight, steps)
        if d_bias is not None:
            d_bias += d_part[:steps].sum((0, 1))
        if d_x is not None:
            d_x[begin:end] = d_part[:steps]
        tail = d_part[: loop.taps]
    d_first = _by_first(loop, tail) if wanted.first else None
    if d_weight is not None and loop.edges.order is not None:
        d_weight = torch.empty_like(d_weight).index_copy_(0, loop.edges.order.long(), d_weight)
    with np.errstate(all="ignore"):  # gradients that are not finite are the user's to find
        d_params = parameter_gradients(loop.plan, loop.params, _totals(loop, sums))
    return Gradients(d_x, d_first, d_weight, d_bias, cotangents, d_params)


def _back(
    loop: Loop,
    steps: int,
    past: tuple[Tensor, Tensor],
    g_output: Part,
    results: tuple[Tensor, Tensor, Tensor],
) -> None:
    """Run the steps of a segment backward, from the last window to the first."""
    plan, (x, states), (cotangents, d_x, sums) = loop.plan, past, results
    item = loop.dtype.itemsize
    row = loop.window * loop.lanes * item
    inputs = _of_step(loop, x, row)
    before = {
        f"start_{name}": _of_step(loop, states[0, i], states[0].nbytes)
        for i, name in enumerate(plan.program.states)
    }
    memory = {"input_x": inputs, **before}
    reach = _block(loop, _called(plan, "called reach", schedules.reach_kernel), memory)
    for i, name in enumerate(plan.program.states):
        memory[f"grad_end_{name}"] = memory[f"grad_start_{name}"] = _of_step(loop, cotangents[i])
    count = max(1, len(plan.trained))
    memory["grad_input_x"] = _of_step(loop, d_x, row)
    memory["sums"] = _Memory(sums.data_ptr(), count * 8, sums[0].nbytes)
    kernel = _called(plan, "called backward", schedules.backward_kernel)
    block = _block(loop, kernel, memory)
    flat, outside = _outside(loop, g_output)
    private = scratch_values(kernel.own, (loop.window, loop.window, 1), kernel.printed.width)
    tile = loop.window * TILE * item
    _run(
        loop,
        "loop_backward",
        _sizes(loop, steps, 1),
        loop.edges.starts[:0],
        loop.weight,
        "r" + _OUTSIDE + "ii" + 2 * _BLOCK,
        *(d_x, *outside, block.places["grad_output"], reach.places["output"]),
        *(*reach.arguments, *block.arguments),
        scratch=(reach.nbytes, block.nbytes, tile, tile, private * item),
    )
    del flat


def _add_by_weight(loop: Loop, bits: Tensor, d_x: Tensor, total: Tensor, steps: int) -> None:
    """Add to the gradient of the weights what a segment gives, where sources fired."""
    words = -(-loop.words // (4 * torch.get_num_threads()))
    sizes = list(_sizes(loop, steps, 1))
    sizes[sparse_loop.SIZES.index("per_chunk")] = words * 64
    tasks = -(-loop.words // words)
    _run(loop, "loop_by_weight", tuple(sizes), bits, total, "r", d_x, tasks=tasks)


def _by_first(loop: Loop, d_x: Tensor) -> Tensor:
    """Return the gradient of the outputs before the first step, along all edges."""
    edges, taps = loop.edges, loop.taps
    counts = edges.starts[:: edges.chunks].diff()
    sources = torch.repeat_interleave(torch.arange(loop.neurons), counts)
    total = torch.zeros(taps, loop.samples, loop.neurons, dtype=loop.dtype)
    for row in range(taps):
        every = max(1, _PAIRS // loop.samples)
        for begin in range(0, len(sources), every):
            some = torch.arange(begin, min(begin + every, len(sources)))
            delay = edges.most if edges.delays is None else edges.delays[some].long()
            step = torch.as_tensor(row + 1 - taps + delay).expand(len(some))
            reached = step >= 0
            some, step = some[reached], step[reached]
            values = d_x[step, :, edges.targets[some].long()] * loop.weight[some].unsqueeze(1)
            total[row].index_add_(1, sources[some], values.t())
    return total


def _totals(loop: Loop, sums: Tensor) -> np.ndarray[Any, Any]:
    """Return the sums of the gradients of parameters, ``[trained, neurons]``."""
    count, neurons = max(1, len(loop.plan.trained)), loop.neurons
    total = sums.sum(0)
    whole = neurons // TILE
    parts = [total[:whole].view(whole, count, TILE).transpose(0, 1).reshape(count, -1)]
    if left := neurons - whole * TILE:
        parts.append(total[whole, : count * left].view(count, left))
    return torch.cat(parts, 1)[: len(loop.plan.trained)].numpy()


# Spikes


def spikes_of(bits: Tensor, neurons: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the outputs of some neurons ``[steps, samples, k]``."""
    words = bits.index_select(-1, neurons // 64)
    return (words.bitwise_right_shift_(neurons % 64) & 1).to(dtype)


def events_of(bits: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield rows and neurons of the spikes in ``[..., words]``, in order, some rows at a time."""
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
