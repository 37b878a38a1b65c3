"""One step at a time without a graph: the compiled step that ``layer(x)`` runs under ``no_grad``.

What a step costs here is not arithmetic but the calls around it. So everything that can be settled
once is, for one shape of input; each call then checks that nothing has changed, allocates what it
returns, and makes one call by address.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tracetorch.functional.surrogates import Surrogate
from tracetorch.fuse.backends import chosen, unsuited
from tracetorch.fuse.cache import compiled_at
from tracetorch.fuse.choose import program_of
from tracetorch.fuse.cpu import spread
from tracetorch.fuse.fingerprint import helpers, reads_nothing
from tracetorch.fuse.graph import Unfusable
from tracetorch.fuse.numba import named_literals, print_lines, real_name
from tracetorch.fuse.plan import Plan
from tracetorch.snn.neuron import Neuron

_MOST = 1 << 15  # lanes; for more, PyTorch's own threads are as fast
_KEPT = 4  # shapes a layer stays settled for
_PLAIN = (type(None), bool, int, float, str, Surrogate)  # options that cannot change unseen

_SOURCE = '''"""One step of {layer}, printed by tracetorch.fuse."""

import math

import numpy as np
from numba import carray

real = np.{real}
zero = real(0.0)
one = real(1.0)


def step({arguments}):
    lanes = rows * columns
    x = carray(x_at, lanes)
    output = carray(output_at, lanes)
    params = carray(params_at, {params} * columns)
    literals = carray(literals_at, {literals})
{arrays}
    for row in range(rows):
        low = row * columns
        for i in range(columns):
{body}
'''


def printed(plan: Plan) -> tuple[str, str, Any]:
    """The step of a plan on flat memory told by addresses: source, name and Numba's signature."""
    from numba import types

    program, graph = plan.program, plan.program.forward
    states = [f"{end}_{name}" for end in ("start", "end") for name in program.states]
    pointers = ["params", "literals", "x", "output", *states]
    literals = named_literals(plan)
    arrays = [f"{name} = carray({name}_at, lanes)" for name in states]
    arrays += [f"{name} = literals[{i}]" for i, name in enumerate(literals.values())]
    body = ["x_ = x[low + i]"]
    body += [f"s_{name} = start_{name}[low + i]" for name in program.states]
    body += [
        f"p_{name} = params[{k} * columns + i]"
        for k, name in enumerate(program.params)
        if f"p_{name}" in graph.reads()
    ]
    lines, ends = print_lines(graph, {**literals, "x": "x_"}, "", 0)
    body += [*lines, f"output[low + i] = {ends['output']}"]
    body += [f"end_{name}[low + i] = {ends[f'next_{name}']}" for name in program.states]
    real = real_name(program.dtype)
    text = _SOURCE.format(
        layer=program.layer,
        real=real,
        arguments=", ".join(["rows", "columns", *(f"{name}_at" for name in pointers)]),
        params=max(1, len(program.params)),
        literals=max(1, len(literals)),
        arrays="\n".join(" " * 4 + line for line in arrays),
        body="\n".join(" " * 12 + line for line in body),
    )
    address = types.CPointer(getattr(types, real))  # type: ignore[no-untyped-call]
    return text, "step", types.void(types.int64, types.int64, *[address] * len(pointers))


def stream(layer: Neuron, x: Tensor) -> Tensor | None:
    """One step by the compiled kernel, or ``None`` where the eager step must do it."""
    if (
        type(x) is not Tensor
        or torch._C._len_torch_dispatch_stack()
        or torch._C._are_functorch_transforms_active()
        or torch._C._get_tracing_state() is not None
        or torch.autograd.forward_ad._current_level >= 0
        or x.is_neg()
    ):
        return None
    steppers: list[Stepper] = layer.__dict__["_steppers"]
    if not steppers or not steppers[0].fits(layer, x):
        # the last one used comes first: a batch that comes and goes finds its own again
        found = next((s for s in steppers if s.fits(layer, x)), None) or Stepper(layer, x)
        rest = [s for s in steppers if s is not found][: _KEPT - 1]
        layer.__dict__["_steppers"] = steppers = [found, *rest]
    return steppers[0].step(layer, x)


class Stepper:
    """A layer's step, settled for one shape and dtype of input.

    Args:
        layer: whose step.
        x: an input.

    """

    def __init__(self, layer: Neuron, x: Tensor) -> None:
        self.shape, self.dtype, self.device = x.shape, x.dtype, x.device
        self.states = layer.kept_states
        self.of = layer.step
        self.names = layer.options
        self.options = tuple(getattr(layer, name) for name in self.names)
        self.raws = layer.raw_names
        self.params: tuple[str, ...] = ()
        self.seen: tuple[tuple[int, Any, bytes], ...] = ()
        self.left: list[Tensor] = []
        plan = self._plan(layer, x)
        self.call: Callable[..., None] | None = None
        self.helpers = helpers(layer.step) if plan is not None else []
        if plan is not None:
            self.params = plan.program.params
            self.inner = math.prod(x.shape[x.ndim + plan.dim + 1 :])
            columns = layer.num_neurons * self.inner
            real = np.dtype(real_name(self.dtype)).type
            self.literals = np.array(plan.literals or (0.0,), real)
            self.packed = np.zeros(max(1, len(self.params)) * columns, real)
            self.fixed = (
                x.numel() // columns,
                columns,
                self.packed.ctypes.data,
                self.literals.ctypes.data,
            )
            self.call = compiled_at(*printed(plan))

    def _plan(self, layer: Neuron, x: Tensor) -> Plan | None:
        if (
            not 0 < x.numel() <= _MOST
            or x.dtype not in (torch.float32, torch.float64)
            or not all(isinstance(option, _PLAIN) for option in self.options)
            or not all(map(reads_nothing, (layer.step, layer.arguments, *map(type, self.options))))
            or unsuited("numba", x.device) is not None
        ):
            return None
        try:
            program = program_of(layer, x.ndim, layer.check_input(x))
        except Unfusable:
            return None
        dim = layer.dim if layer.dim < 0 else layer.dim - x.ndim
        return Plan(program, "numba", dim, (), False, False, ())

    def fits(self, layer: Neuron, x: Tensor) -> bool:
        """Whether it was settled for such an input, and for the options that hold now."""
        if x.shape != self.shape or x.dtype is not self.dtype or x.device != self.device:
            return False
        return (
            layer.step is self.of
            and all(map(operator.is_, map(layer.__dict__.get, self.names), self.options))
            and all(place.get(name) is held for place, name, held in self.helpers)
        )

    def step(self, layer: Neuron, x: Tensor) -> Tensor | None:
        """The output; the new states are left on the layer. ``None``: not by this road."""
        if self.call is None or not x.is_contiguous() or chosen() not in ("auto", "numba"):
            return None
        held = layer.__dict__
        states = [held[name] for name in self.states]
        if not self.left or not all(map(operator.is_, states, self.left)):
            checked = layer.states_for(x, layer.check_input(x))
            states = [state.contiguous() for state in checked if state is not None]
        self._refresh(layer)
        output = torch.empty_like(x)  # twice as fast as empty
        ends = [torch.empty_like(x) for _ in states]
        self.call(*self.fixed, *map(Tensor.data_ptr, (x, output, *states, *ends)))
        held.update(zip(self.states, ends, strict=False))
        self.left = ends
        return output

    def _refresh(self, layer: Neuron) -> None:
        """Constrain the parameters anew if any raw value is another than it was.

        Values are compared: a fused optimizer, or ``.data``, leaves no other trace.
        """
        if self.seen or not self.raws:
            parameters, buffers = layer._parameters, layer._buffers
            for raw, (address, view, content) in zip(self.raws, self.seen, strict=True):
                now = parameters.get(raw, buffers.get(raw))
                if now is None or now.data_ptr() != address or view.tobytes() != content:
                    break
            else:
                return
        arguments = layer.arguments(len(self.shape), self.dtype)
        places = self.packed.reshape(-1, layer.num_neurons, self.inner)
        spread([arguments[name] for name in self.params], places[: len(self.params)])
        seen = []
        for raw in self.raws:
            now = getattr(layer, raw).detach().reshape(-1)
            now = now.as_strided(now.shape, (1,))  # one value alone may come with any stride
            # keeps the memory, so that the address stays its; .numpy() would keep it from FSDP
            view = np.from_dlpack(now.view(torch.uint8))
            seen.append((now.data_ptr(), view, view.tobytes()))
        self.seen = tuple(seen)
