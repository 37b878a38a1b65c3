"""Thresholds of findings, from both sides: a figure just within raises none, just beyond does."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tracetorch import snn
from tracetorch.diagnosis import activity, data, gradients
from tracetorch.diagnosis.evidence import Evidence, LayerEvidence
from tracetorch.diagnosis.finding import findings
from tracetorch.diagnosis.reach import SpikeInputs
from tracetorch.events import Product
from tracetorch.functional import halflife_to_decay
from tracetorch.unrolling.inputs import parse_inputs

STEPS, B, N = 100, 1, 100


def evidence(*layers: LayerEvidence, x: Tensor | None = None, **fields: Any) -> Evidence:
    """Return evidence without a finding, but for what ``fields`` say."""
    inputs = parse_inputs(torch.ones(STEPS, B, N) if x is None else x)
    plain: dict[str, Any] = {"outputs": [], "output_gradients": [], "parameters": {}}
    plain |= {"gradients": {}, "loss": torch.tensor(1.0), **fields}
    return Evidence(nn.Identity(), inputs, list(layers), **plain)


def layer(path: str = "0", module: Any = None, **fields: Any) -> LayerEvidence:
    """Return a layer whose neurons fire at every other step, near their thresholds."""
    spikes = (torch.arange(STEPS) % 2)[:, None, None].expand(STEPS, B, N).float()
    plain = {"input": torch.ones(STEPS, B, N), "output": spikes}
    return LayerEvidence(path, module or snn.LIF(N), **{**plain, **fields})


def severity(module: Any, seen: Evidence, name: str) -> str | None:
    """Return how severe the one finding of a name is, or ``None`` where there is none."""
    severities = [f.severity for f in findings(module, seen) if f.name == name]
    assert len(severities) <= 1
    return severities[0] if severities else None


def rates(*rates: float) -> LayerEvidence:
    """Return a layer of ``N`` neurons that fire at these rates, the last one's for the others."""
    per = torch.tensor([*rates, *[rates[-1]] * (N - len(rates))][:N])
    return layer(output=(torch.arange(STEPS)[:, None, None] < per * STEPS - 0.5).float())


def small(batch: int, neurons: int) -> Evidence:
    """Return a layer of which every other neuron always fires, and the others never."""
    pattern = (torch.arange(neurons) % 2).float().expand(STEPS, batch, neurons)
    one = layer(module=snn.LIF(neurons), input=torch.ones_like(pattern), output=pattern)
    return evidence(one, x=torch.ones(STEPS, batch, neurons))


def near(count: int) -> Evidence:
    """Return a layer with so many of ten thousand membranes in reach."""
    in_reach = torch.arange(STEPS * N).reshape(STEPS, B, N) < count
    inputs = SpikeInputs({"pos_spike": torch.ones(STEPS, B, N)}, in_reach)
    return evidence(layer(spike_inputs=inputs))


def stepped() -> torch.optim.Optimizer:
    weight = nn.Parameter(torch.ones(1))
    optimizer = torch.optim.Adam([weight])
    weight.sum().backward()
    optimizer.step()
    return optimizer


def sloped(gradient: float, weight: float, loss: float) -> Evidence:
    """Return a gradient and a weight as norms of two parameters each, 0.6 and 0.8 of it."""
    parts = {"a": 0.6, "b": 0.8}
    return evidence(
        loss=torch.tensor(loss, dtype=torch.float64),
        parameters={n: nn.Parameter(torch.tensor([s * weight]).double()) for n, s in parts.items()},
        gradients={n: torch.tensor([s * gradient]).double() for n, s in parts.items()},
    )


def peaked(peak: float, step: int, count: int) -> Evidence:
    """Return a gradient with a peak; it is compared with the last tenth of those that are not 0."""
    g = torch.zeros(count, B, 1)
    g[: count - 2] = 1e-3
    g[-3] = 1.0
    g[step] = peak
    return evidence(layer(gradient=g))


def decays(halflife: float) -> Tensor:
    return halflife_to_decay(torch.full((N,), halflife, dtype=torch.float64))


def remembering(halflife: float, **fields: Any) -> LayerEvidence:
    return layer(module=snn.LIF(N, beta=decays(halflife)).double(), **fields)


def averaging(halflife: float) -> Evidence:
    module = snn.Readout(N).double()
    module.raw_beta.data.copy_(torch.logit(decays(halflife)))
    return evidence(layer(module=module))


# the module, the finding, the evidence by a figure, and how severe it is
TABLE: list[tuple[Any, str, Any, dict[Any, str | None]]] = [
    # a mean of squares of 900; of small inputs the largest counts
    (data, "input-scale", lambda *v: evidence(x=torch.tensor(v)[:, None, None]), {
        (30.0, 30.0): None, (30.001, 30.001): "warning", (60.0, 0, 0, 0): None,
        (-60.1, 0, 0, 0): "warning", (1e-9, -1e-3): None, (1e-9, -0.999e-3): "warning"}),
    (activity, "dead-neurons", lambda n: evidence(rates(*[0.0] * n, 0.5 if n < N else 0.0)), {
        49: None, 50: "note", 89: "note", 90: "warning", 99: "warning", 100: "error"}),
    # after the first steps silence is no longer the start's
    (activity, "dead-neurons", lambda n: evidence(
        rates(*[0.0] * n, 0.5 if n < N else 0.0), optimizer=stepped()), {
        49: None, 50: "warning", 99: "warning", 100: "error"}),
    (activity, "saturated-neurons", lambda n, r: evidence(rates(*[r] * n, 0.5 if n < N else r)), {
        (49, 0.9): None, (50, 0.9): "warning", (50, 0.89): None, (99, 0.9): "warning",
        (100, 0.9): "error", (100, 0.89): None}),
    # with few steps any neuron may fire at every step
    (activity, "saturated-neurons", lambda n: evidence(
        layer(input=torch.ones(n, B, N), output=torch.ones(n, B, N)), x=torch.ones(n, B, N)), {
            2: None, 3: "error"}),
    (activity, "dead-and-saturated", lambda dead, often: evidence(
        rates(*[0.0] * dead, *[0.9] * often, 0.5), x=torch.ones(STEPS, 2, N)), {
        (25, 25): "warning", (24, 25): None, (25, 24): None, (45, 45): "warning", (75, 0): None}),
    # not in a small layer, or for one sample
    (activity, "dead-and-saturated", small, {
        (2, 8): "warning", (2, 7): None, (1, 8): None, (2, 2): None}),
    # a hundredth is enough
    (activity, "out-of-reach", near, {0: "error", 1: "warning", 99: "warning", 100: None}),
    # not where the gradient itself is small
    (gradients, "exploding-gradient", sloped, {
        (20.0, 1.0, 20.0 / 0.99e4): None, (20.0, 1.0, 20.0 / 1.01e4): "warning",
        (20.0, 1.0, -20.0 / 1.01e4): "warning", (20.0, 1.01e4, 20.0): "warning",
        (20.0, 0.99e4, 20.0): None, (10.01, 1e9, 1.0): "warning", (9.99, 1e9, 1.0): None}),
    # not where it has not grown over half of the sequence
    (gradients, "exploding-through-time", peaked, {
        (999.0, 3, 100): None, (1001.0, 3, 100): "warning", (1001.0, 49, 100): "warning",
        (1001.0, 50, 100): None, (1001.0, 1, 10): "warning", (1001.0, 1, 9): None}),
    (gradients, "short-memory", lambda life, count: evidence(
        remembering(life), x=torch.ones(count, B, N)), {
        (10.01, 100): None, (9.99, 100): "note", (0.5, 10): "note", (0.5, 9): None}),
    (gradients, "slow-average", averaging, {999.0: None, 1001.0: "warning"}),
]  # fmt: skip


@pytest.mark.parametrize(
    ("module", "name", "make", "figure", "expected"),
    [(m, name, make, f, s) for m, name, make, cases in TABLE for f, s in cases.items()],
)
def test_severity_of_a_figure(module, name, make, figure, expected) -> None:
    seen = make(*figure) if isinstance(figure, tuple) else make(figure)
    assert severity(module, seen, name) == expected


def test_few_neurons_are_in_the_singular_and_membranes_scaled() -> None:
    figures = {f.name: f.figure for f in findings(activity, small(2, 2))}
    assert figures["dead-neurons"].startswith("1 of 2 neurons never fires, in")
    assert figures["saturated-neurons"].startswith("1 of 2 neurons fires at 90 %")
    # A membrane that reaches 30 % of the threshold is scaled five times, to 1.5 of it.
    above = torch.full((STEPS, B, N), -2.0)
    above[3] = -0.7
    inputs = SpikeInputs({"pos_spike": above}, torch.ones(STEPS, B, N, dtype=torch.bool))
    silent = layer(output=torch.zeros(STEPS, B, N), spike_inputs=inputs)
    (finding,) = findings(activity, evidence(silent))
    assert "half of their membranes reach 30 % of the threshold" in finding.figure
    assert "by about 5." in finding.advice


@pytest.mark.parametrize(
    ("ratio", "name"),
    [
        *((1.01e-4, None), (0.99e-4, "vanishing-gradient"), (0.0, "vanishing-gradient")),
        *((0.99e4, None), (1.01e4, "exploding-gradient")),
    ],
)
def test_gradient_of_the_first_layer_against_the_last(ratio: float, name: str | None) -> None:
    g = torch.ones(STEPS, B, N)
    layers = layer("0", gradient=ratio * g), layer("1"), layer("2", gradient=g)
    every = findings(gradients, evidence(*layers))
    found = [(f.name, f.value) for f in every if f.name != "short-memory"]
    assert found == ([] if name is None else [(name, pytest.approx(ratio))])


@pytest.mark.parametrize(
    ("early", "back", "expected"),
    [
        (0.0099, 49, "warning"),
        (0.0101, 49, "note"),  # of the squared gradient: the loss reads earlier outputs too
        (0.0, 50, "note"),  # the gradient reaches half of the sequence
    ],
)
def test_loss_that_depends_on_what_is_forgotten(early: float, back: int, expected: str) -> None:
    """The end is the last tenth; a gradient lives where it is a thousandth of the highest."""
    y = torch.zeros(STEPS, B, 1, dtype=torch.float64)
    y[-10], y[-11] = math.sqrt(1 - early), math.sqrt(early)
    g = torch.full((STEPS, B, N), 0.999e-3, dtype=torch.float64)
    g[-1], g[-back:-1] = 1.0, 1.001e-3
    seen = evidence(remembering(5.0, gradient=g), outputs=[y], output_gradients=[y])
    assert severity(gradients, seen, "short-memory") == expected
    if not early:
        assert f"a thousandth {back} steps back" in findings(gradients, seen)[0].figure


def product(density: float | None, crossover: float = 0.2, events: bool = False) -> Product:
    return Product(events, density, crossover, None if events else "dense")


@pytest.mark.parametrize(
    ("called", "value"),
    [
        ([product(0.2)], None),
        ([product(0.201)], 0.201),
        ([product(0.9)], 0.9),
        ([product(0.901)], None),  # numbers, not spikes
        ([product(0.5, 0.0)], None),  # too small for events
        ([product(None, 0.0)], None),
        ([product(0.1, events=True)], None),
        ([product(0.1, events=True), product(0.3), product(0.4), product(0.35)], 0.4),
    ],
)
def test_density_against_the_crossover(called: list[Product], value: float | None) -> None:
    found = findings(activity, evidence(products={"0": called}))
    names = [(f.severity, f.name, f.layer, f.value) for f in found]
    assert names == ([] if value is None else [("note", "too-busy-for-events", "0", value)])
