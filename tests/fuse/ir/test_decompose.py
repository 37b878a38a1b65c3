from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 (PyTorch's own convention)
from torch import Tensor

from tests.fuse.ir.test_lower import (
    DTYPES,
    Function,
    by_kernel,
    check,
    expected,
    neuron,
    operands,
)
from tracetorch.fuse.ir.graph import Unfusable
from tracetorch.fuse.ir.trace import trace

# Of arithmetic and comparisons alone, and so equal bitwise.
EXACT: dict[str, Function] = {
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
ROUNDED: dict[str, Function] = {
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
    cases = [*EXACT.items(), *ROUNDED.items()]
    check(cases, by_kernel([function for _, function in cases], dtype), dtype, ROUNDED)


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
    layer = neuron([function], 1)
    try:
        trace(layer.cell, 1, torch.float32, {})
    except Unfusable as reason:
        if "derivative" not in str(reason):
            return False
        constant: Function = lambda a, b: function(a.detach(), b.detach())  # noqa: E731
        try:
            trace(neuron([constant], 1).cell, 1, torch.float32, {})
        except Unfusable:
            return False
    return True


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
        (lambda a, b: a * b.mean(), r"aten\.mean\.default, which is a reduction"),
        (lambda a, b: a * b.amax(0).unsqueeze(0), r"aten\.amax\.default, which is a reduction"),
        (lambda a, b: a - b.max(-1).values[:, None], r"aten\.max\.dim, which is a reduction"),
        (lambda a, b: a @ b, r"aten\.mm\.default, which kernels lack"),
        (lambda a, b: torch.softmax(a, -1), r"aten\._softmax\.default, which kernels lack"),
        (lambda a, b: torch.polygamma(2, a), r"aten\.polygamma\.default, which kernels lack"),
        (lambda a, b: a.flip(0), r"aten\.flip\.default, which kernels lack"),
        (lambda a, b: a.roll(1), r"aten\.roll\.default, which kernels lack"),
        (
            lambda a, b: a.t() * 1.0,
            r"aten\.t\.default, which moves values, and so is not pointwise",
        ),
        (lambda a, b: a.t() * b, r"aten\.t\.default, which moves values"),
        (lambda a, b: a[..., :1] * b, r"aten\.slice\.Tensor, which takes a part of a tensor"),
        (lambda a, b: a[a > 0] * 2, r"chooses values by aten\.index\.Tensor\. Use torch\.where"),
        (lambda a, b: F.hardswish(a), r"aten\.hardswish_backward\.default, which kernels lack"),
        (lambda a, b: F.logsigmoid(a), r"aten\.log_sigmoid_forward\.default, which"),
        (lambda a, b: F.softshrink(a), r"aten\.softshrink\.default, which kernels lack"),
        (lambda a, b: torch.angle(a) * b, r"aten\.angle\.default, which kernels lack"),
        (lambda a, b: a.cumsum(0), r"aten\.cumsum\.default, which kernels lack"),
        (lambda a, b: a.tril(), r"aten\.tril\.default, which kernels lack"),
        (lambda a, b: a + torch.rand_like(a), r"draws random numbers, by aten\.rand_like"),
        (lambda a, b: a if b > 0 else -a, r"it reads the values of a tensor.*Use torch\.where"),
        (lambda a, b: a * float(b), r"it reads the values of a tensor"),
        (
            lambda a, b: (a > b).double().to(a.dtype),
            r"float32: write \.to\(x\.dtype\) instead of \.double\(\)",
        ),
    ],
)
def test_reason_names_the_operation(
    function: Callable[[Tensor, Tensor], Tensor], reason: str
) -> None:
    with pytest.raises(Unfusable, match=reason):
        trace(neuron([function], 1).cell, 2, torch.float32, {})
