"""``Processor``: quantise for integer arithmetic of any width, by ``integers.LeakyIntegrator``."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tracetorch.chips.target import IntegerNeuron, LearnedIntegers, Stage, Target, whole_border
from tracetorch.integers.arithmetic import Multiplier
from tracetorch.integers.leaky_integrator import LeakyIntegrator as IntegerLeakyIntegrator
from tracetorch.snn.leaky_integrator import LeakyIntegrator
from tracetorch.snn.parameters import negative_softplus, sigmoid, softplus, unbounded

_DECAY_BITS = 12
_INPUT_BITS = 8
_SPIKE_BITS = 8  # of spikes that differ in size
_TRACE = 128  # integers of a spike, where a trace of spikes decays


@dataclass(frozen=True)
class Processor(Target):
    """Integer arithmetic of any width: all twelve layers have their own form."""

    def refuse(self, stage: Stage) -> tuple[str, str] | None:
        layer = stage.neuron
        if layer is not None and stage.spikes and not bool(_sizes(layer).any()):
            wanted = "spikes of some size: pos_scale and neg_scale must not be 0 everywhere"
            return stage.neuron_path, wanted
        return None

    def differences(self, stage: Stage) -> list[str]:
        layer = stage.neuron
        if layer is None or not stage.spikes or not _one_size(_sizes(layer)):
            return []
        learning = dict(layer.named_parameters())
        names = [n for n in ("pos_scale", "neg_scale") if f"raw_{n}" in learning]
        learns = [name for name in names if learning[f"raw_{name}"].requires_grad]
        size = float(_sizes(layer)[0])
        found = f"has spikes of one size, {size:g}: {' and '.join(learns)} will not learn"
        return [found] if learns else []

    def border(self, x: Tensor) -> tuple[nn.Module | None, int]:
        return whole_border(x, _INPUT_BITS, signed=True)

    def neuron(self, stage: Stage, unit: Tensor) -> IntegerNeuron:
        layer = stage.layer
        one = 2.0**_DECAY_BITS
        decays = ("alpha", "beta", "gamma")
        for name in decays:
            decay = getattr(layer, name)
            slowest = 0.0 if decay is None else float(decay.detach().max())
            if slowest * one >= one - 0.5:  # a state would forget nothing
                raise ValueError(
                    f"{stage.neuron_path}: {name}={slowest:.7g} becomes 1 in integers of "
                    f"{_DECAY_BITS} bits, with which nothing is forgotten. Give a decay below "
                    f"{1 - 0.5 / one:.6f}."
                )
        # at most the last one below 1: training cannot make a state that never forgets
        forms = {name: LearnedIntegers(sigmoid, one, 0, one - 1) for name in decays}
        forms["pos_threshold"] = LearnedIntegers(softplus, 1 / unit, 1, self.limit)
        forms["neg_threshold"] = LearnedIntegers(negative_softplus, -1 / unit, 1, self.limit)
        most = 2.0**23
        forms["bias"] = LearnedIntegers(unbounded, 1 / unit, -most, most)
        constants, scales, output_scale, largest = self._spikes(stage, unit)
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
            name: (getattr(layer, f"raw_{name}"), form)
            for name, form in forms.items()
            if name not in constants and getattr(layer, name) is not None
        }
        kwargs = stage.settings
        spikes = [kwargs[name] for name in ("pos_spike", "neg_spike") if kwargs[name] is not None]
        kind = partial(
            IntegerLeakyIntegrator, layer.num_neurons, layer.dim, decay=Multiplier(_DECAY_BITS),
            state_bits=self.state_bits, reset=kwargs["reset"], detach_reset=kwargs["detach_reset"],
            **{name: kwargs[name] for name in ("alpha_ema", "beta_ema", "gamma_ema")},
            **({"surrogate_derivative": spikes[0]} if spikes else {}),
            unit=None if unit.ndim else float(1 / unit), **options,
        )  # fmt: skip
        return IntegerNeuron(kind, constants, learned, output_scale, largest)

    def _spikes(
        self, stage: Stage, unit: Tensor
    ) -> tuple[dict[str, Any], dict[str, LearnedIntegers], Tensor, int]:
        """Return constant and learned sizes of spikes, their scale, and the largest integer."""
        if not stage.spikes:
            return {}, {}, unit, self.limit
        layer = stage.layer
        found = _sizes(layer)
        if _one_size(found):
            whole = 1
            if layer.gamma is not None:  # more than 1, for a trace to decay
                decay = 0.0 if stage.settings["gamma_ema"] else float(layer.gamma.detach().max())
                bits = math.log2(self.limit / 2 * (1 - decay))
                whole = min(_TRACE, 1 << max(0, int(bits)))
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


def _sizes(layer: LeakyIntegrator) -> Tensor:
    signs = (layer.pos_scale, layer.pos_threshold), (layer.neg_scale, layer.neg_threshold)
    return torch.cat(
        [
            torch.ones(1, device=threshold.device) if scale is None else scale.detach().reshape(-1)
            for scale, threshold in signs
            if threshold is not None
        ]
    )


def _one_size(sizes: Tensor) -> bool:
    return bool((sizes == sizes[0]).all()) and float(sizes[0]) > 0
