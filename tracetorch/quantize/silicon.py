"""``Xylo`` and ``Loihi``: quantise for the neurons of a chip.

Both take a decay as the chip has it, and it does not learn. Where the chip's synapse and membrane
gather more or less than the float ones over time, weights make up for it: what a constant input
leads to is the same.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from tracetorch.chips import loihi, xylo
from tracetorch.chips.chip import Chip
from tracetorch.core.snapshot import restored
from tracetorch.integers.border import Quantize
from tracetorch.integers.products import Product
from tracetorch.quantize.learned import LearnedIntegers
from tracetorch.quantize.stages import Stage
from tracetorch.quantize.target import IntegerNeuron, Learned, Target, whole_border
from tracetorch.snn.leaky_integrator import LeakyIntegrator
from tracetorch.snn.neuron import Neuron
from tracetorch.snn.parameters import softplus, unbounded
from tracetorch.unrolling import unroll

_LARGEST_DASH = 2**xylo.XYLO_2.decay_bits - 1


@dataclass(frozen=True)
class Silicon(Target):
    """Base of both chips: spikes in and out, and limits."""

    chip: Chip

    def refuse(self, stage: Stage, *, last: bool) -> str | None:
        """Return why a stage has no form here, as what is allowed; ``None`` where it has one."""
        layer = stage.layer
        name = self.chip.name
        if stage.neuron is None or stage.is_readout:
            return f"neurons that spike: {name} returns spikes. End with snn.LIF or snn.SLIF"
        if layer.neg_threshold is not None or layer.pos_scale is not None:
            return f"spikes of one sign and size on {name}: snn.LIF or snn.SLIF"
        if layer.gamma is not None:
            return f"no recurrent trace on {name}. Use snn.Recurrent with a Linear"
        if layer.bias is not None and stage.product.bias is not None:
            return f"one bias for a neuron on {name}: leave out that of the product (bias=False)"
        if stage.connection is not None and stage.connection.bias is not None:
            return f"no bias in the connection of a Recurrent on {name} (bias=False)"
        return None

    def border(self, x: Tensor) -> tuple[Quantize | None, int]:
        """Return what makes integers of inputs like ``x``, and the largest of them."""
        most = self.chip.input_spikes
        if float(x.min()) < 0 or (most == 1 and not bool(((x == 0) | (x == 1)).all())):
            raise ValueError(
                f"the sample has inputs that are no spikes, {float(x.min()):g} to "
                f"{float(x.max()):g}, and {self.chip.name} takes 0 to {most} of a channel in a "
                "step. Encode them, by tt.encode.rate or tt.encode.population say."
            )
        return whole_border(x, most.bit_length(), signed=False)

    def misfits(
        self, products: list[tuple[str, Product]], neurons: list[tuple[str, Neuron]]
    ) -> list[str]:
        """Return which limits of the chip a network exceeds."""
        chip = self.chip
        found = []
        sizes = [neuron.num_neurons for _, neuron in neurons]
        inputs = products[0][1].weight.shape[1]
        counts = (
            ("inputs", inputs, chip.inputs),
            ("hidden neurons", sum(sizes[:-1]), chip.hidden),
            ("outputs", sizes[-1], chip.outputs),
        )
        for what, number, most in counts:
            if most is not None and number > most:
                found.append(f"{number} {what}, {chip.name} has {most}")
        for path, product in products:
            used = (product.weight != 0).flatten(1)
            into, out = int(used.sum(1).max()), int(used.sum(0).max())
            if chip.fan_in is not None and into > chip.fan_in:
                found.append(f"{path}: {into} connections into a neuron, {chip.name} {chip.fan_in}")
            if chip.fan_out is not None and out > chip.fan_out:
                found.append(f"{path}: {out} connections out of one, {chip.name} {chip.fan_out}")
        return found

    def _bias(
        self, stage: Stage, through_synapse: Tensor, at_membrane: Tensor, form: dict[str, Any]
    ) -> dict[str, Learned]:
        """Return the one bias of a neuron, of its product or, without one there, its own."""
        layer, product = stage.layer, stage.product

        def made(factor: Tensor) -> LearnedIntegers:
            return LearnedIntegers(unbounded, factor, **form)

        if product.bias is not None:
            return {"bias": Learned(product.bias, made(through_synapse), "product.bias")}
        if layer.bias is not None:
            return {"bias": Learned(layer.raw_bias, made(at_membrane), "neuron.raw_bias")}
        return {}


def _reach(layer: LeakyIntegrator) -> tuple[Tensor, Tensor]:
    """Return what a constant input of 1 makes of synapse and membrane, each of its own."""
    kwargs = layer.step_kwargs(1, torch.float32)
    synapse = torch.ones(())
    if layer.alpha is not None and not kwargs["alpha_ema"]:
        synapse = 1 / (1 - layer.alpha.detach())
    membrane = torch.ones(()) if kwargs["beta_ema"] else 1 / (1 - layer.beta.detach())
    return synapse, membrane


@dataclass(frozen=True)
class Xylo(Silicon):
    """Xylo: decays by shifts, several spikes a step."""

    without_delays: ClassVar[str | None] = "no delays on Xylo, which has none: Linear instead"

    def refuse(self, stage: Stage, *, last: bool) -> str | None:
        """Return why a stage has no form here, as what is allowed; ``None`` where it has one."""
        if stage.before or stage.between:
            return "Linear and neurons alone on Xylo, without pools, Flatten and delays between"
        linear = (stage.product, stage.connection)
        if not all(each is None or isinstance(each, nn.Linear) for each in linear):
            return "Linear alone on Xylo, whose hidden neurons are all connected alike"
        if last and stage.connection is not None:
            return "no recurrence among the outputs of Xylo"
        layer = stage.layer
        if not self.chip.has_bias and (
            stage.product.bias is not None or (stage.neuron is not None and layer.bias is not None)
        ):
            return f"no bias on {self.chip.name} (bias=False, and no batch norm)"
        return super().refuse(stage, last=last)

    def differences(self, stage: Stage) -> list[str]:
        """Return in what the chip's neurons differ from those of a stage."""
        layer = stage.layer
        kwargs = layer.step_kwargs(1, torch.float32)
        found = []
        if layer.alpha is None:
            found.append("has a synapse, which spreads its input over steps: half of it a step")
        if kwargs["reset"] != "subtract":
            found.append(f"subtracts its threshold, the model has reset={kwargs['reset']!r}")
        for name, dash in self._dashes(layer).items():
            value = layer.alpha if name == "dash_syn" else layer.beta
            if value is None:
                continue
            kept = 1 - 2.0**-dash
            worst = float((kept - value.detach()).abs().max())
            if worst > 1e-3:
                what = "alpha" if name == "dash_syn" else "beta"
                found.append(f"{what} is the nearest 1 - 2^-n, off by up to {worst:.3f}")
        return found

    def departures(self, model: nn.Sequential, x: Tensor) -> list[str]:
        """Return in what the chip departs from an integer model on a sample."""
        border = next(model.children())
        x = border(x) if isinstance(border, Quantize) else x
        arguments = xylo.configuration(model)
        network = xylo.Network(**arguments, version=2 if self.chip.has_bias else 1).to(x.device)
        with restored(model):
            rest = model[1:] if isinstance(border, Quantize) else model
            same = torch.equal(unroll(network, x, by="step"), unroll(rest, x, from_rest=True))
        return (
            [] if same else ["a sum saturates on the way, and the chip's order of adding matters"]
        )

    def _dashes(self, layer: LeakyIntegrator) -> dict[str, Tensor]:
        """Return the shifts whose decays are nearest."""

        def nearest(decay: Tensor) -> Tensor:
            shift = -torch.log2(1 - decay.detach().double())
            candidates = torch.stack([shift.floor(), shift.ceil()]).clamp(0, _LARGEST_DASH)
            off = (1 - 2.0**-candidates - decay.detach()).abs()
            return torch.where(off[0] <= off[1], candidates[0], candidates[1]).float()

        synapse = torch.ones(()) if layer.alpha is None else nearest(layer.alpha).clamp(min=1)
        return {"dash_mem": nearest(layer.beta), "dash_syn": synapse}

    def gain(self, layer: LeakyIntegrator) -> Tensor:
        """Return by what weights are multiplied, so that the chip's neurons reach as far."""
        synapse, membrane = _reach(layer)
        dashes = self._dashes(layer)
        # the chip's synapse decays before the membrane takes it
        own = (2.0 ** dashes["dash_syn"] - 1) * 2.0 ** dashes["dash_mem"]
        return synapse * membrane / own

    def neuron(self, stage: Stage, unit: Tensor, *, last: bool) -> IntegerNeuron:
        """Return how to build the neurons of a stage, whose states count in ``unit``."""
        layer, chip = stage.layer, self.chip
        dashes = self._dashes(layer)
        synapse, membrane = _reach(layer)
        own = membrane / (2.0 ** dashes["dash_mem"] * unit)
        low = -self.limit - 1
        learned = {
            "pos_threshold": Learned(
                layer.raw_pos_threshold,
                LearnedIntegers(softplus, 1 / unit, 1, self.limit),
                "neuron.raw_pos_threshold",
            ),
            **self._bias(stage, synapse * own, own, {"low": low, "high": self.limit}),
        }
        most = chip.output_spikes if last else chip.hidden_spikes
        kind = partial(
            xylo.LIF,
            layer.num_neurons,
            layer.dim,
            max_spikes=most,
            version=2 if chip.has_bias else 1,
            surrogate_derivative=layer.step_kwargs(1, torch.float32)["pos_spike"],
        )
        return IntegerNeuron(kind, dashes, learned, torch.ones(()), most)


@dataclass(frozen=True)
class Loihi(Silicon):
    """Loihi's CUBA neuron: decays of 12 bits, and a reset to zero."""

    without_delays: ClassVar[str | None] = (
        "no delays of synapses on Loihi here: a Linear or convolution, and snn.Delay behind the "
        "neurons that spike"
    )

    @property
    def state_width(self) -> int:
        """Width of the states, of which inputs take fewer bits."""
        return loihi.LOIHI.state_bits

    def refuse(self, stage: Stage, *, last: bool) -> str | None:
        """Return why a stage has no form here, as what is allowed; ``None`` where it has one."""
        pools = (nn.AvgPool1d, nn.AvgPool2d, nn.MaxPool1d, nn.MaxPool2d)
        if any(isinstance(module, pools) for _, module in (*stage.before, *stage.between)):
            return "no pools on Loihi, which has none. Use a convolution with a stride"
        return super().refuse(stage, last=last)

    def differences(self, stage: Stage) -> list[str]:
        """Return in what the chip's neurons differ from those of a stage."""
        reset = stage.layer.step_kwargs(1, torch.float32)["reset"]
        return [] if reset == "zero" else [f"is reset to zero, the model has reset={reset!r}"]

    def gain(self, layer: LeakyIntegrator) -> Tensor:
        """Return by what weights are multiplied: what averaging traces do not take in."""
        kwargs = layer.step_kwargs(1, torch.float32)
        gain = torch.ones(())
        if layer.alpha is not None and kwargs["alpha_ema"]:
            gain = gain * (1 - layer.alpha.detach())
        if kwargs["beta_ema"]:
            gain = gain * (1 - layer.beta.detach())
        return gain

    def neuron(self, stage: Stage, unit: Tensor, *, last: bool) -> IntegerNeuron:
        """Return how to build the neurons of a stage, whose inputs count in ``unit``."""
        layer = stage.layer
        kwargs = layer.step_kwargs(1, torch.float32)
        one = 2**loihi.LOIHI.decay_bits
        kept = torch.zeros(()) if layer.alpha is None else layer.alpha.detach()
        constants = {
            "du": (one - 1 - (one * kept).round()).clamp(0, one - 1),
            "dv": (one - (one * layer.beta.detach()).round()).clamp(0, one - 1),
        }
        synapse, _ = _reach(layer)
        # voltages are 6 bits finer than inputs
        taken = (1 - layer.beta.detach()) if kwargs["beta_ema"] else torch.ones(())
        own = 64 * taken / unit
        values = stage.product.bias if stage.product.bias is not None else layer.bias
        step = 1.0
        if values is not None:  # a mantissa of 13 bits, and an exponent for the layer
            largest = float((values.detach().abs() * (synapse * own)).max())
            step = 2.0 ** min(7, max(0, math.ceil(math.log2(max(largest, 1.0) / 2048))))
        learned = {
            "pos_threshold": Learned(
                layer.raw_pos_threshold,
                LearnedIntegers(softplus, 1 / unit, 1, 2**loihi.LOIHI.threshold_bits - 1),
                "neuron.raw_pos_threshold",
            ),
            **self._bias(stage, synapse * own, own, {"low": -4095, "high": 4095, "step": step}),
        }
        kind = partial(
            loihi.LIF, layer.num_neurons, layer.dim, surrogate_derivative=kwargs["pos_spike"]
        )
        return IntegerNeuron(kind, constants, learned, torch.ones(()), 1)
