"""Run a long sequence in segments that the backward pass computes again (``segment=``).

Segments. ``unroll(..., segment=)`` hands each part of a sequence, its states as arguments, to
PyTorch's non-reentrant checkpointing. When backward runs a part again, the model gets the contents
of then: attributes, buffers and containers, tensors as copies, and the parameters that
``functional_call`` had put in; and afterwards those of now. So a counter, a running norm or a batch
norm counts a part once. Arrays, files and generators, the global ones too, get their values in
place; outputs and states are compared with those of the first run, for what no module holds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from threading import get_ident
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop

from tracetorch.core.checks import check_count
from tracetorch.core.snapshot import ConsumptionWatch, Contents
from tracetorch.core.thread_owner import owned
from tracetorch.core.torch_private import (
    exclude_from_compile,
    functorch_active,
    pytree,
    version_of,
    versions_of,
)
from tracetorch.core.walk import Walk
from tracetorch.events import mode, requested_mode
from tracetorch.fuse import backend, requested_backend
from tracetorch.snn.sequence_layer import SequenceLayer
from tracetorch.snn.stateful_layer import keeps_states
from tracetorch.snn.states import ExtraStates
from tracetorch.unrolling.check import is_close
from tracetorch.unrolling.inputs import Inputs

_MOST_MOVED = 0.01  # share of values that rounding may move where sums have no fixed order

Run: TypeAlias = Callable[[Inputs], tuple[Any, dict[str, Tensor]]]


@exclude_from_compile
def in_segments(
    run: Run, inputs: Inputs, segment: int, found: Walk
) -> tuple[Any, dict[str, Tensor]]:
    """Return ``run(inputs)`` from runs of at most ``segment`` steps.

    Of every segment but the last, which backward needs first, the graph keeps only the inputs and
    the states at its start.

    Args:
        run: runs some steps from the states that the layers hold; outputs and trajectories.
        inputs: the inputs of all steps.
        segment: steps of a segment.
        found: the walk over the model.

    Raises:
        TypeError: ``segment`` is not an integer, or an output is not a tensor.
        ValueError: ``segment`` is not positive, or the model cannot be called in a backward pass.
    """
    segment = check_count("segment", segment)
    if any(isinstance(module, ExtraStates) for _, module in found.modules):
        raise ValueError(
            "segment= runs a segment again inside backward(), which an online learner does not "
            "allow: its traces go on from step to step. It keeps no graph of earlier steps, so "
            "leave segment= out."
        )
    if any(isinstance(module, DistributedDataParallel) for _, module in found.modules):
        raise ValueError(
            "segment= calls the model again inside backward(), which DistributedDataParallel does "
            "not allow. Wrap a module whose forward unrolls in segments, and call that."
        )
    if torch.is_grad_enabled() and functorch_active():
        raise ValueError(
            "segment= does not work in torch.func transforms, which cannot run a segment again. "
            "Leave it out there."
        )
    *parts, last = inputs.split(segment)
    starts = range(0, inputs.steps, segment)
    replays = [_SegmentReplay(found, start, start + segment) for start in starts[:-1]]
    results = [_rerun(run, part, each) for part, each in zip(parts, replays, strict=True)]
    results.append(run(last))
    leaves, specs = zip(*map(pytree.tree_flatten, results), strict=True)
    joined = [torch.cat(parts) for parts in zip(*leaves, strict=True)]
    for each in replays:
        each.expect(joined)
    whole: tuple[Any, dict[str, Tensor]] = pytree.tree_unflatten(joined, specs[0])
    return whole


def _rerun(run: Run, part: Inputs, replay: _SegmentReplay) -> Any:
    """Run a part so that the graph keeps only what it started from."""
    names = [(m, m.attribute_of(name)) for m in replay.holders for name in m.active_states]
    leaves, spec = pytree.tree_flatten(part.tensors)

    def steps(*saved: Tensor | None) -> tuple[Any, list[Tensor]]:
        for (layer, name), state in zip(names, saved[len(leaves) :], strict=True):
            setattr(layer, name, state)
        tensors = pytree.tree_unflatten(list(saved[: len(leaves)]), spec)
        result = run(replace(part, tensors=tensors))
        ends = [getattr(layer, name) for layer, name in names]
        replay.compare(pytree.tree_leaves(result), ends)
        return result, ends

    states = [getattr(layer, name) for layer, name in names]
    if torch.is_grad_enabled() and not torch.is_inference_mode_enabled():
        # autograd keeps no tensor that inference mode has made
        states = [s.clone() if isinstance(s, Tensor) and s.is_inference() else s for s in states]
    # to the end, not to the last tensor that backward needs: the outputs are compared
    with replay.first_run(), set_checkpoint_early_stop(False):
        result, ends = checkpoint(
            steps,
            *leaves,
            *states,
            use_reentrant=False,
            context_fn=lambda: (nullcontext(), replay),
        )
    for (layer, name), end in zip(names, ends, strict=True):
        setattr(layer, name, end)
    if any(isinstance(y, Tensor) and y.requires_grad for y in pytree.tree_leaves((result, ends))):
        replay.refuse_consumed()
    return result


class _SegmentReplay:
    """Restore the model of the forward pass while a segment runs again, then that of now.

    So what a model keeps outside its neurons, counters, buffers, lists, arrays and generators of
    random numbers, those of Python and NumPy too, is in each segment what it was in the forward
    pass, and no segment counts twice. What the segment computes is compared with its first run.

    Args:
        found: the walk over the model.
        start: the first step of the segment.
        stop: the step after its last one.

    Raises:
        RuntimeError: a parameter, or a frozen one of a neuron layer, has been changed in
            place, or moved, since the forward pass; or the segment computes something else than
            then.
    """

    def __init__(self, found: Walk, start: int, stop: int) -> None:
        self.found = found
        self.start, self.stop = start, stop
        self.name = f"segment {start}:{stop}"
        self.holders = [m for _, m in found.modules if keeps_states(m)]
        self.layers = [m for m in self.holders if isinstance(m, SequenceLayer)]
        self.consumed: list[str] = []
        self.expected: list[tuple[Tensor, int | None]] = []
        self.ends: list[tuple[Tensor, int | None]] = []
        self.thread = get_ident()
        # backward on a GPU runs in a thread of autograd's own, which sees no request of this one
        self.backend_name, self.mode_name = requested_backend(), requested_mode()

    @contextmanager
    def first_run(self) -> Iterator[None]:
        """Note the contents of the model, and what the run consumes of it."""
        watched: list[Tensor] = []
        for _, module in self.found.modules:
            watched += module.parameters(recurse=False)
        # frozen parameters
        watched += [b for m in self.layers for b in m.buffers(recurse=False)]
        self.watched, self.versions = watched, versions_of(watched)
        self.kinds = [(each.dtype, each.device) for each in watched]
        self.learned = [each.requires_grad for each in watched]
        if not torch.is_grad_enabled():  # nothing will run again
            yield
            return
        self.then = Contents(self.found, tensors="copied", values=True)
        with ConsumptionWatch(self.then) as consumption:
            yield
        self.consumed = consumption.consumed()

    def refuse_consumed(self) -> None:
        """Refuse a first run that has consumed what cannot be restored.

        Raises:
            ValueError: an iterator, or a generator, of the model has moved.
        """
        for path in self.consumed:
            raise ValueError(
                f"{path} was moved by the forward pass, and cannot be restored for the backward "
                "pass, in which segment= runs each segment again. Keep an index into a list, or a "
                "random.Random, a NumPy or torch Generator, in its place, or leave segment= out."
            )

    def expect(self, outputs: Sequence[Tensor]) -> None:
        """Note the outputs of all segments, of which it compares its own."""
        self.expected = [(y.detach()[self.start : self.stop], version_of(y)) for y in outputs]

    def compare(self, outputs: Sequence[Tensor], states: Sequence[Tensor | None]) -> None:
        """Compare what a run again gives with the outputs and states of the first run.

        Raises:
            RuntimeError: they differ.
        """
        ends = [state for state in states if state is not None]
        if not self.expected:  # this is the first run
            self.ends = [(end.detach(), version_of(end)) for end in ends]
            return
        found, expected = (*outputs, *ends), (*self.expected, *self.ends)
        if len(found) != len(expected) or not all(map(_agrees, found, expected)):
            raise RuntimeError(
                f"{self.name} of unroll(..., segment=) computes something else when backward runs "
                "it again than in the forward pass, so its gradients would be wrong: the model "
                "depends on something that cannot be restored, a global variable, a class "
                "attribute, a closure, a file or another random generator. Hold it in an "
                "attribute of a module, or leave segment= out. Or a hook was registered or removed "
                "since: do that behind backward()."
            )

    def __enter__(self) -> None:
        with ExitStack() as stack:
            # a backward pass on a GPU runs in a thread of autograd's, and this one waits for it
            stack.enter_context(owned(self.holders, waiting=self.thread))
            kinds = [(each.dtype, each.device) for each in self.watched]
            if kinds != self.kinds or versions_of(self.watched) != self.versions:
                raise RuntimeError(
                    "a parameter was changed in place between the forward and the backward pass of "
                    "unroll(..., segment=), or moved: a segment that runs again would give other "
                    "values. Call backward() before optimizer.step() and model.to(...)."
                )
            for tensor, learned in zip(self.watched, self.learned, strict=True):
                if tensor.requires_grad is not learned:  # frozen since, or learned again
                    stack.callback(tensor.requires_grad_, not learned)
                    tensor.requires_grad_(learned)
            # no copies: the segment works on those of then, and leaves the tensors of now alone
            stack.callback(Contents(self.found, values=True).restore)
            stack.enter_context(backend(self.backend_name))
            stack.enter_context(mode(self.mode_name))
            lost = self.then.restore()
            if lost:
                raise RuntimeError(
                    f"{lost[0]} cannot be restored to what it was in {self.name} of unroll(..., "
                    "segment=), which backward runs again. Leave segment= out."
                )
            for each in self.holders:
                each.mark_states_current()
            self.stack = stack.pop_all()

    def __exit__(self, *_: object) -> None:
        self.stack.close()


def _agrees(found: Tensor, expected: tuple[Tensor, int | None]) -> bool:
    """Whether a run again gives what the first one gave, to rounding."""
    first, version = expected
    if version_of(first) != version:  # by whoever holds it: it can tell nothing any more
        return True
    # on a GPU sums may come in another order, and a spike with them
    share = 0.0 if found.is_cpu else _MOST_MOVED
    return found.shape == first.shape and is_close(found.detach(), first, share)
