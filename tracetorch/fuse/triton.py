"""Prints a plan as two Triton kernels, and runs them: one program per block of lanes, all of time.

What a lane carries stays in registers. The backward pass computes the states of a segment again,
from those kept at its start, into memory that only this lane's thread touches, and walks back.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch import Tensor

from tracetorch.fuse.cache import module_of
from tracetorch.fuse.graph import Graph
from tracetorch.fuse.layout import Layout, layout_of, strided
from tracetorch.fuse.numba import named_literals, real_name, spell
from tracetorch.fuse.plan import Plan, plan_of

BLOCK = 128  # lanes of one program
_WARPS = 4

EXPRESSIONS = {
    "add": "{} + {}",
    "sub": "{} - {}",
    "mul": "{} * {}",
    "div": "{} / {}",
    "neg": "-{}",
    "abs": "tl.abs({})",
    "max": "tl.where(({0} >= {1}) | ({0} != {0}), {0}, {1})",
    "min": "tl.where(({0} <= {1}) | ({0} != {0}), {0}, {1})",
    "where": "tl.where({}, {}, {})",
    "float": "tl.where({}, one, zero)",
    "gt": "{} > {}",
    "ge": "{} >= {}",
    "lt": "{} < {}",
    "le": "{} <= {}",
    "eq": "{} == {}",
    "ne": "{} != {}",
    "and": "{} & {}",
    "or": "{} | {}",
    "xor": "{} ^ {}",
    "not": "{} == 0",
    "exp": "tl.exp({})",
    "expm1": "tl.exp({}) - one",
    "log": "tl.log({})",
    "log1p": "tl.log(one + {})",
    "log2": "tl.log2({})",
    "sqrt": "tl.sqrt_rn({})",
    "sigmoid": "one / (one + tl.exp(-{}))",
    "tanh": "one - (one + one) / (tl.exp((one + one) * {}) + one)",
    "sin": "tl.sin({})",
    "cos": "tl.cos({})",
    "erf": "tl.erf({})",
    "floor": "tl.floor({})",
    "ceil": "tl.ceil({})",
    "pow": "tl.exp({1} * tl.log({0}))",
}

_HEADER = '''"""{what} of {layer}, printed by tracetorch.fuse."""

import triton
import triton.language as tl


@triton.jit
def {name}({arguments}, BLOCK: tl.constexpr):
    lane = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = lane < lanes
    place = lane // width * x_row + lane % width
    neuron = lane % width // inner
    zero = tl.zeros([BLOCK], tl.{real})
    one = zero + 1.0
'''


def unknown(graph: Graph) -> str | None:
    """The first operation that this printer lacks."""
    return next((line.op for line in graph.lines if line.op not in EXPRESSIONS), None)


def _lines(graph: Graph, env: dict[str, str], indent: int) -> tuple[list[str], dict[str, str]]:
    env = dict(env)
    printed = []
    for line in graph.lines:
        spelled = EXPRESSIONS[line.op].format(*(spell(arg, env) for arg in line.args))
        printed.append(" " * indent + f"{line.name} = {spelled}")
    return printed, {name: spell(ref, env) for name, ref in graph.outputs.items()}


def _load(name: str, place: str, indent: int) -> str:
    return " " * indent + f"{name} = tl.load({place}, mask=inside, other=0.0)"


def _store(place: str, value: str, indent: int) -> str:
    return " " * indent + f"tl.store({place}, {value}, mask=inside)"


def _constants(plan: Plan) -> list[str]:
    params = plan.program.params
    source = [
        f"    {c} = tl.load(literals + {i})" for i, c in enumerate(named_literals(plan).values())
    ]
    for i, name in enumerate(params):
        source.append(_load(f"p_{name}", f"params + {i} * neurons + neuron", 4))
    return source


_SIZES = ("steps", "every", "lanes", "width", "inner", "neurons", "x_step", "x_row")


# Forward


def forward_source(plan: Plan) -> str:
    """The forward kernel."""
    program, graph = plan.program, plan.program.forward
    states = program.states
    arguments = [*_SIZES, "x", "params", "literals", "output"]
    arguments += [f"start_{n}" for n in states] + [f"end_{n}" for n in states]
    arguments += [f"record_{n}" for n in plan.record] + ["marks"]
    source = [
        _HEADER.format(
            what="Forward pass",
            layer=program.layer,
            name="forward",
            arguments=", ".join(arguments),
            real=real_name(program.dtype),
        ),
        *_constants(plan),
        *(_load(f"s_{n}", f"start_{n} + lane", 4) for n in states),
        "    for t in range(steps):",
    ]
    if plan.recomputed:
        source.append("        if (t > 0) & (t % every == 0):")
        for i, n in enumerate(plan.recomputed):
            mark = f"marks + ((t // every - 1) * {len(plan.recomputed)} + {i}) * lanes + lane"
            source.append(_store(mark, f"s_{n}", 12))
    source.append(_load("x_t", "x + t.to(tl.int64) * x_step + place", 8))
    lines, ends = _lines(graph, {**named_literals(plan), "x": "x_t"}, 8)
    source += lines
    source.append(_store("output + t.to(tl.int64) * lanes + lane", ends["output"], 8))
    for n in plan.record:
        source.append(_store(f"record_{n} + t.to(tl.int64) * lanes + lane", ends[f"next_{n}"], 8))
    source += _assign([(f"s_{n}", ends[f"next_{n}"]) for n in states], 8)
    source += [_store(f"end_{n} + lane", f"s_{n}", 4) for n in states]
    return "\n".join(source).replace("t.to(tl.int64)", "t") + "\n"


def _assign(pairs: list[tuple[str, str]], indent: int) -> list[str]:
    """All at once: a state may become what another was."""
    source = [" " * indent + f"new_{name} = {value}" for name, value in pairs]
    return source + [" " * indent + f"{name} = new_{name}" for name, _ in pairs]


# Backward


def backward_source(plan: Plan) -> str:
    """The backward kernel."""
    program, graph, kept = plan.program, plan.backward, plan.recomputed
    size, states = len(kept), program.states
    advance = program.graph.select([f"next_{n}" for n in kept])
    arguments = [*_SIZES, "x", "params", "literals", "marks"]
    arguments += [f"start_{n}" for n in kept] + ["g_step", "g_row", "g_output"]
    arguments += [f"g_end_{n}" for n in states] + [f"h_{n}" for n in plan.record]
    arguments += (["d_x"] if plan.x else []) + [f"d_start_{n}" for n in states] + ["sums", "past"]
    env = {**named_literals(plan), "x": "x_t", "g_output": "g_t"}
    source = [
        _HEADER.format(
            what="Backward pass",
            layer=program.layer,
            name="backward",
            arguments=", ".join(arguments),
            real=real_name(program.dtype),
        ),
        "    g_place = lane // width * g_row + lane % width",
        *_constants(plan),
        *(_load(f"g_{n}", f"g_end_{n} + lane", 4) for n in states),
        *(f"    total_{n} = zero" for n in plan.trained),
        "    segments = (steps + every - 1) // every",
        "    for backwards in range(segments):",
        "        begin = (segments - 1 - backwards) * every",
        "        count = tl.minimum(every, steps - begin)",
    ]
    if kept:
        source.append("        if begin == 0:")
        source += [_load(f"s_{n}", f"start_{n} + lane", 12) for n in kept]
        source.append("        else:")
        for i, n in enumerate(kept):
            mark = f"marks + ((begin // every - 1) * {size} + {i}) * lanes + lane"
            source.append(_load(f"s_{n}", mark, 12))
        source.append("        for j in range(count):")
        for i, n in enumerate(kept):
            source.append(_store(f"past + (j * {size} + {i}) * lanes + lane", f"s_{n}", 12))
        source.append(_load("x_t", "x + (begin + j) * x_step + place", 12))
        lines, ends = _lines(advance, env, 12)
        source += [*lines, *_assign([(f"s_{n}", ends[f"next_{n}"]) for n in kept], 12)]
        source.append("        tl.debug_barrier()")
    source += ["        for back in range(count):", "            j = count - 1 - back"]
    source.append("            t = begin + j")
    for i, n in enumerate(kept):
        source.append(_load(f"s_{n}", f"past + (j * {size} + {i}) * lanes + lane", 12))
    source.append(_load("x_t", "x + t * x_step + place", 12))
    source.append(_load("g_t", "g_output + t * g_step + g_place", 12))
    for n in plan.record:
        source.append(_load("h_t", f"h_{n} + t * lanes + lane", 12))
        source.append(f"            g_{n} = g_{n} + h_t")
    lines, ends = _lines(graph, env, 12)
    source += lines
    if plan.x:
        source.append(_store("d_x + t * lanes + lane", ends["d_x"], 12))
    for n in plan.trained:
        source.append(f"            total_{n} = total_{n} + {ends[f'd_p_{n}']}")
    source += _assign([(f"g_{n}", ends[f"d_s_{n}"]) for n in states], 12)
    source += [_store(f"d_start_{n} + lane", f"g_{n}", 4) for n in states]
    for i, n in enumerate(plan.trained):
        source.append(_store(f"sums + {i} * lanes + lane", f"total_{n}", 4))
    return "\n".join(source) + "\n"


# Host side


@functools.lru_cache(maxsize=256)
def _kernel(key: str, backward: bool) -> Any:
    plan = plan_of(key)
    name = "backward" if backward else "forward"
    source = backward_source(plan) if backward else forward_source(plan)
    return getattr(module_of(source, f"triton_{name}"), name)


def _sizes(plan: Plan, layout: Layout, steps: int, every: int) -> tuple[int, ...]:
    return steps, every, layout.lanes, layout.neurons * layout.inner, layout.inner, layout.neurons


def _pack(plan: Plan, params: list[Tensor], layout: Layout, x: Tensor) -> tuple[Tensor, Tensor]:
    told: dict[str, Any] = {"dtype": plan.program.dtype, "device": x.device}
    packed = torch.empty(max(1, len(params)), layout.neurons, **told)
    for place, param in zip(packed, params, strict=False):
        place.copy_(param.detach().reshape(-1).expand(layout.neurons))
    literals = torch.tensor([*plan.literals, 0.0], **told)
    return packed, literals


def forward(plan: Plan, x: Tensor, states: list[Tensor], params: list[Tensor]) -> list[Tensor]:
    """Outputs, final states, trajectories, and the states kept for the backward pass."""
    program, layout, steps = plan.program, layout_of(x, plan.dim), x.shape[0]
    dtype = program.dtype
    output = layout.empty(x, steps=steps, dtype=dtype)
    ends = [layout.empty(x, steps=None, dtype=dtype) for _ in program.states]
    records = [layout.empty(x, steps=steps, dtype=dtype) for _ in plan.record]
    kept = plan.marks(steps)
    marks = x.new_empty(kept * len(plan.recomputed) * layout.lanes, dtype=dtype)
    if layout.lanes:
        flat, x_step, x_row = strided(x.detach(), layout)
        _kernel(plan.key, False)[(-(-layout.lanes // BLOCK),)](
            *_sizes(plan, layout, steps, plan.every if kept else steps),
            *(x_step, x_row, flat, *_pack(plan, params, layout, x), layout.arrange(output)),
            *(layout.arrange(state.detach()).contiguous() for state in states),
            *(layout.arrange(end) for end in ends),
            *(layout.arrange(record) for record in records),
            marks,
            BLOCK=BLOCK,
            num_warps=_WARPS,
            enable_fp_fusion=False,
        )
    return [output, *ends, *records, marks]


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
    dtype, kept = program.dtype, plan.recomputed
    g_output, *rest = grads
    nothing = x.new_empty(0, dtype=dtype)
    d_x = layout.empty(x, steps=steps, dtype=dtype) if plan.x else nothing
    d_states = [layout.empty(x, steps=None, dtype=dtype) for _ in states]
    sums = torch.zeros(len(plan.trained), layout.lanes, dtype=dtype, device=x.device)
    if layout.lanes:
        flat, x_step, x_row = strided(x.detach(), layout)
        flat_g, g_step, g_row = strided(g_output.detach(), layout)
        past = x.new_empty(max(1, len(kept)) * min(plan.every, steps) * layout.lanes, dtype=dtype)
        starts = dict(zip(program.states, states, strict=True))
        _kernel(plan.key, True)[(-(-layout.lanes // BLOCK),)](
            *_sizes(plan, layout, steps, plan.every),
            *(x_step, x_row, flat, *_pack(plan, params, layout, x), marks),
            *(layout.arrange(starts[name].detach()).contiguous() for name in kept),
            *(g_step, g_row, flat_g),
            *(layout.arrange(grad.detach()).contiguous() for grad in rest),
            *([layout.arrange(d_x)] if plan.x else []),
            *(layout.arrange(d_state) for d_state in d_states),
            *(sums, past),
            BLOCK=BLOCK,
            num_warps=_WARPS,
            enable_fp_fusion=False,  # the states computed again must be those of the forward pass
        )
    d_params = dict.fromkeys(program.params, nothing)
    shape = (len(plan.trained), layout.outer, layout.neurons, layout.inner)
    for name, total in zip(
        plan.trained, sums.view(shape).sum((1, 3), dtype=torch.float64), strict=True
    ):
        like = params[program.params.index(name)]
        value = total if like.numel() == math.prod(total.shape) else total.sum()
        d_params[name] = value.to(dtype).reshape(like.shape)
    return [d_x, *d_states, *d_params.values()]
