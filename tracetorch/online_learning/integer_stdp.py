"""Compute STDP in integers: constants, checks, and weights that keep what is below their unit.

A pair of spikes changes a weight by a trace times an amplitude. Each has ``fraction_bits`` behind
its binary point, so the product has twice as many, and a weight keeps that many below its own unit:
nothing but a trace and a constant is ever rounded. All is computed in float64, which holds these
integers whatever the spikes come in, and so sums are exact in any order: by step, over a sequence,
on a GPU, and in C.
"""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from tracetorch.core.torch_private import is_readable
from tracetorch.integers.fixed_point import shift_right
from tracetorch.integers.width import check_between, limits
from tracetorch.online_learning.linear_maps import LinearMap
from tracetorch.online_learning.spike_trace import decay_factor
from tracetorch.online_learning.stdp_rules import TripletRule
from tracetorch.snn.connectivity import connectivity

DEFAULT_BITS = 8
_MOST_BITS = 12
_SPIKES = limits(8)
_MOST_AMPLITUDE = 2**15  # with which the terms of triplets stay exact
_MOST_SUM = 2.0**51  # of one side: what is added to it stays below 2^53


def check_settings(
    connection: Any, bits: int | None, bounds: Any, mu: float, tau_eligibility: float | None
) -> tuple[int, tuple[int, int]]:
    """Return the bits of fractions and the bounds of a connection of integers."""
    given = DEFAULT_BITS if bits is None else bits
    width = limits(connection.weight_bits)
    for name, value, what in (
        ("mu", mu, "bounds of integers are hard"),
        ("tau_eligibility", tau_eligibility, "a reward has no integers"),
    ):
        if value:
            raise ValueError(
                f"{name}={value} has no arithmetic of integers, and {connection!r} is one of them: "
                f"{what}. Leave {name} out, or learn in an nn.Linear and quantise what it learned, "
                "tt.quantize.prepare."
            )
    low, high = width if bounds is None else bounds
    if not (width[0] <= low < high <= width[1] and low == int(low) and high == int(high)):
        raise ValueError(
            f"bounds of weights of {connection.weight_bits} bits must be integers from {width[0]} "
            f"to {width[1]}, got {bounds}: one is a step of the weight."
        )
    return check_between("fraction_bits", given, 1, _MOST_BITS), (int(low), int(high))


def integer_rule(rule: TripletRule, bits: int) -> TripletRule:
    """Return a rule whose amplitudes are integers, in units of ``2^-bits``."""
    found: dict[str, Any] = {}
    for field in fields(rule):
        value = getattr(rule, field.name)
        if field.name.startswith("a"):
            found[field.name] = round(value * 2**bits)
            if value and not 1 <= abs(found[field.name]) <= _MOST_AMPLITUDE * 2**bits:
                raise ValueError(
                    f"{field.name} must be 0, or from 2^-{bits} to {_MOST_AMPLITUDE} steps of the "
                    f"integer weight, got {value:g}. Give another one, or fraction_bits up to "
                    f"{_MOST_BITS}."
                )
        elif field.name.startswith("tau") and decay_factor(value) == decay_factor(float("inf")):
            raise ValueError(
                f"{field.name} of {value:g} steps is a decay of 1 in 15 bits: a trace that never "
                "ends. Give at most 65000 steps."
            )
    return replace(rule, **found)


def whole_spikes(name: str, spikes: Tensor, size: int, mask: Tensor | None) -> Tensor:
    """Return numbers of spikes of a size; raise where they are no integers, or do not fit."""
    numbers = spikes.double() if size == 1 else torch.trunc(spikes.double() / size)
    low, high = _SPIKES
    if not is_readable(spikes):
        return numbers.clamp(low, high)
    fits = (spikes == numbers * size) & (numbers == numbers.trunc())
    fits = fits & (numbers >= low) & (numbers <= high)
    fits = fits if mask is None else fits | ~mask.reshape(*mask.shape, *[1] * (fits.ndim - 2))
    if not bool(fits.all()):
        raise ValueError(
            f"{name} holds {spikes[~fits][0]:g}, and an integer connection learns from {low} to "
            f"{high} spikes, here of size {size}. Round its input, tt.integers.Quantize, or give "
            "spike_sizes."
        )
    # it changes nothing here; in C, which refuses nothing, what does not fit saturates
    return numbers.clamp(low, high)


def check_sums(rows: Tensor, columns: Tensor, before: Tensor | None) -> None:
    """Raise where sums of products could be rounded, added to what there is."""
    if not is_readable(rows) or not rows.numel():
        return
    reach = len(rows) * float(rows.abs().max()) * float(columns.abs().max())
    if before is not None:
        reach += float(before.abs().max())
    if reach > _MOST_SUM:
        raise ValueError(
            f"changes of {len(rows)} steps, samples and places may reach {reach:.3g}, and sums are "
            f"exact up to {_MOST_SUM:.3g}. Call update_() more often, or give shorter sequences, "
            "fewer fraction_bits or smaller amplitudes."
        )


def next_weight(
    connection: LinearMap, remainder: Tensor, change: Tensor, bounds: tuple[float, float], bits: int
) -> tuple[Tensor, Tensor]:
    """Return the next weight and remainder: the nearest integer, and what is left of the sum."""
    point = 2 * bits
    unit, half = 2.0**point, 2.0 ** (point - 1)
    sums = connection.weight.to(change) * unit + remainder.to(change) + change
    sums = sums.clamp(bounds[0] * unit, bounds[1] * unit)
    rule = connectivity(connection)
    sums = sums if rule is None else rule.nearest(sums)
    # these bounds change nothing: they tell what reads the graph how wide the two are
    low, high = bounds if rule is None else (min(bounds[0], 0), max(bounds[1], 0))
    weight = shift_right(sums, point, "nearest").clamp(low, high)
    return weight, (sums - weight * unit).clamp(-half, half - 1)
