"""Check what a ``step`` returns: number, shapes and dtypes of the output and the states."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from tracetorch.cell import Cell, StepDefinition
from tracetorch.core.torch_private import is_alias


def check_step_results(
    cell: Cell | StepDefinition, inputs: Sequence[Tensor], results: tuple[Tensor | None, ...]
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the output, and the active states by name."""
    step = f"{cell.name}.step"
    names, x = cell.states, inputs[0]
    if not isinstance(results, tuple) or len(results) != 1 + len(names):
        raise ValueError(
            f"{step} must return a tuple of the output and the states {names}, got "
            f"{len(results) if isinstance(results, tuple) else type(results).__name__}."
        )
    active = cell.active
    values: dict[str, Tensor] = {}
    for name, value in zip(("output", *names), results, strict=True):
        if name != "output" and name not in active:
            continue
        if not isinstance(value, Tensor) or value.shape != x.shape:
            got = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(
                f"{step} must return {name} in the input's shape {list(x.shape)}, got {got}."
            )
        if name == "output":
            # autograd would stop here in silence, and a kernel stores floating point alone
            if value.dtype is torch.bool:
                raise ValueError(
                    f"{step} must return its output in the dtype it works in, {x.dtype}, got "
                    "torch.bool. Use a spike function, spike(mem - theta), which has a gradient; "
                    "where none is needed, (mem > theta).to(x.dtype)."
                )
        else:
            if value.dtype != x.dtype:
                raise ValueError(
                    f"{step} must return {name} in the dtype it works in, {x.dtype}, "
                    f"got {value.dtype}."
                )
            # a later in-place operation on the output or an input must not reach into a state
            if shares_memory(value, (*inputs, *values.values())):
                value = value.clone()
        values[name] = value
    return values.pop("output"), values


def shares_memory(one: Tensor, others: Iterable[Tensor | None]) -> bool:
    """Whether an in-place operation on one tensor would reach another."""
    compiling = torch.compiler.is_compiling()
    for other in others:
        if one is other or (other is not None and not compiling and is_alias(one, other)):
            return True
    return False
