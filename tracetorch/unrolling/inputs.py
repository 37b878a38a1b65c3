"""Parse the inputs of ``unroll``: a tensor, a tuple or a dict of them, over time or static."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from tracetorch.core.checks import check_count, check_integer
from tracetorch.core.torch_private import pytree


@dataclass(frozen=True)
class Inputs:
    """The inputs of every step, time first and a batch behind it."""

    tensors: Tensor | tuple[Tensor, ...] | dict[str, Tensor]  # positional, or keyword arguments
    steps: int
    static: bool  # the tensors have no time dimension; every step sees the same
    batch: int
    reset: Tensor | None = None  # ``[T, B]``, where a sample starts anew before a step

    @property
    def repeats(self) -> int | None:
        """The ``steps`` with which ``unroll`` takes the tensors; ``None`` where they have time."""
        return self.steps if self.static else None

    def map(self, change: Callable[[Tensor], Tensor]) -> Tensor | tuple[Any, ...] | dict[str, Any]:
        """Apply ``change`` to every tensor."""
        if isinstance(self.tensors, Tensor):
            return change(self.tensors)
        if isinstance(self.tensors, tuple):
            return tuple(change(x) for x in self.tensors)
        return {name: change(x) for name, x in self.tensors.items()}

    def repeated(self) -> Tensor | None:
        """Return the one step that is repeated at every time step, where there is one tensor.

        A tensor that was expanded over time, and wants no gradient of its own at each step, is one.
        """
        x = self.tensors
        if not isinstance(x, Tensor) or self.static:
            return x if isinstance(x, Tensor) else None
        expanded = self.steps > 1 and x.layout is torch.strided and x.stride(0) == 0
        return x[0] if expanded and not x.requires_grad else None

    def folded(self) -> Any:
        """Fold time into the batch, ``[T * B, ...]``, step after step."""
        if self.static:
            return self.map(lambda x: x.expand(self.steps, *x.shape).flatten(0, 1))
        if isinstance(self.tensors, Tensor):  # most often
            x = self.tensors
            if x.is_contiguous():  # quicker than `flatten`, which comes to the same
                return x.view((self.steps * self.batch, *x.shape[2:]))
            return x.flatten(0, 1)
        return self.map(lambda x: x.flatten(0, 1))

    def each_step(self) -> Iterator[Any]:
        """Iterate over the inputs of one step after the other."""
        if self.static:
            for _ in range(self.steps):
                yield self.tensors
        elif isinstance(self.tensors, Tensor):
            yield from self.tensors.unbind(0)
        elif isinstance(self.tensors, tuple):
            yield from zip(*(x.unbind(0) for x in self.tensors), strict=True)
        else:
            names = list(self.tensors)
            for step in zip(*(x.unbind(0) for x in self.tensors.values()), strict=True):
                yield dict(zip(names, step, strict=True))

    def split(self, counts: Sequence[int]) -> list[Inputs]:
        """Split into parts of so many steps each; none of a part without steps."""
        counts = [count for count in counts if count]
        resets = [None] * len(counts) if self.reset is None else torch.split(self.reset, counts)
        if self.static:
            pairs = zip(counts, resets, strict=True)
            return [replace(self, steps=count, reset=reset) for count, reset in pairs]
        # Not slices: the gradient of each would be as long as the whole sequence.
        parts = {id(x): x.split(counts) for x in pytree.tree_leaves(self.tensors)}
        return [
            replace(
                self,
                tensors=self.map(lambda x, i=i: parts[id(x)][i]),  # type: ignore[misc]
                steps=count,
                reset=resets[i],
            )
            for i, count in enumerate(counts)
        ]

    def first(self, steps: int) -> Inputs:
        """Return the first ``steps`` of them, detached."""
        steps = min(steps, self.steps)
        # Static tensors have no time dimension to cut.
        first = self.map(lambda x: x.detach() if self.static else x[:steps].detach())
        reset = None if self.reset is None else self.reset[:steps]
        return replace(self, tensors=first, steps=steps, reset=reset)


def call(model: nn.Module, x: Any) -> Any:
    """Call ``model(x)``, ``model(*x)`` for a tuple, ``model(**x)`` for a dict."""
    if isinstance(x, tuple):
        return model(*x)
    if isinstance(x, dict):
        return model(**x)
    return model(x)


def tensors_by_name(x: Any) -> dict[str, Any]:
    """Name the tensors of an input for messages: ``x``, ``x[0]``, ``x['name']``."""
    if isinstance(x, tuple):
        return {f"x[{i}]": each for i, each in enumerate(x)}
    if isinstance(x, dict):
        return {f"x[{name!r}]": each for name, each in x.items()}
    return {"x": x}


def parse_inputs(x: object, steps: int | None, time_dim: int, batched: bool) -> Inputs:
    """Check ``x`` and return it as :class:`Inputs`; a missing batch is added."""
    if (
        type(x) is Tensor and steps is None and batched and type(time_dim) is int and time_dim == 0
    ):  # most often
        nested = x.is_nested  # its shape is not to be had
        if not nested and x.ndim > 1 and (shape := x.shape)[0]:
            return Inputs(x, shape[0], False, shape[1])
    if steps is not None:
        steps = check_count("steps", steps)
    if type(time_dim) is not int:
        time_dim = check_integer("time_dim", time_dim)
    nested = isinstance(x, Tensor) and x.is_nested
    if nested or isinstance(x, PackedSequence) or not isinstance(x, (Tensor, tuple, dict)):
        got = "a nested tensor" if nested else type(x).__name__
        ragged = nested or isinstance(x, (list, PackedSequence))
        raise TypeError(
            f"x must be a tensor, a tuple or a dict of tensors, got {got}."
            + " Wrap it: torch.as_tensor(x, dtype=torch.float32)." * isinstance(x, np.ndarray)
            + " Sequences of unequal length: x, mask = tt.data.pad(sequences), and the mask goes "
            "to losses, decoders and metrics." * ragged
        )
    named = tensors_by_name(x)
    if not named:
        raise ValueError("x holds no tensor.")
    arranged = [_arranged(name, each, steps, time_dim, batched) for name, each in named.items()]
    # Tensors over time share time and batch; static ones the batch alone.
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
    B = arranged[0].shape[lead - 1]
    tensors: Tensor | tuple[Tensor, ...] | dict[str, Tensor] = arranged[0]
    if isinstance(x, tuple):
        tensors = tuple(arranged)
    elif isinstance(x, dict):
        tensors = dict(zip(x, arranged, strict=True))
    return Inputs(tensors, T, steps is not None, B)


def with_reset(inputs: Inputs, reset: object, time_dim: int, batched: bool) -> Inputs:
    """Return inputs with the steps before which samples start anew, checked, time first."""
    if not isinstance(reset, Tensor) or reset.dtype != torch.bool:
        got = reset.dtype if isinstance(reset, Tensor) else type(reset).__name__
        raise TypeError(
            f"reset must be a tensor of booleans, true where a sample starts anew, got {got}."
        )
    meaning = "true where a sample starts anew before a step"
    return replace(inputs, reset=steps_first("reset", reset, meaning, inputs, time_dim, batched))


def mask_first(mask: Tensor | None, inputs: Inputs, time_dim: int) -> Tensor | None:
    """Return a mask that lies as the inputs did, time first; ``check_mask`` does the rest."""
    if not isinstance(mask, Tensor):
        return mask
    return steps_first("mask", mask, "true where a step is real", inputs, time_dim, True)


def time_is_first(inputs: Inputs, time_dim: int) -> bool:
    """Return whether time was the first dimension, for one may count from the end as well."""
    return time_dim in (0, -pytree.tree_leaves(inputs.tensors)[0].ndim)


def steps_first(
    name: str, given: Tensor, meaning: str, inputs: Inputs, time_dim: int, batched: bool
) -> Tensor:
    """Return booleans of each step, which lie as the inputs did, as ``[T, B]``, checked."""
    first = time_is_first(inputs, time_dim)
    named, sizes = ["T", "B"], [inputs.steps, inputs.batch]
    if not batched:
        del named[1], sizes[1]
    elif not first:
        named, sizes = named[::-1], sizes[::-1]
    if list(given.shape) != sizes:
        raise ValueError(
            f"{name} must have the shape [{', '.join(named)}] = {sizes}, {meaning}, got "
            f"{list(given.shape)}."
        )
    return given[:, None] if not batched else given if first else given.T


def place_time(leaf: Tensor, time_dim: int, batched: bool) -> Tensor:
    """Take a batch of one away again, and move time to where the input has it."""
    if not batched:
        if leaf.ndim < 2 or leaf.shape[1] != 1:
            raise ValueError(
                "batched=False gives the model a batch of one and takes it away again, but an "
                f"output over time has shape {list(leaf.shape)}, without that batch at dimension "
                "1. Keep the batch in the output, or give an input with a batch."
            )
        leaf = leaf.squeeze(1)
    if not -leaf.ndim <= time_dim < leaf.ndim:
        raise ValueError(
            f"time_dim is {time_dim}, but an output or a trajectory has shape {list(leaf.shape)}, "
            "time first. Count from the end, time_dim=-1 say, or put time first."
        )
    return leaf if time_dim == 0 else leaf.movedim(0, time_dim)


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
