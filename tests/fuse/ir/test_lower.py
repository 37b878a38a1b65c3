"""Test every lowering rule and decomposition: values and gradients equal those of PyTorch."""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 (PyTorch's own convention)
from torch import Tensor

from tests.cases import few
from tests.fuse.kernels import graph_on, lesser_machine
from tracetorch import fuse, snn
from tracetorch.fuse.ir import lower, record
from tracetorch.fuse.ir.graph import UNARY, Unfusable
from tracetorch.fuse.ir.trace import trace

Function = Callable[[Tensor, Tensor], Tensor]
aten = torch.ops.aten


def _changed(a: Tensor, change: Callable[[Tensor], Any]) -> Tensor:
    """Return a copy of ``a`` that was changed in place."""
    copy = a * 1.5
    change(copy)
    return copy


def _choice(condition: Callable[[Tensor, Tensor], Tensor]) -> Function:
    """Return a function that shows a condition, whatever its operands."""
    return lambda a, b: torch.where(condition(a, b), a, b)


def _call(name: str) -> Function:
    function = getattr(torch, name)
    return lambda a, b: function(a)


def _times_comparison(compare: Callable[[Tensor, float], Tensor]) -> Function:
    return lambda a, b: compare(a, 0.5) * b


def _power(exponent: float) -> Function:
    return lambda a, b: a**exponent


# For each rule functions of two tensors that reach it, forward or backward.
CASES: dict[str, Sequence[Function]] = {
    **{name: [_call(name)] for name in sorted(UNARY)},
    # Copies and shapes.
    "clone": [lambda a, b: a.clone()],
    "_to_copy": [lambda a, b: a + (a > b).to(a.dtype), _choice(lambda a, b: a.to(torch.bool))],
    "to_int32": [lambda a, b: b * torch.round(7 * a).to(torch.int32).to(a.dtype)],
    "to_int64": [lambda a, b: b * a.long()],
    # Arithmetic.
    "add": [lambda a, b: a + b, lambda a, b: torch.add(a, b, alpha=0.25), lambda a, b: 2 + a],
    "sub": [lambda a, b: a - b, lambda a, b: torch.sub(a, b, alpha=0.25), lambda a, b: a - 2],
    "rsub": [lambda a, b: torch.rsub(a, b, alpha=0.25), lambda a, b: 2 - a],
    "mul": [lambda a, b: a * b, lambda a, b: a * (b > 0), lambda a, b: -1.5 * a],
    "div": [lambda a, b: a / b, lambda a, b: a / 3],
    "reciprocal": [lambda a, b: 3 / a],
    "rsqrt": [_call("rsqrt")],
    "atan2": [torch.atan2],
    "copysign": [torch.copysign],
    "fmod": [lambda a, b: torch.fmod(a.clamp(-9, 9), b.clamp(0.1, 9))],
    "remainder": [lambda a, b: a.clamp(-9, 9) % 0.7, lambda a, b: a.clamp(-9, 9) % -b.clamp(1, 9)],
    "hypot": [torch.hypot],
    "nextafter": [lambda a, b: torch.nextafter(a.detach(), b.detach()) * b],
    # products that are exact: a CPU rounds them before they are added, or with the sum
    "addcmul": [lambda a, b: torch.addcmul(a, b, b.sign()),
                lambda a, b: torch.addcmul(a, a.sign(), b, value=0.25)],
    "lerp": [lambda a, b: torch.lerp(a, b, 0.25), lambda a, b: torch.lerp(a, b, 0.75),
             lambda a, b: torch.lerp(a, a * 2, b)],
    "pow": [torch.pow, lambda a, b: 2.5**a,
            *(_power(exponent) for exponent in (0, 1, 2, 3, 0.5, -0.5, -1, -2, 1.7, -3))],
    # Comparisons and logic.
    **{name: [_choice(getattr(torch, name)), _times_comparison(getattr(torch, name))]
       for name in ("gt", "ge", "lt", "le", "eq", "ne")},
    **{f"logical_{name}": [_choice(getattr(torch, f"logical_{name}"))]
       for name in ("and", "or", "xor")},
    "logical_not": [_choice(lambda a, b: torch.logical_not(a))],
    "bitwise_and": [_choice(lambda a, b: (a > 0) & (b > 0))],
    "bitwise_or": [_choice(lambda a, b: (a > 0) | (b > 0))],
    "bitwise_xor": [_choice(lambda a, b: (a > 0) ^ (b > 0))],
    "bitwise_not": [_choice(lambda a, b: ~(a > 0))],
    "signbit": [_choice(lambda a, b: torch.signbit(a))],
    "isnan": [_choice(lambda a, b: a.isnan())],
    # Choices.
    "fmax": [torch.fmax],
    "fmin": [torch.fmin],
    "maximum": [torch.maximum],
    "minimum": [torch.minimum],
    "relu": [_call("relu")],
    "threshold_backward": [_call("relu")],
    "clamp": [lambda a, b: a.clamp(-0.5, 2), lambda a, b: a.clamp(b, b - 1),
              lambda a, b: a.clamp(min=b), lambda a, b: a.clamp(0, 1)],
    "clamp_min": [lambda a, b: a.clamp_min(0)],
    "clamp_max": [lambda a, b: a.clamp_max(0)],
    "where": [lambda a, b: torch.where(a > b, a, b), lambda a, b: torch.where(a != 0, b, 1.5)],
    "sign": [_call("sign")],
    "sgn": [_call("sgn")],
    "masked_fill": [lambda a, b: a.masked_fill(b > 0, 0.25)],
    # Constants.
    "ones_like": [lambda a, b: a * torch.ones_like(a)],
    "zeros_like": [lambda a, b: a + torch.zeros_like(a)],
    "_efficientzerotensor": [_call("sgn")],
    "empty_like": [lambda a, b: a + torch.empty_like(b).copy_(b)],
    "new_empty_strided": [lambda a, b: a + _changed(b, lambda copy: copy.view(-1).mul_(0.5))],
    "ones": [lambda a, b: a + torch.ones((), dtype=a.dtype)],
    "zeros": [lambda a, b: a + torch.zeros((), dtype=a.dtype)],
    "new_ones": [lambda a, b: a + a.new_ones(())],
    "new_zeros": [lambda a, b: a + a.new_zeros(())],
    "full_like": [lambda a, b: a * torch.full_like(a, 3)],
    "full": [lambda a, b: a * torch.full((), 0.7, dtype=a.dtype)],
    "new_full": [lambda a, b: a * a.new_full((), 0.7)],
    "scalar_tensor": [lambda a, b: a * torch.scalar_tensor(0.7, dtype=a.dtype)],
    "fill": [lambda a, b: a + _changed(b, lambda copy: copy.fill_(0.7))],
    "copy": [lambda a, b: a + _changed(b, lambda copy: copy.copy_(a))],
    "zero": [lambda a, b: a + _changed(b, lambda copy: copy.zero_())],
    # Activations.
    "sigmoid_backward": [_call("sigmoid")],
    "tanh_backward": [_call("tanh")],
    "softplus": [lambda a, b: F.softplus(a), lambda a, b: F.softplus(a, 2, 3)],
    "softplus_backward": [lambda a, b: F.softplus(a), lambda a, b: F.softplus(a, 2, 3)],
    "silu": [lambda a, b: F.silu(a)],
    "silu_backward": [lambda a, b: F.silu(a)],
    "leaky_relu": [lambda a, b: F.leaky_relu(a), lambda a, b: F.leaky_relu(a, -0.3)],
    "leaky_relu_backward": [lambda a, b: F.leaky_relu(a, 0.3)],
    "hardtanh": [lambda a, b: F.hardtanh(a, -0.5, 2)],
    "hardtanh_backward": [lambda a, b: F.hardtanh(a, -0.5, 2)],
}  # fmt: skip

# Functions of mathematical libraries, of which PyTorch has its own; on some CPUs a root as well,
# and a product and a sum that are rounded as one.
ROUNDED = {
    *("acos", "acosh", "asin", "asinh", "atan", "atan2", "atanh", "cos", "cosh", "erf", "erfc"),
    *("exp", "exp2", "expm1", "hypot", "log", "log10", "log1p", "log2", "pow", "sigmoid"),
    *("sigmoid_backward", "silu", "silu_backward", "sin", "sinh", "softplus", "softplus_backward"),
    *("sqrt", "rsqrt", "tan", "tanh", "tanh_backward", "lerp"),
}
FUNCTIONS = [(name, function) for name, functions in CASES.items() for function in functions]
DTYPES = pytest.mark.parametrize(
    "dtype", [torch.float32, pytest.param(torch.float64, marks=pytest.mark.slow)]
)


def values(dtype: torch.dtype) -> list[float]:
    """Return zeros, infinities, NaN, and numbers that are tiny, huge, and in between."""
    info = torch.finfo(dtype)
    tiny = [0.0, info.smallest_normal / 64, info.smallest_normal, 1e-9]
    middle = [0.3, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0, 5.3, 17.0, 25.0, 90.0, 1e4]
    positive = [*tiny, *middle, info.max, math.inf]
    return [math.nan, *positive, *(-number for number in positive)]


def operands(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Return all pairs of :func:`values`, and cotangents.

    Their number is a multiple of 64: what is left of whole vectors PyTorch computes by other
    instructions, which do not always agree with those for vectors on NaN and the sign of zero.
    """
    each = torch.tensor(values(dtype), dtype=dtype)
    pairs = torch.cartesian_prod(each, each).repeat(2, 1)
    pairs = pairs[: -(-(len(each) ** 2) // 64) * 64]
    cotangents = torch.tensor([0.75, -1.3, 0.0, 2.0], dtype=dtype)
    return pairs[:, 0].clone(), pairs[:, 1].clone(), cotangents.repeat(len(pairs) // 4)


def neuron(functions: Sequence[Function], num_neurons: int) -> snn.Neuron:
    """Return a neuron whose states are the operands of each function, and then its results."""

    class Cases(snn.Neuron):
        states = tuple(f"{part}{i}" for i in range(len(functions)) for part in "ab")

        @staticmethod
        def step(x: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
            ends: list[Tensor] = [x]
            for function, a, b in zip(functions, states[::2], states[1::2], strict=True):
                ends += [function(a, b), torch.zeros_like(b)]
            return tuple(ends)

    return Cases(num_neurons)


def expected(function: Function, dtype: torch.dtype) -> list[Tensor]:
    """Return the value, and the gradients of both operands, by PyTorch itself."""
    a, b, cotangent = operands(dtype)
    a, b = a.requires_grad_(), b.requires_grad_()
    value = function(a, b)
    grads = torch.autograd.grad(value, (a, b), cotangent, allow_unused=True)
    return [value.detach(), *(torch.zeros_like(a) if grad is None else grad for grad in grads)]


def by_kernel(
    functions: Sequence[Function], dtype: torch.dtype, way: str = "compiled"
) -> list[list[Tensor]]:
    """Return what :func:`expected` does, by one kernel for all of them, without states or time."""
    program = trace(neuron(functions, 1).cell, 1, dtype, {})
    parts = ("next_a{}", "d_s_a{}", "d_s_b{}")
    names = [part.format(i) for i in range(len(functions)) for part in parts]
    graph = program.graph.select(names)
    # Inputs are called s_a<i> and s_b<i>, cotangents g_a<i>.
    rows = dict(zip("abg", operands(dtype), strict=True))
    inputs = {name: rows["g" if name[0] == "g" else name[2]] for name in graph.reads()}
    machine = lesser_machine() if way == "lesser" else None
    results = graph_on(graph, inputs, dtype, machine, evaluated=way == "evaluated")
    return [[results[name] for name in names[k : k + 3]] for k in range(0, len(names), 3)]


def by_layer(functions: Sequence[Function], dtype: torch.dtype, backend: str) -> list[list[Tensor]]:
    """Return what :func:`expected` does, by a layer on a backend."""
    a, b, cotangent = operands(dtype)
    layer = neuron(tuple(functions), len(a)).to(dtype)
    starts = {name: {"a": a, "b": b}[name[0]].clone().requires_grad_() for name in layer.states}
    for name, start in starts.items():
        setattr(layer, name, start)
    with fuse.backend(backend):
        layer.forward_sequence(torch.zeros(1, len(a), dtype=dtype))
    ends = [getattr(layer, f"a{i}") for i in range(len(functions))]
    smooth = [end for end in ends if end.requires_grad]
    grads = torch.autograd.grad(
        smooth, list(starts.values()), [cotangent] * len(smooth), materialize_grads=True
    )
    pairs = zip(grads[::2], grads[1::2], strict=True)
    return [[end.detach(), *pair] for end, pair in zip(ends, pairs, strict=True)]


def in_last_places(found: Tensor, wanted: Tensor, scale: Tensor) -> Tensor:
    """Return the difference in units in the last place of ``wanted``, or of ``scale`` if larger.

    It is infinite where one is NaN and the other is not, or zeros have different signs.
    """
    exponent = torch.maximum(wanted.abs(), scale.abs()).frexp()[1] - 1
    info = torch.finfo(found.dtype)
    smallest = info.smallest_normal * info.eps
    unit = (info.eps * torch.exp2(exponent.to(found.dtype))).clamp(min=smallest)
    difference = torch.where(found == wanted, 0.0, (found - wanted).abs() / unit)
    zeros = (found == 0) & (wanted == 0) & (found.signbit() != wanted.signbit())
    wrong = zeros | (found.isnan() ^ wanted.isnan())
    difference = torch.where(wrong, torch.inf, difference)
    return torch.where(found.isnan() & wanted.isnan(), 0.0, difference)


def check(
    cases: Sequence[tuple[str, Function]],
    results: Sequence[Sequence[Tensor]],
    dtype: torch.dtype,
    rounded: Container[str] = ROUNDED,
    where: Callable[[Tensor, Tensor], Tensor] = lambda a, b: a == a,
) -> None:
    """Assert that values and gradients of all cases are PyTorch's: bitwise, or to last places.

    A gradient may be the difference of numbers near 1, and off by last places of the cotangent.
    ``rounded`` are those that are compared to last places; ``where`` which operands are compared.
    """
    a, b, cotangent = operands(dtype)
    faults = []
    for (name, function), found in zip(cases, results, strict=True):
        for part, f, w in zip(
            ("value", "d_a", "d_b"), found, expected(function, dtype), strict=True
        ):
            # a gradient holds the square of what is off by as much
            most = (4 if part == "value" else 8) * (name in rounded)
            scale = torch.zeros_like(w) if part == "value" else cotangent * bool(most)
            wrong = (in_last_places(f, w, scale) > most) & where(a, b)
            for k in wrong.nonzero()[:1, 0].tolist():
                numbers = [float(each[k]) for each in (a, b, f, w)]
                faults.append(f"{name}, {part}: a={numbers[0]}, b={numbers[1]}, got {numbers[2:]}")
    assert not faults, "\n".join(faults)


def test_cases_are_those_of_the_rules_and_reach_them(monkeypatch: pytest.MonkeyPatch) -> None:
    assert set(CASES) == {*lower._RULES, "_to_copy"}
    reached = set()

    def spy(builder: Any, operation: str, *arguments: Any) -> Any:
        reached.add(operation)
        return lower.lower(builder, operation, *arguments)

    monkeypatch.setattr(record, "lower", spy)
    for name, function in FUNCTIONS:
        reached.clear()
        trace(neuron([function], 1).cell, 1, torch.float32, {})
        assert name in reached


@pytest.mark.parametrize("way", few(["compiled", "lesser", "evaluated"], "compiled", "evaluated"))
@DTYPES
def test_rules_in_kernels(dtype: torch.dtype, way: str) -> None:
    check(FUNCTIONS, by_kernel([function for _, function in FUNCTIONS], dtype, way), dtype)


# Decompositions

# Of simpler operations: of arithmetic and comparisons alone, and so equal bitwise; then others.
DECOMPOSED: dict[str, Function] = {
    "addcdiv": lambda a, b: torch.addcdiv(a, b, a, value=0.3),
    "lerp_": lambda a, b: (a * 1.5).lerp_(b, 0.25),
    "relu6": lambda a, b: F.relu6(a),
    "threshold": lambda a, b: F.threshold(a, 0.1, 0.2),
    "softsign": lambda a, b: F.softsign(a),
    "nan_to_num": lambda a, b: torch.nan_to_num(a),
    "nan_to_num of numbers": lambda a, b: torch.nan_to_num(a, 1.0, 2.0, 3.0),
    "frac": lambda a, b: torch.frac(a),
    "isfinite": lambda a, b: torch.where(a.isfinite(), b, a),
    "isinf": lambda a, b: torch.where(a.isinf(), b, a),
    "div trunc": lambda a, b: torch.div(a, b, rounding_mode="trunc") * a,
    "div floor": lambda a, b: torch.div(a.clamp(-9, 9), b.clamp(1, 9), rounding_mode="floor") * a,
}
OF_FUNCTIONS: dict[str, Function] = {
    "logaddexp": torch.logaddexp,
    "gelu tanh": lambda a, b: F.gelu(a, approximate="tanh"),
    "mish": lambda a, b: F.mish(a),
    "elu": lambda a, b: F.elu(a),
    "celu": lambda a, b: F.celu(a, 0.7),
    "selu": lambda a, b: F.selu(a),
    "tanhshrink": lambda a, b: F.tanhshrink(a.clamp(2, 9)),
    "logit": lambda a, b: torch.logit(a, 0.1),
    "xlogy": torch.xlogy,
    "sinc": lambda a, b: torch.sinc(a),
    "huber_loss": lambda a, b: F.huber_loss(a, b, reduction="none", delta=0.7),
}


@DTYPES
def test_decompositions_compute_what_pytorch_does(dtype: torch.dtype) -> None:
    cases = [*DECOMPOSED.items(), *OF_FUNCTIONS.items()]
    check(cases, by_kernel([function for _, function in cases], dtype), dtype, OF_FUNCTIONS)


# Whose gradient at NaN PyTorch computes in two ways: in vectors, and for what is left over.
UNSURE: dict[str, Callable[[Tensor], Tensor]] = {
    "elu": F.elu,
    "celu": F.celu,
    "selu": F.selu,
    "hardtanh": F.hardtanh,
    "relu6": F.relu6,
    "logit": lambda a: torch.logit(a, 0.1),
}


@pytest.mark.parametrize("name", UNSURE)
def test_gradients_at_nan_are_those_of_pytorchs_vectors(name: str) -> None:
    a = torch.full((256,), torch.nan, requires_grad=True)
    UNSURE[name](a).sum().backward()
    assert a.grad is not None
    ((_, found, _),) = by_kernel([lambda a, b: UNSURE[name](a)], torch.float32)
    at = operands(torch.float32)[0].isnan()
    # of the cotangent, which is 1 above
    assert bool(found[at].isnan().all()) == bool(a.grad[0].isnan())
    assert bool((found[at] == 0).all()) == bool(a.grad[0] == 0)


@DTYPES
def test_what_pytorch_approximates_itself(dtype: torch.dtype) -> None:
    """Both are off by last places."""
    a, b, _ = operands(dtype)
    near = (a.abs() < 50) & (b.abs() < 50) & ((a.abs() > 1e-3) | (a == 0))
    off = 32 * torch.finfo(dtype).eps
    (results,) = by_kernel([lambda a, b: F.gelu(a)], dtype)
    for found, wanted in zip(results, expected(lambda a, b: F.gelu(a), dtype), strict=True):
        torch.testing.assert_close(found[near], wanted[near], rtol=off, atol=off, equal_nan=True)


# Pointwise operations


def pointwise_operations() -> dict[str, list[Any]]:
    """Return the overloads of all operations that PyTorch calls pointwise, by name."""
    found: dict[str, list[Any]] = {}
    for full in sorted(torch._C._dispatch_get_all_op_names()):
        name, _, overload = full.removeprefix("aten::").partition(".")
        if "::" in name or not hasattr(torch.ops.aten, name):
            continue
        packet = getattr(torch.ops.aten, name)
        operation = getattr(packet, overload or "default", None)
        if operation is None or operation._schema.is_mutable:
            continue
        if torch.Tag.pointwise in operation.tags:
            found.setdefault(name, []).append(operation)
    return found


def applied(operation: Any) -> Function:
    """Return a function that calls an operation with arguments that its schema allows."""
    by_name = {"rounding_mode": "floor", "min": 0.1, "max": 0.9, "p": 2, "condition": None}

    def call(a: Tensor, b: Tensor) -> Any:
        tensors = [a, b, a * b]
        args: list[Any] = []
        kwargs: dict[str, Any] = {}
        for argument in operation._schema.arguments:
            kind = str(argument.type)
            if argument.name in ("condition", "mask"):
                value: Any = a > b
            elif kind == "Tensor":
                value = tensors.pop(0)
            elif argument.name in by_name and (kind.startswith("Optional") or kind == "int"):
                value = a if kind == "Optional[Tensor]" else by_name[argument.name]
            elif argument.has_default_value() or kind.startswith("Optional"):
                continue
            else:
                value = {"number": 0.7, "float": 0.7, "int": 2, "bool": False}[kind]
            if argument.kwarg_only:
                kwargs[argument.name] = value
            else:
                args.append(value)
        result = operation(*args, **kwargs)
        return torch.where(result, a, b) if result.dtype == torch.bool else result

    return call


def runs(function: Function) -> bool:
    """Whether PyTorch itself runs a function on floating-point tensors."""
    a = torch.full((2, 3), 0.4)
    try:
        return isinstance(function(a, a + 0.1), Tensor)
    except (RuntimeError, AttributeError):
        return False


def compiles(function: Function) -> bool:
    """Whether a step with a function can become a kernel; without gradient where it has none."""
    for each in (function, lambda a, b: function(a.detach(), b.detach())):
        try:
            trace(neuron([each], 1).cell, 1, torch.float32, {})
        except Unfusable as reason:
            if "derivative" not in str(reason):
                return False
        else:
            return True
    return False


# Integrals and series that PyTorch computes by tables of their own; kernels have none.
SPECIAL = {"digamma", "erfinv", "i0", "igamma", "igammac", "lgamma", "mvlgamma", "polygamma"}
REFUSED = {
    **dict.fromkeys(("angle", "hardshrink", "hardsigmoid", "softshrink"), "write torch.where"),
    "float_power": "its result is float64",
    "rrelu": "it draws random numbers",
}


def test_pointwise_operations_compile() -> None:
    refused, count = set(), 0
    for name, operations in pointwise_operations().items():
        functions = [function for function in map(applied, operations) if runs(function)]
        count += bool(functions)
        if not all(map(compiles, functions)):
            refused.add(name)
    special = {name for name in refused if name in SPECIAL or name.startswith("special_")}
    assert refused - special == set(REFUSED)
    assert count - len(special) >= 110
    assert len(REFUSED) <= 0.05 * (count - len(special))


# Reasons


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda a, b: a * b.sum(-1, keepdim=True), r"aten\.sum\.dim_IntList, which is a reduction"),
        (lambda a, b: a - b.max(-1).values[:, None], r"aten\.max\.dim, which is a reduction"),
        (lambda a, b: a @ b, r"aten\.mm\.default, which kernels lack"),
        (lambda a, b: torch.softmax(a, -1), r"aten\._softmax\.default, which kernels lack"),
        (lambda a, b: a.flip(0), r"aten\.flip\.default, which kernels lack"),
        (lambda a, b: F.hardswish(a), r"aten\.hardswish_backward\.default, which kernels lack"),
        (lambda a, b: a.t() * b, r"aten\.t\.default, which moves, takes or repeats values"),
        (lambda a, b: a[a > 0] * 2, r"chooses values by aten\.index\.Tensor\. Use torch\.where"),
        (lambda a, b: a + torch.rand_like(a), r"draws random numbers, by aten\.rand_like"),
        (lambda a, b: a if b > 0 else -a, r"it reads the values of a tensor.*Use torch\.where"),
        (lambda a, b: (a > b).double().to(a.dtype), r"a cast is written \.to\(x\.dtype\)"),
    ],
)
def test_reason_names_the_operation(function: Function, reason: str) -> None:
    with pytest.raises(Unfusable, match=reason):
        trace(neuron([function], 1).cell, 2, torch.float32, {})
