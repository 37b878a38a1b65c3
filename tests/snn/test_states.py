"""States by name, committed by a pass at once; one that is NaN is logged once."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load, save
from torch import nn

import tracetorch as tt
from tests.cases import examples, layer, module, sequence, stepped, through_save
from tests.refusals import check, refusals, unchanged
from tracetorch import snn
from tracetorch.snn import passes
from tracetorch.unrolling import stream as held_stream


class Cells(snn.TTModule):
    def __init__(self) -> None:
        super().__init__()
        self.cells = nn.ModuleList([layer("LIF", 3), layer("SRLIF", 3)])
        self.hidden = {"out": layer("RReadout", 3)}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for cell in self.cells:
            x = cell(x)
        return self.hidden["out"](x)


NAMES = ["cells.0.mem"]
NAMES += [f"cells.1.{name}" for name in ("mem", "syn", "rec", "prev_output")]
NAMES += [f"hidden.out.{name}" for name in ("mem", "rec", "prev_output")]


def test_names_of_states() -> None:
    net = Cells()
    assert tt.get_states(net) == {}
    net.cells[0](torch.ones(2, 3))
    assert list(tt.get_states(net)) == NAMES[:1]
    tt.zero_states(net)
    net(torch.ones(2, 3))
    states = tt.get_states(net)
    assert list(states) == NAMES
    assert list(tt.get_states(net.cells[0])) == ["mem"]
    net.to("meta")
    tt.set_states(net, states)  # to the device of the layer
    assert net.cells[0].mem.device.type == "meta"


def test_get_states_copies_unless_detach_is_false() -> None:
    net = Cells()
    net(torch.ones(2, 3))
    copies, live = tt.get_states(net), tt.get_states(net, detach=False)
    assert not any(state.requires_grad for state in copies.values())
    storages = [state.untyped_storage().data_ptr() for state in (*copies.values(), *live.values())]
    assert len(set(storages[: len(NAMES)])) == len(NAMES)
    assert not set(storages[: len(NAMES)]) & set(storages[len(NAMES) :])
    assert live["cells.1.syn"] is net.cells[1].syn
    assert live["cells.1.syn"].requires_grad


@pytest.mark.parametrize("stored", [dict, through_save, lambda states: load(save(states))])
@given(cut=st.integers(0, 5), seed=st.integers(0, 100))
@examples(10)
def test_stream_is_resumed_exactly(stored: Any, cut: int, seed: int) -> None:
    x = sequence(5, 2, 3, seed=seed, dtype=torch.float32)
    net, resumed = Cells(), Cells()
    for step in x[:cut].unbind():
        net(step)
    resumed(torch.ones(7, 3))  # a stream of another shape, whose states must be replaced
    tt.set_states(resumed, stored(tt.get_states(net)))
    if cut < len(x):
        assert torch.equal(stepped(resumed, x[cut:]), stepped(net, x[cut:]))


def test_layers_without_given_states_are_reset_and_given_ones_keep_their_graph() -> None:
    net = Cells()
    net(torch.ones(2, 3))
    states = tt.get_states(net)
    tt.set_states(net, {"cells.0.mem": states["cells.0.mem"]})
    assert list(tt.get_states(net)) == ["cells.0.mem"]
    tt.set_states(net, {})
    assert tt.get_states(net) == {}
    made = snn.LIF(2)
    mem = torch.zeros(1, 2, requires_grad=True)
    tt.set_states(made, {"mem": mem})
    with torch.no_grad():
        mem += 1
    assert made.mem.tolist() == [[0.0, 0.0]]
    made(torch.ones(1, 2)).sum().backward()
    assert bool((mem.grad != 0).all())


ROW, REC = torch.ones(2, 3), "cells.1.rec"


@refusals(
    r"""
    {"cells.0.men": ROW} -> ValueError: no state is called 'cells.0.men'
    {"cells.0.syn": ROW} -> ValueError: no state is called 'cells.0.syn'
    {REC: None} -> ValueError: 'cells.1', SRLIF\(3\), needs all of its states or none; \['rec'
    {REC: torch.ones(2, 4)} -> ValueError: needs rec with 3 neurons at
    {REC: torch.tensor(1.0)} -> ValueError: needs rec with 3 neurons.*shape \[\]
    {REC: torch.ones(1, 3)} -> ValueError: needs its states in one shape and
    {REC: ROW.double()} -> ValueError: in one shape and dtype
    {REC: ROW.half()} -> TypeError: got torch.float16
    {REC: [1.0]} -> TypeError: keeps rec in float32 or float64, got list
    [REC] -> TypeError: states must be a mapping of names to tensors
    """
)
def test_states_that_do_not_fit_change_nothing(call: str, error: str) -> None:
    net = Cells()
    net(torch.ones(2, 3))

    def merged(changed: Any) -> Any:
        if not isinstance(changed, dict):
            return changed
        return {k: v for k, v in {**tt.get_states(net), **changed}.items() if v is not None}

    with unchanged(net):
        check(f"tt.set_states(net, merged({call}))", error, {**globals(), **locals()})
    assert list(tt.get_states(net)) == NAMES


@pytest.mark.parametrize(
    ("held", "message"),
    [
        (lambda a, b: {"x.y": a, "x": {"y": b}}, "two states would be called 'held.x.y.mem'"),
        (lambda a, b: {1: a, "1": b}, "two states would be called 'held.1.mem'"),
        (lambda a, b: {a, b}, r"'held.{.}' is a layer in a set, which has no order"),
    ],
)
def test_ambiguous_names_are_refused(held: Any, message: str) -> None:
    net = module(lambda s, x: x, held=held(snn.LIF(2), snn.LIF(2)))
    for act in (tt.get_states, lambda module: tt.set_states(module, {})):
        with pytest.raises(ValueError, match=message):
            act(net)
    net.zero_states()  # which needs no names


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


def run(net: Any, steps: int, first: float = 1.0) -> None:
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
