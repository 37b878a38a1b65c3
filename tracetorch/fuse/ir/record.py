"""Record the arithmetic of PyTorch code as a :class:`Graph`, by a dispatch mode.

A tensor of the recorded code is a :class:`_Lane`: the name of its value in the graph, and a small
contiguous sample, of as many values as the input or one, on which PyTorch computes shape and dtype:
an operation joins values of one lane if its result has no more; a contiguous view keeps the order.
"""

from __future__ import annotations

import contextlib
import inspect
import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tracetorch.core.torch_private import COMPOSITE, TorchDispatchMode, make_wrapper_tensor, pytree
from tracetorch.fuse.ir.graph import Builder, Graph, Unfusable, Value
from tracetorch.fuse.ir.lower import decomposition, lower

READS_SIZES = "its step reads the size of its input"
_READS_VALUES = (
    "its step cannot be traced: it reads the values of a tensor, for example to branch on them in "
    "Python, which a kernel cannot do. Use torch.where"
)
_UNDECLARED = "its step reads a tensor that no decay, threshold, weight or option declares"
_MADE = (
    "its step makes a tensor of its own, by {}. Write torch.zeros_like(x) for one like its input, "
    'and for numbers of neurons self.weight("name", tensor, learnable=False) in __init__'
)
_JOINS = "joins tensors in a dimension of its own. Use torch.maximum, torch.minimum or a sum"
_NOT_POINTWISE = "is not pointwise"
_FILLED = (
    *("scalar_tensor", "full", "ones", "zeros", "new_full", "new_ones", "new_zeros"),
    *("_efficientzerotensor", "new_empty_strided"),
)
_NUMBERS = (*_FILLED, "lift_fresh")
# operations that round nothing, so that a result of a narrower dtype is the same number in ours
_EXACT = ("abs", "clone", "maximum", "minimum", "neg", "where", *_FILLED)
_BY_VALUES = ("index", "index_put_", "masked_scatter", "masked_select", "nonzero")


class _Memory:
    """Value of one memory, which all its views see; ``is_input``: the caller reads it as well."""

    def __init__(self, value: Value, is_small: bool, *, is_input: bool = False) -> None:
        self.value, self.is_small, self.is_input = value, is_small, is_input


class _Lane(Tensor):
    """Tensor without data: its shape, dtype, device, and the name of its value."""

    sample: Tensor
    """A small tensor on the CPU that PyTorch computes on instead."""
    memory: _Memory
    is_small: bool
    """Whether it is a number or of parameters alone, which may lack dimensions of the input."""

    @staticmethod
    def __new__(
        cls, sample: Tensor, memory: _Memory, is_small: bool, device: torch.device
    ) -> _Lane:
        options: dict[str, Any] = {"strides": sample.stride(), "dtype": sample.dtype}
        lane: _Lane = make_wrapper_tensor(cls, sample.shape, device=device, **options)
        lane.sample, lane.memory, lane.is_small = sample, memory, is_small
        return lane

    def __repr__(self) -> str:  # type: ignore[override]
        return f"<{self.memory.value}>"

    def tolist(self, *_: object) -> Any:
        """Raise, because there are no values."""
        raise Unfusable(_READS_VALUES)

    numpy = __array__ = item = __str__ = __format__ = tolist  # type: ignore[assignment]
    # PyTorch would first complain about the number of values
    __bool__ = __int__ = __float__ = __index__ = tolist

    def _visible(self) -> Tensor:
        """Return what has sizes, not to a step: those of samples are not those of its input."""
        module = sys._getframe(2).f_globals.get("__name__", "") + "."
        if module.startswith(("torch.", "tracetorch.core.", "tracetorch.fuse.")):
            return self.sample
        raise Unfusable(READS_SIZES)

    def size(self, *dim: Any, **named: Any) -> Any:
        return self._visible().size(*dim, **named)

    def dim(self) -> int:
        return self._visible().dim() if self.is_small else self.sample.dim()

    def numel(self) -> int:
        return self._visible().numel()

    def __len__(self) -> int:
        return len(self._visible())

    shape, ndim = property(size), property(dim)
    ndimension, nelement = dim, numel

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        # Only reached after tracing: until then the recorder's mode handles all operations.
        raise RuntimeError("step kept a tensor of an earlier call")


class StepRecorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Record what is computed, forward and by autograd, on sample tensors of sizes ``side``."""

    def __init__(self, ndim: int, dtype: torch.dtype, device: torch.device, side: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.builder = Builder()
        self.dtype = dtype
        self.device = device
        # Any value will do: what is computed on samples is thrown away.
        self.sample = torch.full((side,) * ndim, 0.5, dtype=dtype, device="cpu")

    def input(self, name: str, like: Tensor | None = None) -> Tensor:
        """Return a tensor for the input ``name``, of each lane, or of dimensions as of ``like``."""
        is_small = like is not None and (like.ndim < self.sample.ndim or 1 in like.shape)
        return _Lane(self.sample, _Memory(name, is_small, is_input=True), is_small, self.device)

    def graph(self, results: Mapping[str, Tensor | None]) -> Graph:
        """Return the graph that computes ``results``; ``None`` is zero."""
        outputs: dict[str, Value] = {}
        for name, result in results.items():
            if isinstance(result, Tensor) and not isinstance(result, _Lane):
                raise Unfusable(_UNDECLARED)
            # the samples of parameters are as large as the input, but not the tensors
            if result is not None and result.is_small and not name.startswith("d_"):
                raise Unfusable(
                    f"its step returns {name.removeprefix('next_')} in another shape than its input"
                )
            outputs[name] = 0.0 if result is None else result.memory.value
        return Graph(tuple(self.builder.lines), outputs).select(results)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if torch.Tag.nondeterministic_seeded in func.tags:
            raise Unfusable(f"its step draws random numbers, by {func}")
        # Operations of other libraries keep their namespace, and so never have a rule.
        operation = func._schema.name.removeprefix("aten::").removeprefix("prims::")
        # Run the operation on samples, which are on the CPU whatever the device of the lanes.
        kwargs = dict(kwargs or {})
        if "device" in kwargs:
            kwargs["device"] = torch.device("cpu")
        tensors = [v for v in pytree.tree_leaves((args, kwargs)) if isinstance(v, Tensor)]
        lanes = [tensor for tensor in tensors if isinstance(tensor, _Lane)]
        if operation in ("_local_scalar_dense", "is_nonzero", "equal", "all", "any"):
            raise Unfusable(_READS_VALUES)
        if operation in _BY_VALUES:
            raise Unfusable(f"its step chooses values by {func}. Use torch.where")
        if func._schema.is_mutable:
            return self._in_place(func, operation, lanes, args, kwargs)
        made = _on_samples(func, args, kwargs)
        if not lanes or operation.startswith("new_"):
            is_filled = operation in _FILLED and made.numel() == self.sample.numel()
            if not is_filled and (operation not in _NUMBERS or made.numel() != 1):
                known = operation in _NUMBERS or not tensors
                raise Unfusable(_MADE.format(func) if known else _UNDECLARED)
            if operation == "lift_fresh":  # torch.tensor(2.0): the number is compiled in
                return self._lane(made, _literal(made), True)
            is_small = not is_filled
        elif len(tensors) > len(lanes):
            raise Unfusable(_UNDECLARED)
        elif isinstance(made, list):  # the number of parts would be a size
            raise Unfusable(READS_SIZES)
        elif not isinstance(made, Tensor):
            return self._simpler(func, args, kwargs, _NOT_POINTWISE)
        elif isinstance(args[0], _Lane) and _is_view(func, operation):
            return self._view(func, operation, made, args[0])
        elif made.numel() != max(lane.sample.numel() for lane in lanes):
            why = _JOINS if operation in ("cat", "stack") else _NOT_POINTWISE
            return self._simpler(func, args, kwargs, why)
        else:
            is_small = all(lane.is_small for lane in lanes)
        if (inexact := self._inexact(operation, made, lanes)) is not None:
            raise Unfusable(f"its step uses {func}, which {inexact}")
        # A number as PyTorch has rounded it: those of where(c, 0.2, -0.1) are of the default dtype.
        if operation in _FILLED and made.dtype not in (self.dtype, torch.bool):
            return self._lane(made, _literal(made.flatten()[0]), is_small)
        return self._lowered(func, operation, made, is_small, args, kwargs)

    def _lane(self, made: Tensor, value: Value, is_small: bool) -> _Lane:
        return _Lane(made, _Memory(value, is_small), is_small, self.device)

    def _inexact(self, operation: str, made: Tensor, lanes: list[_Lane]) -> str | None:
        """Return why a result is rounded otherwise than in the dtype of the arithmetic."""
        if operation in _EXACT and torch.promote_types(made.dtype, self.dtype) == self.dtype:
            return None
        if made.dtype in (torch.int32, torch.int64) and operation == "_to_copy":
            return None
        if made.dtype not in (self.dtype, torch.bool):
            return f"makes {made.dtype} of {self.dtype}: a cast is written .to(x.dtype)"
        # a comparison of numbers of another dtype alone
        dtypes = {lane.dtype for lane in lanes} - {torch.bool}
        if made.dtype is torch.bool and dtypes and self.dtype not in dtypes:
            return f"computes in {dtypes.pop()}"
        return None

    def _view(self, func: Any, operation: str, made: Tensor, base: _Lane) -> _Lane:
        """Return a view of the memory of a lane, which keeps all values in their order."""
        count, is_small = base.sample.numel(), base.is_small
        keeps = made.shape == base.shape and made.stride() == base.stride()
        changes = made.dtype != base.dtype or made.numel() not in (count, self.sample.numel())
        if changes or (count > 1 and not keeps and (is_small or not made.is_contiguous())):
            raise Unfusable(
                f"its step uses {func}, which moves, takes or repeats values, or gives a parameter "
                f"another shape, and so {_NOT_POINTWISE}"
            )
        is_small = is_small and (operation != "expand" or made.shape != self.sample.shape)
        return _Lane(made, base.memory, is_small, self.device)

    def _lowered(
        self, func: Any, operation: str, made: Tensor, is_small: bool, args: Any, kwargs: Any
    ) -> Any:
        values = pytree.tree_map(_value_of, args), pytree.tree_map(_value_of, kwargs)
        if operation == "_to_copy" and made.dtype in (torch.int32, torch.int64):
            operation, values = f"to_{made.dtype}".replace("torch.", ""), (values[0][:1], {})
        try:
            value = lower(self.builder, operation, made.dtype == torch.bool, *values)
        except Unfusable as reason:
            # The bare name of the operation means that it has no rule.
            why = "kernels lack" if str(reason) == operation else str(reason)
            return self._simpler(func, args, kwargs, why)
        return self._lane(made, value, is_small)

    def _simpler(self, func: Any, args: Any, kwargs: Any, why: str) -> Any:
        """Return the result of an operation computed by simpler ones, or raise for a reason."""
        simpler = decomposition(func)
        if simpler is not None:
            with contextlib.suppress(Unfusable), self:
                return simpler(*args, **kwargs)
        why = "is a reduction" if torch.Tag.reduction in func.tags else why
        raise Unfusable(f"its step uses {func}, which {why}")

    def _in_place(
        self, func: Any, operation: str, lanes: list[_Lane], args: Any, kwargs: Any
    ) -> Any:
        # into an output, or the shape alone
        if not operation.endswith("_") or "out" in kwargs or torch.Tag.inplace_view in func.tags:
            raise Unfusable(f"its step writes into an argument of {func}, which kernels lack")
        changed = args[0]
        # A change of an input would be seen outside; one of a temporary is a new value.
        if not isinstance(changed, _Lane) or changed.memory.is_input:
            raise Unfusable(f"its step changes an argument in place, by {func}")
        # where PyTorch refuses the shapes or the dtype, so does it here
        _on_samples(func, args, kwargs)
        is_small = changed.is_small
        if changed.memory.is_small != is_small or (is_small and not all(v.is_small for v in lanes)):
            raise Unfusable(
                f"its step changes in place, by {func}, a tensor that has fewer values than it is "
                "given, which PyTorch refuses"
            )
        result = self._lowered(func, operation[:-1], changed.sample, is_small, args, kwargs)
        changed.memory.value = result.memory.value
        return changed


# TorchDispatchMode wraps this method to hide it from Dynamo. The wrapper imports Dynamo at the
# first operation, which takes longer than to trace.
StepRecorder.__torch_dispatch__ = inspect.unwrap(StepRecorder.__torch_dispatch__)  # type: ignore


def _is_view(func: Any, operation: str) -> bool:
    """Whether an operation computes nothing, by what its schema says of memory."""
    aliases = [value.alias_info for value in func._schema.returns]
    shares = any(alias is not None and not alias.is_write for alias in aliases)
    # what PyTorch makes of other operations may be a view or a copy; this one has other numbers
    is_composite = func.has_kernel_for_dispatch_key(COMPOSITE)
    return shares and not is_composite and operation != "_neg_view"


def _on_samples(func: Any, args: Any, kwargs: Any) -> Any:
    def sample(value: Any) -> Any:
        return value.sample if isinstance(value, _Lane) else value

    return func(*pytree.tree_map(sample, args), **pytree.tree_map(sample, kwargs))


def _value_of(value: Any) -> Any:
    return value.memory.value if isinstance(value, _Lane) else value


def _literal(value: Tensor) -> Value:
    number = value.item()
    return number if isinstance(number, bool) else float(number)
