"""``XyloTarget``: quantise for Xylo.

A decay is the nearest shift, and does not learn. Where the chip's synapse and membrane gather more
or less than the float ones over time, weights make up for it: what a constant input leads to is the
same.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn

from tracetorch.chips.target import ChipTarget, IntegerNeuron, Stage, gathered
from tracetorch.chips.xylo.configuration import layers_of
from tracetorch.chips.xylo.neurons import HIGH, LIF, LOW, XYLO_2, StepDelay
from tracetorch.integers.layers import Linear
from tracetorch.snn.module import zero_states

_LARGEST_DASH = 2**XYLO_2.decay_bits - 1


@dataclass(frozen=True)
class XyloTarget(ChipTarget):
    """Xylo: decays by shifts, several spikes a step, which arrive one step later."""

    most_shift: ClassVar[int] = XYLO_2.weight_exponent[1]
    one_inner_shift: ClassVar[bool] = True
    least_layers: ClassVar[int] = 2
    without_delays: ClassVar[str] = "no delays on Xylo, which has none: Linear instead"
    passing: ClassVar[tuple[type[nn.Module], ...]] = (StepDelay,)

    def refuse(self, stage: Stage) -> tuple[str, str] | None:
        refused, connection = super().refuse(stage), f"{stage.neuron_path}.connection"
        if refused is not None:
            return refused
        for path, linear in ((stage.path, stage.product), (connection, stage.connection)):
            if linear is not None and not isinstance(linear, nn.Linear):
                return path, "Linear alone on Xylo, whose hidden neurons are all connected alike"
        if stage.last and stage.connection is not None:
            return stage.neuron_path, "no recurrence among the outputs of Xylo"
        return None

    def refuse_module(self, kind: type[nn.Module]) -> str | None:
        return "Linear and neurons alone on Xylo, without pools, Flatten, delays and branches"

    def spike_delay(self, num_neurons: int) -> nn.Module | None:
        return StepDelay(num_neurons)

    def differences(self, stage: Stage) -> list[str]:
        layer, reset = stage.layer, stage.settings["reset"]
        found = []
        if layer.alpha is None:
            found.append("has a synapse, which spreads its input over steps: half of it a step")
        if reset != "subtract":
            found.append(f"subtracts its threshold, the model has reset={reset!r}")
        dashes = _dashes(stage)
        for name, dash in (("beta", dashes["dash_mem"]), ("alpha", dashes["dash_syn"])):
            value = getattr(layer, name)
            if value is not None:
                worst = float((1 - 2.0**-dash - value.detach()).abs().max())
                if worst > 1e-3:
                    found.append(f"{name} is the nearest 1 - 2^-n, off by up to {worst:.3f}")
        return found

    @torch.no_grad()
    def departures(self, model: nn.Sequential, x: Tensor) -> list[str]:
        layers, border = layers_of(model), next(model.children())
        zero_states(model)
        late = [x.new_zeros(x.shape[1], layer.neuron.num_neurons) for layer in layers]
        saturates = False
        for step in x if isinstance(border, Linear) else border(x):
            arriving = step
            for place, (_, product, neuron, connection) in enumerate(layers):
                feeds = [(product, arriving)]
                feeds += [] if connection is None else [(connection, late[place])]
                syn = torch.zeros(()) if neuron.syn is None else neuron.syn
                # all that is added first or last: so far the chip's own order can lead
                for ends in ({"min": 0}, {"max": 0}):
                    parts = [p.summed(s, p.weight.to(s).clamp(**ends)) for p, s in feeds]
                    reached = syn + sum(parts)
                    saturates |= not bool((reached.clamp(LOW, HIGH) == reached).all())
                fired = neuron(sum(each(spikes) for each, spikes in feeds))
                arriving, late[place] = late[place], fired
        zero_states(model)
        return ["a sum can saturate on the way: the chip's order of adding matters"] * saturates

    def gain(self, stage: Stage) -> Tensor:
        synapse, membrane = gathered(stage)
        dashes = _dashes(stage)
        # the chip's synapse decays before the membrane takes it
        own = (2.0 ** dashes["dash_syn"] - 1) * 2.0 ** dashes["dash_mem"]
        return synapse * membrane / own

    def neuron(self, stage: Stage, unit: Tensor) -> IntegerNeuron:
        layer, chip = stage.layer, self.chip
        dashes = _dashes(stage)
        at_membrane = gathered(stage)[1] / (2.0 ** dashes["dash_mem"] * unit)
        bias = {"low": -self.limit - 1, "high": self.limit}
        most = chip.output_spikes if stage.last else chip.hidden_spikes
        kind = partial(
            LIF, layer.num_neurons, layer.dim, max_spikes=most, version=2 if chip.has_bias else 1,
            surrogate_derivative=stage.settings["pos_spike"],
        )  # fmt: skip
        learned = self.learned(stage, unit, at_membrane, bias, self.limit)
        return IntegerNeuron(kind, dashes, learned, torch.ones(()), most)


def _dashes(stage: Stage) -> dict[str, Tensor]:
    """Return the shifts whose decays are nearest to those of a stage's neurons."""
    alpha, beta = stage.layer.alpha, stage.layer.beta

    def nearest(decay: Tensor) -> Tensor:
        shift = -torch.log2(1 - decay.detach().double())
        candidates = torch.stack([shift.floor(), shift.ceil()]).clamp(0, _LARGEST_DASH)
        off = (1 - 2.0**-candidates - decay.detach()).abs()
        return torch.where(off[0] <= off[1], candidates[0], candidates[1]).float()

    synapse = torch.ones(()) if alpha is None else nearest(alpha).clamp(min=1)
    return {"dash_mem": nearest(beta), "dash_syn": synapse}
