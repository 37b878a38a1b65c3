"""Restart samples inside the compiled loop of a neuron, as ``zero_states(where=)`` does."""

from __future__ import annotations

import torch
from torch import Tensor

from tracetorch.cell import Cell, StepDefinition
from tracetorch.core.torch_private import observed_by
from tracetorch.core.walk import Opaque
from tracetorch.snn.stateful_layer import StatefulLayer


class Restarts(Opaque):
    """A checked mask of where samples start anew before a step, read once for a pass.

    Args:
        mask: ``[T, B]`` booleans.
    """

    def __init__(self, mask: Tensor) -> None:
        self.mask = mask
        self._steps: list[bool] | None = None

    @property
    def steps(self) -> list[bool]:
        """For every step whether a sample starts anew; true where nobody can read the mask.

        ``zero_states`` draws random numbers in some layers: it is called where it does something.
        """
        if self._steps is None:
            unread = torch.compiler.is_compiling() or observed_by((self.mask,)) is not None
            self._steps = (
                [True] * len(self.mask) if unread else self.mask.flatten(1).any(1).tolist()
            )
        return self._steps


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


def mask_in_loop(
    layer: StatefulLayer, cell: Cell | StepDefinition, x: Tensor, reset: Tensor | Restarts
) -> Tensor:
    """Return the mask of restarts in the loop of a neuron, checked unless it has been.

    Raises:
        TypeError: ``reset`` holds no booleans.
        ValueError: it has another shape; the layer has methods of its own; there is no batch.
    """
    if isinstance(reset, Restarts):
        return reset.mask
    if reset.dtype != torch.bool:
        raise TypeError(f"reset must hold booleans, got {reset.dtype}.")
    if reset.shape != x.shape[:2]:
        raise ValueError(
            f"reset must have the shape [T, B] = {list(x.shape[:2])}, got {list(reset.shape)}."
        )
    layer.check_has_batch("one step of its input", x.shape[1:])
    if not isinstance(cell, Cell) or not restarts_in_loop(layer, cell):
        raise ValueError(
            f"{layer.label()} has methods or states of its own that must see a sample start anew, "
            "or is compiled by torch.compile. Use tt.unroll(model, x, reset=...)."
        )
    return reset


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
    names = cell.names_of_starts
    for name in cell.starts:
        start = layer.get_buffer(f"initial_{name}").to(dtype)
        starts[names[name]] = start.reshape(-1, *[1] * trailing) if start.ndim else start
    return cell.restarting, where, starts
