"""Trace a cell's ``step`` and its vector-Jacobian product into one :class:`Program`."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from tracetorch.cell import Cell, StepDefinition
from tracetorch.core.torch_private import global_modes_off
from tracetorch.fuse.ir.graph import Graph, Unfusable
from tracetorch.fuse.ir.record import READS_SIZES, StepRecorder
from tracetorch.fuse.step_results import check_step_results


@dataclass(frozen=True, eq=False)
class Program:
    """Graph of a step and its vector-Jacobian product.

    Names of inputs and outputs::

        s_<state>        state before the step     next_<state>       state after the step
        g_<state>        cotangent of next_<state> d_s_<state>        gradient of s_<state>
        p_<param>        parameter                 d_p_<param>        its gradient
        x, i_<input>     first, further inputs     d_x, d_i_<input>   their gradients
        g_output         cotangent of output       output             output
    """

    layer: str
    inputs: tuple[str, ...]
    states: tuple[str, ...]
    params: tuple[str, ...]
    dtype: torch.dtype
    graph: Graph
    smooth: frozenset[str]
    """Those of ``"output"`` and ``"next_<state>"`` that have a gradient."""
    reached: frozenset[str]
    """Those of the inputs, ``"s_<state>"`` and ``"p_<param>"`` that they depend on, by autograd."""
    definition: StepDefinition
    """The step that was traced, to run it eagerly."""
    options: Mapping[str, Any]
    """Its arguments that are no tensors."""
    refused: dict[torch.device, str] = field(default_factory=dict)
    """Devices on which a kernel of it has failed when it was tried, and how."""

    @cached_property
    def key(self) -> str:
        """Hash, equal for programs that compute the same."""
        ends = f"{sorted(self.smooth)}{sorted(self.reached)}"
        text = f"{self.inputs}{self.states}{self.params}{self.dtype}{self.graph}{ends}"
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def tensors(self, kwargs: Mapping[str, Any]) -> list[Tensor]:
        return [kwargs[name] for name in self.params]

    @cached_property
    def is_binary(self) -> bool:
        """Whether every output is 0 or 1, by the operation that makes it: a spike."""
        made = {line.name: line for line in self.graph.lines}

        def is_spike(value: object) -> bool:
            if not isinstance(value, str):
                return value in (0.0, 1.0)
            line = made.get(value)
            if line is None or line.op == "float":
                return line is not None
            if line.op == "sub":  # no spike
                return line.args[0] == 1.0 and is_spike(line.args[1])
            values = line.args[1:] if line.op == "where" else line.args
            return line.op in ("where", "mul", "max", "min") and all(map(is_spike, values))

        return is_spike(self.graph.outputs["output"])

    @cached_property
    def forward(self) -> Graph:
        """Graph of the output and the next states."""
        return self.graph.select(["output", *(f"next_{name}" for name in self.states)])

    def backward(self, inputs: Sequence[str], params: Sequence[str]) -> Graph:
        """Return the graph of the gradients of the states, and of some inputs and parameters."""
        names = [f"d_{name}" for name in inputs]
        names += [f"d_s_{name}" for name in self.states]
        return self.graph.select(names + [f"d_p_{name}" for name in params])

    def recomputed(self, backward: Graph) -> tuple[str, ...]:
        """Return the states whose past values ``backward`` reads, or needs to recompute others."""
        reads = backward.reads()
        needed = {name for name in self.states if f"s_{name}" in reads}
        # To recompute a state, the states that its next value depends on are needed too.
        while True:
            reads = self.graph.select(f"next_{name}" for name in needed).reads()
            more = {name for name in self.states if f"s_{name}" in reads} - needed
            if not more:
                return tuple(name for name in self.states if name in needed)
            needed |= more


class _CotangentSeed(torch.autograd.Function):
    """Scalar that sends cotangents into results; ``grad_outputs`` would import symbolic shapes."""

    @staticmethod
    def forward(ctx: Any, cotangents: Sequence[Tensor], *ends: Tensor) -> Tensor:
        ctx.cotangents = cotangents
        return ends[0].new_zeros(())

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return None, *ctx.cotangents


def trace(
    cell: Cell,
    ndim: int,
    dtype: torch.dtype,
    arguments: dict[str, Any],
    device: torch.device = torch.device("cpu"),  # noqa: B008 (it is immutable)
) -> Program:
    """Trace ``step`` and its gradient on tensors that record operations, or raise ``Unfusable``."""
    program = _trace(cell, arguments, ndim, dtype, device, 2)
    # the step sees no sizes; an operation of PyTorch might compute with those of samples
    if _trace(cell, arguments, ndim, dtype, device, 5).key != program.key:
        raise Unfusable(READS_SIZES)
    return program


def _trace(cell: Cell, arguments: dict[str, Any], *settings: Any) -> Program:
    """Trace once, by a recorder of some settings."""
    active = cell.active
    params = tuple(name for name, value in arguments.items() if isinstance(value, Tensor))
    constants = {name: value for name, value in arguments.items() if name not in params}
    entered = input_names(cell)
    names = [*entered, *(f"s_{n}" for n in active), *(f"p_{n}" for n in params)]
    try:
        # the program serves every later call, in whatever mode this first one runs
        with global_modes_off():
            recorder = StepRecorder(*settings)
            like = {f"p_{name}": arguments[name] for name in params}
            inputs = {n: recorder.input(n, like.get(n)).requires_grad_() for n in names}
            given = [inputs[name] for name in entered]
            # Forward: inactive states are None, as in an eager step.
            states = [inputs.get(f"s_{name}") for name in cell.states]
            kwargs = {name: inputs[f"p_{name}"] for name in params}
            with recorder:
                stepped = cell.step(*given, *states, **kwargs, **constants)
                output, next_states = check_step_results(cell, given, stepped)
                ends = {"output": output, **{f"next_{n}": v for n, v in next_states.items()}}
                # Backward: a cotangent for each result that has a gradient. One that has none, and
                # an input that nothing depends on, get the literal 0.0.
                smooth = {name: end for name, end in ends.items() if end.requires_grad}
                found: Sequence[Tensor | None] = [None] * len(names)
                if smooth:
                    cotangents = [recorder.input(f"g_{n.removeprefix('next_')}") for n in smooth]
                    seed = _CotangentSeed.apply(cotangents, *smooth.values())  # type: ignore[no-untyped-call]
                    found = torch.autograd.grad(seed, list(inputs.values()), allow_unused=True)
    except Unfusable:
        raise
    except Exception as failure:
        if "leaf Variable that requires grad" in str(failure):
            raise Unfusable("its step changes an argument in place") from failure
        first_line = str(failure).strip().split("\n")[0].removesuffix(".")
        raise Unfusable(f"its step cannot be traced: {first_line}") from failure
    gradients = {f"d_{name}": d for name, d in zip(names, found, strict=True)}
    graph = recorder.graph({**ends, **gradients})
    reached = frozenset(name for name in names if gradients[f"d_{name}"] is not None)
    definition = StepDefinition(cell.name, cell.step, cell.inputs, cell.states, active)
    layer = (cell.name, entered, active, params, recorder.dtype)
    return Program(*layer, graph, frozenset(smooth), reached, definition, constants)


def input_names(cell: Cell | StepDefinition) -> tuple[str, ...]:
    return ("x", *[f"i_{name}" for name in cell.inputs[1:]])
