"""What each PyTorch operation is in a :class:`Graph`; an operation not listed cannot be fused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from tracetorch.fuse.ir.graph import Builder, Ref, Unfusable, is_truth

Rule: TypeAlias = Callable[..., Ref]

SAME = ("alias", "clone", "contiguous", "detach", "lift_fresh", "lift_fresh_copy")
RESHAPES = ("_unsafe_view", "expand", "reshape", "squeeze", "unsqueeze", "view")
UNARY = [
    "abs",
    "atan",
    "ceil",
    "cos",
    "cosh",
    "erf",
    "exp",
    "expm1",
    "floor",
    "log",
    "log1p",
    "log2",
    "neg",
    "round",
    "sigmoid",
    "sin",
    "sinh",
    "sqrt",
    "tan",
    "tanh",
    "trunc",
]


def _float(b: Builder, ref: Ref) -> Ref:
    if isinstance(ref, bool) or not is_truth(ref):
        return ref if isinstance(ref, str) else float(ref)
    return b.emit("float", ref)


def _truth(b: Builder, ref: Ref) -> Ref:
    return ref if is_truth(ref) else b.emit("ne", _float(b, ref), 0.0)


def _arithmetic(op: str) -> Rule:
    def rule(b: Builder, *args: Ref, alpha: float = 1, rounding_mode: str | None = None) -> Ref:
        if rounding_mode is not None:
            raise Unfusable(f"{op} with rounding_mode")
        *first, last = (_float(b, arg) for arg in args)
        return b.emit(op, *first, last if alpha == 1 else b.emit("mul", float(alpha), last))

    return rule


def _logic(op: str) -> Rule:
    return lambda b, *args: b.emit(op, *(_truth(b, arg) for arg in args))


def _bitwise(op: str) -> Rule:
    def rule(b: Builder, *args: Ref) -> Ref:
        if not all(is_truth(arg) for arg in args):
            raise Unfusable(f"bitwise_{op} of numbers")
        return b.emit(op, *args)

    return rule


def _rsub(b: Builder, x: Ref, y: Ref, alpha: float = 1) -> Ref:
    return _arithmetic("sub")(b, y, x if alpha == 1 else b.emit("mul", float(alpha), _float(b, x)))


def _pow(b: Builder, x: Ref, y: Ref) -> Ref:
    x, y = _float(b, x), _float(b, y)
    if isinstance(y, str):
        return b.emit("pow", x, y)
    square = b.emit("mul", x, x)
    special: dict[float, Callable[[], Ref]] = {  # as PyTorch computes them
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


def _clamp(b: Builder, x: Ref, low: Ref | None = None, high: Ref | None = None) -> Ref:
    x = _float(b, x)
    if low is not None:
        x = b.emit("max", x, _float(b, low))
    if high is not None:
        x = b.emit("min", x, _float(b, high))
    return x


def _where(b: Builder, condition: Ref, x: Ref, y: Ref) -> Ref:
    return b.emit("where", _truth(b, condition), _float(b, x), _float(b, y))


def _sign(b: Builder, x: Ref) -> Ref:
    x = _float(b, x)
    below = b.emit("where", b.emit("lt", x, 0.0), -1.0, 0.0)
    return b.emit("where", b.emit("gt", x, 0.0), 1.0, below)


def _softplus(b: Builder, x: Ref, beta: float = 1, threshold: float = 20) -> Ref:
    scaled = b.emit("mul", x, float(beta))
    smooth = b.emit("div", b.emit("log1p", b.emit("exp", scaled)), float(beta))
    return b.emit("where", b.emit("gt", scaled, float(threshold)), x, smooth)


def _softplus_backward(b: Builder, g: Ref, x: Ref, beta: float, threshold: float) -> Ref:
    scaled = b.emit("mul", x, float(beta))
    smooth = b.emit("mul", g, b.emit("sigmoid", scaled))
    return b.emit("where", b.emit("gt", scaled, float(threshold)), g, smooth)


def _silu_backward(b: Builder, g: Ref, x: Ref) -> Ref:
    s = b.emit("sigmoid", x)
    slope = b.emit("add", 1.0, b.emit("mul", x, b.emit("sub", 1.0, s)))
    return b.emit("mul", _float(b, g), b.emit("mul", s, slope))


def _same(b: Builder, x: Ref, *_: object, **__: object) -> Ref:
    return x


def _constant(position: int) -> Rule:
    def rule(b: Builder, *args: Any, **_: object) -> Ref:
        value: Ref = args[position]
        return float(value) if type(value) is int else value

    return rule


RULES: dict[str, Rule] = {
    **dict.fromkeys((*SAME, *RESHAPES), _same),
    **{op: _arithmetic(op) for op in UNARY},
    **{op: _arithmetic(op) for op in ("add", "sub", "mul", "div", "gt", "ge", "lt", "le")},
    **{op: _arithmetic(op) for op in ("eq", "ne", "atan2")},
    "true_divide": _arithmetic("div"),
    "maximum": _arithmetic("max"),
    "minimum": _arithmetic("min"),
    "rsub": _rsub,
    "pow": _pow,
    "square": lambda b, x: _pow(b, x, 2.0),
    "reciprocal": lambda b, x: b.emit("div", 1.0, _float(b, x)),
    "rsqrt": lambda b, x: b.emit("div", 1.0, b.emit("sqrt", _float(b, x))),
    "relu": lambda b, x: b.emit("max", _float(b, x), 0.0),
    "clamp": _clamp,
    "clamp_min": lambda b, x, low: _clamp(b, x, low),
    "clamp_max": lambda b, x, high: _clamp(b, x, None, high),
    "where": _where,
    "sign": _sign,
    "sgn": _sign,
    "logical_and": _logic("and"),
    "logical_or": _logic("or"),
    "logical_xor": _logic("xor"),
    "logical_not": _logic("not"),
    "bitwise_and": _bitwise("and"),
    "bitwise_or": _bitwise("or"),
    "bitwise_xor": _bitwise("xor"),
    "bitwise_not": _bitwise("not"),
    "isnan": lambda b, x: b.emit("ne", _float(b, x), _float(b, x)),
    "ones_like": lambda b, *_, **__: 1.0,
    "zeros_like": lambda b, *_, **__: 0.0,
    "ones": lambda b, *_, **__: 1.0,
    "zeros": lambda b, *_, **__: 0.0,
    "new_ones": lambda b, *_, **__: 1.0,
    "new_zeros": lambda b, *_, **__: 0.0,
    "full_like": _constant(1),
    "fill": _constant(1),
    "full": _constant(1),
    "new_full": _constant(2),
    "scalar_tensor": _constant(0),
    "sigmoid_backward": lambda b, g, s: b.emit(
        "mul", b.emit("mul", _float(b, g), b.emit("sub", 1.0, s)), s
    ),
    "tanh_backward": lambda b, g, y: b.emit(
        "mul", _float(b, g), b.emit("sub", 1.0, b.emit("mul", y, y))
    ),
    "threshold_backward": lambda b, g, x, threshold: b.emit(
        "where", b.emit("gt", _float(b, x), float(threshold)), _float(b, g), 0.0
    ),
    "copy": lambda b, _, y, *__: y,
    "zero": lambda b, _: 0.0,
    "masked_fill": lambda b, x, mask, value: _where(b, mask, value, x),
    "softplus": _softplus,
    "softplus_backward": _softplus_backward,
    "silu": lambda b, x: b.emit("mul", x, b.emit("sigmoid", x)),
    "silu_backward": _silu_backward,
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


def lower(b: Builder, operation: str, truth: bool, args: tuple[Any, ...], kwargs: Any) -> Ref:
    """The value of one PyTorch operation.

    Args:
        b: where its lines go.
        operation: its name without namespace and overload, ``"add"``.
        truth: whether its result is boolean.
        args: its arguments, tensors replaced by their values here.
        kwargs: those by name.

    Raises:
        Unfusable: the operation is unknown, or used in a way that is.

    """
    if operation == "_to_copy":
        return _truth(b, args[0]) if truth else _float(b, args[0])
    if operation not in RULES:
        raise Unfusable(operation)
    try:
        result = RULES[operation](b, *args, **kwargs)
    except TypeError as unexpected:
        raise Unfusable(f"{operation} with arguments {args[1:]} {kwargs}") from unexpected
    if is_truth(result) != truth:
        result = _truth(b, result) if truth else _float(b, result)
    return result
