"""``ConstrainedLayer``: a layer whose parameters follow from raw tensors by constraints."""

from __future__ import annotations

import inspect
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from tracetorch.cell import Constraint
from tracetorch.core.snapshot import restored_on_error
from tracetorch.core.torch_private import exclude_from_compile, has_values
from tracetorch.snn.lost_writes import warn_of_lost_writes
from tracetorch.snn.parameters import (
    DECAY,
    THRESHOLD,
    UNSET,
    WEIGHT,
    Decay,
    DecaySetup,
    Rank,
    S,
    SpikeFunction,
    Threshold,
    ThresholdSetup,
    Unset,
    Value,
    Weight,
    WeightSetup,
    bounded_sigmoid,
    clamp,
    fraction,
    is_decay,
    is_setup,
    least,
    named_bound,
    negative_softplus,
    resolve_setup,
    sigmoid,
    softplus,
    unbounded,
)
from tracetorch.snn.sequence_layer import SequenceLayer

StepKwargs = Callable[[int, torch.dtype], dict[str, Any]]


class ConstrainedLayer(SequenceLayer):
    """A layer that declares parameters, each the value of a constraint of a raw tensor.

    A parameter reads as it is used, ``layer.beta``, and is set by assignment, ``layer.beta = 0.5``,
    which writes ``raw_beta`` in place. What is written into the value in place is lost.

    Args:
        num_neurons: size of the neuron dimension; at least 1.
        dim: the neuron dimension of the tensor of one step.
    """

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
        self._declare(name, self._completed(name, value, default), sigmoid)
        self._bound_decay(name, low)

    def gate(
        self,
        name: str,
        value: DecaySetup = 0.5,
        *,
        rank: Rank = 1,
        learnable: bool = True,
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
        self._declare(name, self._completed(name, value, default), fraction)

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
        setup = self._completed(name, value, default)
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
        self._declare(name, self._completed(name, value, default), constraint)
        raw = getattr(self, f"raw_{name}").detach()
        if not is_bounded or raw.is_meta:
            return
        held = self.constrained(name, raw)
        if not torch.equal(raw, held):
            ends = [f"at least {low:g}"] if low is not None else []
            ends += [f"at most {high:g}"] if high is not None else []
            ends += [f"above {above}"] if above is not None else []
            given = raw[raw != held][0].item()
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

    def _completed(self, name: str, given: Value | Mapping[str, Any] | S | None, default: S) -> S:
        """Complete a setup as the user may write it, by the constructor's own default before ours.

        ``AdLIF(3, rho={"learnable": False})`` names no value: it is the default that ``AdLIF``'s
        constructor has for ``rho``, that of the nearest class which has the argument.
        """
        if isinstance(given, Mapping | Weight):
            for kind in reversed(type(self).__mro__):
                own = vars(kind).get("__init__")
                argument = inspect.signature(own).parameters.get(name) if own else None
                if argument is not None and is_setup(argument.default):
                    default = resolve_setup(name, argument.default, default)
        return resolve_setup(name, given, default)

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
        self._declared.constraints[name] = constraint
        self._declared.note_argument(name, setup.value)

    def _bound_decay(self, name: str, low: float | None) -> None:
        """Bound what learning leads to by ``low``, or by the least value there is, if less."""
        raw = getattr(self, f"raw_{name}").detach()
        constraint = sigmoid
        if low is not None:
            given = low if raw.is_meta else float(self.constrained(name, raw.double()).min())
            constraint = bounded_sigmoid(min(low, given))
        self._declared.constraints[name] = constraint

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
                self._load_bound(name, least(constraint) or 0.0, bound, loaded.detach())
        super()._load_from_state_dict(state_dict, prefix, metadata, *arguments)

    def _load_bound(self, name: str, own: float, saved: float | Unset | None, raw: Tensor) -> None:
        """Change the bound of a decay where it would change the values that are loaded.

        Args:
            name: the parameter.
            own: its bound; 0 for none.
            saved: that of the layer which was saved; ``None`` for none, ``UNSET``: it is not known.
            raw: what is loaded.
        """
        found = float(raw.double().sigmoid().min()) if raw.numel() else own
        if isinstance(saved, float):
            # what learning has led below the saved bound was held there
            low = saved if found < max(own, saved) else own
        else:
            low = max(found, sys.float_info.min) if found < own else own
            if saved is UNSET and found < own * (1 - 1e-6):
                warnings.warn(
                    f"{self.label()} loads {found:.6g} as {name}, below its bound {own:.6g}, from "
                    f"a dict that does not say which bound there was: {found:.6g} is the bound "
                    "now. Load what state_dict() or tt.save gave, as it is.",
                    stacklevel=2,
                )
        if low != own:
            self._declared.constraints[name] = bounded_sigmoid(low)

    # Reading and assigning

    def constrained(self, name: str, raw: Tensor) -> Tensor:
        """Return the value of a parameter that follows from a raw one.

        Args:
            name: the parameter.
            raw: what to constrain, as ``raw_<name>``.

        """
        constraint = self._declared.constraints[name]
        if constraint.above is None:
            return constraint.value(raw)
        other = getattr(self, f"raw_{constraint.above}").to(raw)
        return constraint.value(raw, self.constrained(constraint.above, other))

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
            value = self.constrained(name, raw) if follows else constraint.value(raw)
            kwargs[name] = value.reshape(-1, *[1] * trailing) if value.ndim and trailing else value
        for name in self._declared.options:
            kwargs[name] = getattr(self, name)
        return kwargs

    @contextmanager
    def override_step_kwargs(self, replacement: StepKwargs) -> Iterator[None]:
        """Let ``replacement(ndim, dtype)`` give the step kwargs within a block.

        An export makes the parameters constants of a program in this way.

        Args:
            replacement: called instead of :meth:`step_kwargs`.
        """
        attributes = vars(self)
        previous = attributes.get("step_kwargs")  # overrides may nest
        attributes["step_kwargs"] = replacement
        try:
            yield
        finally:
            if previous is None:
                del attributes["step_kwargs"]
            else:
                attributes["step_kwargs"] = previous

    def __getattr__(self, name: str) -> Any:
        constraint = self._declared.constraints.get(name)
        if constraint is None:
            return super().__getattr__(name)
        raw = self._parameters.get(f"raw_{name}")
        if raw is None:  # a buffer, or a parametrization
            raw = getattr(self, f"raw_{name}")
        follows = constraint.above is not None  # another parameter too
        value = self.constrained(name, raw) if follows else constraint.value(raw)
        if value is not raw:
            warn_of_lost_writes(self, name, value)
        return value

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "__dict__":  # of a proxy, which has no declarations yet
            super().__setattr__(name, value)
            return
        declared = self._declared
        if name not in declared.constraints:
            super().__setattr__(name, value)
            return
        if not torch.compiler.is_compiling() and _assigned_by_torch():
            constraint = declared.constraints[name].name
            raise AttributeError(
                f"{name} follows from raw_{name}: it is {constraint}(raw_{name}). Give "
                f"functional_call raw_{name}, through which gradients flow."
            )
        self._assign(name, value)

    @exclude_from_compile
    def _assign(self, name: str, value: Any) -> None:
        """Write the raw tensor of a parameter in place, so that the parameter reads ``value``.

        Its rank, and the optimizer that holds the raw tensor, stay as they are.
        """
        if isinstance(value, Tensor) and value.requires_grad and torch.is_grad_enabled():
            raise ValueError(
                f"{name} of {self!r} was given a tensor with a gradient, and none flows through an "
                "assignment. Give value.detach(), or assign under torch.no_grad(); what is to be "
                f"learned is raw_{name}."
            )
        raw_name, raw = f"raw_{name}", self._raw_of(name, value)
        if raw_name in self.__dict__:
            raise ValueError(
                f"{self.label()} computes {raw_name} before every call, by pruning or a norm of "
                f"weights; what is assigned to {name} would not last. Remove that first."
            )
        current = getattr(self, raw_name)
        if raw.is_meta and not current.is_meta:
            raise ValueError(
                f"{self.label()} was given a tensor on the meta device as {name}: it has no values."
            )
        if raw.ndim > current.ndim:
            raise ValueError(
                f"{self.label()} has one {name} for all neurons, got {len(raw)} values. Give one "
                "number, or build the layer with rank 1."
            )
        constraint = self._declared.constraints[name]
        # that of a raw value in bounds is the value itself
        wanted = raw.double() if constraint.inverse is None else constraint.value(raw.double())
        stored = current is self._parameters.get(raw_name, self._buffers.get(raw_name))
        written = [current] if stored else [*self.parameters(), *self.buffers()]
        with torch.no_grad(), restored_on_error(written):
            if stored:
                current.copy_(raw)
            else:  # by the right inverse of its parametrization
                setattr(self, raw_name, raw.to(current).expand_as(current).clone())
            found = self.constrained(name, getattr(self, raw_name))
            tolerance = min(100 * torch.finfo(found.dtype).eps, 0.1)
            if has_values(found) and not torch.allclose(
                found.double(), wanted.to(found.device).expand_as(found), tolerance, 1e-6
            ):
                raise ValueError(
                    f"{self.label()} cannot have {value} as {name}: out of its bounds, it would "
                    f"be {found.tolist()}."
                )
        self._declared.note_assigned(type(self), name, value)

    def _raw_of(self, name: str, value: Any) -> Tensor:
        """Return the raw tensor of a value, checked as a constructor checks it."""
        setup, constraint = Weight(value, 0), self._declared.constraints[name]
        try:
            return setup.raw(name, self.num_neurons, constraint)
        except ValueError as error:
            if least(constraint) is None:
                raise
            setup.raw(name, self.num_neurons, sigmoid)  # raises where no bound would help
            raise ValueError(
                f"{error} Build the layer with {type(self).__name__}(..., {name}="
                f"{'...' if isinstance(value, Tensor) else value}) for a bound as low."
            ) from None


def _assigned_by_torch() -> bool:
    """Whether PyTorch assigns an attribute: ``functional_call``, which puts tensors in place."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None and frame.f_code.co_name == "__setattr__":
        frame = frame.f_back
    return frame is not None and frame.f_globals.get("__name__", "").startswith("torch.")
