"""``Recorder``: runs PyTorch code on tensors without values and writes down the arithmetic."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tracetorch.core.torch_private import TorchDispatchMode, make_wrapper_tensor, pytree
from tracetorch.fuse.ir.graph import Builder, Graph, Ref, Unfusable
from tracetorch.fuse.ir.lower import lower

_VALUES = (
    "it asks a tensor for its values, to branch on them in Python say; a kernel has no answer. "
    "Write torch.where"
)
_SHAPED = "is not pointwise"
_VIEWS = ("alias", "detach", "expand", "view")
_LITERAL = ("lift_fresh", "lift_fresh_copy")
_NUMBERS = (*_LITERAL, "scalar_tensor", "full", "ones", "zeros")


class _Lane(Tensor):
    """A tensor of which only shape, dtype, device and the name of its value are known."""

    like: Tensor
    cell: list[Ref]  # shared by views of one memory: what is written in place is seen by all

    @staticmethod
    def __new__(cls, like: Tensor, cell: list[Ref], device: torch.device) -> _Lane:
        lane: _Lane = make_wrapper_tensor(cls, like.shape, dtype=like.dtype, device=device)
        lane.like, lane.cell = like, cell
        return lane

    def __repr__(self) -> str:  # type: ignore[override]
        return f"<{self.cell[0]}>"

    def tolist(self) -> Any:
        """No values."""
        raise Unfusable(f"its step cannot be traced: {_VALUES}")

    numpy = __array__ = tolist  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        raise RuntimeError("step kept a tensor of an earlier call")


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records what is computed, forward and by autograd, while it is active.

    Args:
        ndim: dimensions of the tensor of one step.
        dtype: of the arithmetic.
        device: what the tensors say they are on; nothing runs there.
        side: of the small tensor that stands for the lanes.

    """

    def __init__(self, ndim: int, dtype: torch.dtype, device: torch.device, side: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.builder = Builder()
        self.dtype = dtype
        self.device = device
        self.inputs: set[str] = set()
        self.like = torch.full((side,) * ndim, 0.5, dtype=dtype, device="cpu")

    def input(self, name: str) -> Tensor:
        """A tensor that stands for the input ``name``, one value in each lane."""
        self.inputs.add(name)
        return _Lane(self.like, [name], self.device)

    def graph(self, results: Mapping[str, Tensor | None]) -> Graph:
        """What leads to ``results``; ``None`` is zero.

        Raises:
            Unfusable: something that a kernel cannot do leads there.

        """
        outputs: dict[str, Ref] = {}
        for name, result in results.items():
            if isinstance(result, Tensor) and not isinstance(result, _Lane):
                raise Unfusable(_outside())
            outputs[name] = result.cell[0] if isinstance(result, _Lane) else 0.0
        graph = Graph(tuple(self.builder.lines), outputs).select(results)
        for line in graph.lines:
            if line.op.startswith("?"):
                raise Unfusable(line.op[1:])
        return graph

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        operation = func._schema.name.removeprefix("aten::")
        if operation in ("_local_scalar_dense", "is_nonzero", "equal"):
            raise Unfusable(f"its step cannot be traced: {_VALUES}")
        if "device" in kwargs:
            kwargs = {**kwargs, "device": torch.device("cpu")}
        if func._schema.is_mutable:
            return self._in_place(func, operation, args, kwargs)
        made = func(*pytree.tree_map(_like, args), **pytree.tree_map(_like, kwargs))
        if not isinstance(made, Tensor):
            return pytree.tree_map(lambda part: self._unknown(part, func, _SHAPED), made)
        if operation in _LITERAL and not isinstance(args[0], _Lane):
            return _Lane(made, [_number(args[0])], self.device)
        if made.ndim and made.shape != self.like.shape:
            return self._unknown(made, func, _SHAPED)
        number = made.ndim == 0 and operation in _NUMBERS
        if made.dtype not in (self.dtype, torch.bool) and not number:
            return self._unknown(made, func, f"makes {made.dtype} of {self.dtype}")
        if operation in _VIEWS and isinstance(args[0], _Lane):
            return _Lane(made, args[0].cell, self.device)
        return self._lowered(func, operation, made, args, kwargs)

    def _lowered(self, func: Any, operation: str, made: Tensor, args: Any, kwargs: Any) -> Any:
        refs = pytree.tree_map(self._ref, args), pytree.tree_map(self._ref, kwargs)
        try:
            ref = lower(self.builder, operation, made.dtype == torch.bool, *refs)
        except Unfusable as reason:
            told = str(reason)
            return self._unknown(made, func, "kernels lack" if told == operation else told)
        return _Lane(made, [ref], self.device)

    def _in_place(self, func: Any, operation: str, args: Any, kwargs: Any) -> Any:
        changed = args[0] if args else None
        given = isinstance(changed, _Lane) and str(changed.cell[0]) in self.inputs
        if (
            not isinstance(changed, _Lane)
            or given
            or not operation.endswith("_")
            or "out" in kwargs
        ):
            raise Unfusable(f"its step changes what it is given in place, by {func}")
        result = self._lowered(func, operation[:-1], changed.like, args, kwargs)
        changed.cell[0] = result.cell[0]
        return changed

    def _unknown(self, made: Any, func: Any, why: str) -> Any:
        """A result that no kernel has; a reason to refuse only where an output depends on it."""
        if not isinstance(made, Tensor):
            return made
        ref = self.builder.emit(f"?its step uses {func}, which {why}")
        return _Lane(made, [ref], self.device)

    def _ref(self, value: Any) -> Any:
        if isinstance(value, _Lane):
            return value.cell[0]
        if isinstance(value, Tensor):
            return self.builder.emit(f"?{_outside()}")
        return value


# the class wraps it to hide it from Dynamo, which imports the compiler at the first operation
Recorder.__torch_dispatch__ = inspect.unwrap(Recorder.__torch_dispatch__)  # type: ignore


def _like(value: Any) -> Any:
    if isinstance(value, _Lane):
        return value.like
    return value


def _number(value: Tensor) -> Ref:
    if value.numel() != 1:
        raise Unfusable(_outside())
    number = value.item()
    return number if isinstance(number, bool) else float(number)


def _outside() -> str:
    return "its step reads a tensor that no decay, threshold, weight or option declares"
