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


@asked_once
def _matches(path: str, pattern: str) -> bool:
    """``fnmatchcase``, which torch.compile cannot trace."""
    return fnmatchcase(path, pattern)


class Recording:
    """The trajectories asked for, by layer, and what has been collected of them.

    Args:
        wanted: state names, ``"output"``, paths such as ``"cells.0.mem"`` or patterns of paths
            such as ``"cells.*.mem"``; ``None`` for nothing.
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
            for name in (*layer.kept_states, "output")
        }
        if not isinstance(wanted, (str, Sequence, type(None))):
            raise TypeError(f"record takes a name or a list of names, got {wanted!r}.")
        entries = [wanted] if isinstance(wanted, str) else list(wanted or ())
        chosen: set[str] = set()
        for entry in entries:
            if not isinstance(entry, str):
                raise TypeError(f"record takes names, got {entry!r}.")
            found = {
                path
                for path, (_, name) in names.items()
                if entry in (name, path) or _matches(path, entry)
            }
            if not found:
                near = difflib.get_close_matches(entry, [*names, *{n for _, n in names.values()}])
                hint = f" Did you mean {near[0]!r}?" if near else ""
                raise ValueError(
                    f"record: nothing is called {entry!r}.{hint} There are {', '.join(names)}."
                )
            chosen |= found
        self.paths = [path for path in names if path in chosen]
        self._path: dict[tuple[int, str], str] = {}
        self._of: dict[int, tuple[str, ...]] = {}
        for path in self.paths:
            layer, name = names[path]
            self._path[id(layer), name] = path
            self._of[id(layer)] = (*self._of.get(id(layer), ()), name)
        self._steps: dict[str, list[Tensor]] = {}
        self._whole: dict[str, Tensor] = {}

    def of(self, layer: Neuron) -> tuple[str, ...]:
        """What is wanted of this layer: state names and ``"output"``."""
        return self._of.get(id(layer), ())

    def whole(self, layer: Neuron, name: str, trajectory: Tensor) -> None:
        """Take a trajectory ``[T, ...]``."""
        self._whole[self._path[id(layer), name]] = trajectory

    def after_step(self, layers: Iterable[Neuron]) -> None:
        """Take the states that were wanted of ``layers`` after one step."""
        for layer in layers:
            for name in self.of(layer):
                if name != "output":
                    self._take(layer, name, getattr(layer, name))

    @contextmanager
    def listening(self, layers: Iterable[Neuron]) -> Iterator[None]:
        """While it lasts, take the outputs that were wanted of ``layers``, step by step."""

        def take(layer: nn.Module, _: Any, output: Tensor) -> None:
            self._take(layer, "output", output)

        hooks = [
            layer.register_forward_hook(take) for layer in layers if "output" in self.of(layer)
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
