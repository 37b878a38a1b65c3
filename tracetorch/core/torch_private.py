"""Collect the private names of PyTorch's modules that the package uses, each with its reason.

PyTorch may rename them in any release: a new one breaks this file first. Attributes that extensions
rely on are used where they are needed: ``_parameters``, ``_forward_hooks``, ``Tensor._version``.
"""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from multiprocessing.context import get_spawning_popen
from typing import Any, ParamSpec, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch._functorch.pyfunctorch import (
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
    "StorageWeakRef",
    "TorchDispatchMode",
    "pytree",
]

P = ParamSpec("P")
R = TypeVar("R")

# functions of PyTorch itself under a public name: called at every step, so none is wrapped
functorch: Any = torch._C._functorch  # predicates on what a torch.func transform has wrapped
functorch_active: Callable[[], bool] = torch._C._are_functorch_transforms_active
dispatch_modes: Callable[[], int] = torch._C._len_torch_dispatch_stack  # how many see operations
function_modes: Callable[[], int] = torch._C._len_torch_function_stack  # how many see calls
current_backward: Callable[[], int] = torch._C._current_graph_task_id  # the one in this thread
NO_BACKWARD = -1  # its number outside of one
# torch.jit.is_tracing() asks more, and slower
is_jit_tracing: Callable[[], bool] = torch._C._is_tracing
global_hooks: Callable[[], bool] = torch.nn.modules.module._has_any_global_hook
# of an operation's kernel that calls other operations and nothing else
COMPOSITE = torch._C.DispatchKey.CompositeImplicitAutograd
# whether two tensors share memory; Tensor.data_ptr cannot say so for views
is_alias: Callable[[Tensor, Tensor], bool] = torch._C._is_alias_of  # type: ignore[attr-defined]
# makes a tensor subclass without memory, known by shape, dtype and device alone
make_wrapper_tensor: Callable[..., Any] = Tensor._make_wrapper_subclass
# Reshapes a contiguous tensor without recording a view: FSDP loses gradients where the output of a
# module is a view that is changed in place.
unsafe_view: Callable[[Tensor, tuple[int, ...]], Tensor] = torch.ops.aten._unsafe_view
# checks a value inside a compiled program, which cannot branch on it
assert_async: Callable[[Tensor, str], None] = torch._assert_async
# PyTorch's own, which a subclass may compute in another way
CONV_FORWARD = nn.Conv2d._conv_forward
DropoutBase = nn.modules.dropout._DropoutNd
BatchNorm = nn.modules.batchnorm._BatchNorm  # by which PyTorch's tools find batch norms alone
BatchNormBase = nn.modules.batchnorm._NormBase  # of instance norms, lazy and synchronised ones too
ParametrizedSpectralNorm = nn.utils.parametrizations._SpectralNorm

_excluded_keys: Callable[[], Any] = torch._C._dispatch_tls_local_exclude_set
_AUTOGRAD = torch._C.DispatchKey.AutogradOther
_OUTSIDE = (torch._C._dispatch_tls_local_include_set(), _excluded_keys())
_forward_ad, _compiler = torch.autograd.forward_ad, torch.compiler
_dispatch_mode: Callable[[Any], Any] = torch._C._get_dispatch_mode
_PROXY = torch._C._TorchDispatchModeKey.PROXY  # of the mode by which make_fx records
_function_mode_stack: Callable[[], list[object]] = torch.overrides._get_current_function_mode_stack
_PLAIN = (Tensor, nn.Parameter)


@contextmanager
def global_modes_off() -> Iterator[None]:
    """Run a block as outside of all modes: what it finds is remembered, and holds without them."""
    private: Any = torch._C
    with ExitStack() as stack:
        stack.enter_context(private.DisableTorchFunction())
        stack.enter_context(temporarily_clear_interpreter_stack())
        stack.enter_context(_disable_current_modes())
        if _excluded_keys().has(_AUTOGRAD):  # inside of an operator there is no graph
            stack.enter_context(torch._C._ForceDispatchKeyGuard(*_OUTSIDE))
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        if torch.is_anomaly_enabled():
            stack.enter_context(torch.autograd.set_detect_anomaly(False))
        if torch._C._autograd._saved_tensors_hooks_is_enabled():  # type: ignore[attr-defined]
            # activation checkpointing counts through such hooks what a module saves, and would
            # count these with it; the innermost ones win, and PyTorch leaves it to them to look
            # whether what was saved has been changed in place
            hooks = torch.autograd.graph.saved_tensors_hooks(lambda t: (t, t._version), _unchanged)
            stack.enter_context(hooks)
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        yield


def _unchanged(saved: tuple[Tensor, int]) -> Tensor:
    tensor, version = saved
    if tensor._version != version:
        raise RuntimeError(
            "one of the variables needed for gradient computation has been modified by an inplace "
            "operation"
        )
    return tensor


def is_exporting() -> bool:
    """Whether ``torch.export`` is tracing; some releases' own answer is true in a compilation."""
    return bool(torch.compiler._is_exporting_flag)


def is_tracing() -> bool:
    """Whether ``torch.export``, ``torch.jit.trace`` or ``make_fx`` record a program here."""
    if torch.compiler._is_exporting_flag or torch.jit.is_tracing():  # type: ignore
        return True
    # torch.compile, which cannot follow the question, records nothing in this way
    return not torch.compiler.is_dynamo_compiling() and _dispatch_mode(_PROXY) is not None


def observed_by(tensors: Iterable[Tensor] = (), *, modes: bool = True) -> str | None:
    """Return who must see each operation, without ``modes`` each step: no kernel may run then."""
    for tensor in tensors:
        if type(tensor) not in _PLAIN:
            return f"{type(tensor).__name__} is a kind of tensor with operations of its own"
        if (
            tensor.is_neg()
            or functorch.is_functorch_wrapped_tensor(tensor)
            or tensor._is_zerotensor()
        ):
            return "the memory of a tensor does not hold its values"
    if modes and (dispatch_modes() or function_modes()):
        # the mode of a default device replaces nothing
        others = [m for m in _function_mode_stack() if not isinstance(m, DeviceContext)]
        if dispatch_modes() or others:
            return "a mode must see every operation"
    if functorch_active():
        return "torch.func transforms see through plain operations alone"
    if _forward_ad._current_level >= 0:
        return "forward-mode differentiation sees through plain operations alone"
    proxy = dispatch_modes() and _dispatch_mode(_PROXY) is not None
    if proxy or is_jit_tracing() or _compiler._is_exporting_flag:
        return "an exported program must not need this process's kernels"
    return None


def is_readable(tensor: Tensor) -> bool:
    """Whether values may be looked at: not on meta, nor compiled, traced or transformed."""
    return not (
        torch.compiler.is_compiling() or tensor.is_meta or functorch_active() or dispatch_modes()
    )


def has_values(tensor: Tensor) -> bool:
    """Whether a tensor has memory: no meta tensor, no zeros that autograd implies, no wrapper."""
    return not tensor.is_meta and torch._C._dispatch_keys(tensor).has(torch._C.DispatchKey.Dense)


def keep_absent(ctx: Any) -> None:
    """Give the backward pass of a function ``None`` for an absent gradient; zeros may make NaN."""
    if not torch.compiler.is_compiling():  # Dynamo does not know the call
        ctx.set_materialize_grads(False)


def version_of(tensor: Tensor) -> int | None:
    """Return how often a tensor was written to; ``None`` where nobody counts that."""
    if functorch.is_functorch_wrapped_tensor(tensor):
        return None
    try:
        return tensor._version
    except RuntimeError:  # half the time of asking first
        return None


def noticed(*tensors: Tensor | None) -> list[Tensor]:
    """Return what a node saves beside its arguments, so that a write to it raises in backward."""
    # of tensors of inference mode nobody counts writes, and no node can save them
    return [each for each in tensors if each is not None and not each.is_inference()]


def saved_tensors(ctx: Any) -> Sequence[Any]:
    """Return ``ctx.saved_tensors``; explain what to do where they are freed."""
    try:
        return ctx.saved_tensors  # type: ignore[no-any-return]
    except RuntimeError as freed:
        if "a second time" not in str(freed):  # unpacking a saved tensor may run any code
            raise
        raise RuntimeError(
            "backward() reached time steps that an earlier backward() has already freed. Call "
            "detach_states() after each backward() (truncated BPTT), or zero_states() to start a "
            "new sequence; two losses on one step are added up first."
        ) from freed


def lowest_wrapped(tensor: Tensor) -> Tensor:
    """Return what ``torch.func`` transforms have wrapped, all samples of a ``vmap`` in one."""
    while functorch.is_functorch_wrapped_tensor(tensor):
        tensor = functorch.get_unwrapped(tensor)
    return tensor


def is_leaked_tracer(state: Tensor, x: Tensor | None = None) -> bool:
    """Whether ``state`` has no values beside ``x``, because its trace or transform is over."""
    if torch.compiler.is_compiling():
        return False
    if isinstance(state, FakeTensor):
        return x is not None and not isinstance(x, FakeTensor)
    if not functorch.is_functorch_wrapped_tensor(state):
        return False
    running = {each.level(): each for each in retrieve_all_functorch_interpreters()}
    # transforms nest: each wrapper around the values must belong to a running one
    while functorch.is_functorch_wrapped_tensor(state):
        transform, size = running.get(functorch.maybe_get_level(state)), None
        inner = functorch.get_unwrapped(state)
        if functorch.is_batchedtensor(state):
            size = inner.shape[functorch.maybe_get_bdim(state)]
        sizes = transform.batch_size() if isinstance(transform, VmapInterpreter) else None
        if transform is None or size != sizes:
            return True
        state = inner
    return False


_kept: WeakKeyDictionary[Any, list[Tensor]] = WeakKeyDictionary()


def kept_for_child(tensor: Tensor) -> Tensor:
    """Keep a tensor as long as a pickle needs its file, which a process being started inherits."""
    process = get_spawning_popen()
    if process is not None:
        _kept.setdefault(process, []).append(tensor)
    return tensor


def scan() -> Callable[..., tuple[list[Tensor], list[Tensor]]]:
    """Return PyTorch's ``scan`` operator, a prototype; raise where this release has none."""
    from torch._higher_order_ops.scan import scan as higher_order_scan

    return higher_order_scan


def decomposition_of(operation: Any) -> Callable[..., Any] | None:
    """Return PyTorch's own decomposition of an overload; its public table lacks ``gelu``, say."""
    from torch._decomp import decomposition_table

    return decomposition_table.get(operation)


_tracing: Any = threading.RLock()
if hasattr(os, "register_at_fork"):  # no thread is left in the child that would release it
    os.register_at_fork(after_in_child=_tracing._at_fork_reinit)


def one_trace_at_a_time(function: Callable[P, R]) -> Callable[P, R]:
    """Let a function that traces wait for another thread's: both keep what they see in globals."""

    @functools.wraps(function)
    def waiting(*args: P.args, **kwargs: P.kwargs) -> R:
        with _tracing:
            return function(*args, **kwargs)

    return waiting


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
