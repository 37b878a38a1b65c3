"""Refuse a ``state_dict`` whose numbers a layer of integers does not have."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tracetorch.snn.neuron import Neuron
from tracetorch.snn.parameters import Clamp


class CheckedLoading(nn.Module):
    """Base of layers that look at what they are to load; where they object, nothing is loaded."""

    def objections(self, given: Mapping[str, Tensor]) -> Iterator[tuple[str, str]]:
        """Yield the name of each tensor that the layer cannot have, and why.

        Args:
            given: the layer's own tensors in a ``state_dict``, by name.
        """
        raise NotImplementedError

    def _load_from_state_dict(
        self, state_dict: Any, prefix: str, metadata: Any, strict: bool, *lists: list[str]
    ) -> None:
        found = list(_objections(self, state_dict, prefix))
        if found:
            lists[-1].extend(found)
        else:
            super()._load_from_state_dict(state_dict, prefix, metadata, strict, *lists)


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


def refuse_at_once(model: nn.Module) -> None:
    """Let a model refuse a ``state_dict`` before any of its layers has loaded something."""
    model.register_load_state_dict_pre_hook(_check_all)  # type: ignore[no-untyped-call]


def _check_all(model: nn.Module, state_dict: Any, prefix: str, *_: Any) -> None:
    found = [
        objection
        for path, layer in model.named_modules()
        if isinstance(layer, CheckedLoading)
        for objection in _objections(layer, state_dict, f"{prefix}{path}." if path else prefix)
    ]
    if found:  # the class and the form of PyTorch's own
        raise RuntimeError(
            f"Error(s) in loading state_dict for {type(model).__name__}:\n\t" + "\n\t".join(found)
        )


def _objections(layer: CheckedLoading, state_dict: Any, prefix: str) -> list[str]:
    given = {
        name.removeprefix(prefix): value
        for name, value in state_dict.items()
        if name.startswith(prefix) and isinstance(value, torch.Tensor)
    }
    return [f"{prefix}{name}: {reason}" for name, reason in layer.objections(given)]
