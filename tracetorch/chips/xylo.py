"""Xylo, as its published simulator computes: shifts, weights of 8 bits, states of 16.

One time step, in this order: input spikes, at most 15 a channel, and the spikes of the step before,
hidden neuron by hidden neuron, are added to the synapses, each addition saturating; synapses decay
by a shift with a step of at least one; membranes decay likewise, and take in what the synapses
hold; a hidden neuron fires up to 31 times, an output neuron once. An alias copies the spikes of a
hidden neuron to another. Version 2 adds a bias, and saturates the change of a membrane before it is
added. Thresholds are reached where the membrane is at least as large.

Saturation. Additions that saturate one by one depend on their order. A run of them is the function
``clamp(state + total, low, high)``; two such functions in a row are one again, so that a sum over
all sources is a tree of them, ``total`` is a plain product with the weights, and a step that takes
``(total, low, high)`` is pointwise and exact, whatever overflows on the way.

Limits are those of Rockpool's overview of the Xylo family, rockpool.ai/devices/xylo-overview.html.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from tracetorch.chips.chip import Chip
from tracetorch.core.checks import check_count, check_integer
from tracetorch.integers.fixed_point import shift_right
from tracetorch.integers.leaky_integrator import integer_weight, resolve_surrogate
from tracetorch.integers.rounding import round  # noqa: A004
from tracetorch.integers.straight_through import straight_through
from tracetorch.integers.width import limits, saturate
from tracetorch.snn.module import TTModule
from tracetorch.snn.neuron import Neuron
from tracetorch.snn.parameters import DEFAULT_SURROGATE, SpikeFunction, WeightSetup

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

__all__ = ["LIF", "XYLO_1", "XYLO_2", "Network", "TwoSynapseLIF", "saturating_sum"]

_BITS = XYLO_2.state_bits
_LOW, _HIGH = limits(_BITS)
_LARGEST_DASH = 2**XYLO_2.decay_bits - 1


def check_version(name: str, value: object) -> int:
    """Return 1 or 2; raise ``TypeError`` or ``ValueError`` for anything else."""
    version = check_integer(name, value)
    if version not in (1, 2):
        raise ValueError(f"{name} must be 1 or 2, got {version}.")
    return version


def _synapse(syn: Tensor, total: Tensor, low: Tensor, high: Tensor, dash: Tensor) -> Tensor:
    """Return a synapse after the spikes of a step, and its decay."""
    syn = torch.minimum(torch.maximum(syn + total, low), high)
    return saturate(syn - shift_right(syn, dash, "at_least_one"), _BITS)


def _membrane(
    mem: Tensor, current: Tensor, dash: Tensor, bias: Tensor | None, version: int
) -> Tensor:
    """Return a membrane before it fires."""
    gone = shift_right(mem, dash, "at_least_one")
    if version == 1:
        return saturate(mem - gone + current, _BITS)
    # the negative of the least integer is itself
    change = saturate(torch.where(gone == _LOW, gone, -gone) + current, _BITS)
    if bias is not None:
        change = saturate(change + round(bias), _BITS)
    return saturate(mem + change, _BITS)


def _fire(mem: Tensor, threshold: Tensor, spike: SpikeFunction, most: int) -> tuple[Tensor, Tensor]:
    """Return the number of spikes, and the membrane after them."""
    threshold = round(threshold)
    divisor = threshold.detach().clamp(min=1)
    # the half makes "at least" of the spike function's "more than"
    fired = spike((mem - threshold + 0.5) / divisor)
    if most > 1:
        levels = mem / divisor
        count = torch.clamp(torch.floor(levels.detach()), 0, most)
        count = torch.where(threshold.detach() == 0, most, count)
        count = torch.where(fired.detach() > 0, count, 0.0)
        # of each further spike, a gradient in the window of its level
        fired = straight_through(fired + levels.clamp(1.5, most + 0.5), count)
    return fired, saturate(mem - fired * threshold, _BITS)


class _XyloNeuron(Neuron):
    """Base of the two neurons: what both have."""

    def __init__(
        self,
        num_neurons: int,
        dim: int,
        dashes: dict[str, WeightSetup],
        pos_threshold: WeightSetup,
        bias: WeightSetup | None,
        most: int,
        version: int,
        surrogate: SpikeFunction,
    ) -> None:
        super().__init__(num_neurons, dim)
        for name, dash in dashes.items():
            integer_weight(self, name, dash, 0, _LARGEST_DASH, learns=False)
        integer_weight(self, "pos_threshold", pos_threshold, 0, _HIGH)
        self.option("version", version, check=check_version)
        if bias is None:
            self.option("bias", None, fixed=True)
        elif version == 1:
            raise ValueError("Xylo 1 has no bias: leave it out, or take version=2.")
        else:
            integer_weight(self, "bias", bias, _LOW, _HIGH)
        self.option("max_spikes", most, check=check_count)
        self.option("spike", resolve_surrogate(surrogate))


class LIF(_XyloNeuron):
    """Neuron of Xylo with one synapse, behind integer weights.

    ``x`` is the sum of the weights of the spikes that arrive, shifted. It is added at once: where
    a part of the sum would saturate, the chip's order of additions matters, see :class:`Network`.

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
        dashes = {"dash_mem": dash_mem, "dash_syn": dash_syn}
        super().__init__(
            *(num_neurons, dim, dashes, pos_threshold, bias, max_spikes, version),
            surrogate_derivative,
        )

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
        """Run one step."""
        bounds = torch.full_like(x, _LOW), torch.full_like(x, _HIGH)
        syn = _synapse(syn, x, *bounds, round(dash_syn))
        mem = _membrane(mem, syn, round(dash_mem), bias, version)
        fired, mem = _fire(mem, pos_threshold, spike, max_spikes)
        return fired, syn, mem


class TwoSynapseLIF(_XyloNeuron):
    """Neuron of Xylo with two synapses, whose inputs say how their additions saturated.

    As :class:`LIF`, with ``syn = clamp(syn + x, low, high)`` for both synapses, and the sum of the
    two as the current. :func:`saturating_sum` makes the bounds.

    Args:
        num_neurons: size of the neuron dimension.
        dim: the neuron dimension: -1 for ``[B, N]``.
        dash_mem, dash_syn, dash_syn2: shifts of the decays, 0 to 15.
        pos_threshold: 0 to 32767.
        bias: constant drive of version 2, of 16 bits.
        max_spikes: the most spikes of a step.
        version: 1 or 2.
        surrogate_derivative: the spike function of the first spike.

    Shape:
        The six inputs and the output have one shape, ``[..., num_neurons, ...]``.

    Raises:
        TypeError, ValueError: an argument is of another kind or out of range.

    Example:
        >>> layer = TwoSynapseLIF(1, pos_threshold=100, dash_syn=15, dash_syn2=15)
        >>> bounds = torch.tensor([[-32768.0]]), torch.tensor([[32767.0]])
        >>> layer(torch.tensor([[90.0]]), *bounds, torch.tensor([[120.0]]), *bounds).item()
        2.0
    """

    inputs: ClassVar[tuple[str, ...]] = ("x", "low", "high", "x2", "low2", "high2")
    states: ClassVar[tuple[str, ...]] = ("syn", "syn2", "mem")

    def __init__(
        self,
        num_neurons: int,
        dim: int = -1,
        *,
        dash_mem: WeightSetup = 4,
        dash_syn: WeightSetup = 4,
        dash_syn2: WeightSetup = 4,
        pos_threshold: WeightSetup = 1024,
        bias: WeightSetup | None = None,
        max_spikes: int = XYLO_2.hidden_spikes,
        version: int = 2,
        surrogate_derivative: SpikeFunction = DEFAULT_SURROGATE,
    ) -> None:
        dashes = {"dash_mem": dash_mem, "dash_syn": dash_syn, "dash_syn2": dash_syn2}
        super().__init__(
            *(num_neurons, dim, dashes, pos_threshold, bias, max_spikes, version),
            surrogate_derivative,
        )

    @staticmethod
    def step(
        x: Tensor,
        low: Tensor,
        high: Tensor,
        x2: Tensor,
        low2: Tensor,
        high2: Tensor,
        syn: Tensor,
        syn2: Tensor,
        mem: Tensor,
        *,
        dash_mem: Tensor,
        dash_syn: Tensor,
        dash_syn2: Tensor,
        pos_threshold: Tensor,
        bias: Tensor | None,
        max_spikes: int,
        version: int,
        spike: SpikeFunction,
    ) -> tuple[Any, ...]:
        """Run one step."""
        syn = _synapse(syn, x, low, high, round(dash_syn))
        syn2 = _synapse(syn2, x2, low2, high2, round(dash_syn2))
        mem = _membrane(mem, syn + syn2, round(dash_mem), bias, version)
        fired, mem = _fire(mem, pos_threshold, spike, max_spikes)
        return fired, syn, syn2, mem


class _Held(Neuron):
    """The spikes of the step before."""

    states: ClassVar[tuple[str, ...]] = ("spikes",)

    @staticmethod
    def step(x: Tensor, spikes: Tensor) -> tuple[Any, ...]:
        """Run one step."""
        return spikes, x


def saturating_sum(parts: Tensor) -> tuple[Tensor, Tensor]:
    """Return the bounds ``low, high`` that additions leave which saturate at 16 bits, one by one.

    ::

        fold of state -> saturate(state + part) over all parts = clamp(state + sum, low, high)

    Args:
        parts: what is added, in order; the parts of dimension -2.

    Shape:
        ``parts`` ``[..., S, N]``; both bounds ``[..., N]``.

    Example:
        >>> low, high = saturating_sum(torch.tensor([[30000.0], [10000.0], [-20000.0]]))
        >>> low.tolist(), high.tolist()  # at 32767 before 20000 are taken off again
        ([-32768.0], [12767.0])
    """
    total = parts.detach()
    if total.shape[-2] == 0:
        none = total.new_zeros(*total.shape[:-2], total.shape[-1])
        return none + _LOW, none + _HIGH
    low, high = torch.full_like(total, _LOW), torch.full_like(total, _HIGH)
    while total.shape[-2] > 1:
        last = [each[..., -1:, :] for each in (total, low, high)] if total.shape[-2] % 2 else []
        even = total.shape[-2] // 2 * 2
        first, second = (
            [each[..., start:even:2, :] for each in (total, low, high)] for start in (0, 1)
        )
        # the second of two functions clamp(x + total, low, high), behind the first
        low, high = (
            torch.minimum(torch.maximum(bound + second[0], second[1]), second[2])
            for bound in first[1:]
        )
        # beyond the span of a state the sum changes nothing, and it stays exact
        total = (first[0] + second[0]).clamp(_LOW - _HIGH, _HIGH - _LOW)
        if last:
            total, low, high = (
                torch.cat(pair, -2) for pair in zip((total, low, high), last, strict=True)
            )
    return low[..., 0, :], high[..., 0, :]


class Network(TTModule):
    """A configured Xylo, one time step a call: equal to the simulator, spikes and states.

    The arguments are named as the simulator names them. A configuration holds integers; weights are
    buffers, so nothing learns: train with :class:`LIF` behind layers of integer weights.

    Args:
        weights_in: ``[inputs, hidden]``, or with a last dimension of two synapses.
        weights_rec: ``[hidden, hidden]`` from and to, or with the synapses.
        weights_out: ``[hidden, outputs]``.
        threshold, threshold_out: of every neuron, 0 to 32767.
        dash_mem, dash_mem_out: shift of the membrane's decay of every neuron, 0 to 15.
        dash_syn: ``[hidden]`` or with the synapses; shifts of the synapses' decays.
        dash_syn_out: ``[outputs]``.
        bias, bias_out: of every neuron; ``None`` for none. Version 2 alone has them.
        weight_shift_in, weight_shift_rec, weight_shift_out: by how many bits weights are shifted to
            the left, 0 to 7.
        aliases: of every hidden neuron, the hidden neurons that its spikes are copied to; ``None``
            for none.
        version: 1 or 2.

    Shape:
        Input ``[B, inputs]``, numbers of spikes; output ``[B, outputs]``. Over time:
        ``tt.unroll(network, x, by="step")``.

    Raises:
        TypeError, ValueError: an argument is of another kind, shape or out of range, or a weight
            has more than 8 bits.

    Example:
        >>> import tracetorch as tt
        >>> network = Network(
        ...     weights_in=torch.tensor([[100.0]]), weights_rec=torch.zeros(1, 1),
        ...     weights_out=torch.tensor([[50.0]]), threshold=[150], threshold_out=[60],
        ...     dash_mem=[3], dash_mem_out=[2], dash_syn=[2], dash_syn_out=[2], weight_shift_in=1,
        ... )
        >>> x = torch.tensor([1.0, 0, 0, 2, 0]).reshape(5, 1, 1)
        >>> tt.unroll(network, x, by="step").flatten().tolist()
        [0.0, 0.0, 0.0, 1.0, 1.0]
    """

    def __init__(
        self,
        *,
        weights_in: Tensor,
        weights_rec: Tensor,
        weights_out: Tensor,
        threshold: Sequence[int] | Tensor,
        threshold_out: Sequence[int] | Tensor,
        dash_mem: Sequence[int] | Tensor,
        dash_mem_out: Sequence[int] | Tensor,
        dash_syn: Sequence[Any] | Tensor,
        dash_syn_out: Sequence[Any] | Tensor,
        bias: Sequence[int] | Tensor | None = None,
        bias_out: Sequence[int] | Tensor | None = None,
        weight_shift_in: int = 0,
        weight_shift_rec: int = 0,
        weight_shift_out: int = 0,
        aliases: Sequence[Sequence[int]] | None = None,
        version: int = 2,
    ) -> None:
        super().__init__()
        hidden, outputs = len(threshold), len(threshold_out)
        inputs = len(weights_in)
        sizes = {
            "weights_in": (weights_in, (inputs, hidden, 2), weight_shift_in),
            "weights_rec": (weights_rec, (hidden, hidden, 2), weight_shift_rec),
            "weights_out": (weights_out, (hidden, outputs, 1), weight_shift_out),
        }
        for name, (weights, shape, shift) in sizes.items():
            self.register_buffer(name, _weights(name, weights, shape, shift))
        dashes = _both_synapses("dash_syn", _numbers(dash_syn), (hidden, 2))
        dashes_out = _both_synapses("dash_syn_out", _numbers(dash_syn_out), (outputs, 1))
        self.hidden = TwoSynapseLIF(
            hidden,
            dash_mem=_numbers(dash_mem),
            dash_syn=dashes[:, 0],
            dash_syn2=dashes[:, 1],
            pos_threshold=_numbers(threshold),
            bias=None if bias is None else _numbers(bias),
            version=version,
        )
        self.output = TwoSynapseLIF(
            outputs,
            dash_mem=_numbers(dash_mem_out),
            dash_syn=dashes_out[:, 0],
            dash_syn2=0,
            pos_threshold=_numbers(threshold_out),
            bias=None if bias_out is None else _numbers(bias_out),
            max_spikes=XYLO_2.output_spikes,
            version=version,
        )
        self.previous = _Held(hidden)
        self.aliases = _aliases(aliases, hidden)

    def forward(self, x: Tensor) -> Tensor:
        """Run one time step."""
        x = x.clamp(0, XYLO_2.input_spikes)
        held = self.previous.spikes
        if held is None:
            held = x.new_zeros(*x.shape[:-1], self.hidden.num_neurons)
        arriving = torch.cat([x, held], -1)
        weights = torch.cat([self.weights_in, self.weights_rec]).to(x)  # type: ignore[list-item]
        first, second = (_added(arriving, weights[..., synapse]) for synapse in (0, 1))
        output_weights: Tensor = self.weights_out.to(x)  # type: ignore[assignment]
        at_output = _added(held, output_weights[..., 0])
        output: Tensor = self.output(*at_output, *(torch.zeros_like(each) for each in at_output))
        fired = self.hidden(*first, *second)
        self.previous(self._copied(fired) if any(self.aliases) else fired)
        return output

    def _copied(self, fired: Tensor) -> Tensor:
        """Return the spikes after aliases, neuron by neuron: what has arrived counts as fired."""
        spikes = list(fired.unbind(-1))
        received = [torch.zeros_like(each) for each in spikes]
        most = self.hidden.max_spikes
        for source, targets in enumerate(self.aliases):
            own = torch.minimum(spikes[source], most - received[source])
            received[source] = received[source] + own
            spikes[source] = own
            for target in targets:
                received[target] = (received[target] + received[source]).clamp(max=most)
        given_back = fired - torch.stack(spikes, -1)
        self.hidden.mem = self.hidden.mem + given_back * self.hidden.pos_threshold
        return torch.stack(received, -1)


def _added(spikes: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the sum of the weights of some spikes, and the bounds that saturation leaves."""
    low, high = saturating_sum(spikes[..., None] * weights)
    span = _HIGH - _LOW
    return (spikes @ weights).clamp(-span, span), low, high


def _numbers(values: Sequence[Any] | Tensor) -> Tensor:
    """Return integers as a tensor of floats."""
    numbers = torch.as_tensor(values)
    return numbers if numbers.is_floating_point() else numbers.to(torch.get_default_dtype())


def _both_synapses(name: str, values: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return values with a last dimension of synapses; without it they are those of the first."""
    if values.shape == shape[:-1]:
        rest = torch.zeros(*shape[:-1], shape[-1] - 1, dtype=values.dtype, device=values.device)
        values = torch.cat([values[..., None], rest], -1)
    if values.shape != shape:
        raise ValueError(
            f"{name} must have the shape {list(shape[:-1])} or {list(shape)}, got "
            f"{list(values.shape)}."
        )
    return values


def _weights(name: str, values: Tensor, shape: tuple[int, ...], shift: int) -> Tensor:
    """Return checked weights, shifted."""
    weights = _both_synapses(name, _numbers(values), shape)
    low, high = limits(XYLO_2.weight_bits)
    if not bool(((weights >= low) & (weights <= high) & (weights == weights.round())).all()):
        raise ValueError(f"{name} must be integers of {low} to {high}.")
    least, most = XYLO_2.weight_exponent
    if not least <= check_integer(f"the shift of {name}", shift) <= most:
        raise ValueError(f"the shift of {name} must be {least} to {most}, got {shift}.")
    return weights * 2.0**shift


def _aliases(aliases: Sequence[Sequence[int]] | None, hidden: int) -> tuple[tuple[int, ...], ...]:
    """Return aliases of every hidden neuron, checked."""
    given = [()] * hidden if aliases is None else aliases
    if len(given) != hidden:
        raise ValueError(
            f"aliases must have {hidden} lists, one a hidden neuron, got {len(given)}."
        )
    checked = tuple(tuple(check_integer("an alias", t) for t in targets) for targets in given)
    wrong = [target for targets in checked for target in targets if not 0 <= target < hidden]
    if wrong:
        raise ValueError(f"an alias must be a hidden neuron, 0 to {hidden - 1}, got {wrong[0]}.")
    return checked
