"""Print a kernel as LLVM IR for the CPU, on explicit vectors of lanes.

Each of its ``lanes`` becomes a function of a block of neighbouring lanes: in ``wide`` vectors,
several registers at a time so that it never waits for a result; and, where fewer lanes are left, in
``narrow`` ones of one register under a mask. The lanes of a step are ``rows`` of ``columns``; a
task is a ``tile`` of columns in a group of ``per_group`` rows. What its functions know::

    a         the array of arguments       scratch   the memory of the worker alone
    row, low  the first lane of the block  local     its place in the task's own memory
    count     lanes of the block           group     of the task
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from tracetorch.fuse.codegen.llvm_functions import product_source, spread_source, vector_function
from tracetorch.fuse.codegen.llvm_tasks import HEADER, plain_entry, task_entry
from tracetorch.fuse.codegen.llvm_writer import INSTRUCTIONS, WORD, Array, Operand, Value, Writer
from tracetorch.fuse.ir import kernel as ir
from tracetorch.fuse.ir.kernel import PRIVATE, Dtype, Role, operands, statements

_TYPES = {
    Dtype.FLOAT32: "float", Dtype.FLOAT64: "double", Dtype.BOOL: "i1", Dtype.INT8: "i8",
    Dtype.INT16: "i16", Dtype.INT32: "i32", Dtype.INT64: "i64",
}  # fmt: skip
_BYTES = {Dtype.FLOAT32: 4, Dtype.FLOAT64: 8}

# Values of a step for each register at which twice as many lanes are no longer faster, measured.
_CROWD = 2.25

# Bytes of a cache line, and of the widest vector register.
ALIGNMENT = 64

# Sequences that may be written past the caches: a forward pass in chunks writes long runs.
UNREAD = frozenset({Role.OUTPUT, Role.RECORD})

# Integers that describe the lanes of a call, before the sizes of the kernel.
GEOMETRY = ("columns", "lanes", "rows", "per_group", "tile", "neurons", "inner")

_INTRINSICS = {
    "abs": "fabs",
    "round": "rint",
    **{op: op for op in ("copysign", "fma", "ceil", "floor", "sqrt", "trunc")},
}


@dataclass(frozen=True)
class Processor:
    """Vector registers of a processor: how many bits each has, and how many there are."""

    bits: int = 512
    registers: int = 32

    def widths(self, kernel: ir.Schedule) -> tuple[int, int]:
        """Return how many lanes the wide and the narrow blocks of a kernel have."""
        narrow = self.bits // 8 // _BYTES[kernel.dtype]
        live = max(1, most_alive(kernel.body))
        blocks = max(n for n in (1, 2, 4) if n == 1 or n * live <= _CROWD * self.registers)
        return blocks * narrow, narrow


def most_alive(body: Sequence[ir.Statement]) -> int:
    """Return how many values of lanes are alive at once, in the innermost loop that has most."""
    most, alive = 0, set[ir.Var]()
    for each in reversed(body):
        if isinstance(each, (ir.For, ir.If, ir.Lanes)):
            most = max(most, most_alive(each.body))
            continue
        made = {each.result} if isinstance(each, (ir.Operation, ir.Load)) else set()
        read = {v for v in operands(each) if isinstance(v, ir.Var) and v.lanes}
        most = max(most, len(alive | read | {v for v in made if v.lanes}))
        alive = alive - made | read
    return most


@dataclass(frozen=True)
class Printed:
    """A printed kernel: the text of its module, and the name of its function."""

    text: str
    name: str
    width: int
    """Lanes of a wide block."""
    arguments: tuple[str, ...]
    """The names of what it is given: geometry, sizes, then for each buffer its address, and strides
    of time and rows of a sequence or the number of values of a parameter."""
    block_scratch: bool
    """Whether scratch is for one block at a time, not for the whole task."""
    panel: int
    """Columns of a panel of a matrix that it multiplies by."""


def print_kernel(
    kernel: ir.Schedule,
    processor: Processor,
    *,
    serial: bool = False,
    called: bool = False,
    bypass: bool = False,
) -> Printed:
    """Print a kernel as a module for a processor that is not larger than the one that compiles.

    Threads share its function; ``serial``: it runs all lanes as one task; ``called``: it is one of
    a block, scratch and a task's number. ``bypass``: it writes :data:`UNREAD` past the caches: rows
    are multiples of :data:`ALIGNMENT` then, and a thread's next atomic orders the stores.
    """
    return _Module(kernel, processor, serial, called, bypass).run()


@dataclass
class _Module:
    kernel: ir.Schedule
    processor: Processor
    serial: bool
    called: bool
    bypass: bool
    functions: dict[str, list[str]] = field(default_factory=dict)
    declared: set[str] = field(default_factory=set)

    def run(self) -> Printed:
        kernel = self.kernel
        self.wide, self.narrow = self.processor.widths(kernel)
        self.panel = self.narrow * (4 if self.processor.registers >= 32 else 2)
        self.block_scratch = len(kernel.body) == 1 and isinstance(kernel.body[0], ir.Lanes)
        names = [*GEOMETRY, *(size.name for size in kernel.sizes)]
        for buffer in kernel.buffers:
            if buffer.role in PRIVATE:
                continue
            names.append(buffer.label)
            if buffer.is_strided:
                names += [f"{buffer.label}.step", f"{buffer.label}.row"]
            if buffer.role is Role.PARAMETER:
                names.append(f"{buffer.label}.size")
        self.places = {name: HEADER + i for i, name in enumerate(names)}
        task = _Task(self, self.wide)
        task.write()
        has_scratch = any(buffer.role in PRIVATE for buffer in kernel.buffers)
        if self.serial and has_scratch:
            raise ValueError(f"{kernel.name} needs scratch, which it lacks where it runs alone.")
        entry = task_entry(kernel.name, len(names), has_scratch)
        if self.called or self.serial:
            entry = plain_entry(kernel.name, self.called)
        lines = [f"; {kernel.title}", *entry]
        lines += ["define internal void @task(ptr %a, ptr %scratch, i64 %task) {", "begin:"]
        lines += [*task.lines, "  ret void", "}"]
        for function in self.functions.values():
            lines += ["", *function]
        text = "\n".join([*lines, "", *sorted(self.declared), ""])
        found = (tuple(names), self.block_scratch, self.panel)
        return Printed(text, kernel.name, self.wide, *found)

    def define(self, name: str, made: Callable[..., tuple[list[str], set[str]]], *how: Any) -> None:
        """Define a function once, from what makes its lines and says what they need."""
        if name not in self.functions:
            self.functions[name], declared = made(*how)
            self.declared |= declared


class _Function(Writer):
    """Write a function for blocks of some lanes: addresses, loops and operations."""

    def __init__(self, printer: _Module, width: int) -> None:
        super().__init__(printer.declared)
        self.printer, self.width, self.kernel = printer, width, printer.kernel
        self.known: dict[str, Value] = {}  # of the arguments, and what the docstring above names
        self.values: dict[ir.Var, Value] = {}

    def argument(self, name: str) -> Value:
        return Array(Value(self, "%a", "ptr"), WORD)[self.printer.places[name]]

    def memory(self, buffer: ir.Buffer) -> Array:
        return Array(self.convert("inttoptr", self.argument(buffer.label), "ptr"), kind_of(buffer))

    def begin(self) -> None:
        self.known |= {name: self.argument(name) for name in GEOMETRY}
        self.values |= {size: self.argument(size.name) for size in self.kernel.sizes}

    def spell(self, operand: ir.Operand, dtype: Dtype) -> Value:
        """Return an operand; a number that is no integer is in all lanes."""
        if isinstance(operand, ir.Var):
            return self.values[operand]
        is_integer = isinstance(operand, int) and not isinstance(operand, bool)
        kind = "i1" if isinstance(operand, bool) else _TYPES[dtype]
        return self.literal(operand, WORD if is_integer else f"<{self.width} x {kind}>")

    def integer(self, operand: ir.Operand) -> Value:
        return self.spell(operand, Dtype.INT64)

    # Memory

    def addresses(self, used: Sequence[ir.Buffer]) -> None:
        """Write the address of the first lane in each buffer, at its first index."""
        self.starts: dict[ir.Buffer, Array] = {}
        self.strides: dict[ir.Buffer, Value] = {}
        known, before = self.known, self.literal(0, WORD)
        lanes = known["block.lanes"]
        if self.printer.block_scratch:
            lanes = self.literal(self.printer.wide, WORD)
        for buffer in self.kernel.buffers:
            if buffer.role in PRIVATE:
                place, total = before, lanes
                for extent in buffer.shape[:-1]:
                    total = total * (extent if isinstance(extent, int) else self.extent(extent))
                before = place + total
                if buffer in used:
                    all_of_it = Array(Value(self, "%scratch", "ptr"), kind_of(buffer))
                    self.starts[buffer] = all_of_it.at(place + known["local"])
                    self.strides[buffer] = lanes
                continue
            if buffer not in used or buffer.role in (Role.PARAMETER, Role.BIAS):
                continue
            memory, offset, stride = self.memory(buffer), known["base"], known["lanes"]
            if buffer.is_strided:
                offset = known["row"] * self.argument(f"{buffer.label}.row") + known["low"]
                stride = self.argument(f"{buffer.label}.step")
            elif buffer.role is Role.SUMS:
                first = known["group"] * self.extent(buffer.shape[0])
                offset, stride = first * known["columns"] + known["low"], known["columns"]
            elif buffer.role is Role.LITERALS:
                self.starts[buffer] = memory
                continue
            self.starts[buffer], self.strides[buffer] = memory.at(offset), stride

    def extent(self, extent: ir.Dimension) -> Value:
        """Return a size of a dimension, without the number that may be added to it."""
        return self.integer(extent.value if isinstance(extent, ir.Size) else extent)  # type: ignore[arg-type]

    def place(self, buffer: ir.Buffer, index: Sequence[ir.Index]) -> Array:
        """Return the memory of the block's first lane at an index."""
        inner = [i for i in index if not isinstance(i, ir.Axis)]
        if not inner:
            return self.starts[buffer]
        total = self.integer(inner[0])
        for position, each in enumerate(inner[1:], 1):
            total = total * self.extent(buffer.shape[position]) + self.integer(each)
        if buffer in self.strides:
            total = total * self.strides[buffer]
        return self.starts[buffer].at(total)

    # Statements

    def body(self, body: Sequence[ir.Statement]) -> None:
        for each in body:
            if isinstance(each, ir.For):
                self.walk(each)
            elif isinstance(each, ir.If):
                with self.when(self.values[each.condition]):
                    self.body(each.body)
            elif isinstance(each, ir.Operation):
                self.operation(each)
            else:
                self.statement(each)

    def statement(self, each: ir.Statement) -> None:
        """Write a statement that only one kind of function has; a barrier is none."""

    def walk(self, each: ir.For) -> None:
        start, stop = self.integer(each.start), self.integer(each.stop)
        first = stop - 1 if each.reverse else start
        initial = [self.spell(c.initial, c.inside.dtype) for c in each.carried]

        def goes_on(carried: Sequence[Value]) -> Value:
            return carried[0] >= start if each.reverse else carried[0] < stop

        with self.repeat(goes_on, first, *initial) as now:
            index, *inside = now.carried
            self.values[each.index] = index
            self.values.update(zip((c.inside for c in each.carried), inside, strict=True))
            self.body(each.body)
            following = [self.spell(c.next, c.inside.dtype) for c in each.carried]
            now.next = (index + (-1 if each.reverse else 1), *following)
        self.values.update(zip((c.result for c in each.carried), inside, strict=True))

    def operation(self, each: ir.Operation) -> None:
        """Write an operation, in every lane if its operands have lanes."""
        dtypes = [arg.dtype for arg in each.args if isinstance(arg, ir.Var)]
        dtype = next((d for d in dtypes if d is not Dtype.BOOL), self.kernel.dtype)
        args = [self.spell(arg, dtype) for arg in each.args]
        found = self.computed(each.op, args, dtype)
        self.values[each.result] = self.named(found, each.result.name)

    def computed(self, op: str, args: Sequence[Value], dtype: Dtype) -> Value:
        """Write one operation on operands of a dtype, and booleans."""
        x, kind, real = args[0], f"<{self.width} x {_TYPES[dtype]}>", _TYPES[dtype]
        if op in INSTRUCTIONS:
            return x.apply(op, args[1])
        if op in ("max", "min"):
            if dtype.is_integer:
                return self.intrinsic("llvm.smin.i64", WORD, *args)
            # a NaN of the first one passes; of zeros of both signs, the second one is returned
            first = x.apply("gt" if op == "max" else "lt", args[1]) | x.apply("unordered", x)
            return self.select(first, x, args[1], kind)
        if op == "not":
            return x ^ True
        if op == "neg":
            return self.value(f"fneg {x}", kind)
        if op == "where":
            return self.select(x, args[1], args[2], kind)
        if op == "float":
            return self.select(x, 1.0, 0.0, kind)
        if op == "double":
            return self.convert("fpext", x, f"<{self.width} x double>")
        if op == "sigmoid":
            one = self.literal(1.0, kind)
            return one / (one + self.computed("exp", [self.computed("neg", args, dtype)], dtype))
        if op in _INTRINSICS:
            name = f"llvm.{_INTRINSICS[op]}.v{self.width}f{8 * _BYTES[dtype]}"
            return self.intrinsic(name, kind, *args)
        name = f"{op}_{real}_{self.width}"
        self.printer.define(name, vector_function, op, real, self.width, name)
        return self.value(f"call {kind} @{name}({', '.join(map(str, args))})", kind)


class _Task(_Function):
    """Write the function of a task: the loops around its blocks of lanes, and products."""

    def least(self, first: Value, second: Operand) -> Value:
        return self.intrinsic("llvm.smin.i64", WORD, first, self.literal(second, WORD))

    def write(self) -> None:
        self.begin()
        known, task = self.known, Value(self, "%task", WORD)
        columns, tile, per_group = (known[name] for name in ("columns", "tile", "per_group"))
        tiles = (columns + tile - 1) // tile
        known["group"] = task // tiles
        self.low = task % tiles * tile
        self.end = self.least(self.low + tile, columns)
        self.row = known["group"] * per_group
        self.last_row = self.least(self.row + per_group, known["rows"])
        known["block.lanes"] = per_group * tile
        products = [s for s in statements(self.kernel.body) if isinstance(s, ir.Multiply)]
        if products:
            # the first lane of the task, for what is not done block by block
            zero = self.literal(0, WORD)
            known |= {"row": self.row, "low": zero, "local": zero, "base": self.row * columns}
            self.rows = self.last_row - self.row
            self.addresses([b for each in products for b in (each.source, each.target)])
        self.body(self.kernel.body)

    def statement(self, each: ir.Statement) -> None:
        if isinstance(each, ir.Lanes):
            self.lanes(each)
        elif isinstance(each, ir.Multiply):
            self.product(each)

    def lanes(self, each: ir.Lanes) -> None:
        """Write the loops over rows and blocks, and the function of a block."""
        printer, known = self.printer, self.known
        read = [v for s in statements(each.body) for v in operands(s) if isinstance(v, ir.Var)]
        sizes = self.kernel.sizes
        captured = [v for v in dict.fromkeys(read) if v in self.values and v not in sizes]
        name = f"lanes{sum(key.startswith('lanes') for key in printer.functions) // 2}"
        for label, width in ((f"{name}.wide", printer.wide), (f"{name}.narrow", printer.narrow)):
            printer.functions[label] = []  # in the order of the calls
            inner = _Block(printer, width, is_masked=label.endswith("narrow"))
            printer.functions[label] = inner.of_lanes(label, each, captured)

        def call(label: str, low: Value, count: Value, row: Value, origin: Value) -> None:
            local = self.literal(0, WORD) if printer.block_scratch else origin + low
            given = (row, low, count, local, known["block.lanes"], known["group"])
            values = map(str, (*given, *map(self.values.__getitem__, captured)))
            self.line(f"call void @{label}(ptr %a, ptr %scratch, {', '.join(values)})")

        with self.loop(self.row, self.last_row) as outer:
            row = outer.index
            end = self.least(self.end, known["lanes"] - row * known["columns"])
            origin = (row - self.row) * known["tile"] - self.low
            whole = (end - self.low).apply("sdiv", printer.wide) * printer.wide
            # where the last row ends before the tile begins there is nothing to do
            middle = self.least(self.low + whole, end)
            with self.loop(self.low, middle, step=printer.wide) as block:
                wide = self.literal(printer.wide, WORD)
                call(f"{name}.wide", block.index, wide, row, origin)
            with self.loop(middle, end, step=printer.narrow) as block:
                count = self.least(end - block.index, printer.narrow)
                call(f"{name}.narrow", block.index, count, row, origin)

    def product(self, each: ir.Multiply) -> None:
        printer, real = self.printer, _TYPES[self.kernel.dtype]
        printer.define("multiply", product_source, real, printer.panel, printer.narrow)
        matrix = self.memory(each.matrix).pointer
        source = self.place(each.source, each.source_index).pointer
        target = self.place(each.target, each.target_index).pointer
        step = self.strides[each.target]
        if each.reverse:
            step = self.literal(0, WORD) - step
        numbers = (self.rows, self.known["columns"], self.integer(each.first))
        more = (self.integer(each.count), self.extent(each.matrix.shape[0]), step)
        given = ", ".join(map(str, (source, matrix, target, *numbers, *more)))
        self.line(f"call void @multiply({given})")


class _Block(_Function):
    """Write the function of a block of lanes, of which there may be fewer if it is masked."""

    def __init__(self, printer: _Module, width: int, *, is_masked: bool) -> None:
        super().__init__(printer, width)
        self.is_masked, self.mask = is_masked, Value(self, "", "")

    def of_lanes(self, label: str, each: ir.Lanes, captured: Sequence[ir.Var]) -> list[str]:
        """Return the lines of the function; it is given values of the one around it."""
        names = ("row", "low", "count", "local", "block.lanes", "group")
        self.known |= {name: Value(self, f"%{name}", WORD) for name in names}
        given = {v: Value(self, f"%given{i}", _TYPES[v.dtype]) for i, v in enumerate(captured)}
        self.values |= given
        parts = ", ".join(map(str, (*self.known.values(), *given.values())))
        self.begin()
        known = self.known
        known["base"] = known["row"] * known["columns"] + known["low"]
        if self.is_masked:
            counts = self.spread(known["count"], self.width)
            self.mask = self.numbered(self.width, WORD).apply("ult", counts)
        accesses = (ir.Load, ir.Store)
        self.addresses([s.buffer for s in statements(each.body) if isinstance(s, accesses)])
        self.body(each.body)
        head = f"define internal void @{label}(ptr noalias %a, ptr noalias %scratch, {parts})"
        return [f"{head} noinline {{", "begin:", *self.lines, "  ret void", "}"]

    def statement(self, each: ir.Statement) -> None:
        if isinstance(each, ir.Load):
            self.values[each.result] = self.named(self.load(each), each.result.name)
        elif isinstance(each, ir.Store):
            self.store(each)

    def load(self, each: ir.Load) -> Value:
        buffer, known = each.buffer, self.known
        if ir.Axis.NEURON in each.index:
            address, size = self.memory(buffer).pointer, known["neurons"]
            if buffer.role is Role.PARAMETER:
                size = self.argument(f"{buffer.label}.size")
            real, name = kind_of(buffer), f"spread_{self.width}{'_masked' * self.is_masked}"
            self.printer.define(name, spread_source, name, real, self.width, self.is_masked)
            given = (address, size, *(known[n] for n in ("low", "count", "neurons", "inner")))
            kind = f"<{self.width} x {real}>"
            return self.value(f"call {kind} @{name}({', '.join(map(str, given))})", kind)
        place = self.place(buffer, each.index)
        if ir.Axis.LANE not in each.index:
            return self.spread(place[0], self.width)
        return self.read(place)

    def read(self, place: Array) -> Value:
        return place.masked(0, self.mask) if self.is_masked else place.vector(0, self.width)

    def store(self, each: ir.Store) -> None:
        """Write a value of each lane, or add it."""
        buffer = each.buffer
        place, value = self.place(buffer, each.index), self.spell(each.value, buffer.dtype)
        if buffer.role is Role.SUMS:
            value = self.read(place) + value
        if self.is_masked:
            place.store_masked(0, self.mask, value)
        elif self.printer.bypass and buffer.role in UNREAD:
            self.declared.add("!0 = !{i32 1}")
            self.line(f"store {value}, {place.pointer}, align {ALIGNMENT}, !nontemporal !0")
        else:
            place.store(0, value)


def kind_of(buffer: ir.Buffer) -> str:
    return _TYPES[buffer.dtype]
