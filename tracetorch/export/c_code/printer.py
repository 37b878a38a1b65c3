"""Print stages as C99, or in other words of the same blocks: a function for each, and its tables.

Pointwise stages go through the printer of kernels; products, pools, copies and sums are loops whose
order is fixed: every sum begins with the bias, and adds its terms in the order of the input's
channels, then of the kernel's rows and columns. Whether a product is driven by events, or is a sum
for each output, does not change that order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import cast

import numpy as np

from tracetorch.export.c_code.arrangement import Memory
from tracetorch.export.c_code.stages import (
    Array,
    Copy,
    Pointwise,
    Pool,
    Product,
    Role,
    Stage,
    Sum,
    View,
)
from tracetorch.fuse.codegen.c_kernel import C_TYPES, CPrinter
from tracetorch.fuse.codegen.emitter import Target
from tracetorch.fuse.codegen.targets import c_target
from tracetorch.fuse.ir.kernel import Buffer, Dtype, Index, Operand, Operation, Schedule, Var
from tracetorch.fuse.ir.kernel import Role as BufferRole

# bytes of a value of each type
SIZES = {"float": 4, "bool": 1}
SIZES |= {f"{sign}int{bits}_t": bits // 8 for sign in ("", "u") for bits in (8, 16, 32, 64)}
EMPTY = Schedule("", "", Dtype.FLOAT32, (), (), ())


@dataclass(frozen=True)
class Words:
    """Spelling of the statements of stages: that of C, or of a language with the blocks of C."""

    target: Target  # operations in float32
    literal: Callable[[float], str]  # spells a number
    zero: str = "0.0f"  # the number 0 of the arithmetic
    counter: str = "int32_t"  # declares the index of a loop
    constant: str = "const {kind} {name} = {value};"  # declares what does not change
    variable: str = "{kind} {name} = {value};"  # declares what changes
    member: str = "s->"  # stands before the name of an array of the stream
    truth: str = "{}"  # a truth value that was read from memory
    cast: str = "({kind}){value}"  # turns a value into one of a kind
    times: str = "{} * {}"
    quotient: str = "{} / {}"
    whole: str = "{} / {}"  # quotient of two counts, rounded down
    add: str = "{} += {};"  # adds a number to a place


@dataclass
class Names:
    fields: Mapping[Array, str]  # name of each state and of what the caller gives, by the array
    memory: Memory  # where work arrays lie
    types: dict[Array, str]  # type of each array
    words: Words  # of the language
    # the tables in order of their first use, with their names
    tables: dict[Array, str] = field(default_factory=dict)

    def at(self, array: Array, index: str) -> str:
        if array.role is Role.TABLE:
            name = self.tables.setdefault(array, f"tt_table_{len(self.tables)}")
            return f"{name}[{index}]"
        if array.role is Role.WORK:
            pool, place = self.memory.places[array]
            return f"{self.words.member}{pool_name(pool)}[{_sum(place, index)}]"
        member = self.words.member if array.role is Role.STATE else ""
        return f"{member}{self.fields[array]}[{index}]"


def pool_name(kind: str) -> str:
    return f"work_{kind.removesuffix('_t')}"


def _sum(number: int, index: str) -> str:
    if not number:
        return index
    return str(number) if index == "0" else f"{number} + {index}"


def _term(index: str, stride: int) -> str:
    return index if stride == 1 else f"{index} * {stride}"


def address(view: View, indices: Sequence[str]) -> str:
    """Return the place of an element in an array."""
    pairs = zip(indices, view.strides, view.shape, strict=True)
    terms = [_term(index, stride) for index, stride, size in pairs if stride and size > 1]
    if view.offset or not terms:
        terms.insert(0, str(view.offset))
    return " + ".join(terms)


def coalesced(shape: Sequence[int], views: Sequence[View]) -> tuple[list[int], list[list[int]]]:
    """Return the sizes of as few loops as walk over all views, and the strides of each view."""
    sizes: list[int] = []
    strides: list[list[int]] = [[] for _ in views]
    for dim, size in enumerate(shape):
        if size == 1:
            continue
        steps = [view.strides[dim] for view in views]
        if sizes and all(s[-1] == step * size for s, step in zip(strides, steps, strict=True)):
            sizes[-1] *= size
            for each, step in zip(strides, steps, strict=True):
                each[-1] = step
            continue
        sizes.append(size)
        for each, step in zip(strides, steps, strict=True):
            each.append(step)
    return sizes, strides


class StagePrinter(CPrinter):
    """Print one stage; of a pointwise one the ``kernel``, in operations of ``target``."""

    def __init__(
        self, names: Names, stage: Stage, kernel: Schedule = EMPTY, target: Target | None = None
    ) -> None:
        super().__init__(kernel, target or names.words.target)
        self.names, self.stage, self.words = names, stage, names.words
        # where the buffers of the kernel are, by their labels
        self.views: dict[str, View] = {}
        if isinstance(stage, Pointwise):
            for role, views in ((BufferRole.START, stage.reads), (BufferRole.END, stage.writes)):
                self.views |= {f"{role.value}_{name}": view for name, view in views.items()}

    # Places and numbers

    def at(self, view: View, indices: Sequence[str]) -> str:
        return self.names.at(view.array, address(view, indices))

    def place(self, buffer: Buffer, index: Sequence[Index], lane: str = "lane") -> str:
        view = self.views[buffer.label]
        return self.at(view, [f"i{d}" for d in range(len(view.shape))])

    def load(self, buffer: Buffer, index: Sequence[Index]) -> str:
        place = self.place(buffer, index)
        return self.words.truth.format(place) if buffer.dtype is Dtype.BOOL else place

    def store(self, buffer: Buffer, index: Sequence[Index], value: str) -> None:
        """Append the line that writes to an array, in its width."""
        kind = self.names.types[self.views[buffer.label].array]
        value = f"({kind})({value})" if kind in ("int8_t", "int16_t", "int32_t") else value
        super().store(buffer, index, value)

    def declare(self, value: Var, spelled: str) -> None:
        """Append a constant, which has 32 bits at least."""
        narrow = value.dtype in (Dtype.INT8, Dtype.INT16)
        self.constant("int32_t" if narrow else C_TYPES[value.dtype], self.spell(value), spelled)

    def constant(self, kind: str, name: str, value: str) -> None:
        self.line(self.words.constant.format(kind=kind, name=name, value=value))

    def variable(self, kind: str, name: str, value: str) -> None:
        self.line(self.words.variable.format(kind=kind, name=name, value=value))

    def zero(self, kind: str) -> str:
        return self.words.zero if kind == "float" else "0"

    def cast(self, kind: str, value: str) -> str:
        return self.words.cast.format(kind=kind, value=value)

    def spell(self, operand: Operand) -> str:
        if isinstance(operand, (Var, bool)):
            return super().spell(operand)
        if self.kernel.dtype.is_integer:
            number = int(operand)
            return str(number) if number >= 0 else f"({number})"
        return self.words.literal(float(operand))

    def expression(self, each: Operation) -> str:
        """Return an operation; where its result is wider than an operand, that one is widened."""
        if each.result.dtype is not Dtype.INT64:
            plain = super().expression(each)
            wide = any(isinstance(arg, Var) and arg.dtype is Dtype.INT64 for arg in each.args)
            # what is computed of wide numbers, and proved to be narrow
            return f"(int32_t)({plain})" if wide and each.result.dtype is Dtype.INT32 else plain
        spelled = [
            f"(int64_t){self.spell(arg)}"
            if not isinstance(arg, Var) or arg.dtype is not Dtype.BOOL
            else self.spell(arg)
            for arg in each.args
        ]
        if each.op == "shift":
            spelled[1] = self.spell(each.args[1])
        return self.target.expressions[each.op].format(*spelled)

    # Stages

    def text(self) -> str:
        stage = self.stage
        self._depth = 1
        if isinstance(stage, Pointwise):
            self.body(self.kernel.body)
        elif isinstance(stage, Copy):
            self._copy(stage)
        elif isinstance(stage, Pool):
            self._pool(stage)
        elif isinstance(stage, Sum):
            self._sum(stage)
        return self.source()

    def counting(
        self, name: str, start: str, stop: str, step: int = 1
    ) -> AbstractContextManager[None]:
        moving = f"{name} += {step}" if step > 1 else f"{name}++"
        counter = self.words.counter
        return self.indent(f"for ({counter} {name} = {start}; {name} < {stop}; {moving}) {{")

    @contextmanager
    def loops(self, sizes: Sequence[int], names: Sequence[str]) -> Iterator[None]:
        """Open a loop for each size of more than one."""
        with ExitStack() as nest:
            for size, name in zip(sizes, names, strict=True):
                if size > 1:
                    nest.enter_context(self.counting(name, "0", str(size)))
            yield

    def skip(self, condition: str) -> None:
        """Append the line that goes on with the next turn of a loop where a condition holds."""
        with self.indent(f"if ({condition}) {{"):
            self.line("continue;")

    @contextmanager
    def over_lanes(self) -> Iterator[None]:
        """Open loops over the places of a pointwise stage, as few as there can be."""
        stage = cast(Pointwise, self.stage)
        labels = list(self.views)
        sizes, strides = coalesced(stage.shape, [self.views[label] for label in labels])
        for label, each in zip(labels, strides, strict=True):
            view = self.views[label]
            self.views[label] = replace(view, shape=tuple(sizes), strides=tuple(each))
        with self.loops(sizes, [f"i{d}" for d in range(len(sizes))]):
            yield

    def _copy(self, stage: Copy) -> None:
        into, given = stage.target, stage.source
        if stage.places is not None:
            into = View(into.array, (into.size,), (1,), into.offset)
            sizes, views = [into.size], [into]
        else:
            sizes, strides = coalesced(into.shape, [into, given])
            views = [
                replace(view, shape=tuple(sizes), strides=tuple(each))
                for view, each in zip((into, given), strides, strict=True)
            ]
        indices = [f"i{d}" for d in range(len(sizes))]
        with self.loops(sizes, indices):
            indices = _named(views[0], indices)
            target = self.at(views[0], indices)
            if stage.places is not None:
                place = self.names.at(given.array, self.names.at(stage.places, indices[0]))
            else:
                place = self.at(views[1], indices)
            kind = self.names.types[into.array]
            same = kind == self.names.types[given.array]
            self.line(f"{target} = {place if same else self.cast(kind, place)};")

    def _sum(self, stage: Sum) -> None:
        kept = len(stage.source.shape) - stage.dims
        indices = [f"i{d}" for d in range(len(stage.source.shape))]
        kind = accumulator(self.names.types[stage.target.array])
        with self.loops(stage.source.shape[:kept], indices[:kept]):
            self.variable(kind, "sum", self.zero(kind))
            with self.loops(stage.source.shape[kept:], indices[kept:]):
                self.line(self.words.add.format("sum", self.at(stage.source, indices)))
            total = "sum"
            if stage.divisor != 1:
                total = self.words.quotient.format("sum", self.words.literal(stage.divisor))
            total = self.cast(self.names.types[stage.target.array], f"({total})")
            self.line(f"{self.at(stage.target, indices[:kept])} = {total};")

    def _pool(self, stage: Pool) -> None:
        kind = accumulator(self.names.types[stage.target.array])
        sizes = stage.source.shape[1:]
        counted = not stage.maximum and stage.divisor <= 0
        with self.loops(stage.target.shape, ["c", "p", "q"]):
            indices = ["c", *_named(stage.target, ["c", "p", "q"])[1:]]
            if stage.maximum:
                self.variable("bool", "first", "true")
            self.variable(kind, "total", self.zero(kind))
            if counted:
                self.variable("int32_t", "count", "0")
            with ExitStack() as nest:
                outside = [f"{n} < 0 || {n} >= {size}" for n, size in zip("hw", sizes, strict=True)]
                for dim, name in enumerate("hw"):
                    begin = _term(indices[1 + dim], stage.stride[dim])
                    if stage.padding[dim]:
                        begin = _sum(-stage.padding[dim], begin)
                    step = stage.dilation[dim]
                    self.constant("int32_t", f"{name}0", begin)
                    stop = f"{name}0 + {stage.kernel[dim] * step}"
                    nest.enter_context(self.counting(name, f"{name}0", stop, step))
                    if counted and stage.divisor == 0:
                        # the window may reach over the padded border, where nothing is counted
                        border = sizes[dim] + stage.padding[dim]
                        self.line(f"if ({name} >= {border}) {{ break; }}")
                    else:
                        self.line(f"if ({outside[dim]}) {{ continue; }}")
                if counted:
                    self.line("count++;")
                    if stage.divisor == 0:
                        self.line(f"if ({' || '.join(outside)}) {{ continue; }}")
                self.constant(kind, "v", self.at(stage.source, ["c", "h", "w"]))
                if stage.maximum:
                    # NaN passes, as in PyTorch
                    nan = " || v != v" if kind == "float" else ""
                    self.line(f"if (first || v > total{nan}) {{ total = v; }}")
                    self.line("first = false;")
                else:
                    self.line(self.words.add.format("total", "v"))
            result = "total"
            if counted:
                result = self.words.quotient.format("total", self.cast("float", "count"))
            elif not stage.maximum and stage.divisor != 1:
                result = self.words.quotient.format("total", self.words.literal(stage.divisor))
            result = self.cast(self.names.types[stage.target.array], f"({result})")
            self.line(f"{self.at(stage.target, indices)} = {result};")


class ProductPrinter(StagePrinter):
    """Print a product; ``weight`` lies by input where ``events`` drive it, else by output."""

    def __init__(
        self, names: Names, stage: Product, weight: Array, bias: Array | None, events: bool
    ) -> None:
        super().__init__(names, stage)
        self.product_stage, self.weight, self.bias, self.events = stage, weight, bias, events
        self.kind = names.types[stage.target.array]
        # a product of two integers is as wide as their sum
        self.wide = accumulator(self.kind)

    def text(self) -> str:
        self._depth = 1
        if self.events:
            self._by_event()
        else:
            self._by_output()
        return self.source()

    # By event: the bias everywhere, then for each event its weights, to what it reaches

    def _by_event(self) -> None:
        stage = self.product_stage
        # as wide as the source: a sum may be narrower, and is wider where weights are large
        value_type = "float"
        if self.wide != "float":
            value_type = accumulator(self.names.types[stage.source.array])
        with self.loops(stage.target.shape, ["o", "p", "q"]):
            indices = _named(stage.target, ["o", "p", "q"])
            self.line(f"{self.at(stage.target, indices)} = {self.start(indices[0])};")
        with self.loops(stage.source.shape, ["c", "h", "w"]):
            indices = _named(stage.source, ["c", "h", "w"])
            self.constant(value_type, "v", self.at(stage.source, indices))
            with self.indent(f"if (v == {self.zero(value_type)}) {{"):
                self.line("continue;" if stage.source.size > 1 else "return;")
            self.spread(indices)

    def spread(self, indices: Sequence[str]) -> None:
        """Append the lines that add the weights of an event at a place of the source."""
        stage = self.product_stage
        per_group = stage.target.shape[0] // stage.groups
        group = self.words.whole.format("c", stage.source.shape[0] // stage.groups)
        row = indices[0]
        with ExitStack() as nest:
            for dim, name in enumerate("pq"):
                if self._opens_tap(nest, name, dim, indices[1 + dim]):
                    row = f"{_factor(row)} * {stage.weight.shape[2 + dim]} + {name}_k"
            with self.loops([per_group], ["o"]):
                o = "o" if per_group > 1 else "0"
                weight = self.names.at(self.weight, f"{_factor(row)} * {per_group} + {o}")
                place = _named(stage.target, ["o", "p", "q"])
                place[0] = f"({group} * {per_group} + {o})" if stage.groups > 1 else o
                target = self.at(stage.target, place)
                term = self.words.times.format(self.widened(weight), "v")
                if self.kind in ("int8_t", "int16_t", "int32_t"):
                    self.line(f"{target} = ({self.kind})({target} + {term});")
                else:
                    self.line(self.words.add.format(target, term))

    def _opens_tap(self, nest: ExitStack, name: str, dim: int, at: str) -> bool:
        """Open a loop over the taps of a kernel that an input reaches, where there are several."""
        stage = self.product_stage
        kernel, size = stage.weight.shape[2 + dim], stage.target.shape[1 + dim]
        stride, padding, dilation = stage.stride[dim], stage.padding[dim], stage.dilation[dim]
        if kernel == 1 and stride == 1 and not padding:
            if size > 1:
                self.constant("int32_t", name, at)
            return False
        index = f"{name}_k"
        nest.enter_context(self.counting(index, "0", str(kernel)))
        self.constant("int32_t", f"{name}_at", f"{_sum(padding, at)} - {_term(index, dilation)}")
        limit = f"{name}_at / {stride}" if stride > 1 else f"{name}_at"
        between = [f"{name}_at % {stride} != 0"] if stride > 1 else []
        self.skip(" || ".join([f"{name}_at < 0", *between, f"{limit} >= {size}"]))
        if size > 1:
            self.constant("int32_t", name, limit)
        return True

    # By output: the bias, plus the products in the order of the input

    def _by_output(self) -> None:
        stage = self.product_stage
        with self.loops(stage.target.shape, ["o", "p", "q"]):
            place = _named(stage.target, ["o", "p", "q"])
            self.variable(self.wide, "sum", self.start(place[0]))
            self.gather(place)
            total = "sum" if self.kind == self.wide else self.cast(self.kind, "sum")
            self.line(f"{self.at(stage.target, place)} = {total};")

    def gather(self, place: Sequence[str]) -> None:
        stage = self.product_stage
        inputs = stage.source.shape[0] // stage.groups
        kernel = tuple(stage.weight.shape[2:])
        c = "c" if inputs > 1 else "0"
        spots, taps = [], []
        with self.loops([inputs], ["c"]), ExitStack() as nest:
            for dim, name in enumerate("hw"):
                size, padding = stage.source.shape[1 + dim], stage.padding[dim]
                at = place[1 + dim]
                moved = _term(at, stage.stride[dim]) if at != "0" else "0"
                taps.append(f"{name}_k" if kernel[dim] > 1 or padding else "0")
                if kernel[dim] > 1 or padding:
                    nest.enter_context(self.counting(f"{name}_k", "0", str(kernel[dim])))
                    tap = _term(f"{name}_k", stage.dilation[dim])
                    moved = tap if moved == "0" else f"{moved} + {tap}"
                if padding:
                    moved = f"{moved} - {padding}"
                if size > 1 or padding:
                    self.constant("int32_t", name, moved)
                if padding:
                    self.skip(f"{name} < 0 || {name} >= {size}")
                spots.append(name if size > 1 else "0")
            first = self.words.whole.format("o", stage.target.shape[0] // stage.groups)
            channel = f"({first} * {inputs} + {c})" if stage.groups > 1 else c
            row = f"{place[0]} * {inputs} + {c}" if inputs > 1 else place[0]
            if kernel != (1, 1):
                row = f"({_factor(row)} * {kernel[0]} + {taps[0]}) * {kernel[1]} + {taps[1]}"
            weight = self.widened(self.names.at(self.weight, row))
            term = self.words.times.format(weight, self.at(stage.source, [channel, *spots]))
            self.line(self.words.add.format("sum", term))

    def start(self, index: str) -> str:
        return self.zero(self.kind) if self.bias is None else self.names.at(self.bias, index)

    def widened(self, weight: str) -> str:
        return f"(int64_t){weight}" if self.wide == "int64_t" else weight


def _named(view: View, names: Sequence[str]) -> list[str]:
    return [name if size > 1 else "0" for name, size in zip(names, view.shape, strict=True)]


def _factor(text: str) -> str:
    return text if text.isalnum() else f"({text})"


def accumulator(kind: str) -> str:
    """Return the type in which sums of values of a kind are made."""
    return kind if kind in ("float", "int64_t") else "int32_t"


def float_literal(value: float) -> str:
    """Return a number as C reads it back to the same float32.

    Example:
        >>> float_literal(0.1), float_literal(-2.0), float_literal(float("inf"))
        ('0.1f', '(-2.0f)', 'INFINITY')
    """
    with np.errstate(over="ignore"):
        number = np.float32(value)
    if math.isnan(number):
        return "NAN"
    if math.isinf(number):
        return "INFINITY" if number > 0 else "(-INFINITY)"
    text = f"{float(str(number))!r}f"
    return f"({text})" if text.startswith("-") else text


def c_words() -> Words:
    return Words(c_target("float32"), float_literal)
