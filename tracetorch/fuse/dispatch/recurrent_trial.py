"""Run a recurrent kernel on the first steps of a call before it is believed, beside the steps.

Once for a plan, a device and a size. Weights are rounded to few bits for it, so that sums over
spikes are exact in any order, and no spike is another one because of the order.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from tracetorch.cell import Cell
from tracetorch.fuse.ir.plan import RecurrentPlan
from tracetorch.fuse.step_results import check_step_results

SWITCH = "TRACETORCH_CHECK_KERNELS"
_TOLERANCE = 1e-3  # of the largest value; a product left out is wrong by more
Given = tuple[Tensor, Tensor, Tensor, Tensor | None]
Results = Sequence[Tensor]


def failure(
    plan: RecurrentPlan,
    cell: Cell,
    given: Given,
    states: Sequence[Tensor | None],
    kwargs: dict[str, Any],
    run: Callable[..., Results],
) -> str | None:
    """Return how the kernels of a plan fail on the first steps of a call, or ``None``.

    Args:
        plan: the plan.
        cell: whose ``step``.
        given: inputs, first outputs, weight and bias, as ``run_recurrence`` takes them.
        states: those before the first step, as ``step`` takes them.
        kwargs: the step kwargs.
        run: runs the kernels on ``given``, the states that there are, and the parameters.
    """
    x, first, weight, _ = given
    key = ("trial", x.device, x.shape[-1], len(first))
    is_off = os.environ.get(SWITCH) == "0"
    if is_off or (x.device.type == "cuda" and torch.cuda.is_current_stream_capturing()):
        return None
    if key not in plan.kernels:
        peak = float(weight.detach().abs().max())
        if not math.isfinite(peak):  # nothing can be compared yet
            return None
        with torch.set_grad_enabled(plan.has_backward):
            plan.kernels[key] = _compare(plan, cell, given, states, kwargs, run, peak)
    found: str | None = plan.kernels[key]
    return found


def _compare(
    plan: RecurrentPlan,
    cell: Cell,
    given: Given,
    states: Sequence[Tensor | None],
    kwargs: dict[str, Any],
    run: Callable[..., Results],
    peak: float,
) -> str | None:
    def copy(value: Tensor | None, always: bool = False) -> Tensor | None:
        if value is None:
            return None
        wanted = plan.has_backward and (always or value.requires_grad)
        return value.detach().clone().requires_grad_(wanted)

    x, first, weight, bias = given
    grid = 2.0 ** (math.frexp(peak or 1.0)[1] - 5)
    sample = [copy(x[: plan.checkpoint_interval + 2], True), copy(first), copy(weight), copy(bias)]
    for tensor in sample[2:]:
        if tensor is not None:
            tensor.data.div_(grid).round_().mul_(grid)
    before = [copy(state) for state in states]
    params = dict(zip(plan.program.params, map(copy, plan.program.tensors(kwargs)), strict=True))
    active = [state for state in before if state is not None]
    try:
        found = run(*sample, active, list(params.values()))
        named = {name: params.get(name, value) for name, value in kwargs.items()}
        expected = _steps(cell, sample, before, named)
        if not all(map(_is_close, found, expected)):
            return "its kernel for all steps gives other results than its steps"
        leaves = [each for each in (*sample, *active, *params.values()) if each is not None]
        leaves = [leaf for leaf in leaves if leaf.requires_grad]
        if plan.has_backward and not all(
            map(_is_close, _gradients(found, leaves), _gradients(expected, leaves))
        ):
            return "its kernel for all steps gives other gradients than its steps"
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        return f"its kernel for all steps fails with {type(error).__name__}: {str(error).strip()}"
    return None


def _steps(
    cell: Cell,
    given: Sequence[Any],
    states: Sequence[Tensor | None],
    kwargs: dict[str, Any],
) -> Results:
    """Return outputs, the last output and the final states, step by step."""
    x, first, weight, bias = given
    window, outputs = list(first.unbind()), []
    matrices = [weight] if weight.ndim == 2 else weight.unbind(-1)
    active: dict[str, Tensor] = {}
    for now in x.unbind():
        pairs = zip(window, matrices, strict=True)
        fed = sum((output @ matrix.t() for output, matrix in pairs), x.new_zeros(()))
        total = now + (fed if bias is None else fed + bias)
        made = cell.step(total, *states, **kwargs)
        output, active = check_step_results(cell, (total,), made)
        states = [active.get(name) for name in cell.states]
        outputs.append(output)
        window = [*window[1:], output]
    return [torch.stack(outputs), outputs[-1], *active.values()]


def _gradients(results: Results, leaves: Sequence[Tensor]) -> list[Tensor]:
    """Return the gradients of a sum of results, each with another weight."""
    smooth = [result for result in results if result.requires_grad]
    if not smooth:
        return [torch.zeros_like(leaf) for leaf in leaves]
    weights = [
        torch.linspace(-1, 1, each.numel(), dtype=each.dtype, device=each.device).view(each.shape)
        for each in smooth
    ]
    grads = torch.autograd.grad(smooth, leaves, weights, allow_unused=True)
    pairs = zip(grads, leaves, strict=True)
    return [torch.zeros_like(leaf) if grad is None else grad for grad, leaf in pairs]


def _is_close(found: Tensor, expected: Tensor) -> bool:
    peak = float(expected.detach().abs().nan_to_num(0.0, 0.0, 0.0).max())
    most = _TOLERANCE * peak
    return torch.allclose(found, expected, rtol=_TOLERANCE, atol=most, equal_nan=True)
