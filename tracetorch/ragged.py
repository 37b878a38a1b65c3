"""Check and apply the mask of a padded batch: sequences of unequal length in one tensor.

One convention for decoders, losses and metrics: a batch is ``[T, B, ...]``, and ``mask`` ``[T, B]``
is true where a step is real and false where it is padding. A result is what each sequence would
give if the other steps were cut out of it: padding may stand anywhere, hold anything, NaN too, and
gets no gradient. Each sequence is averaged over its own length before the batch is. Checks of
values are left out inside ``torch.compile``, which they would break.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tracetorch.core.torch_private import is_readable

# behind an error, where the targets are as many as what should be time
TIME_FIRST = (
    " Time comes first: of a batch [B, T, ...] take x.movedim(1, 0). A still image, [B, C, H, W], "
    "has no time: tt.unroll(model, x, steps=...)."
)


def check_sequence(name: str, x: Tensor, *, batched: bool = False) -> None:
    """Check that ``x`` is a real tensor over time, ``[T, ...]``."""
    if not isinstance(x, Tensor) or x.is_complex():
        got = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(
            f"{name} must be a tensor, got {got}. Give one of real numbers, torch.as_tensor(...)."
        )
    if x.ndim < 1 + batched:
        expected = "[T, B, ...]" if batched else "[T, ...]"
        raise ValueError(f"{name} must have the shape {expected}, time first, got {list(x.shape)}.")
    if len(x) == 0:
        raise ValueError(f"{name} needs at least one time step, got shape {list(x.shape)}.")


def check_mask(mask: Tensor | None, name: str, x: Tensor) -> None:
    """Check that ``mask`` is a boolean ``[T, B]`` that fits ``x``, with a real step per sequence.

    One that is inverted looks as padding in front does: only an empty sequence shows it.
    """
    if mask is None:
        return
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        got = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise TypeError(
            f"mask must be a tensor of booleans [T, B], True where a step is real, got {got}. From "
            "lengths: torch.arange(T)[:, None] < lengths."
        )
    if x.ndim < 2 or mask.shape != x.shape[:2]:
        raise ValueError(
            f"mask must have the shape [T, B] of {name}, whose shape is {list(x.shape)}, got "
            f"{list(mask.shape)}."
        )
    if is_readable(mask):
        empty = (~mask.any(0)).nonzero()
        if len(empty):
            raise ValueError(
                f"mask: sequence {int(empty[0])} of the batch has no real step. Leave it out of "
                "the batch. True is where the data is real: if it is True at padding, as "
                "PyTorch's src_key_padding_mask is, give ~mask."
            )


def aligned(mask: Tensor, x: Tensor) -> Tensor:
    """Append dimensions of size 1 to ``mask`` ``[T, B]`` so that it broadcasts over ``x``."""
    return mask.reshape(*mask.shape, *[1] * (x.ndim - 2))


def filled(x: Tensor, mask: Tensor | None, value: float = 0.0) -> Tensor:
    """Set ``x`` ``[T, B, ...]`` to ``value`` at padded steps; no gradient flows there."""
    # masked_fill, not a product with the mask: NaN times 0 is NaN
    return x if mask is None else x.masked_fill(~aligned(mask, x), value)


def real_steps_first(x: Tensor, mask: Tensor) -> Tensor:
    """Move the real steps of each sequence to its front, in their order; zeros stand behind."""
    order = (~mask).to(torch.uint8).argsort(dim=0, stable=True)
    moved = x.gather(0, aligned(order, x).expand_as(x))
    return filled(moved, mask.gather(0, order))


def lengths(x: Tensor, mask: Tensor | None) -> Tensor:
    """Count the real steps, in a shape that divides ``x[0]``: ``[B, 1, ...]`` or ``[]``."""
    if mask is None:
        return torch.tensor(len(x), device=x.device)
    return aligned(mask, x).sum(0)


def as_floating(x: Tensor) -> Tensor:
    """Convert to a dtype for counting: float32 for half precision, the default for integers."""
    if not x.is_floating_point():
        return x.to(torch.get_default_dtype())
    # float16 is exact to 2048, bfloat16 to 256: too few spikes to count
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
