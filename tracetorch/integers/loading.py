"""Refuse a ``state_dict`` whose numbers a layer of integers does not have, or takes otherwise.

A load that is refused changes nothing in the whole model: PyTorch loads layer by layer, so every
module that a layer of integers is put into checks all of them before anything is loaded. Names that
are missing or too many are PyTorch's to refuse, after it has loaded the others.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, TypeAlias
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_module_registration_hook

from tracetorch.core.checks import RefusedError
from tracetorch.snn.neuron import Neuron
from tracetorch.snn.parameters import Clamp

Settings: TypeAlias = Mapping[str, tuple[Any, Sequence[Any]]]
"""By name a setting of a layer, and all that it can be: a range of integers, or a tuple."""

_EXTRA = "_extra_state"


class CheckedLoading(nn.Module):
    """Base of layers that look at what they are to load; where they object, nothing is loaded."""

    def objections(self, given: Mapping[str, Tensor]) -> Iterator[tuple[str, str]]:
        """Yield the name of each tensor that the layer cannot have, and why."""
        for name, own in {**self._parameters, **self._buffers}.items():
            if own is None or name not in given or given[name].shape == own.shape:
                continue
            if own.ndim or given[name].shape != (1,):  # which PyTorch takes for a number
                shapes = list(given[name].shape), list(own.shape)
                yield name, f"has the shape {shapes[0]}, and the layer's has {shapes[1]}."

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *arguments: Any) -> None:
        _check_all(self, state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *arguments)


class KnownSettings(CheckedLoading):
    """Base of layers whose ``state_dict`` says what the numbers in it were made with.

    The extra state holds a number for each of :meth:`settings`: of a range the integer itself, of a
    tuple the place in it. New settings are added behind the others, which files of earlier versions
    hold alone.
    """

    # the number of settings that every file has: a layer that needs none loads files without
    required: ClassVar[int] = 0
    # the settings that are loaded; all others must be those of the layer
    taken: ClassVar[tuple[str, ...]] = ()

    @property
    def optional_extra_state(self) -> bool:
        """Whether files of earlier versions lack the settings."""
        return not self.required

    def settings(self) -> Settings:
        """Return what the tensors of ``state_dict`` mean."""
        raise NotImplementedError

    def get_extra_state(self) -> Tensor:
        """Return the settings for ``state_dict``: with others its numbers mean something else."""
        numbers = [
            value if isinstance(allowed, range) else allowed.index(value)
            for value, allowed in self.settings().values()
        ]
        return torch.tensor(numbers, device="cpu")

    def set_extra_state(self, state: Tensor) -> None:
        """Take those of the settings of a ``state_dict`` that are loaded."""
        for name, value in self._read(state).items() if self.taken else ():
            if name in self.taken:
                setattr(self, name, value)

    def _read(self, state: Tensor) -> dict[str, Any]:
        """Return the settings of an extra state, ``None`` for what none can be."""
        found: dict[str, Any] = {}
        pairs = zip(self.settings().items(), state.flatten().tolist(), strict=False)
        for (name, (_, allowed)), number in pairs:
            places = allowed if isinstance(allowed, range) else range(len(allowed))
            found[name] = allowed[places.index(number)] if number in places else None
        return found

    def objections(self, given: Mapping[str, Tensor]) -> Iterator[tuple[str, str]]:
        """Yield the name of each tensor that the layer cannot have, and why."""
        if _EXTRA in given and not given[_EXTRA].is_meta:
            state, own = given[_EXTRA], self.settings()
            if not self.required <= state.numel() <= len(own):
                yield _EXTRA, f"holds {state.numel()} settings, and the layer has {len(own)}."
            for name, value in self._read(state).items():
                if value is None:
                    allowed: Any = own[name][1]
                    ends = allowed
                    if isinstance(allowed, range):
                        ends = f"{allowed[0]} to {allowed[-1]}"
                    yield _EXTRA, f"holds another {name} than the layer can have, {ends}."
                elif value != own[name][0] and name not in self.taken:
                    yield (
                        _EXTRA,
                        f"made with {name}={value!r}, and the layer has {name}={own[name][0]!r}.",
                    )
        yield from super().objections(given)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *arguments: Any) -> None:
        if self.optional_extra_state:
            state_dict.setdefault(f"{prefix}{_EXTRA}", self.get_extra_state())
        super()._load_from_state_dict(state_dict, prefix, *arguments)


class WholeParameters(CheckedLoading, Neuron):
    """Base of neurons whose parameters are integers of a range, unless they learn."""

    def objections(self, given: Mapping[str, Tensor]) -> Iterator[tuple[str, str]]:
        """Yield the name of each tensor that the layer cannot have, and why."""
        for name, constraint in self.constraints.items():
            raw, ends = f"raw_{name}", constraint.value
            # one that learns may be between two integers, and outside
            if raw in given and raw in self._buffers and isinstance(ends, Clamp):
                low, high = (float(each or 0) for each in (ends.low, ends.high))
                yield from off_range(raw, given[raw], low, high)
        yield from super().objections(given)


def off_range(name: str, values: Tensor, low: float, high: float) -> Iterator[tuple[str, str]]:
    """Yield why a tensor cannot be one of integers of a range, if it cannot."""
    numbers = values.detach().double()
    if not numbers.is_meta:
        fits = (numbers == numbers.round()) & (numbers >= low) & (numbers <= high)
        for wrong in numbers[~fits].flatten()[:1].tolist():
            yield (
                name,
                f"holds {wrong:.10g}, and the layer has integers of {low:.0f} to {high:.0f}.",
            )


# modules that check all of their layers, by id: a user's may have no hash
_checking: WeakValueDictionary[int, nn.Module] = WeakValueDictionary()


def _put_into(module: nn.Module, name: str, child: object) -> None:
    """Let a module that a layer of integers is put into check it before anything is loaded."""
    if not isinstance(child, nn.Module) or _checking.get(id(module)) is module:
        return
    if any(isinstance(each, CheckedLoading) for each in child.modules()):
        module.register_load_state_dict_pre_hook(_check_all)  # type: ignore[no-untyped-call]
        _checking[id(module)] = module


# no other way: what is loaded is a plain nn.Sequential, or a user's module
register_module_module_registration_hook(_put_into)


def _check_all(model: nn.Module, state_dict: Any, prefix: str, *_: Any) -> None:
    found = [
        objection
        for path, layer in model.named_modules(remove_duplicate=False)
        if isinstance(layer, CheckedLoading)
        for objection in _objections(layer, state_dict, f"{prefix}{path}." if path else prefix)
    ]
    if found:
        raise RefusedError(model, found)


def _objections(layer: CheckedLoading, state_dict: Any, prefix: str) -> list[str]:
    given = {
        name.removeprefix(prefix): value
        for name, value in state_dict.items()
        if name.startswith(prefix) and isinstance(value, torch.Tensor)
    }
    return [f"{prefix}{name}: {reason}" for name, reason in layer.objections(given)]
