"""Prepare a layer's sequences: what one call has found out serves all that are like it.

A call on few time steps costs more in checks and look-ups than in arithmetic. So program, plans and
layout are found once for one shape of input, and each call then compares what they depend on. What
is not compared here, or differs, takes the general way, which checks and explains everything.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tracetorch.core.torch_private import (
    dispatch_modes,
    forward_ad_active,
    functorch,
    functorch_active,
    is_exporting,
    is_jit_tracing,
)
from tracetorch.core.walk import Opaque
from tracetorch.fuse.dispatch import operators
from tracetorch.fuse.dispatch.backends import requested_backend, select_backend
from tracetorch.fuse.dispatch.plans import dim_from_end, plan_for_needs, program_of
from tracetorch.fuse.dispatch.second_derivative import Call
from tracetorch.fuse.dispatch.unchanged_step import UnchangedStep
from tracetorch.fuse.ir.graph import Unfusable
from tracetorch.fuse.ir.plan import Plan
from tracetorch.fuse.protocol import ConstraintGradient, StepLayer
from tracetorch.fuse.runtime.layout import Layout, layout_of

_MOST_SHAPES = 4  # for which a layer keeps its prepared sequences
_SMALL = 1 << 18  # values of a state that are worth keeping as zeros
_DTYPES = (torch.float32, torch.float64)  # narrower inputs are cast


class OwnMethods(NamedTuple):
    """Methods of a layer that a prepared sequence does without, where none is overridden.

    Args:
        step_kwargs, check_input, states_for, initial_state: the methods.
        gradient: of a constraint its gradient; ``None`` where that is not known.
    """

    step_kwargs: Callable[..., Any]
    check_input: Callable[..., Any]
    states_for: Callable[..., Any]
    initial_state: Callable[..., Any]
    gradient: Callable[[Callable[[Tensor], Tensor]], ConstraintGradient | None]

    def hold(self, layer: StepLayer) -> bool:
        """Whether the layer has these methods."""
        kind: Any = type(layer)
        own = layer.__dict__
        return (
            kind.step_kwargs is self.step_kwargs
            and kind.check_input is self.check_input
            and kind.states_for is self.states_for
            and "step_kwargs" not in own
            and "check_input" not in own
            and "states_for" not in own
        )


class PreparedSequences(Opaque):
    """The prepared sequences of one layer, a few shapes of input each with its own."""

    __slots__ = ("prepared",)

    def __init__(self) -> None:
        self.prepared: list[_PreparedSequence] = []

    def run(
        self, layer: StepLayer, x: Tensor, methods: OwnMethods
    ) -> tuple[Tensor, dict[str, Tensor]] | None:
        """Return outputs, and final states by name; ``None`` where the general way must be taken.

        Nothing is kept on the layer.
        """
        if (
            type(x) is not Tensor
            or x.dtype not in _DTYPES
            or not methods.hold(layer)
            or dispatch_modes()
            or functorch_active()
            or is_jit_tracing()
            or forward_ad_active()
            or is_exporting()
            or x.is_neg()
        ):
            return None
        prepared = self.prepared
        if not prepared or not prepared[0].fits(layer, x):
            # the last one used comes first: a batch that comes and goes finds its own again
            fitting = next((p for p in prepared if p.fits(layer, x)), None)
            fitting = fitting or _PreparedSequence(layer, x, methods)
            rest = [p for p in prepared if p is not fitting][: _MOST_SHAPES - 1]
            self.prepared = prepared = [fitting, *rest]
        return prepared[0].run(layer, x)


class _PreparedSequence:
    """A layer's sequence for one shape and dtype of input.

    Args:
        layer: the layer.
        x: an input ``[T, ...]``.
        methods: the layer's methods, which its runs do without.
    """

    def __init__(self, layer: StepLayer, x: Tensor, methods: OwnMethods) -> None:
        self.shape, self.dtype, self.device = x.shape, x.dtype, x.device
        self.step_shape = x.shape[1:]
        self.unchanged = UnchangedStep(layer)
        self.sizes = layer.num_neurons, layer.dim
        self.states, self.constraints = layer.active_states, dict(layer.constraints)
        # those that may start from other values than zero
        self.initial = frozenset(
            name
            for name in self.states
            if f"initial_{name}" in layer.__dict__["_buffers"]
            or type(layer).initial_state is not methods.initial_state
        )
        self.raw_names = layer.raw_names
        self.raws = tuple([(r.shape, r.dtype) for r in self._raws(layer)])
        self.backend, reason = select_backend(x.device)
        self.constrained: tuple[operators.Constrained, ...] = ()
        self.options: dict[str, Any] = {}
        self.plans: dict[tuple[bool, ...], Plan] = {}
        self.rest: Tensor | None = None  # a state of zeros, which every call reads
        self.runs = False
        known = all(methods.gradient(each) for each in self.constraints.values())
        if reason is None and self.backend != "eager" and self.unchanged.is_comparable and known:
            self._prepare(layer, x, methods)

    def _prepare(self, layer: StepLayer, x: Tensor, methods: OwnMethods) -> None:
        layer.check_input(x, sequence=True)
        try:
            self.program = program_of(layer, x.ndim - 1, x.dtype)
        except Unfusable:
            return
        if self.program.params != tuple(self.constraints) or not x.numel():
            return
        self.dim = dim_from_end(layer, x.ndim - 1)
        with torch.no_grad():  # checkpointing counts what is saved, the first time and again
            kwargs = layer.step_kwargs(x.ndim - 1, x.dtype)
        self.constrained = tuple(
            [
                operators.Constrained(constraint, gradient, kwargs[name].shape)
                for name, constraint in self.constraints.items()
                if (gradient := methods.gradient(constraint)) is not None
            ]
        )
        # flags and spike functions: the same as long as the step is
        self.options = {n: value for n, value in kwargs.items() if n not in self.constraints}
        # of contiguous memory; another order is looked at in each call
        self.layout: Layout = layout_of(x.new_empty(x.shape), self.dim)
        self.runs = True

    def _raws(self, layer: StepLayer) -> list[Tensor]:
        """Return the raw parameters, whether they are parameters, buffers or parametrizations."""
        parameters = layer.__dict__["_parameters"]
        raws: list[Tensor] = []
        for name in self.raw_names:
            raw = parameters.get(name)
            raws.append(getattr(layer, name) if raw is None else raw)
        return raws

    def _zeros(self) -> Tensor:
        """Return a state of zeros, the same one in every call unless it is large."""
        with torch.inference_mode(False):  # a later call may be part of a graph
            zeros = torch.zeros(self.step_shape, dtype=self.dtype, device=self.device)
        if zeros.numel() <= _SMALL:
            self.rest = zeros
        return zeros

    def fits(self, layer: StepLayer, x: Tensor) -> bool:
        """Whether it was prepared for such an input, and for what the layer is now."""
        return (
            x.shape == self.shape
            and x.dtype is self.dtype
            and x.device == self.device
            and (layer.num_neurons, layer.dim) == self.sizes
            and layer.constraints == self.constraints
            and layer.active_states == self.states
            and self.unchanged.holds(layer)
        )

    def run(self, layer: StepLayer, x: Tensor) -> tuple[Tensor, dict[str, Tensor]] | None:
        """Return outputs, and final states by name; ``None`` where it cannot run here."""
        attributes = layer.__dict__
        if not self.runs or requested_backend() not in ("auto", self.backend):
            return None
        with_graph = torch.is_grad_enabled()
        # what needs a gradient: the input, a state, each parameter
        needs = [with_graph and x.requires_grad, False]
        states: list[Tensor] = []
        for name in self.states:
            state = attributes[name]
            if state is None and name in self.initial:
                state = layer.initial_state(name, self.step_shape, self.dtype, self.device)
            if state is None:
                state = self._zeros() if self.rest is None else self.rest
            elif (
                type(state) is not Tensor
                or state.shape != self.step_shape
                or state.dtype is not self.dtype
                or state.device != self.device
                or functorch.is_functorch_wrapped_tensor(state)
                or state.is_neg()
                or state.is_inference()
            ):
                return None
            elif with_graph and state.requires_grad:
                needs[1] = True
            states.append(state)
        raws = self._raws(layer)
        for raw, (shape, dtype) in zip(raws, self.raws, strict=True):
            if (
                type(raw) not in (nn.Parameter, Tensor)
                or raw.shape != shape
                or raw.dtype is not dtype
                or raw.device != self.device
                or raw.is_neg()
            ):
                return None
            needs.append(with_graph and raw.requires_grad)
        key = tuple(needs)
        plan = self.plans.get(key)
        if plan is None:
            trained = tuple([n for n, g in zip(self.constraints, key[2:], strict=True) if g])
            backend, program = self.backend, self.program
            differentiated = ("x",) if key[0] else ()
            plan = plan_for_needs(program, backend, self.dim, (), any(key), differentiated, trained)
            self.plans[key] = plan
        layout = self.layout if x.is_contiguous() else layout_of(x, self.dim)
        call = Call(layer.step, layer.states, self.options, weakref.ref(layer))
        results = operators.run_raw(plan, call, layout, self.constrained, (x,), states, raws)
        return results[0], dict(zip(self.states, results[1:], strict=True))
