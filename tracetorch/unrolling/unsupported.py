"""Find modules that cannot run with time folded into the batch, and say why."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from tracetorch.core.hooks import KwargsPreHook
from tracetorch.snn.sequence_layer import SequenceLayer
from tracetorch.snn.state_holder import StateHolder
from tracetorch.snn.stateful_layer import StatefulLayer, keeps_states

# Modules that keep a memory of their own, which folding would run through time and batch alike.
_WITH_MEMORY = (nn.RNNBase, nn.RNNCellBase)
_ACROSS_DIM = (
    nn.Softmax,
    nn.Softmin,
    nn.LogSoftmax,
    nn.Softmax2d,
    nn.GLU,
    nn.CosineSimilarity,
)
# Base classes of other libraries' neurons: they keep their membranes themselves.
_FOREIGN_NEURONS = {
    "snntorch": ("SpikingNeuron",),
    "spikingjelly": ("MemoryModule",),
    "sinabs": ("StatefulLayer",),
}
# Engines that compute gradients per sample, and their classes that do not.
_PER_SAMPLE = {"opacus": (("AbstractGradSampleModule",), ("GradSampleModuleNoOp",))}
_NOT_BY_LAYER = (
    *_WITH_MEMORY,
    *_ACROSS_DIM,
    nn.MultiheadAttention,
    nn.Flatten,
    nn.Unflatten,
)


def refusal(reason: str) -> str:
    """Write why a model cannot run by layer, and what to do."""
    return f'{reason}: it cannot run by layer. Use unroll(..., by="step").'


def unsupported_reason(modules: Iterable[tuple[str, nn.Module]]) -> str | None:
    """Return why the first module that is in the way cannot run by layer, or ``None``.

    Args:
        modules: every module of the model with its path.
    """
    compiling = torch.compiler.is_compiling()  # which would trace into the cache
    for path, module in modules:
        kind: Any = type(module)
        reason = None if compiling else _reason_of_class(kind, *step_methods(kind))
        if reason is None and not asks_module(module):
            continue
        label = f"{path or 'the model'} ({type(module).__name__})"
        if reason is not None:
            return refusal(f"{label} {reason}")
        if has_memory(module):
            names = " and ".join(map(repr, module.active_states))
            return refusal(f"{label} keeps a memory of its own, {names}, from step to step")
        if isinstance(module, nn.RNNBase):
            return f"{label} keeps a memory of its own: it cannot run by layer. {_whole(module)}"
        if isinstance(module, _WITH_MEMORY):
            return refusal(f"{label} keeps a memory of its own")
        if isinstance(module, nn.MultiheadAttention) and not module.batch_first:
            return refusal(f"{label} takes dimension 0 for its sequence (batch_first=False)")
        if isinstance(module, nn.Flatten) and module.start_dim == 0:
            return refusal(f"{label} flattens the batch (start_dim=0)")
        if isinstance(module, nn.Unflatten) and module.dim == 0:
            return refusal(f"{label} splits the batch (dim=0)")
        if isinstance(module, _ACROSS_DIM) and getattr(module, "dim", None) == 0:
            return refusal(f"{label} mixes the samples of the batch (dim=0)")
    return None


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


def computes_per_sample(kind: Any) -> bool:
    """Whether modules of a class belong to an engine that computes gradients per sample."""
    for base in kind.__mro__:
        engines, others = _PER_SAMPLE.get(base.__module__.partition(".")[0], ((), ()))
        if base.__name__ in others:
            return False
        if base.__name__ in engines:
            return True
    return False


def per_sample_reason(path: str, module: nn.Module) -> str | None:
    """Return why an engine of gradients per sample cannot run by layer now, or ``None``."""
    if not (module.training and torch.is_grad_enabled()):
        return None
    return (
        f"{path or 'the model'} ({type(module).__name__}) computes gradients per sample, and by "
        "layer every time step of a sample would be one"
    )


def asks_module(module: nn.Module) -> bool:
    """Whether it takes the attributes of a module, beside its class, to say if it can run."""
    return isinstance(module, _NOT_BY_LAYER) or has_memory(module)


def has_memory(module: nn.Module) -> TypeGuard[StateHolder]:
    """Whether a module has declared a memory (``TTModule.memory``)."""
    return keeps_states(module) and not isinstance(module, StatefulLayer)


def step_methods(kind: Any) -> tuple[object, object]:
    """Return the methods of a neuron's class that run one step and all; ``None`` of another."""
    return getattr(kind, "forward_step", None), getattr(kind, "forward_sequence", None)


@lru_cache(maxsize=1024)
def _reason_of_class(kind: Any, forward_step: object, forward_sequence: object) -> str | None:
    """Return why no module of a class, with these methods, can run by layer, or ``None``."""
    for base in kind.__mro__:
        library = base.__module__.partition(".")[0]
        if base.__name__ in _FOREIGN_NEURONS.get(library, ()):
            return f"is a neuron of {library}, which keeps its state from step to step"
    if issubclass(kind, torch.jit.ScriptModule):
        return "is compiled by torch.jit, and what it keeps from step to step cannot be compared"
    if issubclass(kind, SequenceLayer):
        # an override of the step alone would never be called
        step = next(base for base in kind.__mro__ if "forward_step" in vars(base))
        sequence = next(base for base in kind.__mro__ if "forward_sequence" in vars(base))
        if step is not sequence and issubclass(step, sequence):
            return "overrides forward_step, and not forward_sequence, which runs all steps"
    return None
