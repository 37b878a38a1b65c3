"""``StateHolder``: keep tensors from call to call: clear, detach, check, move and copy them.

Whatever keeps states is one: neuron layers (``StatefulLayer``), and a user's ``TTModule`` that has
declared a memory. A child says which states it has, in which attribute each is, and what each is
before the first step; all else stands here, once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from tracetorch.core.leaked_tracer import is_leaked_tracer
from tracetorch.core.spawning import kept_for_child
from tracetorch.core.torch_private import NO_BACKWARD, current_backward, graph_break, is_tracing
from tracetorch.core.walk import path_on_stack
from tracetorch.snn.traversal import TraversedModule

_FROZEN_STATE = (
    "torch.export, torch.jit.trace and make_fx would freeze the state of a neuron layer as a "
    "constant: the traced program would start every call from the same state. "
    "tt.export.step(model, sample) makes a program whose states go in and come out, "
    "tt.export.sequence one over time; or trace a module that calls zero_states() first and loops "
    "over time inside."
)


class StateHolder(TraversedModule):
    """A module that keeps states from one call to the next, or may."""

    # where the states were zeroed or set: in this trace, in this backward pass
    _zeroed_in_trace = False
    _zeroed_in_backward = NO_BACKWARD

    @property
    def active_states(self) -> tuple[str, ...]:
        """The names of the states that this module has."""
        return ()

    def attribute_of(self, state: str) -> str:
        """Return the name of the attribute that holds a state; it is ``None`` at rest."""
        return state

    def start_of(self, state: str, like: Tensor) -> Tensor:
        """Return what a state is before the first step, in the shape of a live one."""
        raise NotImplementedError(f"{type(self).__name__} has no state {state!r}.")

    def moved_state(self, state: Tensor, moved: Tensor) -> Tensor:
        """Return what a state becomes where ``.to()`` and its kin make ``moved`` of it."""
        return moved

    def state_label(self) -> str:
        """Name the module for messages, with its path in the model that is being called."""
        return layer_label(self, path_on_stack(self))

    def check_states_current(self) -> None:
        """Raise where a trace would freeze a state, or a backward pass runs a step again.

        Raises:
            RuntimeError: it would; the states were zeroed or set elsewhere.
        """
        if not self._zeroed_in_trace and is_tracing():
            if torch.compiler.is_dynamo_compiling():
                graph_break(_FROZEN_STATE)  # old versions swallow what is raised
            raise RuntimeError(_FROZEN_STATE)
        current = (NO_BACKWARD, self._zeroed_in_backward)
        if not torch.compiler.is_compiling() and current_backward() not in current:
            raise RuntimeError(
                f"{self.state_label()} is run again inside backward(), from the state it has now "
                "instead of the one it had. Activation checkpointing does so: checkpoint a "
                "function that calls zero_states() first and loops over time inside. Engines that "
                "compute gradients per sample do so too (Opacus): freeze the parameters of neuron "
                "layers, or use torch.func.vmap(torch.func.grad(...)) over a function of one "
                "sequence."
            )

    def mark_states_current(self) -> None:
        """Note that the states belong to this trace, or to the backward pass that runs this again.

        Whoever sets states from outside calls it; a step that was not reached by it raises there.
        """
        self._zeroed_in_trace = is_tracing()
        if not torch.compiler.is_compiling():
            self._zeroed_in_backward = current_backward()

    # Clearing and detaching

    def zero_own_states(self, where: Tensor | None) -> None:
        """Set the states of this very module to ``None``, or start some samples anew.

        Args:
            where: boolean mask over the batch; ``None``: all.
        """
        if where is None:
            self.mark_states_current()
        elif torch.compiler.is_dynamo_compiling():
            # whose repr of modules inside a module it cannot follow
            name = type(self).__name__ if self._modules else repr(self)
            self.check_mask_fits(lambda: name, where)
        # in eager mode past nn.Module, which would look among parameters, modules and buffers first
        assign = setattr if torch.compiler.is_compiling() else object.__setattr__
        for name in self.active_states:
            attribute = self.attribute_of(name)
            state = getattr(self, attribute)
            if where is None or state is None:
                assign(self, attribute, None)
            else:
                mask = where.to(state.device).reshape(-1, *[1] * (state.ndim - 1))
                start = self.start_of(name, state)
                setattr(self, attribute, torch.where(mask, start, state))

    def detach_own_states(self) -> None:
        """Cut the states of this very module from their graph."""
        for name in self.active_states:
            attribute = self.attribute_of(name)
            state = getattr(self, attribute)
            if state is not None and not is_leaked_tracer(state):
                setattr(self, attribute, state.detach())

    def check_mask_fits(self, label: Callable[[], str], where: Tensor) -> None:
        """Raise where the mask of ``zero_states(where=...)`` does not fit a live state.

        Args:
            label: returns the name of the module, for the message.
            where: the mask.
        """
        for name in self.active_states:
            state = getattr(self, self.attribute_of(name))
            if state is None:
                continue
            if is_leaked_tracer(state):
                raise ValueError(leaked_message(label(), name))
            self.check_state_has_batch(label, name, state)
            if len(state) != len(where):
                raise ValueError(
                    f"{label()} holds {name} for a batch of {len(state)}, shape "
                    f"{list(state.shape)}; the mask has {len(where)} entries."
                )

    def check_state_has_batch(self, label: Callable[[], str], name: str, state: Tensor) -> None:
        """Raise where dimension 0 of a state does not hold the batch."""

    # Copying and moving

    def detached_state(self, name: str, path: str = "") -> Tensor:
        """Copy a live state, detached.

        Args:
            name: of the state.
            path: path of the module, for the message.

        Raises:
            ValueError: the state is a leaked tracer of a trace or a transform that is over.
        """
        state: Tensor = getattr(self, self.attribute_of(name))
        if is_leaked_tracer(state):
            raise ValueError(leaked_message(layer_label(self, path), name))
        return state.detach().clone()

    def __getstate__(self) -> dict[str, Any]:
        attributes = self.__dict__.copy()
        for name in self.active_states:
            attribute = self.attribute_of(name)
            if attributes[attribute] is not None:
                attributes[attribute] = kept_for_child(self.detached_state(name))
        return attributes

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> StateHolder:
        """Move the states along with the parameters."""
        moved: dict[str, Tensor | None] = {}
        for name in self.active_states:
            attribute = self.attribute_of(name)
            state = getattr(self, attribute)
            if state is None or is_leaked_tracer(state):
                continue
            with _EmptyLikeDetector() as detector:
                value = fn(state)
            # to_empty() keeps no values
            moved[attribute] = None if detector.seen else self.moved_state(state, value)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for attribute in moved:
            setattr(self, attribute, moved[attribute])
        return self

    def _replicate_for_data_parallel(self) -> Any:
        if self.active_states:
            raise RuntimeError(
                f"{layer_label(self, '')}: nn.DataParallel runs copies of the model and throws "
                "their states away at every call. Use DistributedDataParallel, one process per "
                "device."
            )
        return super()._replicate_for_data_parallel()  # type: ignore[no-untyped-call]


class _EmptyLikeDetector(TorchFunctionMode):
    """Notice ``torch.empty_like``, by which ``Module.to_empty`` differs from a move."""

    seen = False

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.seen |= func is torch.empty_like
        return func(*args, **(kwargs or {}))


def layer_label(layer: object, path: str | None) -> str:
    """Name a layer for messages in one line, with its path where it is known."""
    call = repr(layer).partition("(\n")[0]  # without the modules inside
    return f"layer {path!r}, {call}," if path else call


def leaked_message(label: str, name: str) -> str:
    """Say that a state has no values any more."""
    return (
        f"{label} holds a state {name} without values, left behind by a traced or transformed "
        "call. Call zero_states()."
    )
