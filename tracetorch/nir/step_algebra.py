"""Run a step on symbols: sums, spikes and resets to zero become data, and the rest is refused.

Between its spikes NIR is linear: nodes add, scale by constants, leak, delay and compare with a
threshold. So a value of a step is a sum of factors times others, down to the input, the states of
the step before, and spikes. Values keep their identity: what a step computes once is one node.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NoReturn, TypeAlias

import numpy as np
import torch
from torch import Tensor

from tracetorch.nir.node_graph import Shape
from tracetorch.nir.options import Array
from tracetorch.snn import Neuron

Terms: TypeAlias = "tuple[tuple[Array, Signal], ...]"

# graded spikes differ far from the threshold, or near it, or where levels meet
_MAGNITUDES = (*(10.0**n for n in range(-6, 7)), 1.5, 2.5)
_PROBE = tuple(sorted((*(-u for u in _MAGNITUDES), 0.0, *_MAGNITUDES)))
INPUT = "x"


class Signal:
    """Stand in for a tensor of a step that changes with time."""

    __array_ufunc__ = None  # a NumPy number on the left asks us
    dtype = torch.float64

    def __init__(self, shape: Shape) -> None:
        self.shape = shape

    def __add__(self, other: Any) -> Signal:
        return self._plus(other, 1.0)

    def __sub__(self, other: Any) -> Signal:
        return self._plus(other, -1.0)

    def __rsub__(self, other: Any) -> Signal:
        return (-self)._plus(other, 1.0)

    def __mul__(self, other: Any) -> Signal:
        if isinstance(other, Signal):
            return _product(self, other)
        return Sum(self.shape, ((constant(other, self.shape), self),))

    def __truediv__(self, other: Any) -> Signal:
        if isinstance(other, Signal):
            _refuse("div", self, other)
        return Sum(self.shape, ((1 / constant(other, self.shape), self),))

    def __rtruediv__(self, other: Any) -> Signal:
        _refuse("div", other, self)

    def __pow__(self, other: Any) -> Signal:
        _refuse("pow", self)

    def __neg__(self) -> Signal:
        return self * -1.0

    def __pos__(self) -> Signal:
        return self

    __radd__, __rmul__ = __add__, __mul__

    def to(self, *_: Any, **__: Any) -> Signal:
        """Return the value, whose dtype is always float64; ``detach`` and ``clone`` likewise."""
        return self

    detach = clone = contiguous = to

    def _plus(self, other: Any, sign: float) -> Signal:
        one = np.ones(self.shape)
        if isinstance(other, Signal):
            return Sum(self.shape, ((one, self), (sign * one, other)))
        return Sum(self.shape, ((one, self),), sign * constant(other, self.shape))

    @classmethod
    def __torch_function__(
        cls, func: Any, _: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Signal:
        name = str(getattr(func, "__name__", func)).strip("_")
        rule = _FUNCTIONS.get(name)
        if rule is None or not set(kwargs or ()) <= {"alpha", "value", "weight"}:
            _refuse(name, *args)
        return rule(*args, **(kwargs or {}))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if name in _FUNCTIONS:  # as a method
            return partial(_FUNCTIONS[name], self)
        return _refuse(name, self)

    def _compared(self, *others: Any) -> Any:
        """Refuse a comparison, or a branch that depends on data."""
        _refuse("a comparison", self, *others)

    __lt__ = __le__ = __gt__ = __ge__ = __eq__ = __ne__ = _compared
    __bool__ = __float__ = __int__ = _compared
    __hash__ = object.__hash__


class Symbol(Signal):
    """The input, or a state of the step before, by name."""

    def __init__(self, shape: Shape, name: str) -> None:
        super().__init__(shape)
        self.name = name


class Sum(Signal):
    """Sum of factors times values, and a constant."""

    def __init__(self, shape: Shape, terms: Terms, added: Array | float = 0.0) -> None:
        super().__init__(shape)
        self.terms, self.added = terms, np.broadcast_to(added, shape)


class Spike(Signal):
    """Hold one where ``argument`` is above zero, else zero."""

    def __init__(self, shape: Shape, argument: Signal) -> None:
        super().__init__(shape)
        self.argument = argument


class Kept(Signal):
    """Hold a value where a spike is zero: ``value * (1 - spike)``, the reset to zero."""

    def __init__(self, shape: Shape, value: Signal, spike: Spike) -> None:
        super().__init__(shape)
        self.value, self.spike = value, spike


@dataclass(frozen=True)
class SymbolicStep:
    """A step on symbols: its output, and what each active state becomes."""

    output: Signal
    ends: dict[str, Signal]


def symbolic_step(layer: Neuron, shape: Shape) -> SymbolicStep:
    """Run a step on symbols for samples of ``shape``; raise where it is not linear."""
    cell = layer.cell
    if len(cell.inputs) > 1:
        problem = f"takes the inputs {', '.join(cell.inputs)}; a node of NIR has one"
        raise ValueError(f"{problem}. Use a neuron whose only input is x.")
    kwargs = layer.step_kwargs(len(shape) + 1, torch.float64)
    for name, value in cell.options.items():
        if callable(value):
            check_spikes(value, next(layer.parameters(), torch.empty(0)).device)
            kwargs[name] = _spike
    states = [Symbol(shape, n) if n in cell.active else None for n in cell.states]
    try:
        output, *ends = cell.step(Symbol(shape, INPUT), *states, **kwargs)
    except (AttributeError, IndexError, RuntimeError, TypeError) as error:
        problem = f"has a step that no symbols can follow: {str(error).partition(chr(10))[0]}"
        raise ValueError(f"{problem}. NIR adds, scales and compares.") from error
    found = {n: _signal(end, shape) for n, end in zip(cell.states, ends, strict=True)}
    return SymbolicStep(_signal(output, shape), {name: found[name] for name in cell.active})


def check_spikes(spike: Callable[[Tensor], Tensor], device: torch.device) -> None:
    """Raise where a spike function is not ``u > 0``: NIR knows no other."""
    probe = torch.tensor(_PROBE, dtype=torch.float64, device=device)
    with torch.no_grad():
        fired = spike(probe)
    wrong = fired.to(probe.dtype) != (probe > 0).to(probe.dtype)
    if wrong.any():
        problem = f"fires by {spike!r}, which gives {fired[wrong][0]:g} at {probe[wrong][0]:g}"
        raise ValueError(f"{problem}. NIR knows spikes of one above the threshold.")


def parts(signal: Signal) -> Iterator[Signal]:
    """Yield what a value is computed from, at once."""
    if isinstance(signal, Sum):
        yield from (part for _, part in signal.terms)
    elif isinstance(signal, Spike):
        yield signal.argument
    elif isinstance(signal, Kept):
        yield from (signal.value, signal.spike)


def walk(*values: Any, through_spikes: bool = True) -> Iterator[Signal]:
    """Yield values and what they are computed from, each once."""
    waiting = [value for value in values if isinstance(value, Signal)]
    seen: set[int] = set()
    while waiting:
        signal = waiting.pop(0)
        if id(signal) in seen:
            continue
        seen.add(id(signal))
        yield signal
        if through_spikes or not isinstance(signal, Spike):
            waiting += parts(signal)


def named(*values: Any) -> str:
    """Return the symbols that values depend on, in words."""
    symbols = [signal for signal in walk(*values) if isinstance(signal, Symbol)]
    names = [s.name if s.name == INPUT else repr(s.name) for s in symbols]
    return " and ".join(dict.fromkeys(names)) or "a constant"


def constant(value: Any, shape: Shape) -> Array:
    """Return a constant of a step over ``shape``."""
    if isinstance(value, Tensor):
        value = value.detach().to("cpu", torch.float64).numpy()
    if isinstance(value, np.ndarray) and value.ndim > len(shape):  # its batch has size 1
        value = value.reshape(value.shape[value.ndim - len(shape) :])
    return np.broadcast_to(np.asarray(value, np.float64), shape)


def _product(a: Signal, b: Signal) -> Signal:
    """Return a product with a spike, or with one minus it."""
    for value, other in ((a, b), (b, a)):
        if isinstance(other, Spike):
            return value - Kept(value.shape, value, other)
        # factor * spike + added
        factor, spike, added = np.ones(other.shape), other, np.zeros(other.shape)
        while isinstance(spike, Sum) and len(spike.terms) == 1:
            added = added + factor * spike.added
            ((scale, spike),) = spike.terms
            factor = factor * scale
        if isinstance(spike, Spike) and (factor == -1).all() and (added == 1).all():
            return Kept(value.shape, value, spike)
    return _refuse("mul", a, b)


def _signal(value: Any, shape: Shape) -> Signal:
    return value if isinstance(value, Signal) else Sum(shape, (), constant(value, shape))


def _spike(argument: Any) -> Spike:
    if not isinstance(argument, Signal):
        _refuse("a spike", argument)
    return Spike(argument.shape, argument)


def _refuse(name: str, *args: Any) -> NoReturn:
    flat = [part for arg in args for part in (arg if isinstance(arg, (list, tuple)) else [arg])]
    raise ValueError(
        f"computes {name} of {named(*flat)}; in NIR values are added, scaled by constants, and "
        "compared with a threshold by a spike function"
    )


def _add(a: Any, b: Any) -> Any:
    return b + a if isinstance(b, Signal) else a + b


def _subtract(a: Any, b: Any) -> Any:
    return b.__rsub__(a) if isinstance(b, Signal) and not isinstance(a, Signal) else a - b


def _times(a: Any, b: Any) -> Any:
    if isinstance(b, (int, float)) and b == 1:
        return a
    return b * a if isinstance(b, Signal) else a * b


_FUNCTIONS: Mapping[str, Callable[..., Signal]] = {
    "add": lambda a, b, *, alpha=1: _add(a, _times(b, alpha)),
    "sub": lambda a, b, *, alpha=1: _subtract(a, _times(b, alpha)),
    "rsub": lambda a, b: b - a if isinstance(b, Signal) else a.__rsub__(b),
    "mul": lambda a, b: _times(a, b),
    "div": lambda a, b: a / b if isinstance(a, Signal) else b.__rtruediv__(a),
    "addcmul": lambda a, b, c, *, value=1: _add(a, _times(_times(b, c), value)),
    "lerp": lambda a, b, weight: _add(a, _times(weight, _subtract(b, a))),
    "neg": lambda a: -a,
    "clone": lambda a: a,
    "detach": lambda a: a,
}
