"""Every layer as nodes of NIR, exactly: there and back, and as the paper's equations run them."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import nir
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given
from hypothesis import strategies as st
from torch import nn

import tracetorch as tt
from tests.cases import LAYERS, SPIKING, configurations, examples, layer, sequence, vary
from tests.networks import Residual
from tests.nir.cases import DT, double, run, simulated, through_file
from tests.refusals import check, refusals
from tracetorch import neurons, snn
from tracetorch.models import IF
from tracetorch.nir.nodes import Clock

SHAPES = ((-1, (4,)), (-3, (4, 2, 3)), (2, (3, 4, 1)), (-1, (2, 4)))


@pytest.mark.one_in(3)
@pytest.mark.parametrize("discretization", ["euler", "exponential"])
@pytest.mark.parametrize("name", LAYERS)
def test_the_twelve_layers_come_back(name: str, discretization: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    first, second = layer(name, 8), layer(name, 5)
    net = double(nn.Sequential(nn.Linear(6, 8), first, nn.Linear(8, 5), second))
    x = 2 * sequence(200, 3, 6)
    again = through_file(net, (6,), tmp_path / "net.nir", discretization=discretization)
    y, z = run(net, x, "layer"), run(again, x)
    if name in SPIKING:
        assert torch.equal(y != 0, z != 0)
        assert 0 < y.abs().mean() < 2
    torch.testing.assert_close(y, z, rtol=0, atol=1e-11)


@pytest.mark.one_in(2)
@pytest.mark.parametrize(("dim", "shape"), SHAPES)
@pytest.mark.parametrize("name", LAYERS)
def test_the_nodes_compute_the_layer(name: str, dim: int, shape: tuple[int, ...]) -> None:
    """By the paper's equations, and by our own general graph."""
    net = double(layer(name, 4, dim=dim))
    bare = tt.nir.to_nir(net, shape)
    x = sequence(40, 1, *shape)
    y = run(net, x)
    for z in (simulated(bare, x), run(tt.nir.from_nir(bare, dt=DT), x)):
        torch.testing.assert_close(y, z, rtol=0, atol=1e-12)
        assert name not in SPIKING or torch.equal(y != 0, z != 0)


@pytest.mark.one_in(3)
@pytest.mark.parametrize("synapse", [False, True])
@pytest.mark.parametrize("recurrence", [False, True])
def test_any_leaky_integrator_comes_back(synapse: bool, recurrence: bool) -> None:
    """Every part with and without the others, either rank, every average, every reset."""
    every = list(configurations(synapse, recurrence))
    parts: dict[str, Any] = {"alpha_setup": {}} if synapse else {}
    parts |= {"gamma_setup": {}} if recurrence else {}
    for config in every[:: max(1, len(every) // 24)]:
        made = snn.LeakyIntegrator(3, **{**parts, **config})
        vary(made)
        double(made)
        both = made.pos_threshold is not None and made.neg_threshold is not None
        if both and made.reset == "zero":
            with pytest.raises(ValueError, match=r"resets to zero from above and from below"):
                tt.nir.to_nir(made, (3,))
            continue
        graph = tt.nir.to_nir(made, (3,))
        x = sequence(30, 1, 3)
        for z in (simulated(graph, x), run(tt.nir.from_nir(graph, dt=DT), x)):
            torch.testing.assert_close(run(made, x), z, rtol=0, atol=1e-11, msg=str(config))


@examples(15, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_random_networks_come_back(tmp_path_factory: Any, data: st.DataObject) -> None:
    seed = data.draw(st.integers(0, 2**16))
    torch.manual_seed(seed)
    sizes = data.draw(st.lists(st.integers(1, 6), min_size=2, max_size=4))
    parts: list[nn.Module] = []
    for before, after in itertools.pairwise(sizes):
        name = data.draw(st.sampled_from(LAYERS))
        options: dict[str, Any] = {"beta_rank": data.draw(st.sampled_from([0, 1]))}
        if name in SPIKING:
            options["reset"] = data.draw(
                st.sampled_from(["subtract", "none"] + ["zero"] * ("B" not in name))
            )
            options["beta_ema"] = data.draw(st.booleans())
        made = getattr(snn, name)(after, beta=data.draw(st.floats(0.05, 0.999)), **options)
        vary(made, seed)
        parts += [nn.Linear(before, after, bias=data.draw(st.booleans())), made]
    net = double(nn.Sequential(*parts))
    x = 3 * sequence(40, 2, sizes[0], seed=seed)
    again = through_file(net, (sizes[0],), tmp_path_factory.mktemp("nir") / "net.nir")
    torch.testing.assert_close(run(net, x), run(again, x), rtol=0, atol=1e-10)
    made = tt.nir.to_nir(net, (sizes[0],))
    torch.testing.assert_close(run(net, x), simulated(made, x), rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", ["LIF", "SLIF", "Readout", "SReadout"])
def test_what_is_one_node_comes_back_as_the_layer(name: str, tmp_path: Path) -> None:
    """In float32 too, to its last places."""
    made: Any = layer(name, 3, **({"reset": "zero"} if name in SPIKING else {}))
    again: Any = through_file(made, (3,), tmp_path / "net.nir")
    one = name in ("LIF", "Readout")
    back = again.nodes["0" if one else "0_mem"]
    assert not one or type(back) is type(made)
    assert {p.dtype for p in again.parameters()} == {torch.float32}
    torch.testing.assert_close(back.beta, made.beta, rtol=0, atol=1e-6)


def test_metadata_of_earlier_versions_are_passed_over() -> None:
    """They described the layer of each node, with a digest; the nodes say what it computes."""
    net = double(layer("SRLIF", 3))
    graph, x = tt.nir.to_nir(net, (3,)), sequence(60, 2, 3)
    for description in ({"layer": "LIF", "num_neurons": 3, "digest": "0"}, 7, "no dictionary"):
        graph.nodes["0"].metadata["tracetorch"] = description
        torch.testing.assert_close(
            run(tt.nir.from_nir(graph, dt=DT), x), run(net, x), rtol=0, atol=1e-11
        )


def test_extreme_decays_come_back() -> None:
    """Slower than float64 can say of beta itself, and as fast as a decay can be."""
    made: Any = double(snn.LIF(4, reset="zero"))
    with torch.no_grad():
        made.raw_beta.copy_(torch.tensor([40.0, -20.0, 0.0, 60.0]))
    model: Any = tt.nir.from_nir(tt.nir.to_nir(made, (4,)), dt=DT)
    found, kept = model.nodes["0"], [0, 2, 3]
    torch.testing.assert_close(found.raw_beta[kept], made.raw_beta[kept], rtol=1e-12, atol=0)
    torch.testing.assert_close(found.beta, made.beta, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "kind"),
    [("LIF", "LIF"), ("SLIF", "CubaLIF"), ("Readout", "LI"), ("SReadout", "CubaLI")],
)
@pytest.mark.parametrize("ema", [False, True])
def test_compact_computes_the_same(name: str, kind: str, ema: bool) -> None:
    torch.manual_seed(1)
    how = {"reset": "zero", "pos_threshold": 0.3} if name in SPIKING else {}
    made = layer(name, 5, **how)
    made.beta_ema = ema
    net = double(nn.Sequential(nn.Linear(6, 5), made))
    graph = tt.nir.to_nir(net, (6,), mode="compact")
    assert type(graph.nodes["1"]).__name__ == kind
    x = 3 * sequence(200, 3, 6)
    y = run(net, x)
    assert name not in SPIKING or 0.02 < y.mean() < 0.9
    for z in (run(tt.nir.from_nir(graph, dt=DT), x), simulated(graph, x)):
        torch.testing.assert_close(z, y, rtol=0, atol=0 if name in SPIKING else 1e-12)


def test_thresholds_go_into_the_weights_before_them() -> None:
    """Unless these feed others too."""
    torch.manual_seed(0)
    how: dict[str, Any] = {"pos_threshold": torch.tensor([0.2, 0.5, 0.9]), "reset": "zero"}
    parts = (nn.Conv2d(1, 3, 2), snn.LIF(3, dim=-3, **how), nn.Flatten(), nn.Linear(12, 3))
    net = double(nn.Sequential(*parts, snn.SLIF(3, **how)))
    graph = tt.nir.to_nir(net, (1, 3, 3), mode="compact")
    for name in ("1", "4"):
        assert np.unique(graph.nodes[name].v_threshold).size == 1
    x = 3 * sequence(60, 1, 1, 3, 3)
    y = run(net, x)
    assert y.mean() > 0.02
    assert torch.equal(y, run(tt.nir.from_nir(graph, dt=DT), x))
    assert torch.equal(y, simulated(graph, x))
    fork = Residual(snn.LIF(3, **how))
    graph = tt.nir.to_nir(nn.Sequential(nn.Linear(4, 3), fork), (4,), mode="compact")
    (node,) = (node for node in graph.nodes.values() if isinstance(node, nir.LIF))
    assert np.unique(node.v_threshold).size == 3


def test_thresholds_differ_with_the_decays() -> None:
    """Else snnTorch, which reads one gain for all neurons, would misread them in silence."""
    torch.manual_seed(0)
    beta = torch.tensor([0.5, 0.7, 0.9])
    for threshold in (0.5, torch.tensor([0.2, 0.5, 0.9])):
        net = double(nn.Sequential(nn.Linear(4, 3), snn.LIF(3, beta, threshold, reset="zero")))
        graph = tt.nir.to_nir(net, (4,), mode="compact")
        node = graph.nodes["1"]
        met = node.v_threshold / (1 - beta.numpy())
        np.testing.assert_allclose(met, met[0], rtol=1e-6)
        assert np.unique(node.v_threshold).size == 3
        x = 3 * sequence(60, 2, 4)
        assert torch.equal(run(net, x), run(tt.nir.from_nir(graph, dt=DT), x))


REFUSED = (
    (snn.LIF(2), "has a reset by subtraction .*allow_hard_reset=True.*mode='exact'"),
    (snn.LIF(2, reset="none"), "has a threshold and no reset, .*mode='exact'"),
    (snn.BLIF(2, reset="zero"), "has spikes of two signs.*mode='exact'"),
    (snn.RLIF(2, reset="zero"), "has recurrence.*mode='exact'"),
    (snn.RReadout(2), "has recurrence.*mode='exact'"),
    (snn.LeakyIntegrator(2, bias_setup={}), "has a constant drive.*mode='exact'"),
    (snn.LeakyIntegrator(2, pos_threshold_setup={}, pos_scale_setup={}, reset="zero"),
     "has a scale on its spikes.*mode='exact'"),
    (snn.LIF(2, surrogate_derivative=torch.sigmoid), "fires by .*NIR knows spikes of one above"),
    (neurons.ALIF(2), "has no counterpart in NIR. NIR has the twelve layers"),
)  # fmt: skip


@pytest.mark.parametrize(("made", "why"), REFUSED)
def test_what_compact_refuses(made: snn.LeakyIntegrator, why: str) -> None:
    net = nn.Sequential(nn.Linear(2, 2), made)
    with pytest.raises(ValueError, match=f"1 .{type(made).__name__}. {why}"):
        tt.nir.to_nir(net, (2,), mode="compact")


def test_a_hard_reset_may_be_allowed() -> None:
    net = double(snn.LIF(3, pos_threshold=0.4))
    graph = tt.nir.to_nir(net, (3,), mode="compact", allow_hard_reset=True)
    x = sequence(50, 2, 3)
    hard = double(snn.LIF(3, pos_threshold=0.4, reset="zero"))
    assert torch.equal(run(tt.nir.from_nir(graph, dt=DT), x), run(hard, x))
    soft = tt.nir.from_nir(graph, dt=DT, reset="subtract")
    assert torch.equal(run(soft, x), run(net, x))
    assert not torch.equal(run(net, x), run(hard, x))


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
    x = sequence(200, 3, 4, dtype=dtype)
    y, z = run(net, x), run(again, x)
    assert torch.equal(y, z)
    assert y.any()
    if dtype is torch.float64:
        assert torch.equal(simulated(graph, x, dt=dt), y)


def own(step: Any) -> Any:
    return double(type("Own", (IF,), {"step": staticmethod(step)})(4, 0.75))


def test_an_if_is_found_by_what_its_step_gives() -> None:
    def same(x, mem, *, pos_threshold, spike):
        fired = spike(x + mem - pos_threshold)
        return fired, torch.where(fired > 0, 0.0, x + mem)

    def leaks(x, mem, *, pos_threshold, spike):
        return same(x, 0.999 * mem, pos_threshold=pos_threshold, spike=spike)

    def subtracts(x, mem, *, pos_threshold, spike):
        fired = spike(mem + x - pos_threshold)
        return fired, mem + x - fired * pos_threshold

    x, net = sequence(100, 3, 4), own(same)
    assert torch.equal(simulated(tt.nir.to_nir(net, (4,)), x), run(net, x))
    graded = IF(4, surrogate_derivative=torch.sigmoid)
    for other in (own(leaks), own(subtracts), graded, neurons.ALIF(4), neurons.Izhikevich(4)):
        with pytest.raises(ValueError, match=r"has no counterpart in NIR\. NIR has the twelve lay"):
            tt.nir.to_nir(other, (4,))
    charged = IF(4)
    charged.register_buffer("initial_mem", torch.ones(4))
    with pytest.raises(ValueError, match=r"starts from states other than zero"):
        tt.nir.to_nir(charged, (4,))


def test_tau_and_decay() -> None:
    complement = np.array([1e-9, 0.1, 0.5, 0.999])
    for clock, decay in ((Clock(1e-4), 0.9), (Clock(1e-4, "exponential"), math.exp(-0.1))):
        np.testing.assert_allclose(clock.complement(clock.tau(complement)), complement, rtol=1e-12)
        assert clock.complement(np.array([1e-3])) == pytest.approx(1 - decay)


@refusals(
    """
    0 -> ValueError: dt must be positive and finite
    -1e-4 -> ValueError: dt must be positive and finite
    math.inf -> ValueError: dt must be positive and finite
    math.nan -> ValueError: dt must be positive and finite
    "1e-4" -> TypeError: dt must be a number of seconds
    1e-4, "midpoint" -> ValueError: discretization must be 'euler'
    """
)
def test_a_step_takes_time(call: str, error: str) -> None:
    check(f"Clock({call})", error, globals())
