"""Run a loop of a linear recurrence on a small sample before it is believed, beside eager steps.

As ``tracetorch/fuse/runtime/first_run.py``: each kernel the first time that it runs on a device,
over a segment and the beginning of the next. All samples of the call are there, for the block of a
program follows from how many there are. The matrices are those of the call, rounded to few bits, so
that sums over spikes are exact in any order, and no spike is another one because of the order.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor

from tracetorch.fuse.dispatch.operators import incoming_gradients
from tracetorch.fuse.ir.plan import RecurrentPlan
from tracetorch.fuse.runtime import eager, first_run, recurrence
from tracetorch.fuse.runtime.backend import Grads, Operands

_BITS = 5  # of a weight


class Tensors(NamedTuple):
    """Tensors of a call: those of ``run_recurrence``, active states, and parameters in order.

    Of a backward pass ``x`` is what every step was given in all, and there is no bias.
    """

    x: Tensor
    first: Tensor
    weight: Tensor
    bias: Tensor | None
    states: Sequence[Tensor]
    params: Sequence[Tensor]


def failure_of(
    plan: RecurrentPlan, kind: type[recurrence.Loop], given: Tensors, grads: Grads | None = None
) -> str | None:
    """Return how a kernel of a plan fails on a sample, or ``None``; with ``grads``, backward."""

    def difference(seed: int) -> str | None:
        sample = _sample_of(plan, given, seed)
        if grads is not None:
            return _compare_gradients(plan, kind, sample, grads)
        found, _ = recurrence.forward(kind(plan), *sample)
        with torch.no_grad():
            return first_run.difference(plan.results, found, _steps(plan, sample))

    def compare() -> str | None:
        # in one sample a membrane may lie where the order of a sum decides
        with _full_precision():
            return difference(0) and difference(1)

    name = "forward" if grads is None else "backward"
    what = f"the {plan.backend} kernel {name} of a recurrence of program {plan.program.key}"
    return first_run.failure_in(compare, what, given.x.device)


@contextlib.contextmanager
def _full_precision() -> Iterator[None]:
    """Multiply without TF32, which kernels never use; for all threads, so only where it is on."""
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    if before in ("none", "ieee"):
        yield
        return
    matmul.fp32_precision = "ieee"
    try:
        yield
    finally:
        matmul.fp32_precision = before


def _sample_of(plan: RecurrentPlan, given: Tensors, seed: int) -> Tensors:
    """Return a sample: the first steps of a call, with other inputs."""

    def copied(tensors: Sequence[Tensor]) -> list[Tensor]:
        return [each.detach().clone() for each in tensors]

    generator = torch.Generator("cpu").manual_seed(seed)
    (x,) = copied([given.x[: plan.checkpoint_interval + 2]])
    x.copy_(first_run.random_like(given.x, x.shape, generator))
    weight = given.weight.detach()
    peak = float(weight.abs().max())
    step = 2.0 ** (math.frexp(peak if math.isfinite(peak) else 1.0)[1] - _BITS)

    def rounded(tensor: Tensor) -> Tensor:
        return tensor.detach().nan_to_num(0, 0, 0).div(step).round().mul(step)

    bias = None if given.bias is None else rounded(given.bias)
    states, params = copied(given.states), copied(given.params)
    return Tensors(x, given.first.detach().clone(), rounded(weight), bias, states, params)


def _steps(plan: RecurrentPlan, given: Tensors, *, is_sum: bool = False) -> list[Tensor]:
    """Return the results by eager steps; where ``is_sum``, ``x`` has the connection's part too."""
    matrices = given.weight.unbind(-1) if given.weight.ndim == 3 else (given.weight,)
    outputs, states = list(given.first.unbind(0)), list(given.states)
    for x in given.x.unbind(0):
        fed = x.new_zeros(()) if given.bias is None else given.bias
        for matrix, past in zip(matrices, outputs[-len(matrices) :], strict=True):
            fed = fed + past @ matrix.T
        total = x + (fed - fed.detach() if is_sum else fed)
        step = Operands([total.unsqueeze(0)], states, given.params)
        output, *states = eager.run_plan(plan, step)
        outputs.append(output[0])
    return [torch.stack(outputs[len(given.first) :]), outputs[-1], *states]


def gradients(plan: RecurrentPlan, given: Tensors, grads: Grads) -> recurrence.Gradients:
    """Return what a backward kernel computes, by eager steps."""
    program, count = plan.program, len(given.states)
    names = (*program.states, *program.params)
    wanted = {*plan.trained, *(n for n in program.states if f"s_{n}" in plan.reached)}
    leaves = [each.detach().requires_grad_() for each in given[:3]]
    leaves += [
        each.detach().requires_grad_(name in wanted)
        for name, each in zip(names, (*given.states, *given.params), strict=True)
    ]
    with torch.enable_grad():
        rest = leaves[3 : 3 + count], leaves[3 + count :]
        x, first, weight = leaves[:3]
        results = _steps(plan, Tensors(x, first, weight, None, *rest), is_sum=True)
        found = eager.pull_back(results, grads, leaves)
    pairs = zip(leaves, found, strict=True)
    every = [torch.zeros_like(leaf) if grad is None else grad for leaf, grad in pairs]
    d_params = dict(zip(program.params, every[3 + count :], strict=True))
    d_x, d_first, d_weight = every[:3]
    return recurrence.Gradients(
        d_x, d_first, d_weight if plan.needs_weight_gradient else None, every[3 : 3 + count],
        {name: d_params[name] for name in plan.trained},
    )  # fmt: skip


def _compare_gradients(
    plan: RecurrentPlan, kind: type[recurrence.Loop], sample: Tensors, grads: Grads
) -> str | None:
    """Compare what a backward kernel returns with autograd of eager steps."""
    whole = cast(RecurrentPlan, plan.whole or plan)
    results, (x, checkpoints) = recurrence.forward(kind(whole), *sample)
    generator = torch.Generator("cpu").manual_seed(1)
    back = [
        None if grad is None else torch.randn(r.shape, generator=generator, device="cpu").to(r)
        for r, grad in zip(results, grads, strict=True)
    ]
    kept = sample._replace(x=x, bias=None)
    incoming = incoming_gradients(x, back, 1 + len(sample.states))
    rest = sample.first, sample.weight, sample.states, sample.params, incoming
    found = _named(plan, recurrence.backward(kind(plan), x, checkpoints, *rest))
    expected = _named(plan, gradients(plan, kept, back))
    names = [f"the gradient of {name}" for name in expected]
    return first_run.difference(names, list(found.values()), list(expected.values()))


def _named(plan: RecurrentPlan, given: recurrence.Gradients) -> dict[str, Tensor]:
    """Return the gradients that there are, by name."""
    found: dict[str, Tensor] = {}
    if "x" in plan.reached:
        found |= {"x": given.x, "the first outputs": given.first}
        if given.weight is not None:
            found["the weight"] = given.weight
    states = zip(plan.program.states, given.states, strict=True)
    found |= {name: grad for name, grad in states if f"s_{name}" in plan.reached}
    return found | {name: given.params[name] for name in plan.trained}
