"""The pass: states read where a layer is met, committed at once; one that is NaN is logged once."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import tracetorch as tt
from tests.cases import module
from tests.refusals import unchanged
from tracetorch import snn
from tracetorch.snn import passes
from tracetorch.unrolling import stream as held_stream

N = 3


def test_a_copy_within_a_pass_by_step_has_the_states_of_the_step() -> None:
    copies: list[Any] = []
    keep: Any = copies.append
    model = module(lambda s, x: (s.lif(x), keep(copy.deepcopy(s.lif)))[0], lif=snn.LIF(N))
    with torch.no_grad():
        tt.unroll(model, torch.rand(3, 2, N), by="step")
    assert torch.equal(copies[-1].mem, model.lif.mem)
    assert not torch.equal(copies[0].mem, model.lif.mem)


# NaN


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    for place in (passes, held_stream):
        monkeypatch.setattr(place, "LOOK_EVERY", 5)


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), snn.LIF(4), nn.Linear(4, 2), snn.Readout(2))


class Shunted(snn.Neuron):
    """Two inputs; what becomes NaN of the second is not the first state."""

    inputs = ("x", "inhibition")
    states = ("mem", "slow")

    @staticmethod
    def step(x, inhibition, mem, slow):
        return mem, 0.5 * mem + x, 0.9 * slow + inhibition


def frozen_in_front() -> nn.Sequential:
    """Two neuron layers, of which the first has no gradients, and a loop whose first is frozen."""
    still = snn.Populations(a=snn.LIF(3).requires_grad_(False), b=snn.LIF(1))
    loop = snn.Recurrent(still, nn.Linear(4, 4).requires_grad_(False))
    front = nn.Sequential(nn.Linear(3, 4), snn.LIF(4)).requires_grad_(False)
    return nn.Sequential(front, loop)


def recurrent(neurons: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), snn.Recurrent(neurons, nn.Linear(4, 4)))


def inhibited() -> Any:
    return module(lambda s, x: s.neuron(torch.ones(1, 4), x[:, :1].expand(1, 4)), neuron=Shunted(4))


HIDDEN = {
    "recurrent": lambda: recurrent(snn.LIF(4)),
    "chain": lambda: recurrent(nn.Sequential(snn.LIF(4), nn.Linear(4, 4), snn.SLIF(4))),
    "populations": lambda: recurrent(snn.Populations(a=snn.LIF(3), b=snn.LIF(1))),
    "second input": inhibited,
    "frozen in front": frozen_in_front,
}


def run(net: nn.Module, steps: int, first: float = 1.0) -> None:
    for number in range(steps):
        net(torch.full((1, 3), 1.0 if number else first))


def test_nan_in_a_stream_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    net = network()
    with torch.no_grad():
        run(net, 20)
        assert caplog.text == ""
        for _ in range(2):
            run(net, 20, torch.nan)
            tt.zero_states(net)
        assert caplog.text.count("mem of layer '1', LIF(4), is NaN") == 1
        run(network(), 20, torch.nan)  # another model
    assert caplog.text.count("stays so until zero_states()") == len(caplog.records) == 2


@pytest.mark.parametrize("kind", HIDDEN)
@pytest.mark.parametrize("held", [False, True])
def test_a_state_wherever_it_is_held_is_looked_at(
    caplog: pytest.LogCaptureFixture, kind: str, held: bool
) -> None:
    net = HIDDEN[kind]()
    stream: Any = tt.Stream(net) if held else net
    with torch.no_grad():
        run(stream, 20)
        assert caplog.text == ""
        tt.zero_states(net)
        if held:
            stream.zero_states()
        run(stream, 20, torch.nan)
    assert caplog.text.count("is NaN, and stays so until zero_states()") == len(caplog.records) == 1


@pytest.mark.parametrize("held", [False, True])
def test_what_a_delay_holds_does_not_stay(caplog: pytest.LogCaptureFixture, held: bool) -> None:
    net: Any = snn.DelayedLinear(3, 4, max_delay=8)
    alone, behind = net, nn.Sequential(net, snn.LIF(4))
    with torch.no_grad():
        run(tt.Stream(alone) if held else alone, 20, torch.nan)
        assert caplog.text == ""
        run(tt.Stream(behind) if held else behind, 20, torch.nan)
    assert caplog.text.count("1.mem is" if held else "mem of") == len(caplog.records) == 1


def test_a_sequence_of_a_held_stream_is_looked_at(caplog: pytest.LogCaptureFixture) -> None:
    stream = tt.Stream(network().eval())
    for _ in range(2):
        stream.unroll(torch.full((4, 1, 3), torch.nan))
    assert caplog.text.count("1.mem is NaN") == len(caplog.records) == 1


def test_saving_states_with_nan_warns(tmp_path: Path) -> None:
    net = network()
    run(net, 1, torch.nan)
    tt.save(net, tmp_path / "file")
    with pytest.warns(UserWarning, match=r"'1\.mem' of the states saved .*zero_states\(\)"):
        tt.save(net, tmp_path / "file", states=True)


def test_a_learner_refuses_what_is_not_finite() -> None:
    net: Any = network()
    learner: Any = tt.online(net, "eprop")
    run(learner, 3)
    for value in (torch.nan, torch.inf):
        match = r"an input of shape \[1, 3\] has NaN or infinite"
        with unchanged(learner), pytest.raises(ValueError, match=match):
            learner(torch.tensor([[0.0, value, 0.0]]))
    weight = net[0].weight[0, 0].item()
    net[0].weight.data[0, 0] = torch.nan
    match = r"mem of layer '1', LIF\(4\), has NaN or infinite"
    with unchanged(learner), pytest.raises(ValueError, match=match):
        learner(torch.ones(1, 3))
    net[0].weight.data[0, 0] = weight
    learner(torch.ones(1, 3)).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
