"""Print a linear recurrence for Triton: a program walks a few rows of neurons through time.

A block is ``ROWS`` rows of ``COLUMNS`` neurons, both powers of two and masked. What a schedule
keeps in scratch, states and sums, is in registers here. A product reads its source from memory, in
parts of ``DEPTH`` columns, for no block can be cut in registers, and the matrix from the nearest
cache that holds it. With one matrix its result stays in registers as well: what is loaded of a
target is then what was last written to it. Products are in full precision, never in TF32.
"""

from __future__ import annotations

from collections.abc import Sequence

from tracetorch.fuse.codegen.triton_loops import TritonPrinter, arguments
from tracetorch.fuse.ir import kernel as ir
from tracetorch.fuse.ir.kernel import Axis, Buffer, Index, Role


def recurrence_source(kernel: ir.Schedule, *, one_matrix: bool) -> str:
    """Return the module of a kernel with products, with ``one_matrix`` a faster one for one."""
    return _RecurrencePrinter(kernel, one_matrix).print()


def loop_arguments(kernel: ir.Schedule) -> list[str]:
    """Return the names of a kernel's arguments, in order: no scratch, which is in registers."""
    return [name for name in arguments(kernel) if not name.startswith("at_scratch")]


class _RecurrencePrinter(TritonPrinter):
    block = ("ROWS", "COLUMNS", "DEPTH")

    def __init__(self, kernel: ir.Schedule, one_matrix: bool) -> None:
        super().__init__(kernel)
        found = list(ir.statements(self.kernel.body))
        read = {each.buffer for each in found if isinstance(each, ir.Load)}
        targets = {each.target: None for each in found if isinstance(each, ir.Multiply)}
        self.one_matrix = one_matrix
        self.factors: object = None  # of the product that was printed last
        self.in_registers = [each for each in targets if one_matrix and each in read]

    def arguments(self) -> list[str]:
        """Return the names of the arguments but the sizes of a block."""
        return loop_arguments(self.kernel)

    def unspecialised(self) -> list[str]:
        """Return those that say nothing of how lanes are aligned, which saves addresses."""
        return [size.name for size in self.kernel.sizes]

    def places(self) -> tuple[str, ...]:
        """Return the lines that say where the lanes of a program lie.

        Pointers are moved to its first row, so that a place in a block takes 32 bits, and the lanes
        of a row are seen to lie together.
        """
        moved: list[str] = []
        for buffer in self.kernel.buffers:
            if ir.Extent.LANES in buffer.shape and buffer.role is not Role.SCRATCH:
                width = f"row_{buffer.label}" if buffer.is_strided else "width"
                moved.append(f"at_{buffer.label} += before * {width}")
        return (
            "before = tl.program_id(0).to(tl.int64) * ROWS",
            *moved,
            # a step times lanes may need 64 bits
            *(
                f"{size.name} = tl.full((), 0, tl.int64) + {size.name}"
                for size in self.kernel.sizes
            ),
            "row = tl.arange(0, ROWS)[:, None]",
            "is_row = row < lanes // width - before",
            "column = tl.broadcast_to(tl.arange(0, COLUMNS)[None, :], (ROWS, COLUMNS))",
            "neuron = column",
            "lane = row * width + column",
            "inside = is_row & (column < width)",
            *(f"latest_{each.label} = {self.full('0.0')}" for each in self.in_registers),
        )

    def masked(self, condition: str) -> str:
        """Return the expression of a mask that holds no lane where a condition does not hold."""
        return f"is_row & (column < tl.where({condition}, width, 0))"

    def full(self, value: str) -> str:
        """Return the expression of a block of one value."""
        return f"tl.full((ROWS, COLUMNS), {value}, {self.real})"

    def load(self, buffer: Buffer, index: Sequence[Index]) -> str:
        """Return the expression of a value in memory, or in registers."""
        if buffer.role is Role.SCRATCH:
            return f"{buffer.label}_{index[0]}"
        if buffer in self.in_registers:
            return f"latest_{buffer.label}"
        return super().load(buffer, index)

    def store(self, buffer: Buffer, index: Sequence[Index], value: str) -> None:
        """Append the lines that write to memory, or to registers."""
        if buffer.role is Role.SCRATCH:
            self.line(f"{buffer.label}_{index[0]} = {value}")
            return
        super().store(buffer, index, value)
        if buffer in self.in_registers:
            self.line(f"latest_{buffer.label} = {value}")

    def product(self, each: ir.Multiply) -> None:
        """Append the products of one step with its matrices, behind a barrier.

        Other threads read what one has written, also where there is no matrix left.
        """
        first, count = self.spell(each.first), self.spell(each.count)
        target, begin = each.target, self._step(each.target_index)
        if self.one_matrix:
            # of one step with one matrix there is one product, whatever its targets
            factors = (each.source, each.source_index)
            if factors != self.factors:
                self.factors = factors
                self.barrier()
                self._multiply(each, "0", "zero")
            if target in self.in_registers:
                # once more than it is read
                self.line(f"latest_{target.label} = total")
            else:
                self.line(f"is_any = {count} > 0")
                with self.condition("is_any"):
                    super().store(target, each.target_index, "total")
            return
        self.barrier()
        with self.indent(f"for tap in range(first, {count}):"):
            place = ir.Var("place", ir.Dtype.INT64)
            number = f"({first} + tap)"
            self.declare(place, f"{begin} {'-' if each.reverse else '+'} tap")
            # the product with the last matrix is the first that its target is given
            mask = self.masked(f"{number} < taps - 1")
            at = self.place(target, (place, Axis.LANE))
            self._multiply(each, number, f"tl.load({at}, mask={mask}, other=0.0)")
            super().store(target, (place, Axis.LANE), "total")
        self.barrier()

    def _step(self, index: Sequence[Index]) -> str:
        """Return the spelling of the step at which a place in a sequence lies."""
        (step,) = [each for each in index if not isinstance(each, Axis)]
        return self.spell(step)

    def _multiply(self, each: ir.Multiply, number: str, begin: str) -> None:
        """Append the lines of ``total``, the product of one step with one matrix."""
        source, step = each.source.label, self._step(each.source_index)
        self.line(f"total = {begin}")
        with self.indent("for depth in range(0, width, DEPTH):"):
            self.lines(
                "inner_row = depth + tl.arange(0, DEPTH)",
                "has_row = inner_row < width",
                f"at = at_{source} + {step} * lanes + row * width + inner_row[None, :]",
                "values = tl.load(at, mask=is_row & has_row[None, :], other=0.0)",
                f"at = at_{each.matrix.label} + ({number} * width + inner_row[:, None]) * width",
                "mask = has_row[:, None] & (tl.arange(0, COLUMNS)[None, :] < width)",
                "factors = tl.load(at + tl.arange(0, COLUMNS)[None, :], mask=mask, other=0.0)",
                'total = tl.dot(values, factors, total, input_precision="ieee", '
                f"out_dtype={self.real})",
            )
