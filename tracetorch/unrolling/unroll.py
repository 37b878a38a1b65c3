"""``unroll``: run an unchanged model over a whole sequence, by layer or by step."""

from __future__ import annotations

import logging
import operator
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import Any, Literal, overload

import torch
from torch import Tensor, nn

from tracetorch.core.checks import check_choice, check_count, check_module
from tracetorch.core.hooks import forward_hooks
from tracetorch.core.torch_private import observed_by, pytree
from tracetorch.core.walk import modules_of
from tracetorch.events.passes import EventProducts
from tracetorch.snn.module import TTModule, keeps_states, zero_states
from tracetorch.snn.passes import Pass, ambient
from tracetorch.snn.recurrent import Recurrent
from tracetorch.snn.restarts import Restarts
from tracetorch.snn.sequence_layer import SequenceLayer
from tracetorch.snn.stream_watch import report_nan_behind
from tracetorch.unrolling.first_run import STEPS, FirstRun, RecordingPass, Trust, trusted
from tracetorch.unrolling.inputs import (
    Inputs,
    call,
    parse_inputs,
    place_time,
    split_static,
    with_reset,
)
from tracetorch.unrolling.segments import in_segments
from tracetorch.unrolling.trajectories import Recorder
from tracetorch.unrolling.unsupported import check_supported, computes_per_sample, refuse_one_step

_log = logging.getLogger("tracetorch")


@overload
def unroll(
    model: nn.Module,
    x: Any,
    *,
    steps: int | None = None,
    time_dim: int = 0,
    by: Literal["layer", "step"] = "layer",
    record: None = None,
    check: bool | int = False,
    segment: int | str | None = None,
    from_rest: bool = False,
    reset: Tensor | None = None,
) -> Any: ...


@overload
def unroll(
    model: nn.Module,
    x: Any,
    *,
    steps: int | None = None,
    time_dim: int = 0,
    by: Literal["layer", "step"] = "layer",
    record: Sequence[str] | str,
    check: bool | int = False,
    segment: int | str | None = None,
    from_rest: bool = False,
    reset: Tensor | None = None,
) -> tuple[Any, dict[str, Tensor]]: ...


def unroll(
    model: nn.Module,
    x: Any,
    *,
    steps: int | None = None,
    time_dim: int = 0,
    by: Literal["layer", "step"] = "layer",
    record: Sequence[str] | str | None = None,
    check: bool | int = False,
    segment: int | str | None = None,
    from_rest: bool = False,
    reset: Tensor | None = None,
) -> Any:
    """Run ``model``, whose call is one time step, over a sequence ``[T, B, ...]``.

    It goes on from the states that the model holds and leaves the last ones in it, part of their
    graph: a sequence cut anywhere gives the same outputs and, until ``detach_states()``, the same
    gradients.

    By layer, the default, time is folded into the batch, the model is called **once**, and every
    neuron layer runs its whole sequence as one fused loop. That is right when everything without
    memory treats the samples of a batch independently and keeps the batch first, as convolutions,
    linear layers, pooling, dropout and ``nn.Flatten`` do. A batch norm in training then takes its
    statistics over time and batch together: not the same as by step. Whether it is right is not
    guessed: the first time a model is met in a mode, its first three steps are run by step as well,
    with what the layers gave, and a model that computes something else, because it keeps something
    outside of its neuron layers or mixes samples, is refused by name. What acts only after the
    third step is not found; ``check`` runs more. A ``forward`` that reads or writes states of
    layers, or has a memory of its own, is refused too. By step, the model is called once per step:
    always right.

    Args:
        model: any ``nn.Module``.
        x: a tensor ``[T, B, ...]``, a tuple of them (``model(*x)``) or a dict (``model(**x)``).
            Of one sequence ``[T, ...]`` give ``x.unsqueeze(1)``.
        steps: repeat ``x``, which then has no time dimension, for so many steps. Where the model
            is an ``nn.Sequential``, what stands before its first neuron is computed once; so it is
            for an ``x`` that was expanded over time, ``x.expand(T, *x.shape)``.
        time_dim: where time is in ``x``, in the outputs and in what is recorded: 1 for batch first,
            ``[B, T, ...]``.
        by: ``"layer"`` or ``"step"``.
        record: state names (``"mem"``), ``"input"``, ``"output"``, or patterns of paths
            (``"cells.*.mem"``).
        check: compare both ways over more steps, each time: ``True``: over all; a number: over so
            many. What was compared is logged at the level INFO. By layer NaN in the input, or in
            what a module gives, is an error that names the first place; infinite values are one
            where a state has become NaN.
        segment: run so many steps at a time and, until ``backward`` runs each segment once more,
            keep only the inputs and the states between them. The memory of ``T`` steps becomes
            that of ``segment`` steps and of ``T / segment`` states, for one more forward pass. A
            batch norm takes its statistics over a segment. Buffers are what they were when a
            segment runs again. One that computes something else then raises a ``RuntimeError`` in
            ``backward``. ``"auto"``: ``4 * sqrt(T)`` steps.
        from_rest: start from initial states and leave none behind: for evaluation, say. The states
            that the model holds are not touched, so that several threads may run one model.
        reset: ``[T, B]`` booleans, true where a sample starts anew **before** that step, as
            ``zero_states(where=reset[t])`` does: episodes in a recurrent policy, sequences packed
            one behind the other. ``[B, T]`` where ``time_dim`` is not 0. No gradient goes back
            through a restart.

    Shape:
        Every tensor of the output has time at ``time_dim``; so has every recorded trajectory.

    Returns:
        What the model returns, over time. With ``record``: that, and a dict from
        ``"path.name"`` to the trajectory. Both are part of the graph.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: an argument is out of range; the model cannot run by layer, or computes
            something else by step; or as a layer does. The states are then as before.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 3), LIF(3), nn.Linear(3, 2), Readout(2))
        >>> y, seen = unroll(net, torch.rand(10, 8, 4), record=["1.output"])
        >>> y.shape, seen["1.output"].shape
        (torch.Size([10, 8, 2]), torch.Size([10, 8, 3]))
    """
    if not isinstance(model, nn.Module):
        check_module(model)
    if by not in ("layer", "step"):
        check_choice("by", by, ("layer", "step"))
    inputs = parse_inputs(x, steps, time_dim)
    if reset is not None:
        inputs = with_reset(inputs, reset, time_dim)
    outer = ambient.current
    if outer is not None and outer.folded and outer.running is None:
        raise ValueError(
            "a model is unrolled inside a model that is unrolled by layer itself. Use "
            'unroll(..., by="step") for the outer one.'
        )
    checked = 0
    if check is not False:
        checked = inputs.steps if check is True else check_count("check", check)
    if segment is None:
        y, trajectories, run = _run(model, inputs, by, record, checked, from_rest)
    else:
        run = Pass(from_rest=from_rest)
        part = partial(_run, model, by=by, record=record, checked=checked, from_rest=False)
        y, trajectories = in_segments(part, model, inputs, segment, run)
    if time_dim != 0:
        place = partial(place_time, time_dim=time_dim)
        y, trajectories = pytree.tree_map(place, (y, trajectories))
    if not from_rest:
        run.commit()
    if outer is None and not torch.compiler.is_compiling():
        report_nan_behind(run, model)
    return y if record is None else (y, trajectories)


def _run(
    model: nn.Module,
    inputs: Inputs,
    by: str,
    record: Sequence[str] | str | None,
    checked: int,
    from_rest: bool,
) -> tuple[Any, dict[str, Tensor], Pass]:
    """Run some steps in a pass of their own; return outputs, trajectories and the pass."""
    recorder = None if record is None else Recorder(record, _recordable(model))
    reset = None if inputs.reset is None else Restarts(inputs.reset)
    if by == "step" or inputs.steps == 1:  # one step is one step: a forward may use its states
        run = Pass(from_rest=from_rest, recorder=recorder)
        y = run.call(_by_step, model, inputs, run, reset)
    else:
        y, run = _by_layer(model, inputs, checked, from_rest, reset, recorder)
    return y, {} if recorder is None else recorder.result(inputs.steps), run


def _recordable(model: nn.Module) -> list[tuple[str, TTModule]]:
    """List the neuron layers and the modules with memory of a model, with their paths."""
    return [
        (path, module)
        for path, module in modules_of(model)
        if isinstance(module, SequenceLayer) or keeps_states(module)
    ]


def _by_layer(
    model: nn.Module,
    inputs: Inputs,
    checked: int,
    from_rest: bool,
    reset: Restarts | None,
    recorder: Recorder | None,
) -> tuple[Any, Pass]:
    """Call the model once on all steps; compare with its first steps where it is not known."""
    if reset is not None:
        _check_restarts(model)
    steps = inputs.steps
    run = Pass(steps, folded=True, from_rest=from_rest, reset=reset, recorder=recorder)
    if torch.compiler.is_compiling():
        x = inputs.tensors
        split = (x, *split_static(model)) if inputs.static and isinstance(x, Tensor) else None
        return run.call(_call_folded, model, inputs, split), run
    # another thread may have been first
    trust = trusted.get(id(model)) or trusted.setdefault(id(model), Trust(model))
    if trust.per_sample:
        check_supported(modules_of(model))
    known = not checked and model.training in trust.modes
    if known:
        y = _call_with_events(model, inputs, run, trust)
        if _mode(model, run) in trust.met:
            return y, run
    # where others see the operations, no values can be compared, nor on meta
    leaves = pytree.tree_leaves(inputs.tensors)
    if observed_by(leaves) is not None or any(x.is_meta for x in leaves):
        return y if known else _call_with_events(model, inputs, run, trust), run
    named: dict[str, Any] = {"folded": True, "from_rest": from_rest, "reset": reset}
    if known:
        # It was the call: its random numbers are drawn, and buffers have gone on. What is compared
        # is another one, which leaves nothing.
        beside = replace(inputs, tensors=inputs.map(torch.clone))
        with trust.lock, torch.no_grad(), FirstRun(model, beside, 0).restored():
            _compared(model, beside, 0, named, trust)
        return y, run
    with trust.lock:
        return _compared(model, inputs, checked, {**named, "recorder": recorder}, trust)


def _mode(model: nn.Module, run: Pass) -> tuple[Any, ...]:
    """Return in which modes a pass by layer has met which layers, in their order."""
    return (model.training, *run.entries, *map(_training_of, run.entries.values()))


_training_of = operator.attrgetter("module.training")


def _compared(
    model: nn.Module, inputs: Inputs, checked: int, named: dict[str, Any], trust: Trust
) -> tuple[Any, Pass]:
    """Call the model once on all steps, and compare with its first steps."""
    modules = modules_of(model, closed=Recurrent)
    check_supported(modules)
    trust.per_sample = any(computes_per_sample(type(module)) for _, module in modules)
    trust.products = None  # the modules may be others
    first = FirstRun(model, inputs, checked or STEPS)
    run = RecordingPass(first.steps, inputs.steps, **named)
    try:
        with first.observed():
            y = _call_with_events(model, inputs, run, trust)
            if checked:
                first.check_finite(run)
            exact = first.compare(run, pytree.tree_leaves(y))
    except BaseException:
        first.before.restore()
        raise
    if checked or not exact:
        _log.info(
            "tt.unroll: %d steps of %d compared, by layer and by step%s.",
            first.steps,
            inputs.steps,
            "" if exact else "; the model is random, and its values were not compared",
        )
    trust.met.add(_mode(model, run))
    trust.modes.add(model.training)
    return y, run


def _call_with_events(model: nn.Module, inputs: Inputs, run: Pass, trust: Trust) -> Any:
    """Call the model on all steps within a pass, in which products choose events."""
    # before products choose, by a forward in the instance, as a user's own is
    x, split = inputs.tensors, None
    if inputs.static or not isinstance(x, Tensor) or not x.is_contiguous():
        repeated = inputs.repeated()
        split = None if repeated is None else (repeated, *split_static(model))
    products: EventProducts = trust.products
    if products is None:
        modules = [module for _, module in modules_of(model, closed=Recurrent)]
        products = trust.products = EventProducts(modules)
    if not products.candidates:
        return run.call(_call_folded, model, inputs, split)
    try:
        products.enter(run)
        return run.call(_call_folded, model, inputs, split)
    finally:
        products.leave(run)


def _call_folded(
    model: nn.Module,
    inputs: Inputs,
    split: tuple[Tensor, list[nn.Module], list[nn.Module]] | None = None,
) -> Any:
    """Call the model once on all steps, folded into the batch, and unfold its outputs."""
    T, B, x = inputs.steps, inputs.batch, inputs.tensors
    if split is not None and split[1]:
        y, prefix, rest = split
        for module in prefix:
            y = module(y)
        y = y.expand(T, *y.shape).flatten(0, 1)
        for module in rest:
            y = module(y)
    elif type(x) is Tensor and not inputs.static and x.is_contiguous():  # most often
        y = model(x.view((T * B, *x.shape[2:])))
    else:
        y = call(model, inputs.folded())
    if type(y) is Tensor and y.ndim and y.shape[0] == T * B:
        return y.view((T, B, *y.shape[1:]))
    return pytree.tree_map(lambda leaf: _unfolded(leaf, T, B), y)


def _unfolded(leaf: object, T: int, B: int) -> Tensor:
    if not isinstance(leaf, Tensor) or leaf.ndim == 0 or leaf.shape[0] != T * B:
        got = f"shape {list(leaf.shape)}" if isinstance(leaf, Tensor) else type(leaf).__name__
        raise ValueError(
            f"by layer every output must be a tensor that begins with time and batch, {T} * "
            f'{B} = {T * B}; the model gave {got}. Use unroll(..., by="step").'
        )
    return leaf.view((T, B, *leaf.shape[1:]))


def _by_step(model: nn.Module, inputs: Inputs, run: Pass, reset: Restarts | None) -> Any:
    """Call the model once per step."""
    outputs: list[list[Any]] = []
    spec = pytree.tree_structure(None)
    refused = []
    if not torch.compiler.is_compiling():
        refused = [
            (module, refuse_one_step(path))
            for path, module in model.named_modules()
            if isinstance(module, nn.RNNBase)
        ]
    with forward_hooks(earliest=refused) if refused else nullcontext():
        for t, step in enumerate(inputs.each_step()):
            if reset is not None and reset.steps[t]:
                zero_states(model, where=reset.mask[t])
            leaves, spec = pytree.tree_flatten(call(model, step))
            outputs.append(leaves)
            if run.recorder is not None:
                run.recorder.after_step()
    for leaf in outputs[0]:
        if not isinstance(leaf, Tensor):
            raise TypeError(f"every output must be a tensor, the model gave {type(leaf).__name__}.")
    stacked = [torch.stack(column) for column in zip(*outputs, strict=True)]
    return pytree.tree_unflatten(stacked, spec)


def _check_restarts(model: nn.Module) -> None:
    """Raise where a module restarts in a way of its own, which no layer would see."""
    for path, module in modules_of(model):
        if isinstance(module, TTModule) and not isinstance(module, SequenceLayer):
            function = getattr(module.zero_states, "__module__", None) or ""
            if function.partition(".")[0] != "tracetorch":
                raise ValueError(
                    f"{type(module).__name__}, at {path or 'the root'!r}, has a zero_states of its "
                    "own, which reset= must call between the steps. Use "
                    'unroll(..., by="step").'
                )
