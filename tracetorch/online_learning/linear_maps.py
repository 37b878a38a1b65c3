"""Describe linear layers and convolutions as products of features with a matrix of weights."""

from __future__ import annotations

from typing import TypeAlias, TypeGuard, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from tracetorch.core.convolution import front_padding
from tracetorch.core.hooks import hooked_weights
from tracetorch.integers import layers
from tracetorch.snn.connectivity import plain_class

LinearMap: TypeAlias = nn.Linear | nn.Conv2d | layers.Linear | layers.Conv2d


def is_integer_map(module: nn.Module) -> bool:
    """Whether a module is a linear layer or a convolution of integers, which STDP can change."""
    plain = "forward" not in vars(module) and plain_class(module) in get_args(LinearMap)[2:]
    return plain and getattr(module, "groups", 1) == 1


def is_convolution(module: nn.Module) -> TypeGuard[nn.Conv2d | layers.Conv2d]:
    """Whether a product has places that share its weights."""
    return isinstance(module, nn.Conv2d | layers.Conv2d)


def is_linear_map(module: nn.Module) -> bool:
    """Whether a module's weights can have traces.

    They cannot with a forward of the module's own, nor where a hook computes the weight, which is
    no parameter then, and before the call it is that of the last one.
    """
    if "forward" in vars(module) or hooked_weights(module):
        return False
    if isinstance(module, nn.Conv2d) and plain_class(module) is nn.Conv2d:
        return module.groups == 1 and module.padding_mode == "zeros" and module.padding != "same"
    return plain_class(module) is nn.Linear


def weights_of(module: LinearMap) -> list[Tensor]:
    """Return the weight, and the bias where there is one."""
    return [module.weight] if module.bias is None else [module.weight, module.bias]


def lanes(module: LinearMap, values: Tensor) -> Tensor:
    """Reshape values shaped like the output to ``[samples and places, outputs]``."""
    channels_last = values.movedim(-3, -1) if is_convolution(module) else values
    return channels_last.reshape(-1, channels_last.shape[-1])


def padding_of(module: nn.Conv2d | layers.Conv2d) -> tuple[int, ...]:
    """Return the padding in numbers, the same at both ends."""
    return front_padding(module.padding, module.kernel_size, module.dilation)


def factors(module: LinearMap, x: Tensor) -> Tensor:
    """Return what the weights of an output are multiplied by, ``[samples and places, inputs]``."""
    if is_convolution(module):
        images = x if x.ndim == 4 else x[None]
        pairs = module.kernel_size, module.dilation, padding_of(module), module.stride
        patches = functional.unfold(images, *[(pair[0], pair[1]) for pair in pairs])
        return patches.transpose(1, 2).flatten(0, 1)
    return x.reshape(-1, x.shape[-1])


def features(module: LinearMap, x: Tensor) -> Tensor:
    """Return the factors of the weights, and 1 for the bias; 0 of what is frozen."""
    rows = factors(module, x)
    rows = rows if module.weight.requires_grad else torch.zeros_like(rows)
    if module.bias is None:
        return rows
    return torch.cat([rows, torch.full_like(rows[:, :1], float(module.bias.requires_grad))], 1)


def inputs_of(module: LinearMap) -> int:
    """Return the number of features."""
    return module.weight[0].numel() + (module.bias is not None)


def split(module: LinearMap, gradient: Tensor) -> list[Tensor]:
    """Split a gradient ``[outputs, inputs]`` into those of the weight and of the bias."""
    if module.bias is None:
        return [gradient.view_as(module.weight)]
    return [gradient[:, :-1].reshape(module.weight.shape), gradient[:, -1]]
