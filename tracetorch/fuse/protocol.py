"""Declare what the compiler needs of a layer; it knows no layer class."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor


class StepLayer(Protocol):
    """A layer that a pure, pointwise ``step`` describes.

    ::

        step(x, <states>, *, <step kwargs>) -> (output, <states>)

    Args:
        num_neurons: size of the neuron dimension.
        dim: the neuron dimension of the tensor of one step.
        states: names of the states in the order in which ``step`` takes and returns them.
        active_states: those of them that this layer has; the others are ``None``.
        options: names of the constants among the step kwargs.
        raw_names: names of the tensors from which the parameters among the step kwargs follow.
        step: the function, a static method.
    """

    @property
    def num_neurons(self) -> int: ...  # noqa: D102

    @property
    def dim(self) -> int: ...  # noqa: D102

    @property
    def states(self) -> tuple[str, ...]: ...  # noqa: D102

    @property
    def active_states(self) -> tuple[str, ...]: ...  # noqa: D102

    @property
    def options(self) -> tuple[str, ...]: ...  # noqa: D102

    @property
    def raw_names(self) -> tuple[str, ...]: ...  # noqa: D102

    @property
    def step(self) -> Callable[..., tuple[Any, ...]]: ...  # noqa: D102

    def step_kwargs(self, ndim: int, dtype: torch.dtype) -> dict[str, Any]:
        """Return the keyword arguments of ``step``: parameters, shaped to broadcast, and options.

        Args:
            ndim: number of dimensions of the tensor of one step.
            dtype: dtype of the arithmetic.
        """

    def check_input(self, x: object, *, sequence: bool = False) -> torch.dtype:
        """Return the dtype of the arithmetic; raise where ``x`` does not fit."""

    def states_for(
        self, x: Tensor, dtype: torch.dtype, *, sequence: bool = False
    ) -> list[Tensor | None]:
        """Return the states as ``step`` takes them."""
