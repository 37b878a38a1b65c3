"""Reduce stacked tensors, ``torch.stack([a, b]).amax(0)``, by operations on those that it stacks.

A kernel has no dimension of its own for a stack, but what is stacked is there. Autograd goes
through the same operations, in the order in which PyTorch computes both.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from tracetorch.core.torch_private import functions_on

# PyTorch adds up more of them than these in another order.
_MOST_ADDED = 4


class Stacked(TorchFunctionMode):
    """Replace reductions over the dimension of a stack, while the mode is active."""

    def __init__(self, sizes: torch.Size) -> None:
        super().__init__()
        self.sizes = sizes
        # by identity: the stack itself, its value, copies of its parts, its dimension
        self.stacks: dict[int, tuple[Any, object, list[Tensor], int]] = {}

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        with functions_on(False):  # no mode that is around this one either
            return self._replaced(func, args, kwargs or {})

    def _replaced(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        name = getattr(func, "__name__", "")
        if args and id(args[0]) in self.stacks and name in _REDUCTIONS:
            stack, value, parts, place = self.stacks[id(args[0])]
            dims = [*args[1:], *kwargs.values()]
            is_same = stack.memory.value == value  # not changed in place
            if (
                is_same
                and len(dims) == 1
                and kwargs.keys() <= {"dim"}
                and type(dims[0]) in (int, tuple, list)
            ):
                dims = list(dims) if type(dims[0]) is int else list(dims[0])
                added = name in ("sum", "mean")
                fits = [dim % stack.ndim for dim in dims] == [place]
                if fits and not (added and len(parts) > _MOST_ADDED):
                    found = _REDUCTIONS[name](parts)
                    if name not in ("max", "min"):
                        return found
                    made = func(*args, **kwargs)
                    return type(made)((found, made.indices))
        result = func(*args, **kwargs)
        if func is torch.stack:
            parts = list(args[0] if args else kwargs["tensors"])
            dim = kwargs.get("dim", args[1] if len(args) > 1 else 0) % result.ndim
            sizes = [getattr(part, "sizes", None) for part in parts]
            if all(size is self.sizes for size in sizes) and result.is_floating_point():
                copies = [part.clone() for part in parts]
                self.stacks[id(result)] = result, result.memory.value, copies, dim
        return result


class _Extreme(torch.autograd.Function):
    """The largest or smallest of several; all that are equal to it share its gradient."""

    @staticmethod
    def forward(ctx: Any, choose: Callable[[Tensor, Tensor], Tensor], *parts: Tensor) -> Tensor:
        found = functools.reduce(choose, parts)
        ctx.save_for_backward(found, *parts)
        return found

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        found, *parts = ctx.saved_tensors
        shares = [(part == found).to(found.dtype) for part in parts]
        count = functools.reduce(torch.add, shares)
        return None, *[grads[0] * share / count for share in shares]


def _extreme(choose: Callable[[Tensor, Tensor], Tensor]) -> Callable[[list[Tensor]], Tensor]:
    return lambda parts: _Extreme.apply(choose, *parts)  # type: ignore


def _first(beats: Callable[[Tensor, Tensor], Tensor]) -> Callable[[list[Tensor]], Tensor]:
    """Return the reduction that chooses the first of those that no other one beats, or NaN."""

    def choose(found: Tensor, part: Tensor) -> Tensor:
        return torch.where(~beats(part, found) & (found == found), part, found)

    return lambda parts: functools.reduce(choose, parts)


def _sum(parts: list[Tensor]) -> Tensor:
    return functools.reduce(torch.add, parts[1:], parts[0] + 0.0)


_REDUCTIONS: dict[str, Callable[[list[Tensor]], Tensor]] = {
    "amax": _extreme(torch.maximum),
    "amin": _extreme(torch.minimum),
    "max": _first(torch.le),
    "min": _first(torch.ge),
    "sum": _sum,
    "mean": lambda parts: _sum(parts) / len(parts),
}
