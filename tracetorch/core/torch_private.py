"""Collect the private names of PyTorch's modules that the package uses, each with its reason.

PyTorch may rename them in any release: a new one breaks this file first. Attributes of modules and
tensors that PyTorch's documentation and its extensions rely on are used where they are needed:
``_parameters``, ``_buffers`` and ``_modules``, the dicts of hooks, and ``Tensor._version``.
"""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor, nn
from torch._functorch.pyfunctorch import (
    FuncTorchInterpreter,
    VmapInterpreter,
    retrieve_all_functorch_interpreters,
    temporarily_clear_interpreter_stack,
)
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
)
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils import _pytree as pytree
from torch.utils._device import DeviceContext
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

# what others take from here and PyTorch has under the same name
__all__ = [
    "DataDependentOutputException",
    "DynamicOutputShapeException",
    "FakeTensor",
    "FakeTensorMode",
    "FuncTorchInterpreter",
    "StorageWeakRef",
    "TorchDispatchMode",
    "VmapInterpreter",
    "pytree",
    "retrieve_all_functorch_interpreters",
]

P = ParamSpec("P")
R = TypeVar("R")

# Functions of PyTorch itself under a public name: called at every step, so none is wrapped.

functorch: Any = torch._C._functorch
"""Predicates on tensors that a ``torch.func`` transform has wrapped."""

functorch_active: Callable[[], bool] = torch._C._are_functorch_transforms_active
"""Whether a ``torch.func`` transform is running."""

dispatch_modes: Callable[[], int] = torch._C._len_torch_dispatch_stack
"""Number of active ``TorchDispatchMode``s, which must see every operation."""

function_modes: Callable[[], int] = torch._C._len_torch_function_stack
"""Number of active ``TorchFunctionMode``s, which must see every call of PyTorch."""

current_backward: Callable[[], int] = torch._C._current_graph_task_id
"""Number of the backward pass that is running in this thread, ``NO_BACKWARD`` outside of one."""

NO_BACKWARD = -1

is_jit_tracing: Callable[[], bool] = torch._C._is_tracing
"""Whether ``torch.jit.trace`` is recording; ``torch.jit.is_tracing()`` asks more, and slower."""

global_hooks: Callable[[], bool] = torch.nn.modules.module._has_any_global_hook
"""Whether a hook is registered on all modules there are."""

COMPOSITE = torch._C.DispatchKey.CompositeImplicitAutograd
"""The key of an operation's kernel that calls other operations and nothing else."""

is_alias: Callable[[Tensor, Tensor], bool] = torch._C._is_alias_of  # type: ignore[attr-defined]
"""Whether two tensors share memory; ``Tensor.data_ptr`` cannot say so for views."""

saved_tensor_hooks_enabled: Callable[[], bool] = torch._C._autograd._saved_tensors_hooks_is_enabled  # type: ignore[attr-defined]
"""Whether hooks on saved tensors may be pushed here."""

make_wrapper_tensor: Callable[..., Any] = Tensor._make_wrapper_subclass
"""Make a tensor subclass without memory, known by shape, dtype and device alone."""

unsafe_view: Callable[[Tensor, tuple[int, ...]], Tensor] = torch.ops.aten._unsafe_view
"""Reshape a contiguous tensor without recording a view: FSDP loses gradients where the output of a
module is a view that is changed in place."""

assert_async: Callable[[Tensor, str], None] = torch._assert_async
"""Check a value inside a compiled program, which cannot branch on it."""

DropoutBase = nn.modules.dropout._DropoutNd
"""Base class of PyTorch's own dropouts, which treat the samples of a batch independently."""

BatchNorm = nn.modules.batchnorm._BatchNorm
"""Class of batch norms alone, by which PyTorch's tools find them: ``update_bn`` and others."""

ParametrizedSpectralNorm = nn.utils.parametrizations._SpectralNorm
"""Class of the parametrization by which a spectral norm is computed."""

BatchNormBase = nn.modules.batchnorm._NormBase
"""Base class of batch and instance norms, lazy and synchronised ones too."""


_excluded_keys: Callable[[], Any] = torch._C._dispatch_tls_local_exclude_set
_AUTOGRAD = torch._C.DispatchKey.AutogradOther
_OUTSIDE = (torch._C._dispatch_tls_local_include_set(), _excluded_keys())


def functions_on(on: bool) -> Any:
    """Return a context in which modes of functions run, or do not, whatever is around it."""
    private: Any = torch._C
    return private._EnableTorchFunction() if on else private.DisableTorchFunction()


@contextmanager
def global_modes_off() -> Iterator[None]:
    """Run a block as outside of all modes: what it finds is remembered, and holds without them.

    Modes of dispatch and of functions, a default device among them, ``torch.func`` transforms,
    autocast, inference mode, disabled gradients, hooks on saved tensors, an operator of ours, and
    the search for anomalies, one switch for all threads and so touched only where it is on.
    """
    with ExitStack() as stack:
        stack.enter_context(functions_on(False))
        stack.enter_context(temporarily_clear_interpreter_stack())
        stack.enter_context(_disable_current_modes())
        if _excluded_keys().has(_AUTOGRAD):  # inside of an operator there is no graph
            stack.enter_context(torch._C._ForceDispatchKeyGuard(*_OUTSIDE))
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        if torch.is_anomaly_enabled():
            stack.enter_context(torch.autograd.set_detect_anomaly(False))
        if saved_tensor_hooks_enabled():
            # activation checkpointing counts through such hooks what a module saves, and would
            # count these with it; the innermost ones win, and PyTorch leaves it to them to look
            # whether what was saved has been changed in place
            hooks = torch.autograd.graph.saved_tensors_hooks(with_version, unchanged)
            stack.enter_context(hooks)
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        yield


def with_version(tensor: Tensor) -> tuple[Tensor, int]:
    """Pack a saved tensor: as it is, with its version, of which PyTorch leaves the check to us."""
    return tensor, tensor._version


def unchanged(saved: tuple[Tensor, int]) -> Tensor:
    """Unpack what :func:`with_version` packed; raise where it was changed in place since."""
    tensor, version = saved
    if tensor._version != version:
        raise RuntimeError(
            "one of the variables needed for gradient computation has been modified by an inplace "
            "operation"
        )
    return tensor


def is_exporting() -> bool:
    """Whether ``torch.export`` is tracing.

    The flag, not ``torch.compiler.is_exporting()``, which some releases take for true inside
    ``torch.compile`` as well.
    """
    return bool(torch.compiler._is_exporting_flag)


def is_tracing() -> bool:
    """Whether ``torch.export``, ``torch.jit.trace`` or ``make_fx`` record a program here."""
    if torch.compiler._is_exporting_flag or torch.jit.is_tracing():  # type: ignore
        return True
    # torch.compile, which cannot follow the question, records nothing in this way
    return not torch.compiler.is_dynamo_compiling() and _dispatch_mode(_PROXY) is not None


_forward_ad, _compiler = torch.autograd.forward_ad, torch.compiler
_dispatch_mode: Callable[[Any], Any] = torch._C._get_dispatch_mode
_PROXY = torch._C._TorchDispatchModeKey.PROXY  # of the mode by which make_fx records


def transformed_by() -> str | None:
    """Return who sees through plain operations alone, and needs the step itself, or ``None``."""
    if functorch_active():
        return "torch.func transforms see through plain operations alone"
    if _forward_ad._current_level >= 0:
        return "forward-mode differentiation sees through plain operations alone"
    if (
        is_jit_tracing()
        or _compiler._is_exporting_flag
        or (dispatch_modes() and _dispatch_mode(_PROXY) is not None)
    ):
        return "an exported program must not need this process's kernels"
    return None


def observed_by(tensors: Iterable[Tensor] = ()) -> str | None:
    """Return who must see every operation on tensors here, or ``None``: kernels hide them.

    Tensors without plain memory are observers too: subclasses, wrappers, views that negate lazily.
    ``torch.compile`` is not among them: ``is_compiling`` says so inside its trace.
    """
    for tensor in tensors:
        if type(tensor) not in _PLAIN:
            return f"{type(tensor).__name__} is a kind of tensor with operations of its own"
        if (
            tensor.is_neg()
            or functorch.is_functorch_wrapped_tensor(tensor)
            or tensor._is_zerotensor()
        ):
            return "the memory of a tensor does not hold its values"
    # in one function where there is nobody, for every call of a layer comes here
    if (
        dispatch_modes()
        or function_modes()
        or functorch_active()
        or _forward_ad._current_level >= 0
        or is_jit_tracing()
        or _compiler._is_exporting_flag
    ):
        if dispatch_modes() or any(map(_observes, _function_mode_stack())):
            return "a mode must see every operation"
        return transformed_by()
    return None


_PLAIN = (Tensor, nn.Parameter)
_function_mode_stack: Callable[[], list[object]] = torch.overrides._get_current_function_mode_stack


def _observes(mode: object) -> bool:
    """Whether a function mode may replace operations; that of a default device does not."""
    return not isinstance(mode, DeviceContext)


def is_readable(tensor: Tensor) -> bool:
    """Whether values may be looked at: not on meta, nor compiled, traced or transformed."""
    return not (
        torch.compiler.is_compiling() or tensor.is_meta or functorch_active() or dispatch_modes()
    )


def has_values(tensor: Tensor) -> bool:
    """Whether a tensor has memory: no meta tensor, no zeros that autograd implies, no wrapper."""
    return not tensor.is_meta and torch._C._dispatch_keys(tensor).has(torch._C.DispatchKey.Dense)


def keep_absent(ctx: Any) -> None:
    """Give the backward pass of a function ``None`` for an absent gradient; zeros may make NaN.

    Dynamo does not know the call, and gives it every gradient.
    """
    if not torch.compiler.is_compiling():
        ctx.set_materialize_grads(False)


def version_of(tensor: Tensor) -> int | None:
    """Return how often a tensor was written to; ``None`` where nobody counts that.

    Tensors that inference mode made have no count, and those that ``torch.func`` wraps always 0.
    """
    if functorch.is_functorch_wrapped_tensor(tensor):
        return None
    try:
        return tensor._version
    except RuntimeError:  # half the time of asking first
        return None


def versions_of(tensors: Iterable[Tensor | None]) -> list[int | None]:
    """Return how often each tensor was written to; ``None`` for no tensor and where none counts."""
    tensors = list(tensors)
    try:  # a third of the time of asking each tensor first
        return [None if tensor is None else tensor._version for tensor in tensors]
    except RuntimeError:  # from a tensor of inference mode
        return [None if t is None or t.is_inference() else t._version for t in tensors]


def lowest_wrapped(tensor: Tensor) -> Tensor:
    """Return what ``torch.func`` transforms have wrapped, all samples of a ``vmap`` in one."""
    while functorch.is_functorch_wrapped_tensor(tensor):
        tensor = functorch.get_unwrapped(tensor)
    return tensor


_CONV_FORWARD = torch.nn.Conv2d._conv_forward


def computes_as_conv2d(kind: type[torch.nn.Conv2d]) -> bool:
    """Whether ``forward`` of a class, if it is PyTorch's, computes what PyTorch's does."""
    return kind._conv_forward is _CONV_FORWARD


def scan() -> Callable[..., tuple[list[Tensor], list[Tensor]]]:
    """Return PyTorch's ``scan`` operator, a prototype; raise where this release has none."""
    from torch._higher_order_ops.scan import scan as higher_order_scan

    return higher_order_scan


def decomposition_of(operation: Any) -> Callable[..., Any] | None:
    """Return PyTorch's own decomposition of an overload of an operation, or ``None``.

    The table of all of them: ``core_aten_decompositions`` lacks those of operations that compilers
    are expected to know, such as ``gelu``.
    """
    from torch._decomp import decomposition_table

    return decomposition_table.get(operation)


_tracing = threading.RLock()


def _renew_tracing() -> None:
    """Make a new lock after ``fork``: no thread is left in the child that would release it."""
    global _tracing
    _tracing = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_tracing)


def one_trace_at_a_time(function: Callable[P, R]) -> Callable[P, R]:
    """Let a function that traces wait for another thread's trace to end.

    ``torch.fx`` replaces methods of ``nn.Module``, and ``torch.export`` keeps what it has seen in
    globals: two threads would trace each other's modules.
    """

    @functools.wraps(function)
    def waiting(*args: P.args, **kwargs: P.kwargs) -> R:
        with _tracing:
            return function(*args, **kwargs)

    return waiting


# Marks for torch.compile, set without importing the compiler before it is used


def graph_break(message: str) -> None:
    """End the graph that ``torch.compile`` is tracing; the message says why."""
    torch._dynamo.graph_break(msg=message)


def exclude_from_compile(function: Callable[P, R]) -> Callable[P, R]:
    """Run a function outside the compiled graph, as ``torch.compiler.disable`` does."""
    excluded: Callable[P, R] = torch._disable_dynamo(function)  # type: ignore[attr-defined]
    return excluded


def is_compiled(module: nn.Module) -> bool:
    """Whether a module's calls go through ``torch.compile``."""
    wrapped = type(module).__module__.startswith("torch._dynamo")
    return wrapped or module._compiled_call_impl is not None


def constant_in_compile(function: Callable[P, R]) -> Callable[P, R]:
    """Call a function once per compilation, as ``torch.compiler.assume_constant_result`` does."""
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function
