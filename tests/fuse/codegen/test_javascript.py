"""Run printed JavaScript in a headless browser, and compare it with eager steps in float64."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests import cases
from tests.fuse.cases import CONFIGURATIONS
from tests.fuse.codegen.test_triton_loops import Common, everything
from tests.fuse.evaluate import _FUNCTIONS
from tests.fuse.ir import test_lower
from tests.fuzz.draw import SEEDS, random_neuron
from tests.lane import run_lane
from tracetorch import snn
from tracetorch.fuse.codegen.javascript import (
    FUNCTIONS,
    backward_source,
    forward_source,
    unknown,
)
from tracetorch.fuse.codegen.targets import _ROUNDED, javascript_target
from tracetorch.fuse.ir.plan import Plan
from tracetorch.fuse.ir.trace import trace

STEPS = 40

# Fill the arrays of one lane, backward with the cotangents that were given.
RUN = """(lanes) => lanes.map(({ literals, x, params, start, dOutput, dRecord, loops }) => {
  const zeros = (n) => new Array(n).fill(0), steps = x.length;
  const output = zeros(steps), record = start.map(() => zeros(steps));
  const dX = zeros(steps), dParams = zeros(params.length), dStart = zeros(start.length);
  const [forward, backward] = window.loops[loops];
  forward(literals, steps, x, params, start, output, record);
  backward(literals, steps, x, params, start, record, dOutput, dRecord, dX, dParams, dStart);
  return { output, record, dX, dParams, dStart };
})"""

# One step of one lane for each pair of operands: values, and the gradients of both; as bytes, since
# Playwright takes seconds for so many numbers.
RULES = """([a, b, cotangents, literals, count]) => {
  const [forward, backward] = window.loops[0];
  const results = Array.from({ length: count }, () => [[], [], []]);
  const each = (of) => Array.from({ length: 2 * count }, (_, i) => of(i));
  for (let lane = 0; lane < a.length; lane++) {
    const start = each((i) => i % 2 ? b[lane] : a[lane]);
    const record = each(() => [0]), dStart = each(() => 0);
    forward(literals, 1, [0], [], start, [0], record);
    const slopes = each((i) => [i % 2 ? 0 : cotangents[lane]]);
    backward(literals, 1, [0], [], start, record, [0], slopes, [0], [], dStart);
    results.forEach((parts, i) => {
      parts[0].push(record[2 * i][0]);
      parts[1].push(dStart[2 * i]);
      parts[2].push(dStart[2 * i + 1]);
    });
  }
  const bytes = new Uint8Array(Float64Array.from(results.flat(2)).buffer);
  return btoa(Array.from(bytes, (byte) => String.fromCharCode(byte)).join(""));
}"""


@pytest.fixture(scope="module")
def page(browser: Any) -> Any:
    return browser.new_page()


def eager(layer: snn.Neuron, seed: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Run one lane in PyTorch; return the arguments of the printed loops and their results."""
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    active = layer.active_states
    start = dict(zip(active, noise(len(active)).tolist(), strict=True))
    lane = run_lane(layer, (1.5 * noise(STEPS) + 0.2).tolist(), start=start)
    ends = [lane.output, *lane.record.values()]
    cotangents = [noise(STEPS) for _ in ends]
    pairs = zip(ends, cotangents, strict=True)
    slopes = lane.gradients(torch.stack([(end * weight).sum() for end, weight in pairs]).sum())
    given = {
        "x": lane.x.tolist(),
        "params": [each.item() for each in lane.params.values()],
        "start": list(start.values()),
        "dOutput": cotangents[0].tolist(),
        "dRecord": [each.tolist() for each in cotangents[1:]],
    }
    expected = {
        "output": lane.output.tolist(),
        "record": [each.tolist() for each in lane.record.values()],
        "dX": slopes["x"].tolist(),
        "dParams": [slopes[name].item() for name in lane.params],
        "dStart": [slopes[f"start {name}"].item() for name in active],
    }
    return given, expected


def loops(plan: Plan) -> str:
    return f"[{forward_source(plan)}, {backward_source(plan)}]"


def compare(page: Any, layers: Sequence[snn.Neuron], *, exact: bool = True) -> None:
    """Assert that the printed loops compute what PyTorch does: values to the bit if ``exact``."""
    sources, lanes, expected = [], [], []
    for seed, layer in enumerate(layers):
        program = cases.trace_layer(layer, 1, torch.float64)
        plan = Plan(program, "javascript", -1, program.states, True, program.inputs, program.params)
        given, wanted = eager(layer, seed)
        sources.append(loops(plan))
        lanes.append({**given, "literals": list(plan.literals), "loops": seed})
        expected.append(wanted)
    page.set_content("<p></p>")
    page.add_script_tag(content=f"{{{FUNCTIONS}window.loops = [{', '.join(sources)}]}}")
    for layer, found, wanted in zip(layers, page.evaluate(RUN, lanes), expected, strict=True):
        if exact:
            assert (found["output"], found["record"]) == (wanted["output"], wanted["record"]), layer
        # by name and with the layer, which the error then has
        got, expect = (
            {f"{layer!r} {k}": torch.tensor(v, dtype=torch.float64) for k, v in each.items()}
            for each in (found, wanted)
        )
        torch.testing.assert_close(got, expect, rtol=1e-9, atol=1e-9, equal_nan=True)


def test_configurations(page: Any) -> None:
    """Every layer, reset, detached and not, every surrogate, averages, and parts left out."""
    layers = [
        cases.layer(name, 3, **{**arguments, "dim": -1}).double()
        for name, arguments, _ in CONFIGURATIONS
    ]
    for seed, name in enumerate(cases.LAYERS * 4):
        layers.append(getattr(snn, name)(1).double())
        cases.vary(layers[-1], seed)
    compare(page, layers)


def test_every_operation(page: Any) -> None:
    compare(page, [everything(kind=Common).double()], exact=False)


@pytest.mark.parametrize("seeds", cases.few((SEEDS[:20], SEEDS[20:]), SEEDS[:20]))
def test_random_neurons(seeds: range, page: Any) -> None:
    drawn = [random_neuron(seed).double() for seed in seeds]
    graphs = [cases.trace_layer(layer, 1, torch.float64).graph for layer in drawn]
    known = [layer for layer, graph in zip(drawn, graphs, strict=True) if unknown(graph) is None]
    assert len(known) > len(drawn) // 3
    compare(page, known, exact=False)


def test_operations_of_float32_are_rounded_once(page: Any) -> None:
    """Sums, products, quotients and roots are those of float32, to the last bit."""
    drawn = np.random.default_rng(0)
    parts = [drawn.standard_normal(600) * 10.0 ** drawn.integers(-3, 4, 600) for _ in "abc"]
    parts[1][:120] = np.repeat([0.0, -0.0, 1.0, np.inf, -np.inf, np.nan], 20)
    a, b, c = (part.astype(np.float32) for part in parts)
    target = javascript_target("float32")
    loose = {*_ROUNDED} - {"add", "sub", "mul", "div", "sqrt"}
    logical = {"and", "or", "xor", "not"}
    arity = {"fma": 3, "where": 3}
    names = [op for op in target.expressions if op not in {"double", "float", *logical}]
    letters = {"where": "a[i] > b[i]"}
    calls = [
        f"{op!r}: a.map((_, i) => {template.format(letters.get(op, 'a[i]'), 'b[i]', 'c[i]')})"
        for op, template in ((op, target.expressions[op]) for op in names)
    ]
    page.set_content("<p></p>")
    page.add_script_tag(
        content=f"{{{FUNCTIONS}window.run = (a, b, c) => ({{{', '.join(calls)}}})}}"
    )
    found = page.evaluate("([a, b, c]) => run(a, b, c)", [x.tolist() for x in (a, b, c)])
    for op in names:
        count = arity.get(op, 1 + ("b[i]" in target.expressions[op].format("", "b[i]", "")))
        given = (a > b, b, c) if op == "where" else (a, b, c)[:count]
        with np.errstate(all="ignore"):
            wanted = np.asarray(_FUNCTIONS[op](*given))
        got = np.array(found[op], np.float64)
        assert np.array_equal(got, got.astype(np.float32), equal_nan=True), op
        if op in loose:
            np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-30, err_msg=op)
        else:
            assert np.array_equal(got, wanted, equal_nan=True), op
            signs = np.signbit(got) == np.signbit(wanted)
            assert (signs | np.isnan(got)).all(), op


def test_lowering_rules(page: Any) -> None:
    """Every operation, on zeros, infinities, NaN, and numbers that are tiny, huge and between."""
    lacks = ("erf", "erfc", "nextafter")
    rules = [each for each in test_lower.FUNCTIONS if each[0] not in lacks]
    functions = [function for _, function in rules]
    layer = test_lower.neuron(functions, 1)
    program = trace(layer.cell, 1, torch.float64, {})
    plan = Plan(program, "javascript", -1, program.states, True, program.inputs, ())
    page.set_content("<p></p>")
    page.add_script_tag(content=f"{{{FUNCTIONS}window.loops = [{loops(plan)}]}}")
    given = [each.tolist() for each in test_lower.operands(torch.float64)]
    found = page.evaluate(RULES, [*given, list(plan.literals), len(functions)])
    numbers = np.frombuffer(base64.b64decode(found)).reshape(len(functions), 3, -1)
    results = [parts.unbind() for parts in torch.from_numpy(numbers.copy())]
    test_lower.check(rules, results, torch.float64)
