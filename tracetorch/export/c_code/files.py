"""Write the files of a network in C: header, source, sample, main program, Makefile."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from tracetorch.export.c_code.printer import Names, float_literal, pool_name
from tracetorch.export.c_code.stages import Array, StepProgram

_PER_LINE = 12
_FROM_MATH = re.compile(r"\b(?!continue|return|sizeof)([a-z]+[0-9]*f)\(|INFINITY|NAN")

MAKEFILE = """\
# make run: stream sample.h through the network; make size: bytes of code, tables and RAM
CC ?= cc
CFLAGS ?= -O2
STRICT = -std=c99 -Wall -Wextra -Wpedantic -Werror -ffp-contract=off

main: main.c model.c model.h sample.h
\t$(CC) $(STRICT) $(CFLAGS) main.c model.c -o main -lm

run: main
\t./main

size: model.c model.h
\t$(CC) $(STRICT) -Os -c model.c -o model.o
\tsize model.o

clean:
\trm -f main model.o

.PHONY: run size clean
"""
_HEADER = """\
/* One time step of a spiking network, written by traceTorch.
{notes} */
#ifndef TT_MODEL_H
#define TT_MODEL_H

#include <stdbool.h>
#include <stdint.h>

/* C++ and C89 have no restrict, most of their compilers have another word for it. */
#if !defined(__cplusplus) && defined(__STDC_VERSION__) && __STDC_VERSION__ >= 199901L
#define TT_RESTRICT restrict
#elif defined(__GNUC__) || defined(_MSC_VER)
#define TT_RESTRICT __restrict
#else
#define TT_RESTRICT
#endif

#ifdef __cplusplus
extern "C" {{
#endif

{sizes}

/* What one stream remembers. */
typedef struct {{
{members}
}} tt_stream;

/* Make a stream: call it once, before anything else. */
void tt_init(tt_stream *s);

/* Forget everything: the next step is the first one. */
void tt_reset(tt_stream *s);

/* Run one time step. Inputs and outputs do not overlap. */
{step};

#ifdef __cplusplus
}}
#endif

#endif
"""
_MAIN = """\
/* Stream the recorded input through the network, and print what it answers. */
#include <stdio.h>

#include "model.h"
#include "sample.h"

static tt_stream stream;

int main(void) {{
{outputs}
    tt_init(&stream);
    for (int32_t t = 0; t < TT_SAMPLE_STEPS; t++) {{
        tt_step(&stream, {given});
{prints}
        printf("\\n");
    }}
    return 0;
}}
"""


@dataclass(frozen=True)
class Port:
    """An input, an output or a state of a step in C."""

    name: str  # in C
    label: str  # for people
    kind: str  # C type of its values
    size: int  # number of values

    @property
    def macro(self) -> str:
        return f"TT_{self.name.upper()}_SIZE"


def identifiers(labels: Sequence[str], prefix: str = "") -> list[str]:
    """Return a C identifier for each label, all different.

    A label may hold anything: what is no letter or digit of ASCII becomes an underscore.

    Example:
        >>> identifiers(["1.mem", "1_mem", "int", "*/"], "state_")
        ['state_1_mem', 'state_1_mem_2', 'state_int', 'state__']
    """
    made: list[str] = []
    for label in labels:
        name = prefix + re.sub(r"[^A-Za-z0-9]+", "_", label.encode("ascii", "replace").decode())
        name = name[:48]
        unique, number = name, 2
        while unique.lower() in [each.lower() for each in made]:
            unique, number = f"{name}_{number}", number + 1
        made.append(unique)
    return made


def comment(text: str) -> str:
    """Return a text that may stand in a comment: nothing in it ends one, or a line.

    Example:
        >>> comment("a*/ b")
        'a?? b'
    """
    return re.sub(r"[^A-Za-z0-9_.,:()\[\] -]", "?", text)[:200]


def ports_of(arrays: Mapping[str, Array], names: Names) -> list[Port]:
    return [
        Port(names.fields[array], label, names.types[array], array.size)
        for label, array in arrays.items()
    ]


def header(program: StepProgram, names: Names, notes: Sequence[str]) -> str:
    inputs, outputs = ports_of(program.inputs, names), ports_of(program.outputs, names)
    sizes = [
        f"#define {port.macro} {port.size} /* {comment(port.label)} */"
        for port in (*inputs, *outputs)
    ]
    members = [
        f"    {state.kind} {state.name}[{state.size}]; /* {comment(state.label)} */"
        for state in ports_of(program.states, names)
    ]
    members += [
        f"    {kind} {pool_name(kind)}[{size}]; /* within one step */"
        for kind, size in names.memory.sizes.items()
    ]
    return _HEADER.format(
        notes="".join(f" * {comment(note)}\n" for note in notes),
        sizes="\n".join(sizes),
        members="\n".join(members or ["    bool unused;"]),  # a struct needs a member
        step=step_head(inputs, outputs),
    )


def step_head(inputs: Sequence[Port], outputs: Sequence[Port]) -> str:
    """Return the declaration of ``tt_step``."""
    return f"void tt_step({', '.join(step_arguments(inputs, outputs).values())})"


def step_arguments(inputs: Sequence[Port], outputs: Sequence[Port]) -> dict[str, str]:
    """Return the declarations of what ``tt_step`` takes, by name."""
    kinds = {"s": "tt_stream"} | {port.name: f"const {port.kind}" for port in inputs}
    kinds |= {port.name: port.kind for port in outputs}
    return {name: f"{kind} *TT_RESTRICT {name}" for name, kind in kinds.items()}


def table(name: str, kind: str, values: Tensor) -> str:
    spelled = [_spelled(kind, number) for number in values.flatten().tolist()]
    rows = [
        "    " + ", ".join(spelled[i : i + _PER_LINE]) + ","
        for i in range(0, len(spelled), _PER_LINE)
    ]
    return "\n".join([f"static const {kind} {name}[{len(spelled)}] = {{", *rows, "};", ""])


def _spelled(kind: str, number: float | int | bool) -> str:
    if kind == "float":
        return float_literal(number)
    if kind == "bool":
        return "true" if number else "false"
    if kind == "int64_t":
        return f"INT64_C({int(number)})" if number > -(2**63) else "INT64_MIN"
    # the least number has no literal: a minus is an operation
    return str(int(number)) if number > -(2**31) else "INT32_MIN"


def sample_header(ports: Sequence[Port], sequences: Sequence[Tensor]) -> str:
    lines = [f"#define TT_SAMPLE_STEPS {len(sequences[0])}", ""]
    for port, sequence in zip(ports, sequences, strict=True):
        lines.append(
            f"static const {port.kind} tt_sample_{port.name}[TT_SAMPLE_STEPS][{port.macro}] = {{"
        )
        for step in sequence.flatten(1).tolist():
            lines.append(f"    {{{', '.join(_spelled(port.kind, number) for number in step)}}},")
        lines += ["};", ""]
    head = ["/* The recorded input. */", "#ifndef TT_SAMPLE_H", "#define TT_SAMPLE_H", ""]
    head += [*math_include("\n".join(lines)), '#include "model.h"', ""]
    return "\n".join([*head, *lines, "#endif", ""])


def math_include(text: str) -> list[str]:
    """Return the lines that include ``math.h``, where a text takes anything from it."""
    return ["#include <math.h>", ""] if _FROM_MATH.search(text) else []


def main_source(inputs: Sequence[Port], outputs: Sequence[Port]) -> str:
    """Return ``main.c``: stream the sample, print a line of outputs for every step."""
    given = ", ".join(
        [f"tt_sample_{port.name}[t]" for port in inputs] + [port.name for port in outputs]
    )
    prints = []
    for port in outputs:
        # nine digits give every float32 back
        how = '"%.9g ", (double)' if port.kind == "float" else '"%lld ", (long long)'
        prints += [
            f"        for (int32_t i = 0; i < {port.macro}; i++) {{",
            f"            printf({how}{port.name}[i]);",
            "        }",
        ]
    outs = [f"    static {port.kind} {port.name}[{port.macro}];" for port in outputs]
    return _MAIN.format(outputs="\n".join(outs), given=given, prints="\n".join(prints))
