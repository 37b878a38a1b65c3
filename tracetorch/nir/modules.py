"""Define the modules that compute NIR's nodes where no other does, and the model of a graph."""

from __future__ import annotations

import keyword
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, cast

import numpy as np
import torch
from torch import Tensor, nn

from tracetorch.functional import atan_surrogate
from tracetorch.nir.layer_nodes import read_values, to_array, write_values
from tracetorch.nir.nodes import Array, Clock, Node, Options, Reset, Shape, elementwise
from tracetorch.nir.wiring import Value, Wiring
from tracetorch.snn import Neuron, TTModule

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

    ``values`` hold one minus the decays ``alpha`` and ``beta``, and the rest by their names.
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

    def node(self, shape: Shape, options: Options) -> Node:
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
        """Return what is held, the first half of a call."""
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

    def node(self, shape: Shape, options: Options) -> Node:
        """Return the node for samples of ``shape``, with the parameter of now."""
        value = to_array(getattr(self, self.field))
        return Node(self.field.title(), {self.field: np.array(np.broadcast_to(value, shape))})


class NIRModel(TTModule):
    """Run one time step of a graph per call.

    Every node is a module in ``nodes``, under its name with ``.`` turned into ``_``. Inputs are
    given by name, or in the order of the ``forward`` that was exported, where the graph tells it,
    else of their names. One output ``[B, ...]``, or a dict of them by name.
    """

    def __init__(self, flow: Wiring, modules: dict[str, nn.Module], clock: Clock) -> None:
        super().__init__()
        self.flow = flow
        self.clock = clock
        self.keys = _module_names(modules)
        self.nodes = nn.ModuleDict({self.keys[name]: m for name, m in modules.items()})
        shapes = {name: flow.shapes[name] for name in flow.kept}
        self.late = nn.ModuleDict(
            {self.keys[name]: OneStep(shape[0], -len(shape)) for name, shape in shapes.items()}
        )

    def forward(self, *positional: Tensor, **by_name: Tensor) -> Tensor | dict[str, Tensor]:
        """Run one time step."""
        flow, inputs = self.flow, self._inputs(positional, by_name)
        values: dict[Value, Tensor] = {(name, False): value for name, value in inputs.items()}
        some = next(iter(inputs.values()))
        kept = {name: cast(OneStep, self.late[self.keys[name]]) for name in flow.kept}
        for name, edge in kept.items():
            values[name, True] = edge.recall(some.new_zeros(some.shape[0], *flow.shapes[name]))
        for value, sources in flow.plan:
            total, *others = (values[source] for source in sources)
            for other in others:
                total = total + other
            values[value] = self.nodes[self.keys[value[0]]](total)
        for name, edge in kept.items():
            edge.keep(values[name, False])
        outputs = {name: values[name, False] for name in flow.outputs}
        return outputs if len(outputs) > 1 else next(iter(outputs.values()))

    def _inputs(self, args: tuple[Tensor, ...], by_name: dict[str, Tensor]) -> dict[str, Tensor]:
        inputs = dict(zip(self.flow.inputs, args, strict=False)) | by_name
        once = len(args) + len(by_name) == len(inputs) == len(self.flow.inputs)
        if not once or inputs.keys() != set(self.flow.inputs):
            got = f"{len(args)} tensors and {list(by_name)} by name"
            raise TypeError(f"the graph takes {self.flow.inputs}, each once; got {got}.")
        for name, value in inputs.items():
            shape = self.flow.shapes[name]
            if tuple(value.shape[1:]) != shape:
                got = f"input {name!r} has shape {list(value.shape)}"
                raise ValueError(f"{got}, the graph takes a batch of {list(shape)}.")
        return inputs


def _module_names(names: Iterable[str]) -> dict[str, str]:
    """Return a name that a module may have for each name in a file, which may be anything."""
    keys: dict[str, str] = {}  # the other way round: names by key
    reserved = nn.ModuleDict()
    # A file may hold any number of names that become one: count instead of trying all suffixes.
    tried: Counter[str] = Counter()
    for name in names:
        key = base = "".join(c if c.isalnum() else "_" for c in name)
        if keyword.iskeyword(key) or hasattr(reserved, key):
            key = base = f"{key}_"
        while key in keys:
            tried[base] += 1
            key = f"{base}_{tried[base]}"
        keys[key] = name
    return {name: key for key, name in keys.items()}
