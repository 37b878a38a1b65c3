"""Predict the time of kernels on a GPU from what they move and compute: no card is needed.

``python -m benchmarks.gpu.predicted`` writes the tables into ``docs/use/gpu.md``. Bytes, operations
and the longest chain of operations of a step are counted in the loops that are printed. A kernel
takes as long as the slowest of four: its memory, its cache, its instructions, and its walk through
time, in which each step waits for the one before or for memory. It is a model: no card has run it.
"""

from __future__ import annotations

import math
import re
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from benchmarks.gpu.page import write
from tracetorch import neurons, snn
from tracetorch.fuse.codegen.triton_loops import BLOCK, STAGES, loads_ahead
from tracetorch.fuse.dispatch.plans import program_of
from tracetorch.fuse.ir import kernel as ir
from tracetorch.fuse.ir.plan import Plan
from tracetorch.fuse.ir.schedule import backward_kernel, forward_kernel
from tracetorch.fuse.runtime.gpu import TritonBackend

BEGIN = "<!-- written by python -m benchmarks.gpu.predicted -->"


# Cards


class Card(NamedTuple):
    """Bandwidths, sizes and clock of a card."""

    name: str
    memory: float
    """Bytes in a second."""
    cache: float
    """Bytes in a second from the L2 cache."""
    cached: float
    """Bytes of that cache."""
    processors: int
    clock: float
    threads: int
    """That a processor has at once."""


# Memory, cache and clock of A100 and H100: table 3 of doi:10.1016/j.ultsonch.2023.106546; the
# laptop's from its data sheet, at its middle power; its cache as of the others, for a processor.
CARDS = (
    Card("A100", 1555e9, 7219e9, 40e6, 108, 1.41e9, 2048),
    Card("H100", 3352e9, 8986e9, 50e6, 132, 1.755e9, 2048),
    Card("RTX 4060 laptop", 256e9, 2900e9, 32e6, 24, 1.89e9, 1536),
)
LAUNCH = 5e-6  # seconds of the host for a launch: an assumption, of PyTorch's order
# Cycles, of the same table
MEMORY, CACHE, SHARED, ARITHMETIC = 400, 200, 20, 4
BARRIER = 20  # as long as a read of shared memory: an assumption
# Instructions and cycles of what is not one of a few: assumptions, of what compilers make of them
_FUNCTION, _DIVISION = (20, 80), (10, 40)
_SIMPLE = {
    *("add", "sub", "mul", "neg", "abs", "max", "min", "fma", "where", "float", "double"),
    *("gt", "ge", "lt", "le", "eq", "ne", "and", "or", "xor", "not", "floor", "ceil", "trunc"),
    *("round", "copysign"),
}


# Counts


@dataclass
class Counts:
    """Bytes, operations and chains of a kernel, for one lane in all of its steps.

    ``moved`` are bytes by buffer, as often as they are read or written; ``distinct`` those of
    memory behind them. ``walks`` are the loops over time: steps, cycles of the longest chain of
    operations, and whether their loads are ahead.
    """

    moved: Counter[str] = field(default_factory=Counter)
    distinct: Counter[str] = field(default_factory=Counter)
    operations: float = 0.0
    walks: list[tuple[int, float, bool]] = field(default_factory=list)


def counts(kernel: ir.Schedule, steps: int, every: int) -> Counts:
    """Count what a kernel does in so many steps, of which ``every`` lie between checkpoints."""
    segments = -(-steps // every)
    sizes = {"steps": steps, "every": min(every, steps), "segments": segments, "taps": 1}
    turns = {"segment": segments, "t": steps, "past": 1, "i": 1}
    found = Counts()

    def visit(body: Sequence[ir.Statement], times: int) -> None:
        for each in body:
            if isinstance(each, ir.Operation) and each.result.lanes:
                found.operations += times * _cost(each.op)[0]
            elif isinstance(each, (ir.Load, ir.Store)) and ir.Axis.LANE in each.index:
                if each.buffer.role is not ir.Role.SCRATCH:  # registers
                    # sums are read, and written again
                    again = 2 if each.buffer.role is ir.Role.SUMS else 1
                    found.moved[each.buffer.label] += again * times * _size(each.buffer.dtype)
                    found.distinct[each.buffer.label] = _extent(each.buffer, sizes)
            elif isinstance(each, ir.For):
                name = re.sub(r"\d+$", "", each.index.name)
                if name == "t":
                    found.walks.append((steps, _chain(each.body), loads_ahead(each)))
                visit(each.body, steps if name == "t" else times * turns[name])
            elif isinstance(each, ir.If):  # of segments but one, or of one
                visit(each.body, times if times < segments else max(1, times // 2))
            elif isinstance(each, ir.Lanes):
                visit(each.body, times)

    visit(kernel.body, 1)
    return found


def _cost(op: str) -> tuple[int, int]:
    """Return the instructions and the cycles of an operation."""
    if op in _SIMPLE:
        return 1, ARITHMETIC
    return _DIVISION if op in ("div", "sqrt") else _FUNCTION


def _size(dtype: ir.Dtype) -> int:
    return 8 if dtype is ir.Dtype.FLOAT64 else 4


def _extent(buffer: ir.Buffer, sizes: dict[str, int]) -> int:
    """Return the bytes of a buffer for one lane."""
    total = _size(buffer.dtype)
    for extent in buffer.shape:
        if isinstance(extent, ir.Size):
            total *= sizes[extent.value.name] + extent.plus
        elif isinstance(extent, int):
            total *= extent
    return total


def _chain(body: Sequence[ir.Statement]) -> float:
    """Return the cycles of the longest chain of operations."""
    depth: dict[ir.Operand, float] = {}
    for each in ir.statements(body):
        if isinstance(each, ir.Operation):
            before = max(depth.get(arg, 0.0) for arg in each.args)
            depth[each.result] = before + _cost(each.op)[1] * each.result.lanes
    return max(depth.values(), default=0.0)


# Time


def seconds(found: Counts, lanes: int, every: int, card: Card, block: int) -> float:
    """Return the time of a kernel on a card, without its launch."""
    at_once = card.processors * card.threads
    moved, distinct = sum(found.moved.values()), sum(found.distinct.values())
    # what is read again, or after it was written, comes from the cache if it still is there
    again = [n for n in found.moved if found.moved[n] > 1.5 * found.distinct[n] or n == "past"]
    each = [min(found.distinct[n], 4 * every if n != "past" else math.inf) for n in again]
    window = sum(each) * min(lanes, at_once)
    memory: float = moved
    if window <= card.cached:
        memory = distinct - found.distinct["past"]
    latency = MEMORY
    if distinct * lanes <= card.cached:  # all of it was in the cache, and stays there
        memory, latency = 0.0, CACHE
    waves = math.ceil(lanes / block) / (card.processors * (card.threads // block))
    walk = 0.0
    for steps, chain, is_ahead in found.walks:
        if is_ahead:
            walk += steps * max(chain + SHARED + BARRIER, latency / (STAGES - 1))
        else:
            walk += steps * (chain + latency)
    return max(
        max(1, math.ceil(waves)) * walk / card.clock,
        found.operations * lanes / (card.processors * 128 * card.clock),
        memory * lanes / card.memory,
        moved * lanes / card.cache,
    )


# Kernels


class Pair(NamedTuple):
    """The two kernels of a layer: what they do, and the lanes of a program."""

    forward: Counts
    backward: Counts
    every: int
    block: int
    launches: tuple[int, int]
    """All launches of a call, and of a call and its backward pass."""

    def time(self, lanes: int, card: Card, way: str) -> float:
        """Return the time of the kernels."""
        total = seconds(self.forward, lanes, self.every, card, self.block)
        if way == "train":
            total += seconds(self.backward, lanes, self.every, card, self.block)
        return total


def ours(layer: snn.Neuron, steps: int) -> Pair:
    """Return the kernels of a layer that learns in a network."""
    program = program_of(layer.cell, 2, torch.float32, layer.step_kwargs(2, torch.float32))
    wanted = (True, program.inputs, program.params, TritonBackend.tile)
    plan = Plan(program, "triton", -1, (), *wanted)
    every, learned = plan.checkpoint_interval, len(program.params)
    loops = [counts(k, steps, every) for k in (forward_kernel(plan), backward_kernel(plan))]
    # By a profile under Triton's interpreter: states at rest, the watch for NaN, the kernel, and
    # the constraint of each parameter; sums at zero, the kernel, the sums over rows, an absent
    # gradient, and of each parameter the gradient in its dtype and that of its constraint.
    ahead = 3 + learned
    return Pair(loops[0], loops[1], every, BLOCK, (ahead, ahead + 4 + 2 * learned))


# Of SpikingJelly's `ParametricLIFNode`, v_reset=None, decay_input=False, a step and a value:
# 2.0.0, `_ops/plif/triton.py` and `kernels.cuh` (which move the same): forward reads x, writes the
# spike and the charged membrane, always; backward reads this one twice, now and as the one before,
# and the spike's gradient, and writes the input's. The CuPy kernels of its repository (commit
# 0dfbb4b6, `cuda_kernel/neuron_kernel/multi_step/plif.py`) write and read the membrane before each
# step as well, and a gradient of it that is zero.
def _theirs(steps: int, forward: Sequence[str], backward: Sequence[str], again: int) -> Pair:
    one, two = Counts(operations=8.0 * steps), Counts(operations=40.0 * steps)
    for found, names in ((one, forward), (two, backward)):
        found.distinct = Counter(dict.fromkeys(names, 4 * steps))
        found.moved = Counter(found.distinct)
    two.moved["h"] += again * 4 * steps
    # six operations one after the other; with the division of the arc tangent's derivative
    one.walks, two.walks = [(steps, 24.0, False)], [(steps, 80.0, False)]
    return Pair(one, two, 1, 256, (3, 9))


def spikingjelly(steps: int) -> Pair:
    """Return the Triton kernels of SpikingJelly, whose CUDA kernels move the same."""
    return _theirs(steps, ("x", "spike", "h"), ("h", "g", "d_x"), 1)


def cupy(steps: int) -> Pair:
    """Return its CuPy kernels."""
    return _theirs(steps, ("x", "spike", "h", "v"), ("h", "v", "g", "g_v", "d_x"), 0)


# Tables


ROWS = (
    *((f"LIF N={n}", 100, 32, n) for n in (128, 512, 2048, 8192)),
    *((f"LIF B=32 N=128 T={t}", t, 32, 128) for t in (1_000, 10_000)),
    *((f"LIF B={b} N=128 T=100", 100, b, 128) for b in (1, 1024)),
)
_KINDS = (snn.LIF, snn.BSRLIF, neurons.AdLIF, neurons.SEAdLIF, neurons.AdEx)


def moved_table() -> list[str]:
    """Return the lines of the table of what is moved and computed for a value in a step."""
    steps = 1024
    named = {kind.__name__: ours(kind(3), steps) for kind in _KINDS}
    named |= {"SpikingJelly, Triton or CUDA": spikingjelly(steps), "CuPy": cupy(steps)}
    head = ["kernels", "forward", "backward", "of it again", "operations", "longest chain"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for name, pair in named.items():
        both = (pair.forward, pair.backward)
        moved = [sum(found.moved.values()) / steps for found in both]
        again = sum((b.moved - b.distinct).total() + b.distinct["past"] for b in both) / steps
        operations = sum(found.operations for found in both) / steps
        chain = sum(walk[1] for found in both for walk in found.walks)
        cells = [f"{moved[0]:.1f} B", f"{moved[1]:.1f} B", f"{again:.1f} B"]
        lines.append(f"| {name} | {' | '.join(cells)} | {operations:.0f} | {chain:.0f} cycles |")
    return lines


def time_table() -> list[str]:
    """Return the lines of the table of times, and how much longer SpikingJelly's kernels take."""
    columns = [(card, way) for card in CARDS for way in ("forward", "train")]
    lines = [f"| row | {' | '.join(f'{card.name} {way}' for card, way in columns)} |"]
    lines.append("|---" * (1 + len(columns)) + "|")
    for name, steps, batch, size in ROWS:
        own, other = ours(snn.LIF(3), steps), spikingjelly(steps)
        cells = []
        for card, way in columns:
            time, theirs = (pair.time(batch * size, card, way) for pair in (own, other))
            launches = own.launches[way == "train"] * LAUNCH
            mark = " *" if launches > time else ""
            cells.append(f"{_amount(time)}, {theirs / time:.1f}x{mark}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def _amount(time: float) -> str:
    return f"{1e6 * time:.0f} us" if time < 1e-3 else f"{1e3 * time:.2f} ms"


def main() -> int:
    """Write the tables into the page."""
    text = "\n".join([*moved_table(), "", *time_table()])
    write(text, BEGIN)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
