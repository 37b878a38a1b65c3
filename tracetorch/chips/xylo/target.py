"""``XyloTarget``: quantise for Xylo.

A decay is the nearest shift, and does not learn. Where the chip's synapse and membrane gather more
or less than the float ones over time, weights make up for it: what a constant input leads to is the
same.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from tracetorch.chips.target import ChipTarget, IntegerNeuron, Stage, gathered
from tracetorch.chips.xylo.configuration import arrays_of, configuration, layers_of
from tracetorch.chips.xylo.network import Network
from tracetorch.chips.xylo.neurons import LIF, XYLO_2, StepDelay
from tracetorch.integers.layers import Linear

_LARGEST_DASH = 2**XYLO_2.decay_bits - 1


@dataclass(frozen=True)
class XyloTarget(ChipTarget):
    """Xylo: decays by shifts, several spikes a step, which arrive one step later."""

    most_shift: ClassVar[int] = XYLO_2.weight_exponent[1]
    one_inner_shift: ClassVar[bool] = True
    least_layers: ClassVar[int] = 2
    without_delays: ClassVar[str] = "no delays on Xylo, which has none: Linear instead"
    passing: ClassVar[tuple[type[nn.Module], ...]] = (StepDelay,)
    export: ClassVar[Any] = staticmethod(configuration)

    def refuse(self, stage: Stage) -> tuple[str, str] | None:
        """Return a path and what is allowed there, where a stage has no form here."""
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
        """Return why a class of modules without weights has no form here; ``None`` if it has."""
        return "Linear and neurons alone on Xylo, without pools, Flatten, delays and branches"

    def spike_delay(self, num_neurons: int) -> nn.Module | None:
        """Return what delays spikes by a step on their way to the next neurons."""
        return StepDelay(num_neurons)

    def differences(self, stage: Stage) -> list[str]:
        """Return in what the chip's neurons differ from those of a stage."""
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

    def departures(self, model: nn.Sequential, x: Tensor, output: Tensor) -> list[str]:
        """Return in what the chip departs from an integer model on a sample."""
        border = next(model.children())
        x = x if isinstance(border, Linear) else border(x)
        version = 2 if self.chip.has_bias else 1
        network = Network(**arrays_of(layers_of(model)), version=version).to(x.device)
        same = all(torch.equal(network(step), y) for step, y in zip(x, output, strict=True))
        return (
            [] if same else ["a sum saturates on the way, and the chip's order of adding matters"]
        )

    def gain(self, stage: Stage) -> Tensor:
        """Return by what weights are multiplied, so that the chip's neurons reach as far."""
        synapse, membrane = gathered(stage)
        dashes = _dashes(stage)
        # the chip's synapse decays before the membrane takes it
        own = (2.0 ** dashes["dash_syn"] - 1) * 2.0 ** dashes["dash_mem"]
        return synapse * membrane / own

    def neuron(self, stage: Stage, unit: Tensor) -> IntegerNeuron:
        """Return how to build the neurons of a stage, whose states count in ``unit``."""
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
