"""``Cell``: describe a neuron as one frozen value: step, inputs, states, parameters, options.

What is derived from a neuron takes its cell and tensors. A step is a static method of tensors and
constants, made of pointwise operations. Parts that a layer does not have arrive as ``None``;
parameters arrive constrained and shaped to broadcast; options (flags, spike functions) by name.
"""

from __future__ import annotations

import inspect
import math
import operator
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from tracetorch.core.reads import Reads
from tracetorch.core.walk import Opaque

# What a step or a sequence runs through: a layer's own one changes what either computes.
METHODS = ("forward_step", "_check_input", "_states_for", "step_kwargs", "initial_state")
_OWN = (*METHODS, "step")
# With properties and class attributes that a description is read from.
_definition: Callable[[type], tuple[Any, ...]] = operator.attrgetter(
    *_OWN, "active_states", "inputs", "states", "_state_kind"
)


class ConstraintGradient(NamedTuple):
    """The gradient of a constraint, ``value = constraint(raw)``."""

    function: Callable[[Tensor, Tensor, Tensor], Tensor]
    """``gradient of the value, raw, value -> gradient of raw``."""
    reads_raw: bool


@dataclass(frozen=True)
class Constraint:
    """The constraint of a parameter, ``value = constraint(raw)``, with inverse and gradient."""

    name: str  # for messages and files
    value: Callable[..., Tensor]  # the function raw -> value
    # the function value -> raw; None: what is in range is its own raw value
    inverse: Callable[[Tensor], Tensor] | None = None
    # PyTorch's own backward of value; None: autograd must find it
    gradient: ConstraintGradient | None = None
    low: float = -math.inf  # low and high: what a given value lies between, strictly
    high: float = math.inf
    range: str = "be finite"  # the same in words, after "must"
    # how far from an end an element of a tensor becomes that touches it; None: none may
    nearest: float | None = None
    above: str | None = None  # another parameter, which the value lies above and value takes too

    def __call__(self, raw: Tensor, *other: Tensor) -> Tensor:
        """Return the value of a parameter; ``other`` is that of the one that it lies above."""
        return self.value(raw, *other)


@dataclass(frozen=True)
class StateKind:
    """Describe the states of a layer: dtype, shape, and whether they may have a gradient."""

    dtype: torch.dtype | None = None  # their dtype; that of the arithmetic if None
    tail: tuple[int, ...] = ()  # sizes of the dimensions that they have behind those of one step
    # they have one value per sample, and size 1 in all dimensions but the batch's
    per_sample: bool = False
    learned: bool = True  # they may follow from what is learned, unlike a mask or a counter


class ConstructorCall(NamedTuple):
    """The constructor call that made a layer: arguments as text, without those at their default."""

    name: str
    positional: tuple[str, ...]
    named: Mapping[str, str]

    def __str__(self) -> str:
        named = (f"{name}={text}" for name, text in self.named.items())
        return f"{self.name}({', '.join((*self.positional, *named))})"


class StepDefinition(NamedTuple):
    """The part of a :class:`Cell` that a step needs; ``torch.compile`` can make it in a trace."""

    name: str
    step: Callable[..., tuple[Any, ...]]
    inputs: tuple[str, ...]
    states: tuple[str, ...]
    active: tuple[str, ...]


class StepLayer(Protocol):
    """A layer that a cell describes; compiled steps read raw tensors from its ``__dict__``."""

    @property
    def cell(self) -> Cell: ...

    @property
    def step(self) -> Callable[..., tuple[Any, ...]]: ...

    def step_kwargs(self, ndim: int, dtype: torch.dtype) -> dict[str, Any]: ...

    def _check_input(self, x: object, *, sequence: bool = False) -> torch.dtype: ...

    def _states_for(
        self, x: Tensor, dtype: torch.dtype, *, sequence: bool = False
    ) -> list[Tensor | None]: ...

    def initial_state(
        self, name: str, shape: torch.Size, dtype: torch.dtype, device: torch.device
    ) -> Tensor: ...


@dataclass(frozen=True)
class RestartingStep:
    """A step before which some samples start anew: :attr:`Cell.restarting`."""

    step: Callable[..., tuple[Any, ...]]
    inputs: int  # how many it takes; behind them comes where to start anew
    starts: tuple[str, ...]  # of each state the parameter that it starts from; empty for zero

    def __call__(self, *tensors: Any, **kwargs: Any) -> tuple[Any, ...]:
        """Run one step."""
        inputs, restarts = tensors[: self.inputs], tensors[self.inputs]
        states: list[Any] = []
        for name, state in zip(self.starts, tensors[self.inputs + 1 :], strict=True):
            start = kwargs.pop(name) if name else 0.0
            states.append(None if state is None else torch.where(restarts != 0, start, state))
        return self.step(*inputs, *states, **kwargs)


@dataclass(frozen=True, eq=False, kw_only=True)
class Cell(Opaque):
    """A neuron without its tensors; two are the same if they are one object.

    ::

        step(x, <further inputs>, <states>, *, <parameters>, <options>) -> (output, <states>)

    Whoever writes something declared (size, dimension, an option, a constraint, a method, a buffer
    or a module) drops the layer's cell; then :meth:`is_current` is all that a call asks. What is
    written past ``__setattr__``, into ``vars(layer)``, is not seen.
    """

    kind: type[Any]  # the class of the layer
    name: str
    call: ConstructorCall  # that made the layer
    # of parameters and options the arguments of that call that are their values
    arguments: Mapping[str, tuple[str, ...]]
    step: Callable[..., tuple[Any, ...]]  # the function, pure and pointwise
    # names of the inputs in the order in which step takes them, all of one shape
    inputs: tuple[str, ...]
    states: tuple[str, ...]  # names of the states in the order in which step takes and returns them
    active: tuple[str, ...]  # those that this neuron has; step is given None for the others
    num_neurons: int  # size of the neuron dimension
    dim: int  # the neuron dimension of the tensor of one step
    constraints: Mapping[str, Constraint]  # of every parameter its constraint, by name
    options: Mapping[str, object]  # of every option its value, by name
    buffers: tuple[str, ...]  # names of the layer's buffers, among them initial values of states
    starts: frozenset[str]  # active states that may start from other values than zero
    runs_by_step: bool  # whether every step must run through the layer, whose own methods see each
    definition: tuple[Any, ...]  # methods and properties of the class that all this was read from
    own: Mapping[str, object]  # methods that the instance has in their place, by name
    has_plain_states: bool  # whether states are shaped like the input, in the arithmetic's dtype
    # whether nothing that the step, options and constraints read changes unseen
    is_comparable: bool = field(init=False, repr=False)
    reads: Reads = field(init=False, repr=False)  # what the step and its options read
    # what those and the constraints read, to be compared
    _functions: tuple[tuple[Any, ...], ...] = field(init=False, repr=False)
    _names: tuple[tuple[Callable[[str], object], str, object], ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        reads = Reads(self.step, self.options)
        found = [reads, *(Reads(each.value) for each in self.constraints.values())]
        # of a step that runs eagerly, and may set what it reads, nothing is kept
        compared = [each for each in found if each.beyond is None]
        self.__dict__.update(
            reads=reads,
            is_comparable=len(compared) == len(found),
            _functions=tuple([part for each in found for part in each.functions]),
            _names=tuple([part for each in compared for part in each.names]),
        )

    @classmethod
    def of(
        cls,
        layer: Any,
        call: ConstructorCall,
        arguments: Mapping[str, tuple[str, ...]],
        constraints: Mapping[str, Constraint],
        options: tuple[str, ...],
        base: Mapping[str, object],
    ) -> Cell:
        """Describe a layer as it is; ``base`` are :data:`METHODS` as nobody has overridden them."""
        attributes, kind = layer.__dict__, type(layer)
        own = {name: attributes[name] for name in _OWN if name in attributes}
        overridden = {n for n in METHODS if getattr(kind, n) is not base[n]} | own.keys()
        active, buffers = layer.active_states, tuple(attributes["_buffers"])
        may_start = "initial_state" in overridden
        return cls(
            kind=kind,
            name=kind.__name__,
            call=call,
            arguments=MappingProxyType(dict(arguments)),
            step=layer.step,
            inputs=layer.inputs,
            states=layer.states,
            active=active,
            num_neurons=layer.num_neurons,
            dim=layer.dim,
            constraints=MappingProxyType(dict(constraints)),
            options=MappingProxyType({name: getattr(layer, name) for name in options}),
            buffers=buffers,
            starts=frozenset([n for n in active if may_start or f"initial_{n}" in buffers]),
            runs_by_step=not overridden <= {"initial_state", "step"},
            definition=_definition(kind),
            own=own,
            has_plain_states=replace(layer._state_kind, learned=True) == StateKind(),
        )

    def is_current(self, kind: type) -> bool:
        """Whether a class has the step and the methods still that the cell was made from."""
        if kind is not self.kind or _definition(kind) != self.definition:
            return False
        # edited in place, as %autoreload does
        for function, code, defaults, named in self._functions:
            if (
                function.__code__ is not code
                or function.__defaults__ is not defaults
                or function.__kwdefaults__ is not named
            ):
                return False
        # bound anew, as a cell of a notebook does
        for get, name, value in self._names:  # noqa: SIM110 (a generator is one call more)
            if get(name) is not value:
                return False
        return True

    def equals(self, other: Cell) -> bool:
        """Whether a layer that is described by another cell now was the same for this one."""
        # not tensors and arrays by elements, nor one number for an equal one of another type
        values, others = ((c.num_neurons, c.dim, *c.options.values()) for c in (self, other))
        return (
            self.is_current(other.kind)
            and tuple(self.options) == tuple(other.options)
            and all(map(operator.is_, values, others))
            and self.constraints == other.constraints
            and (self.buffers, self.own, self.active) == (other.buffers, other.own, other.active)
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> Cell:
        return self

    @cached_property
    def raw_names(self) -> tuple[str, ...]:
        """Names of the tensors that the parameters are constrained from."""
        return tuple([f"raw_{name}" for name in self.constraints])

    @cached_property
    def defaults(self) -> Mapping[str, object]:
        """The default of every argument of the constructor; ``inspect.Parameter.empty``: none."""
        parameters = inspect.signature(self.kind).parameters
        return {name: parameter.default for name, parameter in parameters.items()}

    def run(
        self,
        inputs: Iterable[Tensor],
        states: Mapping[str, Tensor],
        kwargs: Mapping[str, Any],
        wrapped: Mapping[str, Callable[[Any], Any]] = MappingProxyType({}),
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Run the step once on plain tensors; ``wrapped`` makes other spike functions, by name."""
        spikes = {name: wrap(kwargs[name]) for name, wrap in wrapped.items()}
        output, *ends = self.step(*inputs, *map(states.get, self.states), **{**kwargs, **spikes})
        after = dict(zip(self.states, ends, strict=True))
        return output, {name: after[name] for name in self.active}

    @cached_property
    def restarting(self) -> Cell:
        """The cell with a last input: where it is not 0, states are set to what they start from."""
        starts = tuple([self.names_of_starts.get(name, "") for name in self.states])
        step = RestartingStep(self.step, len(self.inputs), starts)
        return replace(self, step=step, inputs=(*self.inputs, self._untaken("restarts")))

    @cached_property
    def names_of_starts(self) -> Mapping[str, str]:
        """Names of the parameters that :attr:`restarting` starts states from, by state."""
        return {name: self._untaken(f"initial_{name}") for name in self.starts}

    def _untaken(self, name: str) -> str:
        """Return a name that no argument of the step has."""
        taken = {*self.inputs, *self.states, *self.constraints, *self.options}
        while name in taken:
            name += "_"
        return name

    def dim_from_end(self, ndim: int) -> int:
        """Return the neuron dimension of one step of ``ndim`` dimensions, counted from the end."""
        return self.dim if self.dim < 0 else self.dim - ndim
