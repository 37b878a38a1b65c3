"""Integer arithmetic of NumPy's int64, written from the definitions in the documentation."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from tracetorch import integers, snn

Integers = NDArray[np.int64]


def divided(x: Integers, divisor: Integers | int, rounding: str) -> Integers:
    """``x / divisor`` for a positive divisor, rounded."""
    x, divisor = np.asarray(x, np.int64), np.asarray(divisor, np.int64)
    if rounding == "trunc":
        return np.sign(x) * (np.abs(x) // divisor)
    if rounding == "nearest":
        return (2 * x + divisor) // (2 * divisor)
    below = x // divisor
    return np.where((x > 0) & (below == 0), 1, below) if rounding == "at_least_one" else below


def fitted(x: Integers, bits: int, overflow: str) -> Integers:
    """``x`` in a signed integer of some bits."""
    half = 2 ** (bits - 1)
    if overflow == "saturate":
        return np.clip(x, -half, half - 1)
    return (np.asarray(x, np.int64) + half) % (2 * half) - half


class LeakyIntegrator:
    """The equations of ``tt.integers.LeakyIntegrator`` in int64; parts as its arguments."""

    def __init__(self, shape: tuple[int, ...], **arguments: Any) -> None:
        self.__dict__.update(dict.fromkeys(("alpha", "gamma", "bias", "rec_weight")), **arguments)
        self.given = arguments
        self.mem, self.syn, self.rec, self.output = (np.zeros(shape, np.int64) for _ in range(4))

    def get(self, name: str, default: Any = None) -> Any:
        return self.given.get(name, default)

    def advance(self, trace: Integers, x: Integers, decay: Integers, averaging: bool) -> Integers:
        kind, rounding = self.given["kind"], self.given["rounding"]
        if kind == "shift":
            left = trace - divided(trace, 2 ** np.asarray(decay), rounding)
            taken = divided(x, 2 ** np.asarray(decay), rounding) if averaging else x
        else:
            unity = 2 ** self.given["bits"]
            left = divided(trace * decay, unity, rounding)
            taken = divided(x * (unity - decay), unity, rounding) if averaging else x
        return self.fit(left + taken)

    def fit(self, x: Integers) -> Integers:
        return fitted(x, self.given["state_bits"], self.given["overflow"])

    def step(self, x: Integers) -> Integers:
        drive = x
        if self.get("gamma") is not None:
            self.rec = self.advance(
                self.rec, self.output, self.get("gamma"), self.get("gamma_ema", False)
            )
        if self.get("alpha") is not None:
            self.syn = self.advance(self.syn, x, self.get("alpha"), self.get("alpha_ema", False))
            drive = self.syn
        if self.get("rec_weight") is not None:
            fraction = self.get("rec_weight_fraction", 0)
            drive = drive + divided(self.rec * self.get("rec_weight"), 2**fraction, "floor")
        if self.get("bias") is not None:
            drive = drive + self.get("bias")
        mem = self.advance(self.mem, drive, self.get("beta"), self.get("beta_ema", False))
        output, spikes = np.zeros_like(mem), False
        for sign, name in ((1, "pos"), (-1, "neg")):
            threshold = self.get(f"{name}_threshold")
            if threshold is None:
                continue
            spikes = True
            fired = (sign * mem > threshold).astype(np.int64)
            if self.get("reset", "subtract") == "subtract":
                mem = self.fit(mem - sign * fired * threshold)
            elif self.get("reset") == "zero":
                mem = mem * (1 - fired)
            scale = self.get(f"{name}_scale")
            output = output + sign * fired * (1 if scale is None else scale)
        self.mem = mem
        self.output = output if spikes else mem
        return self.output


def stochastically_rounded(x: Tensor, uniform: Tensor) -> Tensor:
    """Up where the number drawn is below the fraction, as the page on integers has it."""
    below = integers.floor(x.detach())
    # the fraction is exact, where x + uniform would round
    up = uniform < x.detach() - below
    return integers.straight_through(x, below + up.to(x.dtype))


class Noisy(snn.Neuron):
    """A trace that decays by a shift, rounded by numbers from a counter; or its input halved so."""

    inputs = ("x", "noise")
    states = ("mem",)

    def __init__(self, num_neurons: int, halved: bool = False) -> None:
        super().__init__(num_neurons)
        self.noise = snn.Noise(num_neurons, distribution="uniform", seed=5)
        self.option("halved", halved)

    @staticmethod
    def step(x: Tensor, noise: Tensor, mem: Tensor, *, halved: bool) -> tuple[Tensor, ...]:
        if halved:
            return stochastically_rounded(x / 2, noise), mem
        mem = mem - stochastically_rounded(mem * 2.0**-4, noise) + x
        return mem, mem
