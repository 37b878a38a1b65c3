"""Parse the inputs of ``unroll``: a tensor, a tuple or a dict of them, over time or static."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import repeat
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from tracetorch.core.checks import check_count, check_integer
from tracetorch.core.torch_private import pytree
from tracetorch.snn.connectivity import plain_class


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

    def map(self, change: Callable[[Tensor], Tensor]) -> Any:
        """Apply ``change`` to every tensor."""
        return pytree.tree_map(change, self.tensors)

    def repeated(self) -> Tensor | None:
        """Return the step of a single tensor that is static, or expanded and without gradient."""
        x = self.tensors
        if not isinstance(x, Tensor) or self.static:
            return x if isinstance(x, Tensor) else None
        expanded = self.steps > 1 and x.layout is torch.strided and x.stride(0) == 0
        return x[0] if expanded and not x.requires_grad else None

    def folded(self) -> Any:
        """Fold time into the batch, ``[T * B, ...]``, step after step."""
        if self.static:
            return self.map(lambda x: x.expand(self.steps, *x.shape).flatten(0, 1))
        return self.map(lambda x: x.flatten(0, 1))

    def each_step(self) -> Iterator[Any]:
        """Iterate over the inputs of one step after the other."""
        if self.static:
            yield from repeat(self.tensors, self.steps)
        elif isinstance(self.tensors, Tensor):
            yield from self.tensors.unbind(0)
        else:
            leaves, spec = pytree.tree_flatten(self.tensors)
            for step in zip(*(x.unbind(0) for x in leaves), strict=True):
                yield pytree.tree_unflatten(list(step), spec)

    def split(self, counts: Sequence[int]) -> list[Inputs]:
        """Split into parts of so many steps each; none of a part without steps."""
        counts = [count for count in counts if count]
        resets = repeat(None) if self.reset is None else iter(torch.split(self.reset, counts))
        leaves, spec = pytree.tree_flatten(self.tensors)
        # Not slices: the gradient of each would be as long as the whole sequence.
        columns = [repeat(x) if self.static else torch.split(x, counts) for x in leaves]
        return [
            replace(self, tensors=pytree.tree_unflatten(part, spec), steps=count, reset=reset)
            for count, reset, *part in zip(counts, resets, *columns, strict=False)
        ]

    def first(self, steps: int) -> Inputs:
        """Return the first ``steps`` of them, detached."""
        steps = min(steps, self.steps)
        first = self.map(lambda x: x.detach() if self.static else x[:steps].detach())
        reset = None if self.reset is None else self.reset[:steps]
        return replace(self, tensors=first, steps=steps, reset=reset)


def call(model: nn.Module, x: Any) -> Any:
    """Call ``model(x)``, ``model(*x)`` for a tuple, ``model(**x)`` for a dict."""
    if isinstance(x, tuple):
        return model(*x)
    return model(**x) if isinstance(x, dict) else model(x)


def tensors_by_name(x: Any) -> dict[str, Any]:
    """Name the tensors of an input for messages: ``x``, ``x[0]``, ``x['name']``."""
    if isinstance(x, tuple):
        x = dict(enumerate(x))
    return {f"x[{key!r}]": each for key, each in x.items()} if isinstance(x, dict) else {"x": x}


def parse_inputs(x: object, steps: int | None = None, time_dim: int = 0) -> Inputs:
    """Check ``x`` and return it as :class:`Inputs`."""
    if type(x) is Tensor and steps is None and type(time_dim) is int and time_dim == 0:
        nested = x.is_nested  # its shape is not to be had
        if not nested and x.ndim > 1 and (shape := x.shape)[0]:  # most often
            return Inputs(x, shape[0], False, shape[1])
    if steps is not None:
        steps = check_count("steps", steps)
    time_dim = check_integer("time_dim", time_dim)
    nested = isinstance(x, Tensor) and x.is_nested
    if nested or isinstance(x, PackedSequence) or not isinstance(x, (Tensor, tuple, dict)):
        raise TypeError(
            "x must be a tensor, a tuple or a dict of tensors, got "
            f"{'a nested tensor' if nested else type(x).__name__}. Sequences of unequal length: x, "
            "mask = tt.data.pad(sequences), and the mask goes to losses, decoders and metrics."
        )
    named = tensors_by_name(x)
    if not named:
        raise ValueError("x holds no tensor.")
    arranged = [_time_first(name, each, steps, time_dim) for name, each in named.items()]
    # Tensors over time share time and batch; static ones the batch alone.
    lead, shape = 1 if steps is not None else 2, arranged[0].shape
    for name, each in zip(named, arranged, strict=True):
        if each.shape[:lead] != shape[:lead]:
            raise ValueError(
                f"x: {name} has {'time and batch' if lead == 2 else 'batch'} "
                f"{list(each.shape[:lead])}, {next(iter(named))} has {list(shape[:lead])}."
            )
    T = steps if steps is not None else shape[0]
    if T == 0:
        raise ValueError(f"x has no time step: shape {list(shape)}, time first.")
    tensors: Any = arranged[0]
    if isinstance(x, tuple):
        tensors = tuple(arranged)
    elif isinstance(x, dict):
        tensors = dict(zip(x, arranged, strict=True))
    return Inputs(tensors, T, steps is not None, shape[lead - 1])


def _time_first(name: str, x: object, steps: int | None, time_dim: int) -> Tensor:
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(x).__name__}.")
    if x.ndim < (2 if steps is None else 1):
        raise ValueError(
            f"{name} needs {'time and ' if steps is None else ''}a batch, got shape "
            f"{list(x.shape)}. Of one sample, x.unsqueeze({1 if steps is None else 0})."
        )
    if steps is not None:
        return x
    if not -x.ndim <= time_dim < x.ndim:
        raise ValueError(f"time_dim is {time_dim}, but {name} has shape {list(x.shape)}.")
    return x.movedim(time_dim, 0)


def with_reset(inputs: Inputs, reset: object, time_dim: int) -> Inputs:
    """Return inputs with the steps before which samples start anew, checked, time first."""
    if not isinstance(reset, Tensor) or reset.dtype != torch.bool:
        got = reset.dtype if isinstance(reset, Tensor) else type(reset).__name__
        raise TypeError(
            f"reset must be a tensor of booleans, true where a sample starts anew, got {got}."
        )
    return replace(inputs, reset=mask_first(reset, inputs, time_dim, "reset"))


def mask_first(mask: Any, inputs: Inputs, time_dim: int, name: str = "mask") -> Any:
    """Return a mask, or ``None``, that lies as the inputs did as ``[T, B]``; check its shape."""
    if not isinstance(mask, Tensor):  # check_mask does the rest
        return mask
    # one may count from the end as well
    first = time_dim in (0, -pytree.tree_leaves(inputs.tensors)[0].ndim)
    sizes = [inputs.steps, inputs.batch][:: 1 if first else -1]
    if list(mask.shape) != sizes:
        raise ValueError(
            f"{name} must have the shape {'[T, B]' if first else '[B, T]'} = {sizes}, got "
            f"{list(mask.shape)}."
        )
    return mask if first else mask.T


# the modules that may run once on what is repeated at every step
_DETERMINISTIC = (
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AvgPool1d, nn.AvgPool2d),
    *(nn.MaxPool1d, nn.MaxPool2d, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear),
    *(nn.GroupNorm, nn.LayerNorm, nn.Flatten, nn.Unflatten, nn.Identity),
    *(nn.GELU, nn.ReLU, nn.SiLU, nn.Sigmoid, nn.Tanh),
)


def split_static(model: nn.Module) -> tuple[list[nn.Module], list[nn.Module]]:
    """Split an ``nn.Sequential`` into what may run once and the rest; both empty if nothing may."""
    parts = _parts(model)
    once = 0
    while (
        once < len(parts) and plain_class(parts[once]) in _DETERMINISTIC and _is_plain(parts[once])
    ):
        once += 1
    return (parts[:once], parts[once:]) if once else ([], [])


def _parts(module: nn.Module) -> list[nn.Module]:
    if type(module) is not nn.Sequential or not _is_plain(module):
        return [module]
    return [part for child in module for part in _parts(child)]


def _is_plain(module: nn.Module) -> bool:
    """Whether a call does what its class does: no ``forward`` of its own, no hook at every step."""
    forward = module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module)
    return not (forward or module._backward_hooks or module._backward_pre_hooks)
