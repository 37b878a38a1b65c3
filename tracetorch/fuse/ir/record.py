"""Record the arithmetic of PyTorch code as a :class:`Graph`, by a dispatch mode.

A tensor of the recorded code is a :class:`_Lane`: it holds no data, but the name of its value in
the graph, and a small sample tensor. Each operation runs on the samples, which gives shape and
dtype of its result by PyTorch's own rules, and is lowered to lines of the graph, or decomposed into
operations that are. One for which neither is possible is recorded as unsupported; it matters only
where an output depends on it.

Places. Views are followed by what they do to the coordinates of a value among the lanes, -1 where
it is the same along a dimension: values are joined where their coordinates agree. An operation in
place runs on the samples too, where PyTorch itself refuses what it refuses.
"""

from __future__ import annotations

import contextlib
import inspect
import sys
from collections.abc import Mapping
from typing import Any, NoReturn

import torch
from torch import Tensor

from tracetorch.core.torch_private import COMPOSITE, TorchDispatchMode, make_wrapper_tensor, pytree
from tracetorch.fuse.ir.decompose import decomposition
from tracetorch.fuse.ir.graph import Builder, Graph, Unfusable, Value
from tracetorch.fuse.ir.lower import lower

_READS_VALUES = (
    "it reads the values of a tensor, for example to branch on them in Python, which a kernel "
    "cannot do. Use torch.where"
)
_UNDECLARED = "its step reads a tensor that no decay, threshold, weight or option declares"
_SEVERAL = ("arange", "linspace", "logspace", "eye")
_JOINS = "joins tensors in a dimension of its own. Use torch.maximum, torch.minimum or a sum"
_NOT_POINTWISE = "is not pointwise"
# views that move nothing where they keep the shape
_SAME = ("alias", "detach", "lift_fresh", "lift_fresh_copy", "view")
_CONSTANTS = ("new_full", "new_ones", "new_zeros")
# views in the schema alone: of another memory order, or of other numbers than their base
_NO_VIEWS = ("as_strided", "_neg_view", "view_as_real", "view_as_complex")
_COPIED_VIEWS = ("_unsafe_view", "_reshape_copy", "lift_fresh_copy")
_LITERALS = ("lift_fresh", "lift_fresh_copy")
_CASTS = {torch.float16: ".half()", torch.float32: ".float()", torch.float64: ".double()"}
_SAME_SIZES = ("_to_copy", "alias", "clone", "detach", "full_like", "ones_like", "zeros_like")
_FILLED = ("scalar_tensor", "full", "ones", "zeros")
# operations that round nothing, so that a result of a narrower dtype is the same number in ours
_EXACT = ("abs", "clone", "maximum", "minimum", "neg", "where", *_FILLED)
_BY_VALUES = ("index", "index_put_", "masked_scatter", "masked_select", "nonzero")


READS_SIZES = "its step reads the size of its input"


class _Node:
    """A size as PyTorch's C++ passes it on."""

    def is_int(self) -> bool:
        return True

    def maybe_as_int(self) -> None:
        return None

    def guard_int(self, *_: object) -> NoReturn:
        raise Unfusable(READS_SIZES)


class _Size(torch.SymInt):
    """The size of one dimension."""

    __class__ = property(lambda self: int)  # to ``isinstance``

    def __eq__(self, other: object) -> bool:
        return self.node is getattr(other, "node", None) or self.node.guard_int()

    def __ne__(self, other: object) -> bool:
        return not self == other

    def _read(self, *_: object) -> NoReturn:
        raise Unfusable(READS_SIZES)


for _name in (vars(int).keys() - vars(object).keys()) | {
    *("__lt__", "__le__", "__gt__", "__ge__", "__hash__", "__repr__", "__format__")
}:
    setattr(_Size, _name, _Size._read)


def symbolic_sizes(ndim: int) -> torch.Size:
    """Return the sizes of a tensor, which equal themselves and nothing else."""
    return torch.Size([_Size(_Node()) for _ in range(ndim)])  # type: ignore


class _Misplaced(Exception):  # noqa: N818 (a finding, caught here)
    """Values of different coordinates are to be joined."""


class _Memory:
    """Value of one memory, which all its views see; ``is_input``: the caller reads it as well."""

    def __init__(self, value: Value, size: int, *, is_input: bool = False) -> None:
        self.value, self.size, self.is_input = value, size, is_input


class _Lane(Tensor):
    """Tensor without data: its shape, dtype, device, and the name of its value."""

    sample: Tensor
    """A small tensor on the CPU that PyTorch computes on instead."""
    memory: _Memory
    """Holds the name."""
    place: Tensor | None
    """Coordinates of each value, in a first dimension of their own; ``None``: the same in all."""
    overlaps: bool
    """Whether several values are one in memory, as ``expand`` makes them."""
    sizes: torch.Size | None = None
    """Symbols; ``None``: unknown, as those of a parameter, which may have fewer dimensions."""

    @staticmethod
    def __new__(
        cls,
        sample: Tensor,
        memory: _Memory,
        place: Tensor | None,
        device: torch.device,
        overlaps: bool = False,
    ) -> _Lane:
        options: dict[str, Any] = {"strides": sample.stride(), "dtype": sample.dtype}
        lane: _Lane = make_wrapper_tensor(cls, sample.shape, device=device, **options)
        lane.sample, lane.memory, lane.place, lane.overlaps = sample, memory, place, overlaps
        return lane

    def __repr__(self) -> str:  # type: ignore[override]
        return f"<{self.memory.value}>"

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
    """Record what is computed, forward and by autograd, on sample tensors of sizes ``side``."""

    def __init__(self, ndim: int, dtype: torch.dtype, device: torch.device, side: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.builder = Builder()
        self.dtype = dtype
        self.device = device
        self.unsupported: set[Value] = set()
        self.decomposing = False
        self.sizes = symbolic_sizes(ndim)
        # Any value will do: what is computed on samples is thrown away.
        self.sample = torch.full((side,) * ndim, 0.5, dtype=dtype, device="cpu")
        along = torch.arange(side, device="cpu")
        self.everywhere = torch.stack(torch.meshgrid([along] * ndim, indexing="ij"))
        self.joined: dict[tuple[int, ...], tuple[object, Tensor | None]] = {}
        # Tensors of several numbers that the step makes of numbers alone, by identity, with the
        # device that they pretend to be on; and those that its values are computed with, by name.
        self.made: dict[int, tuple[Tensor, torch.device]] = {}
        self.constants: dict[str, Tensor] = {}

    def input(self, name: str, like: Tensor | None = None) -> Tensor:
        """Return a tensor that represents the input ``name``, one value in each lane.

        Args:
            name: in the graph.
            like: a parameter, which is the same along the dimensions that it lacks. Its tensor has
                them all the same, so that its gradient is one of each lane.
        """
        place = self.everywhere
        if like is not None:
            place = place.clone()
            missing = place.ndim - 1 - like.ndim
            for dim in range(len(place)):
                if dim < missing or like.shape[dim - missing] == 1:
                    place[dim] = -1
        memory = _Memory(name, self.sample.numel(), is_input=True)
        lane = _Lane(self.sample, memory, place, self.device)
        lane.sizes = self.sizes if like is None else None
        return lane

    def graph(self, results: Mapping[str, Tensor | None]) -> Graph:
        """Return the graph that computes ``results``; ``None`` is zero."""
        outputs: dict[str, Value] = {}
        for name, result in results.items():
            if isinstance(result, Tensor) and not isinstance(result, _Lane):
                raise Unfusable(_UNDECLARED)
            outputs[name] = result.memory.value if isinstance(result, _Lane) else 0.0
        graph = Graph(tuple(self.builder.lines), outputs).select(results)
        # Unsupported operations that no result depends on are gone by now.
        for line in graph.lines:
            if line.op.startswith("?"):
                raise Unfusable(line.op[1:])
        for name, result in results.items():
            self._check_place(name, result)
        return graph

    def _check_place(self, name: str, result: Tensor | None) -> None:
        """Raise unless each lane of a result is of its own coordinates."""
        if not isinstance(result, _Lane) or result.memory.value in self.unsupported:
            return
        place, name = result.place, name.removeprefix("next_")
        try:
            self._join(result.shape, [place, self.everywhere])
        except _Misplaced:
            why = f"its step returns {name} with values moved, which {_NOT_POINTWISE}"
            raise Unfusable(why) from None
        # the samples of what lacks a dimension are as large as the input, but not the tensors
        if not name.startswith("d_") and (place is None or self._is_smaller(place)):
            raise Unfusable(f"its step returns {name} in another shape than its input")

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
        # Run the operation on samples, which are on the CPU whatever the device of the lanes.
        device = kwargs.get("device")
        if "device" in kwargs:
            kwargs = {**kwargs, "device": torch.device("cpu")}
        leaves = pytree.tree_leaves((args, kwargs))
        known = [self.made[id(v)][1] for v in leaves if id(v) in self.made]
        has_lanes = any(isinstance(v, _Lane) for v in leaves)
        if known and not has_lanes:
            return self._made(func(*args, **kwargs), device or known[0])
        if operation in ("_local_scalar_dense", "is_nonzero", "equal"):
            raise Unfusable(f"its step cannot be traced: {_READS_VALUES}")
        if operation in _BY_VALUES:
            raise Unfusable(f"its step chooses values by {func}. Use torch.where")
        if func._schema.is_mutable:
            return self._in_place(func, operation, args, kwargs)
        if known:
            args, kwargs = pytree.tree_map(self._lane_of_made, (args, kwargs))
        made = func(*pytree.tree_map(_sample_of, args), **pytree.tree_map(_sample_of, kwargs))
        lanes = [v for v in pytree.tree_leaves((args, kwargs)) if isinstance(v, _Lane)]
        # The first unsupported operation is the reason for all that is computed from its result.
        for lane in lanes:
            if lane.memory.value in self.unsupported:
                return self._result(made, lane.memory.value)
        if operation in _LITERALS and not isinstance(args[0], _Lane):
            # torch.tensor(2.0) in the step: the number is compiled in.
            if made.numel() != 1:
                return self._made(made, torch.device("cpu"))
            return self._lane(made, _literal(made), None)
        if operation in _SEVERAL and self.decomposing:
            raise Unfusable(READS_SIZES)
        if operation in _SEVERAL or (operation in (*_FILLED, *_CONSTANTS) and self._is_own(made)):
            return self._made(made, device or (self.device if lanes else torch.device("cpu")))
        if lanes and isinstance(args[0], _Lane) and _is_view(func, operation):
            return self._view(func, operation, made, args, kwargs)
        if operation in _NO_VIEWS:
            raise Unfusable(f"its step uses {func}, which kernels lack")
        if not isinstance(made, Tensor):
            return self._simpler(func, made, args, kwargs)
        place: Tensor | None = None
        if operation in _CONSTANTS or not lanes:
            place = self.everywhere if made.shape == self.sample.shape else None
        else:
            try:
                place = self._join(made.shape, [lane.place for lane in lanes])
            except _Misplaced:
                if operation in ("cat", "stack"):
                    return self._unsupported(made, func, _JOINS)
                if _is_composite(func):
                    return self._simpler(func, made, args, kwargs)
                return self._unsupported(made, func, _NOT_POINTWISE)
        if (why := self._inexact(operation, made, lanes)) is not None:
            return self._unsupported(made, func, why)
        # A number as PyTorch has rounded it: those of where(c, 0.2, -0.1) are of the default dtype.
        if operation in _FILLED and made.dtype not in (self.dtype, torch.bool):
            return self._lane(made, _literal(made.flatten()[:1]), place)
        return self._lowered(func, operation, made, place, args, kwargs)

    def _is_own(self, made: Tensor) -> bool:
        """Whether a tensor has sizes of its own, and not those of samples."""
        return made.numel() > 1 and not set(made.shape) <= {1, len(self.sample)}

    def _made(self, result: Any, device: torch.device) -> Any:
        """Return what is made of numbers alone, as it is: the step goes on computing with it."""
        for each in pytree.tree_leaves(result):
            if isinstance(each, Tensor):
                self.made[id(each)] = each, device
        return result

    def _lane_of_made(self, value: Any) -> Any:
        """Return a lane for what is made of numbers alone: one number, or one of each neuron."""
        if id(value) not in self.made:
            return value
        made, device = self.made[id(value)]
        if made.ndim == 0:
            return self._lane(made, _literal(made), None)
        if device.type != self.device.type:
            raise Unfusable(
                f"its step makes a tensor on {device}, but its input is on {self.device}"
            )
        number, missing = made.to(self.dtype), self.sample.ndim - made.ndim
        if missing < 0:
            raise Unfusable(
                f"its step makes a tensor of {made.ndim} dimensions, more than its input has"
            )
        if made.is_floating_point() and bool((number != made).logical_and(made == made).any()):
            raise Unfusable(
                f"its step makes a tensor of {made.dtype}, whose numbers {self.dtype} does not "
                "hold: write dtype=x.dtype"
            )
        found = (
            n for n, v in self.constants.items() if v.shape == number.shape and v.equal(number)
        )
        name = next(found, str(len(self.constants)))  # a name that no argument has
        self.constants[name] = number
        sizes = [1 if size == 1 else len(self.sample) for size in made.shape]
        place = torch.full((self.sample.ndim, *sizes), -1)
        for dim, size in enumerate(sizes):
            if size > 1:
                place[dim + missing] = torch.arange(size).reshape(-1, *[1] * (made.ndim - dim - 1))
        read: Value = f"p_{name}"
        read = self.builder.emit("ne", read, 0.0) if made.dtype is torch.bool else read
        return self._lane(torch.ones(sizes, dtype=made.dtype), read, place)

    def _lane(self, made: Tensor, value: Value, place: Tensor | None) -> _Lane:
        return _Lane(made, _Memory(value, made.numel()), place, self.device)

    def _join(self, shape: torch.Size, places: list[Tensor | None]) -> Tensor | None:
        """Return the coordinates of what is computed of values at some places."""
        different = {id(place): place for place in places if place is not None}
        if not different:
            return None
        if len(different) == 1 and (place := next(iter(different.values()))).shape[1:] == shape:
            return place
        key = (*shape, -1, *different)
        if key not in self.joined:
            # the places are kept with what they give, so that no other object takes their numbers
            found = _joined(shape, list(different.values()))
            if found is not None and torch.equal(found, self.everywhere):
                found = self.everywhere
            self.joined[key] = different, found
        found = self.joined[key][1]
        if found is None:
            raise _Misplaced
        return found

    def _is_smaller(self, place: Tensor) -> bool:
        """Whether a tensor lacks dimensions of the input, which its sample has."""
        return place.shape == self.everywhere.shape and bool((place < 0).any())

    def _inexact(self, operation: str, made: Tensor, lanes: list[_Lane]) -> str | None:
        """Return why a result is rounded otherwise than in the dtype of the arithmetic."""
        if operation in _EXACT and torch.promote_types(made.dtype, self.dtype) == self.dtype:
            return None
        dtypes = {lane.dtype for lane in lanes} - {torch.bool}
        if made.dtype in (torch.int32, torch.int64) and operation == "_to_copy":
            return None
        if made.dtype not in (self.dtype, torch.bool):
            why = f"makes {made.dtype} of {self.dtype}"
            if operation == "_to_copy" and made.dtype in _CASTS:
                why += f": write .to(x.dtype) instead of {_CASTS[made.dtype]}"
            return why
        # a comparison of numbers of another dtype alone
        if made.dtype is torch.bool and dtypes and self.dtype not in dtypes:
            return f"computes in {dtypes.pop()}"
        return None

    def _view(self, func: Any, operation: str, made: Any, args: Any, kwargs: Any) -> Any:
        """Return a view, or views, of the memory of the first argument."""
        base, *rest = args
        if any(part.dtype != base.dtype for part in pytree.tree_leaves(made)):
            raise Unfusable(f"its step uses {func}, which makes other numbers of the same bits")
        memory, place, overlaps = base.memory, base.place, base.overlaps
        if operation in _COPIED_VIEWS:
            memory, overlaps = _Memory(memory.value, base.sample.numel()), False
        if operation == "expand":
            place = self._join(made.shape, [place])
            overlaps = overlaps or place is not self.everywhere or made.shape != base.shape
            if made.shape == self.sample.shape:
                with contextlib.suppress(_Misplaced):
                    place = self._join(made.shape, [place, self.everywhere])
        elif place is not None and not (operation in _SAME and made.shape == base.shape):
            moved = [func(coordinates, *rest, **kwargs) for coordinates in place]
            keeps = isinstance(made, Tensor) and torch.equal(torch.stack(moved), place)
            if self._is_smaller(place) and not keeps:
                raise Unfusable(f"its step uses {func} of a parameter, which kernels lack")
            return pytree.tree_map(
                lambda part, *at: _Lane(part, memory, torch.stack(at), self.device, overlaps),
                made,
                *moved,
            )
        return pytree.tree_map(lambda part: _Lane(part, memory, place, self.device, overlaps), made)

    def _lowered(
        self, func: Any, operation: str, made: Tensor, place: Tensor | None, args: Any, kwargs: Any
    ) -> Any:
        values = pytree.tree_map(self._value_of, args), pytree.tree_map(self._value_of, kwargs)
        if operation == "_to_copy" and made.dtype in (torch.int32, torch.int64):
            operation, values = f"to_{made.dtype}".replace("torch.", ""), (values[0][:1], {})
        try:
            value = lower(self.builder, operation, made.dtype == torch.bool, *values)
        except Unfusable as reason:
            simpler = self._decomposed(func, args, kwargs)
            if simpler is not None:
                return simpler
            # The bare name of the operation means that it has no rule.
            why = "kernels lack" if str(reason) == operation else str(reason)
            why = _JOINS if operation in ("cat", "stack") else why
            return self._unsupported(made, func, why, place)
        return self._lane(made, value, place)

    def _simpler(self, func: Any, made: Any, args: Any, kwargs: Any) -> Any:
        """Return the result of an operation that is not pointwise by itself."""
        simpler = self._decomposed(func, args, kwargs)
        return self._unsupported(made, func, _NOT_POINTWISE) if simpler is None else simpler

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
        if not operation.endswith("_") or "out" in kwargs:
            raise Unfusable(f"its step writes into an argument of {func}, which kernels lack")
        changed = args[0]
        if id(changed) in self.made:
            raise Unfusable(f"its step changes numbers that it makes in place, by {func}")
        # A change of an input would be seen outside; one of a temporary is a new value.
        if not isinstance(changed, _Lane) or changed.memory.is_input:
            raise Unfusable(f"its step changes an argument in place, by {func}")
        if changed.sample.numel() != changed.memory.size:
            raise Unfusable(f"its step changes a part of a tensor in place, by {func}")
        lanes = [v for v in pytree.tree_leaves((args, kwargs)) if isinstance(v, _Lane)]
        # where PyTorch refuses the shapes or the dtype, so does it here
        func(*pytree.tree_map(_sample_of, args), **pytree.tree_map(_sample_of, kwargs))
        place = changed.place
        try:
            found = self._join(changed.shape, [lane.place for lane in lanes])
        except _Misplaced:
            raise Unfusable(f"its step uses {func}, which {_NOT_POINTWISE}") from None
        smaller = found is not place and not (
            found is not None and place is not None and torch.equal(found, place)
        )
        if smaller or changed.overlaps:
            raise Unfusable(
                f"its step changes in place, by {func}, a tensor that has fewer values than it is "
                "given, which PyTorch refuses"
            )
        result = self._lowered(func, operation[:-1], changed.sample, place, args, kwargs)
        changed.memory.value = result.memory.value
        return changed

    def _unsupported(self, made: Any, func: Any, why: str, place: Tensor | None = None) -> Any:
        """Return a result that no kernel can compute, named ``?<reason>``; of a part, raise."""
        if self.decomposing:
            raise Unfusable(why)
        if torch.Tag.reduction in func.tags:
            why = "is a reduction"
        value = self.builder.emit(f"?its step uses {func}, which {why}")
        self.unsupported.add(value)
        return self._result(made, value, place)

    def _result(self, made: Any, value: Value, place: Tensor | None = None) -> Any:
        """Return tensors of value ``value``, and what else an operation returned."""
        return pytree.tree_map(
            lambda part: self._lane(part, value, place) if isinstance(part, Tensor) else part, made
        )

    def _value_of(self, value: Any) -> Any:
        if isinstance(value, _Lane):
            return value.memory.value
        if isinstance(value, Tensor):
            return self.builder.emit(f"?{_UNDECLARED}")
        return value


# TorchDispatchMode wraps this method to hide it from Dynamo. The wrapper imports Dynamo at the
# first operation, which takes longer than to trace.
Recorder.__torch_dispatch__ = inspect.unwrap(Recorder.__torch_dispatch__)  # type: ignore


def _is_view(func: Any, operation: str) -> bool:
    """Whether an operation moves values and computes none, by what its schema says of memory."""
    aliases = [value.alias_info for value in func._schema.returns]
    shares = any(alias is not None and not alias.is_write for alias in aliases)
    is_view = shares and operation not in _NO_VIEWS and not _is_composite(func)
    return is_view or operation in _COPIED_VIEWS


def _is_composite(func: Any) -> bool:
    """Whether PyTorch makes an operation of others: it may then be a view or a copy."""
    return bool(func.has_kernel_for_dispatch_key(COMPOSITE))


def _joined(shape: torch.Size, places: list[Tensor]) -> Tensor | None:
    """Return coordinates that agree with several, of which -1 agrees with all; or ``None``."""
    total: Tensor | None = None
    for place in places:
        given = place.shape[1:]
        if len(given) > len(shape):
            return None
        wide = place.reshape(len(place), *[1] * (len(shape) - len(given)), *given)
        try:
            wide = wide.expand(len(place), *shape)
        except RuntimeError:
            return None
        if total is not None and bool(((wide != total) & (wide >= 0) & (total >= 0)).any()):
            return None
        total = wide if total is None else torch.maximum(total, wide)
    return total


def _sample_of(value: Any) -> Any:
    return value.sample if isinstance(value, _Lane) else value


def _literal(value: Tensor) -> Value:
    number = value.item()
    return number if isinstance(number, bool) else float(number)
