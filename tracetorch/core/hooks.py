"""Register forward hooks on modules for the length of a block, and find hooks that others have."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, TypeAlias

from torch import nn
from torch.nn.utils import prune
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from tracetorch.core.torch_private import global_hooks, is_compiled

PreHook: TypeAlias = Callable[[Any, Any], Any]
KwargsPreHook: TypeAlias = Callable[[Any, Any, Any], Any]
Hook: TypeAlias = Callable[[Any, Any, Any, Any], Any]

# hooks that compute a module's own weight anew, and nothing else: by which methods, and where they
# keep the name of the attribute that receives it
_WEIGHT_HOOKS: dict[Any, tuple[tuple[str, ...], str]] = {
    prune.BasePruningMethod: (("__call__", "apply_mask"), "_tensor_name"),
    SpectralNorm: (("__call__", "compute_weight"), "name"),
    WeightNorm: (("__call__", "compute_weight"), "name"),
}
WEIGHT_HOOKS = tuple(_WEIGHT_HOOKS)


@contextmanager
def forward_hooks(
    *,
    earliest: Iterable[tuple[nn.Module, KwargsPreHook]] = (),
    before: Iterable[tuple[nn.Module, PreHook]] = (),
    first: Iterable[tuple[nn.Module, Hook]] = (),
    after: Iterable[tuple[nn.Module, Hook]] = (),
) -> Iterator[None]:
    """Call hooks around the forward pass of modules, and remove all of them at the end.

    Args:
        earliest: modules and ``hook(module, args, kwargs)``, called before the module's other hooks
            see the arguments.
        before: modules and ``hook(module, args)``, called before ``forward``; what it returns
            replaces the arguments, unless it is ``None``.
        first: modules and ``hook(module, args, kwargs, output)``, called after it, before the
            module's other hooks; what it returns replaces the output, unless it is ``None``.
        after: the same, called after the module's other hooks.

    Example:
        >>> shapes = []
        >>> layer = nn.Linear(2, 3)
        >>> with forward_hooks(after=[(layer, lambda m, args, kwargs, y: shapes.append(y.shape))]):
        ...     _ = layer(torch.ones(5, 2))
        >>> _ = layer(torch.ones(5, 2))
        >>> shapes
        [torch.Size([5, 3])]
    """
    # The stack also removes the hooks registered so far when a later registration fails. A handle
    # is its own context manager, which removes the hook.
    with ExitStack() as stack:
        for module, earliest_hook in earliest:
            stack.enter_context(
                module.register_forward_pre_hook(earliest_hook, with_kwargs=True, prepend=True)
            )
        for module, pre_hook in before:
            stack.enter_context(module.register_forward_pre_hook(pre_hook))
        for prepend, hooks in ((True, first), (False, after)):
            for module, hook in hooks:
                stack.enter_context(
                    module.register_forward_hook(hook, with_kwargs=True, prepend=prepend)
                )
        yield


def call_is_forward(module: nn.Module) -> bool:
    """Whether calling a module calls the ``forward`` of its class and nothing else.

    It does not with a hook, a ``forward`` of the instance, or inside ``module.compile()``.

    Example:
        >>> layer = nn.Linear(2, 3)
        >>> call_is_forward(layer)
        True
        >>> handle = layer.register_forward_hook(lambda module, args, output: None)
        >>> call_is_forward(layer)
        False
    """
    hooked = (
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or global_hooks()
    )
    return not (hooked or "forward" in vars(module) or is_compiled(module))


def has_weight_hooks(module: nn.Module) -> bool:
    """Whether a pre-hook of ``torch.nn.utils`` computes a parameter at every call: pruning, norms.

    Example:
        >>> layer = nn.Linear(2, 3)
        >>> has_weight_hooks(layer)
        False
        >>> has_weight_hooks(prune.random_unstructured(layer, "weight", 0.5))
        True
    """
    return any(isinstance(hook, WEIGHT_HOOKS) for hook in module._forward_pre_hooks.values())


def hooked_weights(module: nn.Module) -> set[str]:
    """Name the attributes that hooks of ``torch.nn.utils`` compute anew, and alike, at every call.

    Not those of a subclass with another way to compute them, which may keep something.

    Example:
        >>> hooked_weights(prune.random_unstructured(nn.Linear(2, 3), "weight", 0.5))
        {'weight'}
    """
    return {
        getattr(hook, attribute)
        for hook in module._forward_pre_hooks.values()
        for base, (methods, attribute) in _WEIGHT_HOOKS.items()
        if isinstance(hook, base)
        and all(getattr(type(hook), name) is getattr(base, name) for name in methods)
    }


def hook_names(module: nn.Module) -> list[str]:
    """Name the functions that are hooks on the forward pass of a module, PyTorch's and ours apart.

    Example:
        >>> layer = nn.Linear(2, 3)
        >>> def log_output(module, args, output): ...
        >>> handle = layer.register_forward_hook(log_output)
        >>> hook_names(prune.random_unstructured(layer, "weight", 0.5))
        ['log_output']
    """
    hooks: tuple[Any, ...] = (*module._forward_pre_hooks.values(), *module._forward_hooks.values())
    names = []
    for hook in hooks:
        while isinstance(hook, partial):
            hook = hook.func
        named = hook if hasattr(hook, "__qualname__") else type(hook)
        if str(named.__module__).partition(".")[0] not in ("torch", "tracetorch"):
            names.append(named.__qualname__)
    return names
