"""``SequenceLayer``: a layer with states that runs one time step, or a whole sequence.

States. ``SequenceLayer.initial_state`` alone makes what a state is before the first step. A state
is a plain attribute, and in a pass its entry (``tracetorch/snn/passes.py``). They are assigned
last, all together, so a failed call changes nothing, and share no memory with output or input.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from tracetorch.cell import StateKind
from tracetorch.core.checks import suggestion
from tracetorch.core.hooks import hooked_weights
from tracetorch.core.torch_private import is_leaked_tracer
from tracetorch.snn.declarations import DeclaringLayer
from tracetorch.snn.memory import leaked_message
from tracetorch.snn.module import TTModule
from tracetorch.snn.parameters import Value, Weight, resolve_setup
from tracetorch.snn.passes import (
    WRITTEN,
    Restarts,
    State,
    ambient,
    count_step,
    in_one_commit,
    states_of,
)

# The dtype of the arithmetic, and so of the states, for each dtype of the input.
ARITHMETIC_DTYPE = {
    torch.bfloat16: torch.float32,
    torch.float16: torch.float32,
    torch.float32: torch.float32,
    torch.float64: torch.float64,
}
# what a call of a layer may change besides its states
_NOTES = (
    *("_memory_call", "_nan_reported", "_steps_run", "_zeroed_in_backward", "_zeroed_in_trace"),
    *("_sigma", "step_kwargs", "_known_plan"),
    WRITTEN,
)


class SequenceLayer(DeclaringLayer):
    """A layer that keeps states from step to step, and runs one step or a whole sequence.

    Base of :class:`Neuron` and of delays, noise, norms and dropout over time. A child declares its
    parameters, and writes :meth:`forward_step` and :meth:`forward_sequence`. A parameter reads as
    it is used, ``layer.beta``, and is set by assignment, which writes ``raw_beta`` in place.

    Args:
        num_neurons: size of the neuron dimension; at least 1.
        dim: the neuron dimension of the tensor of one step.

    Raises:
        TypeError, ValueError: ``states`` are no tuple of names that are free, or as a neuron.

    Example:
        >>> isinstance(LIF(3), SequenceLayer), isinstance(Delay(3, max_delay=2), SequenceLayer)
        (True, True)
    """

    inputs: ClassVar[tuple[str, ...]] = ("x",)
    states: ClassVar[tuple[str, ...]] = ()
    _declares_memory = False
    _state_attributes: tuple[str, ...] = ()

    _state_kind: StateKind = StateKind()  # what they are, where not shaped like the input
    _batch_leads = False  # whether the batch is in front, whatever the neuron dimension is
    _nan_reported = False  # whether a state of a model that it is in was logged to be NaN

    if TYPE_CHECKING:

        def __call__(self, x: Tensor, *further: Tensor, **named: Tensor) -> Tensor: ...

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for name in () if isinstance(cls.states, str) else cls.states:
            if not hasattr(cls, name):
                setattr(cls, name, State(name))
        cls._state_attributes = cls.states

    def __init__(self, num_neurons: int, dim: int = -1) -> None:
        super().__init__(num_neurons, dim)
        if isinstance(type(self).states, str):
            raise TypeError(
                f"{type(self).__name__}.states must be a tuple of names, got "
                f"{type(self).states!r}. A tuple of one is ({type(self).states!r},)."
            )
        for name in type(self).states:
            self._check_name(name, state=True)
            self.__dict__[name] = None

    def state(self, name: str, init: Value) -> None:
        """Declare what a state is before the first step, the buffer ``initial_<name>``.

        Args:
            name: one of ``states``.
            init: a number, or a tensor of rank 0 or 1 (one value per neuron).

        Example:
            >>> class Resting(Neuron):
            ...     states = ("v",)
            ...
            ...     def __init__(self, num_neurons):
            ...         super().__init__(num_neurons)
            ...         self.state("v", init=-65.0)
            ...
            ...     @staticmethod
            ...     def step(x, v):
            ...         return v, v + x
            >>> layer = Resting(2)
            >>> layer(torch.ones(1, 2)).tolist(), layer.v.tolist()
            ([[-65.0, -65.0]], [[-64.0, -64.0]])
        """
        if name not in type(self).states:
            raise ValueError(f"{type(self).__name__} has no state {name!r} in {self.states}.")
        self._check_name(f"initial_{name}")
        setup = resolve_setup(f"init of {name}", init, Weight(0.0, 0, False))
        self.register_buffer(f"initial_{name}", setup.raw(f"init of {name}", self.num_neurons))

    # What states there are

    @property
    def active_states(self) -> tuple[str, ...]:
        """The states this layer has; the others of ``states`` stay ``None``."""
        return self.states

    def _attribute_of(self, state: str) -> str:
        return state

    def _start_of(self, state: str, like: Tensor) -> Tensor:
        return self.initial_state(state, like.shape, like.dtype, like.device)

    def _moved_state(self, state: Tensor, moved: Tensor) -> Tensor:
        # .half() leaves the dtype of a state as it is
        kept = ARITHMETIC_DTYPE.get(moved.dtype) is moved.dtype
        return moved if kept else state.to(moved.device)

    def _check_state_has_batch(self, label: Callable[[], str], name: str, state: Tensor) -> None:
        self._check_has_batch(name, state.shape, len(self._state_kind.tail), label)

    def _check_has_batch(
        self, what: str, shape: Sequence[int], tail: int = 0, label: Callable[[], str] | None = None
    ) -> None:
        """Raise where dimension 0 of a step holds neurons, and a mask seeks the batch there."""
        if not self._batch_leads and self.dim in (0, tail - len(shape)):
            raise ValueError(
                f"{(label or self._label)()} has its neurons at dimension 0, where the mask looks "
                f"for the batch; {what} has shape {list(shape)}. Give the input a batch dimension."
            )

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in type(self).states:
            super().__setattr__(name, value)
            return
        if isinstance(value, nn.Parameter):
            raise TypeError(
                f"{name} of {self!r} is a state, and no parameter: give a tensor. What it starts "
                "from is declared by self.state(name, init=...)."
            )
        object.__setattr__(self, name, value)

    # Checks of one call

    def _check_input(self, x: object, *, sequence: bool = False) -> torch.dtype:
        """Return the dtype of the arithmetic; raise where ``x``, a step or a sequence, misfits."""
        self._check_states_current()
        if not isinstance(x, Tensor) or x.dtype not in ARITHMETIC_DTYPE:
            got = x.dtype if isinstance(x, Tensor) else type(x).__name__
            raise TypeError(
                f"{self._label()} takes a tensor of float16, bfloat16, float32 or float64, got "
                f"{got}. Convert the input with torch.as_tensor and .float()."
            )
        self._check_features(x, sequence)
        return ARITHMETIC_DTYPE[x.dtype]

    def _check_features(self, x: Tensor, sequence: bool) -> None:
        """Raise where an input does not have the neurons of the layer."""
        shape = x.shape[1:] if sequence else x.shape
        within = -len(shape) <= self.dim < len(shape)
        if not within or shape[self.dim] != self.num_neurons:
            what = f"one step of the input {list(x.shape)}" if sequence else "the input"
            size = f"{shape[self.dim]} at" if within else "no"
            raise ValueError(
                f"{self._label()} has {self.num_neurons} neurons, {what} has {size} dim "
                f"{self.dim}, shape {list(shape)}. Build the layer with another num_neurons, or "
                "with another dim, -3 for [B, C, H, W]."
            )

    def _states_for(
        self, x: Tensor, dtype: torch.dtype, *, sequence: bool = False
    ) -> list[Tensor | None]:
        """Return the states as ``step`` receives them: live ones checked, missing ones initial."""
        shape = x.shape[1:] if sequence else x.shape
        state_shape = self._state_shape(shape)
        states: list[Tensor | None] = []
        active, live = self.active_states, states_of(self)
        kept = self._state_kind.dtype or dtype
        # autograd may not save what inference_mode made
        clone_inference = (
            not torch.compiler.is_compiling() and not torch.is_inference_mode_enabled()
        )
        for name in self.states:
            state = live[name]
            if name not in active:
                states.append(None)
            elif state is None:
                states.append(self.initial_state(name, state_shape, kept, x.device))
            else:
                if not isinstance(state, Tensor):
                    raise TypeError(
                        f"{self._label()} needs a tensor as {name}, got {type(state).__name__}."
                    )
                if is_leaked_tracer(state, x):
                    raise ValueError(leaked_message(self._label(), name))
                if state.shape != state_shape or state.device != x.device or state.dtype != kept:
                    raise ValueError(
                        f"{self._label()} holds the state {name} of shape {list(state.shape)}, "
                        f"{state.dtype}, on {state.device}; the input has shape {list(shape)} and "
                        f"needs {kept} on {x.device}. Call zero_states() before a new sequence or "
                        "another batch size. States follow model.to(...), but for a tt.Stream's."
                    )
                states.append(state.clone() if clone_inference and state.is_inference() else state)
        return states

    def _state_shape(self, shape: torch.Size) -> torch.Size:
        """Return the shape of the states for an input of one step of some shape."""
        kind = self._state_kind
        if kind.per_sample:
            return torch.Size((shape[0], *[1] * (len(shape) - 1)))
        return torch.Size((*shape, *kind.tail)) if kind.tail else shape

    def initial_state(
        self, name: str, shape: torch.Size, dtype: torch.dtype, device: torch.device
    ) -> Tensor:
        """Return what a state is before the first step: its declared value, or zeros."""
        value = self._buffers.get(f"initial_{name}")
        if value is None:
            return torch.zeros(shape, dtype=dtype, device=device)
        if value.ndim:
            trailing = -self.dim - 1 if self.dim < 0 else len(shape) - self.dim - 1
            value = value.reshape(-1, *[1] * trailing)
        # a copy: no state shares memory with anything
        return value.to(device, dtype).expand(shape).clone(memory_format=torch.contiguous_format)

    def _check_record(self, record: Iterable[str]) -> None:
        """Raise where a trajectory of a state is wanted that the layer does not have."""
        active = self.active_states
        for name in record:
            if name not in active:
                raise ValueError(
                    f"{self!r} has no state {name!r}.{suggestion(name, active)} It has "
                    f"{', '.join(active)}."
                )

    # Calling

    def forward(self, x: Tensor, *further: Tensor, **named: Tensor) -> Tensor:
        """Run one time step; inside ``tt.unroll`` by layer all of them, folded into the batch."""
        run = ambient.current
        if run is not None:
            return run(self, x, further, named)
        if not torch.compiler.is_compiling():
            count_step(self)
        if further or named or len(self.inputs) > 1:
            # the modules that compute inputs, and then the layer
            return in_one_commit(
                lambda: self.forward_step(x, *self._all_further(x, further, named))
            )
        return self.forward_step(x)

    def _all_further(
        self, x: Tensor, given: tuple[Tensor, ...], named: dict[str, Tensor]
    ) -> tuple[Tensor, ...]:
        """Return the inputs after ``x``: those that were given, and those that modules compute."""
        passed = self._passed_inputs[1:]
        # by position first, as the arguments of any function
        values = {**dict(zip(passed, given, strict=False)), **named}
        if len(given) + len(named) != len(passed) or values.keys() != set(passed):
            by_name = "".join(f" and {name}" for name in named)
            raise TypeError(
                f"{self._label()} takes ({', '.join(('x', *passed))}), got {1 + len(given)} "
                f"inputs{by_name}. A module of the layer computes an input if it has its name."
            )
        names = self.inputs[1:]
        return tuple([values[n] if n in values else getattr(self, n)(x) for n in names])

    def _restarted(
        self, x: Tensor, record: tuple[str, ...], reset: Restarts, further: tuple[Tensor, ...]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Run a sequence in parts, between which samples start anew."""
        self._check_has_batch("one step of its input", x.shape[1:])
        restarts = reset.steps
        starts = [0, *(t for t in range(1, len(x)) if restarts[t])]
        lengths = [stop - start for start, stop in pairwise([*starts, len(x)])]
        # not slices: the gradient of each would be as long as the whole sequence
        parts = torch.split(x, lengths)
        others: list[tuple[Tensor, ...]] = [
            torch.split(each, lengths)
            if each.ndim == x.ndim and len(each) == len(x)
            else (each,) * len(parts)
            for each in further
        ]
        outputs: list[Tensor] = []
        trajectories: list[dict[str, Tensor]] = []
        for i, (start, part) in enumerate(zip(starts, parts, strict=True)):
            if restarts[start]:
                reset.now = reset.mask[start]
                self.zero_states(where=reset.now)
                reset.now = None
            now = {"further": tuple(each[i] for each in others)} if others else {}
            y, recorded = self.forward_sequence(part, record, **now)
            outputs.append(y)
            trajectories.append(recorded)
        joined = {
            name: torch.cat([each[name] for each in trajectories]) for name in trajectories[0]
        }
        return torch.cat(outputs), joined

    def forward_step(self, x: Tensor) -> Tensor:
        """Run one time step."""
        raise NotImplementedError(f"{type(self).__name__} needs a method forward_step.")

    def forward_sequence(
        self, x: Tensor, record: Sequence[str] = ()
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Run all the steps of ``x`` ``[T, ...]``; return outputs and recorded trajectories."""
        raise NotImplementedError(f"{type(self).__name__} needs a method forward_sequence.")


def transient_attributes_of(module: nn.Module) -> frozenset[str]:
    """Return what a call of a module may change: its mode, states, and notes of the call."""
    own = {"training", *hooked_weights(module)}
    if isinstance(module, TTModule):
        own.update(module._state_attributes, _NOTES)
    return frozenset(own)
