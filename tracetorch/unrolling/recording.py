"""What ``record=`` asks for, and where it is collected."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from tracetorch.snn.module import asked_once
from tracetorch.snn.neuron import Neuron

# What a layer is given and gives, beside the states that it keeps.
ENDS = ("input", "output")


@asked_once
def _matches(path: str, pattern: str) -> bool:
    """``fnmatchcase``, which torch.compile cannot trace."""
    return fnmatchcase(path, pattern)


def chosen(wanted: Sequence[str] | str | None, names: Iterable[str], *, by: str) -> list[str]:
    """The dotted ``names`` that are asked for, in their order.

    Args:
        wanted: last parts of names (``"mem"``), whole names, or patterns of them; ``None`` for
            nothing.
        names: what there is.
        by: who asks, for messages.

    Raises:
        TypeError: ``wanted`` is not a sequence of strings.
        ValueError: an entry matches nothing.

    Example:
        >>> chosen(["mem", "0.*"], ["0.mem", "0.syn", "1.mem", "1.syn"], by="record")
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
            near = difflib.get_close_matches(entry, [*last, *set(last.values())])
            hint = f" Did you mean {near[0]!r}?" if near else ""
            there = f"There are {', '.join(last)}." if last else "There is nothing to name."
            raise ValueError(f"{by}: nothing is called {entry!r}.{hint} {there}")
        found |= matches
    return [name for name in last if name in found]


class Recording:
    """The trajectories asked for, by layer, and what has been collected of them.

    Args:
        wanted: state names, ``"input"``, ``"output"``, paths such as ``"cells.0.mem"`` or patterns
            of paths such as ``"cells.*.mem"``; ``None`` for nothing.
        layers: the neuron layers of the model with their paths.

    Raises:
        TypeError: ``wanted`` is not a sequence of strings.
        ValueError: an entry matches nothing.
    """

    def __init__(
        self, wanted: Sequence[str] | str | None, layers: Sequence[tuple[str, Neuron]]
    ) -> None:
        names: dict[str, tuple[Neuron, str]] = {
            f"{path}.{name}" if path else name: (layer, name)
            for path, layer in layers
            for name in (*layer.kept_states, *ENDS)
        }
        self.paths = chosen(wanted, names, by="record")
        self._path: dict[tuple[int, str], str] = {}
        self._of: dict[int, tuple[str, ...]] = {}
        for path in self.paths:
            layer, name = names[path]
            self._path[id(layer), name] = path
            self._of[id(layer)] = (*self._of.get(id(layer), ()), name)
        self._steps: dict[str, list[Tensor]] = {}
        self._whole: dict[str, Tensor] = {}

    def of(self, layer: Neuron) -> tuple[str, ...]:
        """What is wanted of this layer: state names, ``"input"`` and ``"output"``."""
        return self._of.get(id(layer), ())

    def states_of(self, layer: Neuron) -> tuple[str, ...]:
        """The states that are wanted of this layer."""
        return tuple(name for name in self.of(layer) if name not in ENDS)

    def whole(self, layer: Neuron, name: str, trajectory: Tensor) -> None:
        """Take a trajectory ``[T, ...]``."""
        self._whole[self._path[id(layer), name]] = trajectory

    def after_step(self, layers: Iterable[Neuron]) -> None:
        """Take the states that were wanted of ``layers`` after one step."""
        for layer in layers:
            for name in self.states_of(layer):
                self._take(layer, name, getattr(layer, name))

    @contextmanager
    def listening(self, layers: Iterable[Neuron]) -> Iterator[None]:
        """While it lasts, take inputs and outputs that were wanted of ``layers``, step by step."""

        def take(layer: nn.Module, args: Any, kwargs: Any, output: Tensor) -> None:
            ends = (args[0] if args else kwargs["x"], output)
            for name, value in zip(ENDS, ends, strict=True):
                if (id(layer), name) in self._path:
                    self._take(layer, name, value)

        hooks = [
            layer.register_forward_hook(take, with_kwargs=True)
            for layer in layers
            if not set(ENDS).isdisjoint(self.of(layer))
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _take(self, layer: nn.Module, name: str, value: Tensor) -> None:
        self._steps.setdefault(self._path[id(layer), name], []).append(value)

    def result(self, steps: int) -> dict[str, Tensor]:
        """Every trajectory by path, ``[T, ...]``.

        Raises:
            ValueError: a layer was not called once per step.
        """
        trajectories: dict[str, Tensor] = {}
        for path in self.paths:
            if path in self._whole:
                trajectories[path] = self._whole[path]
                continue
            taken = self._steps.get(path, [])
            if len(taken) != steps:
                raise ValueError(
                    f"record: {path!r} was seen {len(taken)} times in {steps} steps; only a layer "
                    "that is called once per step can be recorded."
                )
            trajectories[path] = torch.stack(taken)
        return trajectories
