"""Print a kernel for Triton: a program is a block of lanes in registers, walked through time.

Scratch is memory that the caller allocates for all lanes. Sizes and strides are arguments, so that
one source serves every shape. All memory is flat: lane ``l`` of step ``t`` of a result is at
``t * lanes + l``, while inputs and cotangents have strides of time and of rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from tracetorch.fuse.codegen.emitter import Emitter
from tracetorch.fuse.codegen.targets import triton_target
from tracetorch.fuse.ir import kernel as ir
from tracetorch.fuse.ir.graph import Graph
from tracetorch.fuse.ir.kernel import Axis, Buffer, Index, Role

# Steps that are on their way while one is computed, and that one: a step waits for memory longer
# than it computes, and its loads do not depend on the one before.
STAGES = 4

_MODULE = '''"""{title}, printed by tracetorch.fuse."""

import triton
import triton.language as tl
from triton.language.extra import libdevice


'''


LEAST = (3, 6)  # release of Triton: the first with an option to keep the smallest numbers
BLOCK = 128  # lanes of a program: one for each of its threads


def compile_options(backend: str) -> dict[str, Any]:
    """Return options of a launch on "cuda", "hip" or "cpu": no contraction, subnormals are kept."""
    normal = {"enable_reflect_ftz": False} if backend == "cuda" else {}
    return {"BLOCK": BLOCK, "num_warps": BLOCK // 32, "enable_fp_fusion": False, **normal}


def unknown(graph: Graph) -> str | None:
    return triton_target(torch.float32).unknown_operation(graph)


def triton_source(kernel: ir.Schedule) -> str:
    return TritonPrinter(kernel).print()


def arguments(kernel: ir.Schedule) -> list[str]:
    """Return the names of arguments: lanes, sizes, buffers and strides, 0 for one value of all."""
    names = ["lanes", "width", "inner", *(size.name for size in kernel.sizes)]
    for buffer in kernel.buffers:
        names.append(f"at_{buffer.label}")
        if buffer.is_strided:
            names += [f"step_{buffer.label}", f"row_{buffer.label}"]
        if buffer.role is Role.PARAMETER:
            names.append(f"stride_{buffer.label}")
    return names


def loads_ahead(loop: ir.For) -> bool:
    """Whether what a loop loads may be loaded turns before: nothing in it writes there."""
    inner = list(ir.statements(loop.body))
    stored = {each.buffer for each in inner if isinstance(each, ir.Store)}
    loads = [each for each in inner if isinstance(each, ir.Load) and Axis.LANE in each.index]
    is_flat = not any(isinstance(each, (ir.For, ir.Barrier)) for each in inner)
    return is_flat and bool(loads) and stored.isdisjoint(each.buffer for each in loads)


class TritonPrinter(Emitter):
    """Print a kernel whose lanes are a block in registers."""

    def __init__(self, kernel: ir.Schedule) -> None:
        real = kernel.dtype.value
        super().__init__(kernel, triton_target(getattr(torch, real)))
        self.real = f"tl.{real}"
        self.mask = "inside"

    def print(self) -> str:
        kernel, names = self.kernel, arguments(self.kernel)
        self.lines(*_MODULE.format(title=kernel.title.capitalize()).splitlines())
        # nothing is compiled again for a multiple of 16, say: so the kernel that was tried on a
        # sample is the one that runs, and it is not slower
        sizes = ", ".join(f'"{name}"' for name in names)
        self.line(f"@triton.jit(do_not_specialize=[{sizes}])")
        with self.indent(f"def {kernel.name}("):
            self.lines(*(f"{name}," for name in names), "BLOCK: tl.constexpr,")
        with self.indent("):"):
            # int64, as offsets into a sequence may need it. A lane is row * width + column.
            self.line("lane = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)")
            self.lines("inside = lane < lanes", "row = lane // width", "column = lane % width")
            self.line("neuron = column // inner")
            # Blocks of literals: an operation on blocks alone keeps the dtype of the arithmetic.
            self.lines(f"zero = {self.full('0.0')}", f"one = {self.full('1.0')}")
            self.line("true = one > zero")
            # Loop variables take the dtype of the first bound; an int64 one keeps offsets from
            # overflowing.
            self.line("first = tl.full((), 0, tl.int64)")
            for buffer in kernel.buffers:
                if buffer.is_strided:
                    at = f"row.to(tl.int64) * row_{buffer.label}"
                    self.line(f"lane_{buffer.label} = {at} + column")
            self.body(kernel.body)
        return self.source()

    def full(self, value: str) -> str:
        return f"tl.full((BLOCK,), {value}, {self.real})"

    def declare(self, value: ir.Var, spelled: str) -> None:
        self.line(f"{self.spell(value)} = {spelled}")

    def place(self, buffer: Buffer, index: Sequence[Index]) -> str:
        label, inner = buffer.label, [i for i in index if not isinstance(i, Axis)]
        if Axis.NEURON in index:
            stride = f" * stride_{label}" if buffer.role is Role.PARAMETER else ""
            return f"at_{label} + neuron{stride}"
        if buffer.is_strided:
            return f"at_{label} + {self.spell(inner[0])} * step_{label} + lane_{label}"
        total = ""
        for position, each in enumerate(inner):
            spelled = self.spell(each)
            total = f"({total} * {buffer.shape[position]} + {spelled})" if total else spelled
        if all(isinstance(i, int) for i in inner) and total:  # of 32 bits, and so may lanes be
            total = f"(first + {total})"
        return f"at_{label} + {f'{total} * lanes + ' if total else ''}lane"

    def load(self, buffer: Buffer, index: Sequence[Index]) -> str:
        if buffer.role is Role.LITERALS:
            (number,) = index
            return self.full(f"tl.load(at_literals + {number})")
        return f"tl.load({self.place(buffer, index)}, mask={self.mask}, other=0.0)"

    def store(self, buffer: Buffer, index: Sequence[Index], value: str) -> None:
        self.line(f"tl.store({self.place(buffer, index)}, {value}, mask={self.mask})")

    @contextmanager
    def loop(self, each: ir.For) -> Iterator[None]:
        index, stop = self.spell(each.index), self.spell(each.stop)
        start = "first" if each.start == 0 else self.spell(each.start)
        bounds = f"first, {stop} - {start}" if each.reverse else f"{start}, {stop}"
        counter = f"range({bounds})"
        if loads_ahead(each):
            counter = f"tl.range({bounds}, num_stages={STAGES})"
        with self.indent(f"for {'after_' * each.reverse}{index} in {counter}:"):
            if each.reverse:
                self.line(f"{index} = {stop} - 1 - after_{index}")
            yield

    @contextmanager
    def condition(self, condition: str) -> Iterator[None]:
        """Open no block: a mask that holds no lane instead of a branch."""
        outer, self.mask = self.mask, f"inside_{condition}"
        self.line(f"{self.mask} = lane < tl.where({condition}, lanes, 0)")
        yield
        self.mask = outer

    def barrier(self) -> None:
        # A value in scratch may be read by another thread than the one that wrote it.
        self.line("tl.debug_barrier()")
