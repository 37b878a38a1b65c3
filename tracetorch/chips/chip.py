"""``Chip``: the limits of a chip, as data."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Chip:
    """Limits of a chip: numbers of neurons and connections, widths, spikes of a step.

    ``None`` stands for no limit, or none that is published.

    Args:
        name: of the chip.
        inputs: input channels.
        hidden: neurons that may be recurrent.
        outputs: output neurons.
        synapses: synaptic states of a hidden neuron.
        fan_in: connections into one synapse of a neuron.
        fan_out: connections out of one hidden neuron into hidden neurons.
        weight_bits: width of a weight, signed.
        weight_exponent: the least and the largest power of two that weights share.
        state_bits: width of the states, signed.
        threshold_bits: width of a threshold, unsigned.
        decay_bits: width of a decay.
        input_spikes: most spikes of an input channel in a step.
        hidden_spikes: most spikes of a hidden neuron in a step.
        output_spikes: most spikes of an output neuron in a step.
        has_bias: whether neurons have a bias.
        border: hidden neurons that inputs reach, and hidden neurons that reach outputs.

    Example:
        >>> from tracetorch.chips.xylo import XYLO_2
        >>> XYLO_2.hidden, XYLO_2.weight_bits, XYLO_2.state_bits
        (1000, 8, 16)
    """

    name: str
    inputs: int | None
    hidden: int | None
    outputs: int | None
    synapses: int
    fan_in: int | None
    fan_out: int | None
    weight_bits: int
    weight_exponent: tuple[int, int]
    state_bits: int
    threshold_bits: int
    decay_bits: int
    input_spikes: int
    hidden_spikes: int
    output_spikes: int
    has_bias: bool
    border: int | None = None
