"""Multiply inputs by the weights of edges: ``product``, and its derivatives of any order.

Let ``sum w[e] x[t, source] g[t + d, target]`` be over all edges. The output is its derivative by
``g``, and the gradients of inputs and weights are those by ``x`` and ``w``. So each of the three
nodes of the graph has the other two for its backward pass, and no derivative ends anywhere.

Kernels compute them where tensors are plain memory on the CPU, PyTorch's operations elsewhere.
Whoever must see every operation (``torch.func``, forward mode, ``torch.compile``, an export) gets
those, and no node. What is 0 adds nothing, whatever the weight is, by either road.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tracetorch.core.torch_private import has_values, is_tracing, observed_by
from tracetorch.fuse import requested_backend
from tracetorch.fuse.runtime.allocation import large_empty
from tracetorch.fuse.runtime.machine_code import unavailable_reason
from tracetorch.fuse.runtime.written_kernels import run_written, shared_out
from tracetorch.snn.sparse import kernels
from tracetorch.snn.sparse.edge_plan import EdgePlan
from tracetorch.snn.sparse.kernels import LANES

_VALUES = 1 << 23  # of a chunk, where PyTorch's operations hold one for every edge and row
_LEAST_STEPS = 8  # of a task with delays, which reads ``reach`` more
_TASKS_PER_THREAD = 4
_PLAIN = (torch.float32, torch.float64)


class Wiring(NamedTuple):
    """Edges of a product, their delays, and how many inputs and outputs there are."""

    edges: Tensor
    """``[2, E]``, sources and targets."""
    delays: Tensor | None
    """``[E]``; ``None``: an edge leads to the same row, and ``reach`` is 0."""
    reach: int
    """The largest delay."""
    inputs: int
    outputs: int
    plan: EdgePlan | None
    """The edges by source; ``None`` where no kernel may run."""


def product(wiring: Wiring, window: Tensor, weight: Tensor) -> Tensor:
    """Return the outputs ``[steps, samples, outputs]``.

    Args:
        wiring: the edges.
        window: ``[reach + steps, samples, inputs]``.
        weight: ``[E]``, in the order of the edges and of the window's dtype.
    """
    if _is_observed(window, weight):
        return _forward(wiring, window, weight)
    return _Forward.apply(wiring, window, weight)  # type: ignore[no-any-return, no-untyped-call]


def _by_input(wiring: Wiring, grads: Tensor, weight: Tensor) -> Tensor:
    """Return the gradient of the window."""
    if _is_observed(grads, weight):
        return _plain_by_input(wiring, grads, weight)
    return _ByInput.apply(wiring, grads, weight)  # type: ignore[no-any-return, no-untyped-call]


def _by_weight(wiring: Wiring, window: Tensor, grads: Tensor) -> Tensor:
    """Return the gradient of the weights."""
    if _is_observed(window, grads):
        return _plain_by_weight(wiring, window, grads)
    return _ByWeight.apply(wiring, window, grads)  # type: ignore[no-any-return, no-untyped-call]


def _is_observed(*tensors: Tensor) -> bool:
    if torch.compiler.is_compiling() or observed_by(tensors) is not None:
        return True
    return not all(map(has_values, tensors))  # those of is_grads_batched have none


class _Forward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, wiring: Wiring, window: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(window, weight)
        ctx.wiring = wiring
        return _forward(wiring, window, weight)

    @staticmethod
    def backward(ctx: Any, grads: Tensor) -> tuple[Tensor | None, ...]:
        window, weight = ctx.saved_tensors
        _, by_window, by_weight = ctx.needs_input_grad
        return (
            None,
            _by_input(ctx.wiring, grads, weight) if by_window else None,
            _by_weight(ctx.wiring, window, grads) if by_weight else None,
        )


class _ByInput(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, wiring: Wiring, grads: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(grads, weight)
        ctx.wiring = wiring
        plan = _kernel_plan(wiring, grads, weight)
        if plan is None:
            return _plain_by_input(wiring, grads, weight)
        return _kernel_by_input(wiring, plan, grads, weight)

    @staticmethod
    def backward(ctx: Any, window: Tensor) -> tuple[Tensor | None, ...]:
        grads, weight = ctx.saved_tensors
        _, by_grads, by_weight = ctx.needs_input_grad
        return (
            None,
            product(ctx.wiring, window, weight) if by_grads else None,
            _by_weight(ctx.wiring, window, grads) if by_weight else None,
        )


class _ByWeight(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, wiring: Wiring, window: Tensor, grads: Tensor) -> Tensor:
        ctx.save_for_backward(window, grads)
        ctx.wiring = wiring
        plan = _kernel_plan(wiring, window, grads)
        if plan is None:
            return _plain_by_weight(wiring, window, grads)
        return _kernel_by_weight(wiring, plan, window, grads)

    @staticmethod
    def backward(ctx: Any, weight: Tensor) -> tuple[Tensor | None, ...]:
        window, grads = ctx.saved_tensors
        _, by_window, by_grads = ctx.needs_input_grad
        return (
            None,
            _by_input(ctx.wiring, grads, weight) if by_window else None,
            product(ctx.wiring, window, weight) if by_grads else None,
        )


# By kernels


def _kernel_plan(wiring: Wiring, *tensors: Tensor) -> EdgePlan | None:
    """Return what a kernel reads; ``None`` where there is none for these tensors."""
    dtype = tensors[0].dtype
    has_kernel = (
        not torch.compiler.is_compiling()
        and all(t.is_cpu and t.dtype == dtype and t.layout == torch.strided for t in tensors)
        and dtype in _PLAIN
        and observed_by(tensors) is None
        and requested_backend() != "eager"
        and unavailable_reason() is None
    )
    return wiring.plan if has_kernel else None


def _lists(plan: EdgePlan) -> tuple[str, str, tuple[Tensor, ...]]:
    """Return the end of a kernel's name, the letters of its lists, and these."""
    lists = (plan.starts, plan.order, plan.targets)
    return (
        ("", "lnn", lists) if plan.delays is None else ("_delayed", "lnnn", (*lists, plan.delays))
    )


def _forward(wiring: Wiring, window: Tensor, weight: Tensor) -> Tensor:
    plan = _kernel_plan(wiring, window, weight)
    if plan is None:
        return _plain_forward(wiring, window, weight)
    window, weight = window.contiguous(), weight.contiguous()
    samples, reach = window.shape[1], wiring.reach
    steps = len(window) - reach
    y = large_empty((steps, samples, wiring.outputs), window.dtype).zero_()
    # samples are tasks first, for each block of steps reads those before it too
    blocks = -(-_TASKS_PER_THREAD * torch.get_num_threads() // samples) if samples else 1
    per_task = max(-(-steps // blocks), _LEAST_STEPS if reach else 1, reach)
    blocks = -(-steps // per_task)
    name, letters, lists = _lists(plan)
    run_written(
        getattr(kernels, f"sparse_forward{name}"),
        "iiiiiirrr" + letters,
        window.dtype,
        blocks * samples,
        *(per_task, steps, samples, reach, wiring.inputs, wiring.outputs, window, weight, y),
        *lists,
        work=steps * samples * (wiring.inputs + len(weight) // 32),
    )
    return y


def _kernel_by_weight(wiring: Wiring, plan: EdgePlan, window: Tensor, grads: Tensor) -> Tensor:
    window, grads = window.contiguous(), grads.contiguous()
    steps, samples, _ = grads.shape
    total = large_empty((wiring.edges.shape[1],), window.dtype).zero_()
    per_task, tasks = shared_out(-(-wiring.inputs // LANES), 1)
    name, letters, lists = _lists(plan)
    run_written(
        getattr(kernels, f"sparse_by_weight{name}"),
        "iiiiiirrr" + letters,
        window.dtype,
        tasks,
        *(per_task * LANES, steps, samples, wiring.reach, wiring.inputs, wiring.outputs),
        *(window, grads, total, *lists),
        work=len(window) * samples * (wiring.inputs + len(total) // 32),
    )
    return total


def _kernel_by_input(wiring: Wiring, plan: EdgePlan, grads: Tensor, weight: Tensor) -> Tensor:
    grads, weight = grads.contiguous(), weight.contiguous()
    if not plan.is_sorted:
        weight = weight.index_select(0, plan.order)
    steps, samples, outputs = grads.shape
    length = steps + wiring.reach
    window = large_empty((length, samples, wiring.inputs), grads.dtype)
    name, letters, (starts, _, *lists) = _lists(plan)
    size = grads.dtype.itemsize
    run_written(
        getattr(kernels, f"sparse_by_input{name}"),
        "iiiiirrrl" + letters[2:],
        grads.dtype,
        -(-length // LANES) * samples,
        *(steps, samples, wiring.reach, wiring.inputs, outputs, grads, weight, window),
        *(starts, *lists),
        work=length * samples * len(weight),
        scratch=(outputs * (wiring.reach + LANES) * size, LANES * size),
    )
    return window


# By operations of PyTorch's


class _Chunk(NamedTuple):
    """Some edges of a wiring, and where each leads from and to at every step."""

    edges: slice
    sources: Tensor
    targets: Tensor
    times: Tensor | None
    """Time of the window, ``[steps, edges]``; ``None``: the step itself."""

    def inputs(self, window: Tensor) -> Tensor:
        """Return what each edge carries, ``[steps, samples, edges]``."""
        if self.times is None:
            return window.index_select(-1, self.sources)
        return window[self.times, :, self.sources.long()].movedim(-1, 1)

    def factors(self, inputs: Tensor, weight: Tensor) -> Tensor:
        """Return the weights, 0 where nothing would be carried by a weight that is not finite."""
        weight = weight[self.edges]
        return torch.where((inputs == 0) & ~weight.isfinite(), 0.0, weight)


def _chunks(wiring: Wiring, steps: int, samples: int) -> Iterator[_Chunk]:
    edges, delays = wiring.edges, wiring.delays
    count = edges.shape[1]
    if torch.compiler.is_compiling() or is_tracing():
        # a program is one whatever the batch is, and ONNX has indices of 64 bits alone
        size, edges = count, edges.long()
    else:
        size = max(1, _VALUES // max(1, steps * samples))
    for start in range(0, count, max(1, size)):
        some = slice(start, start + size)
        times = None
        if delays is not None:
            time = torch.arange(steps, device=edges.device).unsqueeze(1)
            times = time + (wiring.reach - delays[some].long())
        yield _Chunk(some, edges[0, some], edges[1, some], times)


def _plain_forward(wiring: Wiring, window: Tensor, weight: Tensor) -> Tensor:
    steps, samples = window.shape[0] - wiring.reach, window.shape[1]
    y = window.new_zeros(steps, samples, wiring.outputs)
    for chunk in _chunks(wiring, steps, samples):
        inputs = chunk.inputs(window)
        y = y.index_add(-1, chunk.targets, inputs * chunk.factors(inputs, weight))
    return y


def _plain_by_weight(wiring: Wiring, window: Tensor, grads: Tensor) -> Tensor:
    steps, samples, _ = grads.shape
    parts = [
        (chunk.inputs(window) * grads.index_select(-1, chunk.targets)).sum((0, 1))
        for chunk in _chunks(wiring, steps, samples)
    ]
    return torch.cat(parts) if parts else window.new_zeros(0)


def _plain_by_input(wiring: Wiring, grads: Tensor, weight: Tensor) -> Tensor:
    steps, samples, _ = grads.shape
    window = grads.new_zeros(steps + wiring.reach, samples, wiring.inputs)
    for chunk in _chunks(wiring, steps, samples):
        values = grads.index_select(-1, chunk.targets) * weight[chunk.edges]
        if chunk.times is None:
            window = window.index_add(-1, chunk.sources, values)
        else:
            every = torch.arange(samples, device=grads.device).unsqueeze(-1)
            places = (chunk.times.unsqueeze(1), every, chunk.sources.long())
            window = window.index_put(places, values, accumulate=True)
    return window
