"""Find modules that cannot run with time folded into the batch, and say why."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

# Modules that keep a memory of their own, which folding would run through time and batch alike.
_WITH_MEMORY = (nn.RNNBase, nn.RNNCellBase)
_ACROSS_DIM = (
    nn.Softmax,
    nn.Softmin,
    nn.LogSoftmax,
    nn.Softmax2d,
    nn.GLU,
    nn.CosineSimilarity,
)
_NOT_BY_LAYER = (
    *_WITH_MEMORY,
    *_ACROSS_DIM,
    nn.MultiheadAttention,
    nn.Flatten,
    nn.Unflatten,
)


def unsupported_reason(modules: Iterable[tuple[str, nn.Module]]) -> str | None:
    """Return the first reason why a model cannot run by layer, or ``None``.

    Args:
        modules: every module of the model with its path.
    """
    for path, module in modules:
        if not isinstance(module, _NOT_BY_LAYER):
            continue
        label = f"{path or 'the model'} ({type(module).__name__})"
        if isinstance(module, _WITH_MEMORY):
            return f"{label} keeps a memory of its own"
        if isinstance(module, nn.MultiheadAttention) and not module.batch_first:
            return f"{label} takes dimension 0 for its sequence (batch_first=False)"
        if isinstance(module, nn.Flatten) and module.start_dim == 0:
            return f"{label} flattens the batch (start_dim=0)"
        if isinstance(module, nn.Unflatten) and module.dim == 0:
            return f"{label} splits the batch (dim=0)"
        if isinstance(module, _ACROSS_DIM) and getattr(module, "dim", None) == 0:
            return f"{label} mixes the samples of the batch (dim=0)"
    return None
