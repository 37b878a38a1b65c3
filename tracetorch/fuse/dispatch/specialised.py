"""``Specialised``: keep what was prepared for a cell and a shape of input, for calls like it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor

from tracetorch.cell import Cell, StepLayer
from tracetorch.core.walk import Opaque
from tracetorch.fuse.dispatch.backends import requested_backend

_MOST = 4  # shapes that a layer keeps something for


class Preparation(Protocol):
    """A preparation for one cell, and one shape, dtype and device of input."""

    cell: Cell
    shape: torch.Size
    dtype: torch.dtype
    device: torch.device
    requested: str
    """The backend that was requested when it was prepared."""
    default_dtype: torch.dtype
    """That of the tensors which the step makes of numbers."""

    def run(
        self, layer: StepLayer, x: Tensor, states: Mapping[str, Tensor | None]
    ) -> tuple[Tensor, dict[str, Tensor]] | None:
        """Return the output and the end states; ``None`` where the general way must be taken."""


P = TypeVar("P", bound=Preparation)


class Specialised(Opaque, Generic[P]):
    """The preparations of one layer, the last one used first.

    A batch that comes and goes finds its own again. Pickles and copies are empty: what was prepared
    belongs to this process and this layer.

    Args:
        prepare: makes one, from the layer, its cell and an input.
    """

    __slots__ = ("kept", "prepare")

    def __init__(self, prepare: Callable[[StepLayer, Cell, Tensor], P]) -> None:
        self.prepare = prepare
        self.kept: list[P] = []

    def __reduce__(self) -> tuple[type[Specialised[P]], tuple[Callable[..., P]]]:
        return type(self), (self.prepare,)

    def run(
        self, layer: StepLayer, cell: Cell, x: Tensor, states: Mapping[str, Tensor | None]
    ) -> tuple[Tensor, dict[str, Tensor]] | None:
        """Return the output and the end states by name; ``None``: the general way must be taken.

        Nothing is written: neither to the layer nor to ``states``.

        Args:
            layer: the layer, whose parameters are read.
            cell: what it is.
            x: an input that nobody observes.
            states: the active ones before ``x``, by name; ``None`` is the initial one.
        """
        requested, default_dtype = requested_backend(), torch.get_default_dtype()
        kept = self.kept
        for each in kept:
            if (
                each.cell is cell
                and each.shape == x.shape
                and each.dtype is x.dtype
                and each.device == x.device
                and each.requested == requested
                and each.default_dtype is default_dtype
            ):
                if each is not kept[0]:
                    self.kept = [each, *(other for other in kept if other is not each)]
                return each.run(layer, x, states)
        if requested == "eager":
            return None
        new = self.prepare(layer, cell, x)
        self.kept = [new, *kept][:_MOST]
        return new.run(layer, x, states)
