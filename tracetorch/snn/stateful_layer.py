"""``StatefulLayer``: keep states from call to call, check them, move and copy them.

First states. ``StatefulLayer.initial_state`` alone makes what a state is before the first step:
zeros, or the buffer ``initial_<name>`` that ``Neuron.state`` has declared. A program or an ONNX
file carries those values. A prepared sequence calls it for such states alone, so layers that start
from zero pay nothing.

State. Plain attributes named by the neuron, never buffers: DistributedDataParallel broadcasts
buffers and would overwrite the membranes of every process but one. They are moved with ``.to()``
(``_apply`` is overridden), kept out of ``state_dict``, kept as detached copies by pickle and
deepcopy, and set to ``None`` by ``to_empty``. A state that does not fit the input is an error that
names the layer, both shapes and ``zero_states()``. A failed call changes nothing: states are
assigned last, all together. No state shares memory with the output or the input, so an in-place
operation behind the layer cannot reach it. What ``inference_mode`` made is cloned before autograd
sees it.
"""

from __future__ import annotations

import copy
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, TypeGuard

import torch
from torch import Tensor, fx

from tracetorch.cell import StateKind
from tracetorch.core.checks import check_count, check_integer, suggestion
from tracetorch.core.leaked_tracer import is_leaked_tracer
from tracetorch.core.thread_owner import check_thread
from tracetorch.core.torch_private import NO_BACKWARD, current_backward, is_tracing
from tracetorch.snn.module import TTModule
from tracetorch.snn.one_step import clears_by_user, is_one_step
from tracetorch.snn.state_holder import StateHolder, leaked_message

# The dtype of the arithmetic, and so of the states, for each dtype of the input.
ARITHMETIC_DTYPE = {
    torch.bfloat16: torch.float32,
    torch.float16: torch.float32,
    torch.float32: torch.float32,
    torch.float64: torch.float64,
}

_FX_LEAF = (
    "is a leaf for torch.fx: what runs inside it, with states from call to call, is no graph. "
    "Trace the module that holds it, by a torch.fx.Tracer whose is_leaf_module(module, name) is "
    "true for snn.SequenceLayer; or tt.export.step(model, sample) makes a program whose states go "
    "in and come out."
)
_SCRIPT_LEAF = (
    "is a leaf for torch.jit.script, which cannot compile its Python. tt.export.step(model, "
    "sample) makes a program whose states go in and come out, tt.export.sequence one over time, "
    "tt.export.onnx a file."
)


class _Running(threading.local):
    """The runs of ``tt.unroll`` in progress in this thread."""

    sequence = False  # any: what reaches a layer is one step, or all of them
    by_layer = False  # one by layer: a neuron that was not found in the model must not run


running = _Running()


@contextmanager
def within_sequence() -> Iterator[None]:
    """Mark the calls of a block as steps of a sequence, which are not taken for a whole one."""
    outer, running.sequence = running.sequence, True
    try:
        yield
    finally:
        running.sequence = outer


_warned_of_sequence = False


def _notice_sequence(layer: StatefulLayer, x: Tensor) -> None:
    """Warn where an input of three dimensions was a sequence, or note that it may have been."""
    if _warned_of_sequence or running.sequence or is_tracing() or torch.compiler.is_compiling():
        return
    layer._doubtful_step = ""
    if any(layer.__dict__.get(name) is not None for name in layer.active_states):
        layer._takes_steps = True  # a second step, or one of a stream that goes on
        return
    answer = is_one_step(layer, x)
    layer._takes_steps = bool(answer)
    if answer is None:
        layer._doubtful_step = str(list(x.shape))  # zero_states() after one step decides
    elif not answer:
        _warn_of_sequence(layer, str(list(x.shape)))


def _warn_of_sequence(layer: StatefulLayer, shape: str) -> None:
    """Warn once that a sequence was taken for one time step."""
    global _warned_of_sequence
    if _warned_of_sequence:
        return
    _warned_of_sequence = True
    warnings.warn(
        f"{layer!r} took an input of shape {shape} for ONE time step, its neurons in the "
        "last dimension; nothing is remembered along the others. For a sequence [T, B, ...] call "
        "tt.unroll(model, x). If it is one step, of tokens say, silence this with "
        'warnings.filterwarnings("ignore", message=".*for ONE time step").',
        stacklevel=2,
    )


class StatefulLayer(TTModule):
    """A layer with a neuron dimension, and states that it keeps from one call to the next.

    Args:
        num_neurons: size of the neuron dimension; at least 1.
        dim: the neuron dimension of the tensor of one step.

    Raises:
        TypeError: an argument is not an integer, or ``states`` is not a tuple of names.
        ValueError: ``num_neurons`` is below 1, or a state has a name that is taken.
    """

    states: ClassVar[tuple[str, ...]] = ()
    declares_memory = False

    num_neurons: int
    dim: int
    state_kind: StateKind = StateKind()
    """What the states are, where they are not shaped like the input."""

    _batch_leads = False
    """Whether the batch is known to be in front, whatever the neuron dimension is."""
    _takes_steps = False
    """Whether inputs of three dimensions are known to be single steps."""
    _doubtful_step = ""
    """Shape of a first step that may have been a whole sequence."""
    _steps_run = 0
    """How many single steps have been run since the states were last looked at."""
    _graph_steps = 0
    """How many of the last ones are in one graph."""
    _nan_reported = ""
    """In what NaN was found: ``"stream"``, until it is zeroed; ``"sequence"``, ``"training"``."""

    def __init__(self, num_neurons: int, dim: int = -1) -> None:
        super().__init__()
        self.num_neurons = check_count("num_neurons", num_neurons)
        self.dim = check_integer("dim", dim)
        # where the states were zeroed or set: in this trace, in this backward pass
        self._zeroed_in_trace = False
        self._zeroed_in_backward = NO_BACKWARD
        # in the instance from the start: one that comes later would look like a change of the model
        self._steps_run = self._graph_steps = 0
        self._nan_reported = ""
        if isinstance(type(self).states, str):
            raise TypeError(
                f"{type(self).__name__}.states must be a tuple of names, got "
                f"{type(self).states!r}. A tuple of one is ({type(self).states!r},)."
            )
        for name in type(self).states:
            self._check_name(name)
            setattr(self, name, None)

    def _check_name(self, name: str) -> None:
        if not name.isidentifier() or hasattr(self, name):
            owner = next((k for k in type(self).__mro__ if name in vars(k)), None)
            method = owner is not None and callable(vars(owner)[name])
            taken = f" {name} is a method of every neuron layer." if method else ""
            raise ValueError(
                f"{type(self).__name__} cannot call an input, state, parameter or option {name!r}: "
                f"it must be an identifier that is not yet taken.{taken}"
            )

    def attribute_of(self, state: str) -> str:
        """Return the name of the attribute that holds a state, its own."""
        return state

    @property
    def active_states(self) -> tuple[str, ...]:
        """The states this layer has; the others of ``states`` stay ``None``."""
        return self.states

    def label(self) -> str:
        """Name the layer for messages, with its path in the model that is being called."""
        return self.state_label()

    # Checks of one call

    def check_input(self, x: object, *, sequence: bool = False) -> torch.dtype:
        """Return the dtype of the arithmetic; raise where ``x`` does not fit the layer.

        Args:
            x: the input of one step.
            sequence: ``x`` has time in front, ``[T, ...]``.
        """
        self.check_states_current()
        if not isinstance(x, Tensor):
            self._check_fx(x)
            raise TypeError(
                f"{self.label()} takes a tensor, got {type(x).__name__}. "
                "Wrap arrays in torch.as_tensor(...)."
            )
        if x.dtype not in ARITHMETIC_DTYPE:
            raise TypeError(
                f"{self.label()} takes float16, bfloat16, float32 or float64, got {x.dtype}. "
                "Convert the input with .float()."
            )
        self._check_features(x, sequence)
        return ARITHMETIC_DTYPE[x.dtype]

    def _check_features(self, x: Tensor, sequence: bool) -> None:
        """Raise where an input does not have the neurons of the layer."""
        shape = x.shape[1:] if sequence else x.shape
        what = f"one step of the input {list(x.shape)}" if sequence else "the input"
        if not -len(shape) <= self.dim < len(shape):
            raise ValueError(
                f"{self.label()} has its neurons at dim {self.dim}, {what} has only "
                f"{len(shape)} dimensions, shape {list(shape)}."
            )
        if shape[self.dim] != self.num_neurons:
            raise ValueError(
                f"{self.label()} has {self.num_neurons} neurons, {what} has "
                f"{shape[self.dim]} at dim {self.dim}, shape {list(shape)}. "
                f"Build the layer with num_neurons={shape[self.dim]}, or name another dim."
            )
        if len(shape) > 2 and self.dim == -1 and not sequence and not self._takes_steps:
            _notice_sequence(self, x)

    def _check_fx(self, x: object) -> None:
        """Raise where an input is what ``torch.fx.symbolic_trace`` puts in its place."""
        if isinstance(x, fx.Proxy):
            raise TypeError(f"{self.label()} {_FX_LEAF}")

    def __prepare_scriptable__(self) -> StatefulLayer:
        """Raise, because ``torch.jit.script`` asks here for what it is to compile."""
        raise TypeError(f"{self.label()} {_SCRIPT_LEAF}")

    def states_for(
        self, x: Tensor, dtype: torch.dtype, *, sequence: bool = False
    ) -> list[Tensor | None]:
        """Return the states as ``step`` receives them: live ones checked, missing ones initial.

        Args:
            x: the input, checked.
            dtype: of the arithmetic.
            sequence: ``x`` has time in front, ``[T, ...]``.
        """
        shape = x.shape[1:] if sequence else x.shape
        state_shape = self._state_shape(shape)
        states: list[Tensor | None] = []
        active = self.active_states
        kept = self.state_kind.dtype or dtype
        # autograd may not save what inference_mode made
        clone_inference = (
            not torch.compiler.is_compiling() and not torch.is_inference_mode_enabled()
        )
        for name in self.states:
            state = getattr(self, name)
            if name not in active:
                states.append(None)
            elif state is None:
                states.append(self.initial_state(name, state_shape, kept, x.device))
            else:
                if not isinstance(state, Tensor):
                    raise TypeError(
                        f"{self.label()} needs a tensor as {name}, got {type(state).__name__}."
                    )
                if is_leaked_tracer(state, x):
                    raise ValueError(leaked_message(self.label(), name))
                if state.shape != state_shape or state.device != x.device or state.dtype != kept:
                    raise ValueError(
                        f"{self.label()} holds the state {name} of shape {list(state.shape)}, "
                        f"{state.dtype}, on {state.device}; the input has shape {list(shape)} and "
                        f"needs {kept} on {x.device}. Call zero_states() before a new sequence or "
                        "another batch size, zero_states(where=mask) to restart some samples; "
                        "states follow model.to(...)."
                    )
                states.append(state.clone() if clone_inference and state.is_inference() else state)
        return states

    def _state_shape(self, shape: torch.Size) -> torch.Size:
        """Return the shape of the states for an input of one step of some shape."""
        kind = self.state_kind
        if kind.per_sample:
            return torch.Size((shape[0], *[1] * (len(shape) - 1)))
        return torch.Size((*shape, *kind.tail)) if kind.tail else shape

    def initial_state(
        self, name: str, shape: torch.Size, dtype: torch.dtype, device: torch.device
    ) -> Tensor:
        """Return what a state is before the first step: its declared value, or zeros.

        Args:
            name: of the state.
            shape: of the tensor of one step.
            dtype: of the state.
            device: of the input.
        """
        value = self._buffers.get(f"initial_{name}")
        if value is None:
            return torch.zeros(shape, dtype=dtype, device=device)
        if value.ndim:
            trailing = -self.dim - 1 if self.dim < 0 else len(shape) - self.dim - 1
            value = value.reshape(-1, *[1] * trailing)
        # a copy: no state shares memory with anything
        return value.to(device, dtype).expand(shape).clone(memory_format=torch.contiguous_format)

    def check_record(self, record: Iterable[str]) -> None:
        """Raise where a trajectory of a state is wanted that the layer does not have.

        Args:
            record: names.
        """
        active = self.active_states
        for name in record:
            if name not in active:
                raise ValueError(
                    f"{self!r} has no state {name!r}.{suggestion(name, active)} It has "
                    f"{', '.join(active)}."
                )

    # Clearing, detaching, copying

    def zero_states(self, *, where: Tensor | None = None) -> None:
        """Set the states to ``None``, or those of the samples in ``where`` to initial values.

        Args, Raises: as :meth:`TTModule.zero_states`.
        """
        self._check_not_set_aside("zero_states()")
        doubtful = where is None and self._doubtful_step and not torch.compiler.is_compiling()
        if doubtful and clears_by_user():
            if any(getattr(self, name) is not None for name in self.active_states):
                _warn_of_sequence(self, self._doubtful_step)
            self._doubtful_step = ""
        if self._nan_reported == "stream" and not torch.compiler.is_compiling():
            self.__dict__["_nan_reported"] = ""
        super().zero_states(where=where)

    def start_of(self, state: str, like: Tensor) -> Tensor:
        """Return what a state is before the first step, in the shape of a live one."""
        return self.initial_state(state, like.shape, like.dtype, like.device)

    def detach_states(self) -> None:
        """Cut the states from the graph that computed them; the next step names dead ones."""
        self._check_not_set_aside("detach_states()")
        super().detach_states()

    def _check_not_set_aside(self, action: str) -> None:
        """Raise where a forward that runs all time steps at once would act between them."""
        if torch.compiler.is_compiling():  # where no states are set aside
            return
        check_thread(self)
        if any(name not in self.__dict__ for name in self.active_states):
            raise ValueError(
                f"{self.label()} runs all of its time steps at once, so a forward cannot call "
                f'{action} in each of them. Call it outside, or use tt.unroll(..., by="step").'
            )

    def check_state_has_batch(self, label: Callable[[], str], name: str, state: Tensor) -> None:
        """Raise where dimension 0 of a state holds the neurons."""
        self.check_has_batch(name, state.shape, len(self.state_kind.tail), label)

    def check_has_batch(
        self,
        what: str,
        shape: Sequence[int],
        tail: int = 0,
        label: Callable[[], str] | None = None,
    ) -> None:
        """Raise where dimension 0 of one step holds neurons, and a mask looks for the batch there.

        Args:
            what: has that shape.
            shape: of one step, and ``tail`` dimensions behind it.
            tail: number of those.
            label: returns that of the layer, for the message.
        """
        if not self._batch_leads and self.dim in (0, tail - len(shape)):
            raise ValueError(
                f"{(label or self.label)()} has its neurons at dimension 0, where the mask looks "
                f"for the batch; {what} has shape {list(shape)}. Give the input a batch dimension."
            )

    def __getstate__(self) -> dict[str, Any]:
        if not self.__dict__.keys() >= set(self.active_states):  # they are set aside
            self._check_not_set_aside("copy.deepcopy() or pickle")
        return super().__getstate__()

    def __deepcopy__(self, memo: dict[int, Any]) -> StatefulLayer:
        # PyTorch's parametrized classes copy what is in __dict__, states with their graph
        parametrized = "parametrizations" in self._modules
        kind: Any = type(self).__base__ if parametrized else type(self)
        copied: Any = type(self).__new__(type(self))
        memo[id(self)] = copied
        copied.__setstate__(copy.deepcopy(kind.__getstate__(self), memo))
        made: StatefulLayer = copied
        return made

    def moved_state(self, state: Tensor, moved: Tensor) -> Tensor:
        """Return a state that was moved; ``.half()`` leaves its dtype as it is."""
        kept = ARITHMETIC_DTYPE.get(moved.dtype) is moved.dtype
        return moved if kept else state.to(moved.device)


def keeps_states(module: object) -> TypeGuard[StateHolder]:
    """Whether a module is a neuron layer, or has declared a memory."""
    if isinstance(module, StatefulLayer):
        return True
    return isinstance(module, StateHolder) and bool(module.active_states)


class StateSnapshot:
    """The states of some layers and modules at one time, to be restored where a call fails.

    Args:
        layers: whose states.
    """

    def __init__(self, layers: Iterable[StateHolder]) -> None:
        # by the attributes that hold them
        self.states: list[tuple[StateHolder, str, Tensor | None]] = []
        for layer in layers:
            attributes = layer.__dict__
            for name in layer.states if isinstance(layer, StatefulLayer) else _held_by(layer):
                state = attributes[name] if name in attributes else getattr(layer, name)
                self.states.append((layer, name, state))

    def restore(self) -> None:
        """Give the layers these states back."""
        for layer, name, state in self.states:
            # past nn.Module, which would look among parameters, modules and buffers first
            if type(state) is Tensor or (state is None and name in layer.__dict__):
                layer.__dict__[name] = state
            else:
                setattr(layer, name, state)


def _held_by(module: StateHolder) -> Iterable[str]:
    """Return the names of the attributes that hold the memories of a module."""
    return map(module.attribute_of, module.active_states)


def clear_states(layers: Iterable[StateHolder]) -> None:
    """Clear the states of layers and modules whose ``zero_states`` nobody has overridden.

    Args:
        layers: whose states.
    """
    tracing = is_tracing()
    backward = NO_BACKWARD if torch.compiler.is_compiling() else current_backward()
    for layer in layers:
        attributes = layer.__dict__
        attributes["_zeroed_in_trace"], attributes["_zeroed_in_backward"] = tracing, backward
        for name in layer.states if isinstance(layer, StatefulLayer) else _held_by(layer):
            attributes[name] = None
