"""Run a long sequence in segments that the backward pass computes again (``segment=``)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from tracetorch.core.torch_private import (
    BatchNormBase,
    exclude_from_compile,
    functorch_active,
    pytree,
)
from tracetorch.snn.neuron import Neuron
from tracetorch.snn.states import StateSnapshot
from tracetorch.unrolling.inputs import Inputs

Run: TypeAlias = Callable[[Inputs], tuple[Any, dict[str, Tensor]]]


def in_segments(
    run: Run, inputs: Inputs, segment: int, modules: Sequence[nn.Module]
) -> tuple[Any, dict[str, Tensor]]:
    """Return ``run(inputs)`` from runs of at most ``segment`` steps.

    Of every segment but the last, which backward needs first, the graph keeps only the inputs and
    the states at its start.

    Args:
        run: runs some steps from the states that the layers hold; outputs and trajectories.
        inputs: the inputs of all steps.
        segment: steps of a segment.
        modules: every module of the model.

    Raises:
        TypeError: ``segment`` is not an integer, or an output is not a tensor.
        ValueError: ``segment`` is not positive, or the model cannot be called in a backward pass.
    """
    if isinstance(segment, bool) or not isinstance(segment, int):
        raise TypeError(f"segment must be an integer, got {segment!r}.")
    if segment < 1:
        raise ValueError(f"segment must be at least 1, got {segment}.")
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
    *parts, last = inputs.split(segment)
    replay = _SegmentReplay(modules)
    results = [_rerun(run, part, replay) for part in parts]
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

    Args:
        modules: every module of the model.

    Raises:
        RuntimeError: a parameter, or a frozen one of a neuron layer, has been changed in
            place since the forward pass.
    """

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self.modules = modules
        self.layers = [m for m in modules if isinstance(m, Neuron)]
        # functional_call puts others in their place, for the time of the forward pass
        self.then = [_plain_tensors(m) for m in modules]
        self.training = [m.training for m in modules]
        watched: list[Tensor] = [p for m in modules for p in m.parameters(recurse=False)]
        watched += [b for m in self.layers for b in m.buffers(recurse=False)]  # frozen parameters
        self.versions = [(p, p._version) for p in watched]

    def __enter__(self) -> None:
        if any(p._version != version for p, version in self.versions):
            raise RuntimeError(
                "a parameter was changed in place between the forward and the backward pass of "
                "unroll(..., segment=): a segment that runs again would give other values. Call "
                "backward() before optimizer.step()."
            )
        self.before = StateSnapshot(self.layers)
        self.now = [_plain_tensors(m) for m in self.modules]
        self.modes = [m.training for m in self.modules]
        for layer in self.layers:
            layer.mark_states_current()
        _set_modes(self.modules, self.training)
        for module, (parameters, buffers) in zip(self.modules, self.then, strict=True):
            if isinstance(module, BatchNormBase):
                # running statistics count a segment once
                buffers = {name: buffer.clone() for name, buffer in buffers.items()}
            module._parameters.update(parameters)
            module._buffers.update(buffers)

    def __exit__(self, *_: object) -> None:
        self.before.restore()
        _set_modes(self.modules, self.modes)
        for module, (parameters, buffers) in zip(self.modules, self.now, strict=True):
            module._parameters.update(parameters)
            module._buffers.update(buffers)


def _set_modes(modules: Sequence[nn.Module], training: Sequence[bool]) -> None:
    for module, mode in zip(modules, training, strict=True):
        module.training = mode


def _plain_tensors(module: nn.Module) -> tuple[dict[str, nn.Parameter], dict[str, Tensor]]:
    """Parameters and buffers but those that FSDP has sharded and puts together for each call."""
    parameters = {
        name: p for name, p in module._parameters.items() if p is not None and _is_plain(p)
    }
    buffers = {name: b for name, b in module._buffers.items() if b is not None and _is_plain(b)}
    return parameters, buffers


def _is_plain(tensor: Tensor) -> bool:
    return type(tensor) is Tensor or type(tensor) is nn.Parameter


in_segments = exclude_from_compile(in_segments)
