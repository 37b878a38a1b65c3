"""Run the loops of a linear recurrence on a small sample before they are believed.

As ``tracetorch/fuse/runtime/first_run.py``, but both directions at once: the kernels run over a
segment of a few samples and the beginning of the next, and so do eager steps and plain products, in
which autograd finds the gradients. The matrices are those of the call, rounded to few bits, so that
sums over spikes are exact in any order, and no spike is another one because of the order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from tracetorch.fuse.ir.plan import RecurrentPlan
from tracetorch.fuse.runtime import eager, first_run
from tracetorch.fuse.runtime.backend import Operands

_SAMPLES = 3
_BITS = 5  # of a weight


class Tensors(NamedTuple):
    """Tensors of a call: those of ``run_recurrence``, active states, and parameters in order."""

    x: Tensor
    first: Tensor
    weight: Tensor
    bias: Tensor | None
    states: Sequence[Tensor]
    params: Sequence[Tensor]


Run = Callable[[RecurrentPlan, Tensors], Sequence[Tensor]]


def failure_of(plan: RecurrentPlan, run: Run, given: Tensors) -> str | None:
    """Return how the kernels of a plan fail on a sample of a call, as a reason, or ``None``.

    Args:
        plan: of the loop.
        run: runs the kernels; returns outputs, the last output and final states.
        given: of the call.
    """

    def compare() -> str | None:
        # in one sample a membrane may lie where the order of a sum decides
        return difference(0) and difference(1)

    def difference(seed: int) -> str | None:
        sample = _sample_of(plan, given, seed)
        found, expected = _with_gradients(plan, run, sample), _with_gradients(plan, _steps, sample)
        names = [*plan.results, *(f"gradient {n}" for n in range(len(expected)))]
        return first_run.difference(names[: len(expected)], found, expected)

    name = f"the {plan.backend} kernels of a recurrence of program {plan.program.key}"
    return first_run.failure_in(compare, name, given.x.device)


def _sample_of(plan: RecurrentPlan, given: Tensors, seed: int) -> Tensors:
    """Return a sample: parts of the samples of a call, with other inputs."""
    learns = plan.has_backward
    few = (slice(_SAMPLES),) * (given.x.ndim - 2)
    generator = torch.Generator("cpu").manual_seed(seed)

    def part(tensor: Tensor, *place: slice) -> Tensor:
        return tensor.detach()[place].clone().requires_grad_(learns and tensor.requires_grad)

    x = part(given.x, slice(plan.checkpoint_interval + 2), *few)
    x.detach().copy_(first_run.random_like(given.x, x.shape, generator))
    weight, bias = part(given.weight), None if given.bias is None else part(given.bias)
    peak = float(weight.detach().abs().max())
    step = 2.0 ** (math.frexp(peak if math.isfinite(peak) else 1.0)[1] - _BITS)
    for each in (weight, bias):
        if each is not None:
            each.detach().nan_to_num_(0, 0, 0).div_(step).round_().mul_(step)
    return Tensors(
        *(x, part(given.first, slice(None), *few), weight, bias),
        [part(state, *few) for state in given.states],
        [part(param) for param in given.params],
    )


def _steps(plan: RecurrentPlan, given: Tensors) -> Sequence[Tensor]:
    """Return what the kernels return, by eager steps."""
    matrices = given.weight.unbind(-1) if given.weight.ndim == 3 else (given.weight,)
    outputs, states = list(given.first.unbind(0)), list(given.states)
    for x in given.x.unbind(0):
        total = x if given.bias is None else x + given.bias
        for matrix, past in zip(matrices, outputs[-len(matrices) :], strict=True):
            total = total + past @ matrix.T
        step = Operands([total.unsqueeze(0)], states, given.params)
        output, *states = eager.run_plan(plan, step)
        outputs.append(output[0])
    return [torch.stack(outputs[len(given.first) :]), outputs[-1], *states]


def _with_gradients(plan: RecurrentPlan, run: Run, sample: Tensors) -> list[Tensor]:
    """Return the results of a run on a sample, and all gradients."""
    results = run(plan, sample)
    ends = [r for r, smooth in zip(results, plan.smooth_results, strict=True) if smooth]
    ends = [end for end in ends if end.requires_grad]
    wanted = [
        each
        for each in (*sample[:4], *sample.states, *sample.params)
        if each is not None and each.requires_grad
    ]
    if not ends or not wanted:
        return [result.detach() for result in results]
    generator = torch.Generator("cpu").manual_seed(1)
    back = [torch.randn(e.shape, generator=generator, device="cpu").to(e) for e in ends]
    found = torch.autograd.grad(ends, wanted, back, allow_unused=True)
    pairs = zip(found, wanted, strict=True)
    gradients = [torch.zeros_like(w) if grad is None else grad for grad, w in pairs]
    return [*(result.detach() for result in results), *gradients]
