"""Restart samples inside a sequence: ``unroll(..., reset=)``.

A sequence that is cut anywhere computes the same, so between two parts ``zero_states(where=)`` does
what it does between two steps: so every layer with a memory runs. A neuron restarts inside its
compiled loop instead, where one cut for each step at which any sample restarts would leave little
of the loop: ``where(restarts, initial, state)`` stands before its step (``Cell.restarting``), and
gradient and kernels follow from that.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from tracetorch.core.walk import Walk
from tracetorch.snn.module import TTModule
from tracetorch.snn.neuron import Neuron, has_step
from tracetorch.snn.restarts import Restarts, restarts_in_loop
from tracetorch.snn.sequence_layer import SequenceLayer


def restarted_sequence(
    layer: SequenceLayer,
    x: Tensor,
    record: tuple[str, ...],
    reset: Restarts,
    more: dict[str, Any],
) -> tuple[Tensor, dict[str, Tensor]]:
    """Run a sequence of a layer in which samples start anew before some steps.

    Args:
        layer: the layer.
        x: its inputs ``[T, ...]``.
        record: names of states whose trajectories are wanted.
        reset: where.
        more: keyword arguments of ``forward_sequence``.
    """
    layer.check_has_batch("one step of its input", x.shape[1:])
    if (
        has_step(layer)
        and not torch.compiler.is_compiling()
        and type(layer).forward_sequence is Neuron.forward_sequence
        and "forward_sequence" not in vars(layer)
        and restarts_in_loop(layer, layer.cell)
    ):
        return layer.forward_sequence(x, record, reset=reset, **more)
    restarts = reset.steps
    starts = [0, *(t for t in range(1, len(x)) if restarts[t])]
    lengths = [stop - start for start, stop in pairwise([*starts, len(x)])]
    # not slices: the gradient of each would be as long as the whole sequence
    parts = torch.split(x, lengths)
    further: list[tuple[Tensor, ...]] = [
        torch.split(each, lengths) if _over_time(each, x) else (each,) * len(parts)
        for each in more.get("further", ())
    ]
    outputs: list[Tensor] = []
    trajectories: list[dict[str, Tensor]] = []
    for i, (start, part) in enumerate(zip(starts, parts, strict=True)):
        if restarts[start]:
            layer.zero_states(where=reset.mask[start])
        now = {**more, "further": tuple(each[i] for each in further)} if further else more
        y, recorded = layer.forward_sequence(part, record, **now)
        outputs.append(y)
        trajectories.append(recorded)
    joined = {name: torch.cat([each[name] for each in trajectories]) for name in trajectories[0]}
    return torch.cat(outputs), joined


def _over_time(value: object, x: Tensor) -> bool:
    """Whether a further input has a value for each step of ``x``, and is not the same in all."""
    return isinstance(value, Tensor) and value.ndim == x.ndim and len(value) == len(x)


def check_restarts(found: Walk) -> None:
    """Raise where a module restarts in a way of its own, which no layer would see.

    Raises:
        ValueError: a module that is no layer has a ``zero_states`` of its own.
    """
    for path, module in found.modules:
        if isinstance(module, TTModule) and not isinstance(module, SequenceLayer):
            function = getattr(module.zero_states, "__module__", None) or ""
            if function.partition(".")[0] != "tracetorch":
                raise ValueError(
                    f"{type(module).__name__}, at {path or 'the root'!r}, has a zero_states of its "
                    "own, which reset= must call between the steps. Use "
                    'unroll(..., by="step").'
                )
