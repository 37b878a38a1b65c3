"""Define the neurons of NIR that no layer of traceTorch is, and the delay of one step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from tracetorch.functional import atan_surrogate
from tracetorch.nir.graph import Node, Shape, elementwise
from tracetorch.nir.layer_parameters import read_values, spread, write_values
from tracetorch.nir.options import Reset, WriteOptions
from tracetorch.snn import Neuron

SURROGATE = atan_surrogate(2.0)
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
    reset: Reset

    def __init__(
        self, num_neurons: int, dim: int, values: Mapping[str, Tensor], *, dt: float, reset: Reset
    ) -> None:
        super().__init__(num_neurons, dim)
        for name in _PARAMETERS:
            if name not in values:
                self.option(name, None)
            elif name in ("alpha", "beta"):
                self.decay(name, 1 - values[name])
            else:
                # a threshold of NIR may lie anywhere, below zero too, so it is a weight
                self.weight(name, values[name])
        self.option("spike", SURROGATE if "v_threshold" in values else None)
        self.option("dt", float(dt))
        self.option("reset", reset)
        write_values(self, {name: value.numpy() for name, value in values.items()})

    @property
    def kept_states(self) -> tuple[str, ...]:
        """Name ``mem``, and with a synapse ``syn``."""
        return ("mem", "syn") if "alpha" in self._constraints else ("mem",)

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
        reset: Reset,
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

    def node(self, shape: Shape, options: WriteOptions) -> Node:
        """Return the node that the layer was read from, with the parameters it has now."""
        values = {name: spread(self, value, shape) for name, value in read_values(self).items()}
        if self.spike is not None and self.reset == "subtract" and not options.allow_hard_reset:
            raise ValueError(
                "was read with reset='subtract', which its node cannot say. Give "
                "allow_hard_reset=True, and reset='subtract' when you read it."
            )
        if self.dt != options.clock.dt and "beta" not in values:
            raise ValueError(f"was read with dt={self.dt}, and cannot be written for another.")
        kind = "LI" if "beta" in values else "I"
        if "alpha" in values:
            kind, values["tau_syn"] = f"Cuba{kind}", options.clock.tau(values.pop("alpha"))
        if "beta" in values:
            name = "tau_mem" if "tau_syn" in values else "tau"
            values[name] = options.clock.tau(values.pop("beta"))
        return elementwise(kind if self.spike is None else f"{kind}F", shape, **values)


class OneStep(Neuron):
    """Delay by one step: give what came in a step ago, zero at first.

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
        """Return what is held, the first half of a call; ``None`` at the first step."""
        if self.held is None:
            return None
        (held,) = self.states_for(like, self.check_input(like))
        return None if held is None else held.to(like.dtype)

    def keep(self, x: Tensor) -> None:
        """Hold ``x`` for the next step, the second half of a call."""
        dtype = self.check_input(x)
        self.states_for(x, dtype)
        self.held = x.to(dtype, copy=True)
