"""The neurons of NIR that no layer of traceTorch is: with a leak, a reset potential, a gain."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from torch import Tensor

from tracetorch.functional import atan_surrogate
from tracetorch.nir.raw import fill
from tracetorch.snn import Neuron

SURROGATE = atan_surrogate(2.0)
_DECAYS = ("alpha", "beta")
_WEIGHTS = ("w_in", "r", "v_leak", "v_threshold", "v_reset")


class Membrane(Neuron):
    """I, IF, LI, LIF, CubaLI and CubaLIF with all their parameters.

    Parts in [brackets] exist only where their parameter is given::

        [alpha]      syn = alpha * syn + (1 - alpha) * w_in * x;  x = syn
        [beta]       v - v_leak = beta * (v - v_leak) + (1 - beta) * r * x
        (no beta)    v = v + dt * r * x
        [threshold]  fired = H(v - v_threshold)
                     v = v_reset where it fired, or v - fired * (v_threshold - v_reset)

    The state ``mem`` is the membrane's distance from where it rests: from ``v_leak``, from
    ``v_reset`` for an IF, from zero for an I. It starts there.

    Args:
        num_neurons: size of the neuron dimension.
        dim: the neuron dimension.
        values: ``alpha``, ``beta`` (as one minus the decay), ``w_in``, ``r``, ``v_leak``,
            ``v_threshold``, ``v_reset``; of rank 0 for one value, 1 for one per neuron.
        dt: seconds per step.
        reset: ``"zero"``: to ``v_reset``; ``"subtract"``: by what ``v_reset`` lies below.

    Shape:
        Input and output ``[..., num_neurons, ...]`` with the neurons at ``dim``.

    Example:
        >>> r = torch.tensor([1e3], dtype=torch.float64)
        >>> layer = Membrane(1, -1, {"r": r}, dt=1e-3, reset="zero")
        >>> [layer(torch.tensor([[0.5]])).item() for _ in range(3)]
        [0.5, 1.0, 1.5]
    """

    states: ClassVar[tuple[str, ...]] = ("mem", "syn")

    mem: Tensor | None
    syn: Tensor | None
    dt: float
    reset: Literal["zero", "subtract"]

    def __init__(
        self,
        num_neurons: int,
        dim: int,
        values: Mapping[str, Tensor],
        *,
        dt: float,
        reset: Literal["zero", "subtract"],
    ) -> None:
        super().__init__(num_neurons, dim)
        for name in (*_DECAYS, *_WEIGHTS):
            value = values.get(name)
            if value is None:
                self.option(name, None)
            elif name in _DECAYS:
                self.decay(name, 1 - value)
            else:
                self.weight(name, value)
        # a threshold of NIR may lie anywhere, below zero too, so it is a weight
        self.option("spike", SURROGATE if "v_threshold" in values else None)
        self.option("dt", float(dt))
        self.option("reset", reset)
        fill(self, {name: value.numpy() for name, value in values.items()}, decays=_DECAYS)

    @property
    def active_states(self) -> tuple[str, ...]:
        """``mem``, and with a synapse ``syn``."""
        return ("mem", "syn") if "alpha" in self.constraints else ("mem",)

    @staticmethod
    def step(  # noqa: D102 (the equations stand in the class)
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
        reset: str,
    ) -> tuple[Tensor, Tensor, Any]:
        if alpha is not None:
            x = syn = alpha * syn + (1 - alpha) * (w_in * x)
        if beta is None:
            mem = mem + dt * (r * x)
            rest = v_reset
        else:
            mem = beta * mem + (1 - beta) * (r * x)
            rest = v_leak
        if v_threshold is None:
            return mem if rest is None else mem + rest, mem, syn
        fired = spike(mem + rest - v_threshold)
        if reset == "zero":
            mem = mem * (1 - fired) + fired * (v_reset - rest)
        else:
            mem = mem - fired * (v_threshold - v_reset)
        return fired, mem, syn


class OneStep(Neuron):
    """What came in a step ago, zero at first: the delay of an edge, or a link of a longer one.

    ::

        output = held;  held = x

    Args:
        num_neurons: size of the neuron dimension.
        dim: the neuron dimension.

    Shape:
        Input and output ``[..., num_neurons, ...]`` with the neurons at ``dim``.

    Example:
        >>> layer = OneStep(1)
        >>> [layer(torch.tensor([[float(x)]])).item() for x in (3, 4, 5)]
        [0.0, 3.0, 4.0]
    """

    states: ClassVar[tuple[str, ...]] = ("held",)

    held: Tensor | None

    @staticmethod
    def step(x: Tensor, held: Tensor) -> tuple[Tensor, Tensor]:  # noqa: D102
        return held, x

    def recall(self, like: Tensor) -> Tensor | None:
        """What is held, for an input like this one: half of a call; ``None`` at the first step."""
        if self.held is None:
            return None
        (held,) = self.states_for(like, self.check_input(like))
        return None if held is None else held.to(like.dtype)

    def keep(self, x: Tensor) -> None:
        """Hold ``x`` for the next step: the other half."""
        dtype = self.check_input(x)
        self.states_for(x, dtype)
        self.held = x.to(dtype, copy=True)
