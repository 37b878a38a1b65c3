"""Thresholds of findings, from both sides: a figure just within raises none, just beyond does."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tracetorch import snn
from tracetorch.diagnosis import Diagnosis, Finding, activity, data, gradients, memory, products
from tracetorch.diagnosis.evidence import Evidence, LayerEvidence
from tracetorch.diagnosis.reach import SpikeInputs
from tracetorch.events import Product
from tracetorch.functional import halflife_to_decay
from tracetorch.unrolling.inputs import parse_inputs

STEPS, B, N = 100, 1, 100


def evidence(x: Tensor | None = None, **fields: Any) -> Evidence:
    """Return evidence without a finding, but for what ``fields`` say."""
    inputs = parse_inputs(torch.ones(STEPS, B, N) if x is None else x, None, 0, True)
    plain: dict[str, Any] = {
        "layers": [],
        "loss": torch.tensor(1.0),
        "outputs": [],
        "output_gradients": [],
        "parameters": {},
        "gradients": {},
    }
    return Evidence(
        model=nn.Identity(),
        inputs=inputs,
        mask=None,
        uncalled=[],
        old_states={},
        **{**plain, **fields},
    )


def layer(path: str = "0", module: Any = None, **fields: Any) -> LayerEvidence:
    """Return a layer whose neurons fire at every other step, near their thresholds."""
    spikes = (torch.arange(STEPS) % 2)[:, None, None].expand(STEPS, B, N).float()
    plain: dict[str, Any] = {
        "input": torch.ones(STEPS, B, N),
        "output": spikes,
        "fires": True,
        "spike_inputs": None,
        "gradient": None,
    }
    module = snn.LIF(N) if module is None else module
    return LayerEvidence(path, module, **{**plain, **fields})


def severity(findings: Iterable[Finding], name: str) -> str | None:
    """Return how severe the one finding of a name is, or ``None`` where there is none."""
    severities = [f.severity for f in findings if f.name == name]
    assert len(severities) <= 1
    return severities[0] if severities else None


@pytest.mark.parametrize(
    ("x", "expected"),
    [
        (torch.full((2, 1, 1), 30.0), None),
        (torch.full((2, 1, 1), 30.001), "warning"),
        (torch.tensor([[[60.0]], [[0.0]], [[0.0]], [[0.0]]]), None),  # a mean of squares of 900
        (torch.tensor([[[-60.1]], [[0.0]], [[0.0]], [[0.0]]]), "warning"),
        (torch.tensor([[[1e-9]], [[-1e-3]]]), None),  # the largest counts
        (torch.tensor([[[1e-9]], [[-0.999e-3]]]), "warning"),
    ],
)
def test_scale_of_inputs(x: Tensor, expected: str | None) -> None:
    assert severity(data.inputs(evidence(x)), "input-scale") == expected


def rates(*rates: float) -> LayerEvidence:
    """Return a layer of ``N`` neurons that fire at these rates, the last one's for the others."""
    per = torch.tensor([*rates, *[rates[-1]] * (N - len(rates))])
    return layer(output=(torch.arange(STEPS)[:, None, None] < per * STEPS - 0.5).float())


@pytest.mark.parametrize(
    ("dead", "expected"),
    [(49, None), (50, "note"), (89, "note"), (90, "warning"), (99, "warning"), (100, "error")],
)
def test_share_of_dead_neurons(dead: int, expected: str | None) -> None:
    one = rates(*[0.0] * dead, 0.5 if dead < N else 0.0)
    assert severity(activity.findings(evidence(layers=[one])), "dead-neurons") == expected


@pytest.mark.parametrize(
    ("often", "rate", "expected"),
    [
        (49, 0.9, None),
        (50, 0.9, "warning"),
        (50, 0.89, None),
        (99, 0.9, "warning"),
        (100, 0.9, "error"),
        (100, 0.89, None),
    ],
)
def test_share_and_rate_of_saturated_neurons(often: int, rate: float, expected: str | None) -> None:
    one = rates(*[rate] * often, 0.5 if often < N else rate)
    assert severity(activity.findings(evidence(layers=[one])), "saturated-neurons") == expected


@pytest.mark.parametrize(
    ("dead", "often", "expected"),
    [(25, 25, "warning"), (24, 25, None), (25, 24, None), (45, 45, "warning"), (75, 0, None)],
)
def test_shares_of_dead_and_of_saturated_neurons(
    dead: int, often: int, expected: str | None
) -> None:
    one = rates(*[0.0] * dead, *[0.9] * often, 0.5)
    two = evidence(torch.ones(STEPS, 2, N), layers=[one])
    assert severity(activity.findings(two), "dead-and-saturated") == expected


@pytest.mark.parametrize(
    ("batch", "neurons", "expected"), [(2, 8, "warning"), (2, 7, None), (1, 8, None), (2, 2, None)]
)
def test_a_small_layer_or_one_sample_is_not_dead_and_saturated(
    batch: int, neurons: int, expected: str | None
) -> None:
    pattern = (torch.arange(neurons) % 2).float().expand(STEPS, batch, neurons)
    one = layer(module=snn.LIF(neurons), input=torch.ones_like(pattern), output=pattern)
    found = list(activity.findings(evidence(torch.ones(STEPS, batch, neurons), layers=[one])))
    assert severity(found, "dead-and-saturated") == expected
    if neurons == 2:
        figures = {f.name: f.figure for f in found}
        assert figures["dead-neurons"].startswith("1 of 2 neurons never fires, in")
        assert figures["saturated-neurons"].startswith("1 of 2 neurons fires at 90 %")


@pytest.mark.parametrize(("steps", "expected"), [(2, None), (3, "error")])
def test_steps_after_which_a_neuron_can_be_saturated(steps: int, expected: str | None) -> None:
    x = torch.ones(steps, B, N)
    one = layer(input=x, output=x)
    assert severity(activity.findings(evidence(x, layers=[one])), "saturated-neurons") == expected


@pytest.mark.parametrize(
    ("near", "expected"), [(0, "error"), (1, "warning"), (99, "warning"), (100, None)]
)
def test_share_of_membranes_in_reach(near: int, expected: str | None) -> None:
    """Of ten thousand; a hundredth is enough."""
    in_reach = torch.arange(STEPS * N).reshape(STEPS, B, N) < near
    one = layer(spike_inputs=SpikeInputs({"pos_spike": torch.ones(STEPS, B, N)}, in_reach))
    assert severity(activity.findings(evidence(layers=[one])), "out-of-reach") == expected


def test_scale_that_the_advice_for_dead_neurons_names() -> None:
    """A membrane that reaches 30 % of the threshold is scaled five times, to 1.5 of it."""
    above = torch.full((STEPS, B, N), -2.0)
    above[3] = -0.7
    inputs = SpikeInputs({"pos_spike": above}, torch.ones(STEPS, B, N, dtype=torch.bool))
    one = layer(output=torch.zeros(STEPS, B, N), spike_inputs=inputs)
    (finding,) = activity.findings(evidence(layers=[one]))
    assert "half of their membranes reach 30 % of the threshold" in finding.figure
    assert "by about 5." in finding.advice


@pytest.mark.parametrize(
    ("ratio", "name"),
    [
        (1.01e-4, None),
        (0.99e-4, "vanishing-gradient"),
        (0.0, "vanishing-gradient"),
        (0.99e4, None),
        (1.01e4, "exploding-gradient"),
    ],
)
def test_gradient_of_the_first_layer_against_the_last(ratio: float, name: str | None) -> None:
    g = torch.ones(STEPS, B, N)
    layers = [layer("0", gradient=ratio * g), layer("1"), layer("2", gradient=g)]
    findings = list(gradients.findings(evidence(layers=layers)))
    assert [f.name for f in findings] == ([] if name is None else [name])
    assert [f.value for f in findings] == pytest.approx([] if name is None else [ratio])


@pytest.mark.parametrize(
    ("gradient", "weight", "loss", "expected"),
    [
        (20.0, 1.0, 20.0 / 0.99e4, None),
        (20.0, 1.0, 20.0 / 1.01e4, "warning"),
        (20.0, 1.0, -20.0 / 1.01e4, "warning"),
        (20.0, 1.01e4, 20.0, "warning"),
        (20.0, 0.99e4, 20.0, None),
        (10.01, 1e9, 1.0, "warning"),
        (9.99, 1e9, 1.0, None),  # a small gradient
    ],
)
def test_elasticity_of_the_loss(
    gradient: float, weight: float, loss: float, expected: str | None
) -> None:
    """Gradient and weight as norms of two parameters each, 0.6 and 0.8 of it."""
    parts = {"a": 0.6, "b": 0.8}
    found = evidence(
        loss=torch.tensor(loss, dtype=torch.float64),
        parameters={n: nn.Parameter(torch.tensor([s * weight]).double()) for n, s in parts.items()},
        gradients={n: torch.tensor([s * gradient]).double() for n, s in parts.items()},
    )
    assert severity(gradients.findings(found), "exploding-gradient") == expected


@pytest.mark.parametrize(
    ("peak", "step", "steps", "expected"),
    [
        (999.0, 3, 100, None),
        (1001.0, 3, 100, "warning"),
        (1001.0, 49, 100, "warning"),
        (1001.0, 50, 100, None),  # it has not grown over half of the sequence
        (1001.0, 1, 10, "warning"),
        (1001.0, 1, 9, None),
    ],
)
def test_gradient_over_time(peak: float, step: int, steps: int, expected: str | None) -> None:
    """The last tenth of the steps that have a gradient is what the highest is compared with."""
    g = torch.zeros(steps, B, 1)
    g[: steps - 2] = 1e-3
    g[-3] = 1.0
    g[step] = peak
    findings = gradients.findings(evidence(layers=[layer(gradient=g)]))
    assert severity(findings, "exploding-through-time") == expected


def remembering(halflife: float, **fields: Any) -> LayerEvidence:
    decay = halflife_to_decay(torch.full((N,), halflife, dtype=torch.float64))
    return layer(module=snn.LIF(N, beta=decay).double(), **fields)


@pytest.mark.parametrize(
    ("halflife", "steps", "expected"),
    [(10.01, 100, None), (9.99, 100, "note"), (0.5, 10, "note"), (0.5, 9, None)],
)
def test_longest_halflife_against_the_sequence(
    halflife: float, steps: int, expected: str | None
) -> None:
    found = evidence(torch.ones(steps, B, N), layers=[remembering(halflife)])
    assert severity(memory.findings(found), "short-memory") == expected


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
    found = evidence(outputs=[y], output_gradients=[y], layers=[remembering(5.0, gradient=g)])
    findings = list(memory.findings(found))
    assert severity(findings, "short-memory") == expected
    if not early:
        assert f"a thousandth {back} steps back" in findings[0].figure


@pytest.mark.parametrize(("halflife", "expected"), [(999.0, None), (1001.0, "warning")])
def test_average_against_the_sequence(halflife: float, expected: str | None) -> None:
    decay = halflife_to_decay(torch.full((N,), halflife, dtype=torch.float64))
    torch.set_default_dtype(torch.float64)
    try:
        module = snn.Readout(N, beta=decay)
    finally:
        torch.set_default_dtype(torch.float32)
    findings = memory.findings(evidence(layers=[layer(module=module)]))
    assert severity(findings, "slow-average") == expected


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
    found = list(products.findings(evidence(products={"0": called})))
    names = [(f.severity, f.name, f.layer, f.value) for f in found]
    assert names == ([] if value is None else [("note", "too-busy-for-events", "0", value)])


def test_report_is_of_the_same_limits() -> None:
    """A note alone keeps a diagnosis ``ok``."""
    note, warning = (Finding(s, "n", "", 0.0, "f", "m", "a") for s in ("note", "warning"))
    assert Diagnosis((note,), (), 1.0, STEPS, B, {}).ok
    assert not Diagnosis((note, warning), (), 1.0, STEPS, B, {}).ok
