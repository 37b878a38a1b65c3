"""``unroll``: run an unchanged model over a whole sequence, by layer or by step."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any, Literal, NamedTuple, overload

import torch
from torch import Tensor, nn

from tracetorch.core.checks import check_count, check_module
from tracetorch.core.hooks import forward_hooks
from tracetorch.core.thread_owner import current_turn, owned
from tracetorch.core.torch_private import pytree
from tracetorch.core.walk import Held, Walk, join_path, modules_of
from tracetorch.core.walk_memo import remembered_walk
from tracetorch.events.passes import event_passes
from tracetorch.snn.module import zero_states
from tracetorch.snn.recurrent import Recurrent
from tracetorch.snn.restarts import Restarts
from tracetorch.snn.sequence_layer import SequenceLayer
from tracetorch.snn.state_holder import StateHolder
from tracetorch.snn.stateful_layer import StateSnapshot, clear_states, running
from tracetorch.snn.stream_watch import first_nan
from tracetorch.unrolling.check import check_both_ways
from tracetorch.unrolling.inputs import Inputs, call, parse_inputs, tensors_by_name, with_reset
from tracetorch.unrolling.layer_pass import LayerPass
from tracetorch.unrolling.outside_memory import UnchangedContents
from tracetorch.unrolling.pass_facts import PassFacts, facts_of
from tracetorch.unrolling.restarts import check_restarts
from tracetorch.unrolling.segments import in_segments
from tracetorch.unrolling.static_prefix import split_static
from tracetorch.unrolling.trajectories import TrajectoryCollector
from tracetorch.unrolling.unsupported import refuse_one_step

_log = logging.getLogger("tracetorch")


@overload
def unroll(
    model: nn.Module,
    x: Any,
    *,
    steps: int | None = None,
    time_dim: int = 0,
    by: Literal["layer", "step"] = "layer",
    batched: bool = True,
    record: None = None,
    check: bool | int = False,
    segment: int | None = None,
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
    batched: bool = True,
    record: Sequence[str] | str,
    check: bool | int = False,
    segment: int | None = None,
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
    batched: bool = True,
    record: Sequence[str] | str | None = None,
    check: bool | int = False,
    segment: int | None = None,
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
    statistics over time and batch together: not the same as by step. A model that keeps something
    from step to step outside the states of its neuron layers, a memory of its own too, or reads or
    writes those in ``forward``, is refused. What no module holds (globals, class attributes,
    context variables, closures, global generators of random numbers) cannot be seen: ``check``
    finds it. By step, the model is called once per step: always right.

    Args:
        model: any ``nn.Module``.
        x: a tensor ``[T, B, ...]``, a tuple of them (``model(*x)``) or a dict (``model(**x)``).
        steps: repeat ``x``, which then has no time dimension, for so many steps. Where the model
            is an ``nn.Sequential``, what stands before its first neuron is computed once; so it is
            for an ``x`` that was expanded over time, ``x.expand(T, *x.shape)``.
        time_dim: where time is in ``x``, in the outputs and in what is recorded.
        by: ``"layer"`` or ``"step"``.
        batched: ``False``: ``x`` is ``[T, ...]``; the model is given a batch of one.
        record: state names (``"mem"``), ``"input"``, ``"output"``, or patterns of paths
            (``"cells.*.mem"``).
        check: before the run, compare both ways, and raise at the first module that differs: what
            mixes the samples of a batch, or keeps something where no module holds it, cannot be
            seen from outside. Every call of a module is repeated step by step, with the restarts of
            ``reset``, in the model's own modes; it costs several runs. ``True``: over all steps; a
            number: over so many. What was covered is logged at the level INFO.
        segment: run so many steps at a time and, until ``backward`` runs each segment once more,
            keep only the inputs and the states between them. The memory of ``T`` steps becomes
            that of ``segment`` steps and of ``T / segment`` states, for one more forward pass. A
            batch norm takes its statistics over a segment. A segment that computes something else
            when it runs again raises a ``RuntimeError`` in ``backward``.
        from_rest: start from initial states and leave none behind: for evaluation, say. The states
            that the model holds are kept and restored.
        reset: ``[T, B]`` booleans, true where a sample starts anew **before** that step, as
            ``zero_states(where=reset[t])`` does: episodes in a recurrent policy, sequences packed
            one behind the other. ``[B, T]`` where ``time_dim`` is not 0, ``[T]`` without a batch.
            No gradient goes back through a restart.

    Shape:
        Every tensor of the output has time at ``time_dim``; so has every recorded trajectory.

    Returns:
        What the model returns, over time. With ``record``: that, and a dict from
        ``"path.name"`` to the trajectory. Both are part of the graph.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: an argument is out of range; the model cannot run by layer, or keeps something
            outside its neuron layers; another thread runs it; ``check`` finds a difference; or as
            a layer does. The states, and what the modules hold, are then as before.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 3), LIF(3), nn.Linear(3, 2), Readout(2))
        >>> y, seen = unroll(net, torch.rand(10, 8, 4), record=["1.output"])
        >>> y.shape, seen["1.output"].shape
        (torch.Size([10, 8, 2]), torch.Size([10, 8, 3]))
    """
    check_module(model)
    if by not in ("layer", "step"):
        raise ValueError(f'by must be "layer" or "step", got {by!r}.')
    inputs = parse_inputs(x, steps, time_dim, batched)
    if reset is not None:
        inputs = with_reset(inputs, reset, time_dim, batched)
    arguments = _Arguments(
        model, x, inputs, time_dim, by, batched, record, check, segment, from_rest
    )
    if torch.compiler.is_compiling():
        # it follows registered modules alone, and nothing that a thread notes for itself
        found = _reachable(model)
        facts = facts_of(found)
        return _unroll(arguments, found, facts, _modules_at(facts.neurons, found))
    turn = current_turn()
    found = remembered_walk(model)
    facts = facts_of(found)
    neurons = _modules_at(facts.neurons, found)
    kept = neurons if by == "layer" else [each for each in neurons if each.states]
    if facts.memories:
        kept = [*kept, *_modules_at(facts.memories, found)]
    with owned(kept) as held:
        if not held.undisturbed_since(turn):  # the walk may have met a run
            found = remembered_walk(model)
            facts = facts_of(found)
            neurons = _modules_at(facts.neurons, found)
        return _unroll(arguments, found, facts, neurons)


class _Arguments(NamedTuple):
    """The arguments of a call of :func:`unroll`, checked, and ``x`` as :class:`Inputs` too."""

    model: nn.Module
    x: Any
    inputs: Inputs
    time_dim: int
    by: Literal["layer", "step"]
    batched: bool
    record: Sequence[str] | str | None
    check: bool | int
    segment: int | None
    from_rest: bool


def _unroll(
    arguments: _Arguments, found: Walk, facts: PassFacts, neurons: Sequence[SequenceLayer]
) -> Any:
    """Run :func:`unroll` on the neuron layers that the walk has ``found``; no other thread does."""
    model, inputs = arguments.model, arguments.inputs
    record, segment = arguments.record, arguments.segment
    walked, numbers, layers = found, facts.neurons, neurons
    _check_not_within(neurons)
    holders: Sequence[StateHolder] = neurons
    if facts.memories:
        numbers = [*numbers, *facts.memories]
        holders = _modules_at(numbers, found)
    before = StateSnapshot(holders)

    def run(part: Inputs) -> tuple[Any, dict[str, Tensor]]:
        collector = None
        if record is not None:
            paths = [walked.modules[number][0] for number in numbers]
            collector = TrajectoryCollector(record, list(zip(paths, holders, strict=True)))
        if arguments.by == "layer":
            # segments run outside of a graph that is being compiled
            known = facts if segment is None else facts_of(found)
            y = _by_layer(model, found, known, layers, part, collector, before)
        else:
            whole = [walked.modules[number] for number in facts.whole_sequence]
            y = _by_step(model, part, collector, holders, whole)
        return y, {} if collector is None else collector.result(part.steps)

    compiling = torch.compiler.is_compiling()
    outer = False if compiling else running.sequence
    if not compiling:
        running.sequence = True
    try:
        if arguments.from_rest:
            clear_states(holders) if facts.clears_plainly else zero_states(model)
        if arguments.by == "layer":
            if facts.has_recurrent:
                # what is inside runs step by step, and may be called as often as it likes
                found = _reachable(model, closed=Recurrent)
                facts = facts_of(found)
                layers = _modules_at(facts.neurons, found)
            if arguments.check is not False:
                _check(arguments, found, facts)
        if segment is None:
            y, trajectories = run(inputs)
        else:
            y, trajectories = in_segments(run, inputs, segment, _reachable(model))
        if arguments.time_dim != 0 or not arguments.batched:
            place = partial(_place_time, time_dim=arguments.time_dim, batched=arguments.batched)
            y, trajectories = pytree.tree_map(place, (y, trajectories))
    except BaseException as error:
        before.restore()
        _explain_dtype(error, model, inputs)
        _explain_shape(error, arguments.x, inputs, arguments.batched)
        raise
    finally:
        if not compiling:
            running.sequence = outer
    if not compiling and not outer and (first := first_nan(neurons)) is not None:
        goes_on = not arguments.from_rest and any(s is not None for _, _, s in before.states)
        path = walked.modules[numbers[first]][0]
        _report_nan(neurons, neurons[first], path, "stream" if goes_on else "sequence")
    if arguments.from_rest:
        before.restore()
    return y if record is None else (y, trajectories)


def _check_not_within(neurons: Sequence[SequenceLayer]) -> None:
    """Raise where a model that is unrolled by layer unrolls a part of itself."""
    for neuron in neurons:
        if neuron.layer_pass is not None:
            raise ValueError(
                f"{neuron.label()} is unrolled inside a model that is unrolled by layer itself. "
                'Use unroll(..., by="step") for the outer one.'
            )


def _check(arguments: _Arguments, found: Walk, facts: PassFacts) -> None:
    """Compare by layer with by step, over as many steps as ``check=`` says."""
    inputs, check = arguments.inputs, arguments.check
    count = inputs.steps if check is True else check_count("check", check)
    facts.check_supported(found.modules, inputs.steps)
    check_both_ways(arguments.model, inputs.first(count))


def _modules_at(numbers: Sequence[int], found: Walk) -> list[Any]:
    """Return the modules that have these numbers in a walk."""
    modules: list[nn.Module] = []
    for number in numbers:
        modules.append(found.modules[number][1])
    return modules


def _report_nan(
    neurons: Sequence[SequenceLayer], layer: SequenceLayer, path: str, within: str
) -> None:
    """Log once that a state is NaN, for a spike of it is 0, and the outputs look finite.

    Once for each model, and once more where there are gradients; where the sequence went on from
    earlier states, once until they are zeroed.
    """
    known = {each._nan_reported for each in neurons} - {""}
    trains = bool(getattr(layer, layer.states[0]).requires_grad)
    if known - {"sequence"} or (known and not trains):
        return
    for each in neurons:
        each.__dict__["_nan_reported"] = "training" if trains and within == "sequence" else within
    _log.warning(
        "%s is NaN at the end of a sequence. A neuron's spike is 0 there, so that what "
        "follows looks finite%s. tt.unroll(model, x, check=True) names where it begins. "
        "NaN in padding does no harm to outputs that a mask leaves out, but gradients of "
        "weights become NaN, for 0 * NaN is NaN: fill it, with "
        "x.masked_fill(~mask[..., None], 0).",
        join_path(path, layer.states[0]),
        ", the loss too, and one step of the optimizer makes weights NaN" if trains else "",
    )


# how PyTorch's errors call a dtype
_WORDS = {
    torch.float64: r"(?<![a-z])double",
    torch.float32: r"(?<![a-z])float(?!16)",
    torch.float16: r"(?<![a-z])half",
    torch.bfloat16: r"bfloat16",
    torch.uint8: r"(?<![a-z])byte|unsigned char",
    torch.int64: r"(?<![a-z])long",
    torch.int32: r"(?<![a-z])int(?![a-z])",
    torch.bool: r"(?<![a-z])bool",
}


def _explain_dtype(error: BaseException, model: nn.Module, inputs: Inputs) -> None:
    """Raise a better error where an input is of another dtype than the model's parameters.

    Raises:
        TypeError: so it is, and PyTorch complained of these two dtypes.
    """
    if not isinstance(error, RuntimeError):
        return
    message = str(error).partition("\n")[0].rstrip(".")
    wanted = next((p.dtype for p in model.parameters() if p.is_floating_point()), None)
    tensors = tensors_by_name(inputs.tensors)
    for name, x in tensors.items():
        if x.dtype != wanted and _complains_of(message, x.dtype, wanted, len(tensors) == 1):
            bytes_ = f", or bytes of an image by {name} / 255" if x.dtype == torch.uint8 else ""
            raise TypeError(
                f"{name} is {x.dtype}, the model's parameters are {wanted}, and the model failed: "
                f"{message}. Convert it: {name}.to({wanted}){bytes_}."
            ) from error


def _complains_of(message: str, dtype: torch.dtype, wanted: torch.dtype | None, only: bool) -> bool:
    if wanted is None:
        return False
    if "must share same datatype" in message:  # of norms, which name none
        return only
    given, needed = (re.search(_WORDS.get(each, "$^"), message.lower()) for each in (dtype, wanted))
    return given is not None and (needed is not None or "not implemented for" in message)


def _explain_shape(error: BaseException, x: Any, inputs: Inputs, batched: bool) -> None:
    """Raise a better error where a single sequence ``[T, F]`` seems to have been given.

    Raises:
        ValueError: ``x`` has two dimensions, and PyTorch did not like what the model made of it.
    """
    if not isinstance(error, (RuntimeError, ValueError, IndexError)) or not isinstance(x, Tensor):
        return
    if x.ndim == 2 and batched and not inputs.static:
        raise ValueError(
            f"x of shape {list(x.shape)} was read as T={inputs.steps} steps of a batch of "
            f"B={inputs.batch}, one number each, and the model failed: {error} One sequence "
            "[T, F]? tt.unroll(model, x, batched=False)."
        ) from error


def _place_time(leaf: Tensor, time_dim: int, batched: bool) -> Tensor:
    """Take a batch of one away again, and move time to where the input has it."""
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


def _reachable(model: nn.Module, closed: type[nn.Module] | None = None) -> Walk:
    """Walk over the model; ``torch.compile`` can follow registered modules alone."""
    if torch.compiler.is_compiling() or (closed is not None and isinstance(model, closed)):
        return Walk(modules_of(model, closed=closed), [], Held([], []), {})
    return remembered_walk(model, closed=closed)


def _by_layer(
    model: nn.Module,
    found: Walk,
    facts: PassFacts,
    layers: Sequence[SequenceLayer],
    inputs: Inputs,
    collector: TrajectoryCollector | None,
    states: StateSnapshot,
) -> Any:
    """Call the model once on all steps, folded into the batch."""
    if facts.may_be_unsupported:
        facts.check_supported(found.modules, inputs.steps)
    if inputs.reset is not None:
        check_restarts(found)
    T, B = inputs.steps, inputs.batch
    products = _modules_at(facts.products, found) if facts.products else []
    repeated = None if torch.compiler.is_compiling() and not inputs.static else inputs.repeated()
    prefix, rest = ([], []) if repeated is None else split_static(model)
    reset = None if inputs.reset is None else Restarts(inputs.reset)
    layer_pass = LayerPass(layers, T, collector, facts.has_compiled, reset)
    events = event_passes(products) if products else nullcontext()
    # With a single step nothing is kept from step to step. torch.compile cannot compare, nor can
    # what it leaves to Python at a break of its graph, with the facts that it concluded.
    compares = T > 1 and facts.compares_contents and not torch.compiler.is_compiling()
    with layer_pass, UnchangedContents(found, facts, states) if compares else nullcontext(), events:
        if prefix and repeated is not None:
            # every step sees the same input: what comes before the first neuron runs once
            y: Any = repeated
            for module in prefix:
                y = module(y)
            y = y.expand(T, *y.shape).flatten(0, 1)
            for module in rest:
                y = module(y)
        else:
            y = call(model, inputs.folded())
    if type(y) is Tensor:  # most models return a single tensor
        return _unfolded(y, T, B)
    return pytree.tree_map(lambda leaf: _unfolded(leaf, T, B), y)


def _unfolded(leaf: object, T: int, B: int) -> Tensor:
    if not isinstance(leaf, Tensor) or leaf.ndim == 0 or leaf.shape[0] != T * B:
        got = f"shape {list(leaf.shape)}" if isinstance(leaf, Tensor) else type(leaf).__name__
        raise ValueError(
            f"by layer every output must be a tensor that begins with time and batch, {T} * "
            f'{B} = {T * B}; the model gave {got}. Use unroll(..., by="step").'
        )
    return leaf.view((T, B, *leaf.shape[1:]))


def _by_step(
    model: nn.Module,
    inputs: Inputs,
    collector: TrajectoryCollector | None,
    layers: Sequence[StateHolder],
    whole_sequence: Sequence[tuple[str, nn.Module]],
) -> Any:
    """Call the model once per step."""
    outputs: list[list[Any]] = []
    spec = pytree.tree_structure(None)
    refused = [(module, refuse_one_step(path)) for path, module in whole_sequence]
    checked = bool(refused) and not torch.compiler.is_compiling()
    with (
        forward_hooks(earliest=refused) if checked else nullcontext(),
        nullcontext() if collector is None else collector.listening(layers),
    ):
        reset = None if inputs.reset is None else Restarts(inputs.reset)
        for t, step in enumerate(inputs.each_step()):
            if reset is not None and reset.steps[t]:
                zero_states(model, where=reset.mask[t])
            leaves, spec = pytree.tree_flatten(call(model, step))
            outputs.append(leaves)
            if collector is not None:
                collector.after_step(layers)
    for leaf in outputs[0]:
        if not isinstance(leaf, Tensor):
            raise TypeError(f"every output must be a tensor, the model gave {type(leaf).__name__}.")
    stacked = [torch.stack(column) for column in zip(*outputs, strict=True)]
    return pytree.tree_unflatten(stacked, spec)
