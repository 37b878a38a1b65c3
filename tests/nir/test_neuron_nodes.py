"""Neurons of the literature, and a user's own, as nodes of NIR: exactly, or refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import nir
import numpy as np
import pytest
import torch
from torch import Tensor, nn

import tracetorch as tt
from tests import cases
from tests.nir.cases import DT, double, run, simulated, through_file, unsigned
from tests.nir.simulator import Simulator
from tracetorch import neurons, snn
from tracetorch.models import IF

EXACT = ("ALIF", "AlphaLIF", "MultiLevelLIF", "TCLIF")
REFUSED = {
    "AdLIF": "reads 'mem' behind a reset to zero, a product with a spike; in NIR a LIF resets so",
    "SEAdLIF": "reads 'mem' behind a reset to zero, a product with a spike",
    "RefractoryLIF": "computes a comparison of 'countdown'",
    "EIF": r"computes clamp of 'v'; in NIR values are added, scaled by constants",
    "QIF": "computes mul of .*'v'",
    "AdEx": r"computes clamp of 'v'",
    "Izhikevich": "computes mul of .*'v'",
    "RF": "reads 'real' behind a reset to zero, a product with a spike",
    "BRF": "computes mul of .*'q'",
    "GLIF": "computes mul of .*'mem'",
    "SigmaDelta": r"computes relu of 'sigma' and x",
}


def states(layer: Any) -> dict[str, Tensor]:
    return {name: getattr(layer, name) for name in layer.active_states}


def stepped(model: nn.Module, x: Tensor) -> Tensor:
    """Run from rest, by the eager step, and leave the last states."""
    tt.zero_states(model)
    with torch.no_grad(), tt.fuse.backend("eager"):
        return torch.stack([model(step) for step in x.unbind()])


def test_every_neuron_is_written_or_refused() -> None:
    assert {*EXACT} | REFUSED.keys() == set(neurons.__all__)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", EXACT)
def test_a_neuron_comes_back(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    """Bit for bit, in output and states."""
    torch.manual_seed(0)
    first = cases.layer(name, 8)
    net = nn.Sequential(nn.Linear(6, 8), first).to(dtype)
    x = 2 * cases.sequence(120, 3, 6, dtype=dtype)
    again: Any = through_file(net, (6,), tmp_path / "net.nir")
    back = again.nodes["1"]
    assert type(back) is type(first)
    assert all(torch.equal(getattr(back, n), getattr(first, n)) for n in first.constraints)
    y, z = stepped(net, x), stepped(again, x)
    assert torch.equal(y, z)
    assert y.any()
    found = states(back)
    assert all(torch.equal(value, found[n]) for n, value in states(first).items())
    assert torch.equal(run(again, x, "layer"), run(net, x, "layer"))


@pytest.mark.parametrize(("dim", "shape"), [(-1, (4,)), (-3, (4, 2, 3)), (2, (3, 4, 1))])
@pytest.mark.parametrize("name", EXACT)
def test_the_nodes_compute_the_neuron(name: str, dim: int, shape: tuple[int, ...]) -> None:
    """Without our metadata: by the paper's equations, and by our own general graph."""
    net = double(cases.layer(name, 4, dim=dim))
    bare = unsigned(tt.nir.to_nir(net, shape))
    x = cases.NEURONS[name] * cases.sequence(60, 1, *shape)
    y = run(net, x)
    assert y.any()
    for z in (simulated(bare, x), run(tt.nir.from_nir(bare, dt=DT), x)):
        torch.testing.assert_close(z, y, rtol=0, atol=1e-11)


@pytest.mark.parametrize("discretization", ["euler", "exponential"])
def test_the_nodes_hold_what_the_states_are_before_a_spike(discretization: Any) -> None:
    net: Any = double(cases.layer("ALIF", 4))
    bare = unsigned(tt.nir.to_nir(net, (4,), discretization=discretization))
    again: Any = tt.nir.from_nir(bare, dt=DT, discretization=discretization)
    x = cases.sequence(60, 2, 4)
    y, z = stepped(net, x), stepped(again, x)
    assert torch.equal(y, z)
    mem, adaptation = (again.nodes[f"0_{name}"].mem for name in ("mem", "adaptation"))
    threshold = net.pos_threshold
    torch.testing.assert_close(mem - z[-1] * threshold, net.mem, rtol=0, atol=1e-12)
    torch.testing.assert_close(adaptation, net.adaptation, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", REFUSED)
def test_a_neuron_is_refused_by_name(name: str) -> None:
    layer = getattr(neurons, name)(3)
    with pytest.raises(ValueError, match=rf"1 \({name}\) {REFUSED[name]}"):
        tt.nir.to_nir(nn.Sequential(nn.Linear(3, 3), layer), (3,))


@pytest.mark.parametrize("kind", [neurons.AdLIF, neurons.SEAdLIF])
def test_adaptation_by_spikes_alone_has_nodes(kind: Any) -> None:
    """A current that does not follow the membrane needs no look at it."""
    net = double(kind(4, a=0.0, b=torch.tensor([0.5, 1.0, 1.5, 2.0])))
    graph = tt.nir.to_nir(net, (4,))
    inner = graph.nodes["0"].nodes
    assert isinstance(inner["mem"], nir.LIF)
    x = 10 * cases.sequence(200, 2, 4)
    y = run(net, x)
    assert 0.05 < y.mean() < 0.6
    assert torch.equal(run(tt.nir.from_nir(graph, dt=DT), x), y)
    assert torch.equal(simulated(unsigned(graph), x), y)
    assert type(tt.nir.from_nir(graph, dt=DT).nodes["0"]) is kind  # type: ignore[index]


class Deaf(snn.Neuron):
    """A membrane whose input has a gain of zero: nothing but a drive, or nothing at all."""

    states = ("mem",)

    def __init__(self, drive: float) -> None:
        super().__init__(4)
        self.weight("gain", 0.0)
        self.decay("beta", 0.5)
        self.threshold("base", 1.0)
        self.option("drive", drive)

    @staticmethod
    def step(x, mem, *, gain, beta, base, spike, drive):
        mem = beta * mem + gain * x + drive
        fired = spike(mem - base)
        return fired, mem - base * fired


@pytest.mark.parametrize(
    "layer",
    [neurons.AdLIF(4, a=0.0, b=0.0), neurons.SEAdLIF(4, a=0.0, b=0.0), Deaf(0.75), Deaf(0.0)],
)
def test_a_factor_of_zero_leaves_no_node_without_an_edge_to_it(layer: Any) -> None:
    net = double(layer)
    graph = tt.nir.to_nir(net, (4,))
    inner = graph.nodes["0"]
    ends = {end for _, end in inner.edges}
    assert inner.nodes.keys() - ends == {"input"}
    x = 10 * cases.sequence(50, 2, 4)
    y = run(net, x)
    assert y.any() == (getattr(layer, "drive", 1.0) > 0)
    assert torch.equal(simulated(unsigned(graph), x), y)
    assert torch.equal(run(tt.nir.from_nir(unsigned(graph), dt=DT), x), y)


@pytest.mark.parametrize("learned", [-2.0, 3.0, 8.0], ids=["below", "above", "far"])
@pytest.mark.parametrize("rho", [0.3, 0.9945])
def test_the_bound_of_a_decay_comes_back(rho: float, learned: float) -> None:
    net: Any = double(neurons.AdLIF(4, a=0.0, rho=rho, bounded=True))
    with torch.no_grad():
        net.get_parameter("raw_rho").fill_(learned)
    read: Any = tt.nir.from_nir(tt.nir.to_nir(net, (4,)), dt=DT)
    again = read.nodes["0"]
    assert type(again) is neurons.AdLIF
    assert again.constraints["rho"] == net.constraints["rho"]
    assert torch.equal(again.rho, torch.as_tensor(net.rho))


def test_a_neuron_that_its_constructor_would_not_make_again_is_read_as_nodes() -> None:
    """A bound that holds ``a`` at zero is no argument that a file keeps."""
    net = double(neurons.AdLIF(4, a=0.0, bounded=True))
    with torch.no_grad():
        net.get_parameter("raw_a").fill_(-0.5)
    again = tt.nir.from_nir(tt.nir.to_nir(net, (4,)), dt=DT)
    assert len(again.nodes) > 5  # type: ignore[arg-type]
    x = 10 * cases.sequence(100, 2, 4)
    y = run(net, x)
    assert y.any()
    assert torch.equal(run(again, x), y)


@pytest.mark.parametrize("dt", [1e-4, 1e-3, 3e-4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("mode", ["exact", "compact"])
def test_integrate_and_fire_is_one_node(mode: Any, dtype: torch.dtype, dt: float) -> None:
    net = IF(4, pos_threshold=1.3).to(dtype)
    graph = tt.nir.to_nir(net, (4,), mode=mode, dt=dt)
    node = graph.nodes["0"]
    assert isinstance(node, nir.IF)
    assert (node.v_reset == 0).all()
    again: Any = tt.nir.from_nir(graph, dt=dt)
    x = cases.sequence(200, 3, 4, dtype=dtype)
    y, z = stepped(net, x), stepped(again, x)
    assert torch.equal(y, z)
    assert torch.equal(again.nodes["0"].mem, net.mem)
    assert y.any()
    if dtype is torch.float64:
        assert torch.equal(simulated(graph, x, dt=dt), y)


# A user's own


class Spiking(snn.Neuron):
    """A decay and a threshold, for the steps below."""

    states: ClassVar[tuple[str, ...]] = ("mem",)

    def __init__(self, num_neurons: int, dim: int = -1) -> None:
        super().__init__(num_neurons, dim)
        self.decay("beta", 0.8)
        self.threshold("base", 0.75)


class Own(Spiking):
    """The adaptive neuron of the documentation, with a drive and a reset to a value."""

    states = ("mem", "fatigue")

    def __init__(self, num_neurons: int) -> None:
        super().__init__(num_neurons)
        self.option("drive", 0.05)

    @staticmethod
    def step(x, mem, fatigue, *, beta, base, spike, drive):
        u = beta * mem + (x - fatigue) / 2 + drive
        fired = spike(u - base)
        return fired, u - u * fired - 0.25 * fired, 0.95 * fatigue + 0.1 * fired


class Swapped(snn.Neuron):
    """States that change places, and an output two steps old."""

    states = ("first", "second")

    def __init__(self, num_neurons: int) -> None:
        super().__init__(num_neurons)
        self.weight("gain", 0.5)

    @staticmethod
    def step(x, first, second, *, gain):
        return first.clone(), second + 0.25, gain * x


class Recomputed(Spiking):
    """A membrane that is computed twice, and a spike of the step before in a threshold."""

    states = ("one", "spike_before")  # names that nodes would have

    @staticmethod
    def step(x, one, spike_before, *, beta, base, spike):
        fired = spike(beta * one + x - base - 0.3 * spike_before)
        after = beta * one + x - base * fired + 0.01
        return fired + 0.5 * spike_before, after, fired


class Twin(Spiking):
    """Two membranes beside each other, both reset by the one spike that they make."""

    states = ("left", "right")

    @staticmethod
    def step(x, left, right, *, beta, base, spike):
        left, right = beta * left + x, 0.5 * right + x
        fired = spike(left + right - base)
        return fired, left - base * fired, right - base * fired


class Before(Spiking):
    """A membrane from which a spike of its own value before is subtracted."""

    @staticmethod
    def step(x, mem, *, beta, base, spike):
        fired = spike(mem - base)
        return fired, beta * mem + x - base * fired


class Staged(Before):
    """Two spikes in a step, the second of which hears the first, and both the input."""

    @staticmethod
    def step(x, mem, *, beta, base, spike):
        one = spike(mem + x - base)
        two = spike(mem + x + one - 2 * base)
        return two, beta * mem + x - base * two


class Substeps(snn.Neuron):
    """A linear membrane in thirty parts, each used twice: its expansion is linear, too."""

    states = ("mem", "slow")

    @staticmethod
    def step(x, mem, slow):
        for _ in range(30):
            change = 0.01 * (x - mem)
            mem, slow = mem + change - 0.01 * slow, slow + 0.01 * mem - 0.005 * slow
        return mem, mem, slow


class Functions(Spiking):
    """PyTorch's functions of several operands, and as methods."""

    states = ("mem", "slow")

    @staticmethod
    def step(x, mem, slow, *, beta, base, spike):
        mem = torch.add(torch.lerp(x, mem, beta), x, alpha=2)
        fired = spike(torch.sub(mem, slow, alpha=0.5) - base)
        mem = mem.addcmul(fired, base, value=-1)
        return fired, mem, slow.mul(0.75).add(fired, alpha=0.3)


class Doubled(snn.LIF):
    """A subclass of a layer with a step of its own."""

    @staticmethod
    def step(x, *states, **parameters):
        return snn.LIF.step(2 * x, *states, **parameters)


class Gained(snn.LIF):
    """A subclass with one more parameter."""

    def __init__(self, num_neurons: int) -> None:
        super().__init__(num_neurons)
        self.weight("gain", 1.5)

    @staticmethod
    def step(x, *states, gain, **parameters):  # type: ignore[override]
        return snn.LIF.step(gain * x, *states, **parameters)


class WithSynapse(snn.LIF):
    """A subclass with a synapse, and the same step."""

    def __init__(self, num_neurons: int) -> None:
        parts: dict[str, Any] = {"alpha_setup": {}, "pos_threshold_setup": {}}
        snn.LeakyIntegrator.__init__(self, num_neurons, **parts)


class WithoutThreshold(snn.LIF):
    """A subclass with no threshold."""

    def __init__(self, num_neurons: int) -> None:
        snn.LeakyIntegrator.__init__(self, num_neurons)


class LIF(snn.SLIF):
    """A subclass with the name of another layer."""


def with_own_step(num_neurons: int) -> snn.Neuron:
    layer = snn.LIF(num_neurons)
    layer.step = Doubled.step  # type: ignore[method-assign]
    return layer


def with_gain(num_neurons: int) -> snn.Neuron:
    layer = neurons.ALIF(num_neurons)
    layer.weight("gain", 1.5)

    def step(x, *states, gain, **parameters):
        return neurons.ALIF.step(gain * x, *states, **parameters)

    layer.step = step  # type: ignore[assignment, method-assign]
    return layer


@pytest.mark.parametrize(
    "kind",
    [
        *(Own, Swapped, Recomputed, Twin, Before, Substeps, Functions, Doubled, with_own_step),
        *(Gained, WithSynapse, WithoutThreshold, LIF, with_gain),
    ],
)
def test_a_neuron_of_ones_own_has_nodes(kind: Any) -> None:
    net = double(kind(3))
    graph = tt.nir.to_nir(nn.Sequential(net), (3,))
    x = cases.sequence(80, 2, 3)
    y = run(net, x)
    assert y.any()
    for z in (simulated(graph, x), run(tt.nir.from_nir(graph, dt=DT), x)):
        torch.testing.assert_close(z, y, rtol=0, atol=1e-11)


def test_in_a_recurrent_and_read_and_written_again(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = double(snn.Recurrent(cases.layer("ALIF", 4), nn.Linear(4, 4)))
    graph = tt.nir.to_nir(net, (4,))
    x = cases.sequence(60, 2, 4)
    y = run(net, x)
    assert torch.equal(run(tt.nir.from_nir(graph, dt=DT), x), y)
    bare = tt.nir.from_nir(unsigned(graph), dt=DT)
    for model in (bare, through_file(bare, (4,), tmp_path / "again.nir")):
        assert torch.equal(run(model, x), y)


def made_of(step: Any) -> snn.Neuron:
    """Return a neuron with a step."""
    kind = type("Bad", (snn.Neuron,), {"states": ("mem",), "step": staticmethod(step)})
    layer: snn.Neuron = kind(3)
    return layer


def growing(x: Any, mem: Any) -> Any:
    mem = 1.5 * mem + x
    return mem, mem


def stacked(x: Any, mem: Any) -> Any:
    return torch.stack([x, mem]).sum(0), mem


def indexed(x: Any, mem: Any) -> Any:
    return x, mem[..., :1] + x


def inverse(x: Any, mem: Any) -> Any:
    return 1 / x, mem


@pytest.mark.parametrize(
    ("layer", "why"),
    [
        (
            Staged(3),
            "has spikes that lead to each other within a step, of which a reader of NIR could",
        ),
        (made_of(growing), r"keeps 1\.5 times 'mem' in a step; a node of NIR keeps a part of its"),
        (made_of(stacked), "computes stack of x and 'mem'"),
        (made_of(indexed), "has a step that no symbols can follow: .*subscriptable"),
        (made_of(inverse), "computes div of x; in NIR values are added, scaled by constants, and"),
    ],
)
def test_what_no_nodes_compute(layer: Any, why: str) -> None:
    with pytest.raises(ValueError, match=rf"0 \({type(layer).__name__}\) {why}"):
        tt.nir.to_nir(nn.Sequential(layer), (3,))


def test_a_start_from_another_value_and_other_spikes_are_refused() -> None:
    layer = Own(3)
    layer.register_buffer("initial_mem", torch.ones(3))
    with pytest.raises(ValueError, match=r"starts from states other than zero"):
        tt.nir.to_nir(layer, (3,))
    soft = neurons.ALIF(3, surrogate_derivative=torch.sigmoid)
    with pytest.raises(ValueError, match=r"ALIF.*NIR knows spikes of one above the threshold"):
        tt.nir.to_nir(soft, (3,))
    graded = neurons.ALIF(3, surrogate_derivative=lambda u: (u > 0) * u.clamp(min=1.0))
    with pytest.raises(ValueError, match=r"which gives 1\.5 at 1\.5\. NIR knows spikes of one"):
        tt.nir.to_nir(graded, (3,))


def test_the_edges_that_are_late_are_those_that_close_cycles() -> None:
    found = tt.nir.to_nir(neurons.TCLIF(2), (2,)).nodes["0"]
    late = Simulator(found, DT).late
    ends = {end for _, end in late}
    assert ends == {"dendrite", "soma"}
    assert len(late) == 3
    assert np.allclose(found.nodes["dendrite"].r * DT, 1)
