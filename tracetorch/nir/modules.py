"""Define the modules that compute NIR's nodes where PyTorch and traceTorch have none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from tracetorch.functional import atan_surrogate
from tracetorch.nir.layer_values import read_values, to_array, write_values
from tracetorch.nir.node_graph import Node, Shape, elementwise
from tracetorch.nir.options import Array, Reset, WriteOptions
from tracetorch.snn import Neuron

_SURROGATE = atan_surrogate(2.0)
_PARAMETERS = ("alpha", "beta", "w_in", "r", "v_leak", "v_threshold", "v_reset")


class Membrane(Neuron):
    """Integrate as NIR's I, IF, LI, LIF, CubaLI and CubaLIF do, with all their parameters.

    Parts in [brackets] exist only where their parameter is given::

        [alpha]      syn = alpha * syn + (1 - alpha) * w_in * x;  x = syn
        [beta]       v - v_leak = beta * (v - v_leak) + (1 - beta) * r * x
        (no beta)    v = v + dt * r * x
        [threshold]  fired = H(v - v_threshold)
                     v = v_reset where it fired, or v - fired * (v_threshold - v_reset)

    The state ``mem`` is the membrane's distance from where it rests: from ``v_leak``, from
    ``v_reset`` for an IF, from zero for an I. It starts there.

    ``values`` hold one minus the decays ``alpha`` and ``beta``, and the rest by their names; one
    value in rank 0, or one per neuron in rank 1.

    Example:
        >>> layer = Membrane(1, -1, {"r": np.array([1e3])}, dt=1e-3, reset="zero")
        >>> [layer(torch.tensor([[0.5]])).item() for _ in range(3)]
        [0.5, 1.0, 1.5]
    """

    states: ClassVar[tuple[str, ...]] = ("mem", "syn")

    dt: float
    reset: Reset

    def __init__(
        self, num_neurons: int, dim: int, values: Mapping[str, Array], *, dt: float, reset: Reset
    ) -> None:
        super().__init__(num_neurons, dim)
        for name in _PARAMETERS:
            if name not in values:
                self.option(name, None)
                continue
            # a threshold of NIR may lie anywhere, below zero too, so it is a weight
            declare = self.decay if name in ("alpha", "beta") else self.weight
            declare(name, torch.full(values[name].shape, 0.5))
        self.option("spike", _SURROGATE if "v_threshold" in values else None)
        self.option("dt", float(dt))
        self.option("reset", reset)
        write_values(self, values)

    @property
    def active_states(self) -> tuple[str, ...]:
        """Name ``mem``, and with a synapse ``syn``."""
        return ("mem", "syn") if "alpha" in self.constraints else ("mem",)

    @staticmethod
    def step(
        x: Tensor,
        mem: Tensor,
        syn: Any,
        *,
        alpha: Any,
        beta: Any,
        w_in: Any,
        r: Tensor,
        v_leak: Any,
        v_threshold: Any,
        v_reset: Any,
        spike: Any,
        dt: float,
        reset: Reset,
    ) -> tuple[Tensor, Tensor, Any]:
        if alpha is not None:
            x = syn = alpha * syn + (1 - alpha) * (w_in * x)
        if beta is None:
            mem, rest = mem + dt * r * x, v_reset
        else:
            mem, rest = beta * mem + (1 - beta) * (r * x), v_leak
        if v_threshold is None:
            return mem if rest is None else mem + rest, mem, syn
        fired = spike(mem + rest - v_threshold)
        if reset == "zero":
            mem = mem * (1 - fired) + fired * (v_reset - rest)
        else:
            mem = mem - fired * (v_threshold - v_reset)
        return fired, mem, syn

    def node(self, shape: Shape, options: WriteOptions) -> Node:
        """Return the node for samples of ``shape``, with the parameters of now."""
        values = read_values(self, shape)
        if self.spike is not None and self.reset == "subtract" and not options.allow_hard_reset:
            problem = "was read with reset='subtract', which its node cannot say"
            advice = "Give allow_hard_reset=True, and reset='subtract' when you read it."
            raise ValueError(f"{problem}. {advice}")
        if self.dt != options.clock.dt and "beta" not in values:
            raise ValueError(f"was read with dt={self.dt}, and cannot be written for another.")
        # The parameters tell the kind: a membrane that leaks is an LI, with a synapse a CubaLI.
        kind = "I"
        if "beta" in values:
            tau = options.clock.tau(values.pop("beta"))
            kind, values["tau_mem" if "alpha" in values else "tau"] = "LI", tau
        if "alpha" in values:
            kind, values["tau_syn"] = "CubaLI", options.clock.tau(values.pop("alpha"))
        return elementwise(kind if self.spike is None else f"{kind}F", shape, **values)


class OneStep(Neuron):
    """Delay by one step: ``output = held;  held = x``, zero at first."""

    states: ClassVar[tuple[str, ...]] = ("held",)

    held: Tensor | None

    @staticmethod
    def step(x: Tensor, held: Tensor) -> tuple[Tensor, Tensor]:
        return held, x

    def recall(self, zeros: Tensor) -> Tensor:
        """Return what is held, the first half of a call; ``zeros`` at the first step."""
        if self.held is None:
            return zeros
        (held,) = self._states_for(zeros, self._check_input(zeros))
        return zeros if held is None else held.to(zeros.dtype)

    def keep(self, x: Tensor) -> None:
        """Hold ``x`` for the next step, the second half of a call."""
        dtype = self._check_input(x)
        self._states_for(x, dtype)
        self.held = x.to(dtype, copy=True)


class PerElement(nn.Module):
    """Compute a Scale, ``x * scale``, or a Threshold, ``H(x - threshold)``, by ``field``."""

    def __init__(self, field: str, value: Tensor) -> None:
        super().__init__()
        self.field = field
        self.register_parameter(field, nn.Parameter(value))

    def forward(self, x: Tensor) -> Tensor:
        """Run one time step, or many in the batch."""
        value: Tensor = getattr(self, self.field)
        return (x * value if self.field == "scale" else _SURROGATE(x - value)).to(x.dtype)

    def extra_repr(self) -> str:
        """Return the name and the shape of the parameter."""
        return f"{self.field}={list(getattr(self, self.field).shape)}"

    def node(self, shape: Shape, options: WriteOptions) -> Node:
        """Return the node for samples of ``shape``, with the parameter of now."""
        value = to_array(getattr(self, self.field))
        return Node(self.field.title(), {self.field: np.array(np.broadcast_to(value, shape))})
