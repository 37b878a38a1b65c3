"""``trace``: a layer's ``step`` and its vector-Jacobian product as one :class:`Graph`."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tracetorch.core.torch_private import saved_tensor_hooks_enabled
from tracetorch.fuse.ir.graph import Graph, Unfusable
from tracetorch.fuse.ir.record import Recorder
from tracetorch.fuse.protocol import StepLayer
from tracetorch.fuse.step_results import check_step_results

_TRIES = 3  # another thread may draw a random number while a step is traced; a step always does


@dataclass(frozen=True, eq=False)
class Program:
    """A step and its gradient, ready to be printed.

    Args:
        layer: the kind of layer it was traced from.
        states: the states it keeps; ``s_<name>`` going in, ``next_<name>`` coming out,
            ``g_<name>`` the cotangent of what comes out, ``d_s_<name>`` the gradient.
        params: its tensor arguments; ``p_<name>``, gradient ``d_p_<name>``.
        dtype: of the arithmetic.
        graph: everything; ``x`` goes in, ``output`` comes out, with cotangent ``g_output``.
        smooth: the ends that have a gradient, ``"output"`` and ``"next_<name>"``.
        reached: what they have one with respect to, ``"x"``, ``"s_<name>"``, ``"p_<name>"``.

    """

    layer: str
    states: tuple[str, ...]
    params: tuple[str, ...]
    dtype: torch.dtype
    graph: Graph
    smooth: frozenset[str]
    reached: frozenset[str]

    @cached_property
    def key(self) -> str:
        """Equal for programs that compute the same."""
        ends = f"{sorted(self.smooth)}{sorted(self.reached)}"
        text = f"{self.states}{self.params}{self.dtype}{self.graph}{ends}"
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @cached_property
    def forward(self) -> Graph:
        """Output and next states."""
        return self.graph.select(["output", *(f"next_{name}" for name in self.states)])

    def backward(self, x: bool, params: Sequence[str]) -> Graph:
        """The gradients of the states, and those asked for of ``x`` and the parameters."""
        asked = ["d_x"] if x else []
        asked += [f"d_s_{name}" for name in self.states]
        return self.graph.select(asked + [f"d_p_{name}" for name in params])

    def recomputed(self, backward: Graph) -> tuple[str, ...]:
        """The states whose past values the backward pass reads, itself or to recompute others."""
        needed = {name for name in self.states if f"s_{name}" in backward.reads()}
        while True:
            reads = self.graph.select(f"next_{name}" for name in needed).reads()
            more = {name for name in self.states if f"s_{name}" in reads} - needed
            if not more:
                return tuple(name for name in self.states if name in needed)
            needed |= more


class _Seed(torch.autograd.Function):
    """A number whose gradient is the cotangents.

    Given to ``autograd.grad`` as they are, they would make it import PyTorch's symbolic shapes,
    which takes longer than everything else here.
    """

    @staticmethod
    def forward(ctx: Any, cotangents: Sequence[Tensor], *ends: Tensor) -> Tensor:
        ctx.cotangents = cotangents
        return ends[0].new_zeros(())

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return None, *ctx.cotangents


def trace(layer: StepLayer, ndim: int, dtype: torch.dtype, arguments: dict[str, Any]) -> Program:
    """Run ``step`` once on tensors that record what is done to them, ``autograd.grad`` included.

    Args:
        layer: whose ``step``.
        ndim: number of dimensions of the tensor of one step.
        dtype: of the arithmetic.
        arguments: what ``layer.step_kwargs`` gave; tensors become inputs, all else is compiled in.

    Raises:
        Unfusable: ``step`` does something that is not pointwise, asks tensors for values, draws
            random numbers in Python, or reads the size of its input, which a kernel would have as
            it was while tracing.

    """
    first = before = random.getstate(), np.random.get_state()
    for _ in range(_TRIES):
        program = _trace(layer, ndim, dtype, arguments, 2)
        if random.getstate() == before[0] and _equal(np.random.get_state(), before[1]):
            break
        before = random.getstate(), np.random.get_state()
    else:
        random.setstate(first[0])
        np.random.set_state(first[1])
        raise Unfusable("its step draws random numbers in Python, which a kernel would draw once")
    if _trace(layer, ndim, dtype, arguments, 5).key != program.key:
        raise Unfusable("its step reads the size of its input")
    return program


def _hooks_of_our_own() -> AbstractContextManager[object]:
    """Lest activation checkpointing take what is saved here for the layer's own."""
    if not saved_tensor_hooks_enabled():
        return nullcontext()
    return torch.autograd.graph.saved_tensors_hooks(_itself, _itself)


def _itself(tensor: Tensor) -> Tensor:
    return tensor


def _equal(one: Any, other: Any) -> bool:
    """Whether two states of NumPy's generator are the same."""
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def _trace(
    layer: StepLayer, ndim: int, dtype: torch.dtype, arguments: dict[str, Any], side: int
) -> Program:
    kept = layer.active_states
    params = tuple(name for name, value in arguments.items() if isinstance(value, Tensor))
    constants = {name: value for name, value in arguments.items() if name not in params}
    device = next((v.device for v in arguments.values() if isinstance(v, Tensor)), None)
    recorder = Recorder(ndim, dtype, device or torch.device("cpu"), side)
    names = ["x", *(f"s_{n}" for n in kept), *(f"p_{n}" for n in params)]
    results: dict[str, Tensor | None] = {}
    smooth: dict[str, Tensor] = {}
    try:
        with recorder, torch.inference_mode(False), torch.enable_grad(), _hooks_of_our_own():
            given = {name: recorder.input(name).requires_grad_() for name in names}
            stepped = layer.step(
                given["x"],
                *(given.get(f"s_{name}") for name in layer.states),
                **{name: given[f"p_{name}"] for name in params},
                **constants,
            )
            output, active = check_step_results(layer, given["x"], stepped)
            ends = {"output": output, **{f"next_{n}": v for n, v in active.items()}}
            smooth = {name: end for name, end in ends.items() if end.requires_grad}
            found: Sequence[Tensor | None] = [None] * len(names)
            if smooth:
                cotangents = [recorder.input(f"g_{n.removeprefix('next_')}") for n in smooth]
                seed = _Seed.apply(cotangents, *smooth.values())  # type: ignore[no-untyped-call]
                found = torch.autograd.grad(seed, list(given.values()), allow_unused=True)
            gradients = {f"d_{name}": d for name, d in zip(names, found, strict=True)}
            results = {**ends, **gradients}
    except Unfusable:
        raise
    except Exception as failure:
        said = str(failure).strip().split("\n")[0]
        raise Unfusable(f"its step cannot be traced: {said}") from failure
    reached = frozenset(name for name in names if results[f"d_{name}"] is not None)
    graph = recorder.graph(results)
    return Program(type(layer).__name__, kept, params, dtype, graph, frozenset(smooth), reached)
