"""What PyTorch's tracing says, in the words of who asked for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def explained(model: nn.Module, *kinds: type[RuntimeError]) -> Iterator[None]:
    """Around a trace: says what it was for, and how a model is made fit for it.

    Args:
        model: what is traced.
        kinds: the errors that speak of the trace, and not of the model.

    Raises:
        ValueError: one of them was raised.
    """
    try:
        yield
    except kinds as reason:
        told = str(reason).strip().partition("\n")[0]
        raise ValueError(
            f"{type(model).__name__} cannot be exported with a free batch: {told} Keep sizes and "
            "branches in forward free of the batch's size and of the values of tensors; batch "
            "first, x.flatten(1) instead of x.view(2, -1)."
        ) from reason
