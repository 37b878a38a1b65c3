"""Run a long sequence in segments that the backward pass computes again (``segment=``).

A segment is a function of its inputs and of the states before it, by PyTorch's non-reentrant
checkpointing. When backward runs it again, parameters, buffers and modes are those of then. What
else a model keeps is not restored: outputs and states are compared with those of the first run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import pairwise
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop

from tracetorch.core.checks import check_count
from tracetorch.core.torch_private import exclude_from_compile, functorch_active, pytree, version_of
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
_Versioned: TypeAlias = list[tuple[Tensor, int | None]]


@exclude_from_compile
def in_segments(
    run: Run, model: nn.Module, inputs: Inputs, segment: int | str, whole: Pass
) -> tuple[Any, dict[str, Tensor]]:
    """Return outputs and trajectories; a graph keeps where segments start, and all of the last."""
    if segment == "auto":
        # memory is least about the root, and flat there; fewer segments take less time
        segment = 4 * math.isqrt(inputs.steps)
    length = check_count("segment", segment)
    modules = [module for _, module in modules_of(model)]
    _check_repeatable(modules)
    bounds = [*pairwise([*range(0, inputs.steps, length), inputs.steps])]
    *parts, last = inputs.split([stop - start for start, stop in bounds])
    segments, results = [], []
    for part, (start, stop) in zip(parts, bounds, strict=False):
        each = _Segment(run, part, modules, whole, start, stop)
        segments.append(each)
        results.append(each.run_first())
    y, trajectories, inner = whole.call(run, last, from_rest=False)
    inner.commit()
    results.append((y, trajectories))
    leaves, specs = zip(*map(pytree.tree_flatten, results), strict=True)
    joined = [torch.cat(parts) for parts in zip(*leaves, strict=True)]
    for each in segments:
        each.outputs = [(y.detach()[each.start : each.stop], version_of(y)) for y in joined]
    found: tuple[Any, dict[str, Tensor]] = pytree.tree_unflatten(joined, specs[0])
    return found


def _check_repeatable(modules: Sequence[nn.Module]) -> None:
    """Raise where a segment cannot run again inside ``backward``."""
    once = (ExtraStates, DistributedDataParallel)
    kind = next((type(m).__name__ for m in modules if isinstance(m, once)), None)
    if torch.is_grad_enabled() and functorch_active():
        kind = "a transform of torch.func"
    if kind is not None:
        raise ValueError(
            f"segment= calls the model again inside backward(), which {kind} does not allow: leave "
            "it out, or wrap a module whose forward unrolls in segments."
        )


class _Segment:
    """Steps ``start`` to ``stop``, as a function of inputs and of the states before them."""

    def __init__(
        self,
        run: Run,
        part: Inputs,
        modules: Sequence[nn.Module],
        whole: Pass,
        start: int,
        stop: int,
    ) -> None:
        self.run, self.part, self.start, self.stop = run, part, start, stop
        self.leaves, self.spec = pytree.tree_flatten(part.tensors)
        self.before, self.first = whole, True
        """The pass that it starts from, and whether it has not run yet."""
        self.ran: list[Pass] = []
        self.failed: list[BaseException] = []
        self.outputs: _Versioned = []
        self.ends: _Versioned = []
        """What it gave, and the states behind it."""
        # what torch.jit has compiled cannot be given other tensors
        modules = [m for m in modules if not isinstance(m, torch.jit.ScriptModule)]
        watched: list[Tensor] = [p for m in modules for p in m.parameters(recurse=False)]
        for module in modules:
            if isinstance(module, SequenceLayer):  # frozen parameters
                watched += module.buffers(recurse=False)
        self.watched = [(t, _kind_of(t), t.requires_grad) for t in watched]
        self.then: list[tuple[Any, ...]] = []
        if torch.is_grad_enabled():  # else nothing will run again
            self.then = [(m, _plain(m), _copied(m._buffers), m.training) for m in modules]
        # backward on a GPU runs in a thread of autograd's own, which sees no request of this one
        self.backend_name, self.mode_name = requested_backend(), requested_mode()

    def run_first(self) -> tuple[Any, dict[str, Tensor]]:
        """Run so that the graph keeps only what it started from; return outputs, trajectories."""
        # to the end, not to the last tensor that backward needs: the outputs are compared
        with set_checkpoint_early_stop(False):
            result, ends = checkpoint(self._steps, *self.leaves, use_reentrant=False)
        if self.failed:
            raise self.failed.pop()
        # what checkpointing returns is part of the graph
        values, ran = iter(ends), self.ran.pop()
        for entry in ran.entries.values():
            entry.states = {name: next(values) for name in entry.states}
        ran.commit()
        found: tuple[Any, dict[str, Tensor]] = result
        return found

    def _steps(self, *saved: Tensor) -> tuple[Any, list[Tensor | None]]:
        part = replace(self.part, tensors=pytree.tree_unflatten(list(saved), self.spec))
        if self.first:
            try:
                y, trajectories, inner = self.before.call(self.run, part, from_rest=False)
            except BaseException as error:  # through PyTorch 2.12 it would leave hooks set
                self.failed.append(error)
                return None, []
            self.ran.append(inner)
            self.before = _started(self.before, inner)
        else:
            with ExitStack() as stack:
                self._set_back(stack)
                y, trajectories, inner = self.before.call(self.run, part, from_rest=False)
        states = [s for entry in inner.entries.values() for s in entry.states.values()]
        ends = [state for state in states if state is not None]
        if self.first:
            self.first, self.ends = False, [(end.detach(), version_of(end)) for end in ends]
        else:
            self._compare([*pytree.tree_leaves((y, trajectories)), *ends])
        return (y, trajectories), states

    def _set_back(self, stack: ExitStack) -> None:
        """Give the model the tensors and modes of then, until the stack is closed."""
        if any(_kind_of(tensor) != kind for tensor, kind, _ in self.watched):
            raise RuntimeError(
                "a parameter was changed in place or moved between the forward and the backward "
                "pass of unroll(..., segment=). Call backward() before optimizer.step() and "
                "model.to(...)."
            )
        for tensor, _, learned in self.watched:
            if tensor.requires_grad is not learned:  # frozen since, or learned again
                stack.callback(tensor.requires_grad_, not learned)
                tensor.requires_grad_(learned)
        for module, parameters, buffers, training in self.then:
            now = _plain(module), dict(module._buffers), module.training
            stack.callback(_give, module, *now)
            _give(module, parameters, _copied(buffers), training)  # which the segment may write
        stack.enter_context(backend(self.backend_name))
        stack.enter_context(mode(self.mode_name))

    def _compare(self, found: Sequence[Tensor]) -> None:
        """Compare what a run again gives with the outputs and states of the first run."""
        expected = [*self.outputs, *self.ends]
        same = len(found) == len(expected)
        for value, (first, version) in zip(found, expected, strict=False):
            if version_of(first) == version:  # else whoever holds it has written to it
                # on a GPU sums may come in another order, and a spike with them
                share = 0.0 if value.is_cpu else _MOST_MOVED
                # neither dtype nor autocast may loosen what one operation gives twice
                one, other = (
                    t.double() if t.is_floating_point() else t for t in (value.detach(), first)
                )
                same &= value.shape == first.shape and is_close(one, other, share)
        if not same:
            raise RuntimeError(
                f"segment {self.start}:{self.stop} of unroll(..., segment=) computes something "
                "else when backward runs it again: the model depends on what is not restored (an "
                "attribute, a global, another generator, a hook). Hold it in a buffer, or leave "
                "segment= out."
            )


def _started(whole: Pass, inner: Pass) -> Pass:
    """Return a pass that holds what the layers of a segment started from."""
    starts = Pass()
    for key, entry in inner.entries.items():
        before = starts.entries[key] = Entry()
        before.module, before.within, before.called = entry.module, None, False
        before.states = dict(whole.states_of(entry.module))
    return starts


def _kind_of(tensor: Tensor) -> tuple[object, ...]:
    return version_of(tensor), tensor.dtype, tensor.device


def _plain(module: nn.Module) -> dict[str, Any]:
    """Return the parameters but DTensors, which FSDP puts together by itself."""
    kinds = (nn.Parameter, Tensor, type(None))
    return {n: p for n, p in module._parameters.items() if type(p) in kinds}


def _copied(buffers: dict[str, Any]) -> dict[str, Any]:
    return {n: None if b is None else b.detach().clone() for n, b in buffers.items()}


def _give(
    module: nn.Module, parameters: dict[str, Any], buffers: dict[str, Any], training: bool
) -> None:
    """Give a module other parameters, buffers and another mode: other tensors, no other values."""
    module._parameters.update(parameters)
    module._buffers.update(buffers)
    module.__dict__["training"] = training
