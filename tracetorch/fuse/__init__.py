"""Whole sequences: a layer's ``step`` compiled into one loop over time, forward and backward."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

import torch
from torch import Tensor

from tracetorch.fuse import eager, operator
from tracetorch.fuse.backends import NAMES, backend, chosen, missing, unsuited
from tracetorch.fuse.choose import lacks, plan_for, plan_key, program_of
from tracetorch.fuse.graph import Unfusable
from tracetorch.snn.neuron import Neuron

__all__ = ["NAMES", "backend", "chosen", "missing", "refuses", "sequence"]


def sequence(
    layer: Neuron, x: Tensor, *, record: Sequence[str] = ()
) -> tuple[Tensor, dict[str, Tensor]]:
    """Run ``layer`` over all of ``x`` at once: what a loop over its steps computes, bit for bit.

    It starts from the states the layer holds, zeros where it holds none, and leaves the last ones
    in it, part of the graph; so a sequence cut anywhere gives the same outputs and gradients. When
    it fails the layer is as before.

    Args:
        layer: any neuron layer; its ``dim`` counts on the tensor of one step.
        x: the inputs ``[T, ...]``.
        record: names of states whose trajectories are wanted too.

    Shape:
        ``x`` and the outputs ``[T, ...]`` in one dtype; each trajectory ``[T, ...]`` in the dtype
        of the states.

    Raises:
        TypeError, ValueError: as the layer itself; or it has no such state to record.
        RuntimeError: a backend asked for by name cannot run the layer.

    Example:
        >>> from tracetorch import snn
        >>> layer = snn.LIF(3, beta=0.5)
        >>> outputs, states = sequence(layer, torch.ones(4, 2, 3), record=["mem"])
        >>> outputs[:, 0, 0].tolist()
        [0.0, 1.0, 1.0, 1.0]
        >>> states["mem"].shape
        torch.Size([4, 2, 3])
        >>> layer.mem.shape
        torch.Size([2, 3])

    """
    dtype = layer.check_input(x, sequence=True)
    states = layer.states_for(x, dtype, sequence=True)
    kept = layer.kept_states
    for name in record:
        if name not in kept:
            near = difflib.get_close_matches(str(name), kept, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"{layer!r} has no state {name!r}.{hint} It has {', '.join(kept)}.")
    if x.shape[0] == 0:
        return x.clone(), {name: x.to(dtype, copy=True) for name in record}
    arguments = layer.arguments(x.ndim - 1, dtype)
    tensors = {name: value for name, value in arguments.items() if isinstance(value, Tensor)}
    held = [state for state in states if state is not None]
    work = x.to(dtype)
    asked = (layer, work, held, tensors, arguments, tuple(record))
    results: list[Tensor] | None = None
    if torch.compiler.is_compiling():
        key = plan_key(*asked)
        if key is not None:
            results = torch.ops.tracetorch.forward(key, work, held, list(tensors.values()))[:-1]
    else:
        plan = plan_for(*asked)
        if plan is not None:
            results = operator.run(plan, work, held, list(tensors.values()))
    if results is None:
        output, ends, trajectories = eager.run(layer, work, states, arguments, record)
    else:
        output, *rest = results
        ends, trajectories = rest[: len(held)], rest[len(held) :]
    for name, end in zip(kept, ends, strict=True):
        setattr(layer, name, end)
    return output.to(x.dtype), dict(zip(record, trajectories, strict=True))


def refuses(name: str, layer: Neuron, x: Tensor) -> str | None:
    """Why a backend would not run ``layer`` over ``x``, or ``None``.

    Args:
        name: ``"numba"``, ``"triton"`` or ``"eager"``.
        layer: a neuron layer.
        x: the inputs ``[T, ...]``.

    Raises:
        TypeError, ValueError: as the layer itself.

    Example:
        >>> from tracetorch import snn
        >>> refuses("eager", snn.LIF(3), torch.ones(4, 2, 3)) is None
        True

    """
    dtype = layer.check_input(x, sequence=True)
    against = unsuited(name, x.device)
    if against is not None or name == "eager":
        return against
    try:
        return lacks(name, program_of(layer, x.ndim - 1, dtype))
    except Unfusable as reason:
        return str(reason)
