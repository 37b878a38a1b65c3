"""Refuse, by name, modules of which a first run by step would not show what is wrong."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from tracetorch.core.hooks import KwargsPreHook
from tracetorch.snn.sequence_layer import SequenceLayer

# Base classes of other libraries' neurons, which keep their membranes themselves: silent in the
# first steps, they show nothing.
_FOREIGN_NEURONS = {
    "snntorch": "SpikingNeuron",
    "spikingjelly": "MemoryModule",
    "sinabs": "StatefulLayer",
}
# Engines that compute gradients per sample, and their classes that do not.
_PER_SAMPLE = {"opacus": (("AbstractGradSampleModule",), ("GradSampleModuleNoOp",))}


def check_supported(modules: Iterable[tuple[str, nn.Module]]) -> None:
    """Raise where a module cannot run by layer, whatever its values are."""
    for path, module in modules:
        label = f"{path or 'the model'} ({type(module).__name__})"
        if isinstance(module, nn.RNNBase):
            raise ValueError(
                f"{label} keeps a memory of its own: it cannot run by layer. {_whole(module)}"
            )
        reason = _reason(module)
        if reason is not None:
            raise ValueError(
                f'{label} {reason}: it cannot run by layer. Use unroll(..., by="step").'
            )


def _reason(module: nn.Module) -> str | None:
    """Return why a module cannot run by layer, or ``None``."""
    kind: Any = type(module)
    for base in kind.__mro__:
        library = base.__module__.partition(".")[0]
        if base.__name__ == _FOREIGN_NEURONS.get(library):
            return f"is a neuron of {library}, which keeps its state from step to step"
    if isinstance(module, SequenceLayer):
        # an override of the step alone would never be called
        step = next(base for base in kind.__mro__ if "forward_step" in vars(base))
        sequence = next(base for base in kind.__mro__ if "forward_sequence" in vars(base))
        if step is not sequence and issubclass(step, sequence):
            return "overrides forward_step, and not forward_sequence, which runs all steps"
    if module.training and torch.is_grad_enabled() and computes_per_sample(kind):
        return "computes gradients per sample, and by layer every time step would be one"
    return None


def computes_per_sample(kind: Any) -> bool:
    """Whether modules of a class belong to an engine that computes gradients per sample."""
    for base in kind.__mro__:
        engines, others = _PER_SAMPLE.get(base.__module__.partition(".")[0], ((), ()))
        if base.__name__ in others:
            return False
        if base.__name__ in engines:
            return True
    return False


def _whole(module: nn.RNNBase) -> str:
    """Say how to run a layer of PyTorch's that takes a whole sequence in one call."""
    kind = next(k for k in (nn.GRU, nn.LSTM, nn.RNN, nn.RNNBase) if isinstance(module, k))
    cell = "a cell" if kind is nn.RNNBase else f"nn.{kind.__name__}Cell"
    return (
        "By step, a batch [B, F] would be one sequence to it. Call it on the whole sequence, "
        f"outside of unroll, or use {cell} with a memory: self.memory."
    )


def refuse_one_step(path: str) -> KwargsPreHook:
    """Return a hook that raises where an ``nn.RNNBase`` takes the batch of a step for a sequence.

    A call with three dimensions has a time of its own, inside the step.
    """

    def hook(module: nn.RNNBase, args: Any, kwargs: Any) -> None:
        x = args[0] if args else kwargs.get("input")
        if isinstance(x, Tensor) and x.ndim == 2:
            label = f"{path or 'the model'} ({type(module).__name__})"
            raise ValueError(f"{label} keeps a memory of its own. {_whole(module)}")

    return hook
