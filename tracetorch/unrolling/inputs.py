"""What a model is given: a tensor, a tuple or a dict of them, over time or at rest."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree


@dataclass(frozen=True)
class Inputs:
    """The inputs of every step, time first and a batch behind it.

    Args:
        given: a tensor, a tuple (positional arguments) or a dict (keyword arguments) of tensors.
        steps: number of time steps.
        at_rest: the tensors have no time dimension; every step sees the same.
    """

    given: Tensor | tuple[Tensor, ...] | dict[str, Tensor]
    steps: int
    at_rest: bool

    def map(self, change: Callable[[Tensor], Tensor]) -> Tensor | tuple[Any, ...] | dict[str, Any]:
        """The same with every tensor changed."""
        if isinstance(self.given, Tensor):
            return change(self.given)
        if isinstance(self.given, tuple):
            return tuple(change(x) for x in self.given)
        return {name: change(x) for name, x in self.given.items()}

    def folded(self) -> Any:
        """``[T * B, ...]``: time in the batch, step after step."""
        if self.at_rest:
            return self.map(lambda x: x.expand(self.steps, *x.shape).flatten(0, 1))
        return self.map(lambda x: x.flatten(0, 1))

    def each_step(self) -> Iterator[Any]:
        """The inputs of one step after the other."""
        if self.at_rest:
            for _ in range(self.steps):
                yield self.given
        elif isinstance(self.given, Tensor):
            yield from self.given.unbind(0)
        elif isinstance(self.given, tuple):
            yield from zip(*(x.unbind(0) for x in self.given), strict=True)
        else:
            names = list(self.given)
            for step in zip(*(x.unbind(0) for x in self.given.values()), strict=True):
                yield dict(zip(names, step, strict=True))

    def pieces(self, steps: int) -> list[Inputs]:
        """The same in pieces of so many steps, the last one what is left."""
        counts = [min(steps, self.steps - start) for start in range(0, self.steps, steps)]
        if self.at_rest:
            return [Inputs(self.given, count, True) for count in counts]
        # split, not slices: their gradients would each be as long as the whole
        cut = {id(x): x.split(steps) for x in pytree.tree_leaves(self.given)}
        return [
            Inputs(self.map(lambda x, i=i: cut[id(x)][i]), count, False)  # type: ignore[misc]
            for i, count in enumerate(counts)
        ]

    def first(self, steps: int) -> Inputs:
        """The first ``steps`` of them, cut from the graph."""
        steps = min(steps, self.steps)
        cut = self.map(lambda x: x.detach() if self.at_rest else x[:steps].detach())
        return Inputs(cut, steps, self.at_rest)

    @property
    def batch(self) -> int:
        """Size of the batch."""
        first = self.given
        if isinstance(first, dict):
            first = tuple(first.values())
        if isinstance(first, tuple):
            first = first[0]
        return first.shape[0 if self.at_rest else 1]


def call(model: nn.Module, given: Any) -> Any:
    """``model(x)``, ``model(*x)`` for a tuple, ``model(**x)`` for a dict."""
    if isinstance(given, tuple):
        return model(*given)
    if isinstance(given, dict):
        return model(**given)
    return model(given)


def inputs(x: object, steps: int | None, time_dim: int, batched: bool) -> Inputs:
    """``x`` as :class:`Inputs`, checked; a missing batch is added.

    Raises:
        TypeError: ``x`` is not a tensor, a tuple or a dict of tensors, or ``steps`` or ``time_dim``
            is not an integer.
        ValueError: a tensor lacks a dimension, or the tensors differ in time steps or batch.
    """
    for name, value in (("steps", steps), ("time_dim", time_dim)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
            raise TypeError(f"{name} must be an integer, got {value!r}.")
    if steps is not None and steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}.")
    named: dict[str, object]
    if isinstance(x, Tensor):
        named = {"x": x}
    elif isinstance(x, tuple):
        named = {f"x[{i}]": each for i, each in enumerate(x)}
    elif isinstance(x, dict):
        named = {f"x[{name!r}]": each for name, each in x.items()}
    else:
        raise TypeError(
            f"x must be a tensor, a tuple or a dict of tensors, got {type(x).__name__}."
        )
    if not named:
        raise ValueError("x holds no tensor.")
    arranged = [_arranged(name, each, steps, time_dim, batched) for name, each in named.items()]
    lead = 1 if steps is not None else 2
    for name, each in zip(named, arranged, strict=True):
        if each.shape[:lead] != arranged[0].shape[:lead]:
            raise ValueError(
                f"x: {name} has {'time and batch' if lead == 2 else 'batch'} "
                f"{list(each.shape[:lead])}, {next(iter(named))} has "
                f"{list(arranged[0].shape[:lead])}."
            )
    T = steps if steps is not None else arranged[0].shape[0]
    if T == 0:
        raise ValueError(f"x has no time step: shape {list(arranged[0].shape)}, time first.")
    if isinstance(x, Tensor):
        return Inputs(arranged[0], T, steps is not None)
    if isinstance(x, tuple):
        return Inputs(tuple(arranged), T, steps is not None)
    return Inputs(dict(zip(x, arranged, strict=True)), T, steps is not None)


def _arranged(name: str, x: object, steps: int | None, time_dim: int, batched: bool) -> Tensor:
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(x).__name__}.")
    needed = (steps is None) + batched
    if x.ndim < needed:
        raise ValueError(
            f"{name} needs {'time' if steps is None else ''}"
            f"{' and ' if needed == 2 else ''}{'a batch' if batched else ''}, got shape "
            f"{list(x.shape)}."
        )
    if steps is None:
        if not -x.ndim <= time_dim < x.ndim:
            raise ValueError(f"time_dim is {time_dim}, but {name} has shape {list(x.shape)}.")
        x = x.movedim(time_dim, 0)
    return x if batched else x.unsqueeze(0 if steps is not None else 1)
