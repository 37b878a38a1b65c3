"""Neurons beside those of other libraries, on numbers from which one reads the convention.

What the peers' own tests pin (which step resets, what a reset clears, what decays first, what a
membrane at its threshold does), computed on both sides: equal where the conventions are, and where
they differ, different by what the convention says. ``tests/docs/test_coming_from.py`` runs the
pairs of the page for newcomers. Numbers are dyadic, so that sums are exact.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tracetorch as tt
from tests.networks import Net
from tracetorch import snn

REASON = "{} is not installed: pip install -e '.[test-peers]'"
pytestmark = pytest.mark.filterwarnings("default")  # peers' own


def column(*values: float) -> Tensor:
    """Return a sequence ``[T, 1, 1]`` of one neuron."""
    return torch.tensor(values)[:, None, None]


def drive(T: int = 60) -> Tensor:
    """Return a sequence ``[T, 2, 3]`` of multiples of 1/8, above and below the threshold."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(-4, 13, (T, 2, 3), generator=generator) / 8


def ours(layer: nn.Module, x: Tensor, state: str = "mem") -> tuple[Tensor, Tensor]:
    """Return spikes and a state after every step."""
    with torch.no_grad():
        y, seen = tt.unroll(layer, x, record=[state])
    (values,) = seen.values()
    return y, values


def theirs(step: Callable[..., Any], x: Tensor, *states: Any) -> list[Any]:
    """Run a step whose last results are its next states; return each result over time."""
    results = []
    with torch.no_grad():
        for now in x:
            result = step(now, *states)
            states = result[len(result) - len(states) :]
            results.append(result)
    return [
        torch.stack(values) if isinstance(values[0], Tensor) else values
        for values in zip(*results, strict=True)
    ]


class TestSnnTorch:
    @pytest.fixture
    def peer(self) -> Any:
        return pytest.importorskip("snntorch", reason=REASON.format("snnTorch"))

    def test_a_membrane_decays_and_the_input_is_not_scaled(self, peer: Any) -> None:
        x = column(0.25, 0, 0.5)
        _, mem = theirs(peer.Leaky(beta=0.5), x, None)
        assert mem.flatten().tolist() == [0.25, 0.125, 0.5625]
        assert torch.equal(ours(snn.LIF(1, beta=0.5), x)[1], mem)
        averaged = ours(snn.LIF(1, beta=0.5, beta_ema=True), x)[1]
        assert torch.equal(averaged, mem / 2)

    def test_leaky_subtracts_one_step_later_a_whole_threshold(self, peer: Any) -> None:
        x = column(1.5, 0.5, 0)
        spikes, mem = theirs(peer.Leaky(beta=0.5), x, None)
        # the membrane that is kept is the one before the reset; what it had above decays unreset
        assert mem.flatten().tolist() == [1.5, 0.25, 0.125]
        y, own = ours(snn.LIF(1, beta=0.5), x)
        assert own.flatten().tolist() == [0.5, 0.75, 0.375]
        assert torch.equal(y, spikes)
        assert float(own[1] - mem[1]) == (1 - 0.5) * 1.0  # (1 - beta) * threshold

    @pytest.mark.parametrize("reset", ["zero", "none"])
    def test_leaky_fires_as_here_and_its_reset_is_seen_a_step_later(self, peer, reset) -> None:
        x = drive()
        spikes, mem = theirs(peer.Leaky(beta=0.5, reset_mechanism=reset), x, None)
        y, own = ours(snn.LIF(3, beta=0.5, reset=reset), x)
        assert torch.equal(y, spikes)
        assert 0.05 < float(y.mean()) < 0.9
        assert torch.equal(own, mem * (1 - spikes) if reset == "zero" else mem)

    def test_synaptic_reset_to_zero_loses_the_input_after_a_spike(self, peer: Any) -> None:
        x = column(1.5, 0.5, 0)
        result = theirs(peer.Synaptic(0.5, 0.5, reset_mechanism="zero"), x, None, None)
        spikes, syn, mem = (values.flatten().tolist() for values in result)
        # Leaky clears the old membrane, Synaptic the new one too, with its current
        assert mem == [1.5, 0, 0.625]
        assert syn == [1.5, 1.25, 0.625]
        layer = snn.SLIF(1, alpha=0.5, beta=0.5, alpha_ema=False, reset="zero")
        y, own = ours(layer, x, "syn")
        assert own.flatten().tolist() == syn
        assert (y.flatten().tolist(), spikes) == ([1, 1, 0], [1, 0, 0])
        at_once = peer.Synaptic(0.5, 0.5, reset_mechanism="zero", reset_delay=False)
        tt.zero_states(layer)
        assert torch.equal(theirs(at_once, x, None, None)[0], ours(layer, x)[0])

    def test_rleaky_feeds_the_last_spikes_back(self, peer: Any) -> None:
        x, at_once = drive(), {"reset_mechanism": "zero", "reset_delay": False}
        own = peer.RLeaky(0.5, V=-0.5, all_to_all=False, **at_once)
        spikes, _ = theirs(own, x, *own.reset_mem())
        scaled = Net(lambda m, spikes: -0.5 * spikes)
        y, _ = ours(snn.Recurrent(snn.LIF(3, beta=0.5, reset="zero"), scaled), x)
        assert torch.equal(y, spikes)
        # rec is an average, rec_weight its weight: nearly the last output where gamma is small
        layer = snn.RLIF(3, beta=0.5, gamma=1e-7, rec_weight=-0.5, reset="zero")
        assert torch.equal(ours(layer, x)[0], spikes)
        assert not torch.equal(ours(snn.LIF(3, beta=0.5, reset="zero"), x)[0], spikes)
        # with its defaults it loses an input as Synaptic does
        late = peer.RLeaky(0.5, V=0.25, all_to_all=False, reset_mechanism="zero")
        _, mem = theirs(late, column(1.5, 0.5, 0.25), *late.reset_mem())
        assert mem.flatten().tolist() == [1.5, 0, 0.25]

    def test_rleaky_all_to_all_adds_its_bias_at_the_first_step_too(self, peer: Any) -> None:
        x, at_once = drive(), {"reset_mechanism": "zero", "reset_delay": False}
        own = peer.RLeaky(0.5, linear_features=3, **at_once)
        with torch.no_grad():
            own.recurrent.weight.copy_(torch.arange(-4, 5).view(3, 3) / 8)
            own.recurrent.bias.fill_(0.25)
        spikes, _ = theirs(own, x, *own.reset_mem())
        y, _ = ours(snn.Recurrent(snn.LIF(3, beta=0.5, reset="zero"), own.recurrent), x)
        assert torch.equal(y, spikes)
        assert 0.05 < float(y.mean()) < 0.9


class TestSpikingJelly:
    @pytest.fixture
    def peer(self) -> Any:
        where = "spikingjelly.activation_based"
        pytest.importorskip(where, reason=REASON.format("SpikingJelly"))
        from spikingjelly.activation_based import neuron

        return neuron

    def run(self, node: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        spikes, v = theirs(lambda now: (node(now), node.v.clone()), x)
        return spikes, v

    @pytest.mark.parametrize("decay_input", [True, False])
    def test_decay_input_is_the_average(self, peer: Any, decay_input: bool) -> None:
        x = 1.03 * drive()  # off the threshold
        spikes, v = self.run(peer.LIFNode(tau=2.0, decay_input=decay_input), x)
        y, own = ours(snn.LIF(3, beta=0.5, beta_ema=decay_input, reset="zero"), x)
        assert torch.equal(y, spikes)
        assert 0.01 < float(y.mean()) < 0.9
        torch.testing.assert_close(own, v)

    def test_no_v_reset_subtracts_at_once(self, peer: Any) -> None:
        x = column(1.5, 0.5, 0)
        spikes, v = self.run(peer.LIFNode(tau=2.0, decay_input=False, v_reset=None), x)
        y, own = ours(snn.LIF(1, beta=0.5), x)
        assert v.flatten().tolist() == own.flatten().tolist() == [0.5, 0.75, 0.375]
        assert torch.equal(y, spikes)

    def test_at_its_threshold_a_membrane_fires_there_and_not_here(self, peer: Any) -> None:
        x = column(1.0, 0)
        spikes, _ = self.run(peer.LIFNode(tau=2.0, decay_input=False), x)
        y, _ = ours(snn.LIF(1, beta=0.5, reset="zero"), x)
        assert (y.flatten().tolist(), spikes.flatten().tolist()) == ([0, 0], [1, 0])
        lower, _ = ours(snn.LIF(1, beta=0.5, reset="zero", pos_threshold=0.999999), x)
        assert torch.equal(lower, spikes)

    def test_v_reset_is_rest_too_so_that_a_threshold_can_stand_for_it(self, peer: Any) -> None:
        x = 1.03 * drive()
        spikes, v = self.run(peer.LIFNode(tau=4.0, decay_input=False, v_reset=-0.25), x)
        # theirs starts at v_reset, leaks to it, and is set to it: only the distance counts
        y, own = ours(snn.LIF(3, beta=0.75, pos_threshold=1.25, reset="zero"), x)
        assert torch.equal(y, spikes)
        torch.testing.assert_close(own - 0.25, v)


class TestNorse:
    @pytest.fixture
    def peer(self) -> Any:
        return pytest.importorskip("norse.torch", reason=REASON.format("Norse"))

    def parameters(self, peer: Any) -> Any:
        rates = {"tau_mem_inv": torch.tensor(500.0), "tau_syn_inv": torch.tensor(250.0)}
        return peer.LIFParameters(**rates)

    def own(self, n: int) -> Any:
        return snn.SLIF(n, alpha=0.75, beta=0.5, alpha_ema=False, beta_ema=True, reset="zero")

    def run(self, cell: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        def step(now: Tensor, state: Any) -> tuple[Any, ...]:
            spike, state = cell(now, state)
            return spike, state.v, state.i, state

        spikes, v, i, _ = theirs(step, x, None)
        return spikes, v, i

    def test_a_current_acts_before_it_decays(self, peer: Any) -> None:
        x = column(0.5, 0, 0, 1, 1, 1)
        spikes, v, i = self.run(peer.LIFCell(self.parameters(peer), dt=0.001), x)
        layer = self.own(1)
        y, mem = ours(layer, x)
        assert torch.equal(y, spikes)
        assert y.any()
        torch.testing.assert_close(mem, v)
        # the current that is kept has decayed there already, and not here
        tt.zero_states(layer)
        syn = ours(layer, x, "syn")[1]
        torch.testing.assert_close(0.75 * syn, i)

    def test_recurrent_spikes_enter_the_current_of_the_next_step(self, peer: Any) -> None:
        x = 2 * drive()
        back, p = torch.arange(-4, 5).view(3, 3) / 8, self.parameters(peer)
        weights = {"input_weights": torch.eye(3), "recurrent_weights": back}
        spikes, *_ = self.run(peer.LIFRecurrentCell(3, 3, p=p, **weights, dt=0.001), x)
        connection = nn.Linear(3, 3, bias=False)
        with torch.no_grad():  # autapses are removed there
            connection.weight.copy_(back * (1 - torch.eye(3)))
        y, _ = ours(snn.Recurrent(self.own(3), connection), x)
        assert torch.equal(y, spikes)
        assert 0.05 < float(y.mean()) < 0.9
