"""Split a model into a static prefix, computed once when every step sees the same input."""

from __future__ import annotations

from torch import nn

from tracetorch.snn.connectivity import plain_class

_DETERMINISTIC = (
    nn.AdaptiveAvgPool1d,
    nn.AdaptiveAvgPool2d,
    nn.AvgPool1d,
    nn.AvgPool2d,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.Flatten,
    nn.GELU,
    nn.GroupNorm,
    nn.Identity,
    nn.LayerNorm,
    nn.Linear,
    nn.MaxPool1d,
    nn.MaxPool2d,
    nn.ReLU,
    nn.SiLU,
    nn.Sigmoid,
    nn.Tanh,
    nn.Unflatten,
)


def split_static(model: nn.Module) -> tuple[list[nn.Module], list[nn.Module]]:
    """Split a (nested) ``nn.Sequential`` into the modules that may run once, and the rest.

    Both are empty where nothing is to be gained or the model is something else.
    """
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
