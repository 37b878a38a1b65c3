"""Set up parameters of neurons: decays, thresholds and weights, each with its constraint.

A parameter is stored unbounded under the name ``raw_<name>``, as in 0.9.2, and used through its
constraint, so that every step of an optimizer lands on a legal value.
"""

from __future__ import annotations

import copy
import inspect
import math
import numbers
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from enum import Enum
from functools import lru_cache
from typing import Any, Literal, TypeAlias, TypeVar

import torch
import torch.nn.functional as F  # noqa: N812 (PyTorch's own convention)
from torch import Tensor

from tracetorch.cell import Constraint, ConstraintGradient
from tracetorch.core.checks import check_each, check_flag, check_number
from tracetorch.functional import Surrogate, atan_surrogate, sigmoid_inverse, softplus_inverse

Value: TypeAlias = float | Tensor
Rank: TypeAlias = Literal[0, 1]
SpikeFunction: TypeAlias = Callable[[Tensor], Tensor]


class Unset(Enum):
    """Marks a field of a setup that takes the default of its parameter."""

    UNSET = "unset"

    def __repr__(self) -> str:
        return self.name


UNSET = Unset.UNSET
_signature = lru_cache(256)(inspect.signature)  # of constructors, for each parameter anew
_sigmoid_backward: Callable[..., Tensor] = torch.ops.aten.sigmoid_backward.default
_softplus_backward: Callable[..., Tensor] = torch.ops.aten.softplus_backward.default


def _same(raw: Tensor) -> Tensor:
    return raw


def _same_gradient(grad: Tensor, raw: Tensor, value: Tensor) -> Tensor:
    return grad


def _sigmoid_gradient(grad: Tensor, raw: Tensor, value: Tensor) -> Tensor:
    return _sigmoid_backward(grad, value)


def _softplus_gradient(grad: Tensor, raw: Tensor, value: Tensor) -> Tensor:
    return _softplus_backward(grad, raw, 1, 20)  # the defaults of F.softplus


def _negative_softplus(raw: Tensor) -> Tensor:
    return -F.softplus(raw)


def _negative_softplus_inverse(value: Tensor) -> Tensor:
    return softplus_inverse(-value)


def _negative_softplus_gradient(grad: Tensor, raw: Tensor, value: Tensor) -> Tensor:
    return _softplus_backward(-grad, raw, 1, 20)


unbounded = Constraint("unbounded", _same, gradient=ConstraintGradient(_same_gradient, False))
sigmoid = Constraint(
    "sigmoid",
    torch.sigmoid,
    sigmoid_inverse,
    ConstraintGradient(_sigmoid_gradient, reads_raw=False),
    *(0.0, 1.0),
    "lie strictly between 0 and 1 (for a slow decay try 0.999, to forget at once 1e-7)",
    nearest=1e-7,  # torch.rand may draw 0
)
fraction = replace(sigmoid, name="fraction")
softplus = Constraint(
    "softplus",
    F.softplus,
    softplus_inverse,
    ConstraintGradient(_softplus_gradient, reads_raw=True),
    low=0.0,
    range="be positive and finite",
)
negative_softplus = Constraint(
    "negative_softplus",
    _negative_softplus,
    _negative_softplus_inverse,
    ConstraintGradient(_negative_softplus_gradient, reads_raw=True),
    high=0.0,
    range="be negative and finite (a constructor takes its magnitude, an assignment its value)",
)


@dataclass(frozen=True)
class Clamp:
    """Clamp to ``[low, high]``; the gradient passes, so that a value can come back from outside."""

    low: float | None = None
    high: float | None = None

    def __call__(self, raw: Tensor, other: Tensor | None = None) -> Tensor:
        """Return ``raw`` clamped, and above ``other``, the value of another parameter."""
        clamped = raw.detach()
        if self.low is not None or self.high is not None:
            clamped = clamped.clamp(self.low, self.high)
        if other is not None:
            other = other.detach() if raw.ndim else other.detach().max()
            lowest = torch.nextafter(other, other.new_full((), torch.inf))
            clamped = torch.maximum(clamped, lowest)
        return clamped + (raw - raw.detach())


def clamp(low: float | None, high: float | None, above: str | None = None) -> Constraint:
    """Return the constraint that clamps a parameter, and holds it above that of its neuron."""
    ends = [f"at least {low:g}"] if low is not None else []
    ends += [f"at most {high:g}"] if high is not None else []
    ends += [f"above {above}"] if above is not None else []
    gradient = None if above else unbounded.gradient
    text = f"be {' and '.join(ends)}"
    return Constraint("clamp", Clamp(low, high), gradient=gradient, range=text, above=above)


@dataclass(frozen=True)
class BoundedSigmoid:
    """``sigmoid(raw)`` held at ``low``; the gradient there is that of ``low``, and passes."""

    low: float

    def __call__(self, raw: Tensor) -> Tensor:
        """Return the value."""
        return torch.sigmoid(Clamp(math.log(self.low / (1 - self.low)))(raw))


def bounded_sigmoid(low: float) -> Constraint:
    """Return the constraint of decays that learning leads no lower than ``low``, in (0, 1)."""
    return replace(
        sigmoid,
        name=f"sigmoid from {low!r}",  # all digits: files hold it
        value=BoundedSigmoid(low),
        low=low * (1 - 1e-6),  # the least value itself is legal, rounded too
        range=f"be at least {low:.6g} and below 1 (build the layer with less for a lower bound)",
    )


def is_decay(constraint: Constraint) -> bool:
    """Whether a constraint is that of a decay, bounded or not."""
    return constraint == sigmoid or isinstance(constraint.value, BoundedSigmoid)


@dataclass(frozen=True)
class Weight:
    """A parameter without bounds: a scale, a recurrent weight, a bias.

    An unset field takes the default of the parameter, that of the constructor if it has one.

    Args:
        value: a number, or a tensor of rank 0 or 1, which sets its own rank.
        rank: 0 for one value in the layer, 1 for one per neuron.
        learnable: an ``nn.Parameter`` if true, a buffer if not.

    Example:
        >>> Weight(0.5, rank=0)
        Weight(value=0.5, rank=0, learnable=UNSET)
    """

    value: Value | Unset = UNSET
    rank: Rank | Unset = UNSET
    learnable: bool | Unset = UNSET

    def _check(self, name: str) -> None:
        if type(self.rank) is not int or self.rank not in (0, 1):
            raise ValueError(
                f"{name}: rank must be 0 (for the layer) or 1 (per neuron), got {self.rank!r}."
            )
        check_flag(f"{name}: learnable", self.learnable)

    def raw(self, name: str, num_neurons: int, constraint: Constraint = unbounded) -> Tensor:
        """Return the raw tensor to store, in the default dtype and of rank 0 or 1; check it."""
        value = self.value
        if isinstance(value, Tensor):
            if not value.is_floating_point():
                raise TypeError(f"{name} must be a floating-point tensor, got {value.dtype}.")
            check_each(name, value, num_neurons, "neuron")
            if value.is_meta:  # made under torch.device("meta"): a shape, and no values
                return torch.empty(value.shape, dtype=torch.get_default_dtype(), device="meta")
            constrained = value.detach().to("cpu", torch.float64)
        elif isinstance(value, numbers.Real) and not isinstance(value, bool):
            number = check_number(name, value)
            constrained = torch.tensor(number, dtype=torch.float64, device="cpu")
        else:
            raise TypeError(f"{name} must be a number or a tensor, got {type(value).__name__}.")
        low, high, nearest = constraint.low, constraint.high, constraint.nearest
        if nearest is not None and isinstance(value, Tensor):
            constrained = torch.where(constrained == low, low + nearest, constrained)
            constrained = torch.where(constrained == high, high - nearest, constrained)
        legal = (constrained > low) & (constrained < high)
        if not bool(legal.all()):
            raise ValueError(
                f"{name} must {constraint.range}, got {constrained[~legal][0].item()}."
            )
        raw = constrained if constraint.inverse is None else constraint.inverse(constrained)
        raw = raw.to(torch.get_default_dtype())
        if not bool(torch.isfinite(raw).all()):
            raise ValueError(f"{name} is beyond the range of {raw.dtype}, got {value}.")
        if self.rank == 1 and not isinstance(value, Tensor):
            raw = raw.expand(num_neurons)
        here = torch.empty(0).device  # where `with torch.device(...)` says
        # a copy, shared with no one; .contiguous() would leave an expanded [1] its stride of 0
        return raw.to(here, copy=True, memory_format=torch.contiguous_format)


@dataclass(frozen=True)
class Decay(Weight):
    """A parameter in (0, 1), kept as its logit: ``decay = sigmoid(raw)``.

    Args:
        value: as for :class:`Weight`. In a tensor an exact 0 or 1 becomes 1e-7 or 1 - 1e-7.
        rank: 0 for one value in the layer, 1 for one per neuron.
        learnable: an ``nn.Parameter`` if true, a buffer if not.
        use_averaging: the inflow of the trace is scaled by ``1 - decay``, an exponential moving
            average. Read by :class:`LeakyIntegrator` alone.

    Example:
        >>> Decay(0.9, learnable=False)
        Decay(value=0.9, rank=UNSET, learnable=False, use_averaging=UNSET)
    """

    use_averaging: bool | Unset = UNSET

    def _check(self, name: str) -> None:
        super()._check(name)
        check_flag(f"{name}: use_averaging", self.use_averaging)


@dataclass(frozen=True)
class Threshold(Weight):
    """A positive parameter and the spike function that tests against it: ``softplus(raw)``.

    Args:
        value: as for :class:`Weight`; positive. For a threshold below zero, its magnitude.
        rank: 0 for one value in the layer, 1 for one per neuron.
        learnable: an ``nn.Parameter`` if true, a buffer if not.
        surrogate: a callable ``u -> spikes``, usually one of ``tt.functional``'s surrogates.

    Example:
        >>> Threshold(0.5, rank=0)
        Threshold(value=0.5, rank=0, learnable=UNSET, surrogate=UNSET)
    """

    surrogate: SpikeFunction | Unset = UNSET

    def _check(self, name: str) -> None:
        super()._check(name)
        if not callable(self.surrogate):
            got = type(self.surrogate).__name__
            raise TypeError(f"{name}: surrogate must be callable, u -> spikes, got {got}.")
        if _is_derivative(self.surrogate):
            raise ValueError(
                f"{name}: surrogate_derivative takes the spike function u -> spikes, with its "
                f"derivative built in, not the derivative itself, as {self.surrogate!r} is. Try "
                "tt.functional.atan_surrogate(2.0), or see tt.functional.Surrogate."
            )


def _is_derivative(spike: SpikeFunction) -> bool:
    """Whether a function is the derivative of a step: symmetric in ``u``, its values no spikes."""
    if isinstance(spike, Surrogate) or torch.compiler.is_compiling():
        return False
    half = [0.003, 0.01, 0.04, 0.13, 0.37, 0.71, 1.3, 2.9]
    try:
        # a copy of a module, for it may count its calls; spikes may be drawn at random
        with torch.random.fork_rng([]), torch.no_grad():
            u = torch.tensor([-v for v in half[::-1]] + half, device="cpu")
            values = copy.deepcopy(spike)(u)
        # differences of float32, such as s * (1 - s) of a sigmoid, are not quite symmetric
        symmetric = torch.allclose(values, values.flip(0), 1e-5, 1e-6 * float(values.abs().max()))
        return symmetric and not torch.equal(values, values.round())
    except Exception:
        return False  # what is wrong with the callable shows where it is called


S = TypeVar("S", Weight, Decay, Threshold)

WeightSetup: TypeAlias = Value | Mapping[str, Any] | Weight
DecaySetup: TypeAlias = Value | Mapping[str, Any] | Decay
ThresholdSetup: TypeAlias = Value | Mapping[str, Any] | Threshold

DEFAULT_SURROGATE = atan_surrogate(2.0)

WEIGHT = Weight(0.0, 1, True)
THRESHOLD = Threshold(1.0, 1, True, DEFAULT_SURROGATE)


def completed(layer: Any, name: str, given: Value | Mapping[str, Any] | S | None, default: S) -> S:
    """Complete a setup by the constructor's own default, that of the nearest class, before ours."""
    for kind in reversed(type(layer).__mro__) if isinstance(given, Mapping | Weight) else ():
        own = vars(kind).get("__init__")
        named = _signature(own).parameters if own else {}
        value: Any = named[name].default if name in named else None
        is_setup = isinstance(value, float | Tensor | Mapping | Weight) or type(value) is int
        if is_setup:
            default = resolve_setup(name, value, default)
    return resolve_setup(name, given, default)


def resolve_setup(name: str, given: Value | Mapping[str, Any] | S | None, default: S) -> S:
    """Complete a setup as the user may write it: unset fields take those of ``default``."""
    kind = type(default)
    values: dict[str, Any]
    if given is None or isinstance(given, Mapping):
        values = dict(given or {})
    elif type(given) is kind:
        values = {field.name: getattr(given, field.name) for field in fields(given)}
    elif isinstance(given, Weight):
        wanted, got = kind.__name__, type(given).__name__
        raise TypeError(f"the setup of {name} must be a dict, a {wanted} or None, got {got}.")
    else:
        values = {"value": given}
    keys = [field.name for field in fields(kind)]
    for key in values.keys() - set(keys):
        raise ValueError(f"the setup of {name} has no key {key!r}. Its keys are {', '.join(keys)}.")
    setup = replace(default, **{key: value for key, value in values.items() if value is not UNSET})
    setup._check(name)
    return setup
