"""Collect what ``record=`` asks for: trajectories of states, inputs and outputs of layers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from tracetorch.core.checks import suggestion
from tracetorch.core.torch_private import constant_in_compile
from tracetorch.core.walk import join_path, modules_of
from tracetorch.snn.module import TTModule, keeps_states
from tracetorch.snn.passes import states_of
from tracetorch.snn.sequence_layer import SequenceLayer

# What can be recorded of a layer beside the states that it has.
ENDS = ("input", "output")


def recordable(layer: TTModule) -> tuple[str, ...]:
    """Return the names of what can be recorded of a layer, or of a module with memory."""
    return (*layer.active_states, *(ENDS if isinstance(layer, SequenceLayer) else ()))


@constant_in_compile
def _matches(path: str, pattern: str) -> bool:
    """``fnmatchcase``, which torch.compile cannot trace."""
    return fnmatchcase(path, pattern)


def select_names(wanted: Sequence[str] | str | None, names: Iterable[str], *, by: str) -> list[str]:
    """Select dotted ``names`` by their last parts, whole names or patterns, in their order."""
    entries = [wanted] if isinstance(wanted, str) else wanted or ()
    if not isinstance(entries, Sequence) or not all(isinstance(each, str) for each in entries):
        raise TypeError(f"{by} takes a name or a list of names, got {wanted!r}.")
    last = {name: name.rpartition(".")[2] for name in names}
    found: set[str] = set()
    for entry in entries:
        matches = {n for n, end in last.items() if entry in (n, end) or _matches(n, entry)}
        if not matches:
            hint = suggestion(entry, [*last, *set(last.values())])
            available = f"There are {', '.join(last)}." if last else "There is nothing to name."
            raise ValueError(f"{by}: nothing is called {entry!r}.{hint} {available}")
        found |= matches
    return [name for name in last if name in found]


class Recorder:
    """The trajectories that are wanted of a pass, by layer, and what has been recorded of them."""

    def __init__(self, wanted: Sequence[str] | str, model: nn.Module) -> None:
        self._path: dict[tuple[int, str], str] = {}
        self._wanted: dict[int, tuple[str, ...]] = {}
        self._steps: dict[str, list[Tensor]] = {}
        self._whole: dict[str, Tensor] = {}
        names: dict[str, tuple[TTModule, str]] = {
            join_path(path, name): (module, name)
            for path, module in modules_of(model)
            if isinstance(module, SequenceLayer) or keeps_states(module)
            for name in recordable(module)
        }
        self.paths = select_names(wanted, names, by="record")
        for path in self.paths:
            layer, name = names[path]
            self._path[id(layer), name] = path
            self._wanted[id(layer)] = (*self._wanted.get(id(layer), ()), name)
        # whose states are wanted
        wanted_of = {id(layer): layer for layer, name in names.values() if name not in ENDS}
        self._stateful = [m for m in wanted_of.values() if self.states_wanted_of(m)]

    def wants_inside(self, layer: nn.Module) -> bool:
        """Whether anything is wanted of the modules inside a layer."""
        return any(id(m) in self._wanted for _, m in modules_of(layer) if m is not layer)

    def states_wanted_of(self, layer: nn.Module) -> tuple[str, ...]:
        """Return the names of the states that are wanted of a layer."""
        return tuple([name for name in self._wanted.get(id(layer), ()) if name not in ENDS])

    def own_input(self, layer: nn.Module, x: Tensor) -> Tensor:
        """Return a copy of an input that is recorded: what happens to it must not reach that."""
        return x.clone() if (id(layer), "input") in self._path else x

    def after(
        self, layer: nn.Module, x: Tensor, y: Tensor, states: Mapping[str, Tensor] | None = None
    ) -> Tensor:
        """Record a step of a layer, with ``states`` a sequence; return the output for the model."""
        for name, value in (*(states or {}).items(), ("input", x), ("output", y)):
            if (id(layer), name) in self._path:
                if states is None:
                    self._add(layer, name, value.clone() if name == "input" else value)
                else:
                    self._whole[self._path[id(layer), name]] = value
        # what the model does in place with the output must not reach what was recorded
        return y.clone() if (id(layer), "output") in self._path else y

    def after_step(self, within: nn.Module | None = None) -> None:
        """Record states behind a step, when ``forward`` may have set them: all, or those inside."""
        inside = None if within is None else {id(m) for _, m in modules_of(within)} - {id(within)}
        for module in self._stateful:
            if inside is None or id(module) in inside:
                states = states_of(module)
                for name in self.states_wanted_of(module):
                    value = states[module._attribute_of(name)]
                    if value is not None:  # the mask of a dropout in evaluation
                        self._add(module, name, value)

    def _add(self, layer: nn.Module, name: str, value: Tensor) -> None:
        self._steps.setdefault(self._path[id(layer), name], []).append(value)

    def result(self, steps: int) -> dict[str, Tensor]:
        """Return every trajectory by path, ``[T, ...]``."""
        trajectories: dict[str, Tensor] = {}
        for path in self.paths:
            if path in self._whole:
                trajectories[path] = self._whole[path]
                continue
            values = self._steps.get(path, [])
            if len(values) != steps:
                raise ValueError(
                    f"record: {path!r} was seen {len(values)} times in {steps} steps; only a layer "
                    "that is called once per step can be recorded."
                )
            trajectories[path] = torch.stack(values)
        return trajectories
