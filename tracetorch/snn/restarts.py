"""Restart samples inside the compiled loop of a neuron, as ``zero_states(where=)`` does."""

from __future__ import annotations

import torch
from torch import Tensor

from tracetorch.cell import Cell, StepDefinition
from tracetorch.snn.stateful_layer import StatefulLayer


def restarts_in_loop(layer: StatefulLayer, cell: Cell) -> bool:
    """Whether samples can start anew inside the loop of a neuron.

    Not where methods of the layer's own, or states of another shape, must see it happen.
    """
    kind = type(layer)
    return (
        not cell.runs_by_step
        and cell.has_plain_states
        and kind.initial_state is StatefulLayer.initial_state
        and kind.zero_states is StatefulLayer.zero_states
        and layer.__dict__.keys().isdisjoint(("initial_state", "zero_states"))
    )


def check_restarts_in_loop(layer: StatefulLayer, cell: Cell | StepDefinition) -> None:
    """Raise ``ValueError`` where a restart in the loop would pass by what must see it."""
    if not isinstance(cell, Cell) or not restarts_in_loop(layer, cell):
        raise ValueError(
            f"{layer.label()} has methods or states of its own that must see a sample start anew, "
            "or is compiled by torch.compile. Use tt.unroll(model, x, reset=...)."
        )


def restarting(
    layer: StatefulLayer, cell: Cell, x: Tensor, dtype: torch.dtype, reset: Tensor
) -> tuple[Cell, Tensor, dict[str, Tensor]]:
    """Return the cell that restarts samples, its further input and its further parameters.

    Args:
        layer: the layer.
        cell: what it is.
        x: its inputs ``[T, B, ...]``.
        dtype: of the arithmetic.
        reset: ``[T, B]`` booleans.
    """
    where = reset.to(x.device, dtype).reshape(*reset.shape, *[1] * (x.ndim - 2)).expand(x.shape)
    trailing = -layer.dim - 1 if layer.dim < 0 else x.ndim - layer.dim - 2
    starts: dict[str, Tensor] = {}
    for name in cell.starts:
        start = layer.get_buffer(f"initial_{name}").to(dtype)
        starts[f"initial_{name}"] = start.reshape(-1, *[1] * trailing) if start.ndim else start
    return cell.restarting, where, starts
