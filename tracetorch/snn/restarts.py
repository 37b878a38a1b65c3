"""Restart samples inside a sequence: ``tt.unroll(..., reset=)``.

A sequence that is cut anywhere computes the same, so between two parts ``zero_states(where=)`` does
what it does between two steps. A neuron restarts inside its compiled loop instead:
``where(restarts, initial, state)`` stands before its step (``Cell.restarting``).
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from tracetorch.core.torch_private import observed_by
from tracetorch.core.walk import Opaque


class Restarts(Opaque):
    """A checked mask of where samples start anew before a step, read once for a pass."""

    def __init__(self, mask: Tensor) -> None:
        self.mask = mask
        self.now: Tensor | None = None
        """The mask by which the layer that runs is restarted."""
        self._steps: list[bool] | None = None

    @property
    def steps(self) -> list[bool]:
        """For every step whether a sample starts anew; true where nobody can read the mask."""
        if self._steps is None:
            unread = torch.compiler.is_compiling() or observed_by((self.mask,)) is not None
            self._steps = (
                [True] * len(self.mask) if unread else self.mask.flatten(1).any(1).tolist()
            )
        return self._steps


def run_between_restarts(
    layer: Any, x: Tensor, record: tuple[str, ...], reset: Restarts, further: tuple[Tensor, ...]
) -> tuple[Tensor, dict[str, Tensor]]:
    """Run a sequence of a layer in parts, between which samples start anew."""
    layer._check_has_batch("one step of its input", x.shape[1:])
    restarts = reset.steps
    starts = [0, *(t for t in range(1, len(x)) if restarts[t])]
    lengths = [stop - start for start, stop in pairwise([*starts, len(x)])]
    # not slices: the gradient of each would be as long as the whole sequence
    parts = torch.split(x, lengths)
    others: list[tuple[Tensor, ...]] = [
        torch.split(each, lengths)
        if each.ndim == x.ndim and len(each) == len(x)
        else (each,) * len(parts)
        for each in further
    ]
    outputs: list[Tensor] = []
    trajectories: list[dict[str, Tensor]] = []
    for i, (start, part) in enumerate(zip(starts, parts, strict=True)):
        if restarts[start]:
            reset.now = reset.mask[start]
            layer.zero_states(where=reset.now)
            reset.now = None
        now = {"further": tuple(each[i] for each in others)} if others else {}
        y, recorded = layer.forward_sequence(part, record, **now)
        outputs.append(y)
        trajectories.append(recorded)
    joined = {name: torch.cat([each[name] for each in trajectories]) for name in trajectories[0]}
    return torch.cat(outputs), joined
