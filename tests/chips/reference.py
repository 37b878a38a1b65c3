"""Chips in NumPy's int64, written from their published descriptions; slow, and one line a rule."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]
LOW, HIGH = -(2**15), 2**15 - 1


def saturated(x: Any) -> Integers:
    return np.clip(np.asarray(x, np.int64), LOW, HIGH)


def dash(x: Integers, shift: Integers) -> Integers:
    """Return the loss of a decay: a shift, of at least one."""
    gone = x >> shift
    return np.where((x > 0) & (gone == 0), 1, gone)


class Xylo:
    """A configured Xylo; its arrays are those of ``xylo.configuration``."""

    def __init__(self, configuration: dict[str, Any]) -> None:
        self.c = configuration
        hidden, outputs = len(self.c["threshold"]), len(self.c["threshold_out"])
        self.syn = np.zeros((hidden, 2), np.int64)
        self.mem, self.spikes = np.zeros(hidden, np.int64), np.zeros(hidden, np.int64)
        self.syn_out, self.mem_out = np.zeros((2, outputs), np.int64)

    def step(self, x: Integers) -> tuple[Integers, Integers]:
        c = self.c
        inputs = (np.minimum(x, 15), c["weights_in"] << c["weight_shift_in"])
        recurrent = (self.spikes, c["weights_rec"] << c["weight_shift_rec"])
        for spikes, weights in (inputs, recurrent):
            for source, count in enumerate(spikes):
                for _ in range(count):
                    self.syn = saturated(self.syn + weights[source])
        for source, count in enumerate(self.spikes):
            for _ in range(count):
                weights = c["weights_out"][source] << c["weight_shift_out"]
                self.syn_out = saturated(self.syn_out + weights)
        self.syn = self.syn - dash(self.syn, c["dash_syn"])
        self.syn_out = self.syn_out - dash(self.syn_out, c["dash_syn_out"])
        self.mem = self.membrane(self.mem, self.syn.sum(1), c["dash_mem"], c["bias"])
        self.mem_out = self.membrane(self.mem_out, self.syn_out, c["dash_mem_out"], c["bias_out"])
        output = (self.mem_out >= c["threshold_out"]).astype(np.int64)
        self.mem_out = self.mem_out - output * c["threshold_out"]
        self.spikes = np.zeros_like(self.mem)
        for neuron, threshold in enumerate(c["threshold"]):
            while self.mem[neuron] >= threshold and self.spikes[neuron] < 31:
                self.mem[neuron] -= threshold
                self.spikes[neuron] += 1
            for target in c["aliases"][neuron]:
                self.spikes[target] = min(31, self.spikes[target] + self.spikes[neuron])
        return self.spikes, output

    def membrane(
        self, mem: Integers, current: Integers, shift: Integers, bias: Integers
    ) -> Integers:
        gone = dash(mem, shift)
        if self.c["version"] == 1:
            return saturated(mem - gone + current)
        # of 16 bits, the negative of the least integer is itself
        back = np.where(gone == LOW, LOW, -gone)
        return saturated(mem + saturated(saturated(back + current) + bias))
