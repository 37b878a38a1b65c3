"""Hooks on PyTorch's modules: register them for a block, find others'; sizes of convolutions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, TypeAlias

from torch import nn
from torch.nn.utils import prune
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from tracetorch.core.torch_private import ParametrizedSpectralNorm, global_hooks, is_compiled

PreHook: TypeAlias = Callable[[Any, Any], Any]
KwargsPreHook: TypeAlias = Callable[[Any, Any, Any], Any]
Hook: TypeAlias = Callable[[Any, Any, Any, Any], Any]

# hooks that compute a module's own weight anew, and nothing else
WEIGHT_HOOKS = (prune.BasePruningMethod, SpectralNorm, WeightNorm)


@contextmanager
def forward_hooks(
    *,
    earliest: Iterable[tuple[nn.Module, KwargsPreHook]] = (),
    before: Iterable[tuple[nn.Module, PreHook]] = (),
    first: Iterable[tuple[nn.Module, Hook]] = (),
    after: Iterable[tuple[nn.Module, Hook]] = (),
) -> Iterator[None]:
    """Call hooks in a block; ``earliest`` and ``first`` come before others, the rest behind."""
    # it also removes the hooks registered so far when a later registration fails
    with ExitStack() as stack:
        enter, both = stack.enter_context, {"with_kwargs": True, "prepend": True}
        for module, earliest_hook in earliest:
            enter(module.register_forward_pre_hook(earliest_hook, **both))
        for module, pre_hook in before:
            enter(module.register_forward_pre_hook(pre_hook))
        for module, hook in first:
            enter(module.register_forward_hook(hook, **both))
        for module, hook in after:
            enter(module.register_forward_hook(hook, with_kwargs=True))
        yield


def call_is_forward(module: nn.Module) -> bool:
    """Whether a call is the class's ``forward``: no hook, none of its own, no ``compile()``."""
    hooked = (
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or global_hooks()
    )
    return not (hooked or "forward" in vars(module) or is_compiled(module))


def hooked_weights(module: nn.Module) -> set[str]:
    """Name the parameters that pre-hooks of ``torch.nn.utils`` compute anew: pruning, norms."""
    return {
        hook._tensor_name if isinstance(hook, prune.BasePruningMethod) else hook.name
        for hook in module._forward_pre_hooks.values()
        if isinstance(hook, WEIGHT_HOOKS)
    }


def has_spectral_norm(module: nn.Module) -> bool:
    """Whether a module computes a spectral norm, whose iteration goes on at calls in training."""
    old = any(isinstance(hook, SpectralNorm) for hook in module._forward_pre_hooks.values())
    return old or isinstance(module, ParametrizedSpectralNorm)


def output_size(size: int, kernel: int, stride: int, padding: int, dilation: int = 1) -> int:
    """Return how many places the kernel has; below 1 where it does not fit."""
    return (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


def front_padding(
    padding: str | Sequence[int], kernel: Sequence[int], dilation: Sequence[int]
) -> tuple[int, ...]:
    """Return how many zeros stand in front of each dimension, given in numbers or in a word."""
    if padding == "same":  # behind an even kernel stands one more
        return tuple(d * (k - 1) // 2 for d, k in zip(dilation, kernel, strict=True))
    return (0,) * len(kernel) if isinstance(padding, str) else tuple(map(int, padding))
