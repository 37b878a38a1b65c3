"""Lower PyTorch operations to lines of a :class:`Graph`, or to operations that have a rule."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor

from tracetorch.core.torch_private import COMPOSITE, decomposition_of
from tracetorch.fuse.ir.graph import BINARY, COMPARISONS, LOGIC, UNARY, Builder, Unfusable, Value

# Called as PyTorch calls the operation, behind the builder ``b`` that gets the lines.
Rule: TypeAlias = Callable[..., Value]


def _as_float(b: Builder, value: Value) -> Value:
    if isinstance(value, str):
        return b.emit("float", value) if b.is_boolean(value) else value
    return float(value)


def _as_boolean(b: Builder, value: Value) -> Value:
    return value if b.is_boolean(value) else b.emit("ne", _as_float(b, value), 0.0)


def _on_floats(rule: Rule) -> Rule:
    """Return a rule whose positional arguments are made floats before."""
    return lambda b, *args, **named: rule(
        b, *(arg if arg is None else _as_float(b, arg) for arg in args), **named
    )


def _arithmetic(op: str) -> Rule:
    return _on_floats(lambda b, *args: b.emit(op, *args))


def _sum(op: str, sign: float) -> Rule:
    def rule(b: Builder, x: Value, y: Value, alpha: float = 1) -> Value:
        # PyTorch rounds the scaled sum once.
        return b.emit(op, x, y) if alpha == 1 else b.emit("fma", y, sign * alpha, x)

    return _on_floats(rule)


def _logic(op: str) -> Rule:
    """Return the rule of a logical operation, which takes any number that is not 0 for true."""
    return lambda b, *args: b.emit(op, *(_as_boolean(b, arg) for arg in args))


def _bitwise(op: str) -> Rule:
    def rule(b: Builder, *args: Value) -> Value:
        if not all(b.is_boolean(arg) for arg in args):
            raise Unfusable(f"bitwise_{op} of numbers")
        return b.emit(op, *args)

    return rule


@_on_floats
def _pow(b: Builder, x: Value, y: Value) -> Value:
    if isinstance(y, str):
        return b.emit("pow", x, y)
    square = b.emit("mul", x, x)
    # PyTorch computes these exponents by other operations, which round differently than pow.
    special: dict[float, Callable[[], Value]] = {
        0.0: lambda: 1.0,
        1.0: lambda: x,
        2.0: lambda: square,
        3.0: lambda: b.emit("mul", square, x),
        0.5: lambda: b.emit("sqrt", x),
        -0.5: lambda: b.emit("div", 1.0, b.emit("sqrt", x)),
        -1.0: lambda: b.emit("div", 1.0, x),
        -2.0: lambda: b.emit("div", 1.0, square),
    }
    return special[y]() if y in special else b.emit("pow", x, y)


def _clamp(b: Builder, x: Value, low: Value | None = None, high: Value | None = None) -> Value:
    x = _as_float(b, x)
    # The upper bound last: it wins where the bounds cross, as in PyTorch.
    for op, bound in (("max", low), ("min", high)):
        if bound is not None:
            # Of two equal operands, zeros of both signs, the second one is returned: in PyTorch a
            # bound that is a tensor, but not one that is a number.
            operands = (x, bound) if isinstance(bound, str) else (float(bound), x)
            x = b.emit(op, *operands)
    return x


def _where(b: Builder, condition: Value, x: Value, y: Value) -> Value:
    return b.emit("where", _as_boolean(b, condition), _as_float(b, x), _as_float(b, y))


@_on_floats
def _sign(b: Builder, x: Value) -> Value:
    # 0 at NaN too, as in PyTorch.
    below = b.emit("where", b.emit("lt", x, 0.0), -1.0, 0.0)
    return b.emit("where", b.emit("gt", x, 0.0), 1.0, below)


@_on_floats
def _remainder(b: Builder, x: Value, y: Value) -> Value:
    rest = b.emit("fmod", x, y)
    # Of the sign of y, where C's remainder has that of x.
    other = b.emit("xor", b.emit("lt", y, 0.0), b.emit("lt", rest, 0.0))
    moved = b.emit("and", b.emit("ne", rest, 0.0), other)
    return b.emit("where", moved, b.emit("add", rest, y), rest)


def _ignoring_nan(op: str) -> Rule:
    """Return the rule of a maximum or minimum of two numbers that prefers a number to NaN."""

    def rule(b: Builder, x: Value, y: Value) -> Value:
        chosen = b.emit("where", b.emit(op, x, y), x, y)
        return b.emit("where", b.emit("ne", y, y), x, chosen)

    return _on_floats(rule)


@_on_floats
def _lerp(b: Builder, x: Value, y: Value, weight: Value) -> Value:
    # From the nearer end, as in PyTorch, so that the ends themselves are met.
    far = b.emit("ge", b.emit("abs", weight), 0.5)
    share = b.emit("where", far, b.emit("sub", weight, 1.0), weight)
    return b.emit("fma", share, b.emit("sub", y, x), b.emit("where", far, y, x))


@_on_floats
def _softplus(b: Builder, x: Value, beta: float = 1.0, threshold: float = 20.0) -> Value:
    scaled = b.emit("mul", x, beta)
    # Above the threshold, where exp may overflow, softplus is x to rounding.
    smooth = b.emit("div", b.emit("log1p", b.emit("exp", scaled)), beta)
    return b.emit("where", b.emit("gt", scaled, threshold), x, smooth)


@_on_floats
def _softplus_backward(b: Builder, g: Value, x: Value, beta: float, threshold: float) -> Value:
    scaled = b.emit("mul", x, beta)
    grown = b.emit("exp", scaled)
    smooth = b.emit("div", b.emit("mul", g, grown), b.emit("add", grown, 1.0))
    return b.emit("where", b.emit("gt", scaled, threshold), g, smooth)


@_on_floats
def _silu_backward(b: Builder, g: Value, x: Value) -> Value:
    s = b.emit("sigmoid", x)
    slope = b.emit("fma", x, b.emit("sub", 1.0, s), 1.0)
    return b.emit("mul", b.emit("mul", g, s), slope)


def _whole(bits: int) -> Rule:
    """Return the rule of a cast to integers, which are held as floats."""

    def rule(b: Builder, x: Value) -> Value:
        x = _as_float(b, x)
        fits = b.emit("lt", b.emit("abs", x), 2.0**bits)
        # no zero is negative; what does not fit, and NaN, is as the processor has it
        return b.emit("where", fits, b.emit("add", b.emit("trunc", x), 0.0), -(2.0**bits))

    return rule


def _constant(position: int) -> Rule:
    """Return the rule of an operation whose result is its argument at ``position``."""

    def rule(b: Builder, *args: Any, **_: object) -> Value:
        value: Value = args[position]
        return float(value) if type(value) is int else value

    return rule


# The last two autograd copies into before it reads them.
_ZEROS = (
    *("zeros_like", "_efficientzerotensor", "zeros", "new_zeros"),
    *("empty_like", "new_empty_strided"),
)

_RULES: dict[str, Rule] = {
    # Arithmetic, comparisons and functions of numbers.
    **{op: _arithmetic(op) for op in (UNARY | BINARY | COMPARISONS) - {"max", "min"}},
    "add": _sum("add", 1.0),
    "sub": _sum("sub", -1.0),
    "pow": _pow,
    "clamp": _clamp,
    "where": _where,
    "sign": _sign,
    "sgn": _sign,
    "remainder": _remainder,
    "lerp": _lerp,
    "softplus": _softplus,
    "softplus_backward": _softplus_backward,
    "silu_backward": _silu_backward,
    "maximum": _arithmetic("max"),
    "minimum": _arithmetic("min"),
    "rsub": lambda b, x, y, alpha=1: _sum("sub", -1.0)(b, y, x, alpha),
    "reciprocal": _on_floats(lambda b, x: b.emit("div", 1.0, x)),
    "rsqrt": _on_floats(lambda b, x: b.emit("div", 1.0, b.emit("sqrt", x))),
    "relu": lambda b, x: _clamp(b, x, 0.0),
    "clamp_min": lambda b, x, low: _clamp(b, x, low),
    "clamp_max": lambda b, x, high: _clamp(b, x, None, high),
    "addcmul": _on_floats(
        lambda b, x, y, z, value=1: b.emit("fma", b.emit("mul", y, float(value)), z, x)
    ),
    "fmax": _ignoring_nan("ge"),
    "fmin": _ignoring_nan("le"),
    "signbit": _on_floats(lambda b, x: b.emit("lt", b.emit("copysign", 1.0, x), 0.0)),
    # Logic.
    **{f"logical_{op}": _logic(op) for op in LOGIC},
    **{f"bitwise_{op}": _bitwise(op) for op in LOGIC},
    "isnan": _on_floats(lambda b, x: b.emit("ne", x, x)),
    # Constants.
    **dict.fromkeys(("ones_like", "ones", "new_ones"), lambda b, *_, **__: 1.0),
    **dict.fromkeys(_ZEROS, lambda b, *_, **__: 0.0),
    **dict.fromkeys(("full_like", "fill", "full"), _constant(1)),
    "new_full": _constant(2),
    "scalar_tensor": _constant(0),
    # Gradients in the order of operations of PyTorch's own formulas, to round alike.
    "sigmoid_backward": _on_floats(
        lambda b, g, s: b.emit("mul", b.emit("mul", g, b.emit("sub", 1.0, s)), s)
    ),
    "tanh_backward": _on_floats(
        lambda b, g, y: b.emit("mul", g, b.emit("fma", b.emit("neg", y), y, 1.0))
    ),
    # Where x is NaN the gradient passes.
    "threshold_backward": _on_floats(
        lambda b, g, x, threshold: b.emit("where", b.emit("le", x, threshold), 0.0, g)
    ),
    # One lane has no memory of its own and no shape.
    "clone": lambda b, x, *_, **__: x,
    # In-place operations, without their underscore.
    "copy": lambda b, _, y, *__: y,
    "zero": lambda b, _: 0.0,
    # Casts.
    "to_int32": _whole(31),
    "to_int64": _whole(63),
    "masked_fill": lambda b, x, mask, value: _where(b, mask, value, x),
    # Activations.
    "silu": lambda b, x: b.emit("div", x, b.emit("add", 1.0, b.emit("exp", b.emit("neg", x)))),
    "leaky_relu": lambda b, x, slope=0.01: _where(
        b, b.emit("gt", x, 0.0), x, b.emit("mul", x, float(slope))
    ),
    "leaky_relu_backward": lambda b, g, x, slope, _: _where(
        b, b.emit("gt", x, 0.0), g, b.emit("mul", g, float(slope))
    ),
    "hardtanh": lambda b, x, low=-1.0, high=1.0: _clamp(b, x, low, high),
    "hardtanh_backward": lambda b, g, x, low, high: _where(
        b, b.emit("and", b.emit("gt", x, float(low)), b.emit("lt", x, float(high))), g, 0.0
    ),
}


def lower(b: Builder, operation: str, boolean: bool, args: tuple[Any, ...], kwargs: Any) -> Value:
    """Lower one PyTorch operation, on values in the place of tensors; or raise ``Unfusable``."""
    if operation == "_to_copy":
        return _as_boolean(b, args[0]) if boolean else _as_float(b, args[0])
    if operation not in _RULES:
        raise Unfusable(operation)
    # A rule's signature holds the arguments that it can lower.
    try:
        result = _RULES[operation](b, *args, **kwargs)
    except TypeError as unexpected:
        raise Unfusable(f"{operation} with arguments {args[1:]} {kwargs}") from unexpected
    # A copy, a fill or a scalar may come out as the other kind than PyTorch's result.
    if b.is_boolean(result) != boolean:
        result = _as_boolean(b, result) if boolean else _as_float(b, result)
    return result


def _heaviside(x: Tensor, at_zero: Tensor) -> Tensor:
    return torch.where(x == 0, at_zero, x > 0)


def _elu_backward(
    grad: Tensor, alpha: float, scale: float, input_scale: float, is_result: bool, x: Tensor
) -> Tensor:
    grown = x + alpha * scale if is_result else alpha * scale * torch.exp(x * input_scale)
    return torch.where(x > 0, grad * scale, grad * input_scale * grown)


# At NaN PyTorch has two gradients of elu, celu, selu, hardtanh and logit: one where it computes in
# vectors, which most values have and is the one here, another in what is left over of a tensor.
# These are our own, where PyTorch has none, where its own depends on the device, or where it is not
# what PyTorch computes for NaN and zeros.
_OWN: dict[str, Callable[..., Any]] = {
    "_conj_physical": torch.clone,
    "elu_backward": _elu_backward,
    "frac": lambda x: x - torch.trunc(x),
    "heaviside": _heaviside,
}
# Those of PyTorch's that are not what it computes for NaN and zeros.
_REFUSED = frozenset(
    {
        *("angle", "hardshrink_backward", "hardsigmoid_backward", "hardswish_backward"),
        *("log_sigmoid_backward", "log_sigmoid_forward", "smooth_l1_loss_backward"),
        *("soft_margin_loss_backward", "softshrink", "softshrink_backward"),
    }
)


def decomposition(operation: Any) -> Callable[..., Any] | None:
    """Return a function that computes an operation by simpler ones, in place too, or ``None``."""
    name = operation._schema.name.removeprefix("aten::")
    if operation._schema.is_mutable:
        name = name.removesuffix("_")
        packet = getattr(torch.ops.aten, name, None)
        operation = getattr(packet, operation._overloadname, None)
    if name in _REFUSED:
        return None
    found = _OWN.get(name) or decomposition_of(operation)
    if found is None and operation is not None and operation.has_kernel_for_dispatch_key(COMPOSITE):
        return operation.decompose  # type: ignore[no-any-return]
    return found
