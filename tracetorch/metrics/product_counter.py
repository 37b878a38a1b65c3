"""Count the products of a model outside of counted layers, as they run: attention, ``@``.

A dispatch mode sees every operation, however it is written. An operand is a weight if it follows
from parameters and buffers alone; any other is an activation.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 (PyTorch's own convention)
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from tracetorch.core.hooks import forward_hooks
from tracetorch.core.torch_private import COMPOSITE, StorageWeakRef, TorchDispatchMode, pytree
from tracetorch.core.walk import walk
from tracetorch.metrics.connections import convolution_products, matrix_products
from tracetorch.metrics.operations import ModuleStats, SynapticOperations
from tracetorch.snn.sequence_layer import SequenceLayer

# the matrices of an operation by the places of its arguments
_MATRICES = dict.fromkeys(("mm", "bmm", "mv", "dot", "vdot"), (0, 1)) | dict.fromkeys(
    ("addmm", "_addmm_activation", "baddbmm", "addbmm", "addmv"), (1, 2)
)
# words in the names of operations that multiply, of whatever library
_WORDS = {"attention", "bmm", "conv", "convolution", "gru", "linear", "lstm", "matmul", "mm", "rnn"}
_WORDS |= {"transformer", "trilinear"}
_WITHOUT_COUNT = (nn.RNNBase, nn.RNNCellBase)


class ProductCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Count products within a block, each for the innermost module that is being called.

    Not those of the modules ``counted``, by their ids, whose calls tell. Where one call holds
    several time steps, products are found, and not counted: which rows of a matrix belong to which
    step is unknown.
    """

    def __init__(self, model: nn.Module, counted: Collection[int], steps: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._weights: dict[int, StorageWeakRef] = {}
        found = walk(model)
        weights = [t for _, m in found.modules for t in (*m.parameters(False), *m.buffers(False))]
        for weight in (*weights, *(t for _, t in found.tensors)):
            self._mark(weight, True)
        self._counted, self._steps = counted, steps
        self._calls: list[ModuleStats] = []
        self._suspended = False

    # The modules that are being called

    def counts_calls(self, module: nn.Module) -> bool:
        """Whether the products of a module are counted by its calls."""
        return id(module) in self._counted

    def enter(self, stats: ModuleStats, module: Any, args: Any) -> None:
        """Note that a module is called: a hook before its forward pass."""
        self._calls.append(stats)

    def leave(self, stats: ModuleStats, module: Any, args: Any, kwargs: Any, output: Any) -> None:
        """Note that its call has ended: a hook on its forward pass."""
        while self._calls and self._calls.pop() is not stats:  # one inside has failed
            pass

    def _caller(self) -> ModuleStats | None:
        """Return whose product runs now; ``None`` where the call counts it."""
        if self._suspended or not self._calls:
            return None
        if any(self.counts_calls(stats.module) for stats in self._calls):
            return None
        caller = self._calls[-1]
        kind = type(caller.module)
        own = issubclass(kind, SequenceLayer) and kind.__module__.startswith("tracetorch.")
        return None if own else caller

    # Operations

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
            self._operation(caller, func, name, args)
        result = func(*args, **kwargs)
        self._follow((args, kwargs), result)
        return result

    def _operation(self, caller: ModuleStats, func: Any, name: str, args: Any) -> None:
        """Count an operation before it runs, if it multiplies."""
        if isinstance(caller.module, _WITHOUT_COUNT):
            if name in _MATRICES or _multiplies(name):
                caller.uncounted["a recurrent layer of PyTorch's"] = None
        elif name in _MATRICES and func.namespace == "aten":
            first, second = (args[place] for place in _MATRICES[name])
            self._count(caller, first, second, matrix_products)
        elif name == "convolution" and not args[6]:

            def products(x: Tensor, weight: Tensor) -> tuple[float, float]:
                def convolve(x: Tensor, weight: Tensor) -> Tensor:
                    return torch.convolution(x, weight, None, *args[3:9])

                nonzero = (weight != 0).to(torch.float64)
                effective, dense = convolution_products(x[None], nonzero, convolve)
                return float(effective.sum()), dense

            self._count(caller, args[0], args[1], products)
        elif _multiplies(name):
            caller.uncounted[f"{func.namespace}.{name}"] = None

    def attention(self, query: Tensor, key: Tensor, value: Tensor, **options: Any) -> None:
        """Count the products of queries with keys, and of the weights that follow with values."""
        caller = self._caller()
        if caller is None:
            return
        mask = options.get("attn_bias", options.get("attn_mask"))
        names = ("is_causal", "scale", "enable_gqa")
        options = {name: options[name] for name in names if name in options}
        with self.suspended():
            # attention to a unit matrix gives its weights
            unit = torch.eye(key.shape[-2], dtype=value.dtype, device=value.device)
            unit = unit.expand(*value.shape[:-2], -1, -1)
            weights = F.scaled_dot_product_attention(query, key, unit, mask, **options)
            self._follow((query, key, mask), weights)
        repeats = query.shape[-3] // key.shape[-3] if options.get("enable_gqa") else 1
        self._count(caller, query, key.mT, matrix_products, repeats)
        self._count(caller, weights, value, matrix_products, repeats)

    def _count(
        self,
        caller: ModuleStats,
        first: Tensor,
        second: Tensor,
        products: Callable[[Tensor, Tensor], tuple[float, float]],
        repeats: int = 1,
    ) -> None:
        factors = [t for t in (first, second) if not self._is_weight(t)]
        if not factors:  # of weights alone: another weight
            return
        caller.multiplies = True
        if self._steps > 1:
            return
        with self.suspended():
            dense = [t.to_dense() if t.layout != torch.strided else t for t in (first, second)]
            if repeats > 1:
                dense[1] = dense[1].repeat_interleave(repeats, -3)
            effective, total = products(*dense)
            adds = any(bool(((t == 0) | (t.abs() == 1)).all()) for t in factors)
        macs, acs = (0.0, effective) if adds else (effective, 0.0)
        caller.operations += SynapticOperations(macs, acs, total)

    @contextmanager
    def suspended(self) -> Iterator[None]:
        """Count nothing within a block."""
        before, self._suspended = self._suspended, True
        try:
            yield
        finally:
            self._suspended = before

    # Weights, by their memory, which views share

    def _mark(self, tensor: Tensor, weight: bool) -> None:
        if tensor.layout != torch.strided:
            return
        reference = StorageWeakRef(tensor.untyped_storage())  # type: ignore[no-untyped-call]
        # The reference keeps the address from being used again.
        if weight:
            self._weights[reference.cdata] = reference
        else:
            self._weights.pop(reference.cdata, None)

    def _is_weight(self, tensor: Tensor) -> bool:
        strided = tensor.layout == torch.strided
        return strided and tensor.untyped_storage()._cdata in self._weights

    def _follow(self, arguments: Any, result: Any) -> None:
        """Mark what follows from weights alone."""
        given = [leaf for leaf in pytree.tree_leaves(arguments) if isinstance(leaf, Tensor)]
        weight = bool(given) and all(map(self._is_weight, given))
        for leaf in pytree.tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._mark(leaf, weight)


class AttentionCalls(TorchFunctionMode):
    """Count calls of attention as such: some of PyTorch's ways scale queries and keys before.

    Its presence also turns the fused kernels of whole transformer layers off.
    """

    def __init__(self, counter: ProductCounter) -> None:
        super().__init__()
        self._counter = counter

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is not F.scaled_dot_product_attention:
            return func(*args, **kwargs)
        names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
        self._counter.attention(**dict(zip(names, args, strict=False)), **kwargs)
        with self._counter.suspended():
            return func(*args, **kwargs)


def _multiplies(name: str) -> bool:
    words = {word.rstrip("0123456789d") for word in name.split("_")}
    return not name.startswith("upsample") and not _WORDS.isdisjoint(words)


@contextmanager
def counted_products(
    model: nn.Module, modules: Iterable[ModuleStats], counted: Collection[int], steps: int
) -> Iterator[ProductCounter]:
    """Count the products of a model within a block, by :class:`ProductCounter`, in ``modules``."""
    counter = ProductCounter(model, counted, steps)
    before = [(stats.module, partial(counter.enter, stats)) for stats in modules]
    first = [(stats.module, partial(counter.leave, stats)) for stats in modules]
    # a compiled model would trace into the hooks
    eager = torch.compiler.set_stance("force_eager")
    with eager, forward_hooks(before=before, first=first), AttentionCalls(counter), counter:
        yield counter
