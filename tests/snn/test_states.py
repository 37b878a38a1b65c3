"""States by name, committed by a pass at once, zeroed and detached in nested modules."""

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load, save
from torch import nn

import tracetorch as tt
from tests.cases import examples, few, layer, module, sequence, stepped, through_save
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
    caplog.clear()
    stream = tt.Stream(network().eval())
    for _ in range(2):
        stream.unroll(torch.full((4, 1, 3), torch.nan))
    assert caplog.text.count("1.mem is NaN") == len(caplog.records) == 1


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


class Counting(snn.TTModule):
    def __init__(self, *parts: nn.Module, registered: bool = False) -> None:
        super().__init__()
        self.parts: Any = nn.ModuleList(parts) if registered else list(parts)
        self.zeroed = self.detached = 0

    def zero_states(self, *, where: torch.Tensor | None = None) -> None:
        super().zero_states(where=where)
        self.zeroed += 1

    def detach_states(self) -> None:
        super().detach_states()
        self.detached += 1


def nested(cell: nn.Module, registered: bool) -> list[Any]:
    """Return a root, and what is below it, by several ways."""
    shared = Counting(cell, registered=registered)
    left = Counting(shared, registered=registered)
    right = Counting(shared, nn.Sequential(shared), registered=registered)
    return [
        Counting(left, nn.Sequential(right), shared, registered=registered),
        left,
        right,
        shared,
    ]


def test_a_nested_override_runs_exactly_once() -> None:
    for number in (1, 2):
        every = nested(snn.LIF(2), registered=False)
        every[0].zero_states() if number == 1 else tt.zero_states(nn.Sequential(every[0]))
        every[0].detach_states()
        assert [(each.zeroed, each.detached) for each in every] == [(1, 1)] * 4


@pytest.mark.one_in(2)
@pytest.mark.filterwarnings("ignore")  # warnings of PyTorch's compiler
@pytest.mark.parametrize("fullgraph", few([True, False], True))
def test_a_nested_override_runs_exactly_once_under_compile(fullgraph: bool) -> None:
    """Of registered modules, which are all that ``torch.compile`` reaches."""
    cell = snn.LIF(2)
    every = nested(cell, registered=True)
    root, around = every[0], nn.Sequential(every[0])
    counts = lambda: [(each.zeroed, each.detached) for each in every]  # noqa: E731

    def both(mask: torch.Tensor) -> None:
        root.detach_states()
        tt.zero_states(around, where=mask)

    cell(torch.ones(2, 2))
    torch.compiler.reset()
    act = torch.compile(both, backend="eager", fullgraph=fullgraph)
    act(torch.tensor([True, False]))
    assert counts() == [(1, 1)] * 4
    assert cell.mem.tolist() == [[0.0, 0.0], [1.0, 1.0]]
    act(torch.tensor([False, True]))
    torch.compile(root.zero_states, backend="eager", fullgraph=fullgraph)()
    assert counts() == [(3, 2)] * 4
    assert cell.mem is None
    root.zero_states()  # the compiled call does not affect the next one
    assert counts() == [(4, 2)] * 4
    torch.compiler.reset()


def test_override_without_the_where_argument() -> None:
    class Plain(snn.TTModule):
        def __init__(self) -> None:
            super().__init__()
            self.cell = snn.LIF(3)

        def zero_states(self) -> None:  # type: ignore[override]  # it lacks where=
            super().zero_states()

    net: Any = nn.Sequential(Plain(), snn.LIF(3))
    net[0].cell(torch.ones(2, 3))
    net[1](torch.ones(2, 3))
    message = r"Plain.zero_states, at '0', does not take where="
    with unchanged(net), pytest.raises(TypeError, match=message):
        tt.zero_states(net, where=torch.tensor([True, False]))
    tt.zero_states(net)
    assert tt.get_states(net) == {}


def test_failing_override_does_not_affect_the_next_call() -> None:
    class Failing(snn.TTModule):
        def zero_states(self, *, where: torch.Tensor | None = None) -> None:
            raise RuntimeError("no")

    cell = snn.LIF(2)
    with pytest.raises(RuntimeError, match="no"):
        tt.zero_states(nn.Sequential(Failing()))
    cell(torch.ones(1, 2))
    tt.zero_states(nn.Sequential(cell))
    assert cell.mem is None


@pytest.mark.parametrize("name", ["LIF", "BSRLIF", "SRReadout"])
def test_reset_sample_equals_a_fresh_one(name: str) -> None:
    x = sequence(8, 4, 3)
    mask = torch.tensor([True, False, False, True])
    neurons, fresh, untouched = (layer(name, 3).double() for _ in range(3))
    expected_fresh, expected_rest = stepped(fresh, x[4:]), stepped(untouched, x)[4:]
    stepped(neurons, x[:4])
    neurons.zero_states(where=mask)
    out = stepped(neurons, x[4:])
    assert torch.equal(out[:, mask], expected_fresh[:, mask])
    assert torch.equal(out[:, ~mask], expected_rest[:, ~mask])


def test_mask_cuts_the_graph_of_reset_samples_only() -> None:
    neurons, idle = snn.SLIF(3), snn.LIF(3)
    x = torch.rand(2, 3, requires_grad=True)
    neurons(x)
    tt.zero_states(nn.ModuleList([neurons, idle]), where=torch.tensor([True, False]))
    assert idle.mem is None
    assert neurons.mem[0].tolist() == [0.0, 0.0, 0.0]
    (neurons.mem + neurons.syn).sum().backward()
    assert not bool(x.grad[0].any())
    assert bool((x.grad[1] != 0).all())


def test_gradient_is_finite_where_a_reset_sample_held_nan() -> None:
    neurons = snn.Readout(2)
    neurons.mem = torch.tensor([[math.nan, math.inf], [1.0, 1.0]], requires_grad=True)
    held = neurons.mem
    neurons.zero_states(where=torch.tensor([True, False]))
    out = neurons(torch.ones(2, 2))
    out.sum().backward()
    assert bool(torch.isfinite(out).all())
    assert held.grad.tolist() == [[0.0, 0.0], [pytest.approx(0.9)] * 2]
    assert bool(torch.isfinite(neurons.raw_beta.grad).all())


MASKS = [
    ([True, False], TypeError, "where must be a boolean tensor, got list"),
    (torch.tensor([1, 0]), TypeError, "where must be a boolean tensor, got a tensor of torch"),
    (torch.tensor([[True, False]]), ValueError, r"one dimension, the batch, got shape \[1, 2"),
    (torch.tensor(True), ValueError, r"one dimension, the batch, got shape \[\]"),
    (torch.tensor([True] * 3), ValueError, r"LIF\(2\), holds mem for a batch of 2.* has 3 entries"),
]


@pytest.mark.parametrize(("mask", "error", "message"), MASKS)
def test_mask_that_does_not_fit_changes_nothing(mask, error, message):
    net = nn.ModuleDict({"a": snn.LIF(2), "b": snn.LIF(2)})
    net["a"](torch.ones(3, 2))
    net["b"](torch.ones(2, 2))
    with unchanged(net), pytest.raises(error, match=message):
        tt.zero_states(net, where=mask)


class CallingOverrides(snn.TTModule):
    def __init__(self) -> None:
        super().__init__()
        self.cell, self.block = snn.LIF(2), snn.LIF(2)

    def run(self) -> None:
        self.cell(torch.ones(2, 2))
        self.block(torch.ones(2, 2))

    def zero_states(self, *, where: torch.Tensor | None = None) -> None:
        super().zero_states(where=where)
        if where is not None:
            self.detach_states()
            self.block.zero_states()

    def detach_states(self) -> None:
        super().detach_states()
        if self.cell.mem is not None:
            self.cell.zero_states(where=torch.tensor([False, True]))


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_other_calls_inside_an_override_run_independently(depth: int) -> None:
    busy = CallingOverrides()
    root: nn.Module = busy
    for _ in range(depth):
        root = Counting(root)
    busy.run()
    tt.zero_states(root, where=torch.tensor([True, False]))
    assert busy.block.mem is None
    assert not busy.cell.mem.requires_grad
    assert busy.cell.mem.tolist() == [[0.0, 0.0], [0.0, 0.0]]
    busy.run()
    tt.detach_states(root)
    assert busy.cell.mem[1].tolist() == [0.0, 0.0]
    with pytest.raises(ValueError, match="the mask has 3 entries"):
        tt.zero_states(root, where=torch.ones(3, dtype=torch.bool))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # warnings of PyTorch's compiler
def test_mask_and_input_are_checked_under_compile() -> None:
    net: Any = nn.Sequential(snn.LIF(2))
    torch.compiler.reset()
    step = torch.compile(net, backend="eager")
    step(torch.ones(2, 2))
    before = net[0].mem.clone()
    with pytest.raises(ValueError, match=r"holds the state mem of shape \[2, 2\]"):
        step(torch.rand(5, 2))
    compiled = torch.compile(lambda where: tt.zero_states(net, where=where), backend="eager")
    masks: list[list[Any]] = [[True], [True, False, True], [[True, False]], [1, 0]]
    for mask in masks:
        with pytest.raises((ValueError, TypeError), match=r"mask has|one dimension|boolean"):
            compiled(torch.tensor(mask))
        assert torch.equal(net[0].mem, before)
    compiled(torch.tensor([True, False]))
    assert not bool(net[0].mem[0].any())
    assert torch.equal(net[0].mem[1], before[1])
    torch.compiler.reset()
