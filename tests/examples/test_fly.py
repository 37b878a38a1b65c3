"""The network of a fly's size: its graph, its neurons beside a plain loop, and its experiments."""

from __future__ import annotations

import argparse
import math
from collections import deque
from pathlib import Path

import numpy as np
import pytest
import torch

import tracetorch as tt
from benchmarks import brian2_fly
from examples import fly
from tracetorch import snn


def options(*more: str) -> argparse.Namespace:
    return fly.parser().parse(["--learnt", "4000", "--trials", "3", *more])


@pytest.fixture(scope="module")
def graph() -> fly.Graph:
    return fly.draw_graph(1000, seed=1)


def test_a_drawn_graph_has_the_statistics_that_it_is_to_have(graph: fly.Graph) -> None:
    sources, targets = graph.edges
    key = sources * graph.neurons + targets
    assert (key.diff() > 0).all()  # sorted by source, and none twice
    assert (sources != targets).all()
    degrees = sources.bincount(minlength=graph.neurons).float()
    assert degrees.max() > 3 * degrees.mean()
    synapses = graph.synapses.abs()
    assert torch.equal(synapses, synapses.round())
    assert float(synapses.mean()) == pytest.approx(fly.SYNAPSES / fly.CONNECTIONS, rel=0.05)
    assert float((synapses >= 5).float().mean()) == pytest.approx(0.179, abs=0.01)
    signs = [graph.synapses[sources == n].sign().unique() for n in range(graph.neurons)]
    assert all(len(each) <= 1 for each in signs)
    inhibits = torch.tensor([bool(len(each) and each[0] < 0) for each in signs])
    assert float(inhibits.float().mean()) == pytest.approx(fly.INHIBITORY, abs=0.06)
    again, other = fly.draw_graph(1000, seed=1), fly.draw_graph(1000, seed=2)
    assert torch.equal(again.edges, graph.edges)
    assert not torch.equal(other.synapses[:100], graph.synapses[:100])


def driven(graph: fly.Graph, steps: int) -> tuple[torch.Tensor, snn.PoissonInput, torch.Tensor]:
    """Return neurons that are driven, by what, and that as values of each step."""
    first, _ = fly.inputs_of(graph)
    source = fly.stimulus(first, seed=5)
    span = snn.event_inputs.Span(0, steps, 1, graph.neurons)
    places, values = source.between(span, torch.float64)
    x = torch.zeros(steps * graph.neurons, dtype=torch.float64).index_add_(0, places, values)
    return first, source, x.view(steps, 1, -1)


def plain_spikes(graph: fly.Graph, x: np.ndarray) -> list[list[int]]:
    """Run the published equations in the order of Brian2's clock, with a queue of spikes."""
    weight = np.zeros((graph.neurons, graph.neurons))
    weight[tuple(graph.edges.numpy())] = 0.275 * graph.synapses.numpy()
    leak, fade = math.exp(-0.1 / 20), math.exp(-0.1 / 5)
    v, g = np.full(graph.neurons, -52.0), np.zeros(graph.neurons)
    last = np.full(graph.neurons, -1000)
    queue = deque([np.zeros(graph.neurons)] * 18)
    found = []
    for t, arriving in enumerate(x):
        ready = t - last >= 22
        moved = -52 + leak * (v + 52) + 5 / (20 - 5) * (leak - fade) * g
        v, g = np.where(ready, moved, v), np.where(ready, fade * g, g)
        fired = ready & (v > -45)
        g = np.where(ready, g + queue.popleft() + 0.275 * arriving, g)
        queue.append(fired @ weight)
        v, g, last = np.where(fired, -52, v), np.where(fired, 0, g), np.where(fired, t, last)
        found += [[t, 0, int(n)] for n in fired.nonzero()[0]]
    return found


def test_spikes_are_those_of_the_published_equations() -> None:
    graph = fly.draw_graph(400)
    net = fly.network(graph).double()
    first, source, x = driven(graph, 1000)
    expected = plain_spikes(graph, x[:, 0].numpy())
    with torch.no_grad():
        assert net.run_events(source, 1000, events=True).events.tolist() == expected
    assert len({n for _, _, n in expected} - set(first.tolist())) > 10


@pytest.mark.filterwarnings("default")  # Brian2's own
def test_spikes_are_those_of_brian2() -> None:
    """Spike for spike, in the order of Brian2's clock.

    States move on, thresholds are compared, spikes arrive, resets act. Both solve the equations
    exactly; Brian2 does so in volts around -52 mV, from formulas that SymPy writes, so states agree
    to rounding and not in each bit.
    """
    brian2 = pytest.importorskip("brian2", reason="of the extra test-brian2")
    brian2.prefs.codegen.target = "numpy"
    graph, steps = fly.draw_graph(5000), 1000
    net = fly.network(graph).double()
    driven = torch.cat(fly.inputs_of(graph))
    source = fly.stimulus(driven, seed=5)
    span = snn.event_inputs.Span(0, steps, 1, graph.neurons)
    places, _ = source.between(span, torch.float64)
    events = torch.stack([places // graph.neurons, places % graph.neurons], 1)
    weight = fly.SYNAPSE * graph.synapses.double()
    parts = brian2_fly.network(
        graph.neurons, graph.edges.numpy(), weight.numpy(), events.numpy(), fly.SYNAPSE * fly.KICK
    )
    parts["network"].run(steps * fly.DT * brian2.ms)
    found = np.stack([np.rint(parts["spikes"].t / (fly.DT * brian2.ms)), parts["spikes"].i], 1)
    found = found[np.lexsort(found.T[::-1])].astype(int)
    with torch.no_grad():
        expected = net.run_events(source, steps, events=True).events
    assert len(expected) > 2000
    assert len(expected[:, 2].unique()) > 300
    assert found.tolist() == expected[:, [0, 2]].tolist()
    for state, offset, ours in (("v", -52, "membrane"), ("g", 0, "synapse")):
        theirs = np.asarray(getattr(parts["group"], state)) * 1000 - offset
        np.testing.assert_allclose(theirs, tt.get_states(net)[f"neuron.{ours}"][0], atol=1e-11)


@pytest.mark.parametrize("detach_reset", [False, True])
def test_gradients_by_events_are_those_by_step(detach_reset: bool) -> None:
    graph = fly.draw_graph(200)
    net = fly.network(graph, detach_reset=detach_reset).double()
    weight = fly.weight_of(net)
    _, source, x = driven(graph, 300)
    toward = torch.randn(200, dtype=torch.float64)
    tt.zero_states(net)
    spikes = torch.stack([net(step) for step in x]).sum(0)
    (expected,) = torch.autograd.grad((spikes * toward).sum(), weight)
    tt.zero_states(net)
    found = net.run_events(source, 300, count_every=300).counts
    (grad,) = torch.autograd.grad((found * toward).sum(), weight)
    assert expected.abs().max() > 0
    torch.testing.assert_close(grad, expected, rtol=1e-9, atol=1e-12)


def test_two_inputs_are_told_apart_and_no_weight_changes_its_sign(graph: fly.Graph) -> None:
    net = fly.network(graph)
    inputs = fly.inputs_of(graph)
    assert not set(inputs[0].tolist()) & set(inputs[1].tolist())
    found = fly.learning(graph, net, inputs, options("--epochs", "12"), 0)
    assert found["accuracy_after"] >= 5 / 6
    assert found["losses"][-1] < 0.5 * found["losses"][0]
    weight = fly.weight_of(net).detach()
    assert torch.equal(weight.sign(), graph.synapses.sign())
    assert 0 < int((weight != graph.synapses).sum()) <= found["learnt_weights"] == 4000


@pytest.mark.slow
def test_a_quick_run_writes_a_row_and_a_figure(tmp_path: Path, capsys) -> None:
    assert fly.main(["--quick", "--neurons", "400", "--out", str(tmp_path)]) == 0
    found = capsys.readouterr().out
    assert "respond" in found
    assert found.splitlines()[-1] == str(tmp_path / "fly-400-seed0.png")
    (row,) = fly.read(tmp_path)
    assert (row["neurons"], row["seed"], row["tables"]) == (400, 0, False)
    assert row["spikes"] > 0
    assert set(row["norms"]) == set(fly.SETTINGS)
    assert [len(each) for each in row["growth_edges"]] == [3, 3]
    assert (tmp_path / "fly-400-seed0.png").stat().st_size > 10_000
    fly.write({**row, "spikes": 7}, tmp_path)
    assert [each["spikes"] for each in fly.read(tmp_path)] == [7]


@pytest.mark.slow
def test_the_whole_network_runs_and_has_a_gradient() -> None:
    graph = fly.draw_graph()
    assert graph.edges.shape[1] == pytest.approx(fly.CONNECTIONS, rel=0.01)
    assert float(graph.synapses.abs().sum()) == pytest.approx(fly.SYNAPSES, rel=0.03)
    assert 6_000 < int(graph.edges[0].bincount().max()) < 14_000
    net = fly.network(graph)
    first, _ = fly.inputs_of(graph)
    events = fly.activate(net, first, 0.1, 0)
    rates = fly.rates_of(events, graph.neurons, 0.1)
    others = fly.responding(rates, first)
    assert 100 < len(others) < graph.neurons / 10
    assert 0 < fly.gradient_norm(net, first, others[:100], 0.05, 0) < 1
