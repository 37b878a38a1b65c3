"""Compute the subthreshold impulse response of a neuron layer from its ``step``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from tracetorch.core.checks import check_unsharded
from tracetorch.snn.module import layer_label
from tracetorch.snn.neuron import Neuron, has_step, spike_functions
from tracetorch.snn.noise import Noise
from tracetorch.snn.parameters import is_decay
from tracetorch.snn.sequence_layer import SequenceLayer

States: TypeAlias = dict[str, Tensor]

_SMALL = 1e-3  # an impulse, in distances to the threshold: the response is linear there
_DECAYED = 1e-4  # of its peak, at which a response has ended
_CHUNK = 64  # steps between two looks at whether it has
_MOST_STEPS = 20_000
_MOST_SIMULATED = 500  # steps in which a neuron fires from a pulse, if it does
_MEANS = {"normal": 0.0, "uniform": 0.5}  # of the distributions of a Noise
_LINEAR = 0.98  # of the pulse that reaches the threshold: of a linear membrane it does not
_HALVED = 20  # the interval in which the least pulse lies


class EndlessResponseError(ValueError):
    """A layer whose response to an impulse does not end."""


class ImpulseResponse(NamedTuple):
    """The response of the membranes of a layer to a small impulse.

    Args:
        kernel: change of each membrane per unit of input, ``[steps, num_neurons]``, float64; the
            first step is that of the impulse.
        distance: from each membrane at rest to its threshold, ``[num_neurons]``, float64; 1 for a
            layer without a spike function.

    Example:
        >>> impulse_response(LIF(2, beta=0.5)).kernel[:3, 0]
        tensor([1.0000, 0.5000, 0.2500], dtype=torch.float64)
    """

    kernel: Tensor
    distance: Tensor

    def deviation(self, rate: float) -> Tensor:
        """Return each membrane's deviation in distances, for independent spikes of a rate."""
        # Campbell's theorem for Bernoulli spikes, as in Rossbroich, Gygax and Zenke (2022)
        return (rate * (1 - rate) * self.kernel.square().sum(0)).sqrt() / self.distance

    def mean(self, rate: float) -> Tensor:
        """Return each membrane's mean in distances, for spikes of a rate and a weight of 1."""
        return rate * self.kernel.sum(0) / self.distance


def impulse_response(layer: Neuron) -> ImpulseResponse:
    """Compute the subthreshold impulse response of a neuron layer from its ``step``.

    The layer runs without input until it is at rest, then with a small impulse, its spike functions
    replaced by zero. Its membrane is what the first spike function receives first; of a layer
    without one, the output. An input that its own :class:`~tracetorch.snn.Noise` gives has its
    mean; the response is scaled then so that an impulse that reaches the threshold does so in it.

    Args:
        layer: any neuron layer; of an :class:`~tracetorch.snn.Recurrent`, give the neuron inside.

    Raises:
        TypeError: ``layer`` is not a neuron layer with a ``step`` of its own.
        ValueError: it takes inputs that no ``Noise`` of its own gives, responds not at all or for
            more than 20,000 steps, fires without input, or, with noise, from no impulse.

    Example:
        >>> response = impulse_response(SLIF(1, alpha=0.5, beta=0.8, pos_threshold=2.0))
        >>> response.kernel[:4, 0]  # a synapse averages its input
        tensor([0.5000, 0.6500, 0.6450, 0.5785], dtype=torch.float64)
        >>> response.distance
        tensor([2.0000], dtype=torch.float64)
    """
    if not has_step(layer):
        raise TypeError(f"layer must be a neuron layer with a step, got {type(layer).__name__}.")
    check_unsharded(layer, "tt.init")
    return response_of(layer, None)


def response_of(layer: Neuron, path: str | None) -> ImpulseResponse:
    """Compute :func:`impulse_response`; ``path`` is that of the layer, for messages."""
    free, label = _FreeNeuron(layer, path), layer_label(layer, path)
    with torch.no_grad():
        rest, distance = free.rest()
        states, impulse = rest, _SMALL * distance
        chunks: list[Tensor] = []
        peak, nothing, still = torch.zeros_like(distance), 0 * impulse, False
        # beside a run without impulse, so that what is still moving drops out
        quiet = states
        while not still and _CHUNK * len(chunks) < _MOST_STEPS:
            changes: list[Tensor] = []
            for _ in range(_CHUNK):
                before = states, quiet
                given = nothing if chunks or changes else impulse
                with_impulse, states = free.step(given, states)
                without, quiet = free.step(nothing, quiet)
                changes.append((with_impulse - without) / impulse)
            chunks.append(torch.stack(changes))
            highest = chunks[-1].abs().amax(0)
            peak = torch.maximum(peak, highest)
            if not bool(torch.isfinite(highest).all() and (peak > 0).all()):
                raise ValueError(f"{label} does not respond to a small input with a finite value.")
            if bool((highest <= _DECAYED * peak).all()):
                kernel = torch.cat(chunks)
                if free.noise and free.spikes:
                    kernel = kernel / free.share_that_fires(kernel, rest, distance)
                return ImpulseResponse(kernel, distance)
            # what a step without input does not change stays so, a response that is over too
            lasts = bool((changes[-1].abs() > _DECAYED * peak).any())
            still = lasts and all(map(_same_states, before, (states, quiet)))
    names = decay_names(layer)
    way = f"a faster decay {names[0]}" if names else "a leak: it has no decay"
    raise EndlessResponseError(
        f"the response of {label} to an impulse has not ended after "
        f"{_CHUNK * len(chunks)} steps: it does not forget. Give it {way}; behind a norm, "
        "nn.BatchNorm1d or nn.BatchNorm2d, it needs no calibration."
    )


def _same_states(one: States, other: States) -> bool:
    return all(torch.equal(value, other[name]) for name, value in one.items())


def decay_names(layer: SequenceLayer) -> list[str]:
    return [name for name, constraint in layer.constraints.items() if is_decay(constraint)]


def distance_to_threshold(layer: Neuron, path: str | None = None) -> Tensor:
    """Return the distance from each membrane at rest to its threshold, ``[num_neurons]``."""
    with torch.no_grad():
        return _FreeNeuron(layer, path).rest()[1]


def to_first_spike(layer: Neuron, response: ImpulseResponse, path: str | None) -> ImpulseResponse:
    """Return a response whose distance is what the least pulse that makes a neuron fire adds."""
    free = _FreeNeuron(layer, path)
    if free.noise or not free.spikes:
        return response
    with torch.no_grad():
        share = free.share_that_fires(response.kernel, *free.rest())
    return response._replace(distance=share * response.distance)


class _FreeNeuron:
    """Step a sample of a layer in float64, with spike functions that give zero, and mean noise."""

    def __init__(self, layer: Neuron, path: str | None) -> None:
        self.label = layer_label(layer, path)
        modules = {name: getattr(layer, name, None) for name in layer.inputs[1:]}
        outside = [name for name, module in modules.items() if not isinstance(module, Noise)]
        if outside:
            raise ValueError(
                f"{self.label} has several inputs, and how it responds to x depends on "
                f"{', '.join(outside)}, which no snn.Noise of its own gives: tt.init does not know "
                "these. Initialise the parts of the model without it, and set the weights before "
                "it yourself."
            )
        front, behind = (1, -1 - layer.dim) if layer.dim < 0 else (layer.dim, 0)
        self.layer, self.shape = layer, (*[1] * front, layer.num_neurons, *[1] * behind)
        device = next((t.device for t in [*layer.parameters(), *layer.buffers()]), None)
        self.nothing = torch.zeros(self.shape, dtype=torch.float64, device=device)
        self.noise = [
            torch.full_like(self.nothing, _MEANS[module.distribution])
            for module in modules.values()
            if isinstance(module, Noise)
        ]
        self.kwargs: dict[str, Any] = layer.step_kwargs(len(self.shape), torch.float64)
        self.cell, self.spikes = layer.cell, spike_functions(layer)

    def step(self, x: Tensor, states: States) -> tuple[Tensor, States]:
        """Return the membranes ``[num_neurons]`` and the next states."""
        received: list[Tensor] = []  # by the first function, of several levels the lowest first

        def first(u: Tensor) -> Tensor:
            received.append(u)
            return torch.zeros_like(u)

        silent: dict[str, Callable[[Any], Any]] = dict.fromkeys(
            self.spikes, lambda _: torch.zeros_like
        )
        silent |= dict.fromkeys(self.spikes[:1], lambda _: first)
        inputs = x.reshape(self.shape), *self.noise
        output, after = self.cell.run(inputs, states, self.kwargs, silent)
        membrane = received[0] if self.spikes else output
        return membrane.expand(self.shape).reshape(-1), after

    def rest(self) -> tuple[States, Tensor]:
        """Return the states after a run without input, and the distances to the thresholds."""
        size, dtype, device = self.nothing.shape, self.nothing.dtype, self.nothing.device
        names = self.cell.active
        states = {name: self.layer.initial_state(name, size, dtype, device) for name in names}
        membrane, states = self.step(self.nothing, states)
        for _ in range(_MOST_STEPS // _CHUNK):
            before = membrane
            for _ in range(_CHUNK):
                membrane, states = self.step(self.nothing, states)
            if torch.allclose(membrane, before, rtol=1e-9, atol=1e-12):
                break
        distance = -membrane if self.spikes else torch.ones_like(membrane)
        if not bool((distance > 0).all()):
            raise ValueError(
                f"{self.label} fires without input: a membrane at rest is at its threshold or "
                "above. Raise its threshold, or lower its bias."
            )
        return states, distance

    def share_that_fires(self, kernel: Tensor, rest: States, distance: Tensor) -> Tensor:
        """Return the share that fires of the pulse that, by the kernel, reaches the threshold."""
        largest, peak = kernel.abs().max(0)
        pulse = kernel.gather(0, peak[None])[0].sign() * distance / largest

        def fires(share: Tensor) -> Tensor:
            states, fired = rest, torch.zeros_like(distance, dtype=torch.bool)
            for number in range(min(len(kernel), _MOST_SIMULATED)):
                membrane, states = self.step(share * pulse * (number == 0), states)
                fired |= membrane >= 0
            return fired

        below, above = torch.zeros_like(distance), torch.ones_like(distance)
        if not bool(fires(_LINEAR * above).any()):
            if self.noise and not bool(fires((2 - _LINEAR) * above).all()):
                raise ValueError(
                    f"{self.label} comes to its threshold from no impulse while its noise is at "
                    "its mean: how far away it is cannot be known. Set the weights before it "
                    "yourself."
                )
            return above
        for _ in range(_HALVED):
            middle = (below + above) / 2
            high = fires(middle)
            below, above = torch.where(high, below, middle), torch.where(high, middle, above)
        return above
