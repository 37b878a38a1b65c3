"""``Processor``: quantise for integer arithmetic of any width, by ``integers.LeakyIntegrator``."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from tracetorch.integers.border import Quantize
from tracetorch.integers.leaks import Multiplier
from tracetorch.integers.leaky_integrator import LeakyIntegrator as IntegerLeakyIntegrator
from tracetorch.quantize.learned import LearnedIntegers
from tracetorch.quantize.stages import Stage
from tracetorch.quantize.target import IntegerNeuron, Learned, Target, whole_border
from tracetorch.snn.leaky_integrator import LeakyIntegrator
from tracetorch.snn.parameters import negative_softplus, sigmoid, softplus, unbounded

_DECAY_BITS = 12
_INPUT_BITS = 8
_SPIKE_BITS = 8  # of spikes that differ in size
_TRACE = 128  # integers of a spike, where a trace of spikes decays


@dataclass(frozen=True)
class Processor(Target):
    """Integer arithmetic of any width: all twelve layers have their own form."""

    def refuse(self, stage: Stage, *, last: bool) -> str | None:
        """Return why a stage has no form here, as what is allowed; ``None`` where it has one."""
        return None

    def border(self, x: Tensor) -> tuple[Quantize | None, int]:
        """Return what makes integers of inputs like ``x``, and the largest of them."""
        return whole_border(x, _INPUT_BITS, signed=True)

    def neuron(self, stage: Stage, unit: Tensor, *, last: bool) -> IntegerNeuron:
        """Return how to build the neurons of a stage, whose states count in ``unit``."""
        layer = stage.layer
        forms = {name: _decay() for name in ("alpha", "beta", "gamma")}
        forms["pos_threshold"] = LearnedIntegers(softplus, 1 / unit, 1, self.limit)
        forms["neg_threshold"] = LearnedIntegers(negative_softplus, -1 / unit, 1, self.limit)
        most = 2.0**23
        forms["bias"] = LearnedIntegers(unbounded, 1 / unit, -most, most)
        constants, scales, output_scale, largest = self._spikes(layer, stage.is_readout, unit)
        forms |= scales
        options: dict[str, Any] = {}
        if layer.rec_weight is not None:
            # the trace counts in the unit of the output
            ratio = output_scale / unit
            weights = layer.rec_weight.detach().abs() * ratio
            bits = math.log2(max(float(weights.max()), 2.0**-8))
            options["rec_weight_fraction"] = min(16, max(0, int((22 - bits) / 2)))
            factor = ratio * 2.0 ** options["rec_weight_fraction"]
            forms["rec_weight"] = LearnedIntegers(unbounded, factor, -most, most)
        learned = {
            name: Learned(getattr(layer, f"raw_{name}"), form, f"neuron.raw_{name}")
            for name, form in forms.items()
            if name not in constants and getattr(layer, name) is not None
        }
        kwargs = layer.step_kwargs(1, torch.float32)
        spikes = [kwargs[name] for name in ("pos_spike", "neg_spike") if kwargs[name] is not None]
        kind = partial(
            IntegerLeakyIntegrator,
            layer.num_neurons,
            layer.dim,
            decay=Multiplier(_DECAY_BITS),
            state_bits=self.state_bits,
            reset=kwargs["reset"],
            detach_reset=kwargs["detach_reset"],
            **{name: kwargs[name] for name in ("alpha_ema", "beta_ema", "gamma_ema")},
            **({"surrogate_derivative": spikes[0]} if spikes else {}),
            unit=None if unit.ndim else float(1 / unit),
            **options,
        )
        return IntegerNeuron(kind, constants, learned, output_scale, largest)

    def _spikes(
        self, layer: LeakyIntegrator, is_readout: bool, unit: Tensor
    ) -> tuple[dict[str, Any], dict[str, LearnedIntegers], Tensor, int]:
        """Return constant and learned sizes of spikes, their scale, and the largest integer."""
        if is_readout:
            return {}, {}, unit, self.limit
        sizes = [
            torch.ones(1) if scale is None else scale.detach().reshape(-1)
            for scale, threshold in (
                (layer.pos_scale, layer.pos_threshold),
                (layer.neg_scale, layer.neg_threshold),
            )
            if threshold is not None
        ]
        found = torch.cat(sizes)
        if bool((found == found[0]).all()) and float(found[0]) > 0:
            whole = self._whole_spike(layer)
            names = [n for n in ("pos", "neg") if getattr(layer, f"{n}_threshold") is not None]
            constants = {f"{name}_scale": float(whole) for name in names} if whole > 1 else {}
            absent = {f"{name}_scale": None for name in names} if whole == 1 else {}
            return {**constants, **absent}, {}, found[0] / whole, whole
        high = 2 ** (_SPIKE_BITS - 1) - 1
        scale = found.abs().max() / high
        forms = {
            f"{name}_scale": LearnedIntegers(unbounded, 1 / scale, -high, high)
            for name in ("pos", "neg")
        }
        return {}, forms, scale, high

    def _whole_spike(self, layer: LeakyIntegrator) -> int:
        """Return how many integers a spike of the one size is: more than 1 for a trace to decay."""
        if layer.gamma is None:
            return 1
        averages = layer.step_kwargs(1, torch.float32)["gamma_ema"]
        reach = 1.0 if averages else float(1 / (1 - layer.gamma.detach().max()))
        return min(_TRACE, 1 << max(0, int(math.log2(self.limit / 2 / reach))))


def _decay() -> LearnedIntegers:
    one = 2.0**_DECAY_BITS
    return LearnedIntegers(sigmoid, one, 0, one)
