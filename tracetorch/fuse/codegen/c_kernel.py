"""Print a kernel as C99: scalar, one function, nothing needed but the C library.

The function takes the number of lanes and of neurons, the sizes, and a pointer for each buffer,
scratch too. Lane ``l`` is of neuron ``l % neurons``; step ``t`` of a sequence begins at
``t * lanes``. Compile it with ``-std=c99``, which keeps products and sums apart.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import AbstractContextManager

from tracetorch.fuse.codegen.emitter import BraceEmitter
from tracetorch.fuse.codegen.targets import c_target
from tracetorch.fuse.ir import kernel as ir

C_TYPES = {
    ir.Dtype.FLOAT32: "float", ir.Dtype.FLOAT64: "double", ir.Dtype.BOOL: "bool",
    ir.Dtype.INT8: "int8_t", ir.Dtype.INT16: "int16_t", ir.Dtype.INT32: "int32_t",
    ir.Dtype.INT64: "int64_t",
}  # fmt: skip


def c_source(kernel: ir.Schedule) -> str:
    return CPrinter(kernel, c_target(kernel.dtype.value)).print()


class CPrinter(BraceEmitter):
    """Print a kernel in C99."""

    counter = "int64_t"

    def print(self) -> str:
        kernel = self.kernel
        sizes = ["lanes", "neurons", *(self.spell(size) for size in kernel.sizes)]
        arguments = [f"int64_t {size}" for size in sizes]
        stored = ir.written(kernel)
        for buffer in kernel.buffers:
            constant = "" if buffer in stored else "const "
            arguments.append(f"{constant}{C_TYPES[buffer.dtype]} *{self.memory(buffer)}")
        self.lines(f"/* {kernel.title} */", "#include <math.h>", "#include <stdbool.h>")
        self.lines("#include <stdint.h>", "")
        with self.indent(f"void {kernel.name}({', '.join(arguments)}) {{"):
            at = len(self._lines)
            self.body(kernel.body)
            text = "\n".join(self._lines[at:])
            names = [*sizes, *map(self.memory, kernel.buffers)]
            unused = [name for name in names if not contains_word(text, name)]
            self._lines[at:at] = [f"    (void){name};" for name in unused]
        return self.source()

    def memory(self, buffer: ir.Buffer) -> str:
        return _ascii(buffer.label)

    def spell(self, operand: ir.Operand) -> str:
        return _ascii(super().spell(operand))

    def declare(self, value: ir.Var, spelled: str) -> None:
        self.line(f"const {C_TYPES[value.dtype]} {self.spell(value)} = {spelled};")

    def declare_variable(self, value: ir.Var, spelled: str) -> None:
        self.line(f"{C_TYPES[value.dtype]} {self.spell(value)} = {spelled};")

    def place(self, buffer: ir.Buffer, index: Sequence[ir.Index], lane: str = "lane") -> str:
        total = ""
        for position, each in enumerate(index):
            spelled = lane if isinstance(each, ir.Axis) else self.spell(each)
            if each is ir.Axis.NEURON:
                spelled = f"{lane} % neurons"
            if total:
                extent = buffer.shape[position]
                size = str(extent) if isinstance(extent, int) else "lanes"
                total = f"({total}) * {size} + {spelled}"
            else:
                total = spelled
        return f"{self.memory(buffer)}[{total}]"

    def load(self, buffer: ir.Buffer, index: Sequence[ir.Index]) -> str:
        return self.place(buffer, index)

    def over_lanes(self) -> AbstractContextManager[None]:
        return self.indent("for (int64_t lane = 0; lane < lanes; lane++) {")


def contains_word(text: str, name: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text) is not None


def _ascii(name: str) -> str:
    """Return a name in letters that C99 has."""
    return "".join(c if c.isascii() else f"u{ord(c):x}_" for c in name)
