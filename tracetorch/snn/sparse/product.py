"""Multiply inputs by the weights of edges: ``product``, and its derivatives of any order.

Let ``sum w[e] x[t, source] g[t + d, target]`` be over all edges. The output is its derivative by
``g``, the gradients of inputs and weights are those by ``x`` and ``w``: so the backward pass of
each of the three has the other two. Whoever must see every operation (``torch.func``, forward mode,
``torch.compile``, an export) gets PyTorch's. What is 0 adds nothing, by either road.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tracetorch.core.torch_private import has_values, is_tracing, noticed, observed_by
from tracetorch.fuse import requested_backend
from tracetorch.fuse.runtime.allocation import large_empty
from tracetorch.fuse.runtime.machine_code import unavailable_reason
from tracetorch.fuse.runtime.sparse_segments import Edges
from tracetorch.fuse.runtime.threads import run_written, shared_out
from tracetorch.snn.sparse import product_kernels
from tracetorch.snn.sparse.product_kernels import LANES

_VALUES = 1 << 23  # of a chunk, where PyTorch's operations hold one for every edge and row
_LEAST_STEPS = 8  # of a task with delays, which reads ``reach`` more
_TASKS_PER_THREAD = 4
_PLAIN = (torch.float32, torch.float64)


class EdgeWiring(NamedTuple):
    """Edges of a product, their delays, and how many inputs and outputs there are."""

    edges: Tensor  # ``[2, E]``, sources and targets
    delays: Tensor | None  # ``[E]``; ``None``: an edge leads to the same row, and ``reach`` is 0
    reach: int  # the largest delay
    inputs: int
    outputs: int
    plan: Edges | None  # the edges by source; ``None`` where no kernel may run


def product(wiring: EdgeWiring, window: Tensor, weight: Tensor) -> Tensor:
    """Return ``[steps, samples, outputs]`` of a window ``[reach + steps, samples, inputs]``.

    The weight is ``[E]``, in the order of the edges and of the window's dtype.
    """
    return _derivative(_GRADS, wiring, window, weight)


# what the sum is of, and so what a derivative of it is by
_WINDOW, _WEIGHT, _GRADS = range(3)


def _derivative(by: int, wiring: EdgeWiring, *others: Tensor) -> Tensor:
    """Return the derivative of the sum by one of the three, from the others in their order."""
    observed = torch.compiler.is_compiling() or observed_by(others) is not None
    if observed or not all(map(has_values, others)):  # those of is_grads_batched have none
        return _PLAINLY[by](wiring, *others)
    return _Derivative.apply(by, wiring, *others)  # type: ignore[no-any-return, no-untyped-call]


class _Derivative(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, by: int, wiring: EdgeWiring, *others: Tensor) -> Tensor:
        ctx.save_for_backward(*others, *noticed(wiring.edges, wiring.delays))
        ctx.by, ctx.wiring = by, wiring
        plan = _kernel_plan(wiring, *others)
        if plan is None:
            return _PLAINLY[by](wiring, *others)
        return _BY_KERNEL[by](wiring, plan, *(each.contiguous() for each in others))

    @staticmethod
    def backward(ctx: Any, grads: Tensor) -> tuple[Tensor | None, ...]:
        known = list(ctx.saved_tensors[:2])
        known.insert(ctx.by, grads)
        found: list[Tensor | None] = [None, None]
        wanted = iter(ctx.needs_input_grad[2:])
        for one in sorted({_WINDOW, _WEIGHT, _GRADS} - {ctx.by}):
            others = known[:one] + known[one + 1 :]
            found.append(_derivative(one, ctx.wiring, *others) if next(wanted) else None)
        return tuple(found)


# By kernels


def _kernel_plan(wiring: EdgeWiring, *tensors: Tensor) -> Edges | None:
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


def _run(
    write: Callable[..., None],
    plan: Edges,
    tasks: int,
    sizes: tuple[int, ...],
    *arrays: Tensor,
    work: int,
    scratch: tuple[int, ...] = (),
) -> None:
    """Run a kernel; the lists of edges come behind its sizes and arrays."""
    lists = [plan.targets, *(each for each in (plan.order, plan.delays) if each is not None)]
    letters = "i" * len(sizes) + "r" * len(arrays) + "l" + "n" * len(lists)
    given: tuple[int | Tensor, ...] = (*sizes, *arrays, plan.starts, *lists)
    dtype, form = arrays[0].dtype, (plan.delays is not None, plan.order is not None)
    run_written(write, letters, dtype, tasks, *given, work=work, scratch=scratch, form=form)


def _kernel_forward(wiring: EdgeWiring, plan: Edges, window: Tensor, weight: Tensor) -> Tensor:
    samples, reach = window.shape[1], wiring.reach
    steps = len(window) - reach
    y = large_empty((steps, samples, wiring.outputs), window.dtype).zero_()
    # samples are tasks first, for each block of steps reads those before it too
    blocks = -(-_TASKS_PER_THREAD * torch.get_num_threads() // samples) if samples else 1
    per_task = max(-(-steps // blocks), _LEAST_STEPS if reach else 1, reach)
    tasks = -(-steps // per_task) * samples
    sizes = per_task, steps, samples, reach, wiring.inputs, wiring.outputs
    work = steps * samples * (wiring.inputs + len(weight) // 32)
    _run(product_kernels.sparse_forward, plan, tasks, sizes, window, weight, y, work=work)
    return y


def _kernel_by_weight(wiring: EdgeWiring, plan: Edges, window: Tensor, grads: Tensor) -> Tensor:
    steps, samples, _ = grads.shape
    total = large_empty((wiring.edges.shape[1],), window.dtype).zero_()
    per_task, tasks = shared_out(-(-wiring.inputs // LANES), 1)
    sizes = per_task * LANES, steps, samples, wiring.reach, wiring.inputs, wiring.outputs
    work = len(window) * samples * (wiring.inputs + len(total) // 32)
    _run(product_kernels.sparse_by_weight, plan, tasks, sizes, window, grads, total, work=work)
    return total


def _kernel_by_window(wiring: EdgeWiring, plan: Edges, weight: Tensor, grads: Tensor) -> Tensor:
    if plan.order is not None:
        weight = weight.index_select(0, plan.order)
    steps, samples, outputs = grads.shape
    length, size = steps + wiring.reach, grads.dtype.itemsize
    window = large_empty((length, samples, wiring.inputs), grads.dtype)
    _run(
        product_kernels.sparse_by_window,
        plan,
        -(-length // LANES) * samples,
        (steps, samples, wiring.reach, wiring.inputs, outputs),
        *(grads, weight, window),
        work=length * samples * len(weight),
        scratch=(outputs * (wiring.reach + LANES) * size, LANES * size),
    )
    return window


# By operations of PyTorch's


class _EdgeChunk(NamedTuple):
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


def _chunks(wiring: EdgeWiring, steps: int, samples: int) -> Iterator[_EdgeChunk]:
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
        yield _EdgeChunk(some, edges[0, some], edges[1, some], times)


def _plain_forward(wiring: EdgeWiring, window: Tensor, weight: Tensor) -> Tensor:
    steps, samples = window.shape[0] - wiring.reach, window.shape[1]
    y = window.new_zeros(steps, samples, wiring.outputs)
    for chunk in _chunks(wiring, steps, samples):
        inputs = chunk.inputs(window)
        y = y.index_add(-1, chunk.targets, inputs * chunk.factors(inputs, weight))
    return y


def _plain_by_weight(wiring: EdgeWiring, window: Tensor, grads: Tensor) -> Tensor:
    steps, samples, _ = grads.shape
    parts = [
        (chunk.inputs(window) * grads.index_select(-1, chunk.targets)).sum((0, 1))
        for chunk in _chunks(wiring, steps, samples)
    ]
    return torch.cat(parts) if parts else window.new_zeros(0)


def _plain_by_window(wiring: EdgeWiring, weight: Tensor, grads: Tensor) -> Tensor:
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


_PLAINLY: tuple[Callable[..., Tensor], ...] = (_plain_by_window, _plain_by_weight, _plain_forward)
_BY_KERNEL: tuple[Callable[..., Tensor], ...] = (
    *(_kernel_by_window, _kernel_by_weight),
    _kernel_forward,
)
