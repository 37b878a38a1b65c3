"""``unroll(..., segment=)``: a long sequence in segments, each run again in the backward pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils import _pytree as pytree
from torch.utils.checkpoint import checkpoint

from tracetorch.snn.neuron import Neuron
from tracetorch.unrolling.inputs import Inputs

Run: TypeAlias = Callable[[Inputs], tuple[Any, dict[str, Tensor]]]


def in_segments(
    run: Run, given: Inputs, segment: int, modules: Sequence[nn.Module]
) -> tuple[Any, dict[str, Tensor]]:
    """What ``run(given)`` gives, from runs of at most ``segment`` steps.

    Of every segment but the last, which backward needs first, the graph keeps only the inputs and
    the states at its start.

    Args:
        run: runs some steps from the states that the layers hold; outputs and trajectories.
        given: the inputs of all steps.
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
    *pieces, last = given.pieces(segment)
    results = [_rerun(run, piece, modules) for piece in pieces]
    results.append(run(last))
    leaves, specs = zip(*map(pytree.tree_flatten, results), strict=True)
    joined = [torch.cat(parts) for parts in zip(*leaves, strict=True)]
    whole: tuple[Any, dict[str, Tensor]] = pytree.tree_unflatten(joined, specs[0])
    return whole


def _rerun(run: Run, piece: Inputs, modules: Sequence[nn.Module]) -> Any:
    """``run(piece)``, of which the graph keeps what it started from."""
    names = [(m, name) for m in modules if isinstance(m, Neuron) for name in m.kept_states]
    inputs, spec = pytree.tree_flatten(piece.given)

    def steps(*held: Tensor | None) -> tuple[Any, list[Tensor]]:
        for (layer, name), state in zip(names, held[len(inputs) :], strict=True):
            setattr(layer, name, state)
        tensors = pytree.tree_unflatten(list(held[: len(inputs)]), spec)
        result = run(Inputs(tensors, piece.steps, piece.at_rest))
        return result, [getattr(layer, name) for layer, name in names]

    result, ends = checkpoint(
        steps,
        *(*inputs, *(getattr(layer, name) for layer, name in names)),
        use_reentrant=False,
        context_fn=lambda: (nullcontext(), _Again(modules)),
    )
    for (layer, name), end in zip(names, ends, strict=True):
        setattr(layer, name, end)
    return result


class _Again:
    """Around a run in the backward pass: states and statistics are those of now again after it.

    Args:
        modules: every module of the model.

    Raises:
        RuntimeError: a parameter has been changed in place since the forward pass.
    """

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self.layers = [m for m in modules if isinstance(m, Neuron)]
        self.norms = [m for m in modules if isinstance(m, nn.modules.batchnorm._NormBase)]
        parameters = [p for m in modules for p in m.parameters(recurse=False)]
        self.versions = [(p, p._version) for p in parameters]

    def __enter__(self) -> None:
        if any(p._version != version for p, version in self.versions):
            raise RuntimeError(
                "a parameter was changed in place between the forward and the backward pass of "
                "unroll(..., segment=): a segment run again would not be the one that was run. Call "
                "backward() before optimizer.step()."
            )
        self.states = [(m, name, getattr(m, name)) for m in self.layers for name in m.kept_states]
        self.buffers = [(norm, dict(norm._buffers)) for norm in self.norms]
        for layer in self.layers:
            layer.states_were_set()
        for norm, buffers in self.buffers:  # running statistics count a segment once
            norm._buffers.update({n: b if b is None else b.clone() for n, b in buffers.items()})

    def __exit__(self, *_: object) -> None:
        for layer, name, state in self.states:
            setattr(layer, name, state)
        for norm, buffers in self.buffers:
            norm._buffers.update(buffers)


# as torch.compiler.disable, but without importing the compiler before it is used
in_segments = torch._disable_dynamo(in_segments)  # type: ignore[attr-defined]
