"""Graphs from elsewhere: every node against the paper's equations, and what cannot be read."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import nir
import numpy as np
import pytest
import torch
from torch import nn

import tracetorch as tt
from tests.cases import sequence
from tests.export.models import stepped_program
from tests.nir.cases import DT, NEURONS, full, graph, line, run, simulated, ways
from tests.refusals import check, refusals
from tracetorch import snn
from tracetorch.nir.modules import Membrane
from tracetorch.nir.nodes import KINDS


def agrees(given: nir.NIRGraph, x: torch.Tensor, **how: Any) -> torch.Tensor:
    """Ours and the simulator's outputs are one; returned for a look at them."""
    y = run(tt.nir.from_nir(given, dt=DT, **how), x)
    torch.testing.assert_close(y, simulated(given, x, how.get("reset", "zero")), rtol=0, atol=1e-11)
    return y


@pytest.mark.parametrize("reset", ["zero", "subtract"])
@pytest.mark.parametrize("shape", [(3,), (2, 3), (2, 3, 2)])
@pytest.mark.parametrize("kind", NEURONS)
def test_every_neuron_with_all_its_parameters(kind: str, shape: Any, reset: str) -> None:
    given = line(NEURONS[kind](shape), into=shape, out=shape)
    y = agrees(given, sequence(40, 2, *shape), reset=reset)
    if kind.endswith("F"):
        assert 0.02 < y.mean() < 0.98
        assert set(y.unique().tolist()) == {0.0, 1.0}


@pytest.mark.one_in(2)
@pytest.mark.parametrize("reset", ["zero", "subtract"])
@pytest.mark.parametrize("kind", [*NEURONS, "Delay"])
def test_every_neuron_on_kernels(kind: str, reset: Any) -> None:
    """Time constants that differ from neuron to neuron, and membranes that no layer has."""
    node = nir.Delay(np.array([DT, 0.0, 2 * DT])) if kind == "Delay" else NEURONS[kind]((3,))
    model = tt.nir.from_nir(line(node, into=(3,), out=(3,)), dt=DT, reset=reset)
    x = sequence(50, 4, 3)
    expected = run(model, x)
    assert expected.any()
    for by in ("layer", "step"):
        with torch.no_grad(), tt.fuse.backend("cpu"):
            assert torch.equal(tt.unroll(model, x, by=by, from_rest=True), expected), by


def test_one_value_stands_for_all(tmp_path: Path) -> None:
    """And takes no memory, for two thousand million neurons."""
    one = np.array([1.0])
    lif = nir.LIF(one * 1e-3, one * 10, one * 0, one)
    model: Any = tt.nir.from_nir(line(lif, into=(3,), out=(3,)), dt=DT)
    shown = "LIF(3, beta=Tensor[], pos_threshold=Tensor[], reset='zero')"
    assert repr(model.nodes["n0"]) == shown
    x = sequence(40, 2, 3)
    assert torch.equal(run(model, x), simulated(line(lif, into=(3,), out=(3,)), x))
    many = (2**31 - 1,)
    nir.write(str(tmp_path / "wide.nir"), line(lif, nir.Scale(one), into=many, out=many))
    model = tt.nir.from_nir(tmp_path / "wide.nir", dt=DT)
    assert sum(p.numel() for p in model.parameters()) == 3


def of(kind: str, *values: float) -> Any:
    """A node of two neurons alike."""
    return getattr(nir, kind)(*(np.full(2, value) for value in values))


@pytest.mark.parametrize(
    ("node", "layer"),
    [
        (of("LIF", 1e-3, 1.0, 0.0, 0.5), snn.LIF),
        (of("LIF", 1e-3, 10.0, 0.0, 0.5), snn.LIF),
        (of("LIF", DT, 1.0, 0.0, 0.5), snn.LIF),  # which forgets at once
        (of("LIF", 1e-3, 7.0, 0.0, 0.5), Membrane),
        (of("LIF", 1e-3, 1.0, 0.1, 0.5), Membrane),
        (of("LIF", 1e-3, 1.0, 0.0, -0.5), Membrane),
        (of("LIF", 1e-3, 1.0, 0.0, 0.5, 0.1), Membrane),
        (of("LI", 1e-3, 1.0, 0.0), snn.Readout),
        (of("LI", 1e-3, 10.0, 0.0), snn.LeakyIntegrator),
        (of("CubaLI", 5e-4, 1e-3, 1.0, 0.0), snn.SReadout),
        (of("CubaLIF", 5e-4, 1e-3, 10.0, 0.0, 1.0), snn.SLIF),
        (of("CubaLIF", 5e-4, 1e-3, 10.0, 0.0, 1.0, 0.0, 5.0), snn.SLIF),
        (of("CubaLIF", 5e-4, 1e-3, 9.0, 0.0, 1.0), Membrane),
        (of("IF", 5e3, 1.0), Membrane),
    ],
)
def test_our_layers_where_they_compute_the_same(node: Any, layer: type) -> None:
    given = line(node, into=(2,), out=(2,))
    assert type(tt.nir.from_nir(given, dt=DT).nodes["n0"]) is layer  # type: ignore[index]
    assert agrees(given, 2 * sequence(50, 2, 2)).any()


def test_exponential() -> None:
    li = line(nir.LI(*(np.full(1, v) for v in (1e-3, 1.0, 0.0))), into=(1,), out=(1,))
    model = tt.nir.from_nir(li, dt=DT, discretization="exponential")
    y = run(model, torch.ones(10, 1, 1, dtype=torch.float64))
    # what the differential equation itself does in a millisecond
    assert y[-1].item() == pytest.approx(1 - np.exp(-1), rel=1e-12)


def conv(*settings: Any, kernel: tuple[int, ...] = (3, 2)) -> Any:
    """A convolution of four channels, with stride, padding, dilation and groups."""
    weight = full((4, 4 // settings[3], *kernel), -1, 1, 0)
    kind = nir.Conv1d if len(kernel) == 1 else nir.Conv2d
    return kind(None, weight, *settings, full((4,), -1, 1, 1))


IMAGE, WINDOW = (4, 7, 6), (np.array([3, 2]), np.array([2, 2]), np.array([1, 0]))
FLAT = {"input": np.array([2, 3, 4])}
OTHERS: tuple[tuple[Any, tuple[int, ...], tuple[int, ...]], ...] = (
    (conv(1, 0, 1, 1), IMAGE, (4, 5, 5)),
    (conv(2, 1, 1, 1), IMAGE, (4, 4, 4)),
    (conv(1, (2, 1), (1, 2), 1), IMAGE, (4, 9, 6)),
    (conv(1, "same", 1, 2, kernel=(3, 5)), IMAGE, IMAGE),
    (conv(1, "valid", 2, 2), IMAGE, (4, 3, 4)),
    (conv(2, 1, 1, 1, kernel=(4,)), (4, 9), (4, 4)),
    (nir.SumPool2d(*WINDOW), (2, 7, 6), (2, 4, 3)),
    (nir.AvgPool2d(*WINDOW), (2, 7, 6), (2, 4, 3)),
    (nir.Flatten(FLAT, 0, -1), (2, 3, 4), (24,)),
    (nir.Flatten(FLAT, 1, -1), (2, 3, 4), (2, 12)),
    (nir.Flatten(FLAT, 0, 1), (2, 3, 4), (6, 4)),
    (nir.Delay(np.array([3]) * DT), (3,), (3,)),
    (nir.Delay(np.array([0, 1, 5]) * DT), (3,), (3,)),
    (nir.Delay(np.zeros(3)), (3,), (3,)),
)


@pytest.mark.parametrize(("node", "into", "out"), OTHERS)
def test_other_nodes(node: Any, into: tuple[int, ...], out: tuple[int, ...]) -> None:
    assert agrees(line(node, into=into, out=out), sequence(12, 2, *into)).any()


def branches() -> nir.NIRGraph:
    """Two roads that part, and meet in a node that adds them up."""
    return graph(
        ways(
            "input conv lif scale", "lif sum", "scale sum flat affine if output", "affine li output"
        ),
        input=nir.Input(np.array([2, 5, 5])),
        conv=nir.Conv2d(None, full((3, 2, 3, 3), -1, 1, 0), 1, 0, 1, 1, full((3,), 0, 1, 1)),
        lif=NEURONS["LIF"]((3, 3, 3)),
        scale=nir.Scale(full((3, 3, 3), -2, 2, 2)),
        sum=NEURONS["CubaLIF"]((3, 3, 3)),
        flat=nir.Flatten({"input": np.array([3, 3, 3])}, 0, -1),
        affine=nir.Affine(full((4, 27), -1, 1, 3), full((4,), 0, 1, 4)),
        **{"if": NEURONS["IF"]((4,)), "li": NEURONS["LI"]((4,))},
        output=nir.Output(np.array([4])),
    )


def recurrent(bias: bool = True) -> nir.NIRGraph:
    """Two populations that hear each other, and the first itself."""
    back = full((4, 4), -0.5, 0.5, 1)
    return graph(
        ways("input w a itself a ab b ba a", "b output"),
        input=nir.Input(np.array([3])),
        w=nir.Linear(full((4, 3), -1, 1, 0)),
        a=NEURONS["LIF"]((4,)),
        itself=nir.Affine(back, full((4,), 0, 0.5, 2)) if bias else nir.Linear(back),
        ab=nir.Linear(full((5, 4), -1, 1, 3)),
        b=NEURONS["CubaLIF"]((5,)),
        ba=nir.Linear(full((4, 5), -1, 1, 4)),
        output=nir.Output(np.array([5])),
    )


def nested() -> nir.NIRGraph:
    """Write a recurrent layer as snnTorch does: a graph in the graph."""
    inner = graph(
        ways("in lif w lif out"),
        **{"in": nir.Input(np.array([4])), "out": nir.Output(np.array([4]))},
        lif=NEURONS["LIF"]((4,)),
        w=nir.Linear(full((4, 4), -1, 1, 0)),
    )
    return graph(
        ways("input rnn.0 affine output"),
        input=nir.Input(np.array([4])),
        **{"rnn.0": inner},
        affine=nir.Affine(full((2, 4), -1, 1, 1), full((2,), -1, 1, 2)),
        output=nir.Output(np.array([2])),
    )


@pytest.mark.parametrize(
    ("given", "shape"),
    [(branches(), (2, 5, 5)), (recurrent(), (3,)), (recurrent(bias=False), (3,)), (nested(), (4,))],
    ids=["branches", "recurrence", "recurrence without bias", "nested"],
)
def test_graphs(given: nir.NIRGraph, shape: tuple[int, ...]) -> None:
    numbers = torch.get_rng_state()
    y = agrees(given, 2 * sequence(40, 1, *shape))
    assert (y[1:] != y[:-1]).any()
    assert torch.equal(torch.get_rng_state(), numbers)


def test_several_inputs_and_outputs() -> None:
    """Also one that leads nowhere."""
    given = graph(
        ways("b sum y", "a sum", "a z"),
        **{name: nir.Input(np.array([2])) for name in "abc"},
        sum=nir.Scale(np.array([1.0, -1.0])),
        **{name: nir.Output(np.array([2])) for name in "yz"},
    )
    model = tt.nir.from_nir(given, dt=DT)
    a, b, c = torch.ones(1, 2).double(), torch.full((1, 2), 2.0).double(), torch.zeros(1, 2)
    expected = {"y": [[3.0, -3.0]], "z": [[1.0, 1.0]]}
    for got in (model(a, b, c), model(a=a, b=b, c=c), model(a, b, c=c)):
        assert {name: each.tolist() for name, each in got.items()} == expected
    assert tt.unroll(model, (a[None], b[None], c[None]))["y"].shape == (1, 1, 2)
    for args, named in (((a, b), {}), ((a, b, a, a), {}), ((a, b), {"d": b}), ((a, b), {"a": b})):
        with pytest.raises(TypeError, match=r"takes .'a', 'b', 'c'., each once; got"):
            model(*args, **named)
    with pytest.raises(ValueError, match=r"input 'a' has shape .1, 3., the graph takes a batch of"):
        model(torch.ones(1, 3), b, c)


# The model


def test_by_layer_where_there_is_no_cycle() -> None:
    x = 2 * sequence(20, 2, 2, 5, 5)
    model = tt.nir.from_nir(branches(), dt=DT)
    torch.testing.assert_close(run(model, x, "layer"), run(model, x), rtol=0, atol=1e-12)
    model = tt.nir.from_nir(recurrent(), dt=DT)
    with pytest.raises(ValueError, match=r"OneStep.*cannot read its state held.*by=.step."):
        tt.unroll(model, sequence(4, 2, 3))
    assert tt.get_states(model) == {}


def test_states_are_kept_cut_moved_and_copied() -> None:
    model = tt.nir.from_nir(recurrent(), dt=DT)
    x = 2 * sequence(20, 2, 3)
    whole = run(model, x)
    with torch.no_grad():
        tt.unroll(model, x[:8], by="step")
        saved = tt.get_states(model)
        assert {name.rpartition(".")[2] for name in saved} == {"mem", "syn", "held"}
        again = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
        fresh = tt.nir.from_nir(recurrent(), dt=DT)
        tt.set_states(fresh, saved)
        for each in (model, fresh, *again):
            torch.testing.assert_close(tt.unroll(each, x[8:], by="step"), whole[8:])
        model.zero_states(where=torch.tensor([True, False]))
        part = tt.unroll(model, x[:4, :], by="step")
    assert torch.equal(part[:, 0], whole[:4, 0])
    with pytest.raises(ValueError, match=r"zero_states"):
        model(x[0, :1])


@pytest.mark.slow
def test_it_can_be_exported_with_its_states() -> None:
    model = tt.nir.from_nir(recurrent(), dt=DT)
    x = 2 * sequence(20, 2, 3)
    program = tt.export.step(model, x[0])
    states = tt.export.initial_states(program, batch=2)
    assert {name for name in states if name.endswith("held")} == {"late.a.held", "late.b.held"}
    assert torch.equal(stepped_program(program, x, states)[0], run(model, x))


def test_it_learns() -> None:
    model = tt.nir.from_nir(recurrent(), dt=DT)
    tt.unroll(model, 2 * sequence(15, 2, 3), by="step").sum().backward()
    learned = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    names = ("w.weight", "a.raw_beta", "a.raw_v_leak", "itself.bias", "b.raw_w_in", "ba.weight")
    assert learned >= {f"nodes.{name}" for name in names}


def test_dtypes_of_the_model_and_of_the_output() -> None:
    wide = nir.Linear(full((2, 2), -1, 1, 0))
    narrow = nir.Linear(full((2, 2), -1, 1, 0).astype(np.float32))
    spikes = nir.Threshold(full((2,), 0, 1, 1))
    for nodes, dtype in (
        ([wide, NEURONS["LIF"]((2,)), spikes], torch.float64),
        ([narrow], torch.float32),
        ([narrow, NEURONS["LIF"]((2,)), spikes], torch.float32),
    ):
        model = tt.nir.from_nir(line(*nodes, into=(2,), out=(2,)), dt=DT)
        assert {p.dtype for p in model.parameters()} == {dtype}
    given = line(NEURONS["LIF"]((2,)), nir.Scale(full((2,), 0, 1, 1)), spikes, into=(2,), out=(2,))
    for dtype in (torch.bfloat16, torch.float32, torch.float64):
        x = sequence(5, 2, 2, dtype=dtype)
        assert tt.unroll(tt.nir.from_nir(given, dt=DT), x).dtype == dtype


def test_a_tau_of_one_step_may_be_rounded() -> None:
    one = [np.full(2, v, np.float32) for v in (DT, 1.0, 0.0, 0.5)]
    assert float(one[0][0]) < DT
    model: Any = tt.nir.from_nir(line(nir.LIF(*one), into=(2,), out=(2,)), dt=DT)
    assert (model.nodes["n0"].beta < 1e-20).all()


def test_names_may_be_anything() -> None:
    names = ["keys", "a.b", "a_b", "a-b", "a_b_1", "for", "forward", "weight:0", " "]
    nodes: dict[str, Any] = {name: nir.Scale(np.array([2.0])) for name in names}
    edges = list(zip(["input", *names], [*names, "output"], strict=True))
    ends = {"input": nir.Input(np.array([1])), "output": nir.Output(np.array([1]))}
    model = tt.nir.from_nir(graph(edges, **nodes, **ends), dt=DT)
    assert model(torch.ones(1, 1).double()).item() == 512.0
    assert isinstance(pickle.load(io.BytesIO(pickle.dumps(model))), snn.TTModule)


# What cannot be read

ONE = nir.Scale(np.ones(2))
ENDS = {"input": nir.Input(np.array([2])), "output": nir.Output(np.array([2]))}


def alone(node: Any, **changes: Any) -> nir.NIRGraph:
    """A node between its ends, and what is changed behind the back of NIR's own checks."""
    for name, value in changes.items():
        setattr(node, name, value)
    into = {nir.Conv2d: (2, 5, 5), nir.AvgPool2d: (1, 4, 4), nir.Flatten: (2, 2)}
    return line(node, into=into.get(type(node), (2,)), out=(2,))


def lif(**changes: Any) -> nir.NIRGraph:
    return alone(of("LIF", 1e-3, 1.0, 0.0, 1.0), **changes)


def conv2d(**changes: Any) -> nir.NIRGraph:
    return alone(nir.Conv2d(None, np.ones((2, 2, 3, 3)), 1, 0, 1, 1, np.ones(2)), **changes)


def pool(**changes: Any) -> nir.NIRGraph:
    return alone(nir.AvgPool2d(*np.full((3, 2), 2) * [[1], [1], [0]]), **changes)


class Odd(nir.Scale):  # type: ignore[misc]
    """A node of a type of one's own."""


INNER = graph([("b", "o")], b=ENDS["input"], o=ENDS["output"])
TWO = graph([("i", "o"), ("j", "o")], i=ENDS["input"], j=ENDS["input"], o=ENDS["output"])


WRONG: tuple[tuple[Any, str], ...] = (
    (graph([]), "the graph must be a NIRGraph that has nodes"),
    (graph([], input=ENDS["input"]), "needs an Input and an Output node"),
    (graph([("input", "b")], **ENDS), "'input', 'b'. is no edge from node to node"),
    (graph([("input", "output"), ("input", "output")], **ENDS), "edge .* twice"),
    (graph(["ab"], **ENDS), "'ab' is no edge from node"),  # type: ignore[list-item]
    (graph([("input", "output"), ("output", "input")], **ENDS), "an edge leads into it"),
    (graph([("input", "a")], **ENDS, a=ONE), "node 'output' gets nothing from any Input"),
    (graph([("input", "output"), ("a", "output")], **ENDS, a=ONE),
     "node 'a' gets nothing from any Input"),
    (graph(ways("input output", "a b a output"), **ENDS, a=ONE, b=ONE),
     "a cycle has no neuron in it"),
    (graph(ways("input output", "a b a output"), **ENDS, a=NEURONS["LIF"]((2,)), b=ONE),
     "node 'a' gets nothing from any Input"),
    (graph(ways("input a a output"), **ENDS, a=ONE), "a cycle has no neuron in it"),
    (graph(ways("input a output", "input b a"), **ENDS, a=ONE, b=nir.Linear(np.ones((3, 2)))),
     "node 'a' .Scale.: it adds up inputs of the shapes"),
    (graph(ways("input a b a output"), **ENDS, a=NEURONS["LIF"]((2,)),
     b=nir.Linear(np.ones((3, 2)))), "node 'a' .LIF.: it adds up inputs of the shapes"),
    (graph(ways("input a a.b output"), **ENDS, a=INNER, **{"a.b": ONE}),
     "two nodes would be called 'a.b'"),
    (alone(TWO), "graph 'n0' has 2 Inputs and 1 Outputs"),
    (alone(Odd(np.ones(2))), "node 'n0' is of the type 'Odd', which traceTorch does"),
    (lif(tau=np.array([1e-3, np.nan])), "node 'n0' .LIF.: tau must be finite real numbers"),
    (lif(tau=np.array([1e-3, 0])), "tau must be positive, got 0.0"),
    (lif(tau=np.array([1e-3, 5e-5])), "n0.*tau from 5e-05 to 0.001 s is no fit for dt=0.0001 s"),
    (lif(tau=np.ones(3)), "n0.*tau has shape .3., the input .2."),
    (lif(tau=None), "n0.*the field 'tau' is missing"),
    (lif(tau="fast"), "tau must be finite real numbers, got 'fast'"),
    (lif(tau=[[1], [1, 2]]), "n0.*inhomogeneous"),
    (alone(NEURONS["LIF"]((3,))), "n0.*has shape .3., the input .2."),
    (alone(nir.Linear(np.ones((2, 3)))), "n0.*same reduction dim"),
    (alone(nir.Affine(np.ones((2, 2)), np.ones(3))), "bias must have .*.2."),
    (line(ONE, into=(2,), out=(3,)), "'output' .Output.: it is declared for .3., and gets .2."),
    (alone(nir.Delay(np.full(2, 1.5 * DT))), "n0.*must be whole steps"),
    (alone(nir.Delay(np.full(2, -DT))), "delay must be positive"),
    (alone(nir.Delay(np.full(2, 1e6))), "n0.*whole steps .* at most 10000"),
    (line(ONE, into=(0,), out=(2,)), "input.*shape must be .* whole number"),
    (line(ONE, into=(), out=(2,)), "node 'input' .Input.: shape must be finite real numbers"),
    (conv2d(stride=0), "node 'n0' .Conv2d.: .*stride must be .* whole number from 1"),
    (conv2d(stride=(1, 1, 1)), "stride must be one whole number from 1 or 2"),
    (conv2d(stride=2, padding="same"), "n0.*padding='same' is not supported"),
    (pool(padding=np.array([2, 0])), "n0.*pad should be at most half"),
    (line(pool().nodes["n0"], into=(4,), out=(2,)), "takes 3 dimensions, the input has shape .4."),
    (alone(nir.Flatten({"input": np.array([2, 2])}, 0, 5)), "n0.*Dimension out of range"),
    (alone(nir.Flatten({"input": np.array([4, 2])}, 0, 1)), "n0.*is declared for .4, 2."),
)  # fmt: skip


@pytest.mark.parametrize(("given", "why"), WRONG)
def test_what_cannot_be_read(given: nir.NIRGraph, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        tt.nir.from_nir(given, dt=DT)


NODES: dict[str, Any] = {kind: make((3,)) for kind, make in NEURONS.items()} | {
    "Affine": nir.Affine(np.ones((3, 3)), np.ones(3)),
    "Conv1d": nir.Conv1d(3, np.ones((1, 1, 1)), 1, 0, 1, 1, np.ones(1)),
    "Conv2d": nir.Conv2d((3, 3), np.ones((1, 1, 1, 1)), 1, 0, 1, 1, np.ones(1)),
    "Linear": nir.Linear(np.ones((3, 3))),
    "Scale": nir.Scale(np.ones(3)),
    "Threshold": nir.Threshold(np.ones(3)),
}
SHAPES: dict[str, tuple[int, ...]] = {"Conv1d": (1, 3), "Conv2d": (1, 3, 3)}
FIELDS = [(kind, field) for kind, node in NODES.items() for field in KINDS[kind][0]
          if hasattr(node, field) and not field.startswith("tau")]  # fmt: skip


@pytest.mark.parametrize("extreme", [1e300, -1e300])
@pytest.mark.parametrize(("kind", "field"), FIELDS)
def test_a_finite_value_does_not_become_infinite(kind: str, field: str, extreme: float) -> None:
    """A model is in float32 unless all of its parameters are float64."""
    node, shape = copy.deepcopy(NODES[kind]), SHAPES.get(kind, (3,))
    others = [name for name in KINDS[kind][0] if hasattr(node, name) and name != field]
    setattr(node, field, np.full_like(getattr(node, field), extreme, np.float64))
    for name in others:
        setattr(node, name, getattr(node, name).astype(np.float32))
    name = field if kind in ("Scale", "Threshold") else rf"(pos_threshold|{field})"
    given = line(node, nir.Scale(np.ones(shape, np.float32)), into=shape, out=shape)
    message = rf"nodes\.n0\.(raw_)?{name} holds .* infinite in torch\.f"
    with pytest.raises(ValueError, match=message):
        tt.nir.from_nir(given, dt=DT)
    for name in others:
        setattr(node, name, getattr(node, name).astype(np.float64))
    model = tt.nir.from_nir(line(node, into=shape, out=shape), dt=DT)
    assert max(p.abs().max().item() for p in model.parameters()) == 1e300


def test_a_long_chain_is_no_deep_one() -> None:
    count = 3000
    model = tt.nir.from_nir(line(*[ONE] * count, into=(2,), out=(2,)), dt=DT)
    assert model(torch.ones(1, 2).double()).tolist() == [[1.0, 1.0]]


GOOD = line(ONE, into=(2,), out=(2,))
EXACT = tt.nir.to_nir(snn.LIF(2), (2,), dt=1e-3)
COMPACT = tt.nir.to_nir(snn.LIF(2, reset="zero"), (2,), dt=1e-3, mode="compact")


@refusals(
    r"""
    3, dt=DT -> TypeError: expected a nir.NIRGraph or the path of a file, got int
    GOOD, dt=DT, reset="none" -> ValueError: reset must be 'zero' or 'subtract', got 'none'
    GOOD, dt=0 -> ValueError: dt must be positive
    "no such file.nir", dt=DT -> FileNotFoundError: no such file
    EXACT, dt=1e-4 -> ValueError: was written for dt=0.001.*got dt=0.0001
    EXACT, dt=1e-3, discretization="exponential" -> ValueError: written for discretization='euler'
    COMPACT, dt=1e-3, discretization="exponential"
        -> ValueError: for discretization='euler', and holds for that alone
    """
)
def test_wrong_arguments(call: str, error: str) -> None:
    check(f"tt.nir.from_nir({call})", error, globals())


def test_a_compact_graph_may_be_read_at_another_step() -> None:
    model: Any = tt.nir.from_nir(COMPACT, dt=5e-4)
    assert model.nodes["0"].beta[0].item() == pytest.approx(0.95)


def test_the_package_itself_may_be_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tracetorch.core.checks.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"tt.nir needs nir.*extra 'nir'"):
        tt.nir.from_nir("x.nir", dt=DT)
    with pytest.raises(ModuleNotFoundError, match=r"tt.nir needs nir.*extra 'nir'"):
        tt.nir.to_nir(nn.Linear(2, 2), (2,))


# Files: what other writers give is read, what is damaged or leads elsewhere is refused.


def put(where: str, **how: Any) -> Callable[[h5py.File], None]:
    def change(opened: h5py.File) -> None:
        if where in opened:
            del opened[where]
        opened.create_dataset(where, **how)

    return change


WEIGHT = "node/nodes/n0/weight"
CHANGES: tuple[tuple[Callable[[h5py.File], None], str], ...] = (
    (lambda f: f.__delitem__("node"), "is not a NIR file, or is damaged"),
    (lambda f: f.__delitem__("node/nodes"), "the graph must be a NIRGraph that has nodes"),
    (lambda f: f.__delitem__("node/edges"), "'output' gets nothing from any Input"),
    (lambda f: f.__delitem__(WEIGHT), "node 'n0' .Linear.: the field 'weight' is missing"),
    (put("node/type", data="LIF"), "the graph must be a NIRGraph"),
    (put("node/nodes/n0/type", data="Quantum"), "'Quantum', which traceTorch does not know"),
    (put("node/nodes/n0/extra", data=7), "node 'n0' .Linear.: the field 'extra' is unknown"),
    (put("node/nodes/n0", data=7), "node 'n0' is of the type None, which"),
    (put(WEIGHT, data="heavy"), "weight must be finite real numbers"),
    (put(WEIGHT, data=h5py.Empty("f8")), "weight must be finite real numbers"),
    (put("node/edges", data=[["input", "nobody"]]), "nobody.*is no edge from node to node"),
    (put(WEIGHT, data=np.ones((2, 2)), external=[("/dev/zero", 0, 32)]), "leads to somewhere else"),
    (lambda f: f.__setitem__("node/nodes/n0/bias", h5py.SoftLink("/" + WEIGHT)), "leads to some"),
    (lambda f: f.__setitem__("node/nodes/far", h5py.ExternalLink("a.nir", "/node")),
     "is not a NIR file"),
)  # fmt: skip


@pytest.mark.parametrize(("change", "why"), CHANGES)
def test_what_a_file_may_not_say(change: Any, why: str, tmp_path: Path) -> None:
    path = tmp_path / "odd.nir"
    nir.write(str(path), line(nir.Linear(np.ones((2, 2))), into=(2,), out=(2,)))
    with h5py.File(path, "r+") as opened:
        change(opened)
    with pytest.raises(ValueError, match=why):
        tt.nir.from_nir(path, dt=DT)


def test_other_writers_files(tmp_path: Path) -> None:
    """Text of fixed length, big-endian numbers, whole numbers, LZF, the newest format of HDF5."""
    path = tmp_path / "other.nir"
    with h5py.File(path, "w", libver="latest") as f:
        f["node/type"] = np.bytes_("NIRGraph")
        f["node/edges"] = np.array([["input", "n"], ["n", "output"]], "S8")
        for end in ("input", "output"):
            f[f"node/nodes/{end}/type"] = np.bytes_(end.title())
            f[f"node/nodes/{end}/shape"] = np.array([2], ">i2")
        f["node/nodes/n/type"] = "Linear"
        f.create_dataset(
            "node/nodes/n/weight", data=np.arange(4, dtype=">i4").reshape(2, 2), compression="lzf"
        )
    model = tt.nir.from_nir(path, dt=DT)
    assert model(torch.ones(1, 2).double()).tolist() == [[1.0, 5.0]]


def test_a_file_cut_anywhere(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 3), snn.BSRLIF(2, dim=-3), nn.Flatten(), nn.Linear(32, 3))
    path = tmp_path / "good.nir"
    tt.nir.save(net, path, (1, 6, 6))
    good = path.read_bytes()
    for end in range(0, len(good), len(good) // 60):
        path.write_bytes(good[:end])
        with pytest.raises(ValueError, match=r"good.nir"):
            tt.nir.from_nir(path, dt=DT)
