"""``SequenceLayer``: a layer with states that runs one time step, or a whole sequence.

First states. ``SequenceLayer.initial_state`` alone makes what a state is before the first step:
zeros, or the buffer ``initial_<name>`` that ``Neuron.state`` has declared. A program or an ONNX
file carries those values. A prepared sequence calls it for such states alone, so layers that start
from zero pay nothing.

States. A state is a plain attribute, and in a pass the entry of the pass
(``tracetorch/snn/passes.py``). One that does not fit the input is an error that names the layer,
both shapes and ``zero_states()``. A failed call changes nothing: states are assigned last, all
together. No state shares memory with the output or the input, so an in-place operation behind the
layer cannot reach it. What ``inference_mode`` made is cloned before autograd sees it.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import numpy as np
import torch
from torch import Tensor, fx, nn

from tracetorch.cell import Constraint, StateKind
from tracetorch.core.checks import check_count, check_integer, suggestion
from tracetorch.core.hooks import hooked_weights
from tracetorch.core.leaked_tracer import is_leaked_tracer
from tracetorch.core.walk import MODULE_ATTRIBUTES
from tracetorch.snn.declarations import (
    Check,
    Declarations,
    assign,
    assigned_by_torch,
    completed,
    constructor_call,
    load_bound,
    raw_of,
)
from tracetorch.snn.memory import leaked_message
from tracetorch.snn.module import TTModule
from tracetorch.snn.parameters import (
    DECAY,
    THRESHOLD,
    UNSET,
    WEIGHT,
    Decay,
    DecaySetup,
    Rank,
    SpikeFunction,
    Threshold,
    ThresholdSetup,
    Value,
    Weight,
    WeightSetup,
    bounded_sigmoid,
    clamp,
    fraction,
    is_decay,
    least,
    named_bound,
    negative_softplus,
    resolve_setup,
    sigmoid,
    softplus,
    unbounded,
)
from tracetorch.snn.passes import WRITTEN, State, ambient, in_one_commit, states_of
from tracetorch.snn.restarts import run_between_restarts
from tracetorch.snn.stream_watch import count_step
from tracetorch.snn.unknown_arguments import ASSIGNED, check_arguments, check_assigned

StepKwargs = Callable[[int, torch.dtype], dict[str, Any]]

L = TypeVar("L", bound="SequenceLayer")

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
# attributes that no declaration is read from: their assignment leaves the cell as it is
_NOTES = (
    *("_memory_call", "_nan_reported", "_steps_run", "_zeroed_in_backward", "_zeroed_in_trace"),
    *("_sigma", "_known_sigma", "step_kwargs", "_known_plan"),
    WRITTEN,
)
_UNDECLARED = frozenset({"training", "_backward_hooks", "_forward_hooks", "_forward_pre_hooks"})


class _ConstructorSignature:
    """The signature of a class, that of its ``__init__``; instances have none of their own.

    Python 3.10 would show that of ``__new__`` for a class whose ``__init__`` is a base's.
    """

    def __get__(self, layer: object, kind: type) -> inspect.Signature:
        if layer is not None:
            raise AttributeError("__signature__")
        signature = inspect.signature(kind.__init__)  # type: ignore[misc]
        return signature.replace(parameters=list(signature.parameters.values())[1:])


class SequenceLayer(TTModule):
    """A layer that keeps states from step to step, and runs one step or a whole sequence.

    Base of :class:`Neuron`, whose ``step`` runs, and of layers with a memory of another kind: a
    recurrent connection, delays, noise, norms and dropout over time. A child declares its
    parameters, each the value of a constraint of a raw tensor, and writes :meth:`forward_step` and
    :meth:`forward_sequence`; calling the layer runs one step, and inside ``tt.unroll`` by layer all
    of them.

    A parameter reads as it is used, ``layer.beta``, and is set by assignment, ``layer.beta = 0.5``,
    which writes ``raw_beta`` in place. What is written into the value in place is lost.

    Args:
        num_neurons: size of the neuron dimension; at least 1.
        dim: the neuron dimension of the tensor of one step.

    Raises:
        TypeError: an argument is not an integer, or ``states`` is not a tuple of names.
        ValueError: ``num_neurons`` is below 1, or a state has a name that is taken.

    Example:
        >>> isinstance(LIF(3), SequenceLayer), isinstance(Delay(3, max_delay=2), SequenceLayer)
        (True, True)
    """

    __signature__ = _ConstructorSignature()
    inputs: ClassVar[tuple[str, ...]] = ("x",)
    states: ClassVar[tuple[str, ...]] = ()
    _declares_memory = False
    _state_attributes: tuple[str, ...] = ()

    num_neurons: int
    dim: int
    _state_kind: StateKind = StateKind()
    """What the states are, where they are not shaped like the input."""
    _declared: Declarations

    _batch_leads = False
    """Whether the batch is known to be in front, whatever the neuron dimension is."""
    _nan_reported = False
    """Whether a state of a model that it is in was logged to be NaN."""

    if TYPE_CHECKING:

        def __call__(self, x: Tensor, *further: Tensor, **named: Tensor) -> Tensor: ...

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for name in () if isinstance(cls.states, str) else cls.states:
            if not hasattr(cls, name):
                setattr(cls, name, State(name))
        cls._state_attributes = cls.states

    def __new__(cls: type[L], *args: Any, **kwargs: Any) -> L:
        """Remember the constructor call, for ``repr``; raise for arguments it does not have."""
        check_arguments(cls, kwargs)
        layer = super().__new__(cls)
        call = constructor_call(cls, args, kwargs)
        object.__setattr__(layer, "_declared", Declarations(*call))
        return layer

    def __init__(self, num_neurons: int, dim: int = -1) -> None:
        super().__init__()
        self.num_neurons = check_count("num_neurons", num_neurons)
        self.dim = check_integer("dim", dim)
        if isinstance(type(self).states, str):
            raise TypeError(
                f"{type(self).__name__}.states must be a tuple of names, got "
                f"{type(self).states!r}. A tuple of one is ({type(self).states!r},)."
            )
        for name in type(self).states:
            self._check_name(name, state=True)
            self.__dict__[name] = None

    def _check_name(self, name: str, *, state: bool = False) -> None:
        owner = next((k for k in type(self).__mro__ if name in vars(k)), None)
        found = None if owner is None else vars(owner)[name]
        own = isinstance(found, State)  # not to be read: in a pass the layer has none yet
        if not name.isidentifier() or (not state if own else hasattr(self, name)):
            taken = f" {name} is a method of every neuron layer." if callable(found) else ""
            raise ValueError(
                f"{type(self).__name__} cannot call an input, state, parameter or option {name!r}: "
                f"it must be an identifier that is not yet taken.{taken}"
            )

    # Declaring

    def decay(
        self,
        name: str,
        value: DecaySetup = 0.9,
        *,
        rank: Rank = 1,
        learnable: bool = True,
        low: float | None = None,
    ) -> None:
        """Declare a parameter in (0, 1), ``sigmoid(raw_<name>)``, held at a bound if there is one.

        Where learning leads ``raw_<name>`` below the bound, the value stays there, and the gradient
        passes, so that it can come back.

        Args:
            name: the argument of ``step`` that receives it.
            value: a number, a tensor of rank 0 or 1, or a whole setup (a dict or a :class:`Decay`).
            rank: 0 for one value in the layer, 1 for one per neuron.
            learnable: an ``nn.Parameter`` if true, a buffer if not.
            low: the least value that learning leads to, in (0, 1), or the least of those given or
                loaded, if that is less; ``None`` for no bound.
        """
        default = Decay(DECAY.value, rank, learnable, DECAY.use_averaging)
        self._declare(name, completed(self, name, value, default), sigmoid)
        self._bound_decay(name, low)

    def gate(
        self, name: str, value: DecaySetup = 0.5, *, rank: Rank = 1, learnable: bool = True
    ) -> None:
        """Declare a parameter in (0, 1) that is no decay, ``sigmoid(raw_<name>)``.

        As :meth:`decay`, but nothing reads a half-life off it.

        Args:
            name: the argument of ``step`` that receives it.
            value: a number, a tensor of rank 0 or 1, or a whole setup (a dict or a :class:`Decay`).
            rank: 0 for one value in the layer, 1 for one per neuron.
            learnable: an ``nn.Parameter`` if true, a buffer if not.
        """
        default = Decay(0.5, rank, learnable, DECAY.use_averaging)
        self._declare(name, completed(self, name, value, default), fraction)

    def threshold(
        self,
        name: str,
        value: ThresholdSetup = 1.0,
        *,
        rank: Rank = 1,
        learnable: bool = True,
        surrogate: SpikeFunction | None = None,
        spike: str = "spike",
        negative: bool = False,
    ) -> None:
        """Declare a positive parameter, ``softplus(raw_<name>)``, and its spike function.

        Args:
            name: the argument of ``step`` that receives the threshold.
            value: a number, a tensor of rank 0 or 1, or a whole setup (a dict or a
                :class:`Threshold`).
            rank: 0 for one value in the layer, 1 for one per neuron.
            learnable: an ``nn.Parameter`` if true, a buffer if not.
            surrogate: the spike function, ``u -> spikes``; ``atan_surrogate(2.0)`` if left out.
            spike: the argument of ``step`` that receives the spike function.
            negative: the threshold lies below zero, ``-softplus(raw_<name>)``; ``value`` is its
                magnitude.
        """
        default = Threshold(
            THRESHOLD.value,
            rank,
            learnable,
            THRESHOLD.surrogate if surrogate is None else surrogate,
        )
        setup = completed(self, name, value, default)
        self._declare(name, setup, negative_softplus if negative else softplus, softplus)
        self.option(spike, setup.surrogate)

    def weight(
        self,
        name: str,
        value: WeightSetup = 0.0,
        *,
        rank: Rank = 1,
        learnable: bool = True,
        low: float | None = None,
        high: float | None = None,
        above: str | None = None,
    ) -> None:
        """Declare a parameter that is ``raw_<name>`` itself, held between bounds if there are any.

        Where learning leads ``raw_<name>`` out of the bounds, the value stays at the nearest one,
        and the gradient passes, so that it can come back.

        Args:
            name: the argument of ``step`` that receives it.
            value: a number, a tensor of rank 0 or 1, or a whole setup (a dict or a
                :class:`Weight`).
            rank: 0 for one value in the layer, 1 for one per neuron.
            learnable: an ``nn.Parameter`` if true, a buffer if not.
            low: the least value; ``None`` for no bound.
            high: the largest value; ``None`` for no bound.
            above: another parameter, declared before, that every value lies above.

        Raises:
            ValueError: the value is out of its bounds, or not finite.
        """
        default = Weight(WEIGHT.value, rank, learnable)
        is_bounded = (low, high, above) != (None, None, None)
        constraint = clamp(low, high, above) if is_bounded else unbounded
        self._declare(name, completed(self, name, value, default), constraint)
        raw = getattr(self, f"raw_{name}").detach()
        if not is_bounded or raw.is_meta:
            return
        read = self._constrained(name, raw)
        if not torch.equal(raw, read):
            ends = [f"at least {low:g}"] if low is not None else []
            ends += [f"at most {high:g}"] if high is not None else []
            ends += [f"above {above}"] if above is not None else []
            given = raw[raw != read][0].item()
            raise ValueError(f"{name} must be {' and '.join(ends)}, got {given:g}.")

    def state(self, name: str, init: Value) -> None:
        """Declare the initial value of a state: what it is before the first step; zero if left out.

        It is the buffer ``initial_<name>``, and so moves along and is in the ``state_dict``.
        ``zero_states()`` returns to it.

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
            raise ValueError(
                f"{type(self).__name__} has no state {name!r} to give an initial value: its states "
                f"are {type(self).states}."
            )
        self._check_name(f"initial_{name}")
        setup = resolve_setup(f"init of {name}", init, Weight(0.0, 0, False))
        self.register_buffer(f"initial_{name}", setup.raw(f"init of {name}", self.num_neurons))

    def _declare(
        self, name: str, setup: Weight, constraint: Constraint, given: Constraint | None = None
    ) -> None:
        """Declare a parameter; its value is given as one of the constraint ``given``, if any."""
        self._check_name(name)
        raw = setup.raw(name, self.num_neurons, given or constraint)
        if setup.learnable:
            self.register_parameter(f"raw_{name}", nn.Parameter(raw))
        else:
            self.register_buffer(f"raw_{name}", raw)
        self._declared.constrain(name, constraint)
        self._declared.note_argument(name, setup.value)

    def _bound_decay(self, name: str, low: float | None) -> None:
        """Bound what learning leads to by ``low``, or by the least value there is, if less."""
        raw = getattr(self, f"raw_{name}").detach()
        constraint = sigmoid
        if low is not None:
            given = low if raw.is_meta else float(self._constrained(name, raw.double()).min())
            constraint = bounded_sigmoid(min(low, given))
        self._declared.constrain(name, constraint)

    def option(
        self, name: str, value: object, *, fixed: bool = False, check: Check | None = None
    ) -> None:
        """Declare a constant: a flag, a word, a number, a spike function; ``step`` receives it.

        It becomes an attribute of that name and may be assigned anew; a module (a surrogate with a
        learnable slope, say) is registered as one, a tensor as a buffer, so that it moves along.

        Args:
            name: the argument of ``step`` that receives it.
            value: the constant.
            fixed: it cannot be assigned anew, for tensors of the layer have its size, or, where it
                is ``None``, for the layer lacks this part.
            check: ``check(name, value)`` returns the constant, here and when it is assigned anew,
                or raises; a function of a module, so that layers can be pickled.
        """
        self._check_name(name)
        value = _plain_number(value)
        if check is not None:
            value = check(name, value)
            self._declared.checks[name] = check
        if isinstance(value, Tensor):
            self.register_buffer(name, value)
        else:
            setattr(self, name, value)
        self._declared.options += (name,)
        self._declared.note_argument(name, value)
        if fixed:
            self._declared.fixed += (name,)

    @property
    def _options(self) -> tuple[str, ...]:
        """Names of the constants that ``step`` receives."""
        return self._declared.options

    @property
    def constraints(self) -> Mapping[str, Constraint]:
        """The constraint of every parameter, by name; ``value = constraint(raw_<name>)``."""
        return self._declared.constraints

    @property
    def _raw_names(self) -> tuple[str, ...]:
        """Names of the tensors that the parameters are constrained from."""
        return tuple([f"raw_{name}" for name in self._declared.constraints])

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
        """Return a state that was moved; ``.half()`` leaves its dtype as it is."""
        kept = ARITHMETIC_DTYPE.get(moved.dtype) is moved.dtype
        return moved if kept else state.to(moved.device)

    def _check_state_has_batch(self, label: Callable[[], str], name: str, state: Tensor) -> None:
        """Raise where dimension 0 of a state holds the neurons."""
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

    # Checks of one call

    def _check_input(self, x: object, *, sequence: bool = False) -> torch.dtype:
        """Return the dtype of the arithmetic; raise where ``x`` does not fit the layer.

        In a ``sequence``, ``x`` has time in front, ``[T, ...]``.
        """
        self._check_states_current()
        if not isinstance(x, Tensor):
            self._check_fx(x)
            raise TypeError(
                f"{self._label()} takes a tensor, got {type(x).__name__}. "
                "Wrap arrays in torch.as_tensor(...)."
            )
        if x.dtype not in ARITHMETIC_DTYPE:
            raise TypeError(
                f"{self._label()} takes float16, bfloat16, float32 or float64, got {x.dtype}. "
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
                f"{self._label()} has its neurons at dim {self.dim}, {what} has only "
                f"{len(shape)} dimensions, shape {list(shape)}."
            )
        if shape[self.dim] != self.num_neurons:
            behind_batch = [*shape[1:]]
            way = f"Build the layer with num_neurons={shape[self.dim]}, or name another dim"
            if self.num_neurons in behind_batch:  # the channels of a convolution, most of the time
                at = behind_batch.index(self.num_neurons) - len(behind_batch)
                way = f"Say where they are: dim={at}"
            raise ValueError(
                f"{self._label()} has {self.num_neurons} neurons, {what} has "
                f"{shape[self.dim]} at dim {self.dim}, shape {list(shape)}. {way}."
            )

    def _check_fx(self, x: object) -> None:
        """Raise where an input is what ``torch.fx.symbolic_trace`` puts in its place."""
        if isinstance(x, fx.Proxy):
            raise TypeError(f"{self._label()} {_FX_LEAF}")

    def __prepare_scriptable__(self) -> SequenceLayer:
        """Raise, because ``torch.jit.script`` asks here for what it is to compile."""
        raise TypeError(f"{self._label()} {_SCRIPT_LEAF}")

    def _states_for(
        self, x: Tensor, dtype: torch.dtype, *, sequence: bool = False
    ) -> list[Tensor | None]:
        """Return the states as ``step`` receives them: live ones checked, missing ones initial.

        In a ``sequence``, ``x`` has time in front, ``[T, ...]``.
        """
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
                        "another batch size, zero_states(where=mask) to restart some samples; "
                        "states follow model.to(...); those of a tt.Stream do not: convert what "
                        "its get_states() gives, and give it back by set_states()."
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

    def _check_record(self, record: Iterable[str]) -> None:
        """Raise where a trajectory of a state is wanted that the layer does not have."""
        active = self.active_states
        for name in record:
            if name not in active:
                raise ValueError(
                    f"{self!r} has no state {name!r}.{suggestion(name, active)} It has "
                    f"{', '.join(active)}."
                )

    # Loading

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        decays = {name: c.name for name, c in self.constraints.items() if is_decay(c)}
        metadata = getattr(destination, "_metadata", {}).get(prefix[:-1])
        if metadata is not None and decays:
            metadata["constraints"] = decays

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, metadata: Any, *arguments: Any
    ) -> None:
        for name, constraint in self.constraints.items():
            loaded = state_dict.get(f"{prefix}raw_{name}")
            if is_decay(constraint) and isinstance(loaded, Tensor) and not loaded.is_meta:
                saved = metadata.get("constraints", {}).get(name)
                bound = UNSET if saved is None else named_bound(saved)
                load_bound(self, name, least(constraint) or 0.0, bound, loaded.detach())
        super()._load_from_state_dict(state_dict, prefix, metadata, *arguments)

    # Reading and assigning

    def _constrained(self, name: str, raw: Tensor) -> Tensor:
        """Return the value of a parameter that follows from a raw one."""
        constraint = self._declared.constraints[name]
        if constraint.above is None:
            return constraint.value(raw)
        other = getattr(self, f"raw_{constraint.above}").to(raw)
        return constraint.value(raw, self._constrained(constraint.above, other))

    def step_kwargs(self, ndim: int, dtype: torch.dtype) -> dict[str, Any]:
        """Return the keyword arguments of ``step``: parameters, shaped to broadcast, and options.

        Args:
            ndim: number of dimensions of the tensor of one step.
            dtype: dtype of the arithmetic; raw parameters are cast to it before the constraint.
        """
        trailing = -self.dim - 1 if self.dim < 0 else ndim - self.dim - 1
        kwargs: dict[str, Any] = {}
        parameters = self._parameters
        for name, constraint in self._declared.constraints.items():
            raw: Tensor | None = parameters.get(f"raw_{name}")
            if raw is None:  # a buffer, or a parametrization
                raw = getattr(self, f"raw_{name}")
            raw = raw.to(dtype)
            follows = constraint.above is not None  # another parameter too
            value = self._constrained(name, raw) if follows else constraint.value(raw)
            kwargs[name] = value.reshape(-1, *[1] * trailing) if value.ndim and trailing else value
        for name in self._declared.options:
            kwargs[name] = getattr(self, name)
        return kwargs

    @contextmanager
    def _override_step_kwargs(self, replacement: StepKwargs) -> Iterator[None]:
        """Let ``replacement(ndim, dtype)`` give the step kwargs in a block, for an export."""
        attributes = vars(self)
        previous = attributes.get("step_kwargs")  # overrides may nest
        attributes["step_kwargs"] = replacement
        self._declared.cell = None
        try:
            yield
        finally:
            self._declared.cell = None
            if previous is None:
                del attributes["step_kwargs"]
            else:
                attributes["step_kwargs"] = previous

    def __getattr__(self, name: str) -> Any:
        constraint = self._declared.constraints.get(name)
        if constraint is None:
            # past TTModule: no layer has a memory beside its states
            return nn.Module.__getattr__(self, name)
        raw = self._parameters.get(f"raw_{name}")
        if raw is None:  # a buffer, or a parametrization
            raw = getattr(self, f"raw_{name}")
        follows = constraint.above is not None  # another parameter too
        return self._constrained(name, raw) if follows else constraint.value(raw)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "__dict__":
            # torch.export makes proxies of modules that have two names, which share attributes
            object.__setattr__(self, name, value)
            return
        declared = self._declared
        if name in declared.constraints:
            if not torch.compiler.is_compiling() and assigned_by_torch():
                constraint = declared.constraints[name].name
                raise AttributeError(
                    f"{name} follows from raw_{name}: it is {constraint}(raw_{name}). Give "
                    f"functional_call raw_{name}, through which gradients flow."
                )
            assign(self, name, value)
            return
        if name in type(self).states:
            if isinstance(value, nn.Parameter):
                raise TypeError(
                    f"{name} of {self!r} is a state, which every step sets anew, and no parameter. "
                    "Give a tensor; what it starts from is declared by self.state(name, init=...)."
                )
            object.__setattr__(self, name, value)
            return
        if name in declared.fixed:
            if self.__dict__.get(name, UNSET) is None:
                if value is None:
                    return
                raise AttributeError(
                    f"{self!r} has no {name}: the constructor has left it out, and the states that "
                    "it needs. Build a layer that has it."
                )
            raise AttributeError(
                f"{name} is fixed by the constructor: tensors of the layer have its size. Build "
                "another layer."
            )
        if name in declared.options:
            value = _plain_number(value)
        if name in declared.checks:
            value = declared.checks[name](name, value)
        if name in ASSIGNED and name not in declared.options:
            attributes = self.__dict__  # an option that is None is a part that the layer lacks
            given = [each for each in declared.options if attributes.get(each, UNSET) is not None]
            check_assigned(self, name, (*declared.constraints, *given))
        if name not in _UNDECLARED:
            declared.cell = None
        nn.Module.__setattr__(self, name, value)
        if name in declared.options:
            declared.note_assigned(type(self), name, value)

    def __delattr__(self, name: str) -> None:
        self._declared.cell = None
        nn.Module.__delattr__(self, name)

    def register_buffer(self, name: str, tensor: Tensor | None, persistent: bool = True) -> None:
        """Add a buffer, as ``nn.Module.register_buffer``."""
        self._declared.cell = None
        super().register_buffer(name, tensor, persistent)

    def add_module(self, name: str, module: nn.Module | None) -> None:
        """Add a module, as ``nn.Module.add_module``."""
        self._declared.cell = None
        super().add_module(name, module)

    _raw_of = raw_of

    def __dir__(self) -> list[str]:
        """List the parameters by name too, and leave out the parts that the layer does not have."""
        names: set[str] = set(super().__dir__())  # type: ignore[no-untyped-call]
        names -= {"__signature__", "memory"}  # of the class alone
        attributes = self.__dict__
        names.update(self.constraints)
        names.difference_update(set(self.states).difference(self.active_states))
        names.difference_update(n for n in self._options if attributes.get(n, n) is None)
        return sorted(names)

    def __repr__(self) -> str:
        call = str(self._declared.call)
        inner = super().__repr__() if self._modules else ""
        return f"{call}{inner[inner.index('(') :]}" if inner else call

    def __getstate__(self) -> dict[str, Any]:
        # copy.copy(layer) shares tensors, and not the dicts that name them, nor its hooks
        attributes = super().__getstate__()
        copies = {
            name: copy.copy(value)
            for name, value in attributes.items()
            if name == "_declared" or (name in MODULE_ATTRIBUTES and isinstance(value, dict))
        }
        return {**attributes, **copies}

    def __deepcopy__(self, memo: dict[int, Any]) -> SequenceLayer:
        # PyTorch's parametrized classes copy what is in __dict__, states with their graph
        parametrized = "parametrizations" in self._modules
        kind: Any = type(self).__base__ if parametrized else type(self)
        copied: Any = type(self).__new__(type(self))
        memo[id(self)] = copied
        copied.__setstate__(copy.deepcopy(kind.__getstate__(self), memo))
        made: SequenceLayer = copied
        return made

    # Calling

    def forward(self, x: Tensor, *further: Tensor, **named: Tensor) -> Tensor:
        """Run one time step; inside ``tt.unroll`` by layer all of them, folded into the batch."""
        run = ambient.current
        if run is not None:
            return run(self, x, further, named)
        if not torch.compiler.is_compiling():
            count_step(self)
        try:
            several = further or named or len(self.inputs) > 1
        except fx.proxy.TraceError:  # traced as the root: all arguments are stand-ins
            self._check_fx(x)
            raise
        if several:
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
        further = []
        for name in self.inputs[1:]:
            further.append(values[name] if name in values else getattr(self, name)(x))
        return tuple(further)

    _restarted = run_between_restarts

    def forward_step(self, x: Tensor) -> Tensor:
        """Run one time step."""
        raise NotImplementedError(f"{type(self).__name__} needs a method forward_step.")

    def forward_sequence(
        self, x: Tensor, record: Sequence[str] = ()
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Run all the steps of ``x`` ``[T, ...]``; return outputs and recorded trajectories.

        Args:
            x: the inputs ``[T, ...]``.
            record: names of states whose trajectories are wanted too.
        """
        raise NotImplementedError(f"{type(self).__name__} needs a method forward_sequence.")


def _plain_number(value: object) -> object:
    """Return a number of NumPy as one of Python, which a kernel knows."""
    return value.item() if isinstance(value, np.generic) else value


def transient_attributes_of(module: nn.Module) -> frozenset[str]:
    """Return what a call of a module may change: its mode, states, and notes of the call."""
    own = {"training", *hooked_weights(module)}
    if isinstance(module, TTModule):
        own.update(module._state_attributes, _NOTES)
    return frozenset(own)
