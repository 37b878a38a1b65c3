"""Neurons of Xylo, of one synapse behind integer weights, and its delay."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from tracetorch.chips.limits import Chip
from tracetorch.core.checks import check_count
from tracetorch.integers import arithmetic
from tracetorch.integers.arithmetic import check_between, limits, saturate, shift_right
from tracetorch.integers.leaky_integrator import integer_weight
from tracetorch.integers.loading import KnownSettings
from tracetorch.snn.neuron import Neuron
from tracetorch.snn.parameters import DEFAULT_SURROGATE, SpikeFunction, WeightSetup

XYLO_1 = Chip(
    name="Xylo 1",
    inputs=16,
    hidden=1000,
    outputs=8,
    synapses=2,
    fan_in=None,
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
XYLO_2 = replace(XYLO_1, name="Xylo 2", has_bias=True)
XYLO_3 = replace(XYLO_2, name="XyloAudio 3", hidden=992, outputs=32, fan_out=1024, border=128)
XYLO_IMU = replace(
    XYLO_2, name="XyloIMU", hidden=496, outputs=16, synapses=1, fan_out=512, border=128
)

STATE_BITS = XYLO_2.state_bits
LOW, HIGH = limits(STATE_BITS)


def _membrane(
    mem: Tensor, current: Tensor, dash: Tensor, bias: Tensor | None, version: int
) -> Tensor:
    gone = shift_right(mem, dash, "at_least_one")
    if version == 1:
        return saturate(mem - gone + current, STATE_BITS)
    # the negative of the least integer is itself
    change = saturate(torch.where(gone == LOW, gone, -gone) + current, STATE_BITS)
    if bias is not None:
        change = saturate(change + arithmetic.round(bias), STATE_BITS)
    return saturate(mem + change, STATE_BITS)


def _fire(mem: Tensor, threshold: Tensor, spike: SpikeFunction, most: int) -> tuple[Tensor, Tensor]:
    threshold = arithmetic.round(threshold)
    divisor = threshold.detach().clamp(min=1)
    # the half makes "at least" of the spike function's "more than"
    fired = spike((mem - threshold + 0.5) / divisor)
    if most > 1:
        levels = mem / divisor
        count = torch.clamp(torch.floor(levels.detach()), 0, most)
        count = torch.where(threshold.detach() == 0, most, count)
        count = torch.where(fired.detach() > 0, count, 0.0)
        # of each further spike, a gradient in the window of its level
        window = arithmetic.clamped(levels, 1.5, most + 0.5)
        fired = arithmetic.straight_through(fired + window, count)
    return fired, saturate(mem - fired * threshold, STATE_BITS)


class LIF(KnownSettings, Neuron):
    """Neuron of Xylo with one synapse, behind integer weights.

    ``x`` is the sum of the weights of the spikes that arrive, shifted. It is added at once: where
    a part of the sum would saturate, the chip's order of additions matters, and the report of
    ``tt.quantize.convert`` says so.

    ::

        syn = saturate(syn + x);   syn = syn - dash(syn, dash_syn)
        version 1:  mem = saturate(mem - dash(mem, dash_mem) + syn)
        version 2:  mem = saturate(mem + saturate(saturate(-dash(mem, dash_mem) + syn) + bias))
        output = min(floor(mem / pos_threshold), max_spikes) where mem >= pos_threshold, else 0
        mem = mem - output * pos_threshold

        dash(v, d) = max(v >> d, 1) where v > 0, else v >> d

    Args:
        num_neurons: size of the neuron dimension.
        dim: the neuron dimension: -1 for ``[B, N]``, -3 for ``[B, C, H, W]``.
        dash_mem, dash_syn: shift of the decay of membrane and synapse, 0 to 15; they do not learn.
        pos_threshold: 0 to 32767.
        bias: constant drive of version 2, of 16 bits.
        max_spikes: the most spikes of a step: 31 for hidden neurons, 1 for output neurons.
        version: 1 or 2.
        surrogate_derivative: the spike function of the first spike, ``u -> spikes`` of the membrane
            in units of the threshold.

    Shape:
        Input and output ``[..., num_neurons, ...]`` with the neurons at ``dim``.

    Raises:
        TypeError, ValueError: an argument is of another kind or out of range.

    Example:
        >>> layer = LIF(1, dash_mem=3, dash_syn=2, pos_threshold=150)
        >>> [layer(torch.tensor([[x]])).item() for x in (200.0, 0.0, 0.0, 400.0)]
        [1.0, 0.0, 1.0, 2.0]
        >>> layer.syn.item(), layer.mem.item()
        (364.0, 94.0)

    Reference: the simulator ``xylosim`` 0.1.3 on PyPI, by SynSense, whose states it equals.
    """

    states: ClassVar[tuple[str, ...]] = ("syn", "mem")

    def __init__(
        self,
        num_neurons: int,
        dim: int = -1,
        *,
        dash_mem: WeightSetup = 4,
        dash_syn: WeightSetup = 4,
        pos_threshold: WeightSetup = 1024,
        bias: WeightSetup | None = None,
        max_spikes: int = XYLO_2.hidden_spikes,
        version: int = 2,
        surrogate_derivative: SpikeFunction = DEFAULT_SURROGATE,
    ) -> None:
        super().__init__(num_neurons, dim)
        for name, dash in {"dash_mem": dash_mem, "dash_syn": dash_syn}.items():
            integer_weight(self, name, dash, 0, 2**XYLO_2.decay_bits - 1, learns=False)
        integer_weight(self, "pos_threshold", pos_threshold, 0, HIGH)
        self.option("version", version, check=partial(check_between, low=1, high=2))
        if bias is not None and version == 1:
            raise ValueError("Xylo 1 has no bias: leave it out, or take version=2.")
        integer_weight(self, "bias", bias, LOW, HIGH)
        self.option("max_spikes", max_spikes, check=check_count)
        self.option("spike", surrogate_derivative)

    def settings(self) -> Mapping[str, int]:
        return {"version": self.version - 1, "max_spikes": self.max_spikes}

    @staticmethod
    def step(
        x: Tensor,
        syn: Tensor,
        mem: Tensor,
        *,
        dash_mem: Tensor,
        dash_syn: Tensor,
        pos_threshold: Tensor,
        bias: Tensor | None,
        max_spikes: int,
        version: int,
        spike: SpikeFunction,
    ) -> tuple[Any, ...]:
        syn = saturate(syn + x, STATE_BITS)
        syn = saturate(
            syn - shift_right(syn, arithmetic.round(dash_syn), "at_least_one"), STATE_BITS
        )
        mem = _membrane(mem, syn, arithmetic.round(dash_mem), bias, version)
        fired, mem = _fire(mem, pos_threshold, spike, max_spikes)
        return fired, syn, mem


class StepDelay(Neuron):
    """The spikes of the step before: Xylo delivers spikes one step after they were fired.

    ::

        output[t] = x[t - 1],   zero at the first step

    Args:
        num_neurons: size of the neuron dimension.
        dim: the neuron dimension.

    Shape:
        Input and output have one shape, ``[..., num_neurons, ...]``.

    Example:
        >>> layer = StepDelay(1)
        >>> [layer(torch.tensor([[x]])).item() for x in (3.0, 0.0, 1.0)]
        [0.0, 3.0, 0.0]
    """

    states: ClassVar[tuple[str, ...]] = ("spikes",)

    @staticmethod
    def step(x: Tensor, spikes: Tensor) -> tuple[Any, ...]:
        return spikes, x
