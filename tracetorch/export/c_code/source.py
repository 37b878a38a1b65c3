"""Assemble ``model.c``: tables, a function for each stage, and the functions of a stream."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tracetorch.export.c_code.arrangement import work_memory
from tracetorch.export.c_code.files import (
    Port,
    comment,
    identifiers,
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
from tracetorch.export.c_code.stages import (
    Array,
    Copy,
    Pointwise,
    Product,
    Role,
    Stage,
    StepProgram,
    reads_of,
    writes_of,
)
from tracetorch.export.c_code.widths import IntegerKernel, StageKernel, Widths
from tracetorch.fuse.codegen.c_kernel import contains_word
from tracetorch.fuse.codegen.targets import c_integer_target
from tracetorch.integers.arithmetic import stored_bits

# Of one function: return address, saved registers, what a compiler spills.
_FRAME = 160
_SCALAR = 8
_DECLARATION = re.compile(r"\b(?:float|bool|u?int\d+_t) \w+ = ")
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
    text: str  # it
    inputs: list[Port]  # those of ``tt_step``
    outputs: list[Port]  # those of ``tt_step``
    table_bytes: int  # size of its constant tables
    struct_bytes: int  # size of the struct of a stream
    stack_bytes: int  # bound of what ``tt_step`` takes from the stack


def names_of(program: StepProgram, words: Words, widths: Widths | None = None) -> Names:
    """Name the arrays of a planned program, and give each its type and its place."""
    fields: dict[Array, str] = {}
    groups = {"": {**program.inputs, **program.outputs}, "state_": program.states}
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
    arguments = step_arguments(inputs, outputs)
    bodies = [stage_printer(stage, names, events, widths).text() for stage in program.stages]
    functions: list[str] = []
    calls: list[str] = []
    for number, (stage, body) in enumerate(zip(program.stages, bodies, strict=True)):
        used = [name for name in arguments if contains_word(body, name)]
        parameters = ", ".join(arguments[name] for name in used)
        functions += [
            f"/* {comment(stage.path)}: {type(stage).__name__.lower()} */",
            f"static void tt_stage_{number}({parameters}) {{",
            body + "}",
            "",
        ]
        calls.append(f"    tt_stage_{number}({', '.join(used)});")
    starts: dict[Array, str] = {}
    resets = _resets(program.states, names, starts)
    tables, size = _tables({**names.tables, **starts}, names, widths)
    code = "\n".join(functions)
    pools = names.memory.sizes
    lines = [
        *math_include("\n".join([code, *tables])),
        '#include "model.h"',
        "",
        *([_HEAD] if widths is None else []),
        *tables,
        code,
        "void tt_reset(tt_stream *s) {",
        *(resets or ["    (void)s;"]),
        "}",
        "",
        "void tt_init(tt_stream *s) {",
        *(_filled(f"s->{pool_name(kind)}", count, _zero(kind)) for kind, count in pools.items()),
        "    tt_reset(s);",
        "}",
        "",
        f"{step_head(inputs, outputs)} {{",
        *calls,
        *(f"    (void){n};" for n in arguments if not contains_word("\n".join(calls), n)),
        "}",
    ]
    members = [(names.types[array], array.size) for array in program.states.values()]
    deepest = max((len(_DECLARATION.findall(body)) for body in bodies), default=0)
    return Source(
        "\n".join(lines) + "\n",
        inputs,
        outputs,
        size,
        struct_bytes([*members, *pools.items()]),
        # tt_step, and one stage
        2 * _FRAME + _SCALAR * (deepest + len(inputs) + len(outputs)),
    )


def _tables(
    arrays: Mapping[Array, str], names: Names, widths: Widths | None
) -> tuple[list[str], int]:
    tables, size = [], 0
    for array, name in arrays.items():
        values = array.values
        if widths is not None and values.dtype.is_floating_point:
            scaled = values.double() * 2.0 ** widths.points.get(array, 0)
            values = scaled.round().to(torch.int64)
        tables.append(table(name, names.types[array], values))
        size += values.numel() * SIZES[names.types[array]]
    return tables, size


def _zero(kind: str) -> str:
    return {"float": "0.0f", "bool": "false"}.get(kind, "0")


def _filled(name: str, size: int, value: str) -> str:
    return f"    for (int32_t i = 0; i < {size}; i++) {{\n        {name}[i] = {value};\n    }}"


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
        return StagePrinter(names, stage, IntegerKernel(stage, widths).kernel(), c_integer_target())
    if isinstance(stage, Product):
        by_event = stage.source.array in events
        values = stage.weight
        if by_event:
            # group by group, each input's weights to all outputs of its group in a row
            values = values.reshape(stage.groups, -1, *values.shape[1:]).permute(0, 2, 3, 4, 1)
        weight = _constant("weight", values)
        # a sum begins with no -0: it would stay one where all its terms are skipped
        bias = None if stage.bias is None else _constant("bias", stage.bias + 0)
        for each in (weight, bias):
            if each is not None:
                ends = float(each.values.min()), float(each.values.max())
                kind = "float" if widths is None else f"int{stored_bits(*ends)}_t"
                names.types[each] = kind
        return ProductPrinter(names, stage, weight, bias, by_event)
    return StagePrinter(names, stage)


def _constant(label: str, values: Tensor) -> Array:
    return Array(Role.TABLE, label, values.numel(), values=values.detach().contiguous().clone())


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
