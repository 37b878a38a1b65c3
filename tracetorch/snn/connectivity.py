"""``Connectivity``: the parametrization of a weight by a mask and signs, and who must know of it.

What replaces or recognises a product compares :func:`plain_class` in place of ``type``; what writes
weights does so by :func:`write_weight`, or into :func:`raw_weight`.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from tracetorch.core.torch_private import is_readable

RAW_WEIGHT = "parametrizations.weight.original"
"""Name of the raw values in a layer: of their parameter, and in its ``state_dict``."""


class Connectivity(nn.Module):
    """Parametrization of a weight by a mask and the signs of its inputs: see :func:`connect`."""

    mask: Tensor | None
    signs: Tensor | None

    def __init__(self, mask: Tensor | None, signs: Tensor | None) -> None:
        super().__init__()
        self.register_buffer("mask", mask)
        self.register_buffer("signs", signs)

    def forward(self, raw: Tensor) -> Tensor:
        """Return the weight that acts."""
        weight = raw if self.signs is None else signed(raw, self.signs)
        # not a product: 0 * inf would be NaN, and so would be the gradient of a masked weight
        return weight if self.mask is None else torch.where(self.mask, weight, 0)

    def right_inverse(self, weight: Tensor) -> Tensor:
        """Return the raw values of a weight, which are its own; raise where it breaks the rules."""
        given = weight.detach()
        if not bool(((self.nearest(given) == given) | given.isnan()).all()):
            broken = "is not zero where the mask is false" if self.mask is not None else ""
            wrong = "has another sign than its input" if self.signs is not None else ""
            raise ValueError(
                f"the weight that is assigned {' or '.join(filter(None, (broken, wrong)))}. Assign "
                "one that fits the mask and the signs that tt.snn.connect was given."
            )
        return weight

    def nearest(self, weight: Tensor) -> Tensor:
        """Return the nearest weight that fits: zero where there is no connection, or by sign."""
        if self.signs is not None:
            signs = self.signs.to(weight.dtype)
            weight = torch.where(weight * signs < 0, 0, weight)
        return weight if self.mask is None else torch.where(self.mask, weight, 0)

    def extra_repr(self) -> str:
        """Return how many connections there are, and how many inputs of each sign."""
        parts: list[str] = []
        if self.mask is not None:
            # on the meta device, and inside a vmap, nobody can count them
            number = int(self.mask.sum()) if is_readable(self.mask) else "some"
            parts.append(f"{number} of {self.mask.numel()} connections")
        if self.signs is not None:
            parts.append("excitatory and inhibitory inputs")
        return ", ".join(parts)


def signed(raw: Tensor, signs: Tensor) -> Tensor:
    """Return ``signs * |raw|``, whose derivative is 1 or -1 at zero too, where that of abs is 0."""
    signs = signs.to(raw.dtype)
    return raw * torch.where(raw < 0, -signs, signs)


def check_values(name: str, values: Tensor) -> Tensor:
    """Return a tensor; raise where it is on the meta device."""
    if values.is_meta:
        raise ValueError(f"{name} has no values on the meta device. Give it on the CPU.")
    return values


def check_signs(signs: object) -> Tensor:
    """Return a tensor; raise unless it is of 1 and -1."""
    if not isinstance(signs, Tensor):
        raise TypeError(f"signs must be a tensor of 1 and -1, got {type(signs).__name__}.")
    if not bool(((check_values("signs", signs) == 1) | (signs == -1)).all()):
        raise ValueError("signs must be 1 (excitatory) or -1 (inhibitory).")
    return signs


def connectivity(module: nn.Module) -> Connectivity | None:
    """Return the mask and signs of a weight, where nothing else is parametrized in a module."""
    lists = module._modules.get("parametrizations")
    if not isinstance(lists, nn.ModuleDict) or list(lists) != ["weight"]:
        return None
    rules = [*cast(nn.ModuleList, lists["weight"])]
    return rules[0] if len(rules) == 1 and type(rules[0]) is Connectivity else None


def plain_class(module: nn.Module) -> type[nn.Module]:
    """Return the class whose ``forward`` is called: of a connected module that before."""
    kind = type(module)
    if "parametrizations" not in module._modules or connectivity(module) is None:
        return kind
    return cast("type[nn.Module]", kind.__base__)


def raw_weight(module: nn.Module) -> Tensor:
    """Return the tensor that holds the weight of a layer: of a connected one the raw values."""
    if connectivity(module) is None:
        return cast(Tensor, module.weight)
    lists = cast(nn.ModuleDict, module.parametrizations)
    return cast(Tensor, lists["weight"].original)


@torch.no_grad()
def write_weight(module: nn.Module, weight: Tensor) -> None:
    """Write the weight of a layer in place; of a connected one the nearest that fits."""
    rule = connectivity(module)
    raw_weight(module).copy_(weight if rule is None else rule.nearest(weight))
