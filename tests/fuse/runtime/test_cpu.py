"""Compare large sequences, which are written past the caches, with the loop over steps."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

import tracetorch as tt
from tests import cases
from tracetorch import snn
from tracetorch.fuse.ir.kernel import PRIVATE
from tracetorch.fuse.ir.plan import Plan
from tracetorch.fuse.ir.schedule import backward_kernel, forward_kernel
from tracetorch.fuse.runtime import cpu
from tracetorch.fuse.runtime.allocation import cache_size, large_empty, layout_of


@pytest.fixture
def bypassed(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Make every sequence large; return which kernels bypass the caches."""
    found: Any = []
    aligned = cpu._are_aligned
    note = lambda *args: found.append(aligned(*args)) or found[-1]  # noqa: E731
    monkeypatch.setattr(cpu, "_are_aligned", note)
    monkeypatch.setattr(cpu, "cache_size", lambda: 0)
    return found


def gradients(layer: Any, x: torch.Tensor, **arguments: Any) -> dict[str, torch.Tensor]:
    """Return outputs, and every gradient by name."""
    layer.zero_grad()
    x = x.clone().requires_grad_()
    y = tt.unroll(layer, x, from_rest=True, **arguments)
    cases.weighted_sum(y).backward()
    found = {"output": y.detach(), "x": x.grad}
    found |= {name: p.grad.clone() for name, p in layer.named_parameters() if p.grad is not None}
    return found


# rows of whole cache lines, narrow ones side by side, many tasks; and rows that cannot bypass
@pytest.mark.parametrize(
    ("shape", "bypass"),
    [((5, 40, 512), True), ((9, 70, 16), True), ((5, 3, 1040), True), ((40, 21, 333), False)],
)
@pytest.mark.parametrize("name", ["LIF", "SLIF"])
def test_large_sequences_are_the_eager_ones(name, shape, bypass, bypassed) -> None:
    layer = cases.layer(name, shape[-1])
    x = cases.sequence(*shape, dtype=torch.float32)
    fused = gradients(layer, x)
    assert bypassed == [bypass]
    with tt.fuse.backend("eager"):
        stepped = gradients(layer, x)
    assert len(fused) > 2
    assert torch.equal(fused["output"], stepped["output"])
    torch.testing.assert_close(fused, stepped, rtol=1e-4, atol=1e-4)


def test_long_steps_write_short_runs_which_do_not_bypass(bypassed: list[bool]) -> None:
    layer = cases.layer("BSRLIF", 512).to(torch.float32)
    assert len(cases.trace_layer(layer, 2, torch.float32).forward.lines) > cpu._SHORT
    gradients(layer, cases.sequence(3, 2, 512, dtype=torch.float32))
    assert not bypassed


def test_more_steps_than_a_kernel_counts() -> None:
    assert layout_of(torch.empty(2**31 - 1, 1, 1, device="meta"), -1).lanes == 1
    with pytest.raises(ValueError, match=r"at most 2147483647 steps, got 2147483648\. Split"):
        layout_of(torch.empty(2**31, 1, 1, device="meta"), -1)


def test_small_sequences_do_not_bypass(bypassed, monkeypatch) -> None:
    monkeypatch.setattr(cpu, "cache_size", cache_size)
    size = cache_size() // 8
    for steps, times in ((-(-size // (4 * 512)), 1), (size // (4 * 512) - 1, 0)):
        bypassed.clear()
        with torch.no_grad():
            tt.unroll(snn.LIF(512), torch.zeros(steps, 1, 512), from_rest=True)
        assert len(bypassed) == times


def test_sequences_whose_runs_begin_within_a_cache_line_do_not_bypass() -> None:
    def aligned(neurons: int, shift: int = 0) -> bool:
        x = large_empty((9 * neurons + shift,), torch.float32)[shift:].view(9, 1, neurons)
        return cpu._are_aligned([x], cpu._grid(layout_of(x, -1), grouped=False))

    assert aligned(512)
    assert not aligned(512, shift=1)
    assert not aligned(511)


# narrow rows side by side with a rest, one row, rows of several tiles, neurons that are not last
@pytest.mark.parametrize(
    ("shape", "dim"),
    [((5, 7, 3), -1), ((9, 70, 16), -1), ((4, 1, 1), -1), ((3, 3, 1040), -1), ((6, 5, 3, 4), 1)],
)
def test_one_value_for_all_is_read_as_so_many(shape, dim, monkeypatch) -> None:
    """The gradient of a sum, and a constant input, have no memory but one value."""
    layer = cases.layer("SLIF", shape[dim if dim < 0 else dim + 1], dim=dim).to(torch.float32)
    one = torch.tensor([9.0, 1.3])[1:]  # behind another in its memory
    read: Any = []
    original = cpu._sequence
    note = lambda *args: read.append(original(*args)[0]) or original(*args)  # noqa: E731

    def run(x: torch.Tensor) -> list[torch.Tensor]:
        grad, x = x, x.detach().requires_grad_()
        y = tt.unroll(layer, x, from_rest=True)
        assert y.any()
        return [y, *torch.autograd.grad(y, [x, *layer.parameters()], grad)]

    monkeypatch.setattr(cpu, "_sequence", note)
    expected = run(torch.full(shape, 1.3))
    if one.expand(shape).is_contiguous():
        read.clear()
    assert not read
    found = run(one.expand(shape))
    assert len(read) == 3
    layout = layout_of(torch.empty(shape), dim if dim < 0 else dim - len(shape) + 1)
    assert max(each.numel() for each in read) == cpu._grid(layout, grouped=True).columns
    assert all(map(torch.equal, found, expected))


@pytest.mark.parametrize("name", ["LIF", "BSRLIF"])
def test_scratch_holds_the_states_of_a_segment(name: str) -> None:
    """As many values as the evaluator gives each lane, whose buffers have the same shapes."""
    program = cases.trace_layer(cases.layer(name, 3), 2, torch.float32)
    plan = Plan(program, "cpu", -1, (), True, program.inputs, program.params)
    for kernel in (forward_kernel(plan, in_chunks=True), backward_kernel(plan)):
        sizes = [5 + place for place in range(len(kernel.sizes))]
        by_name = {size.name: value for size, value in zip(kernel.sizes, sizes, strict=True)}
        wanted = 0
        for buffer in kernel.buffers:
            if buffer.role in PRIVATE:
                extents = [e if isinstance(e, int) else by_name[str(e)] for e in buffer.shape[:-1]]
                wanted += math.prod(extents)
        assert cpu.scratch_values(cpu.own_buffers(kernel), sizes, 64) == 64 * wanted
    # of the backward pass: the past states at every step between two checkpoints
    assert wanted % by_name["every"] == 0
    assert wanted >= by_name["every"] * len(plan.recomputed) > 0
