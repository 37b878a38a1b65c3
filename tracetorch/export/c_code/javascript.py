"""Spell one time step in JavaScript: a function for each stage, on the arrays of one object.

Loops, sums and their order are those of C: the printer of stages is the same, with other words. All
arithmetic is rounded to float32, so the numbers are those of C, too; but a product and a sum that C
rounds together, which ``lerp`` and ``addcmul`` make, may differ in the last place.
"""

from __future__ import annotations

import base64
from collections.abc import Collection
from typing import Any

import numpy as np
from torch import Tensor

from tracetorch.export.c_code.printer import Names, Words, pool_name
from tracetorch.export.c_code.source import stage_printer
from tracetorch.export.c_code.stages import Array, Pointwise, StepProgram
from tracetorch.fuse.codegen.c_kernel import contains_word
from tracetorch.fuse.codegen.javascript import FUNCTIONS
from tracetorch.fuse.codegen.targets import javascript_target

# The typed array of each kind of value.
_DTYPES = {"float": "<f4", "bool": "u1", "uint8_t": "u1", "uint16_t": "<u2", "uint32_t": "<u4"}


def javascript_words() -> Words:
    return Words(
        target=javascript_target("float32"),
        literal=_literal,
        zero="0",
        counter="let",
        constant="const {name} = {value};",
        variable="let {name} = {value};",
        member="",
        truth="{} !== 0",
        cast="{value}",
        times="Math.fround({} * {})",
        quotient="Math.fround({} / {})",
        whole="Math.floor({} / {})",
        add="{0} = Math.fround({0} + {1});",
    )


def javascript_step(
    program: StepProgram, names: Names, events: Collection[Array]
) -> tuple[str, dict[str, Any]]:
    """Return a list of functions ``(arrays) => ...``, one for each stage, and what the arrays are.

    Of those the kind and size of each by its name, in base64 the values of tables and of states
    that do not start from zero, and the names of all states.
    """
    bodies = []
    for stage in program.stages:
        if isinstance(stage, Pointwise):
            operation = names.words.target.unknown_operation(stage.graph)
            if operation is not None:
                raise ValueError(f"{stage.path}: JavaScript has no {operation}.")
        text = stage_printer(stage, names, events).text()
        # without indentation: nobody reads it
        bodies.append("\n".join(line.strip() for line in text.splitlines()))
    named = {**names.fields, **names.tables}
    arrays = {name: (names.types[array], array.size) for array, name in named.items()}
    arrays |= {pool_name(kind): (kind, size) for kind, size in names.memory.sizes.items()}
    states = {array: names.fields[array] for array in program.states.values()}
    started = {array: name for array, name in states.items() if bool((array.values != 0).any())}
    stored = {**names.tables, **started}
    values = {name: encoded(array.values, names.types[array]) for array, name in stored.items()}
    functions = []
    for body in bodies:
        used = [name for name in arrays if contains_word(body, name)]
        functions.append(f"({{ {', '.join(used)} }}) => {{\n{body}\n}}")
    listed = ",\n".join(functions)
    source = f"(() => {{\n{FUNCTIONS}return [\n{listed}\n];\n}})()"
    return source, {"arrays": arrays, "values": values, "states": [*states.values()]}


def encoded(values: Tensor, kind: str = "float") -> str:
    """Return values in base64, as the page reads them into a typed array."""
    numbers = values.detach().cpu().flatten().numpy().astype(_DTYPES[kind])
    return base64.b64encode(numbers.tobytes()).decode()


def _literal(value: float) -> str:
    """Return a float32 as JavaScript reads it."""
    with np.errstate(over="ignore"):
        number = float(np.float32(value))
    if not np.isfinite(number):
        text = {np.inf: "Infinity", -np.inf: "-Infinity"}.get(number, "NaN")
    else:
        text = repr(number)
    # behind a minus, another one would be an operator of its own
    return f"({text})" if text.startswith("-") else text
