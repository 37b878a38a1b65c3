"""``Loops``: run layers that hold a user's own code by step too, between the other modules.

By layer such a layer runs all of its steps before anything behind it runs one. What it uses may be
shared, and no layer would know. So each runs its first steps once more: alone, from attributes,
weights and states as before the pass, then in its place in the steps of the model. What differs
there is shared; what differs from itself is remembered where it cannot be set back.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias, cast

import numpy as np
import torch
from torch import Tensor, nn

from tracetorch.core.checks import sharded_parts
from tracetorch.core.snapshot import Values, random_restored
from tracetorch.core.walk import MODULE_ATTRIBUTES, modules_of
from tracetorch.snn.module import keeps_states, zero_states
from tracetorch.snn.neuron import Neuron, has_step
from tracetorch.snn.passes import Pass
from tracetorch.snn.recurrent import Recurrent
from tracetorch.snn.sequence_layer import SequenceLayer
from tracetorch.unrolling.agreement import agree

Layer: TypeAlias = Recurrent | Neuron
Step = Callable[[int, Layer, Tensor], None]
"""Runs the ``t``-th step of a layer: ``t, layer, x``; raises where it is not what it is alone."""

_HOOKS = ("_forward_hooks", "_forward_pre_hooks")
_FIXED = MODULE_ATTRIBUTES | {"forward"}  # which the first run sets in norms


def seed_all(seed: int) -> None:
    """Seed the generators of all three libraries."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)


class SharedError(ValueError):
    """A layer computes something else alone than beside the others."""

    def __init__(self, place: str) -> None:
        super().__init__(
            f"{place} gives other outputs by layer than by step: what stands in it shares a "
            "memory, a counter or a generator with what runs outside of it, or in another layer. "
            'Use unroll(..., by="step"), or make it a state of an snn.Neuron.'
        )


class Loops:
    """Layers of a model that hold a user's own code, and attributes and weights before a pass."""

    def __init__(self, modules: Sequence[tuple[str, nn.Module]]) -> None:
        looped = [m for _, m in modules if _is_looped(m) and not any(sharded_parts(m))]
        self.layers = cast("list[Layer]", looped)
        inside = [m for layer in looped for _, m in modules_of(layer)]
        own = [m for _, m in modules if _is_own(m)]
        found = {id(p): p for m in (*inside, *own) for p in m.parameters(recurse=False)}
        weights = [p for p in found.values() if type(p) is nn.Parameter]
        self._paths = {id(m): f"{path or 'the model'} ({type(m).__name__})" for path, m in modules}
        self._built_graph, self._with_graph = torch.is_grad_enabled(), False
        self._alone: dict[int, list[list[Tensor]]] = {}
        """Of each layer what it gives alone in each step, and its states."""
        plain = [m for _, m in modules if not isinstance(m, SequenceLayer) and not keeps_states(m)]
        aliased = (
            [each for m in plain for each in _aliased(vars(m)).values()] if self.layers else []
        )
        tensors = [torch.from_numpy(v) if isinstance(v, np.ndarray) else v for v in aliased]
        self.weights = Values([*weights, *tensors])
        """With the values of before, and what attributes hold that share memory."""
        if not self.layers:
            return
        # modules and their tensors stay themselves in copies of what refers to them
        kept = [each for _, m in modules for each in (m, *m.parameters(False), *m.buffers(False))]
        self._memo = {id(each): each for each in kept}
        memo: dict[int, Any] = dict(self._memo)
        self._before = [(vars(module), _copies(vars(module), memo)) for module in plain]

    def prepare(self, run: Any) -> None:
        """Find the layers that give alone, by step, what they gave in a pass by layer."""
        self._run, remembering = run, list[Layer]()
        for layer in self.layers:
            calls = run.records.get(id(layer), [])
            if len(calls) != 1:
                continue
            _, x, y = calls[0]
            first = self._run_alone(layer, x, 0)
            # fewer steps in between, so that what goes in circles is elsewhere when it begins anew
            again = [*self._run_alone(layer, x[:-1], 0), *self._run_alone(layer, x, 0)]
            if not all(map(agree, [*first[:-1], *first], again)):
                remembering.append(layer)
                continue
            self._alone[id(layer)] = first
            is_random = not all(map(agree, first, self._run_alone(layer, x, 1)))
            if not is_random and not agree([found[0] for found in first], y.unbind()):
                # a step may ask whether there are gradients; else nothing is saved for backward
                self._with_graph = self._built_graph
                first = self._alone[id(layer)] = self._run_alone(layer, x, 0)
                if not agree([found[0] for found in first], y.unbind()):
                    raise SharedError(self._paths[id(layer)])
        if len(remembering) > 1:
            raise ValueError(
                f"{' and '.join(self._paths[id(each)] for each in remembering)} remember something "
                "outside of the attributes of modules, and perhaps the same: each runs all of its "
                'steps at once, so that it would be out of order. Use unroll(..., by="step").'
            )

    def _run_alone(self, layer: Layer, x: Tensor, seed: int) -> list[list[Tensor]]:
        with self._as_before():
            states = Pass(from_rest=self._run.from_rest)
            return [self._step(states, layer, x[t].clone(), t, seed) for t in range(len(x))]

    def _step(self, states: Pass, layer: Layer, x: Tensor, t: int, seed: int = 0) -> list[Tensor]:
        """Run one step on the states of a pass; return the output and all states behind it.

        Seeded, so that random numbers are the same in its place as they are alone.
        """
        reset = self._run.reset

        def run() -> Tensor:
            if reset is not None and reset.steps[t]:
                zero_states(layer, where=reset.mask[t])
            return layer.forward_step(x)

        with random_restored(set()), torch.set_grad_enabled(self._with_graph):
            seed_all(100 * seed + t)
            values = [states.call(run)]
        for entry in states.entries.values():
            values += [each for each in entry.states.values() if isinstance(each, Tensor)]
        return [value.detach().clone() for value in values]

    @contextmanager
    def begun(self) -> Iterator[Step | None]:
        """Within a block layers go on from what was before the pass, in the steps of the model."""
        if not self._alone:
            yield None
            return
        states = {key: Pass(from_rest=self._run.from_rest) for key in self._alone}

        def step(t: int, layer: Layer, x: Tensor) -> None:
            alone = self._alone.get(id(layer))
            if alone is not None and not agree(
                self._step(states[id(layer)], layer, x, t), alone[t]
            ):
                raise SharedError(self._paths[id(layer)])

        with self._as_before():
            yield step

    @contextmanager
    def _as_before(self) -> Iterator[None]:
        memo = dict(self._memo)
        now = [dict(attributes) for attributes, _ in self._before]
        self.weights.restore()
        try:
            for attributes, before in self._before:
                _set(attributes, _copies(before, memo), before)
            yield
        finally:
            for (attributes, before), after in zip(self._before, now, strict=True):
                _set(attributes, after, before)


def _is_looped(module: nn.Module) -> bool:
    """Whether a module is a layer in which a user's code runs by step, also by layer."""
    if isinstance(module, Recurrent):
        return any(_is_own(inside) for _, inside in modules_of(module))
    return has_step(module) and len(module.inputs) == 1 and not module.cell.is_comparable


def _is_own(module: nn.Module) -> bool:
    """Whether a module computes what its class in a library does not."""
    return (
        type(module).__module__.partition(".")[0] not in ("torch", "tracetorch")
        or "forward" in vars(module)
        or any(vars(module).get(name) for name in _HOOKS)
    )


def _copies(attributes: dict[str, Any], memo: dict[int, Any]) -> dict[str, Any]:
    """Return a copy of a module's attributes, without those that have none, as an open file."""
    found: dict[str, Any] = {}
    aliased = _aliased(attributes)
    for name in attributes.keys() - _FIXED:
        value = attributes[name]
        if name in aliased:
            found[name] = value  # copies would not share their memory
            continue
        try:
            is_tensor = isinstance(value, Tensor)
            found[name] = value.detach().clone() if is_tensor else copy.deepcopy(value, memo)
        except Exception:  # whatever a user's object raises; what cannot be copied stays
            found[name] = value
    return found


def _aliased(attributes: dict[str, Any]) -> dict[str, Any]:
    """Return the tensors and arrays among a module's attributes that share memory."""
    addresses = {name: _address_of(attributes[name]) for name in attributes.keys() - _FIXED}
    shared = [each for each in addresses.values() if each]
    return {name: attributes[name] for name, each in addresses.items() if shared.count(each) > 1}


def _address_of(value: object) -> int:
    """Return where a tensor or an array lies; 0 where nowhere that can be shared."""
    if isinstance(value, Tensor):
        plain = value.layout is torch.strided and type(value) in (Tensor, nn.Parameter)
        return value.untyped_storage().data_ptr() if plain else 0
    return int(value.__array_interface__["data"][0]) if isinstance(value, np.ndarray) else 0


def _set(attributes: dict[str, Any], values: dict[str, Any], named: dict[str, Any]) -> None:
    """Give a module attributes, and take those away that it has been given since."""
    for name in attributes.keys() - _FIXED - values.keys():
        del attributes[name]
    attributes.update({n: v for n, v in values.items() if n in named or n not in attributes})
