"""Runs the printed time loops on a GPU: layout, memory, launches around the Triton kernels.

Under ``TRITON_INTERPRET=1`` they run on tensors of the CPU, slowly, to be tested.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tracetorch.fuse.backends import is_interpreted
from tracetorch.fuse.cache import module_of
from tracetorch.fuse.layout import Layout, layout_of, strided
from tracetorch.fuse.plan import Plan
from tracetorch.fuse.triton import backward_source, forward_source

BLOCK = 128  # lanes of a program: one for each of its threads
_WARPS = 4


@functools.lru_cache(maxsize=256)
def _kernel(plan: Plan, name: str) -> Any:
    source = backward_source(plan) if name == "backward" else forward_source(plan)
    module: Any = module_of(source, f"triton_{name}")
    if is_interpreted():
        from tracetorch.fuse import interpreted

        module.libdevice = interpreted
    return getattr(module, name)


@functools.lru_cache(maxsize=256)
def _literals(plan: Plan, device: torch.device) -> Tensor:
    """The numbers of a program where the kernels read them; float64 arguments would be cut."""
    return torch.tensor(plan.literals, dtype=plan.program.dtype, device=device)


def _launch(plan: Plan, name: str, layout: Layout, device: torch.device, arguments: Any) -> None:
    """Run a kernel; contraction is off, recomputed spikes are to be those of the forward pass."""
    kernel = _kernel(plan, name)
    grid = (-(-layout.lanes // BLOCK),)
    options = {"BLOCK": BLOCK, "num_warps": _WARPS, "enable_fp_fusion": False}
    if device.type == "cpu":
        with np.errstate(all="ignore"):
            kernel[grid](**arguments, **options)
        return
    with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
        kernel[grid](**arguments, **options)


def _flat(tensor: Tensor) -> Tensor:
    return tensor.detach().view(-1)


def _inputs(
    plan: Plan, layout: Layout, x: Tensor, params: Sequence[Tensor], every: int
) -> dict[str, Any]:
    """What both kernels are told."""
    flat, step, row = strided(x.detach(), layout)
    given = {
        "steps": x.shape[0],
        "every": every,
        "lanes": layout.lanes,
        "width": layout.neurons * layout.inner,
        "inner": layout.inner,
        "x": flat,
        "x_step": step,
        "x_row": row,
        "literals": _literals(plan, x.device),
    }
    for name, param in zip(plan.program.params, params, strict=True):
        given[f"param_{name}"] = param.detach().reshape(-1)
        given[f"stride_{name}"] = int(param.numel() > 1)
    return given


def _states(prefix: str, states: dict[str, Tensor], layout: Layout) -> dict[str, Tensor]:
    return {
        f"{prefix}_{name}": _flat(layout.arrange(state).contiguous())
        for name, state in states.items()
    }


def forward(plan: Plan, x: Tensor, states: list[Tensor], params: list[Tensor]) -> list[Tensor]:
    """Outputs, final states, trajectories, and the states kept for the backward pass."""
    program, layout, steps = plan.program, layout_of(x, plan.dim), x.shape[0]
    output = layout.empty(x, steps=steps, dtype=program.dtype)
    ends = {name: layout.empty(x, steps=None, dtype=program.dtype) for name in program.states}
    records = {name: layout.empty(x, steps=steps, dtype=program.dtype) for name in plan.record}
    kept = plan.marks(steps)
    marks = x.new_empty(kept * len(plan.recomputed) * layout.lanes, dtype=program.dtype)
    if layout.lanes:
        starts = dict(zip(program.states, states, strict=True))
        arguments = {
            **_inputs(plan, layout, x, params, plan.every if kept else steps),
            **_states("start", starts, layout),
            "output": _flat(layout.arrange(output)),
            **_states("end", ends, layout),
            **_states("record", records, layout),
            "marks": marks,
        }
        _launch(plan, "forward", layout, x.device, arguments)
    return [output, *ends.values(), *records.values(), marks]


def backward(
    plan: Plan,
    x: Tensor,
    states: list[Tensor],
    params: list[Tensor],
    marks: Tensor,
    grads: list[Tensor],
) -> list[Tensor]:
    """The gradients of ``x``, states and parameters; an empty tensor for one not needed."""
    program, layout, steps = plan.program, layout_of(x, plan.dim), x.shape[0]
    g_output, *rest = grads
    g_ends = dict(zip(program.states, rest[: len(states)], strict=True))
    g_records = dict(zip(plan.record, rest[len(states) :], strict=True))
    nothing = x.new_empty(0, dtype=program.dtype)
    d_x = layout.empty(x, steps=steps, dtype=program.dtype) if plan.x else nothing
    d_states = {name: layout.empty(x, steps=None, dtype=program.dtype) for name in program.states}
    sums = x.new_zeros(len(plan.trained), layout.lanes, dtype=torch.float64)
    if layout.lanes:
        starts = dict(zip(program.states, states, strict=True))
        past = len(plan.recomputed) * min(plan.every, steps) * layout.lanes
        flat, step, row = strided(g_output.detach(), layout)
        arguments = {
            **_inputs(plan, layout, x, params, plan.every),
            **_states("start", {name: starts[name] for name in plan.recomputed}, layout),
            "marks": marks,
            "past": x.new_empty(past, dtype=program.dtype),
            "g_output": flat,
            "g_step": step,
            "g_row": row,
            **_states("g_end", g_ends, layout),
            **({"d_x": _flat(layout.arrange(d_x))} if plan.x else {}),
            **_states("d_start", d_states, layout),
            "sums": sums,
        }
        for name, grad in g_records.items():
            flat, step, row = strided(grad.detach(), layout)
            arguments |= {f"h_{name}": flat, f"h_step_{name}": step, f"h_row_{name}": row}
        _launch(plan, "backward", layout, x.device, arguments)
    d_params = dict.fromkeys(program.params, nothing)
    shape = (len(plan.trained), layout.outer, layout.neurons, layout.inner)
    for name, total in zip(plan.trained, sums.view(shape).sum((1, 3)), strict=True):
        like = params[program.params.index(name)]
        value = total.sum() if like.numel() == 1 else total
        d_params[name] = value.to(program.dtype).reshape(like.shape)
    return [d_x, *d_states.values(), *d_params.values()]
