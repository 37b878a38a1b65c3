"""PyTorch as on another machine: what may be rounded in another way there, is.

Products of matrices and convolutions are off by up to two last places, by the shapes of what they
are given and the place in the result; functions such as ``exp`` by one, by the value. Results in
which nothing is rounded stay: those of small dyadic numbers, and those of a single term. Kernels of
the CPU are replaced, below autograd, transforms and modes, which observe nothing.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

PRODUCTS = (
    "mm addmm _addmm_activation bmm baddbmm addbmm mv addmv dot vdot convolution "
    "convolution_backward"
)
FUNCTIONS = (
    "exp exp2 expm1 log log2 log10 log1p tanh sigmoid sqrt rsqrt sin cos tan atan sinh cosh erf"
)
WRITTEN = (  # into an argument
    "addmm_ baddbmm_ addbmm_ addmv_ mm.out addmm.out _addmm_activation.out bmm.out baddbmm.out "
    "addbmm.out mv.out addmv.out dot.out"
)

HALVES = (torch.float16, torch.bfloat16)

_CPU = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)
_libraries: list[torch.library.Library] = []

Kernel = Callable[..., Any]


def install(seed: int) -> None:
    """Replace PyTorch's kernels in this process; another seed rounds otherwise."""
    kernels: dict[str, Kernel] = {}
    products, functions = PRODUCTS.split(), FUNCTIONS.split()
    for name in (*products, *functions):
        run = partial(torch.library.get_kernel(f"aten::{name}", "CPU").call_boxed, _CPU)
        kernels[name] = partial(_product, run, seed) if name in products else partial(_value, run)
    for name in (*WRITTEN.split(), *(name + end for name in functions for end in ("_", ".out"))):
        kernels[name] = partial(_write, kernels[name.removesuffix(".out").rstrip("_")])
    library = torch.library.Library("aten", "IMPL")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Warning only once")  # that it is replaced
        for name, replaced in kernels.items():
            library.impl(name, partial(_unobserved, replaced), "CPU")
    _libraries.append(library)


def _unobserved(kernel: Kernel, *args: Any, **named: Any) -> Any:
    with torch._C._AutoDispatchBelowAutograd(), torch._C.DisableTorchFunction():
        return kernel(*args, **named)


def _write(kernel: Kernel, *args: Any, **named: Any) -> Tensor:
    target: Tensor = named.pop("out", args[0])
    result = kernel(*args, **named)
    if target.shape != result.shape:
        target.resize_(result.shape)
    return target.copy_(result)


def _value(run: Kernel, x: Tensor) -> Tensor:
    result: Tensor = run(x)
    if result.dtype in HALVES:
        return _value(run, x.float()).to(result.dtype)
    if not result.is_floating_point():
        return result
    inexact = ~_is_exact(result, partial(run, x.double()))
    return _moved(result, -inexact.to(torch.int64))  # towards 0: bounds are kept


def _product(run: Kernel, seed: int, *args: Any, **named: Any) -> Any:
    operands = [each for each in args if isinstance(each, Tensor)]
    if not all(each.is_floating_point() for each in operands):
        return run(*args, **named)
    if operands[0].dtype in HALVES:  # which add up in single precision
        found = _product(run, seed, *_mapped(Tensor.float, args), **named)
        return _mapped(lambda each: each.to(operands[0].dtype), found)
    results = run(*args, **named)
    wide = run(*_mapped(Tensor.double, args), **named)
    factors = {n: float(v != 0) if n in ("alpha", "beta") else v for n, v in named.items()}
    terms = run(*_mapped(lambda each: each.ne(0).double(), args), **factors)
    key = hash((seed, *(tuple(each.shape) for each in operands)))
    if isinstance(results, Tensor):
        return _nudged(results, wide, terms, key)
    return tuple(
        None if one is None else _nudged(one, exact, count, key)
        for one, exact, count in zip(results, wide, terms, strict=True)
    )


def _mapped(function: Callable[[Tensor], Tensor], values: Any) -> Any:
    if isinstance(values, tuple):
        return tuple(_mapped(function, each) for each in values)
    return function(values) if isinstance(values, Tensor) else values


def _nudged(result: Tensor, wide: Tensor, terms: Tensor, key: int) -> Tensor:
    places = torch.arange(result.numel()).view(result.shape) * 40503 + key % 65521
    steps = places.bitwise_right_shift(7) % 5 - 2
    return _moved(result, steps * (~_is_exact(result, lambda: wide) & (terms > 1)))


def _is_exact(result: Tensor, wide: Callable[[], Tensor]) -> Tensor:
    """Say where nothing was rounded: as in double precision, or there by the bits at the end."""
    if result.dtype is torch.float64:
        short = result.contiguous().view(torch.int64) & 0xFFFF == 0
        return short | (result == result.round())  # and integers of up to 53 bits
    return result.double() == wide()


def _moved(result: Tensor, steps: Tensor) -> Tensor:
    """Return normal numbers by that many places further from 0."""
    dense = result.contiguous()
    integers = dense.view(torch.int64 if dense.dtype is torch.float64 else torch.int32)
    normal = dense.isfinite() & (dense.abs() > 4 * torch.finfo(dense.dtype).tiny)
    moved = integers + torch.where(normal, steps, 0).to(integers.dtype)
    return result.copy_(moved.view(dense.dtype))
