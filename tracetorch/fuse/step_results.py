"""Check what a ``step`` returns: number, shapes and dtypes of the output and the states."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tracetorch.core.torch_private import is_alias
from tracetorch.fuse.protocol import StepLayer


def check_step_results(
    layer: StepLayer, inputs: Sequence[Tensor], results: tuple[Tensor | None, ...]
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the output, and the active states by name.

    Args:
        layer: whose ``step`` has returned ``results``.
        inputs: the inputs of the step, in the dtype of the arithmetic.
        results: the output and all states.

    Raises:
        ValueError: ``step`` returned another number of results, or another shape or dtype.
    """
    step = f"{type(layer).__name__}.step"
    names, x = layer.states, inputs[0]
    if not isinstance(results, tuple) or len(results) != 1 + len(names):
        raise ValueError(
            f"{step} must return a tuple of the output and the states {names}, got "
            f"{len(results) if isinstance(results, tuple) else type(results).__name__}."
        )
    active = layer.active_states
    values: dict[str, Tensor] = {}
    for name, value in zip(("output", *names), results, strict=True):
        if name != "output" and name not in active:
            continue
        if not isinstance(value, Tensor) or value.shape != x.shape:
            got = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(
                f"{step} must return {name} in the input's shape {list(x.shape)}, got {got}."
            )
        if name != "output":
            if value.dtype != x.dtype:
                raise ValueError(
                    f"{step} must return {name} in the dtype it works in, {x.dtype}, "
                    f"got {value.dtype}."
                )
            # a later in-place operation on the output or an input must not reach into a state
            if any(share_memory(value, other) for other in (*inputs, *values.values())):
                value = value.clone()
        values[name] = value
    return values.pop("output"), values


def share_memory(one: Tensor, other: Tensor) -> bool:
    """Whether an in-place operation on one tensor would reach the other."""
    if one is other:
        return True
    return not torch.compiler.is_compiling() and is_alias(one, other)
