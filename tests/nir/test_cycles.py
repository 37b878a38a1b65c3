"""Cycles: what comes a step late, against a plain loop, whatever the order of edges and nodes."""

from __future__ import annotations

import itertools
import random
from typing import Any

import nir
import numpy as np
import pytest
import torch
from torch import nn

import tracetorch as tt
from tests.cases import layer, sequence
from tests.nir.cases import DT, NEURONS, double, full, graph, line, run, simulated, ways
from tests.nir.simulator import Simulator
from tracetorch import snn

SHAPE = (3,)
ENDS = {"input": nir.Input(np.array(SHAPE)), "output": nir.Output(np.array(SHAPE))}
HOLDING: dict[str, Any] = {kind: make(SHAPE) for kind, make in NEURONS.items()} | {
    "Delay": nir.Delay(np.array([0.0, DT, 2 * DT])),
    "Threshold": nir.Threshold(full(SHAPE, 0.1, 0.6, 0)),
}


def linear(seed: int, bias: bool = True) -> Any:
    weight = full((3, 3), -0.6, 0.6, seed)
    return nir.Affine(weight, full(SHAPE, -0.5, 0.5, seed + 50)) if bias else nir.Linear(weight)


# Where a cycle closes: its edges, and a step of a loop that gives ``y`` of the input ``x`` and of
# the nodes ``n`` and ``m`` that hold a state (``N`` and ``M`` are what these gave before), and
# ``a``, ``b``, ``c`` that hold none.
CLOSINGS: dict[str, tuple[list[str], list[str]]] = {
    "into itself": (["input n a n", "n output"], ["y = N = n(x + a(N))"]),
    "at once": (["input n n output"], ["y = N = n(x + N)"]),
    "before it": (["input a n a", "n output"], ["y = N = n(a(x + N))"]),
    "where the input enters twice": (
        ["input a n a", "input n output"],
        ["y = N = n(x + a(x + N))"],
    ),
    "behind what is heard at once": (
        ["input n a b n", "a output"],
        ["N = n(x + b(a(N)))", "y = a(N)"],
    ),
    "from the output": (["input n a output", "a n"], ["N = n(x + a(N))", "y = a(N)"]),
    "around two": (["input n a m b n", "m output"], ["y = M = m(a(n(x + b(M))))"]),
    "around two and one": (  # ``c`` hears both, and is entered from the first
        ["input n a m b n", "m c m output", "n c"],
        ["N = n(x + b(M))", "y = M = m(a(N) + c(N + M))"],
    ),
    "between two that hear the input": (
        ["input n a m b n output", "input m output"],
        ["N, M = n(x + b(M)), m(x + a(N))", "y = N + M"],
    ),
    "around two with a way past the first": (
        ["input a n b m a", "a m output"],
        ["u = a(x + M)", "y = M = m(u + b(n(u)))"],
    ),
    "around each of two and both": (
        ["input n m n", "n a n", "m b m", "m output"],
        ["N = n(x + M + a(N))", "y = M = m(N + b(M))"],
    ),
}


def nodes_of(edges: list[str], n: Any, m: Any) -> dict[str, Any]:
    """Nodes that the edges name, in alphabetical order."""
    known = {"n": n, "m": m} | {name: linear(i) for i, name in enumerate("abc")}
    names = sorted({name for chain in edges for name in chain.split()} - ENDS.keys())
    return ENDS | {name: known[name] for name in names}


def looped(loop: list[str], nodes: dict[str, Any], x: torch.Tensor) -> torch.Tensor:
    """What a plain loop computes; one node alone is the simulator's."""
    outputs = []
    for sample in x.transpose(0, 1).numpy():
        known: dict[str, Any] = {"N": np.zeros(SHAPE), "M": np.zeros(SHAPE)}
        for name in nodes.keys() - ENDS.keys():
            alone = Simulator(line(nodes[name], into=SHAPE, out=SHAPE), DT)
            known[name] = lambda x, alone=alone: alone.step(x)["output"]
        steps = []
        for known["x"] in sample:
            exec("\n".join(loop), known)
            steps.append(known["y"])
        outputs.append(np.stack(steps))
    return torch.from_numpy(np.stack(outputs, 1))


def shuffled(given: nir.NIRGraph, seed: int) -> nir.NIRGraph:
    """The same graph, in another order of edges and nodes, inner graphs too."""
    draw = random.Random(seed)
    edges, names = list(given.edges), list(given.nodes)
    draw.shuffle(edges)
    draw.shuffle(names)
    nodes = {name: given.nodes[name] for name in names}
    inner = {n: shuffled(part, seed) for n, part in nodes.items() if isinstance(part, nir.NIRGraph)}
    return graph(edges, **nodes | inner)


@pytest.mark.one_in(3)
@pytest.mark.parametrize("where", CLOSINGS)
@pytest.mark.parametrize("kind", HOLDING)
def test_a_cycle_is_a_plain_loop(kind: str, where: str) -> None:
    edges, loop = CLOSINGS[where]
    # beside what spikes another that does, beside what holds a state another that does
    other = "LIF" if kind.endswith(("F", "Threshold")) else "LI"
    nodes = nodes_of(edges, HOLDING[kind], HOLDING[other])
    given = graph(ways(*edges), **nodes)
    x = 2 * sequence(30, 2, *SHAPE)
    expected = looped(loop, nodes, x)
    assert (expected[1:] != expected[:-1]).any()
    first = run(tt.nir.from_nir(given, dt=DT), x)
    torch.testing.assert_close(first, expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(simulated(given, x), expected, rtol=1e-9, atol=1e-9)
    for seed in range(3):
        model = tt.nir.from_nir(shuffled(given, seed), dt=DT)
        assert torch.equal(run(model, x), first)


# What spikes comes before what holds a state, and that before what does neither.


def test_a_membrane_and_its_threshold_that_both_hear_the_input() -> None:
    nodes = nodes_of(["m n a"], HOLDING["Threshold"], HOLDING["LI"])
    given = graph(ways("input m n a m", "input n output"), **nodes)
    x = 2 * sequence(30, 2, *SHAPE)
    expected = looped(["y = N = n(x + m(x + a(N)))"], dict(given.nodes), x)
    for seed in range(4):
        y = run(tt.nir.from_nir(shuffled(given, seed), dt=DT), x)
        torch.testing.assert_close(y, expected, rtol=0, atol=0)


@pytest.mark.parametrize("constant", [True, False])
def test_a_constant_begins_no_cycle(constant: bool) -> None:
    """Two integrators, the second with a drive: it hears the first at once, if that is constant."""
    drive = ["input silence one m"] if constant else ["input one m"]
    edges = ["input n m a n", "m output", *drive]
    nodes = nodes_of(["n m a"], HOLDING["CubaLI"], HOLDING["LI"])
    nodes |= {"silence": nir.Scale(np.zeros(3)), "one": nir.Threshold(-np.ones(3))}
    given = graph(ways(*edges), **{k: v for k, v in nodes.items() if constant or k != "silence"})

    loop = ["first = n(x + a(M))"]
    loop += ["y = M = m(first + one(silence(x)))"] if constant else ["y = M = m(N + one(x))"]
    loop += ["N = first"]
    x = sequence(30, 2, *SHAPE)
    expected = looped(loop, dict(given.nodes), x)
    for seed in range(4):
        y = run(tt.nir.from_nir(shuffled(given, seed), dt=DT), x)
        torch.testing.assert_close(y, expected, rtol=1e-9, atol=1e-9)
    if constant:  # what is written again is what was read, or an error
        model: Any = tt.nir.from_nir(given, dt=DT)
        again = run(tt.nir.from_nir(tt.nir.to_nir(model, SHAPE), dt=DT), x)
        torch.testing.assert_close(again, expected, rtol=1e-9, atol=1e-9)
        with torch.no_grad():
            model.nodes["silence"].scale.fill_(1.0)
        with pytest.raises(ValueError, match=r"node 'silence' was a Scale by zero and is none"):
            tt.nir.to_nir(model, SHAPE)


@pytest.mark.parametrize("name", ["SRLIF", "BSRLIF", "SRReadout"])
def test_what_is_written_is_read_in_any_order(name: str) -> None:
    """Loops in a neuron, in a loop around it, behind another such."""
    torch.manual_seed(0)
    cells = [snn.Recurrent(layer(each, 3), nn.Linear(3, 3)) for each in (name, "RLIF")]
    net = double(nn.Sequential(cells[0], nn.Linear(3, 3), cells[1], snn.RReadout(3)))
    x = 2 * sequence(40, 2, *SHAPE)
    y = run(net, x)
    bare = tt.nir.to_nir(net, SHAPE)
    for seed in range(4):
        model = tt.nir.from_nir(shuffled(bare, seed), dt=DT)
        torch.testing.assert_close(run(model, x), y, rtol=0, atol=1e-11)


@pytest.mark.parametrize("seed", range(40))
def test_random_graphs_are_the_simulators_in_any_order(seed: int) -> None:
    """Six nodes on a ring, and edges across it: nested cycles, entered anywhere."""
    draw = random.Random(seed)
    names = list("abcdef")
    draw.shuffle(names)
    nodes: dict[str, Any] = {name: linear(i, draw.random() < 0.5) for i, name in enumerate(names)}
    nodes |= {name: HOLDING[draw.choice([*HOLDING])] for name in draw.sample(names, 4)}
    stateless = [name for name in names if isinstance(nodes[name], (nir.Affine, nir.Linear))]
    edges = {(draw.choice(names), draw.choice(names)) for _ in range(6)}
    edges -= {*itertools.product(stateless, stateless)}  # would be equations
    edges |= {*itertools.pairwise([*names, names[0]]), (draw.choice(names), "output")}
    edges |= {("input", draw.choice(names)) for _ in range(2)}
    given = graph(sorted(edges), **nodes, **ENDS)
    x = sequence(12, 1, *SHAPE)
    model: Any = tt.nir.from_nir(given, dt=DT)
    assert model.flow.kept
    first = run(model, x)
    torch.testing.assert_close(first, simulated(given, x), rtol=1e-9, atol=1e-9)
    assert torch.equal(run(tt.nir.from_nir(shuffled(given, seed), dt=DT), x), first)
