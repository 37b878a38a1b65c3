"""Streams of single steps log NaN that stays and a graph that grows; learners refuse NaN."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import tracetorch as tt
from tracetorch import snn
from tracetorch.snn import stream_watch


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_watch, "_graph_reported", False)
    monkeypatch.setattr(stream_watch, "LOOK_EVERY", 5)
    monkeypatch.setattr(stream_watch, "LONGEST_GRAPH", 20)


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), snn.LIF(4), nn.Linear(4, 2), snn.Readout(2))


class Shunted(snn.Neuron):
    """Two inputs; what becomes NaN of the second is not the first state."""

    inputs = ("x", "inhibition")
    states = ("mem", "slow")

    def __init__(self) -> None:
        super().__init__(4)
        self.threshold("pos_threshold", 1.0)

    @staticmethod
    def step(x, inhibition, mem, slow, *, pos_threshold, spike):
        slow = 0.9 * slow + inhibition
        fired = spike(mem - pos_threshold - slow)
        return fired, 0.5 * mem + x - fired, slow


class Inhibited(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.neuron = Shunted()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.neuron(torch.ones(len(x), 4), x.sum(1, keepdim=True).expand(len(x), 4))


def frozen_in_front() -> nn.Sequential:
    """Two neuron layers, of which the first has no gradients, and a loop whose first is frozen."""
    still = snn.Populations(a=snn.LIF(3).requires_grad_(False), b=snn.LIF(1))
    loop = snn.Recurrent(still, nn.Linear(4, 4).requires_grad_(False))
    front = nn.Sequential(nn.Linear(3, 4), snn.LIF(4)).requires_grad_(False)
    return nn.Sequential(front, loop)


def recurrent(neurons: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), snn.Recurrent(neurons, nn.Linear(4, 4)))


HIDDEN = {
    "recurrent": lambda: recurrent(snn.LIF(4)),
    "chain": lambda: recurrent(nn.Sequential(snn.LIF(4), nn.Linear(4, 4), snn.SLIF(4))),
    "populations": lambda: recurrent(snn.Populations(a=snn.LIF(3), b=snn.LIF(1))),
    "second input": Inhibited,
    "frozen in front": frozen_in_front,
}


def run(net: nn.Module, steps: int, first: float = 1.0) -> None:
    for number in range(steps):
        net(torch.full((1, 3), 1.0 if number else first))


def test_nan_in_a_stream_is_logged_until_it_is_zeroed(caplog: pytest.LogCaptureFixture) -> None:
    net = network()
    with torch.no_grad():
        run(net, 20)
        assert caplog.text == ""
        for count in (1, 2):
            run(net, 20, torch.nan)
            assert caplog.text.count("mem of layer '1', LIF(4), is NaN") == count
            tt.zero_states(net)
        run(net, 20)
        run(network(), 20, torch.nan)  # another model
    assert caplog.text.count("is NaN") == len(caplog.records) == 3


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("kind", HIDDEN)
@pytest.mark.parametrize("held", [False, True])
def test_a_state_wherever_it_is_held_is_looked_at(
    caplog: pytest.LogCaptureFixture, kind: str, held: bool, value: float
) -> None:
    net = HIDDEN[kind]()
    stream: Any = tt.Stream(net) if held else net
    with torch.no_grad():
        run(stream, 20)
        assert caplog.text == ""
        for count in (1, 2):
            tt.zero_states(net)
            if held:
                stream.zero_states()
            run(stream, 20, value)
            assert caplog.text.count("and stays so until zero_states()") == count
    assert len(caplog.records) == 2


def test_infinity_is_logged_unless_it_is_the_state_of_rest(
    caplog: pytest.LogCaptureFixture,
) -> None:
    net, x = snn.LIF(3), torch.ones(6, 1, 3)
    with torch.no_grad():
        run(net, 20, -torch.inf)
        assert "mem of LIF(3) is infinite" in caplog.text
        assert "fires there at every step, or never" in caplog.text
        caplog.clear()
        net = snn.LIF(3)
        tt.unroll(net, x * torch.inf)
        assert caplog.text == ""
        tt.unroll(net, x)  # it goes on
        assert "mem is infinite at the end of a sequence" in caplog.text
        caplog.clear()
        net = snn.LIF(3)
        net.register_buffer("initial_mem", torch.tensor(-torch.inf))
        run(net, 20)
    assert caplog.text == ""


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("held", [False, True])
def test_what_a_delay_holds_does_not_stay(
    caplog: pytest.LogCaptureFixture, held: bool, value: float
) -> None:
    net: Any = snn.DelayedLinear(3, 4, max_delay=8)
    alone: Any = tt.Stream(net) if held else net
    model = nn.Sequential(net, snn.LIF(4))
    behind: Any = tt.Stream(model) if held else model
    with torch.no_grad():
        run(alone, 20, value)
        assert caplog.text == ""
        run(behind, 20, value)
    assert caplog.text.count("mem of" if not held else "1.mem is") == len(caplog.records) == 1


def test_sequences_of_a_stream_log_nan_again_once_it_was_zeroed(caplog):
    net, x = network(), torch.ones(4, 1, 3)
    for _ in range(2):
        tt.unroll(net, x)
        for _ in range(3):
            tt.unroll(net, x * torch.nan)
        tt.zero_states(net)
    assert caplog.text.count("1.mem is NaN") == len(caplog.records) == 2


def test_a_held_stream_logs_nan_until_it_is_zeroed(caplog: pytest.LogCaptureFixture) -> None:
    net, x = network().eval(), torch.ones(4, 1, 3)
    streams = [tt.Stream(net) for _ in range(2)]
    with torch.no_grad():
        for stream in streams:
            run(stream, 20)  # type: ignore[arg-type]
        assert caplog.text == ""
        for count in (1, 2):
            run(streams[0], 20, torch.nan)  # type: ignore[arg-type]
            assert caplog.text.count("1.mem is NaN, and stays so until zero_states()") == count
            streams[0].zero_states()
        run(streams[0], 20)  # type: ignore[arg-type]
        for _ in range(2):
            streams[1].unroll(x * torch.nan)
        streams[1].unroll(x)
    assert caplog.text.count("1.mem is NaN") == len(caplog.records) == 3


@pytest.mark.parametrize("sequences", [False, True])
@pytest.mark.parametrize("kind", ["network", "stream", *HIDDEN])
def test_a_graph_that_grows_is_logged_wherever_it_is(
    caplog: pytest.LogCaptureFixture, kind: str, sequences: bool
) -> None:
    makers: dict[str, Any] = {**HIDDEN, "network": network, "stream": lambda: tt.Stream(network())}
    stream = makers[kind]()

    def call(number: int) -> None:
        for _ in range(number):
            if not sequences:
                stream(torch.ones(1, 3))
            elif kind == "stream":
                stream.unroll(torch.ones(3, 1, 3))
            else:
                tt.unroll(stream, torch.ones(3, 1, 3))

    for _ in range(5):
        call(15)
        stream.detach_states() if kind == "stream" else tt.detach_states(stream)
    with torch.no_grad():
        call(50)
    assert caplog.text == ""
    if sequences and kind != "stream":
        for _ in range(50):
            tt.unroll(stream, torch.ones(3, 1, 3), from_rest=True)
        assert caplog.text == ""
    call(50)
    assert len(caplog.records) == 1
    assert "was called 20 times in one graph" in caplog.text


def test_a_graph_without_an_end_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    net = network().eval()
    tt.unroll(net, torch.ones(50, 1, 3), by="step")
    learner = tt.online(net, "eprop")
    learner.zero_states()
    run(learner, 50)
    learner.zero_states()
    assert caplog.text == ""
    run(net, 50)
    assert len(caplog.records) == 1
    assert "was called 20 times in one graph" in caplog.text


def test_saving_states_with_nan_warns(tmp_path: Path) -> None:
    net = network()
    run(net, 1, torch.nan)
    tt.save(net, tmp_path / "without.safetensors")
    with pytest.warns(UserWarning, match=r"'1\.mem' of the states saved .*zero_states\(\)"):
        tt.save(net, tmp_path / "net.safetensors", states=True)


def test_a_learner_refuses_what_is_not_finite() -> None:
    net: Any = network()
    learner: Any = tt.online(net, "eprop")
    run(learner, 3)
    before = tt.get_states(learner)
    for value in (torch.nan, torch.inf):
        with pytest.raises(ValueError, match=r"an input of shape \[1, 3\] has NaN or infinite"):
            learner(torch.tensor([[0.0, value, 0.0]]))
    with torch.no_grad():
        weight = net[0].weight.clone()
        net[0].weight[0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"mem of layer '1', LIF\(4\), has NaN or infinite"):
        learner(torch.ones(1, 3))
    after = tt.get_states(learner)
    assert before.keys() == after.keys()
    assert len(before) > 2
    assert all(torch.equal(before[name], after[name]) for name in before)
    with torch.no_grad():
        net[0].weight.copy_(weight)
    learner(torch.ones(1, 3)).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
