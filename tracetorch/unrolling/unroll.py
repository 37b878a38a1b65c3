"""``unroll``: run an unchanged model over a whole sequence, by layer or by step."""

from __future__ import annotations

import logging
import operator
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tracetorch.core.checks import check_choice, check_count, check_module
from tracetorch.core.torch_private import observed_by, pytree
from tracetorch.core.walk import modules_of
from tracetorch.events.passes import EventProducts
from tracetorch.snn.module import TTModule, zero_states
from tracetorch.snn.passes import Pass, Restarts, ambient, report_nan_behind
from tracetorch.snn.recurrent import Recurrent
from tracetorch.snn.sequence_layer import SequenceLayer
from tracetorch.unrolling.first_run import (
    STEPS,
    FirstRun,
    RecordingPass,
    Trust,
    check_supported,
    interleaves,
    refused_one_step,
    trusted,
)
from tracetorch.unrolling.inputs import Inputs, call, parse_inputs, split_static, with_reset
from tracetorch.unrolling.segments import in_segments
from tracetorch.unrolling.trajectories import Recorder

_log = logging.getLogger("tracetorch")


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
    neuron layer runs its whole sequence as one fused loop. That is right where everything without
    memory treats samples independently and keeps the batch first; a batch norm in training takes
    its statistics over time and batch. The first time a model is met in a mode, its first three
    steps are run by step as well, and a model that computes something else is refused; so is a
    ``forward`` that reads or writes states of layers. What acts only after the third step is not
    found; ``check`` runs more. By step, always right, the model is called once per step, whatever
    ``by`` is where a ``Recurrent`` holds code of a user's own.

    Args:
        model: any ``nn.Module``.
        x: a tensor ``[T, B, ...]``, a tuple of them (``model(*x)``) or a dict (``model(**x)``).
            Of one sequence ``[T, ...]`` give ``x.unsqueeze(1)``.
        steps: repeat ``x``, which then has no time dimension, for so many steps. What stands before
            the first neuron of an ``nn.Sequential`` is computed once; so for ``x.expand(T, ...)``.
        time_dim: where time is in ``x``, the outputs and what is recorded: 1 for ``[B, T, ...]``.
        by: ``"layer"`` or ``"step"``.
        record: state names (``"mem"``), ``"input"``, ``"output"``, or patterns of paths
            (``"cells.*.mem"``).
        check: compare both ways over more steps, each time: ``True``: over all; a number: over so
            many. That a model is random is logged at the level INFO.
        segment: run so many steps at a time, keep only the inputs and the states between them, and
            run each once more in ``backward``, which raises a ``RuntimeError`` where it computes
            something else. A batch norm takes its statistics over a segment. ``"auto"``:
            ``4 * sqrt(T)`` steps.
        from_rest: start from initial states and leave none behind: for evaluation, say. The states
            that the model holds are not touched, so that several threads may run one model.
        reset: ``[T, B]`` booleans, ``[B, T]`` where ``time_dim`` is not 0, true where a sample
            starts anew **before** that step, as ``zero_states(where=reset[t])`` does: episodes,
            sequences packed one behind the other. No gradient goes back through a restart.

    Shape:
        Every tensor of the output has time at ``time_dim``; so has every recorded trajectory.

    Returns:
        What the model returns, over time; with ``record`` also trajectories by ``"path.name"``.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: an argument is out of range; the model cannot run by layer, or computes
            something else by step; or as a layer does. The states are then as before.
        IndexError: an output or a trajectory has no dimension ``time_dim``.

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
    outer, compiling = ambient.current, torch.compiler.is_compiling()
    if outer is not None and outer.folded and outer.running is None:
        raise ValueError(
            "a model is unrolled inside a model that is unrolled by layer itself. Use "
            'unroll(..., by="step") for the outer one.'
        )
    checked = 0
    if check is not False:
        checked = inputs.steps if check is True else check_count("check", check)
    if segment is None:
        y, trajectories, run = _run(model, inputs, by, record, checked, from_rest, compiling)
    else:
        run = Pass(from_rest=from_rest)
        part = partial(_run, model, by=by, record=record, checked=checked, from_rest=False)
        y, trajectories = in_segments(part, model, inputs, segment, run)
    if time_dim != 0:
        place = partial(torch.movedim, source=0, destination=time_dim)
        y, trajectories = pytree.tree_map(place, (y, trajectories))
    if not from_rest:
        if not compiling:
            run.check_outlives_transforms()
        run.commit()
    if outer is None and not compiling:
        report_nan_behind(run, model)
    return y if record is None else (y, trajectories)


def _run(
    model: nn.Module,
    inputs: Inputs,
    by: str,
    record: Sequence[str] | str | None,
    checked: int,
    from_rest: bool,
    compiling: bool = False,
) -> tuple[Any, dict[str, Tensor], Pass]:
    """Run some steps in a pass of their own; return outputs, trajectories and the pass."""
    recorder = None if record is None else Recorder(record, model)
    reset = None if inputs.reset is None else Restarts(inputs.reset)
    trust, known = None, compiling
    # one step is one step: a forward may use its states
    by_step = by == "step" or inputs.steps == 1
    if not by_step and not compiling:
        # another thread may have been first
        trust = trusted.get(id(model)) or trusted.setdefault(id(model), Trust(model))
        known = not checked and model.training in trust.modes
        if not known:
            with trust.lock:  # one thread describes the layers
                by_step = interleaves(model)
    if by_step:
        run = Pass(from_rest=from_rest, recorder=recorder)
        y = run.call(_by_step, model, inputs, run, reset)
        return y, {} if recorder is None else recorder.result(inputs.steps), run
    if reset is not None:
        _check_restarts(model)
    run = Pass(inputs.steps, folded=True, from_rest=from_rest, reset=reset, recorder=recorder)
    # where others see the operations, no values can be compared, nor on meta
    if known or trust is None or _is_observed(inputs):
        y = _by_layer(model, inputs, run, trust)
        if trust is not None and _mode(model, run) not in trust.met and not _is_observed(inputs):
            # What is compared is another call, which leaves nothing: this one has had effects.
            beside = replace(inputs, tensors=inputs.map(torch.clone))
            with trust.lock, torch.no_grad(), FirstRun(model, beside, 0).restored():
                if interleaves(model):
                    trust.modes.clear()
                    raise ValueError(
                        "the model has other layers now, and runs by step from now on. Call it "
                        'again, or unroll(..., by="step").'
                    )
                _compared(model, beside, 0, from_rest, reset, None, trust)
    else:
        with trust.lock:
            y, run = _compared(model, inputs, checked, from_rest, reset, recorder, trust)
    return y, {} if recorder is None else recorder.result(inputs.steps), run


def _is_observed(inputs: Inputs) -> bool:
    leaves = pytree.tree_leaves(inputs.tensors)
    return observed_by(leaves) is not None or any(x.is_meta for x in leaves)


def _mode(model: nn.Module, run: Pass) -> tuple[Any, ...]:
    """Return in which modes a pass by layer has met which layers, in their order."""
    return (model.training, *run.entries, *map(_training_of, run.entries.values()))


_training_of = operator.attrgetter("module.training")


def _compared(
    model: nn.Module,
    inputs: Inputs,
    checked: int,
    from_rest: bool,
    reset: Restarts | None,
    recorder: Recorder | None,
    trust: Trust,
) -> tuple[Any, Pass]:
    """Call the model once on all steps, and compare with its first steps."""
    check_supported(modules_of(model, closed=Recurrent))
    trust.products = None  # the modules may be others
    first = FirstRun(model, inputs, checked or STEPS)
    run = RecordingPass(
        first.steps, inputs.steps, folded=True, from_rest=from_rest, reset=reset, recorder=recorder
    )
    try:
        with first.observed():
            y = _by_layer(model, inputs, run, trust)
            exact = first.compare(run, pytree.tree_leaves(y))
    except BaseException:
        first.before.restore()
        raise
    if not exact:
        _log.info("tt.unroll: the model is random, and its values were not compared.")
    trust.met.add(_mode(model, run))
    trust.modes.add(model.training)
    return y, run


def _by_layer(model: nn.Module, inputs: Inputs, run: Pass, trust: Trust | None) -> Any:
    """Call the model on all steps, folded into the batch, in which products choose events."""
    T, B = inputs.steps, inputs.batch
    x: Any = inputs.tensors
    forward: Any = model
    products: EventProducts | None = None
    if trust is not None:
        products = trust.products
        if products is None:
            modules = [module for _, module in modules_of(model, closed=Recurrent)]
            products = trust.products = EventProducts(modules)
    if type(x) is Tensor and not inputs.static and x.is_contiguous():  # most often
        x = x.view((T * B, *x.shape[2:]))
    else:
        # before products choose, by a forward in the instance, as a user's own is
        repeated = inputs.repeated() if inputs.static or trust is not None else None
        once, rest = ([], []) if repeated is None else split_static(model)
        forward, x = partial(call, model), inputs.folded() if not once else repeated
        if once:
            forward = partial(_prefix_once, T, once, rest)
    if products is None or not products.candidates:
        y = run.call(forward, x)
    else:
        try:
            products.enter(run)
            y = run.call(forward, x)
        finally:
            products.leave(run)
    if type(y) is Tensor and y.ndim and y.shape[0] == T * B:
        return y.view((T, B, *y.shape[1:]))
    return pytree.tree_map(lambda leaf: _unfolded(leaf, T, B), y)


def _prefix_once(steps: int, once: list[nn.Module], rest: list[nn.Module], y: Tensor) -> Any:
    """Call the modules of a prefix on one step, and the rest on all of them."""
    for module in once:
        y = module(y)
    y = y.expand(steps, *y.shape).flatten(0, 1)
    for module in rest:
        y = module(y)
    return y


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
    with refused_one_step(model):
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
