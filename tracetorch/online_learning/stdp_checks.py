"""Check what STDP is given: its connection, spikes, rewards and masks."""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from tracetorch.core.checks import check_nonnegative, check_number, is_finite
from tracetorch.core.convolution import output_size
from tracetorch.core.hooks import hooked_weights
from tracetorch.core.torch_private import is_readable
from tracetorch.online_learning.linear_maps import (
    LinearMap,
    is_convolution,
    is_integer_map,
    is_linear_map,
    padding_of,
)
from tracetorch.snn.connectivity import connectivity
from tracetorch.snn.sequence_layer import ARITHMETIC_DTYPE
from tracetorch.snn.sparse_linear import SparseLinear


def check_connection(connection: object) -> None:
    """Raise unless STDP can change the weight of a connection."""
    if isinstance(connection, nn.Module):
        check_own_weight(connection)
        if is_linear_map(connection) or is_integer_map(connection):
            return
    if isinstance(connection, SparseLinear):
        raise TypeError(
            "the changes of STDP are a matrix [outputs, inputs], and a SparseLinear has a list "
            f"of edges, got {connection!r}. Use an nn.Linear with the mask of tt.snn.connect."
        )
    raise TypeError(
        "connection must be an nn.Linear, or an nn.Conv2d with groups=1 and a padding of "
        f"zeros, in numbers, or one of tt.integers, got {connection!r}."
    )


def check_pair(name: str, meaning: str, values: Any) -> tuple[Any, Any]:
    """Return two values; raise where there are more, or fewer."""
    try:
        first, second = values
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be {meaning}, got {values!r}.") from None
    return first, second


def checked_bounds(bounds: Any, mu: float) -> tuple[float, float] | None:
    """Return the bounds; raise where they are none, or not finite and ``mu`` makes them soft."""
    if bounds is not None:
        given = check_pair("bounds", "(lowest, highest)", bounds)
        lowest, highest = bounds = tuple(check_number("a bound", each) for each in given)
        if not lowest < highest:
            raise ValueError(f"bounds must be (lowest, highest), got {bounds}.")
    if check_nonnegative("mu", mu) > 0 and not (bounds and all(map(math.isfinite, bounds))):
        problem = "there are none" if bounds is None else f"{bounds} are not finite"
        raise ValueError(f"mu={mu} makes bounds soft, and {problem}. Give bounds=(0, 1).")
    return cast("tuple[float, float] | None", bounds)


def check_spikes(connection: LinearMap, pre: Tensor, post: Tensor, mask: Tensor | None) -> None:
    """Raise where the spikes of a sequence fit neither each other, the connection nor the mask.

    Nor may they be NaN or infinite: one such value reaches the weights, and stays.
    """
    ndim = 5 if is_convolution(connection) else 3
    if pre.ndim != ndim or post.ndim != ndim or pre.shape[:2] != post.shape[:2]:
        step = "[B, inputs]" if ndim == 3 else "[B, C, H, W]"
        raise ValueError(
            f"pre and post must be {step} in a step, with [T] in front in unroll(), and of one "
            f"length and batch, got steps of {list(pre.shape[1:])} and {list(post.shape[1:])}."
        )
    if is_convolution(connection):
        options = connection.kernel_size, connection.stride, padding_of(connection)
        pairs = zip(pre.shape[-2:], *options, connection.dilation, strict=True)
        places = [output_size(*each) for each in pairs]
        if post.shape[3:] != torch.Size(places):
            raise ValueError(
                f"post must be shaped like the output of {connection!r}, with places "
                f"{places}, got {list(post.shape[2:])} for an input of {list(pre.shape[2:])}."
            )
    if mask is not None and mask.shape != pre.shape[:2]:
        raise ValueError(f"mask has {mask.shape[1]} samples, pre has {pre.shape[1]}.")
    for name, spikes in (("pre", pre), ("post", post)):
        # padding may hold anything
        if is_readable(spikes) and not is_finite(spikes if mask is None else spikes[mask]):
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
            "a reward needs an eligibility trace, which changes wait in. Give tau_eligibility, "
            "which the STDP of floats takes."
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
    if computed or hooked_weights(connection):
        raise ValueError(
            f"connection {connection!r} is parametrized, pruned, or has a norm of torch.nn.utils: "
            "its weight follows from other values, and cannot be learned. Remove this first."
        )
