"""Run a model over a whole sequence and record trajectories: ``record``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from torch import nn

from tracetorch.core.walk import named_modules
from tracetorch.probe.layers import recordable_layers, recordable_names, spike_kinds
from tracetorch.probe.recording import Recording
from tracetorch.probe.watch import watch
from tracetorch.snn.module import TTModule
from tracetorch.snn.recurrent import Recurrent
from tracetorch.unrolling import unroll
from tracetorch.unrolling.trajectories import ENDS, select_names


def record(
    model: nn.Module,
    x: Any,
    what: Sequence[str] | str,
    *,
    gradients: bool = False,
    steps: int | None = None,
    by: Literal["layer", "step"] = "layer",
) -> tuple[Any, Recording]:
    """Run a model over ``[T, B, ...]`` as ``tt.unroll`` does, and record the named tensors.

    By layer every neuron layer still runs as one fused loop, which writes the trajectories of its
    states as it goes.

    Args:
        model: any ``nn.Module`` with neuron layers.
        x: as for ``tt.unroll``.
        what: states (``"mem"``), ``"input"``, ``"output"``, whole names (``"net.1.mem"``) or
            patterns of them (``"net.*.mem"``); one or a list.
        gradients: keep those tensors' gradients too, for ``recording.gradients()`` after
            ``backward()``. Inside a fused loop the states have none: for theirs, and for what is
            inside a ``snn.Recurrent``, run by step. The gradient of a state is that of the value
            which the next step receives.
        steps: as for ``tt.unroll``.
        by: as for ``tt.unroll``.

    Returns:
        What the model returns, and a :class:`Recording`.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: ``what`` matches nothing, or names, in a run by layer, gradients that only a run
            by step has; or as ``tt.unroll``. The states are then unchanged.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 3), LIF(3), nn.Linear(3, 2), Readout(2))
        >>> y, seen = record(net, torch.rand(10, 8, 4), ["1.mem", "output"])
        >>> seen
        Recording(1.mem [10, 8, 3], 1.output [10, 8, 3], 3.output [10, 8, 2])
        >>> _, seen = record(net, torch.rand(10, 8, 4), "1.output", gradients=True)
        >>> net[3].mem.sum().backward()
        >>> seen.gradients()["1.output"].shape
        torch.Size([10, 8, 3])
    """
    layers = recordable_layers(model)
    # A state inside a fused loop has no gradient: only the plain loop keeps one for every step.
    if by == "step":
        with watch(model, what, gradients=gradients) as seen:
            y = unroll(model, x, steps=steps, by="step")
        return y, seen.recording()
    if gradients:
        _check_gradients(what, layers)
    y, trajectories = unroll(model, x, steps=steps, by=by, record=what)
    sources = None
    if gradients:  # autograd keeps those of what is no data, and part of the graph itself
        sources = {name: [t] for name, t in trajectories.items() if t.requires_grad}
        for (source,) in sources.values():
            source.retain_grad()
    return y, Recording(trajectories, sources=sources, kinds=spike_kinds(layers))


def _check_gradients(what: Sequence[str] | str, layers: Mapping[str, TTModule]) -> None:
    """Raise ``ValueError`` where a run by layer keeps no gradient of a named tensor."""
    names = recordable_names(layers)
    # A Recurrent runs its inner layers step by step: their trajectories are copies of the steps.
    inner = {
        id(module)
        for layer in layers.values()
        if isinstance(layer, Recurrent)
        for _, module in named_modules(layer)
        if module is not layer
    }
    for name in select_names(what, names, by="record"):
        path, own = names[name]
        if own not in ENDS:
            reason = 'is a state in a fused loop: ask for "input" and "output"'
        elif id(layers[path]) in inner:
            reason = "is inside a snn.Recurrent: leave it out"
        else:
            continue
        raise ValueError(
            f'record: {name!r} {reason}, or use record(..., by="step"). Its gradient is not kept.'
        )
