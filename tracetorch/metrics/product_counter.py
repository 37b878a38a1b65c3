"""Measure the calls of modules, and count products as they run: of layers, ``@``, attention.

A dispatch mode sees every operation, however it is written. An operand is a weight if it follows
from parameters, buffers and constants alone; any other is an activation, as zeros at rest are.
Layers along edges, or with a delay for each weight, are counted by their call: an input is
multiplied where a weight is not zero, now or at the steps to come.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F  # noqa: N812 (PyTorch's own convention)
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from tracetorch.core.torch_private import COMPOSITE, StorageWeakRef, TorchDispatchMode, pytree
from tracetorch.core.walk import walk
from tracetorch.metrics.activity import count_spikes
from tracetorch.metrics.operations import WEIGHTED, ModuleStats, SynapticOperations
from tracetorch.snn.delay import DelayedLinear
from tracetorch.snn.sequence_layer import SequenceLayer
from tracetorch.snn.sparse_linear import SparseLinear

_BY_CALL = (SparseLinear, DelayedLinear)
MULTIPLYING = (*WEIGHTED, *_BY_CALL)  # of whose products a mask can follow the samples
# the matrices of an operation by the places of its arguments
_MATRICES = dict.fromkeys(("mm", "bmm", "mv", "dot", "vdot"), (0, 1)) | dict.fromkeys(
    ("addmm", "_addmm_activation", "baddbmm", "addbmm", "addmv"), (1, 2)
)
_CONVOLUTIONS = (F.conv1d, F.conv2d, F.conv3d)
_OF_CONVOLUTIONS = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_OF_ATTENTION = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
# words in the names of operations that multiply, of whatever library
_WORDS = {"attention", "bmm", "conv", "convolution", "gru", "linear", "lstm", "matmul", "mm", "rnn"}
_WORDS |= {"transformer", "trilinear"}
_Products: TypeAlias = Callable[[Tensor, Any], tuple[float, float]]  # those not zero, and all


class Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Measure the calls of a model within a block, step by step, by hooks on its modules.

    A product is one of the innermost module that is being called.
    """

    def __init__(self, model: nn.Module, mask: Tensor | None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        # by their memory, which views share: whether it holds weights, or else constants
        self._weights: dict[int, tuple[StorageWeakRef, bool]] = {}
        found = walk(model)
        held = (t for _, m in found.modules for t in (*m.parameters(False), *m.buffers(False)))
        for weight in (*held, *(t for _, t in found.tensors)):
            self._mark(weight, True)
        self._calls: list[ModuleStats] = []  # that are running
        self._masks = None if mask is None else iter(mask.unbind(0))
        self._real: Tensor | None = None  # samples [B] of which the step that runs is no padding
        self._suspended = False

    # Hooks

    def begin_step(self, model: Any, args: Any) -> None:
        if self._masks is not None:
            self._real = next(self._masks)

    def begin(self, stats: ModuleStats, module: Any, args: Any) -> None:
        self._calls.append(stats)

    def end(self, stats: ModuleStats, module: Any, args: Any, kwargs: Any, y: Any) -> None:
        while self._calls and self._calls.pop() is not stats:  # one inside has failed
            pass
        x = args[0] if args else next(iter(kwargs.values()), None)
        if isinstance(x, Tensor) and isinstance(module, MULTIPLYING):
            self._real_of(stats, x)
            self._call(stats, x)
        if not isinstance(y, Tensor) or not y.ndim:
            return
        # A view of the input takes no memory of its own.
        if not (isinstance(x, Tensor) and x.data_ptr() == y.data_ptr()):
            stats.output_bytes += y.numel() * y.element_size()
        stats.shape = tuple(y.shape[1:])
        if stats.activates:
            dim = module.dim if isinstance(module, SequenceLayer) else None
            with self.suspended():
                y = self._real_of(stats, y)[None]
                fired, total = count_spikes(y, dim=dim, mask=None)
                stats.fired, stats.total = stats.fired + fired, stats.total + total

    def _real_of(self, stats: ModuleStats, x: Tensor) -> Tensor:
        """Return the samples of which this step is no padding."""
        real = self._real
        if real is not None and len(x) != len(real):
            raise ValueError(
                f"mask: {stats.path or 'the model'} ({type(stats.module).__name__}) works on "
                f"{len(x)} rows where the batch is {len(real)}: which of its rows are padding is "
                "unknown. Count each sequence by itself, without mask=."
            )
        return x if real is None else x[real]

    # Products

    def _caller(self) -> ModuleStats | None:
        if self._suspended or not self._calls:
            return None
        if any(isinstance(stats.module, _BY_CALL) for stats in self._calls):
            return None
        kind = type(self._calls[-1].module)
        own = issubclass(kind, SequenceLayer) and kind.__module__.startswith("tracetorch.")
        return None if own else self._calls[-1]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = func.name().partition("::")[2].partition(".")[0]
        attends = "scaled_dot_product" in name
        # in inference mode operations arrive whole that PyTorch composes of others
        if not attends and func.has_kernel_for_dispatch_key(COMPOSITE):
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        if attends:  # inside of functions of PyTorch's that a function mode sees as a whole
            arguments = dict(zip((a.name for a in func._schema.arguments), args, strict=False))
            self.attention(**{**arguments, **kwargs})
        elif (caller := self._caller()) is not None:
            if isinstance(caller.module, nn.RNNBase | nn.RNNCellBase):
                if name in _MATRICES or _multiplies(name):
                    caller.uncounted["a recurrent layer of PyTorch's"] = None
            elif name in _MATRICES and func.namespace == "aten":
                first, second = (args[place] for place in _MATRICES[name])
                self._count(caller, first, second, _matrix_products)
            elif _multiplies(name):
                caller.uncounted[f"{func.namespace}.{name}"] = None
        result = func(*args, **kwargs)
        self._follow((args, kwargs), result)
        return result

    def convolution(
        self, convolve: Any, x: Tensor, weight: Tensor, bias: Any = None, **options: Any
    ) -> None:
        def products(x: Tensor, weight: Tensor) -> tuple[float, float]:
            present = (weight != 0).to(torch.float64)
            every = torch.ones_like(present)
            return _linear_products(x, present, every, lambda x, w: convolve(x, w, None, **options))

        x = x if x.ndim == weight.ndim else x[None]
        self._count(self._caller(), x, weight, products)

    def attention(self, query: Tensor, key: Tensor, value: Tensor, **options: Any) -> None:
        """Count the products of queries with keys, and of the weights that follow with values."""
        caller = self._caller()
        if caller is None:
            return
        mask = options.get("attn_bias", options.get("attn_mask"))
        given = {name: options[name] for name in ("is_causal", "scale") if name in options}
        with self.suspended():
            if options.get("enable_gqa"):
                times = query.shape[-3] // key.shape[-3]
                key, value = (t.repeat_interleave(times, -3) for t in (key, value))
            # attention to a unit matrix gives its weights
            unit = torch.eye(key.shape[-2], dtype=value.dtype, device=value.device)
            unit = unit.expand(*value.shape[:-2], -1, -1)
            weights = F.scaled_dot_product_attention(query, key, unit, mask, **given)
            self._follow((query, key, mask), weights)
        self._count(caller, query, key.mT, _matrix_products)
        self._count(caller, weights, value, _matrix_products)

    def _call(self, stats: ModuleStats, x: Tensor) -> None:
        layer: Any = stats.module
        function: Any = torch.mul
        with self.suspended():
            if isinstance(layer, SparseLinear):
                present = (layer.edge_weight() != 0).to(torch.float64)
                counts, every = (
                    w.new_zeros(layer.in_features).index_add(0, layer.edges[0], w)
                    for w in (present, torch.ones_like(present))
                )
            elif isinstance(layer, DelayedLinear):
                kernel = layer.kernel_of(layer.delay.dtype)
                counts = (kernel != 0).sum(-1, dtype=torch.float64)
                every, function = torch.full_like(counts, kernel.shape[-1]), F.linear
            else:
                return
            self._count(stats, x, None, lambda x, _: _linear_products(x, counts, every, function))

    def _count(
        self, caller: ModuleStats | None, first: Tensor, second: Tensor | None, products: _Products
    ) -> None:
        given = [t for t in (first, second) if t is not None and not self._is_weight(t)]
        if caller is None or not given:  # of weights alone comes another weight
            return
        with self.suspended():
            if self._real is not None:
                times, rest = divmod(len(first), len(self._real))
                samples_first = len(given) == 1 and given[0] is first and not rest
                if not samples_first or not isinstance(caller.module, MULTIPLYING):
                    caller.uncounted["no mask can follow the samples of its products"] = None
                    return
                first = first[self._real.repeat_interleave(times)]
                given = [first]
            caller.multiplies = True
            effective, total = products(_dense(first), second if second is None else _dense(second))
            # NeuroBench decides by step: one real value makes every operation of the step a MAC.
            adds = any(bool(((t == 0) | (t.abs() == 1)).all()) for t in given)
        macs, acs = (0.0, effective) if adds else (effective, 0.0)
        caller.operations += SynapticOperations(macs, acs, total)

    @contextmanager
    def suspended(self) -> Iterator[None]:
        before, self._suspended = self._suspended, True
        try:
            yield
        finally:
            self._suspended = before

    def _mark(self, tensor: Tensor, weight: bool | None) -> None:
        if tensor.layout != torch.strided:
            return
        reference = StorageWeakRef(tensor.untyped_storage())  # type: ignore[no-untyped-call]
        # The reference keeps the address from being used again.
        if weight is not None:
            self._weights[reference.cdata] = reference, weight
        else:
            self._weights.pop(reference.cdata, None)

    def _is_weight(self, tensor: Tensor) -> bool | None:
        """Return whether it is a weight; ``None`` for an activation, false for a constant."""
        if tensor.layout != torch.strided:
            return None
        return self._weights.get(tensor.untyped_storage()._cdata, (None, None))[1]

    def _follow(self, arguments: Any, result: Any) -> None:
        """Mark what follows from weights and constants alone."""
        kinds = [self._is_weight(t) for t in pytree.tree_leaves(arguments) if isinstance(t, Tensor)]
        weight = None if None in kinds else any(kinds)
        for leaf in pytree.tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._mark(leaf, weight)


class WholeCalls(TorchFunctionMode):
    """Count convolutions and attention as they are called: what runs inside has other operands.

    Padding may come before a convolution, and attention may scale queries and keys. Its presence
    also turns the fused kernels of whole transformer layers off.
    """

    def __init__(self, counter: Counter) -> None:
        super().__init__()
        self._counter = counter

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            self._counter.attention(**dict(zip(_OF_ATTENTION, args, strict=False)), **kwargs)
        elif func in _CONVOLUTIONS:
            given = dict(zip(_OF_CONVOLUTIONS, args, strict=False))
            given |= kwargs
            self._counter.convolution(func, given.pop("input"), **given)
        else:
            return func(*args, **kwargs)
        with self._counter.suspended():
            return func(*args, **kwargs)


def _linear_products(
    x: Tensor, counts: Tensor, every: Tensor, function: Callable[[Tensor, Tensor], Tensor]
) -> tuple[float, float]:
    """Count products of ``[B, ...]`` with weights, of which an entry stands for so many."""
    nonzero = (x != 0).sum(0, keepdim=True, dtype=torch.float64)
    total = float(function(torch.ones_like(nonzero), every).sum()) * len(x)
    return float(function(nonzero, counts).sum()), total


def _matrix_products(first: Tensor, second: Tensor) -> tuple[float, float]:
    """Count the products of ``first @ second`` without a zero factor, and all of them."""
    # summed over the dimension that is not contracted, where there is one
    sides = [(t != 0, [dim] if t.ndim > 1 else []) for t, dim in ((first, -2), (second, -1))]
    rows, columns = (t.sum(dim, dtype=torch.float64) if dim else t.double() for t, dim in sides)
    effective = rows * columns
    sizes = [t.shape[dim[0]] for t, dim in sides if dim]
    return float(effective.sum()), float(effective.numel()) * math.prod(sizes)


def _dense(tensor: Tensor) -> Tensor:
    return tensor if tensor.layout == torch.strided else tensor.to_dense()


def _multiplies(name: str) -> bool:
    words = {word.rstrip("0123456789d") for word in name.split("_")}
    return not name.startswith("upsample") and not _WORDS.isdisjoint(words)
