"""``connect``: sparse connectivity and Dale's law on PyTorch's own layers."""

from __future__ import annotations

from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from tracetorch.core.checks import check_module
from tracetorch.core.hooks import hooked_weights
from tracetorch.snn.connectivity import (
    Connectivity,
    check_signs,
    connectivity,
    plain_class,
    raw_weight,
)
from tracetorch.snn.delay import DelayedLinear

Layer = TypeVar("Layer", bound=nn.Module)

_PRODUCTS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def connect(module: Layer, *, mask: Tensor | None = None, signs: Tensor | None = None) -> Layer:
    """Give a linear layer or convolution sparse connectivity and signs (Dale's law), in place.

    ::

        weight = mask * signs * |raw|      (without signs: mask * raw)

    Where the mask is false the weight stays exactly zero, whatever an optimizer does. With signs
    all weights of an input neuron are excitatory (at least 0) or inhibitory (at most 0); the
    derivative by ``raw`` is 1 or -1 everywhere, so that a weight that has become zero can grow
    again. The raw values, the same parameter object as before, are
    ``parametrizations.weight.original``, until :func:`disconnect` (``remove_parametrizations``
    would break copies). A weight of the wrong sign is mirrored here, an integer becomes zero.

    A write into ``layer.weight`` in place is lost: assign a tensor (``layer.weight = values``),
    which is checked, or set weights by ``tt.init``. ``pickle`` refuses it.

    Args:
        module: an ``nn.Linear`` or a convolution, a layer of ``tt.integers`` that is like one (for
            :class:`tt.STDP <tracetorch.STDP>`), or an :class:`DelayedLinear`.
        mask: booleans, true where there is a connection, of the weight's shape ``[outputs,
            inputs, ...]``, or ``[outputs, inputs]`` for the channels of a convolution.
        signs: 1 (excitatory) or -1 (inhibitory), ``[inputs]``; ``None``: both signs are free.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: neither is given, a shape does not fit, signs are not 1 and -1, or the weight
            has no values yet or follows from others already.

    Example:
        >>> layer = connect(nn.Linear(4, 3), mask=torch.eye(3, 4) > 0)
        >>> int((layer.weight != 0).sum())
        3
        >>> layer = connect(nn.Linear(4, 3), signs=torch.tensor([1, 1, 1, -1]))
        >>> bool((layer.weight[:, :3] >= 0).all() and (layer.weight[:, 3] <= 0).all())
        True

    Reference: Song, Yang and Wang, "Training excitatory-inhibitory recurrent neural networks for
    cognitive tasks", PLOS Computational Biology 12 (2016).
    """
    product = module.linear if isinstance(module, DelayedLinear) else module
    # of integers, whose room is below: what has whole weights, in no parameter
    whole = getattr(product, "_buffers", {}).get("weight")
    if not isinstance(product, _PRODUCTS) and (whole is None or whole.is_floating_point()):
        raise TypeError(
            "connect takes an nn.Linear, a convolution, one of tt.integers or a DelayedLinear, got "
            f"{type(module).__name__}. Pass the linear layer inside, as recurrent.connection."
        )
    if mask is None and signs is None:
        raise ValueError("connect needs mask=, signs=, or both.")
    if parametrize.is_parametrized(product, "weight") or hooked_weights(product):
        raise ValueError(
            f"the weight of {type(product).__name__} is parametrized, pruned, or has a norm of "
            "torch.nn.utils already. Connect the plain layer, once, with mask= and signs= together."
        )
    weight = cast(Tensor, product.weight)
    if is_lazy(weight) or weight.is_meta:
        raise ValueError("the weight has no values yet. Run the model once, or load them, before.")
    rule = Connectivity(_checked_mask(mask, weight), _checked_signs(signs, product))
    with torch.no_grad():
        # the mirror image of the least integer has no place in its width
        weight.copy_(rule(weight) if whole is None else rule.nearest(weight))
    parametrize.register_parametrization(product, "weight", rule)
    return module


def disconnect(module: Layer) -> Layer:
    """Make a layer of :func:`connect` a plain one again, in place; its weight stays as it is.

    Copies of the layer stay connected. An optimizer's momentum is that of the raw values, mirrored
    where the sign was.

    Args:
        module: what was given to :func:`connect`, or a copy.

    Raises:
        TypeError, ValueError: it is not connected, or its weight is parametrized otherwise too.

    Example:
        >>> layer = connect(nn.Linear(4, 3), mask=torch.eye(3, 4) > 0)
        >>> type(disconnect(layer)).__name__, int((layer.weight != 0).sum())
        ('Linear', 3)
    """
    check_module(module)
    product: Any = module.linear if isinstance(module, DelayedLinear) else module
    if connectivity(product) is None:
        raise ValueError(
            f"{type(module).__name__} has no weight with the mask and signs of tt.snn.connect, or "
            "another parametrization beside. Remove that first."
        )
    kind, weight = plain_class(product), raw_weight(product)
    with torch.no_grad():
        weight.copy_(product.weight)
    del product._modules["parametrizations"]
    product.__class__ = kind  # not by PyTorch's function, which changes the class that copies share
    values: Any = product._parameters if isinstance(weight, nn.Parameter) else product._buffers
    others = dict(values)
    values.clear()
    values.update(weight=weight, **others)
    return module


def _checked_mask(mask: Tensor | None, weight: Tensor) -> Tensor | None:
    """Return a mask of the weight's shape, of memory of its own."""
    if mask is None:
        return None
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        got = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise TypeError(f"mask must be a tensor of booleans, got {got}. Try mask != 0.")
    allowed = {tuple(weight.shape), tuple(weight.shape[:2])}
    if tuple(mask.shape) not in allowed:
        shapes = " or ".join(str(list(shape)) for shape in sorted(allowed, key=len))
        raise ValueError(f"mask must have the shape {shapes}, got {list(mask.shape)}.")
    whole = mask.reshape(*mask.shape, *[1] * (weight.ndim - mask.ndim)).expand_as(weight)
    return whole.to(weight.device, copy=True, memory_format=torch.contiguous_format)


def _checked_signs(signs: Tensor | None, product: nn.Module) -> Tensor | None:
    """Return signs as integers, shaped to broadcast with the weight."""
    if signs is None:
        return None
    check_signs(signs)
    weight = cast(Tensor, product.weight)
    groups: int = getattr(product, "groups", 1)
    inputs = groups * weight.shape[1]
    if tuple(signs.shape) != (inputs,):
        got = list(signs.shape)
        raise ValueError(f"signs must have one value for each input, [{inputs}], got {got}.")
    # the inputs of an output are those of its group
    each = signs.reshape(groups, 1, -1).expand(-1, len(weight) // groups if groups > 1 else 1, -1)
    shaped = each.reshape(-1, weight.shape[1], *[1] * (weight.ndim - 2))
    return shaped.to(weight.device, torch.int8, copy=True)
