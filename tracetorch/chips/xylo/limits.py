"""Limits of Xylo, versions 1 and 2, as data."""

from __future__ import annotations

from tracetorch.chips.chip import Chip
from tracetorch.integers.width import limits

XYLO_1 = Chip(
    name="Xylo 1",
    inputs=16,
    hidden=1000,
    outputs=8,
    synapses=2,
    fan_in=16,
    fan_out=64,
    weight_bits=8,
    weight_exponent=(0, 7),
    state_bits=16,
    threshold_bits=15,
    decay_bits=4,
    input_spikes=15,
    hidden_spikes=31,
    output_spikes=1,
    has_bias=False,
)
XYLO_2 = Chip(**{**vars(XYLO_1), "name": "Xylo 2", "has_bias": True})

STATE_BITS = XYLO_2.state_bits
LOW, HIGH = limits(STATE_BITS)
