"""Write what tries a learner in C: signals, the weights that Python learns, a check of both."""

from __future__ import annotations

from collections.abc import Sequence

from tracetorch.export.c_code.files import (
    FROM_MATH,
    Port,
    declared,
    guarded,
    ports_of,
    sequence_tables,
    table,
)
from tracetorch.export.c_code.learning import LearningRecord
from tracetorch.export.c_code.printer import Names
from tracetorch.export.c_code.source import Source
from tracetorch.export.c_code.stages import StepProgram

# functions of math.h that every library rounds alike
_EXACT = frozenset(
    {"", "fabsf", "floorf", "ceilf", "truncf", "rintf", "sqrtf", "fmaf", "copysignf"}
)
TEST = """
# make test: learn from the signals in learned.h, and compare the weights with those of Python
check: test.c model.c model.h sample.h learned.h
\t$(CC) $(STRICT) $(CFLAGS) test.c model.c -o check -lm

test: check
\t./check

.PHONY: test
"""

_CHECK = """\
/* Learn from the recorded signals, and compare the weights with those that Python learns. */
#include <math.h>
#include <stdio.h>

#include "learned.h"
#include "sample.h"

static tt_stream stream;

/* The larger of two differences; one that is no number is infinite. */
static double apart(double most, double found, double expected) {{
    const double d = fabs(found - expected);
    return d <= most ? most : d > most ? d : INFINITY;
}}

int main(void) {{
{outputs}
    double most = 0.0;
    tt_init(&stream);
    for (int32_t t = 0; t < TT_LEARNED_STEPS; t++) {{
        tt_step(&stream, {given});
        tt_learn({signals});
    }}
{compared}
    printf("%d steps of learning, weights at most %.9g apart\\n", (int)TT_LEARNED_STEPS, most);
    return most <= {tolerance} ? 0 : 1;
}}
"""


def learned_header(program: StepProgram, names: Names, learning: LearningRecord) -> str:
    """Return ``learned.h``: signals of the sample's first steps, and the weights behind them."""
    lines = [f"#define TT_LEARNED_STEPS {learning.steps}", ""]
    signals = learning.signals.values()
    lines += sequence_tables(ports_of(program.signals, names), signals, "TT_LEARNED_STEPS")
    for port in ports_of(program.learned, names):
        text, _ = table(f"tt_{port.name}", port.kind, learning.weights[port.label], False)
        lines.append(text)
    return guarded("TT_LEARNED_H", "Signals, and what Python learns from them.", lines)


def check_source(source: Source, learned: Sequence[Port], learning: LearningRecord) -> str:
    """Return ``test.c``: learn from the recorded signals, and compare the weights."""
    given = [f"tt_sample_{port.name}[t]" for port in source.inputs]
    given += [port.name for port in source.outputs]
    signals = ["&stream", *(f"tt_sample_{port.name}[t]" for port in source.signals)]
    compared = [
        f"    for (int32_t i = 0; i < {port.size}; i++) {{\n"
        f"        most = apart(most, (double)stream.{port.name}[i], (double)tt_{port.name}[i]);\n"
        "    }"
        for port in learned
    ]
    # functions of another math.h round otherwise, and a membrane near its threshold tells
    inexact = set(FROM_MATH.findall(source.text)) - _EXACT
    return _CHECK.format(
        outputs="\n".join(declared(source.outputs)),
        given=", ".join(given),
        signals=", ".join(signals),
        compared="\n".join(compared),
        tolerance="0.0" if learning.exact and not inexact else "1e-4",
    )
