"""Collect what ``record=`` asks for: trajectories of states, inputs and outputs of layers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from tracetorch.core.checks import suggestion
from tracetorch.core.hooks import forward_hooks
from tracetorch.core.torch_private import constant_in_compile
from tracetorch.core.walk import join_path, modules_of
from tracetorch.snn.sequence_layer import SequenceLayer
from tracetorch.snn.state_holder import StateHolder

# What can be recorded of a layer beside the states that it has.
ENDS = ("input", "output")


def recordable(layer: StateHolder) -> tuple[str, ...]:
    """Return the names of what can be recorded of a layer, or of a module with memory."""
    return (*layer.active_states, *(ENDS if isinstance(layer, SequenceLayer) else ()))


@constant_in_compile
def _matches(path: str, pattern: str) -> bool:
    """``fnmatchcase``, which torch.compile cannot trace."""
    return fnmatchcase(path, pattern)


def select_names(wanted: Sequence[str] | str | None, names: Iterable[str], *, by: str) -> list[str]:
    """Select dotted ``names`` by their last parts, whole names or patterns, in their order.

    Args:
        wanted: last parts of names (``"mem"``), whole names, or patterns of them; ``None`` for
            nothing.
        names: what there is.
        by: name of the argument, for messages.

    Raises:
        TypeError: ``wanted`` is not a sequence of strings.
        ValueError: an entry matches nothing.

    Example:
        >>> select_names(["mem", "0.*"], ["0.mem", "0.syn", "1.mem", "1.syn"], by="record")
        ['0.mem', '0.syn', '1.mem']
    """
    if not isinstance(wanted, (str, Sequence, type(None))):
        raise TypeError(f"{by} takes a name or a list of names, got {wanted!r}.")
    last = {name: name.rpartition(".")[2] for name in names}
    found: set[str] = set()
    for entry in [wanted] if isinstance(wanted, str) else list(wanted or ()):
        if not isinstance(entry, str):
            raise TypeError(f"{by} takes names, got {entry!r}.")
        matches = {n for n, end in last.items() if entry in (n, end) or _matches(n, entry)}
        if not matches:
            hint = suggestion(entry, [*last, *set(last.values())])
            available = f"There are {', '.join(last)}." if last else "There is nothing to name."
            raise ValueError(f"{by}: nothing is called {entry!r}.{hint} {available}")
        found |= matches
    return [name for name in last if name in found]


def own_input(layer: nn.Module, args: Any) -> Any:
    """Give a layer a copy of its input, so that what happens to the input does not reach it."""
    return (args[0].clone(), *args[1:]) if args else None


class TrajectoryCollector:
    """The trajectories that are wanted, by layer, and what has been collected of them.

    Args:
        wanted: state names, ``"input"``, ``"output"``, paths such as ``"cells.0.mem"`` or patterns
            of paths such as ``"cells.*.mem"``.
        layers: the neuron layers of the model, and its modules with memory, with their paths.

    Raises:
        TypeError: ``wanted`` is not a sequence of strings.
        ValueError: an entry matches nothing.
    """

    def __init__(
        self, wanted: Sequence[str] | str, layers: Sequence[tuple[str, StateHolder]]
    ) -> None:
        self._path: dict[tuple[int, str], str] = {}
        self._wanted: dict[int, tuple[str, ...]] = {}
        self._steps: dict[str, list[Tensor]] = {}
        self._whole: dict[str, Tensor] = {}
        names: dict[str, tuple[StateHolder, str]] = {
            join_path(path, name): (layer, name)
            for path, layer in layers
            for name in recordable(layer)
        }
        self.paths = select_names(wanted, names, by="record")
        for path in self.paths:
            layer, name = names[path]
            self._path[id(layer), name] = path
            self._wanted[id(layer)] = (*self._wanted.get(id(layer), ()), name)

    def wanted_of(self, layer: StateHolder) -> tuple[str, ...]:
        """Return what is wanted of this layer: state names, ``"input"`` and ``"output"``."""
        return self._wanted.get(id(layer), ())

    def wants(self, layer: SequenceLayer) -> bool:
        """Whether anything is wanted of this layer, or of the layers inside it."""
        return any(id(module) in self._wanted for _, module in modules_of(layer))

    def add_whole(self, layer: SequenceLayer, name: str, trajectory: Tensor) -> None:
        """Add a trajectory ``[T, ...]``."""
        self._whole[self._path[id(layer), name]] = trajectory

    def after_step(self, layers: Iterable[StateHolder]) -> None:
        """Add the states that are wanted of ``layers`` after one step."""
        for layer in layers:
            for name in self.wanted_of(layer):
                # None: the mask of a dropout in evaluation
                if name not in ENDS:
                    state = getattr(layer, layer.attribute_of(name))
                    if state is not None:
                        self._add(layer, name, state)

    @contextmanager
    def listening(self, layers: Iterable[StateHolder]) -> Iterator[None]:
        """Add inputs and outputs that are wanted of ``layers`` at every step within a block."""

        def take(layer: nn.Module, args: Any, kwargs: Any, output: Tensor) -> Tensor:
            ends = (args[0] if args else kwargs["x"], output)
            for name, value in zip(ENDS, ends, strict=True):
                if (id(layer), name) in self._path:
                    self._add(layer, name, value)
            # what the model does in place with the output must not reach what was recorded
            return output.clone() if (id(layer), "output") in self._path else output

        watched = [layer for layer in layers if not set(ENDS).isdisjoint(self.wanted_of(layer))]
        inputs = [layer for layer in watched if "input" in self.wanted_of(layer)]
        with forward_hooks(
            before=[(layer, own_input) for layer in inputs],
            after=[(layer, take) for layer in watched],
        ):
            yield

    def _add(self, layer: nn.Module, name: str, value: Tensor) -> None:
        self._steps.setdefault(self._path[id(layer), name], []).append(value)

    def result(self, steps: int) -> dict[str, Tensor]:
        """Return every trajectory by path, ``[T, ...]``.

        Raises:
            ValueError: a layer was not called once per step.
        """
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
