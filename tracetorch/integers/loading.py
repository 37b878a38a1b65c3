"""Check what layers of integers load: numbers that they have, made with their own settings.

As of a wrong shape, PyTorch loads the other layers, and then raises what was found in all.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, TypeAlias

from torch import Tensor, nn, tensor

from tracetorch.snn.neuron import Neuron
from tracetorch.snn.parameters import Clamp

Ends: TypeAlias = tuple[float, float]

_EXTRA = "_extra_state"
_MOST_TAKEN = 16  # of what is loaded, whatever the layer


class CheckedLoading(nn.Module):
    """Base of layers that look at what they are to load, and keep their own where it is wrong."""

    def ends(self) -> Mapping[str, Ends]:
        """Return the least and the largest integer of tensors: of a neuron's parameters."""
        constraints = self.constraints if isinstance(self, Neuron) else {}
        kinds = {f"raw_{name}": each.value for name, each in constraints.items()}
        return {n: (k.low or 0, k.high or 0) for n, k in kinds.items() if isinstance(k, Clamp)}

    def objections(self, given: Mapping[str, Tensor]) -> Iterator[tuple[str, str]]:
        """Yield the name of each tensor that the layer cannot have, and why."""
        for name, (low, high) in self.ends().items():
            # one that learns may be between two integers, and outside
            if name in given and name not in self._parameters:
                numbers, ends = given[name].detach().double(), f"{low:.0f} to {high:.0f}"
                fits = (numbers == numbers.round()) & (numbers >= low) & (numbers <= high)
                for wrong in numbers[~fits].flatten()[:1].tolist():
                    yield name, f"holds {wrong:.10g}, and the layer has integers of {ends}."

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *arguments: Any) -> None:
        found = {name: state_dict.get(prefix + name) for name in (*self._buffers, _EXTRA)}
        given = {n: v for n, v in found.items() if isinstance(v, Tensor) and not v.is_meta}
        errors = [f"{prefix}{name}: {reason}" for name, reason in self.objections(given)]
        if errors:
            arguments[-1].extend(errors)
        else:
            super()._load_from_state_dict(state_dict, prefix, *arguments)


class KnownSettings(CheckedLoading):
    """Base of layers whose ``state_dict`` says what the numbers in it were made with.

    New settings are added behind the others, which files of earlier versions hold alone.
    """

    # the setting that is loaded, the first of them, which every file has; all others must be equal
    taken: ClassVar[str] = ""

    @property
    def optional_extra_state(self) -> bool:
        return not self.taken

    def settings(self) -> Mapping[str, int]:
        """Return what the tensors of ``state_dict`` mean, as numbers."""
        raise NotImplementedError

    def get_extra_state(self) -> Tensor:
        return tensor(list(self.settings().values()), device="cpu")

    def set_extra_state(self, state: Tensor) -> None:
        if self.taken:
            setattr(self, self.taken, int(state.flatten()[0]))

    def objections(self, given: Mapping[str, Tensor]) -> Iterator[tuple[str, str]]:
        if _EXTRA in given:
            numbers, own = given[_EXTRA].flatten().tolist(), self.settings()
            if not bool(self.taken) <= len(numbers) <= len(own):
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
