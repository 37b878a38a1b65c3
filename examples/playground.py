"""Write the playground of the documentation: the twelve layers, and four neurons of its own.

    python examples/playground.py --out runs/playground.html

The page opens from the file system. Writing it takes some seconds, for every layer is traced with
every reset and every surrogate.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import tracetorch as tt
from tracetorch import snn

FAMILY = (
    *("LIF", "BLIF", "SLIF", "RLIF", "BSLIF", "BRLIF", "SRLIF", "BSRLIF"),
    *("Readout", "SReadout", "RReadout", "SRReadout"),
)


class AdaptiveLIF(snn.Neuron):
    """Adaptive LIF: every spike raises the threshold, which falls again slowly.

    ::

        mem = beta * mem + x
        output = H(mem - base - adaptation * fatigue)
        mem = mem - output * base
        fatigue = rho * fatigue + output

    Reference: Bellec et al., "Long short-term memory and learning-to-learn in networks of spiking
    neurons", NeurIPS 2018.
    """

    states = ("mem", "fatigue")

    def __init__(
        self,
        num_neurons: int,
        dim: int = -1,
        beta: float = 0.9,
        rho: float = 0.98,
        base: float = 1.0,
        adaptation: float = 0.5,
    ) -> None:
        super().__init__(num_neurons, dim)
        self.decay("beta", beta)
        self.decay("rho", rho)
        self.threshold("base", base)
        self.weight("adaptation", adaptation)

    @staticmethod
    def step(
        x: Tensor,
        mem: Any,
        fatigue: Any,
        *,
        beta: Any,
        rho: Any,
        base: Any,
        adaptation: Any,
        spike: Any,
    ) -> Any:
        """Run one step."""
        mem = beta * mem + x
        fired = spike(mem - base - adaptation * fatigue)
        return fired, mem - fired * base, rho * fatigue + fired


class RefractoryLIF(snn.Neuron):
    """Refractory LIF: for some steps after a spike, its membrane hears less of the input.

    ::

        mem = beta * mem + x / (1 + refractoriness * pause)
        output = H(mem - base)
        mem = mem * (1 - output)
        pause = rho * pause + output
    """

    states = ("mem", "pause")

    def __init__(
        self,
        num_neurons: int,
        dim: int = -1,
        beta: float = 0.9,
        rho: float = 0.8,
        base: float = 1.0,
        refractoriness: float = 5.0,
    ) -> None:
        super().__init__(num_neurons, dim)
        self.decay("beta", beta)
        self.decay("rho", rho)
        self.threshold("base", base)
        self.weight("refractoriness", refractoriness)

    @staticmethod
    def step(
        x: Tensor,
        mem: Any,
        pause: Any,
        *,
        beta: Any,
        rho: Any,
        base: Any,
        refractoriness: Any,
        spike: Any,
    ) -> Any:
        """Run one step."""
        mem = beta * mem + x / (1 + (refractoriness * pause).abs())
        fired = spike(mem - base)
        return fired, mem * (1 - fired), rho * pause + fired


class ResonateAndFire(snn.Neuron):
    """Resonate-and-fire: a damped oscillator that answers to inputs of its own frequency.

    ::

        flow, mem = damping * rotation(frequency) of (flow + x, mem)
        output = H(mem - base)
        mem = mem - output * base

    ``frequency`` is the angle of a step, in radians.

    Reference: Izhikevich, "Resonate-and-fire neurons", Neural Networks 14 (2001).
    """

    states = ("mem", "flow")

    def __init__(
        self,
        num_neurons: int,
        dim: int = -1,
        damping: float = 0.95,
        frequency: float = 0.3,
        base: float = 1.0,
    ) -> None:
        super().__init__(num_neurons, dim)
        self.decay("damping", damping)
        self.weight("frequency", frequency)
        self.threshold("base", base)

    @staticmethod
    def step(
        x: Tensor, mem: Any, flow: Any, *, damping: Any, frequency: Any, base: Any, spike: Any
    ) -> Any:
        """Run one step."""
        driven, cos, sin = flow + x, torch.cos(frequency), torch.sin(frequency)
        flow = damping * (cos * driven - sin * mem)
        mem = damping * (sin * driven + cos * mem)
        fired = spike(mem - base)
        return fired, mem - fired * base, flow


class Izhikevich(snn.Neuron):
    """Izhikevich's neuron: two equations, from regular spiking to bursts. A step is 1 ms.

    ::

        v = mem - 65 mV;  u = recovery + b * (-65 mV)
        twice: v = v + 0.5 * (0.04 v^2 + 5 v + 140 - u + gain * x)
        u = u + a * (b * v - u)
        output = H(v - 30 mV)
        where it fires: v = c, u = u + d

    ``mem`` and ``recovery`` are measured from rest, where they begin; ``c`` too.

    Reference: Izhikevich, "Simple model of spiking neurons", IEEE Transactions on Neural Networks
    14 (2003).
    """

    states = ("mem", "recovery")

    def __init__(
        self,
        num_neurons: int,
        dim: int = -1,
        a: float = 0.02,
        b: float = 0.2,
        c: float = 0.0,
        d: float = 8.0,
        gain: float = 20.0,
    ) -> None:
        super().__init__(num_neurons, dim)
        for name, value in (("a", a), ("b", b), ("c", c), ("d", d), ("gain", gain)):
            self.weight(name, value)
        self.option("spike", tt.functional.atan_surrogate(2.0))

    @staticmethod
    def step(
        x: Tensor, mem: Any, recovery: Any, *, a: Any, b: Any, c: Any, d: Any, gain: Any, spike: Any
    ) -> Any:
        """Run one step."""
        v, u = mem - 65, recovery - 65 * b
        for _ in range(2):
            v = v + 0.5 * (0.04 * v * v + 5 * v + 140 - u + gain * x)
        u = u + a * (b * v - u)
        # in units of 30 mV, in which a surrogate has a reach
        fired = spike((v - 30) / 30)
        v = v + fired * (c - 65 - v)
        u = u + fired * d
        return fired, v + 65, u + 65 * b


OWN = (AdaptiveLIF, RefractoryLIF, ResonateAndFire, Izhikevich)


def neurons() -> dict[str, snn.Neuron]:
    """Make the neurons of the page, by name."""
    named: dict[str, snn.Neuron] = {name: getattr(snn, name)(1) for name in FAMILY}
    return named | {kind.__name__: kind(1) for kind in OWN}


def write(path: Path) -> None:
    """Write the page."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tt.plot.save_playground(neurons(), path, title="Neuron playground")


def main() -> None:
    """Parse the command line and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/playground.html"))
    options = parser.parse_args()
    write(options.out)
    print(f"{options.out}: {options.out.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
