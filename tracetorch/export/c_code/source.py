"""Assemble ``model.c``: tables, a function for each stage, and the functions of a stream."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch

from tracetorch.export.c_code.arrangement import work_memory
from tracetorch.export.c_code.files import (
    Port,
    comment,
    identifiers,
    learn_head,
    math_include,
    ports_of,
    step_arguments,
    step_head,
    table,
)
from tracetorch.export.c_code.printer import (
    SIZES,
    Names,
    ProductPrinter,
    StagePrinter,
    Words,
    pool_name,
)
from tracetorch.export.c_code.sparse import (
    SparsePrinter,
    constant_table,
    fits_nibble,
    sparse_weights,
    table_bits,
)
from tracetorch.export.c_code.stages import (
    Array,
    Copy,
    Phase,
    Pointwise,
    Product,
    Role,
    Stage,
    StepProgram,
    reads_of,
    writes_of,
)
from tracetorch.export.c_code.widths import StageKernel, Widths, integer_kernel
from tracetorch.fuse.codegen.c_kernel import contains_word
from tracetorch.fuse.codegen.targets import c_integer_target
from tracetorch.integers.width import stored_bits

# Of one function: return address, saved registers, what a compiler spills.
_FRAME = 160
_SCALAR = 8
_DECLARATION = re.compile(r"\b(?:float|bool|u?int\d+_t) \w+ = ")
_NIBBLE = """\
/* A weight of four bits, two of which are in a byte. */
static int32_t tt_nibble(const uint8_t *table, int32_t at) {
    const int32_t bits = (table[at / 2] >> (at % 2 * 4)) & 15;
    return bits < 8 ? bits : bits - 16;
}
"""
_LEARNING = """\
/* What the last step has left to do: to learn from it once, then to move the traces on. */
enum { TT_NOTHING, TT_STEPPED, TT_LEARNED };
"""
_HEAD = """\
#if defined(__clang__)
#pragma STDC FP_CONTRACT OFF
#endif

#if defined(__FLT_EVAL_METHOD__) && __FLT_EVAL_METHOD__ != 0
#error "float must be computed as float: on x86 give -mfpmath=sse"
#endif
"""


@dataclass(frozen=True)
class Source:
    """Text of ``model.c``, and what it needs."""

    text: str  # it
    inputs: list[Port]  # those of ``tt_step``
    outputs: list[Port]  # those of ``tt_step``
    signals: list[Port]  # those of ``tt_learn``
    table_bytes: int  # size of its constant tables
    struct_bytes: int  # size of the struct of a stream
    stack_bytes: int  # bound of what ``tt_step`` takes from the stack
    sparse: frozenset[str]  # nodes of the products whose weights of zero are not stored


def names_of(program: StepProgram, words: Words, widths: Widths | None = None) -> Names:
    """Name the arrays of a planned program, and give each its type and its place."""
    fields: dict[Array, str] = {}
    given = {**program.inputs, **program.outputs, **program.signals}
    groups = {"": given, "state_": program.states, "learned_": program.learned}
    groups["trace_"] = {n.removeprefix("trace:"): array for n, array in program.traces.items()}
    for prefix, arrays in groups.items():
        for array, name in zip(arrays.values(), identifiers(list(arrays), prefix), strict=True):
            fields[array] = name
    views = [v for stage in program.stages for v in (*reads_of(stage), *writes_of(stage))]
    types: dict[Array, str] = {}
    for array in (*fields, *(view.array for view in views)):
        single = "bool" if array.boolean else "float"
        types[array] = single if widths is None else widths.type_of(array)
    for stage in program.stages:
        if isinstance(stage, Copy) and stage.places is not None:
            bits = stored_bits(0, stage.source.array.size - 1, signed=False)
            types[stage.places] = f"uint{bits}_t"
    memory = work_memory(program.stages, types)
    return Names(fields, memory, types, words)


def model_source(
    program: StepProgram, names: Names, events: Collection[Array], widths: Widths | None
) -> Source:
    """Return ``model.c`` of a planned program, of ``widths`` or floats; ``events`` skip zeros."""
    inputs, outputs = ports_of(program.inputs, names), ports_of(program.outputs, names)
    signals = ports_of(program.signals, names)
    arguments = step_arguments([*inputs, *signals], outputs)
    printers = [stage_printer(stage, names, events, widths) for stage in program.stages]
    bodies = [printer.text() for printer in printers]
    functions: list[str] = []
    calls: dict[Phase, list[str]] = {phase: [] for phase in Phase}
    for number, (stage, body) in enumerate(zip(program.stages, bodies, strict=True)):
        used = [name for name in arguments if contains_word(body, name)]
        parameters = ", ".join(arguments[name] for name in used)
        functions += [
            f"/* {comment(stage.path)}: {type(stage).__name__.lower()} */",
            f"static void tt_stage_{number}({parameters}) {{",
            body + "}",
            "",
        ]
        calls[stage.phase].append(f"    tt_stage_{number}({', '.join(used)});")
    starts: dict[Array, str] = {}
    weights = _resets(program.learned, names, starts)
    resets = _resets({**program.states, **program.traces}, names, starts)
    tables, size = _tables({**names.tables, **starts}, names, widths)
    code = "\n".join(functions)
    pools = names.memory.sizes
    lines = [
        *math_include("\n".join([code, *tables])),
        '#include "model.h"',
        "",
        *([_HEAD] if widths is None else []),
        *tables,
        *([_LEARNING] if program.learned else []),
        *([_NIBBLE] if names.packed.intersection(names.tables) else []),
        code,
        "void tt_reset(tt_stream *s) {",
        *(resets or ["    (void)s;"]),
        *(["    s->learning = TT_NOTHING;"] if program.learned else []),
        "}",
        "",
        "void tt_init(tt_stream *s) {",
        *(_filled(f"s->{pool_name(kind)}", count, _zero(kind)) for kind, count in pools.items()),
        *weights,
        "    tt_reset(s);",
        "}",
        "",
        *_step_functions(calls, inputs, outputs, signals, bool(program.learned)),
    ]
    kept = {**program.states, **program.learned, **program.traces}
    members = [(names.types[array], array.size) for array in kept.values()]
    flag = [("uint8_t", 1)] if program.learned else []
    deepest = max((len(_DECLARATION.findall(body)) for body in bodies), default=0)
    return Source(
        "\n".join(lines) + "\n",
        inputs,
        outputs,
        signals,
        size,
        struct_bytes([*members, *pools.items(), *flag]),
        # tt_step, one stage, and the reader of packed weights
        3 * _FRAME + _SCALAR * (deepest + len(inputs) + len(outputs)),
        frozenset(each.product_stage.node for each in printers if isinstance(each, SparsePrinter)),
    )


def _tables(
    arrays: Mapping[Array, str], names: Names, widths: Widths | None
) -> tuple[list[str], int]:
    """Return constant tables, and their size in bytes."""
    tables, size = [], 0
    for array, name in arrays.items():
        values = array.values
        if widths is not None and values.dtype.is_floating_point:
            scaled = values.double() * 2.0 ** widths.points.get(array, 0)
            values = scaled.round().to(torch.int64)
        text, count = table(name, names.types[array], values, array in names.packed)
        tables.append(text)
        size += count
    return tables, size


def _zero(kind: str) -> str:
    return {"float": "0.0f", "bool": "false"}.get(kind, "0")


def _filled(name: str, size: int, value: str) -> str:
    return f"    for (int32_t i = 0; i < {size}; i++) {{\n        {name}[i] = {value};\n    }}"


def _step_functions(
    calls: Mapping[Phase, Sequence[str]],
    inputs: Sequence[Port],
    outputs: Sequence[Port],
    signals: Sequence[Port],
    learns: bool,
) -> list[str]:
    """Return the lines of ``tt_step``, and of ``tt_learn`` where something learns."""
    before = [f"    {each}" for each in calls[Phase.ADVANCE]]
    lines = [
        f"{step_head(inputs, outputs)} {{",
        *(["    if (s->learning != TT_NOTHING) {", *before, "    }"] if before else []),
        *_called(calls[Phase.STEP], step_arguments(inputs, outputs)),
        *(["    s->learning = TT_STEPPED;"] if learns else []),
        "}",
    ]
    if learns:
        lines += ["", f"{learn_head(signals)} {{", "    if (s->learning != TT_STEPPED) {"]
        lines += ["        return;", "    }"]
        lines += _called(calls[Phase.LEARN], step_arguments(signals, ()))
        lines += ["    s->learning = TT_LEARNED;", "}"]
    return lines


def _called(calls: Sequence[str], arguments: Iterable[str]) -> list[str]:
    """Return the lines that do the stages of a function; what none takes is named as unused."""
    text = "\n".join(calls)
    return [*calls, *(f"    (void){name};" for name in arguments if not contains_word(text, name))]


def _resets(arrays: Mapping[str, Array], names: Names, starts: dict[Array, str]) -> list[str]:
    """Return the lines that give arrays what they start from, and add the tables they read."""
    lines: list[str] = []
    for state in arrays.values():
        value = _zero(names.types[state])
        if bool((state.values != 0).any()):
            start = Array(Role.TABLE, "", state.size, state.boolean, state.values)
            names.types[start] = names.types[state]
            starts[start] = f"tt_start_{len(starts)}"
            value = f"{starts[start]}[i]"
        lines.append(_filled(f"s->{names.fields[state]}", state.size, value))
    return lines


def stage_printer(
    stage: Stage, names: Names, events: Collection[Array], widths: Widths | None = None
) -> StagePrinter:
    """Return the printer of a stage; the tables of products are added to ``names``."""
    if isinstance(stage, Pointwise) and widths is None:
        return StagePrinter(names, stage, StageKernel(stage).kernel())
    if isinstance(stage, Pointwise) and widths is not None:
        kernel = integer_kernel(stage, widths)
        return StagePrinter(names, stage, kernel, c_integer_target())
    if isinstance(stage, Product):
        by_event = stage.source.array in events
        values = stage.weight
        if by_event:
            # group by group, each input's weights to all outputs of its group in a row
            values = values.reshape(stage.groups, -1, *values.shape[1:]).permute(0, 2, 3, 4, 1)
        weight = constant_table("weight", values)
        # a sum begins with no -0: it would stay one where all its terms are skipped
        bias = None if stage.bias is None else constant_table("bias", stage.bias + 0)
        sparse = sparse_weights(stage, by_event) if widths is not None else None
        if sparse is not None:
            weight = sparse.values
            for each in (sparse.places, sparse.starts):
                names.types[each] = f"uint{table_bits(each.values, signed=False)}_t"
        for table_of in (weight, bias):
            if table_of is not None:
                bits = None if widths is None else table_bits(table_of.values)
                names.types[table_of] = "float" if bits is None else f"int{bits}_t"
        if widths is not None and fits_nibble(weight.values):
            names.packed.add(weight)
        if sparse is not None:
            return SparsePrinter(names, stage, sparse, bias, by_event)
        return ProductPrinter(names, stage, weight, bias, by_event)
    return StagePrinter(names, stage)


def struct_bytes(members: Sequence[tuple[str, int]]) -> int:
    """Return the size of a struct of arrays, each of a type and a number of values.

    Example:
        >>> struct_bytes([("int8_t", 3), ("int32_t", 2)])
        12
    """
    size, widest = 0, 1
    for kind, count in members:
        align = SIZES[kind]
        size = -(-size // align) * align + align * count
        widest = max(widest, align)
    return max(1, -(-size // widest) * widest)
