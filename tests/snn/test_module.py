import math
from typing import Any

import pytest
import torch
from torch import nn

import tracetorch as tt
from tests.cases import layer, sequence, stepped
from tracetorch import snn


class Counting(snn.TTModule):
    def __init__(self, *parts: nn.Module) -> None:
        super().__init__()
        self.parts: Any = list(parts)
        self.zeroed = self.detached = 0

    def zero_states(self, *, where: torch.Tensor | None = None) -> None:
        super().zero_states(where=where)
        self.zeroed += 1

    def detach_states(self) -> None:
        super().detach_states()
        self.detached += 1


def test_a_nested_override_runs_exactly_once() -> None:
    shared = Counting(snn.LIF(2))
    left, right = Counting(shared), Counting(shared, nn.Sequential(shared))
    root = Counting(left, nn.Sequential(right), shared)
    for act in (root.zero_states, lambda: tt.zero_states(nn.Sequential(root))):
        for module in (root, left, right, shared):
            module.zeroed = module.detached = 0
        act()
        root.detach_states()
        for module in (root, left, right, shared):
            assert (module.zeroed, module.detached) == (1, 1)


class CountingRegistered(Counting):
    """The same for ``torch.compile``, which reaches registered modules only."""

    def __init__(self, *parts: nn.Module) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)


@pytest.mark.filterwarnings("ignore")  # warnings of PyTorch's compiler
@pytest.mark.parametrize("fullgraph", [True, False])
def test_a_nested_override_runs_exactly_once_under_compile(fullgraph: bool) -> None:
    cell = snn.LIF(2)
    shared = CountingRegistered(cell)
    left = CountingRegistered(shared)
    right = CountingRegistered(shared, nn.Sequential(shared))
    root = CountingRegistered(left, nn.Sequential(right), shared)
    around = nn.Sequential(root)
    counts = lambda: [(m.zeroed, m.detached) for m in (root, left, right, shared)]  # noqa: E731

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


class Plain(snn.TTModule):
    def __init__(self) -> None:
        super().__init__()
        self.cell = snn.LIF(3)

    def zero_states(self) -> None:  # type: ignore[override]  # it lacks where=
        super().zero_states()


def test_override_without_the_where_argument() -> None:
    net: Any = nn.Sequential(Plain(), snn.LIF(3))
    net[0].cell(torch.ones(2, 3))
    net[1](torch.ones(2, 3))
    before = tt.get_states(net)
    with pytest.raises(TypeError, match=r"Plain.zero_states, at '0', does not take where="):
        tt.zero_states(net, where=torch.tensor([True, False]))
    after = tt.get_states(net)
    assert all(torch.equal(before[name], after[name]) for name in before)
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
    neurons = snn.SLIF(3)
    x = torch.rand(2, 3, requires_grad=True)
    neurons(x)
    neurons.zero_states(where=torch.tensor([True, False]))
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


def test_none_stays_none_under_a_mask() -> None:
    net: Any = nn.Sequential(snn.LIF(3), snn.LIF(3))
    net[0](torch.ones(2, 3))
    tt.zero_states(net, where=torch.tensor([True, True]))
    assert net[1].mem is None
    assert net[0].mem.tolist() == [[0.0] * 3] * 2


@pytest.mark.parametrize(
    ("mask", "error", "message"),
    [
        ([True, False], TypeError, "where must be a boolean tensor, got list"),
        (torch.tensor([1, 0]), TypeError, "where must be a boolean tensor, got a tensor of torch"),
        (torch.tensor([[True, False]]), ValueError, r"one dimension, the batch, got shape \[1, 2"),
        (torch.tensor(True), ValueError, r"one dimension, the batch, got shape \[\]"),
        (torch.tensor([True] * 3), ValueError, r"layer 'b', LIF\(2\), holds mem for a batch of 2"),
    ],
)
def test_mask_that_does_not_fit_changes_nothing(mask, error, message):
    net = nn.ModuleDict({"a": snn.LIF(2), "b": snn.LIF(2)})
    net["a"](torch.ones(3, 2))
    net["b"](torch.ones(2, 2))
    before = tt.get_states(net)
    with pytest.raises(error, match=message):
        tt.zero_states(net, where=mask)
    assert all(torch.equal(before[name], state) for name, state in tt.get_states(net).items())


@pytest.mark.parametrize(("dim", "shape"), [(-1, (3,)), (0, (3, 2)), (-2, (3, 2))])
def test_mask_needs_a_batch_dimension_before_the_neurons(dim: int, shape: tuple[int, ...]) -> None:
    neurons = snn.LIF(3, dim=dim)
    neurons(torch.ones(shape))
    with pytest.raises(ValueError, match="has its neurons at dimension 0, where the mask looks"):
        neurons.zero_states(where=torch.tensor([True, False, False]))


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
def test_mask_is_checked_under_compile() -> None:
    net: Any = nn.Sequential(snn.LIF(2))
    net(torch.ones(2, 2))
    before = net[0].mem.clone()
    torch.compiler.reset()
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


@pytest.mark.filterwarnings("ignore")
def test_input_error_is_raised_under_compile() -> None:
    net = nn.Sequential(nn.Linear(3, 2), snn.LIF(2))
    torch.compiler.reset()
    compiled = torch.compile(net, backend="eager")
    compiled(torch.rand(2, 3))
    with pytest.raises(ValueError, match=r"holds the state mem of shape \[2, 2\]"):
        compiled(torch.rand(5, 3))
    torch.compiler.reset()
