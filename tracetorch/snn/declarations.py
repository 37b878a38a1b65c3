"""``DeclaringLayer``: declare parameters and options, read them, and assign them as they read."""

from __future__ import annotations

import copy
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from tracetorch.cell import Cell, Constraint, ConstructorCall
from tracetorch.core.checks import check_count, check_integer
from tracetorch.core.docstrings import SharedDescriptions
from tracetorch.core.torch_private import exclude_from_compile, has_values
from tracetorch.core.walk import MODULE_ATTRIBUTES, Opaque
from tracetorch.functional.surrogates import Surrogate
from tracetorch.snn.module import TTModule
from tracetorch.snn.parameters import (
    DEFAULT_SURROGATE,
    UNSET,
    Decay,
    DecaySetup,
    Rank,
    S,
    SpikeFunction,
    Threshold,
    ThresholdSetup,
    Weight,
    WeightSetup,
    bounded_sigmoid,
    clamp,
    completed,
    fraction,
    is_decay,
    negative_softplus,
    sigmoid,
    softplus,
    unbounded,
)
from tracetorch.snn.passes import State
from tracetorch.snn.signatures import (
    OTHER_NAMES,
    ConstructorSignature,
    check_arguments,
    check_assigned,
    constructor_call,
    is_default,
    written,
)

Check = Callable[[str, object], object]
StepKwargs = Callable[[int, torch.dtype], dict[str, Any]]

L = TypeVar("L", bound="DeclaringLayer")

# attributes that no declaration is read from: their assignment leaves the cell as it is
_HOOKS = ("_backward_hooks", "_forward_hooks", "_forward_pre_hooks")
_UNDECLARED = frozenset({"training", "_zeroed_in_trace", "_zeroed_in_backward", *_HOOKS})
_BOUND = re.compile(r"sigmoid(?: from (0\.\d+|[\d.]+e-\d+))?")  # the name of a decay's constraint


_describe_parameter = SharedDescriptions(
    {
        "name": "the argument of ``step`` that receives it.",
        "value": "a number, a tensor of rank 0 or 1, or a whole setup, a dict or a dataclass.",
        "rank": "0 for one value in the layer, 1 for one per neuron.",
        "learnable": "an ``nn.Parameter`` if true, a buffer if not.",
        "surrogate": "the spike function, ``u -> spikes``; ``atan_surrogate(2.0)`` if left out.",
        "spike": "the argument of ``step`` that receives the spike function.",
        "negative": "below zero, ``-softplus(raw_<name>)``; ``value`` is the magnitude.",
        "low": "the least value; ``None`` for no bound.",
        "high": "the largest value; likewise.",
        "above": "another parameter, declared before, that every value lies above.",
    }
)


class Declarations(Opaque):
    """The declarations of a layer: the constraint of every parameter, the names of its options."""

    def __init__(self, call: ConstructorCall, given: Mapping[str, object]) -> None:
        self.call = call
        # which arguments of the constructor's call are values of parameters and options
        self.arguments: dict[str, tuple[str, ...]] = {}
        self.constraints: dict[str, Constraint] = {}
        self.options: tuple[str, ...] = ()
        self.checks: dict[str, Check] = {}  # what each returns may be assigned to the option
        self.cell: Cell | None = None  # until something declared is written
        self.cells: list[Cell] = []  # of what it was, the last one first
        # the constructor's caller holds the arguments while they are compared, and no one later
        self._identities = {name: (id(value), type(value)) for name, value in given.items()}

    def constrain(self, name: str, constraint: Constraint) -> None:
        """Declare the constraint of a parameter; the layer is another one then."""
        self.constraints[name] = constraint
        self.cell = None

    def note_argument(self, name: str, value: object) -> None:
        """Note which arguments, of its name or a surrogate, are the very value of an option."""
        is_surrogate = isinstance(value, Surrogate)
        found = [
            argument
            for argument, identity in self._identities.items()
            if identity == (id(value), type(value)) and (is_surrogate or argument == name)
        ]
        if found:
            self.arguments[name] = tuple(found)

    def note_assigned(self, kind: type, name: str, value: object) -> None:
        """Let the call say what a parameter or an option is now, if one argument is its value."""
        arguments = self.arguments.get(name, ())
        if len(arguments) == 1:  # copies of the layer share the dict
            named = {**self.call.named, arguments[0]: written(value)}
            if is_default(kind, arguments[0], value):
                del named[arguments[0]]
            self.call = self.call._replace(named=named)

    def __getstate__(self) -> dict[str, Any]:
        own = {n: dict(v) if isinstance(v, dict) else v for n, v in vars(self).items()}
        return {**own, "cell": None, "cells": [], "_identities": {}}  # of this process


class DeclaringLayer(TTModule):
    """Base of :class:`SequenceLayer`: its parameters and options, and what may be done to them."""

    __signature__ = ConstructorSignature()

    num_neurons: int
    dim: int
    _declared: Declarations

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

    def _check_name(self, name: str, *, state: bool = False) -> None:
        found = getattr(type(self), name, None)
        own = isinstance(found, State)  # not to be read: in a pass the layer has none yet
        if not name.isidentifier() or (not state if own else hasattr(self, name)):
            taken = f" {name} is a method of every neuron layer." if callable(found) else ""
            raise ValueError(
                f"{type(self).__name__} cannot call an input, state, parameter or option {name!r}: "
                f"it must be an identifier that is not yet taken.{taken}"
            )

    # Declaring

    @_describe_parameter
    def decay(
        self, name: str, value: DecaySetup = 0.9, *, rank: Rank = 1, learnable: bool = True
    ) -> None:
        """Declare a parameter in (0, 1), ``sigmoid(raw_<name>)``."""
        self._declare(name, value, Decay(0.9, rank, learnable, False), sigmoid)

    @_describe_parameter
    def gate(
        self, name: str, value: DecaySetup = 0.5, *, rank: Rank = 1, learnable: bool = True
    ) -> None:
        """Declare a parameter in (0, 1) that is no decay: nothing reads a half-life off it."""
        self._declare(name, value, Decay(0.5, rank, learnable, False), fraction)

    @_describe_parameter
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
        """Declare a positive parameter, ``softplus(raw_<name>)``, and its spike function."""
        spikes = DEFAULT_SURROGATE if surrogate is None else surrogate
        constraint = negative_softplus if negative else softplus
        default = Threshold(1.0, rank, learnable, spikes)
        self.option(spike, self._declare(name, value, default, constraint, softplus).surrogate)

    @_describe_parameter
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

        Raises:
            ValueError: the value is out of its bounds, or not finite.
        """
        is_bounded = (low, high, above) != (None, None, None)
        constraint = clamp(low, high, above) if is_bounded else unbounded
        self._declare(name, value, Weight(0.0, rank, learnable), constraint)
        self._check_bounds(name, getattr(self, f"raw_{name}").detach())

    def option(
        self, name: str, value: object, *, fixed: bool = False, check: Check | None = None
    ) -> None:
        """Declare a constant: a flag, a word, a number, a spike function; ``step`` receives it.

        It becomes an attribute, which may be assigned anew: a module is registered as one, a tensor
        as a buffer, so that it moves along.

        Args:
            name: the argument of ``step`` that receives it.
            value: the constant.
            fixed: it cannot be assigned anew, for tensors of the layer have its size, say.
            check: ``check(name, value)`` returns the constant, here and when it is assigned anew,
                or raises; a function that can be pickled.
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
            self._declared.checks[name] = _refuse_fixed

    def _declare(
        self,
        name: str,
        value: Any,
        default: S,
        constraint: Constraint,
        given: Constraint | None = None,
    ) -> S:
        """Declare a parameter; its value is given as one of the constraint ``given``, if any."""
        self._check_name(name)
        setup: S = completed(self, name, value, default)
        raw = setup.raw(name, self.num_neurons, given or constraint)
        if setup.learnable:
            self.register_parameter(f"raw_{name}", nn.Parameter(raw))
        else:
            self.register_buffer(f"raw_{name}", raw)
        self._declared.constrain(name, constraint)
        self._declared.note_argument(name, setup.value)
        return setup

    def _bound_decay(self, name: str, low: float | None) -> None:
        """Hold a decay that is learned at ``low``, or at the least of its values, if less."""
        raw = getattr(self, f"raw_{name}").detach()
        if low is not None and not raw.is_meta:
            low = min(low, float(self._constrained(name, raw.double()).min()))
        self._declared.constrain(name, sigmoid if low is None else bounded_sigmoid(low))

    def _check_bounds(self, name: str, raw: Tensor) -> None:
        constraint = self._declared.constraints[name]
        read = raw if constraint.inverse else self._constrained(name, raw)
        if has_values(read) and not torch.equal(raw, read):
            raise ValueError(f"{name} must {constraint.range}, got {raw[raw != read][0].item():g}.")

    @property
    def _options(self) -> tuple[str, ...]:
        return self._declared.options

    @property
    def constraints(self) -> Mapping[str, Constraint]:
        """The constraint of every parameter, by name; ``value = constraint(raw_<name>)``."""
        return self._declared.constraints

    @property
    def _raw_names(self) -> tuple[str, ...]:
        return tuple([f"raw_{name}" for name in self._declared.constraints])

    # Reading

    def _constrained(self, name: str, raw: Tensor) -> Tensor:
        constraint = self._declared.constraints[name]
        if constraint.above is None:
            return constraint.value(raw)
        other = getattr(self, f"raw_{constraint.above}").to(raw)
        return constraint.value(raw, self._constrained(constraint.above, other))

    def step_kwargs(self, ndim: int, dtype: torch.dtype) -> dict[str, Any]:
        """Return the keyword arguments of ``step``, shaped for ``ndim`` dimensions of one step."""
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
        before = dict(vars(self))  # overrides may nest
        self.step_kwargs = replacement  # type: ignore[assignment, method-assign]
        try:
            yield
        finally:
            del self.step_kwargs
            if "step_kwargs" in before:
                self.step_kwargs = before["step_kwargs"]  # type: ignore[method-assign]

    def __getattr__(self, name: str) -> Any:
        if name in self._declared.constraints:
            return self._constrained(name, getattr(self, f"raw_{name}"))
        # past TTModule: no layer has a memory beside its states
        return nn.Module.__getattr__(self, name)

    def __dir__(self) -> list[str]:
        """List the parameters by name too, and leave out the parts that the layer does not have."""
        names: set[str] = set(super().__dir__())  # type: ignore[no-untyped-call]
        names -= {"__signature__", "memory"}  # of the class alone
        attributes = self.__dict__
        names.update(self.constraints)
        names.difference_update(set(self._state_attributes).difference(self.active_states))
        names.difference_update(n for n in self._options if attributes.get(n, n) is None)
        return sorted(names)

    def __repr__(self) -> str:
        call = str(self._declared.call)
        inner = super().__repr__() if self._modules else ""
        return f"{call}{inner[inner.index('(') :]}" if inner else call

    # Assigning

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "__dict__":
            # torch.export makes proxies of modules that have two names, which share attributes
            object.__setattr__(self, name, value)
            return
        declared = self._declared
        if name in declared.constraints:
            if not torch.compiler.is_compiling() and _assigned_by_torch():
                raise AttributeError(
                    f"{name} follows from raw_{name}: it is {declared.constraints[name].name}"
                    f"(raw_{name}). Give functional_call raw_{name}, through which gradients flow."
                )
            self._assign(name, value)
            return
        if name in declared.options:
            value = _plain_number(value)
        if name in declared.checks:
            value = declared.checks[name](name, value)
        if name in OTHER_NAMES and name not in declared.options:
            attributes = self.__dict__  # an option that is None is a part that the layer lacks
            given = [each for each in declared.options if attributes.get(each, UNSET) is not None]
            check_assigned(self, name, (*declared.constraints, *given))
        if name not in _UNDECLARED:
            declared.cell = None
        nn.Module.__setattr__(self, name, value)
        if name in declared.options:
            declared.note_assigned(type(self), name, value)

    @exclude_from_compile
    def _assign(self, name: str, value: Any) -> None:
        """Write the raw tensor in place: its rank, and the optimizer that holds it, stay."""
        if isinstance(value, Tensor) and value.requires_grad and torch.is_grad_enabled():
            raise ValueError(
                f"{name} of {self!r} was given a tensor with a gradient, and none flows through an "
                f"assignment. Give value.detach(); what is to be learned is raw_{name}."
            )
        raw = self._raw_of(name, value)
        current = {**self._buffers, **self._parameters}.get(f"raw_{name}")
        if current is None:
            raise ValueError(
                f"{self._label()} computes raw_{name} before every call, by a parametrization or "
                f"pruning; what is assigned to {name} would not last. Remove that first."
            )
        if raw.ndim > current.ndim:
            raise ValueError(
                f"{self._label()} has one {name} for all neurons, got {len(raw)} values."
            )
        raw = raw.to(current.device, current.dtype).expand(current.shape)
        self._check_bounds(name, raw)
        with torch.no_grad():
            current.copy_(raw)
        self._declared.note_assigned(type(self), name, value)

    def _raw_of(self, name: str, value: Any) -> Tensor:
        """Return the raw tensor of a value, checked as a constructor checks it."""
        return Weight(value, 0).raw(name, self.num_neurons, self._declared.constraints[name])

    def __delattr__(self, name: str) -> None:
        self._declared.cell = None
        nn.Module.__delattr__(self, name)

    def register_buffer(self, name: str, tensor: Tensor | None, persistent: bool = True) -> None:
        """Add a buffer."""
        self._declared.cell = None
        super().register_buffer(name, tensor, persistent)

    def add_module(self, name: str, module: nn.Module | None) -> None:
        """Add a module, as ``nn.Module.add_module``."""
        self._declared.cell = None
        super().add_module(name, module)

    # Copying and loading

    def __getstate__(self) -> dict[str, Any]:
        # copy.copy(layer) shares tensors, and not the dicts that name them, nor its hooks
        attributes = super().__getstate__()
        copies = {
            name: copy.copy(value)
            for name, value in attributes.items()
            if name == "_declared" or (name in MODULE_ATTRIBUTES and isinstance(value, dict))
        }
        return {**attributes, **copies}

    def __deepcopy__(self: L, memo: dict[int, Any]) -> L:
        # PyTorch's parametrized classes copy what is in __dict__, states with their graph
        kind: Any = type(self).__base__ if "parametrizations" in self._modules else type(self)
        copied: Any = type(self).__new__(type(self))
        memo[id(self)] = copied
        copied.__setstate__(copy.deepcopy(kind.__getstate__(self), memo))
        made: L = copied
        return made

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
        saved = metadata.get("constraints", {})
        for name, constraint in self.constraints.items():
            raw = state_dict.get(f"{prefix}raw_{name}")
            if is_decay(constraint) and isinstance(raw, Tensor) and not raw.is_meta:
                self._load_bound(name, saved.get(name), raw.detach())
        super()._load_from_state_dict(state_dict, prefix, metadata, *arguments)

    def _load_bound(self, name: str, saved: str | None, raw: Tensor) -> None:
        """Change the bound of a decay where it would change values that were ``saved`` with one."""
        match = _BOUND.fullmatch(saved or sigmoid.name)
        if match is None:
            raise ValueError(f"{saved!r} is no constraint of a decay. Load what state_dict() gave.")
        own = getattr(self.constraints[name].value, "low", 0.0)
        found = float(raw.double().sigmoid().min()) if raw.numel() else own
        bound = float(match[1] or 0.0)
        if found < max(own, bound):
            # what learning has led below the saved bound was held there
            self._declared.constrain(name, bounded_sigmoid(bound or max(found, sys.float_info.min)))
        if saved is None and found < own * (1 - 1e-6):
            warnings.warn(
                f"{self._label()} loads {found:.6g} as {name}, below its bound {own:.6g}: "
                f"{found:.6g} is the bound now.",
                stacklevel=2,
            )


def _assigned_by_torch() -> bool:
    """Whether PyTorch assigns an attribute: ``functional_call``, which puts tensors in place."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None and frame.f_code.co_name == "__setattr__":
        frame = frame.f_back
    return frame is not None and frame.f_globals.get("__name__", "").startswith("torch.")


def _refuse_fixed(name: str, value: object) -> object:
    raise AttributeError(
        f"{name} is fixed by the constructor: tensors and states of the layer follow from it. "
        "Build another layer."
    )


def _plain_number(value: object) -> object:
    """Return a number of NumPy as one of Python, which a kernel knows."""
    return value.item() if isinstance(value, np.generic) else value
