"""Record the arithmetic of PyTorch code as a :class:`Graph`, by a dispatch mode.

A tensor of the recorded code is a :class:`_Lane`: it holds no data, but the name of its value in
the graph, and a small sample tensor. Each operation runs on the samples, which gives shape and
dtype of its result by PyTorch's own rules, and is lowered to lines of the graph, or decomposed into
operations that are. One for which neither is possible is recorded as unsupported; it matters only
where an output depends on it.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tracetorch.core.torch_private import TorchDispatchMode, make_wrapper_tensor, pytree
from tracetorch.fuse.ir.decompose import decomposition
from tracetorch.fuse.ir.graph import Builder, Graph, Unfusable, Value
from tracetorch.fuse.ir.lower import lower
from tracetorch.fuse.ir.sizes import READS_SIZES, symbolic_sizes

_READS_VALUES = (
    "it reads the values of a tensor, for example to branch on them in Python, which a kernel "
    "cannot do. Use torch.where"
)
_UNDECLARED = "its step reads a tensor that no decay, threshold, weight or option declares"
_NOT_POINTWISE = "is not pointwise"
_VIEWS = ("alias", "detach", "expand", "view")
_LITERALS = ("lift_fresh", "lift_fresh_copy")
_CASTS = {torch.float16: ".half()", torch.float32: ".float()", torch.float64: ".double()"}
_SAME_SIZES = ("_to_copy", "alias", "clone", "detach", "full_like", "ones_like", "zeros_like")
_FILLED = ("scalar_tensor", "full", "ones", "zeros")
# operations that round nothing, so that a result of a narrower dtype is the same number in ours
_EXACT = ("abs", "clone", "maximum", "minimum", "neg", "where", *_VIEWS, *_FILLED)


class _Lane(Tensor):
    """Tensor without data: its shape, dtype, device, and the name of its value."""

    sample: Tensor
    """A small tensor on the CPU that PyTorch computes on instead."""
    cell: list[Value]
    """Holds the name; views of one memory share it: an in-place change of one is seen by all."""
    sizes: torch.Size | None = None
    """Symbols; ``None``: unknown, as those of a parameter, which may have fewer dimensions."""

    @staticmethod
    def __new__(cls, sample: Tensor, cell: list[Value], device: torch.device) -> _Lane:
        lane: _Lane = make_wrapper_tensor(cls, sample.shape, dtype=sample.dtype, device=device)
        lane.sample, lane.cell = sample, cell
        return lane

    def __repr__(self) -> str:  # type: ignore[override]
        return f"<{self.cell[0]}>"

    def tolist(self, *_: object) -> Any:
        """Raise, because there are no values."""
        raise Unfusable(f"its step cannot be traced: {_READS_VALUES}")

    numpy = __array__ = item = __str__ = __format__ = tolist  # type: ignore[assignment]
    # PyTorch would first complain about the number of values
    __bool__ = __int__ = __float__ = __index__ = tolist

    def _visible_sizes(self, *, number: bool = False) -> Any:
        """Return the sizes: symbols to a step, those of the sample to PyTorch and this package."""
        module = sys._getframe(2).f_globals.get("__name__", "") + "."
        if module.startswith(("torch.", "tracetorch.core.", "tracetorch.fuse.")):
            return self.sample.shape
        if self.sizes is None or number:
            raise Unfusable(READS_SIZES)
        return self.sizes

    def size(self, dim: int | None = None) -> Any:
        sizes = self._visible_sizes()
        return sizes if dim is None else sizes[dim]

    def dim(self) -> int:
        return len(self._visible_sizes())

    def numel(self) -> int:
        return self._visible_sizes(number=True).numel()  # type: ignore[no-any-return]

    def __len__(self) -> int:
        return self._visible_sizes(number=True)[0]  # type: ignore[no-any-return]

    shape, ndim = property(size), property(dim)
    ndimension, nelement = dim, numel

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        # Only reached after tracing: until then the recorder's mode handles all operations.
        raise RuntimeError("step kept a tensor of an earlier call")


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Record what is computed, forward and by autograd, while the mode is active.

    Args:
        ndim: number of dimensions of the tensor of one step.
        dtype: dtype of the arithmetic.
        device: device that the tensors pretend to be on; nothing runs there.
        side: size of every dimension of the sample tensors.
    """

    def __init__(self, ndim: int, dtype: torch.dtype, device: torch.device, side: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.builder = Builder()
        self.dtype = dtype
        self.device = device
        self.inputs: set[str] = set()
        self.unsupported: set[Value] = set()
        self.decomposing = False
        self.sizes = symbolic_sizes(ndim)
        # Any value will do: what is computed on samples is thrown away.
        self.sample = torch.full((side,) * ndim, 0.5, dtype=dtype, device="cpu")

    def input(self, name: str) -> Tensor:
        """Return a tensor that represents the input ``name``, one value in each lane."""
        self.inputs.add(name)
        lane = _Lane(self.sample, [name], self.device)
        lane.sizes = None if name.startswith("p_") else self.sizes
        return lane

    def graph(self, results: Mapping[str, Tensor | None]) -> Graph:
        """Return the graph that computes ``results``; ``None`` is zero.

        Raises:
            Unfusable: a result depends on an operation that a kernel cannot do.
        """
        outputs: dict[str, Value] = {}
        for name, result in results.items():
            if isinstance(result, Tensor) and not isinstance(result, _Lane):
                raise Unfusable(_UNDECLARED)
            outputs[name] = result.cell[0] if isinstance(result, _Lane) else 0.0
        graph = Graph(tuple(self.builder.lines), outputs).select(results)
        # Unsupported operations that no result depends on are gone by now.
        for line in graph.lines:
            if line.op.startswith("?"):
                raise Unfusable(line.op[1:])
        return graph

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if torch.Tag.nondeterministic_seeded in func.tags:
            raise Unfusable(f"its step draws random numbers, by {func}")
        given = (args, kwargs or {})
        symbols = [v.node for v in pytree.tree_leaves(given) if isinstance(v, torch.SymInt)]
        # one alone is a number; in another order they may not fit
        alone = any(isinstance(v, torch.SymInt) for v in (*args, *given[1].values()))
        sizes: Any = self.sizes
        if symbols and (alone or symbols != [size.node for size in sizes]):
            raise Unfusable(READS_SIZES)
        side = self.sample.shape[0] if symbols else 0
        args, kwargs = pytree.tree_map(lambda v: side if isinstance(v, torch.SymInt) else v, given)
        result = self._recorded(func, args, kwargs)
        # the number of parts would be a size
        if isinstance(result, list) and (
            len(result) == len(self.sample) or func is not torch.ops.aten.unbind.int
        ):
            raise Unfusable(READS_SIZES)
        if isinstance(result, _Lane) and result.sizes is None:
            keeps = torch.Tag.pointwise in func.tags or func.__name__.split(".")[0] in _SAME_SIZES
            known = (
                isinstance(v, _Lane) and v.sizes is self.sizes for v in pytree.tree_leaves(given)
            )
            if result.sample.ndim == 0:
                result.sizes = torch.Size([])
            elif symbols or (keeps and any(known)):
                result.sizes = self.sizes
        return result

    def _recorded(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        # Operations of other libraries keep their namespace, and so never have a rule.
        operation = func._schema.name.removeprefix("aten::").removeprefix("prims::")
        if operation in ("_local_scalar_dense", "is_nonzero", "equal"):
            raise Unfusable(f"its step cannot be traced: {_READS_VALUES}")
        # Run the operation on samples, which are on the CPU whatever the device of the lanes.
        if "device" in kwargs:
            kwargs = {**kwargs, "device": torch.device("cpu")}
        if func._schema.is_mutable:
            return self._in_place(func, operation, args, kwargs)
        made = func(*pytree.tree_map(_sample_of, args), **pytree.tree_map(_sample_of, kwargs))
        # The first unsupported operation is the reason for all that is computed from its result.
        for value in pytree.tree_leaves((args, kwargs)):
            if isinstance(value, _Lane) and value.cell[0] in self.unsupported:
                return pytree.tree_map(lambda part: self._result(part, value.cell[0]), made)  # noqa: B023
        if not isinstance(made, Tensor):
            simpler = self._decomposed(func, args, kwargs)
            return self._unsupported(made, func, _NOT_POINTWISE) if simpler is None else simpler
        # torch.tensor(2.0) in the step: the number is compiled in.
        if operation in _LITERALS and not isinstance(args[0], _Lane):
            return _Lane(made, [_literal(args[0])], self.device)
        # Pointwise operations keep the shape, up to broadcast scalars, and the dtype.
        if made.ndim and made.shape != self.sample.shape:
            return self._unsupported(made, func, _NOT_POINTWISE)
        if operation not in _EXACT or torch.promote_types(made.dtype, self.dtype) != self.dtype:
            dtypes = {v.dtype for v in pytree.tree_leaves((args, kwargs)) if isinstance(v, _Lane)}
            dtypes -= {torch.bool}
            if made.dtype not in (self.dtype, torch.bool):
                why = f"makes {made.dtype} of {self.dtype}"
                if operation == "_to_copy":
                    why += (
                        f": write .to(x.dtype) instead of {_CASTS.get(made.dtype, 'another cast')}"
                    )
                return self._unsupported(made, func, why)
            # a comparison of numbers of another dtype alone
            if made.dtype is torch.bool and dtypes and self.dtype not in dtypes:
                return self._unsupported(made, func, f"computes in {dtypes.pop()}")
        # A number as PyTorch has rounded it: those of where(c, 0.2, -0.1) are of the default dtype.
        if operation in _FILLED and made.dtype not in (self.dtype, torch.bool):
            return _Lane(made, [_literal(made.flatten()[:1])], self.device)
        # A view shares the cell of its base.
        if operation in _VIEWS and isinstance(args[0], _Lane):
            return _Lane(made, args[0].cell, self.device)
        return self._lowered(func, operation, made, args, kwargs)

    def _lowered(self, func: Any, operation: str, made: Tensor, args: Any, kwargs: Any) -> Any:
        values = pytree.tree_map(self._value_of, args), pytree.tree_map(self._value_of, kwargs)
        try:
            value = lower(self.builder, operation, made.dtype == torch.bool, *values)
        except Unfusable as reason:
            simpler = self._decomposed(func, args, kwargs)
            if simpler is not None:
                return simpler
            # The bare name of the operation means that it has no rule.
            why = "kernels lack" if str(reason) == operation else str(reason)
            return self._unsupported(made, func, why)
        return _Lane(made, [value], self.device)

    def _decomposed(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Return the result of an operation computed by simpler ones; ``None``: it cannot be."""
        simpler = decomposition(func)
        if simpler is None:
            return None
        outer, self.decomposing = self.decomposing, True
        try:
            with self:
                return simpler(*args, **kwargs)
        except Unfusable:
            return None
        finally:
            self.decomposing = outer

    def _in_place(self, func: Any, operation: str, args: Any, kwargs: Any) -> Any:
        changed = args[0] if args else None
        # A change of an input would be seen outside; one of a temporary is a new value.
        if (
            not isinstance(changed, _Lane)
            or str(changed.cell[0]) in self.inputs
            or not operation.endswith("_")
            or "out" in kwargs
        ):
            raise Unfusable(f"its step changes an argument in place, by {func}")
        result = self._lowered(func, operation[:-1], changed.sample, args, kwargs)
        changed.cell[0] = result.cell[0]
        return changed

    def _unsupported(self, made: Any, func: Any, why: str) -> Any:
        """Return a result that no kernel can compute, its operation named ``?<reason>``.

        Raises:
            Unfusable: it is a part of an operation, which is to be named instead.
        """
        if self.decomposing:
            raise Unfusable(why)
        if torch.Tag.reduction in func.tags:
            why = "is a reduction"
        value = self.builder.emit(f"?its step uses {func}, which {why}")
        self.unsupported.add(value)
        return pytree.tree_map(lambda part: self._result(part, value), made)

    def _result(self, made: Any, value: Value) -> Any:
        """Return a tensor of value ``value``, or what else an operation returned."""
        return _Lane(made, [value], self.device) if isinstance(made, Tensor) else made

    def _value_of(self, value: Any) -> Any:
        if isinstance(value, _Lane):
            return value.cell[0]
        if isinstance(value, Tensor):
            return self.builder.emit(f"?{_UNDECLARED}")
        return value


# TorchDispatchMode wraps this method to hide it from Dynamo. The wrapper imports Dynamo at the
# first operation, which takes longer than to trace.
Recorder.__torch_dispatch__ = inspect.unwrap(Recorder.__torch_dispatch__)  # type: ignore


def _sample_of(value: Any) -> Any:
    return value.sample if isinstance(value, _Lane) else value


def _literal(value: Tensor) -> Value:
    if value.numel() != 1:
        raise Unfusable(_UNDECLARED)
    number = value.item()
    return number if isinstance(number, bool) else float(number)
