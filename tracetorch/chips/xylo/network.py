"""``Network``: a whole configured Xylo, which follows every addition that saturates."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tracetorch.chips.xylo.neurons import HIGH, LOW, XYLO_2, StepDelay, TwoSynapseLIF
from tracetorch.integers.layers import exactly
from tracetorch.integers.width import check_between, limits
from tracetorch.snn.module import TTModule


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
        return none + LOW, none + HIGH
    low, high = torch.full_like(total, LOW), torch.full_like(total, HIGH)
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
        total = (first[0] + second[0]).clamp(LOW - HIGH, HIGH - LOW)
        if last:
            total, low, high = (
                torch.cat(pair, -2) for pair in zip((total, low, high), last, strict=True)
            )
    return low[..., 0, :], high[..., 0, :]


class Network(TTModule):
    """A configured Xylo, one time step a call: equal to the simulator, spikes and states.

    The arguments are named as the simulator names them; :func:`configuration` makes them of a
    model. A configuration holds integers; weights are buffers, so nothing learns: train what
    ``tt.quantize.prepare(model, sample, chip=xylo.XYLO_2)`` returns, which also runs by layer.

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
            hidden, dash_mem=_numbers(dash_mem), dash_syn=dashes[:, 0], dash_syn2=dashes[:, 1],
            pos_threshold=_numbers(threshold), bias=None if bias is None else _numbers(bias),
            version=version,
        )  # fmt: skip
        self.output = TwoSynapseLIF(
            outputs, dash_mem=_numbers(dash_mem_out), dash_syn=dashes_out[:, 0], dash_syn2=0,
            pos_threshold=_numbers(threshold_out),
            bias=None if bias_out is None else _numbers(bias_out), max_spikes=XYLO_2.output_spikes,
            version=version,
        )  # fmt: skip
        self.previous = StepDelay(hidden)
        given = [()] * hidden if aliases is None else aliases
        if len(given) != hidden:
            raise ValueError(
                f"aliases must have {hidden} lists, one a hidden neuron, got {len(given)}."
            )
        for target in itertools.chain(*given):
            check_between("an alias, a hidden neuron,", target, 0, hidden - 1)
        self.aliases = tuple(map(tuple, given))

    def forward(self, x: Tensor) -> Tensor:
        """Run one time step."""
        x = x.clamp(0, XYLO_2.input_spikes)
        before = self.previous.spikes
        if before is None:
            before = x.new_zeros(*x.shape[:-1], self.hidden.num_neurons)
        arriving = torch.cat([x, before], -1)
        weights = torch.cat([self.weights_in, self.weights_rec]).to(x)  # type: ignore[list-item]
        first, second = (_added(arriving, weights[..., synapse]) for synapse in (0, 1))
        output_weights: Tensor = self.weights_out.to(x)  # type: ignore[assignment]
        at_output = _added(before, output_weights[..., 0])
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
    span = HIGH - LOW
    total = exactly(lambda spikes: spikes @ weights.to(spikes.dtype), spikes)
    return total.clamp(-span, span), low, high


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
    return weights * 2.0 ** check_between(f"the shift of {name}", shift, *XYLO_2.weight_exponent)
