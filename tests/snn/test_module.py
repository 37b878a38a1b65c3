import math
from typing import Any

import pytest
import torch
from torch import nn

import tracetorch as tt
from tests.cases import layer, sequence, stepped
from tests.refusals import unchanged
from tracetorch import snn


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


@pytest.mark.filterwarnings("ignore")  # warnings of PyTorch's compiler
@pytest.mark.parametrize("fullgraph", [True, False])
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
