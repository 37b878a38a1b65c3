"""Run a long sequence in segments that the backward pass computes again (``segment=``).

A segment is a function of its inputs and of the states before it, by PyTorch's non-reentrant
checkpointing. When backward runs it again, a pass of its own starts from the states of then;
parameters, buffers and modes of the modules are those of then, and afterwards those of now. So a
batch norm counts a segment once. What else a model keeps, in attributes of its own or in globals,
is not restored: outputs and states are compared with those of the first run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from itertools import pairwise, zip_longest
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop

from tracetorch.core.checks import check_count
from tracetorch.core.torch_private import (
    exclude_from_compile,
    functorch_active,
    pytree,
    version_of,
    versions_of,
)
from tracetorch.core.walk import modules_of
from tracetorch.events import mode, requested_mode
from tracetorch.fuse import backend, requested_backend
from tracetorch.snn.passes import Entry, Pass
from tracetorch.snn.sequence_layer import SequenceLayer
from tracetorch.snn.states import ExtraStates
from tracetorch.unrolling.first_run import is_close
from tracetorch.unrolling.inputs import Inputs

_MOST_MOVED = 0.01  # share of values that rounding may move where sums have no fixed order

Run: TypeAlias = Callable[..., tuple[Any, dict[str, Tensor], Pass]]


@exclude_from_compile
def in_segments(
    run: Run, model: nn.Module, inputs: Inputs, segment: int | str, whole: Pass
) -> tuple[Any, dict[str, Tensor]]:
    """Return outputs and trajectories of all steps, from runs of at most ``segment`` steps.

    Of every segment but the last, which backward needs first, the graph keeps only the inputs and
    the states at its start.
    """
    if isinstance(segment, str):
        if segment != "auto":
            raise ValueError(f'segment must be a number of steps or "auto", got {segment!r}.')
        # memory is least about the root, and flat there; fewer segments take less time
        segment = 4 * math.isqrt(inputs.steps)
    length = check_count("segment", segment)
    modules = [module for _, module in modules_of(model)]
    _check_repeatable(modules)
    stops = [*range(0, inputs.steps, length), inputs.steps]
    parts = inputs.split([b - a for a, b in pairwise(stops)])
    replays = [_Replay(modules, start, stop) for start, stop in pairwise(stops[:-1])]
    results = [
        _within(run, part, whole) if each is None else _checkpointed(run, part, each, whole)
        for part, each in zip_longest(parts, replays)
    ]
    leaves, specs = zip(*map(pytree.tree_flatten, results), strict=True)
    joined = [torch.cat(parts) for parts in zip(*leaves, strict=True)]
    for each in replays:
        each.expect(joined)
    y: tuple[Any, dict[str, Tensor]] = pytree.tree_unflatten(joined, specs[0])
    return y


def _check_repeatable(modules: Sequence[nn.Module]) -> None:
    """Raise where a segment cannot run again inside ``backward``."""
    if any(isinstance(module, ExtraStates) for module in modules):
        raise ValueError(
            "segment= runs a segment again inside backward(), which an online learner does not "
            "allow: its traces go on from step to step. It keeps no graph of earlier steps, so "
            "leave segment= out."
        )
    if any(isinstance(module, DistributedDataParallel) for module in modules):
        raise ValueError(
            "segment= calls the model again inside backward(), which DistributedDataParallel does "
            "not allow. Wrap a module whose forward unrolls in segments, and call that."
        )
    if torch.is_grad_enabled() and functorch_active():
        raise ValueError(
            "segment= does not work in torch.func transforms, which cannot run a segment again. "
            "Leave it out there."
        )


def _within(run: Run, part: Inputs, whole: Pass) -> Any:
    """Run a part from the states of the pass of all steps, and commit it to that."""
    y, trajectories, inner = whole.call(run, part, from_rest=False)
    inner.commit()
    return y, trajectories


def _checkpointed(run: Run, part: Inputs, replay: _Replay, whole: Pass) -> Any:
    """Run a part so that the graph keeps only what it started from."""
    leaves, spec = pytree.tree_flatten(part.tensors)
    # what the layers of the part start from, known when it has run once
    starts: Pass | None = None
    ran: list[Pass] = []  # of the first run
    failed: list[BaseException] = []

    def steps(*saved: Tensor) -> tuple[Any, list[Tensor | None]]:
        nonlocal starts
        now = replace(part, tensors=pytree.tree_unflatten(list(saved), spec))
        before = starts if starts is not None else whole
        try:
            y, trajectories, inner = before.call(run, now, from_rest=False)
        except BaseException as error:
            if starts is not None:
                raise
            failed.append(error)  # through checkpoint of PyTorch 2.12 it would leave its hooks set
            return None, []
        ends = [s for each in inner.entries.values() for s in each.states.values()]
        replay.compare(pytree.tree_leaves((y, trajectories)), ends)
        if starts is None:
            starts = _started(whole, inner)
            ran.append(inner)
        return (y, trajectories), ends

    # to the end, not to the last tensor that backward needs: the outputs are compared
    replay.begin()
    with set_checkpoint_early_stop(False):
        result, ends = checkpoint(
            steps, *leaves, use_reentrant=False, context_fn=lambda: (nullcontext(), replay)
        )
    if failed:
        raise failed.pop()
    # what checkpointing returns is part of the graph
    values = iter(ends)
    for inner in ran:
        for entry in inner.entries.values():
            entry.states = {name: next(values) for name in entry.states}
        inner.commit()
    return result


def _started(whole: Pass, inner: Pass) -> Pass:
    """Return a pass that holds what the layers of a segment started from."""
    starts = Pass()
    for key, entry in inner.entries.items():
        before = starts.entries[key] = Entry()
        before.module, before.within, before.called = entry.module, None, False
        before.states = dict(whole.states_of(entry.module))
    return starts


class _Replay:
    """Restore the model of the forward pass while a segment runs again, then that of now.

    Parameters, also those that ``functional_call`` had put in, buffers and modes are in each
    segment what they were in the forward pass. What the segment computes is compared with its
    first run.
    """

    def __init__(self, modules: Sequence[nn.Module], start: int, stop: int) -> None:
        # what torch.jit has compiled cannot be given other tensors
        self.modules = [m for m in modules if not isinstance(m, torch.jit.ScriptModule)]
        self.start, self.stop = start, stop
        self.name = f"segment {start}:{stop}"
        self.expected: list[tuple[Tensor, int | None]] = []
        self.ends: list[tuple[Tensor, int | None]] | None = None
        # backward on a GPU runs in a thread of autograd's own, which sees no request of this one
        self.backend_name, self.mode_name = requested_backend(), requested_mode()

    def begin(self) -> None:
        """Note what the modules are before the segment runs for the first time."""
        self.watched: list[Tensor] = []
        for module in self.modules:
            self.watched += module.parameters(recurse=False)
            if isinstance(module, SequenceLayer):  # frozen parameters
                self.watched += module.buffers(recurse=False)
        self.versions = versions_of(self.watched)
        self.kinds = [(each.dtype, each.device) for each in self.watched]
        self.learned = [each.requires_grad for each in self.watched]
        if torch.is_grad_enabled():  # else nothing will run again
            self.then = [_tensors_of(module, copied=True) for module in self.modules]

    def expect(self, outputs: Sequence[Tensor]) -> None:
        """Note the outputs of all segments, of which it compares its own."""
        self.expected = [(y.detach()[self.start : self.stop], version_of(y)) for y in outputs]

    def compare(self, outputs: Sequence[Tensor], states: Sequence[Tensor | None]) -> None:
        """Compare what a run again gives with the outputs and states of the first run."""
        ends = [state for state in states if state is not None]
        if self.ends is None:  # this is the first run
            self.ends = [(end.detach(), version_of(end)) for end in ends]
            return
        found, expected = (*outputs, *ends), (*self.expected, *self.ends)
        if len(found) != len(expected) or not all(map(_agrees, found, expected)):
            raise RuntimeError(
                f"{self.name} of unroll(..., segment=) computes something else when backward runs "
                "it again than in the forward pass, so its gradients would be wrong: the model "
                "depends on something that is not restored, an attribute, a global variable, a "
                "closure, a file or another random generator. Hold it in a buffer, or leave "
                "segment= out. Or a hook was registered or removed since: do that behind "
                "backward()."
            )

    def __enter__(self) -> None:
        kinds = [(each.dtype, each.device) for each in self.watched]
        if kinds != self.kinds or versions_of(self.watched) != self.versions:
            raise RuntimeError(
                "a parameter was changed in place between the forward and the backward pass of "
                "unroll(..., segment=), or moved: a segment that runs again would give other "
                "values. Call backward() before optimizer.step() and model.to(...)."
            )
        with ExitStack() as stack:
            for tensor, learned in zip(self.watched, self.learned, strict=True):
                if tensor.requires_grad is not learned:  # frozen since, or learned again
                    stack.callback(tensor.requires_grad_, not learned)
                    tensor.requires_grad_(learned)
            for module, then in zip(self.modules, self.then, strict=True):
                stack.callback(_exchange, module, _tensors_of(module, copied=False))
                # copies, once more: the segment may write into them
                _exchange(module, (then[0], _copied(then[1]), then[2]))
            stack.enter_context(backend(self.backend_name))
            stack.enter_context(mode(self.mode_name))
            self.stack = stack.pop_all()

    def __exit__(self, *_: object) -> None:
        self.stack.close()


_PLAIN = (nn.Parameter, Tensor, type(None))  # what functional_call puts in is no Parameter

_ModuleTensors: TypeAlias = tuple[dict[str, Any], dict[str, Any], bool]


def _tensors_of(module: nn.Module, *, copied: bool) -> _ModuleTensors:
    """Return parameters, buffers and mode of a module.

    Without those of other classes of tensors, DTensor: FSDP puts its parameters together by itself.
    """
    parameters = {n: p for n, p in module._parameters.items() if type(p) in _PLAIN}
    buffers = dict(module._buffers)
    return parameters, _copied(buffers) if copied else buffers, module.training


def _copied(buffers: dict[str, Any]) -> dict[str, Any]:
    return {n: None if b is None else b.detach().clone() for n, b in buffers.items()}


def _exchange(module: nn.Module, tensors: _ModuleTensors) -> None:
    """Give a module other parameters, buffers and another mode: other tensors, no other values."""
    parameters, buffers, training = tensors
    module._parameters.update(parameters)
    module._buffers.update(buffers)
    module.__dict__["training"] = training


def _agrees(found: Tensor, expected: tuple[Tensor, int | None]) -> bool:
    """Whether a run again gives what the first one gave, to rounding."""
    first, version = expected
    if version_of(first) != version:  # by whoever holds it: it can tell nothing any more
        return True
    # on a GPU sums may come in another order, and a spike with them
    share = 0.0 if found.is_cpu else _MOST_MOVED
    return found.shape == first.shape and is_close(found.detach(), first, share)
