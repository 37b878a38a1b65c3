"""Declare what the compiler needs of a layer; it knows no layer class."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor


class ConstraintGradient(NamedTuple):
    """The gradient of a constraint, ``value = constraint(raw)``.

    Args:
        function: ``gradient of the value, raw, value -> gradient of raw``.
        reads_raw: whether it reads ``raw``.
    """

    function: Callable[[Tensor, Tensor, Tensor], Tensor]
    reads_raw: bool


class StepLayer(Protocol):
    """A layer that a pure, pointwise ``step`` describes.

    ::

        step(x, <further inputs>, <states>, *, <step kwargs>) -> (output, <states>)

    States and options are attributes of the instance. The compiled single step reads those, and the
    raw tensors in ``_parameters`` and ``_buffers``, from its ``__dict__``, and leaves new states
    there: a lookup by name would cost more than the step.
    """

    @property
    def num_neurons(self) -> int:
        """Size of the neuron dimension."""

    @property
    def dim(self) -> int:
        """The neuron dimension of the tensor of one step."""

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the inputs in the order in which ``step`` takes them, all of one shape."""

    @property
    def states(self) -> tuple[str, ...]:
        """Names of the states in the order in which ``step`` takes and returns them."""

    @property
    def active_states(self) -> tuple[str, ...]:
        """Those of ``states`` that this layer has; the others are ``None``."""

    @property
    def options(self) -> tuple[str, ...]:
        """Names of the constants among the step kwargs."""

    @property
    def raw_names(self) -> tuple[str, ...]:
        """Names of the tensors from which the parameters among the step kwargs follow."""

    @property
    def constraints(self) -> Mapping[str, Callable[[Tensor], Tensor]]:
        """The constraint of each of those parameters by its name."""

    @property
    def step(self) -> Callable[..., tuple[Any, ...]]:
        """The function, a static method."""

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

    def initial_state(
        self, name: str, shape: torch.Size, dtype: torch.dtype, device: torch.device
    ) -> Tensor:
        """Return what a state is before the first step."""
