"""Check what layers of integers load: numbers that they have, made with their own settings.

A load that is refused changes nothing in the whole model: PyTorch loads layer by layer, so every
module that a layer of integers is put into checks all of them before anything is loaded. Names and
shapes are PyTorch's to refuse, after it has loaded the others.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_module_registration_hook

from tracetorch.core.checks import RefusedError
from tracetorch.snn.neuron import Neuron
from tracetorch.snn.parameters import Clamp

Ends: TypeAlias = tuple[float, float]

_EXTRA = "_extra_state"
_MOST_TAKEN = 16  # of what is loaded, whatever the layer


class CheckedLoading(nn.Module):
    """Base of layers that look at what they are to load; where they object, nothing is loaded."""

    def ends(self) -> Mapping[str, Ends]:
        """Return the least and the largest integer of tensors: of a neuron's parameters."""
        constraints = self.constraints if isinstance(self, Neuron) else {}
        kinds = {f"raw_{name}": each.value for name, each in constraints.items()}
        return {n: (k.low or 0, k.high or 0) for n, k in kinds.items() if isinstance(k, Clamp)}

    def objections(self, given: Mapping[str, Tensor]) -> Iterator[tuple[str, str]]:
        """Yield the name of each tensor that the layer cannot have, and why."""
        for name, (low, high) in self.ends().items():
            # one that learns may be between two integers, and outside
            if name in given and name in self._buffers and not given[name].is_meta:
                numbers, ends = given[name].detach().double(), f"{low:.0f} to {high:.0f}"
                fits = (numbers == numbers.round()) & (numbers >= low) & (numbers <= high)
                for wrong in numbers[~fits].flatten()[:1].tolist():
                    yield name, f"holds {wrong:.10g}, and the layer has integers of {ends}."

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *arguments: Any) -> None:
        _check_all(self, state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *arguments)


class KnownSettings(CheckedLoading):
    """Base of layers whose ``state_dict`` says what the numbers in it were made with.

    New settings are added behind the others, which files of earlier versions hold alone.
    """

    # how many settings every file has: a layer that needs none loads files without
    required: ClassVar[int] = 0
    # the setting that is loaded, the first of them; all others must be those of the layer
    taken: ClassVar[str] = ""

    @property
    def optional_extra_state(self) -> bool:
        return not self.required

    def settings(self) -> Mapping[str, int]:
        """Return what the tensors of ``state_dict`` mean, as numbers."""
        raise NotImplementedError

    def get_extra_state(self) -> Tensor:
        return torch.tensor(list(self.settings().values()), device="cpu")

    def set_extra_state(self, state: Tensor) -> None:
        if self.taken:
            setattr(self, self.taken, int(state.flatten()[0]))

    def objections(self, given: Mapping[str, Tensor]) -> Iterator[tuple[str, str]]:
        if _EXTRA in given and not given[_EXTRA].is_meta:
            numbers, own = given[_EXTRA].flatten().tolist(), self.settings()
            if not self.required <= len(numbers) <= len(own):
                yield _EXTRA, f"holds {len(numbers)} settings, and the layer has {len(own)}."
            for (name, wanted), number in zip(own.items(), numbers, strict=False):
                if name == self.taken and number not in range(_MOST_TAKEN + 1):
                    yield _EXTRA, f"holds {name}={number:g}, which must be 0 to {_MOST_TAKEN}."
                elif name != self.taken and number != wanted:
                    value = getattr(self, name, wanted)
                    yield _EXTRA, f"made with another {name}, and the layer has {name}={value!r}."
        yield from super().objections(given)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *arguments: Any) -> None:
        if self.optional_extra_state:
            state_dict.setdefault(f"{prefix}{_EXTRA}", self.get_extra_state())
        super()._load_from_state_dict(state_dict, prefix, *arguments)


def _put_into(module: nn.Module, name: str, child: object) -> None:
    """Let a module that a layer of integers is put into check it before anything is loaded."""
    hooks: Any = module._load_state_dict_pre_hooks.values()
    if not isinstance(child, nn.Module) or any(each.hook is _check_all for each in hooks):
        return
    if any(isinstance(each, CheckedLoading) for each in child.modules()):
        module.register_load_state_dict_pre_hook(_check_all)  # type: ignore[no-untyped-call]


# no other way: what is loaded is a plain nn.Sequential, or a user's module
register_module_module_registration_hook(_put_into)


def _check_all(model: nn.Module, state_dict: Any, prefix: str, *_: Any) -> None:
    found = []
    for path, layer in model.named_modules(remove_duplicate=False):
        if isinstance(layer, CheckedLoading):
            here = f"{prefix}{path}." if path else prefix
            given = {name.removeprefix(here): value for name, value in state_dict.items()
                     if name.startswith(here) and isinstance(value, Tensor)}  # fmt: skip
            found += [f"{here}{name}: {reason}" for name, reason in layer.objections(given)]
    if found:
        raise RefusedError(model, found)
