"""Print a kernel as LLVM IR for the CPU, on explicit vectors of lanes.

A kernel becomes a function over tasks (:mod:`~tracetorch.fuse.codegen.llvm_tasks`), and each of its
``lanes`` one that computes a block of neighbouring lanes: in ``wide`` vectors, several registers of
the processor at a time so that it never waits for a result; and, where fewer lanes are left, in
``narrow`` ones of one register under a mask. All arguments come in one array of 64-bit integers.

The lanes of a step are ``rows`` of ``columns``. A task is a ``tile`` of columns in a group of
``per_group`` rows. The names of what its functions know::

    a         the array of arguments       scratch   the memory of the worker alone
    row, low  the first lane of the block  local     its place in the task's own memory
    count     lanes of the block           group     of the task
"""

from __future__ import annotations

import abc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from tracetorch.fuse.codegen.llvm_functions import LIBRARY, number, vector_function
from tracetorch.fuse.codegen.llvm_product import product_source
from tracetorch.fuse.codegen.llvm_tasks import HEADER, serial_entry, spread_source, task_entry
from tracetorch.fuse.ir.kernel import (
    PRIVATE,
    STRIDED,
    Accumulate,
    Axis,
    Barrier,
    Buffer,
    Dtype,
    If,
    Index,
    Kernel,
    Lanes,
    Load,
    Loop,
    Operand,
    Operation,
    Product,
    Role,
    Size,
    Statement,
    Store,
    Value,
    operands,
    statements,
)

_TYPES = {
    Dtype.FLOAT32: "float",
    Dtype.FLOAT64: "double",
    Dtype.BOOL: "i1",
    Dtype.INT8: "i8",
    Dtype.INT16: "i16",
    Dtype.INT32: "i32",
    Dtype.INT64: "i64",
}
_BYTES = {Dtype.FLOAT32: 4, Dtype.FLOAT64: 8}

# Values of a step for each register at which twice as many lanes are no longer faster, measured:
# some of them wait in the cache.
_CROWD = 2.25

# Bytes of a cache line, and of the widest vector register.
ALIGNMENT = 64

# Sequences that may be written past the caches: those of a forward pass, which is in chunks and so
# writes long runs.
UNREAD = frozenset({Role.OUTPUT, Role.RECORD})

# Integers that describe the lanes of a call, before the sizes of the kernel.
GEOMETRY = ("columns", "lanes", "rows", "per_group", "tile", "neurons", "inner")

_FLOATS = {
    "add": "fadd {t} {0}, {1}",
    "sub": "fsub {t} {0}, {1}",
    "mul": "fmul {t} {0}, {1}",
    "div": "fdiv {t} {0}, {1}",
    "neg": "fneg {t} {0}",
    "gt": "fcmp ogt {t} {0}, {1}",
    "ge": "fcmp oge {t} {0}, {1}",
    "lt": "fcmp olt {t} {0}, {1}",
    "le": "fcmp ole {t} {0}, {1}",
    "eq": "fcmp oeq {t} {0}, {1}",
    "ne": "fcmp une {t} {0}, {1}",
}
_BOOLEANS = {
    "and": "and {t} {0}, {1}",
    "or": "or {t} {0}, {1}",
    "xor": "xor {t} {0}, {1}",
    "not": "xor {t} {0}, splat (i1 true)",
}
_INTEGERS = {
    "add": "add i64 {0}, {1}",
    "sub": "sub i64 {0}, {1}",
    "mul": "mul i64 {0}, {1}",
    "gt": "icmp sgt i64 {0}, {1}",
    "ge": "icmp sge i64 {0}, {1}",
    "lt": "icmp slt i64 {0}, {1}",
    "le": "icmp sle i64 {0}, {1}",
    "eq": "icmp eq i64 {0}, {1}",
    "ne": "icmp ne i64 {0}, {1}",
}
_INTRINSICS = {
    "abs": "fabs",
    "round": "rint",
    **{op: op for op in ("copysign", "fma")},
    **{op: op for op in ("ceil", "floor", "sqrt", "trunc")},
}


@dataclass(frozen=True)
class Processor:
    """Vector registers of a processor.

    Args:
        bits: of a vector register.
        registers: how many of them there are.
    """

    bits: int = 512
    registers: int = 32

    def widths(self, kernel: Kernel) -> tuple[int, int]:
        """Return how many lanes the wide and the narrow blocks of a kernel have."""
        narrow = self.bits // 8 // _BYTES[kernel.dtype]
        live = max(1, most_alive(kernel.body))
        blocks = max(n for n in (1, 2, 4) if n == 1 or n * live <= _CROWD * self.registers)
        return blocks * narrow, narrow


def most_alive(body: Sequence[Statement]) -> int:
    """Return how many values of lanes are alive at once, in the innermost loop that has most.

    They stay in registers if there are as many. A value is alive from its assignment to the last
    statement that reads it; what comes from outside of a loop is alive in all of it.
    """
    most = 0
    for each in body:
        if isinstance(each, (Loop, If, Lanes)):
            most = max(most, most_alive(each.body))
    flat = [each for each in body if not isinstance(each, (Loop, If, Lanes))]
    last: dict[Value, int] = {}
    for place, each in enumerate(flat):
        last |= {v: place for v in operands(each) if isinstance(v, Value) and v.lanes}
    alive = {v for v in last if not any(_result(each) == v for each in flat)}
    most = max(most, len(alive))
    for place, each in enumerate(flat):
        result = _result(each)
        if result is not None and result.lanes:
            alive.add(result)
        most = max(most, len(alive))
        alive -= {v for v in alive if last.get(v, place) <= place}
    return most


def _result(each: Statement) -> Value | None:
    return each.result if isinstance(each, (Operation, Load)) else None


@dataclass(frozen=True)
class Printed:
    """A printed kernel.

    Args:
        text: of the module.
        name: of its function.
        width: lanes of a wide block.
        arguments: the names of what it is given, in order: geometry, sizes, then for each buffer
            its address, and strides of time and rows of a sequence or the number of values of a
            parameter.
        block_scratch: whether scratch is for one block at a time, not for the whole task.
        panel: columns of a panel of a matrix that it multiplies by.
    """

    text: str
    name: str
    width: int
    arguments: tuple[str, ...]
    block_scratch: bool
    panel: int


def print_kernel(
    kernel: Kernel, processor: Processor, *, serial: bool = False, bypass: bool = False
) -> Printed:
    """Print a kernel as a module.

    Args:
        kernel: a verified kernel.
        processor: for which vectors are sized; it must not be smaller than the one that compiles.
        serial: make a function that runs all lanes as one task, instead of one that threads share.
        bypass: write the sequences of :data:`UNREAD` past the caches, which so neither read the
            memory first nor lose what they hold. Memory and rows must be multiples of
            :data:`ALIGNMENT` then. The next atomic operation of a thread orders these stores.
    """
    return _Printer(kernel, processor, serial, bypass).run()


def is_strided(buffer: Buffer) -> bool:
    """Whether strides of time and rows of a buffer are arguments."""
    return buffer.role in STRIDED and len(buffer.shape) > 1


@dataclass
class _Printer:
    kernel: Kernel
    processor: Processor
    serial: bool
    bypass: bool
    functions: dict[str, list[str]] = field(default_factory=dict)
    declared: set[str] = field(default_factory=set)

    def run(self) -> Printed:
        kernel = self.kernel
        self.wide, self.narrow = self.processor.widths(kernel)
        self.panel = self.narrow * (4 if self.processor.registers >= 32 else 2)
        self.block_scratch = len(kernel.body) == 1 and isinstance(kernel.body[0], Lanes)
        names = [*GEOMETRY, *(size.name for size in kernel.sizes)]
        for buffer in kernel.buffers:
            if buffer.role in PRIVATE:
                continue
            names.append(buffer.label)
            if is_strided(buffer):
                names += [f"{buffer.label}.step", f"{buffer.label}.row"]
            if buffer.role is Role.PARAMETER:
                names.append(f"{buffer.label}.size")
        self.places = {name: HEADER + i for i, name in enumerate(names)}
        task = _Task(self, self.wide, None)
        task.task()
        entry = serial_entry if self.serial else task_entry
        lines = [
            f"; {kernel.title}",
            *entry(kernel.name, len(names), any(b.role in PRIVATE for b in kernel.buffers)),
            *task.lines,
        ]
        for function in self.functions.values():
            lines += ["", *function]
        lines += ["", *sorted(self.declared)]
        text = "\n".join(lines) + "\n"
        found = tuple(names), self.block_scratch, self.panel
        return Printed(text, kernel.name, self.wide, *found)

    def function(self, op: str, dtype: Dtype, width: int) -> str:
        """Return the name of a function on vectors, defined in the module."""
        real = _TYPES[dtype]
        name = f"{op}_{real}_{width}"
        if name not in self.functions:
            self.functions[name], declared = vector_function(op, real, width, name)
            self.declared |= declared
        return name

    def spread(self, dtype: Dtype, width: int, masked: bool) -> str:
        """Return the name of a function that loads a parameter of each lane of a block."""
        name = f"spread_{width}{'_masked' * masked}"
        if name not in self.functions:
            lines, declared = spread_source(name, _TYPES[dtype], width, masked)
            self.functions[name] = lines
            self.declared |= declared
        return name


class _Function(abc.ABC):
    """Write a function: text, addresses, loops and integers.

    Args:
        printer: of the module.
        width: lanes.
        mask: name of the mask of the lanes that there are; ``None`` if there are all.
    """

    def __init__(self, printer: _Printer, width: int, mask: str | None) -> None:
        self.printer, self.width, self.mask = printer, width, mask
        self.lines: list[str] = []
        self.label = "start"
        self.count = 0
        self.kernel = printer.kernel

    # Text

    def line(self, text: str) -> None:
        self.lines.append(f"  {text}")

    def let(self, text: str, name: str | None = None) -> str:
        if name is None:
            self.count += 1
            name = f"%.{self.count}"
        self.line(f"{name} = {text}")
        return name

    def block(self, label: str) -> None:
        self.lines.append(f"{label}:")
        self.label = label

    def fresh(self, word: str) -> str:
        self.count += 1
        return f"{word}.{self.count}"

    def type_of(self, value: Value) -> str:
        kind = _TYPES[value.dtype]
        return kind if self.is_scalar(value) else f"<{self.width} x {kind}>"

    def is_scalar(self, value: Value) -> bool:
        """Whether a value is one number: integers are; a uniform float is in all lanes."""
        return not value.lanes and (value.dtype.is_integer or value.dtype is Dtype.BOOL)

    def argument(self, name: str) -> str:
        """Load an argument."""
        place = self.let(f"getelementptr i64, ptr %a, i64 {self.printer.places[name]}")
        return self.let(f"load i64, ptr {place}")

    def spell(self, operand: Operand, dtype: Dtype) -> str:
        """Return an operand of an operation on lanes or integers."""
        if isinstance(operand, Value):
            return f"%{_quoted(operand.name)}"
        if isinstance(operand, bool):
            return f"splat (i1 {str(operand).lower()})"
        if isinstance(operand, int):
            return str(operand)
        return f"splat ({_TYPES[dtype]} {number(operand)})"

    @contextmanager
    def counted(self, start: str, stop: str, step: int = 1) -> Iterator[str]:
        """Write a loop over an integer, without values that it carries."""
        head, body, done = self.fresh("head"), self.fresh("body"), self.fresh("done")
        before = self.label
        index, following = f"%{self.fresh('i')}", f"%{self.fresh('n')}"
        self.line(f"br label %{head}")
        self.block(head)
        at = len(self.lines)
        more = self.let(f"icmp slt i64 {index}, {stop}")
        self.line(f"br i1 {more}, label %{body}, label %{done}")
        self.block(body)
        yield index
        self.line(f"{following} = add i64 {index}, {step}")
        self.lines.insert(
            at, f"  {index} = phi i64 [ {start}, %{before} ], [ {following}, %{self.label} ]"
        )
        self.line(f"br label %{head}")
        self.block(done)

    def place(self, name: str) -> str:
        return self.let(f"getelementptr i64, ptr %a, i64 {self.printer.places[name]}")

    def sizes(self) -> None:
        for size in self.kernel.sizes:
            self.let(f"load i64, ptr {self.place(size.name)}", f"%{_quoted(size.name)}")

    # Memory

    def addresses(self, used: Sequence[Buffer]) -> None:
        """Write the address of the first lane in each buffer, at its first index."""
        self.first: dict[Buffer, str] = {}
        self.stride: dict[Buffer, str] = {}
        scratch_before = "0"
        for buffer in self.kernel.buffers:
            if buffer.role in PRIVATE:
                place, scratch_before = scratch_before, self.behind(buffer, scratch_before)
                if buffer in used:
                    lanes = str(self.printer.wide) if self.printer.block_scratch else "%block.lanes"
                    shifted = self.let(f"add i64 {place}, %local")
                    self.first[buffer] = self.at("%scratch", buffer, shifted)
                    self.stride[buffer] = lanes
                continue
            if buffer not in used or buffer.role is Role.PARAMETER or buffer.role is Role.BIAS:
                continue
            address = self.let(f"inttoptr i64 {self.argument(buffer.label)} to ptr")
            if is_strided(buffer):
                row = self.let(f"mul i64 %row, {self.argument(f'{buffer.label}.row')}")
                offset = self.let(f"add i64 {row}, %low")
                self.stride[buffer] = self.argument(f"{buffer.label}.step")
            elif buffer.role is Role.SUMS:
                first = self.let(f"mul i64 %group, {buffer.shape[0]}")
                row = self.let(f"mul i64 {first}, %columns")
                offset = self.let(f"add i64 {row}, %low")
                self.stride[buffer] = "%columns"
            elif buffer.role is Role.LITERALS:
                offset = "0"
            else:
                offset = "%base"
                self.stride[buffer] = "%lanes"
            self.first[buffer] = self.at(address, buffer, offset)

    def at(self, address: str, buffer: Buffer, offset: str) -> str:
        return self.let(f"getelementptr {_TYPES[buffer.dtype]}, ptr {address}, i64 {offset}")

    def behind(self, buffer: Buffer, place: str) -> str:
        """Return the first place in the scratch behind a buffer, which begins at ``place``."""
        lanes = str(self.printer.wide) if self.printer.block_scratch else "%block.lanes"
        total = lanes
        for extent in buffer.shape[:-1]:
            size = str(extent) if isinstance(extent, int) else self.spell(extent.value, Dtype.INT64)
            total = self.let(f"mul i64 {total}, {size}")
        return self.let(f"add i64 {place}, {total}")

    def pointer(self, buffer: Buffer, index: Sequence[Index]) -> str:
        """Return the address of the block's first lane at an index."""
        inner = [i for i in index if not isinstance(i, Axis)]
        total = "0"
        for position, each in enumerate(inner):
            if position:
                total = self.let(f"mul i64 {total}, {buffer.shape[position]}")
            spelled = self.spell(each, Dtype.INT64)
            total = self.let(f"add i64 {total}, {spelled}") if position else spelled
        if inner and buffer in self.stride:
            total = self.let(f"mul i64 {total}, {self.stride[buffer]}")
        return self.at(self.first[buffer], buffer, total) if inner else self.first[buffer]

    # Statements

    def body(self, body: Sequence[Statement]) -> None:
        for each in body:
            self.statement(each)

    @abc.abstractmethod
    def statement(self, each: Statement) -> None:
        """Write a statement; those that all functions have are for ``super()``."""
        if isinstance(each, Loop):
            self.loop(each)
        elif isinstance(each, If):
            self.condition(each)
        elif isinstance(each, Operation):
            self.integer(each)
        elif not isinstance(each, Barrier):
            raise TypeError(f"{type(each).__name__} is not for {type(self).__name__}")

    def integer(self, each: Operation) -> None:
        """Write an operation on integers."""
        args = [self.spell(arg, Dtype.INT64) for arg in each.args]
        name = f"%{_quoted(each.result.name)}"
        if each.op == "min":
            self.let(f"call i64 @llvm.smin.i64(i64 {args[0]}, i64 {args[1]})", name)
            self.printer.declared.add("declare i64 @llvm.smin.i64(i64, i64)")
        else:
            self.let(_INTEGERS[each.op].format(*args), name)

    def loop(self, each: Loop) -> None:
        head, body, done = self.fresh("head"), self.fresh("body"), self.fresh("done")
        start, stop = self.spell(each.start, Dtype.INT64), self.spell(each.stop, Dtype.INT64)
        index, following = f"%{_quoted(each.index.name)}", f"%{self.fresh('next')}"
        first = self.let(f"sub i64 {stop}, 1") if each.reverse else start
        before = self.label
        self.line(f"br label %{head}")
        self.block(head)
        at = len(self.lines)
        compare = f"sge i64 {index}, {start}" if each.reverse else f"slt i64 {index}, {stop}"
        more = self.let(f"icmp {compare}")
        self.line(f"br i1 {more}, label %{body}, label %{done}")
        self.block(body)
        self.body(each.body)
        self.line(f"{following} = add i64 {index}, {-1 if each.reverse else 1}")
        last = self.label
        phis = [f"  {index} = phi i64 [ {first}, %{before} ], [ {following}, %{last} ]"]
        for c in each.carried:
            kind = self.type_of(c.inside)
            initial, after = (self.spell(v, c.inside.dtype) for v in (c.initial, c.next))
            phis.append(
                f"  %{_quoted(c.inside.name)} = phi {kind} [ {initial}, %{before} ], "
                f"[ {after}, %{last} ]"
            )
        self.lines[at:at] = phis
        self.line(f"br label %{head}")
        self.block(done)
        for c in each.carried:
            # the values at the head are the last ones; a phi of one edge gives them another name
            kind = self.type_of(c.inside)
            self.let(
                f"phi {kind} [ %{_quoted(c.inside.name)}, %{head} ]", f"%{_quoted(c.result.name)}"
            )

    def condition(self, each: If) -> None:
        then, done = self.fresh("then"), self.fresh("done")
        condition = self.spell(each.condition, Dtype.BOOL)
        self.line(f"br i1 {condition}, label %{then}, label %{done}")
        self.block(then)
        self.body(each.body)
        self.line(f"br label %{done}")
        self.block(done)


class _Task(_Function):
    """Write the function of a task: the loops around its blocks of lanes, and products."""

    def statement(self, each: Statement) -> None:
        if isinstance(each, Lanes):
            self.lanes(each)
        elif isinstance(each, Product):
            self.product(each)
        else:
            super().statement(each)

    def task(self) -> None:
        """Write the function of one task."""
        self.lines += [
            "define internal void @task(ptr %a, ptr %scratch, i64 %task) {",
            "start:",
        ]
        for name in GEOMETRY:
            self.let(f"load i64, ptr {self.place(name)}", f"%{name}")
        self.lines += [
            "  %past.tile = add i64 %columns, %tile",
            "  %past.tiles = sub i64 %past.tile, 1",
            "  %tiles = udiv i64 %past.tiles, %tile",
            "  %group = udiv i64 %task, %tiles",
            "  %which = urem i64 %task, %tiles",
            "  %tile.low = mul i64 %which, %tile",
            "  %tile.top = add i64 %tile.low, %tile",
            "  %tile.end = call i64 @llvm.smin.i64(i64 %tile.top, i64 %columns)",
            "  %row.begin = mul i64 %group, %per_group",
            "  %row.top = add i64 %row.begin, %per_group",
            "  %row.end = call i64 @llvm.smin.i64(i64 %row.top, i64 %rows)",
            "  %block.lanes = mul i64 %per_group, %tile",
        ]
        self.printer.declared.add("declare i64 @llvm.smin.i64(i64, i64)")
        self.sizes()
        products = [each for each in statements(self.kernel.body) if isinstance(each, Product)]
        if products:
            # the first lane of the task, for what is not done block by block
            self.lines += [
                "  %row = add i64 %row.begin, 0",
                "  %low = add i64 0, 0",
                "  %local = add i64 0, 0",
                "  %base = mul i64 %row, %columns",
                "  %task.rows = sub i64 %row.end, %row.begin",
            ]
            self.addresses([b for each in products for b in (each.source, each.target)])
        self.body(self.kernel.body)
        self.lines += ["  ret void", "}"]

    def lanes(self, each: Lanes) -> None:
        """Write the loops over rows and blocks, and the function of a block."""
        printer = self.printer
        defined = {_result(s) for s in statements(each.body)}
        defined |= {s.index for s in statements(each.body) if isinstance(s, Loop)}
        read = [v for s in statements(each.body) for v in operands(s) if isinstance(v, Value)]
        captured = [
            v
            for v in dict.fromkeys(read)
            if v not in defined and not v.lanes and v not in self.kernel.sizes and self.is_scalar(v)
        ]
        name = f"lanes{sum(key.startswith('lanes') for key in printer.functions) // 2}"
        kinds = ((f"{name}.wide", printer.wide, False), (f"{name}.narrow", printer.narrow, True))
        for label, lanes, masked in kinds:
            block = _Block(printer, lanes, "%mask" if masked else None)
            printer.functions[label] = []  # in the order of the calls
            block.of_block(label, each, captured)
            printer.functions[label] = block.lines
        given = "".join(f", {self.type_of(v)} {self.spell(v, v.dtype)}" for v in captured)

        def call(label: str, low: str, count: str, row: str, origin: str) -> None:
            local = "0"
            if not printer.block_scratch:
                local = self.let(f"add i64 {origin}, {low}")
            self.line(
                f"call void @{label}(ptr %a, ptr %scratch, i64 {row}, i64 {low}, i64 {count}, "
                f"i64 {local}, i64 %block.lanes, i64 %group{given})"
            )

        with self.counted("%row.begin", "%row.end") as row:
            start = self.let(f"mul i64 {row}, %columns")
            left = self.let(f"sub i64 %lanes, {start}")
            end = self.let(f"call i64 @llvm.smin.i64(i64 %tile.end, i64 {left})")
            turn = self.let(f"sub i64 {row}, %row.begin")
            origin = self.let(f"mul i64 {turn}, %tile")
            origin = self.let(f"sub i64 {origin}, %tile.low")
            width = self.let(f"sub i64 {end}, %tile.low")
            whole = self.let(f"sdiv i64 {width}, {printer.wide}")
            wide = self.let(f"mul i64 {whole}, {printer.wide}")
            middle = self.let(f"add i64 %tile.low, {wide}")
            # where the last row ends before the tile begins there is nothing to do
            middle = self.let(f"call i64 @llvm.smin.i64(i64 {middle}, i64 {end})")
            with self.counted("%tile.low", middle, printer.wide) as low:
                call(f"{name}.wide", low, str(printer.wide), row, origin)
            with self.counted(middle, end, printer.narrow) as low:
                rest = self.let(f"sub i64 {end}, {low}")
                count = self.let(f"call i64 @llvm.smin.i64(i64 {rest}, i64 {printer.narrow})")
                call(f"{name}.narrow", low, count, row, origin)

    def product(self, each: Product) -> None:
        """Write a product of the rows of the task."""
        kernel, printer = self.kernel, self.printer
        real = _TYPES[kernel.dtype]
        if "multiply" not in printer.functions:
            lines, declared = product_source(real, printer.panel, printer.narrow)
            printer.functions["multiply"] = lines
            printer.declared |= declared
        matrix = self.let(f"inttoptr i64 {self.argument(each.matrix.label)} to ptr")
        source = self.pointer(each.source, each.source_index)
        target = self.pointer(each.target, each.target_index)
        step = self.stride[each.target]
        if each.reverse:
            step = self.let(f"sub i64 0, {step}")
        extent = each.matrix.shape[0]
        matrices = str(extent)
        if isinstance(extent, Size):
            matrices = self.spell(extent.value, Dtype.INT64)
        first, count = (self.spell(n, Dtype.INT64) for n in (each.first, each.count))
        self.line(
            f"call void @multiply(ptr {source}, ptr {matrix}, ptr {target}, i64 %task.rows, "
            f"i64 %columns, i64 {first}, i64 {count}, i64 {matrices}, i64 {step})"
        )


class _Block(_Function):
    """Write the function of a block of lanes."""

    def statement(self, each: Statement) -> None:
        if isinstance(each, Operation):
            self.operation(each)
        elif isinstance(each, Load):
            self.load(each)
        elif isinstance(each, (Store, Accumulate)):
            self.store(each)
        else:
            super().statement(each)

    def of_block(self, label: str, each: Lanes, captured: Sequence[Value]) -> None:
        given = "".join(f", {self.type_of(v)} {self.spell(v, v.dtype)}" for v in captured)
        self.lines += [
            f"define internal void @{label}(ptr noalias %a, ptr noalias %scratch, i64 %row, "
            f"i64 %low, i64 %count, i64 %local, i64 %block.lanes, i64 %group{given}) noinline {{",
            "start:",
        ]
        for name in GEOMETRY:
            self.let(f"load i64, ptr {self.place(name)}", f"%{name}")
        self.sizes()
        first = self.let("mul i64 %row, %columns")
        self.let(f"add i64 {first}, %low", "%base")
        if self.mask is not None:
            vector = f"<{self.width} x i64>"
            lanes = ", ".join(f"i64 {i}" for i in range(self.width))
            one = self.let(f"insertelement {vector} poison, i64 %count, i64 0")
            counts = self.let(
                f"shufflevector {vector} {one}, {vector} poison, "
                f"<{self.width} x i32> zeroinitializer"
            )
            self.let(f"icmp ult {vector} <{lanes}>, {counts}", "%mask")
        accesses = (Load, Store, Accumulate)
        self.addresses([s.buffer for s in statements(each.body) if isinstance(s, accesses)])
        self.body(each.body)
        self.lines += ["  ret void", "}"]

    def vector(self, dtype: Dtype) -> str:
        return f"<{self.width} x {_TYPES[dtype]}>"

    def operation(self, each: Operation) -> None:
        op, result = each.op, each.result
        name = f"%{_quoted(result.name)}"
        dtypes = [arg.dtype for arg in each.args if isinstance(arg, Value)]
        numbers = [dtype for dtype in dtypes if dtype is not Dtype.BOOL]
        dtype = numbers[0] if numbers else self.kernel.dtype
        if dtype.is_integer:
            self.integer(each)
            return
        args = [self.spell(arg, dtype) for arg in each.args]
        kind = self.vector(dtype)
        truth = self.vector(Dtype.BOOL)
        if op in _FLOATS:
            self.let(_FLOATS[op].format(*args, t=kind), name)
        elif op in _BOOLEANS:
            self.let(_BOOLEANS[op].format(*args, t=truth), name)
        elif op == "where":
            self.let(f"select {truth} {args[0]}, {kind} {args[1]}, {kind} {args[2]}", name)
        elif op == "float":
            one, zero = self.spell(1.0, dtype), self.spell(0.0, dtype)
            self.let(f"select {truth} {args[0]}, {kind} {one}, {kind} {zero}", name)
        elif op == "double":
            self.let(f"fpext {kind} {args[0]} to {self.vector(Dtype.FLOAT64)}", name)
        elif op in ("max", "min"):
            # a NaN of the first one passes; of zeros of both signs, the second one is returned
            more = self.let(f"fcmp {'ogt' if op == 'max' else 'olt'} {kind} {args[0]}, {args[1]}")
            nan = self.let(f"fcmp uno {kind} {args[0]}, {args[0]}")
            first = self.let(f"or {truth} {more}, {nan}")
            self.let(f"select {truth} {first}, {kind} {args[0]}, {kind} {args[1]}", name)
        elif op == "sigmoid":
            one = self.spell(1.0, dtype)
            grown = self.call("exp", dtype, [self.let(f"fneg {kind} {args[0]}")])
            total = self.let(f"fadd {kind} {one}, {grown}")
            self.let(f"fdiv {kind} {one}, {total}", name)
        elif op in _INTRINSICS:
            suffix = f"v{self.width}f{8 * _BYTES[dtype]}"
            intrinsic = f"@llvm.{_INTRINSICS[op]}.{suffix}"
            self.printer.declared.add(
                f"declare {kind} {intrinsic}({', '.join([kind] * len(args))})"
            )
            given = ", ".join(f"{kind} {arg}" for arg in args)
            self.let(f"call {kind} {intrinsic}({given})", name)
        else:
            self.call(op, dtype, args, name)

    def call(self, op: str, dtype: Dtype, args: Sequence[str], name: str | None = None) -> str:
        kind = self.vector(dtype)
        given = ", ".join(f"{kind} {arg}" for arg in args)
        function = self.printer.function(op, dtype, self.width)
        return self.let(f"call {kind} @{function}({given})", name)

    def load(self, each: Load) -> None:
        buffer, name = each.buffer, f"%{_quoted(each.result.name)}"
        kind = self.vector(buffer.dtype)
        if Axis.NEURON in each.index:
            address = self.let(f"inttoptr i64 {self.argument(buffer.label)} to ptr")
            size = "%neurons"
            if buffer.role is Role.PARAMETER:
                size = self.argument(f"{buffer.label}.size")
            spread = self.printer.spread(buffer.dtype, self.width, self.mask is not None)
            self.let(
                f"call {kind} @{spread}(ptr {address}, i64 {size}, i64 %low, i64 %count, "
                "i64 %neurons, i64 %inner)",
                name,
            )
            return
        pointer = self.pointer(buffer, each.index)
        if Axis.LANE not in each.index:
            scalar = self.let(f"load {_TYPES[buffer.dtype]}, ptr {pointer}")
            one = self.let(f"insertelement {kind} poison, {_TYPES[buffer.dtype]} {scalar}, i64 0")
            self.let(
                f"shufflevector {kind} {one}, {kind} poison, <{self.width} x i32> zeroinitializer",
                name,
            )
            return
        self.read(pointer, buffer.dtype, name)

    def read(self, pointer: str, dtype: Dtype, name: str | None = None) -> str:
        kind, size = self.vector(dtype), _BYTES[dtype]
        if self.mask is None:
            return self.let(f"load {kind}, ptr {pointer}, align {size}", name)
        intrinsic = f"@llvm.masked.load.v{self.width}f{8 * size}.p0"
        truth = self.vector(Dtype.BOOL)
        self.printer.declared.add(f"declare {kind} {intrinsic}(ptr, i32, {truth}, {kind})")
        zero = f"{kind} zeroinitializer"
        given = f"ptr {pointer}, i32 {size}, {truth} {self.mask}, {zero}"
        return self.let(f"call {kind} {intrinsic}({given})", name)

    def store(self, each: Store | Accumulate) -> None:
        dtype = each.buffer.dtype
        kind, size = self.vector(dtype), _BYTES[dtype]
        pointer, value = self.pointer(each.buffer, each.index), self.spell(each.value, dtype)
        if isinstance(each, Accumulate):
            value = self.let(f"fadd {kind} {self.read(pointer, dtype)}, {value}")
        if self.mask is None:
            place = f"align {size}"
            if self.printer.bypass and each.buffer.role in UNREAD:
                place = f"align {ALIGNMENT}, !nontemporal !0"
                self.printer.declared.add("!0 = !{i32 1}")
            self.line(f"store {kind} {value}, ptr {pointer}, {place}")
            return
        intrinsic = f"@llvm.masked.store.v{self.width}f{8 * size}.p0"
        truth = self.vector(Dtype.BOOL)
        self.printer.declared.add(f"declare void {intrinsic}({kind}, ptr, i32, {truth})")
        self.line(
            f"call void {intrinsic}({kind} {value}, ptr {pointer}, i32 {size}, {truth} {self.mask})"
        )


def _quoted(name: str) -> str:
    """Return a name as LLVM spells it: letters that are not ASCII are in quotes, as bytes."""
    if name.isascii():
        return f"v.{name}"
    spelled = "".join(c if c.isascii() else "".join(f"\\{b:02X}" for b in c.encode()) for c in name)
    return f'"v.{spelled}"'


def unknown(op: str) -> bool:
    """Whether there is no instruction, intrinsic or function for an operation."""
    known = {*_FLOATS, *_BOOLEANS, *_INTRINSICS, *LIBRARY}
    return op not in known | {"where", "float", "double", "max", "min", "sigmoid"}
