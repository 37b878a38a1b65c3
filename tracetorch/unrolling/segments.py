"""Run a long sequence in segments that the backward pass computes again (``segment=``)."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from tracetorch.core.checks import check_count
from tracetorch.core.snapshot import ModelSnapshot
from tracetorch.core.torch_private import (
    exclude_from_compile,
    functorch_active,
    pytree,
)
from tracetorch.core.walk import Walk
from tracetorch.events import mode, requested_mode
from tracetorch.fuse import backend, requested_backend
from tracetorch.snn.neuron import Neuron
from tracetorch.snn.states import ExtraStates
from tracetorch.unrolling.inputs import Inputs

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
    results = [_rerun(run, part, _SegmentReplay(found)) for part in parts]
    results.append(run(last))
    leaves, specs = zip(*map(pytree.tree_flatten, results), strict=True)
    joined = [torch.cat(parts) for parts in zip(*leaves, strict=True)]
    whole: tuple[Any, dict[str, Tensor]] = pytree.tree_unflatten(joined, specs[0])
    return whole


def _rerun(run: Run, part: Inputs, replay: _SegmentReplay) -> Any:
    """Run a part so that the graph keeps only what it started from."""
    names = [(layer, name) for layer in replay.layers for name in layer.active_states]
    leaves, spec = pytree.tree_flatten(part.tensors)

    def steps(*saved: Tensor | None) -> tuple[Any, list[Tensor]]:
        for (layer, name), state in zip(names, saved[len(leaves) :], strict=True):
            setattr(layer, name, state)
        tensors = pytree.tree_unflatten(list(saved[: len(leaves)]), spec)
        result = run(replace(part, tensors=tensors))
        return result, [getattr(layer, name) for layer, name in names]

    result, ends = checkpoint(
        steps,
        *(*leaves, *(getattr(layer, name) for layer, name in names)),
        use_reentrant=False,
        context_fn=lambda: (nullcontext(), replay),
    )
    for (layer, name), end in zip(names, ends, strict=True):
        setattr(layer, name, end)
    return result


class _SegmentReplay:
    """Restore the model of the forward pass while a segment runs again, then that of now.

    So what a model keeps outside its neurons, counters, buffers and lists, is in each segment what
    it was in the forward pass, and no segment counts twice.

    Args:
        found: the walk over the model.

    Raises:
        RuntimeError: a parameter, or a frozen one of a neuron layer, has been changed in
            place since the forward pass.
    """

    def __init__(self, found: Walk) -> None:
        self.found = found
        self.layers = [m for _, m in found.modules if isinstance(m, Neuron)]
        watched: list[Tensor] = [p for _, m in found.modules for p in m.parameters(recurse=False)]
        watched += [b for m in self.layers for b in m.buffers(recurse=False)]  # frozen parameters
        self.versions = [(p, p._version) for p in watched]
        self.then = ModelSnapshot(found, clone=True)
        # backward on a GPU runs in a thread of autograd's own, which sees no request of this one
        self.backend_name, self.mode_name = requested_backend(), requested_mode()

    def __enter__(self) -> None:
        if any(p._version != version for p, version in self.versions):
            raise RuntimeError(
                "a parameter was changed in place between the forward and the backward pass of "
                "unroll(..., segment=): a segment that runs again would give other values. Call "
                "backward() before optimizer.step()."
            )
        # not cloned: the segment works on the clones, and leaves the tensors of now alone
        self.now = ModelSnapshot(self.found)
        self.backend, self.mode = backend(self.backend_name), mode(self.mode_name)
        self.backend.__enter__()
        self.mode.__enter__()
        self.then.restore()
        for layer in self.layers:
            layer.mark_states_current()

    def __exit__(self, *_: object) -> None:
        self.mode.__exit__(None, None, None)
        self.backend.__exit__(None, None, None)
        self.now.restore()
