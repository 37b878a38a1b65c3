"""``Loops``: run a ``Recurrent`` that holds a user's own code by step too, between other modules.

By layer a ``Recurrent`` runs all of its steps before anything behind it runs one. What stands in
it may share a memory, a counter or a generator with another one, or be read or written by the
model's ``forward``, and no layer would know. So in the first run each runs its first steps once
more, on the input that it had by layer: first alone, from attributes and states as before the pass,
then in its place in the steps of the model. What differs there, and is not random, is shared.

What differs from itself is remembered in a place that cannot be set back: a closure, a file. One
such layer is believed; of several it is not known what they share.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tracetorch.core.walk import MODULE_ATTRIBUTES, modules_of
from tracetorch.snn.module import keeps_states, zero_states
from tracetorch.snn.passes import Pass
from tracetorch.snn.recurrent import Recurrent
from tracetorch.snn.sequence_layer import SequenceLayer
from tracetorch.unrolling.agreement import agree

Step = Callable[[int, Recurrent, Tensor], None]
"""Runs the ``t``-th step of a layer: ``t, layer, x``; raises where it is not what it is alone."""

_HOOKS = ("_forward_hooks", "_forward_pre_hooks")
_PLAIN = (nn.Parameter, nn.UninitializedParameter)
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
            f"{place} (Recurrent) gives other outputs by layer than by step: what stands in it "
            "shares a memory, a counter or a generator with what runs outside of it, or in another "
            'Recurrent. Use unroll(..., by="step"), or make it a state of an snn.Neuron.'
        )


class Loops:
    """The ``Recurrent``s of a model that hold a user's own code, and attributes before a pass.

    Args:
        modules: of the model, with their paths.
    """

    def __init__(self, modules: Sequence[tuple[str, nn.Module]]) -> None:
        self.layers = [
            m
            for _, m in modules
            if isinstance(m, Recurrent) and _holds_own_code(m) and not _is_sharded(m)
        ]
        self._paths = {id(m): path or "the model" for path, m in modules}
        self._alone: dict[int, list[list[Tensor]]] = {}
        """Of those that gave so by layer what they give alone in each step, and their states."""
        if not self.layers:
            return
        plain = [m for _, m in modules if not isinstance(m, SequenceLayer) and not keeps_states(m)]
        # modules and their tensors stay themselves in copies of what refers to them
        kept = [each for _, m in modules for each in (m, *m.parameters(False), *m.buffers(False))]
        self._memo = {id(each): each for each in kept}
        memo: dict[int, Any] = dict(self._memo)
        self._before = [(vars(module), _copies(vars(module), memo)) for module in plain]

    def prepare(self, run: Any) -> None:
        """Find the layers that give alone, by step, what they gave in a pass by layer.

        Args:
            run: the pass, with records of it.

        Raises:
            ValueError: one gives something else, which is not random, or several remember
                something that cannot be set back.
        """
        self._run, remembering = run, list[Recurrent]()
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
            elif not all(map(agree, first, self._run_alone(layer, x, 1))):
                continue  # random
            elif agree([found[0] for found in first], y.unbind()):
                self._alone[id(layer)] = first
            else:
                raise SharedError(self._paths[id(layer)])
        if len(remembering) > 1:
            raise ValueError(
                f"{' and '.join(self._paths[id(each)] for each in remembering)} (Recurrent) "
                "remember something outside of the attributes of modules, and perhaps the same: "
                "each runs all of its steps at once, so that it would be out of order. Use "
                'unroll(..., by="step").'
            )

    def _run_alone(self, layer: Recurrent, x: Tensor, seed: int) -> list[list[Tensor]]:
        seed_all(seed)
        with self._attributes_of_before():
            states = Pass(from_rest=self._run.from_rest)
            return [self._step(states, layer, x[t].clone(), t) for t in range(len(x))]

    def _step(self, states: Pass, layer: Recurrent, x: Tensor, t: int) -> list[Tensor]:
        """Run one step on the states of a pass; return the output and all states behind it."""
        reset = self._run.reset

        def run() -> Tensor:
            if reset is not None and reset.steps[t]:
                zero_states(layer, where=reset.mask[t])
            return layer.forward_step(x)

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

        def step(t: int, layer: Recurrent, x: Tensor) -> None:
            alone = self._alone.get(id(layer))
            if alone is not None and not agree(
                self._step(states[id(layer)], layer, x, t), alone[t]
            ):
                raise SharedError(self._paths[id(layer)])

        with self._attributes_of_before():
            yield step

    @contextmanager
    def _attributes_of_before(self) -> Iterator[None]:
        memo = dict(self._memo)
        now = [dict(attributes) for attributes, _ in self._before]
        try:
            for attributes, before in self._before:
                _set(attributes, _copies(before, memo), before)
            yield
        finally:
            for (attributes, before), after in zip(self._before, now, strict=True):
                _set(attributes, after, before)


def _holds_own_code(layer: Recurrent) -> bool:
    """Whether a module in a layer, or the layer, computes what its class in a library does not."""
    return any(
        type(module).__module__.partition(".")[0] not in ("torch", "tracetorch")
        or "forward" in vars(module)
        or any(vars(module).get(name) for name in _HOOKS)
        for _, module in modules_of(layer)
    )


def _is_sharded(layer: Recurrent) -> bool:
    """Whether an engine puts parameters together in the calls of its own modules alone."""
    return any(
        type(module).__module__.startswith("torch.distributed")
        or any(type(p) not in _PLAIN for p in module.parameters(recurse=False))
        for _, module in modules_of(layer)
    )


def _copies(attributes: dict[str, Any], memo: dict[int, Any]) -> dict[str, Any]:
    """Return a copy of a module's attributes, without those that have none, as an open file."""
    found: dict[str, Any] = {}
    for name in attributes.keys() - _FIXED:
        value = attributes[name]
        try:
            is_tensor = isinstance(value, Tensor)
            found[name] = value.detach().clone() if is_tensor else copy.deepcopy(value, memo)
        except Exception:  # whatever a user's object raises; what cannot be copied stays
            found[name] = value
    return found


def _set(attributes: dict[str, Any], values: dict[str, Any], named: dict[str, Any]) -> None:
    """Give a module attributes, and take those away that it has been given since."""
    for name in attributes.keys() - _FIXED - values.keys():
        del attributes[name]
    attributes.update({n: v for n, v in values.items() if n in named or n not in attributes})
