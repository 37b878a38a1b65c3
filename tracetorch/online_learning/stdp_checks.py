"""Check what STDP is given: its connection and bounds, spikes, rewards and masks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from tracetorch.core.checks import check_number, is_finite
from tracetorch.core.convolution import output_size
from tracetorch.core.hooks import has_weight_hooks
from tracetorch.core.torch_private import is_readable
from tracetorch.online_learning.linear_maps import LinearMap
from tracetorch.snn.connectivity import connectivity
from tracetorch.snn.sequence_layer import ARITHMETIC_DTYPE


def check_spikes(connection: LinearMap, pre: Tensor, post: Tensor, mask: Tensor | None) -> None:
    """Raise where the spikes of a sequence fit neither each other, the connection nor the mask."""
    ndim = 3 if isinstance(connection, nn.Linear) else 5
    if pre.ndim != ndim or post.ndim != ndim or pre.shape[:2] != post.shape[:2]:
        step = "[B, inputs]" if ndim == 3 else "[B, C, H, W]"
        raise ValueError(
            f"pre and post must be {step} in a step, with [T] in front in unroll(), and of one "
            f"length and batch, got steps of {list(pre.shape[1:])} and {list(post.shape[1:])}."
        )
    if not isinstance(connection, nn.Linear):
        places = _places(connection, pre)
        if post.shape[3:] != torch.Size(places):
            raise ValueError(
                f"post must be shaped like the output of {connection!r}, with places "
                f"{places}, got {list(post.shape[2:])} for an input of {list(pre.shape[2:])}."
            )
    if pre.dtype != post.dtype or pre.device != post.device:
        raise TypeError(
            f"pre and post must be of one dtype and device, got {pre.dtype} on {pre.device} "
            f"and {post.dtype} on {post.device}."
        )
    if mask is not None and mask.shape != pre.shape[:2]:
        raise ValueError(f"mask has {mask.shape[1]} samples, pre has {pre.shape[1]}.")


def check_finite_spikes(pre: Tensor, post: Tensor) -> None:
    """Raise where spikes are NaN or infinite: one such value reaches the weights, and stays."""
    for name, spikes in (("pre", pre), ("post", post)):
        if is_readable(spikes) and not is_finite(spikes):
            raise ValueError(
                f"{name} has NaN or infinite values, which would stay in the traces and reach "
                f"every weight. Leave the step out: if not {name}.isfinite().all(): continue"
            )


def checked_reward(
    reward: Tensor | None, pre: Tensor, mask: Tensor | None, *, waits: bool
) -> Tensor | None:
    """Return the reward as ``[T, B]``; ``waits``: there is an eligibility trace."""
    if reward is None:
        return None
    if not waits:
        raise ValueError(
            "a reward needs an eligibility trace, which changes wait in. Give tau_eligibility."
        )
    if not isinstance(reward, Tensor):
        raise TypeError(f"reward must be a tensor over time, got {type(reward).__name__}.")
    if reward.shape not in (pre.shape[:1], pre.shape[:2]):
        raise ValueError(
            f"reward must have one value for each step, or for each step and sample, "
            f"{list(pre.shape[:2])}, got {list(reward.shape)}."
        )
    reward = reward.to(pre.device, ARITHMETIC_DTYPE[pre.dtype])
    reward = (reward if reward.ndim == 2 else reward[:, None]).expand(pre.shape[:2])
    if not bool(torch.isfinite(reward if mask is None else reward[mask]).all()):
        raise ValueError("reward must be finite, got a tensor with infinite values or NaN.")
    return reward


def check_own_weight(connection: nn.Module) -> None:
    """Raise where the weight is computed from other values: what is written into it is lost."""
    computed = is_parametrized(connection) and connectivity(connection) is None
    if computed or has_weight_hooks(connection):
        raise ValueError(
            f"connection {connection!r} is parametrized, pruned, or has a norm of torch.nn.utils: "
            "its weight follows from other values, and cannot be learned. Remove this first."
        )


def checked_bounds(bounds: object) -> tuple[float, float] | None:
    """Return lowest and highest weight; raise where they are none."""
    if bounds is None:
        return None
    if not isinstance(bounds, Sequence) or isinstance(bounds, str):
        raise TypeError(f"bounds must be (lowest, highest), two numbers, got {bounds!r}.")
    numbers = [check_number("a bound", each) for each in bounds]
    if len(numbers) != 2 or not numbers[0] < numbers[1]:
        raise ValueError(f"bounds must be (lowest, highest), got {bounds}.")
    return numbers[0], numbers[1]


def _places(conv: nn.Conv2d, pre: Tensor) -> list[int]:
    """Return height and width of a convolution's output."""
    padding = (0, 0) if isinstance(conv.padding, str) else conv.padding  # "valid"
    options = (pre.shape[-2:], conv.kernel_size, conv.stride, padding, conv.dilation)
    return [output_size(*each) for each in zip(*options, strict=True)]
