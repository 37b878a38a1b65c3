"""``unroll``: an unchanged model over a whole sequence, by layer or by step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from tracetorch.snn.module import check_module
from tracetorch.snn.neuron import Neuron
from tracetorch.snn.recurrent import Recurrent
from tracetorch.snn.states import HeldStates
from tracetorch.snn.walk import modules_of
from tracetorch.unrolling.check import check_both_ways
from tracetorch.unrolling.inputs import Inputs, call, inputs
from tracetorch.unrolling.layer_pass import passing
from tracetorch.unrolling.prefix import split_static
from tracetorch.unrolling.recording import Recording
from tracetorch.unrolling.refusal import refusal
from tracetorch.unrolling.segments import in_segments


def unroll(
    model: nn.Module,
    x: Any,
    *,
    steps: int | None = None,
    time_dim: int = 0,
    by: Literal["layer", "step"] = "layer",
    batched: bool = True,
    record: Sequence[str] | str | None = None,
    check: bool = False,
    segment: int | None = None,
) -> Any:
    """Run ``model``, whose call is one time step, over a sequence ``[T, B, ...]``.

    It goes on from the states that the model holds and leaves the last ones in it, part of their
    graph: a sequence cut anywhere gives the same outputs and, until ``detach_states()``, the same
    gradients.

    By layer, the default, time is folded into the batch, the model is called **once**, and every
    neuron layer runs its whole sequence as one fused loop. That is right when everything without
    memory treats the samples of a batch independently and keeps the batch first, as convolutions,
    linear layers, pooling, dropout and ``nn.Flatten`` do. A batch norm then takes its statistics
    over time and batch together. By step, the model is called once per step: always right.

    Args:
        model: any ``nn.Module``.
        x: a tensor ``[T, B, ...]``, a tuple of them (``model(*x)``) or a dict (``model(**x)``).
        steps: repeat ``x``, which then has no time dimension, for so many steps. Where the model
            is an ``nn.Sequential``, what stands before its first neuron is computed once.
        time_dim: where time is in ``x``, in the outputs and in what is recorded.
        by: ``"layer"`` or ``"step"``.
        batched: ``False``: ``x`` is ``[T, ...]``; the model is given a batch of one.
        record: state names (``"mem"``), ``"input"``, ``"output"``, or patterns of paths
            (``"cells.*.mem"``).
        check: before the run, compare both ways on the first steps, and raise at the first layer
            that differs.
        segment: run so many steps at a time and, until ``backward`` runs each segment once more,
            keep only the inputs and the states between them. The memory of ``T`` steps becomes
            that of ``segment`` steps and of ``T / segment`` states, for one more forward pass. A
            batch norm takes its statistics over a segment.

    Shape:
        Every tensor of the output has time at ``time_dim``; so has every recorded trajectory.

    Returns:
        What the model returns, over time. With ``record``: that, and a dict from
        ``"path.name"`` to the trajectory. Both are part of the graph.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: an argument is out of range; the model cannot run by layer; or as a layer does.
            The states are then as before.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 3), LIF(3), nn.Linear(3, 2), Readout(2))
        >>> y, seen = unroll(net, torch.rand(10, 8, 4), record=["1.output"])
        >>> y.shape, seen["1.output"].shape
        (torch.Size([10, 8, 2]), torch.Size([10, 8, 3]))
    """
    check_module(model)
    if by not in ("layer", "step"):
        raise ValueError(f'by must be "layer" or "step", got {by!r}.')
    given = inputs(x, steps, time_dim, batched)
    modules = modules_of(model)
    layers = [(path, m) for path, m in modules if isinstance(m, Neuron)]
    recording = Recording(record, layers)
    before = HeldStates([layer for _, layer in layers])
    try:
        if by == "layer":
            if check:
                check_both_ways(model, given)
            if any(isinstance(m, Recurrent) for _, m in modules):
                modules = modules_of(model, closed=Recurrent)

        def run(part: Inputs, recording: Recording) -> tuple[Any, dict[str, Tensor]]:
            if by == "layer":
                y = _by_layer(model, modules, part, recording)
            else:
                y = _by_step(model, part, recording, [layer for _, layer in layers])
            return y, recording.result(part.steps)

        if segment is None:
            y, seen = run(given, recording)
        else:
            y, seen = in_segments(
                lambda part: run(part, Recording(record, layers)),
                given,
                segment,
                [module for _, module in modules_of(model)],
            )
        trajectories = {
            path: _placed(trajectory, time_dim, batched) for path, trajectory in seen.items()
        }
        y = _mapped(lambda leaf: _placed(leaf, time_dim, batched), y)
    except BaseException:
        before.put_back()
        raise
    return y if record is None else (y, trajectories)


def _mapped(change: Callable[[Any], Any], tree: Any) -> Any:
    """``tree`` with every leaf changed; most models return a single tensor."""
    return change(tree) if type(tree) is Tensor else pytree.tree_map(change, tree)


def _placed(leaf: Tensor, time_dim: int, batched: bool) -> Tensor:
    if not batched:
        if leaf.ndim < 2 or leaf.shape[1] != 1:
            raise ValueError(
                "batched=False gives the model a batch of one and takes it away again, but an "
                f"output over time has shape {list(leaf.shape)}, without that batch at dimension "
                "1. Keep the batch in the output, or give an input with a batch."
            )
        leaf = leaf.squeeze(1)
    if not -leaf.ndim <= time_dim < leaf.ndim:
        raise ValueError(
            f"time_dim is {time_dim}, but an output or a trajectory has shape {list(leaf.shape)}, "
            "time first. Count from the end, time_dim=-1 say, or put time first."
        )
    return leaf if time_dim == 0 else leaf.movedim(0, time_dim)


def _by_layer(
    model: nn.Module, modules: list[tuple[str, nn.Module]], given: Inputs, recording: Recording
) -> Any:
    reason = refusal(modules)
    if reason is not None:
        raise ValueError(f'{reason}: it cannot run by layer. Use unroll(..., by="step").')
    T = given.steps
    once, rest = split_static(model) if given.at_rest else ([], [])
    with passing([m for _, m in modules if isinstance(m, Neuron)], T, recording):
        if once and isinstance(given.given, Tensor):
            y: Any = given.given
            for module in once:
                y = module(y)
            y = y.expand(T, *y.shape).flatten(0, 1)
            for module in rest:
                y = module(y)
        else:
            y = call(model, given.folded())
    size = T * given.batch

    def unfolded(leaf: object) -> Tensor:
        if not isinstance(leaf, Tensor) or leaf.ndim == 0 or leaf.shape[0] != size:
            got = f"shape {list(leaf.shape)}" if isinstance(leaf, Tensor) else type(leaf).__name__
            raise ValueError(
                f"by layer every output must be a tensor that begins with time and batch, {T} * "
                f'{given.batch} = {size}; the model gave {got}. Use unroll(..., by="step").'
            )
        return torch.unflatten(leaf, 0, (T, given.batch))

    return _mapped(unfolded, y)


def _by_step(
    model: nn.Module, given: Inputs, recording: Recording, layers: Sequence[Neuron]
) -> Any:
    outputs: list[list[Any]] = []
    spec = pytree.tree_structure(None)
    with recording.listening(layers):
        for step in given.each_step():
            leaves, spec = pytree.tree_flatten(call(model, step))
            outputs.append(leaves)
            recording.after_step(layers)
    for leaf in outputs[0]:
        if not isinstance(leaf, Tensor):
            raise TypeError(f"every output must be a tensor, the model gave {type(leaf).__name__}.")
    stacked = [torch.stack(column) for column in zip(*outputs, strict=True)]
    return pytree.tree_unflatten(stacked, spec)
