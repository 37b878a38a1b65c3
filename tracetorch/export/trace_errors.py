"""Translate errors of PyTorch's tracing into what to change in the model."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def ignore_own_warnings() -> Iterator[None]:
    """Ignore what PyTorch warns of in its own code, about which a user can do nothing."""
    with warnings.catch_warnings():
        # when it copies a program (torch 2.13)
        warnings.filterwarnings("ignore", r".*isinstance\(treespec, LeafSpec\)", FutureWarning)
        yield


@contextmanager
def explain_trace_errors(model: nn.Module, *kinds: type[RuntimeError]) -> Iterator[None]:
    """Raise errors of a trace as ``ValueError``s that name the model and the remedy."""
    try:
        with ignore_own_warnings():
            yield
    except kinds as error:
        # The lines after the first are advice on torch.export itself, which the user did not call.
        reason = str(error).strip().partition("\n")[0].rstrip(".")
        raise ValueError(
            f"{type(model).__name__} cannot be exported: {reason}. Keep sizes and branches "
            "in forward free of the batch's size and of the values of tensors; batch first, "
            "x.flatten(1) instead of x.view(2, -1)."
        ) from error
