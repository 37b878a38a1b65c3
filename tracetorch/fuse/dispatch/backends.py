"""Select a backend: which there are, which one is requested, and why one is unavailable."""

from __future__ import annotations

import functools
import importlib.util
import logging
import os
import threading
from types import TracebackType

import torch

from tracetorch.core.checks import suggestion
from tracetorch.core.torch_private import forward_ad_active, functorch_active, is_tracing

NAMES = ("auto", "numba", "triton", "eager")

_log = logging.getLogger("tracetorch")
_default = "auto"  # of all threads
_requests: list[backend] = []  # the last ones: any of them may turn out to belong to a ``with``
_MOST_REQUESTS = 64  # more than there are threads between a call and the ``with`` it belongs to
_lock = threading.Lock()


class _InThread(threading.local):
    """The backends of the ``with`` blocks that a thread is in, the innermost last.

    Not a ``ContextVar``: ``torch.compile`` can neither trace one nor guard on it.
    """

    def __init__(self) -> None:
        self.names: tuple[str, ...] = ()


_in_thread = _InThread()


class backend:  # noqa: N801 (used as a function, like torch.no_grad)
    """Request a backend for whole sequences: from now on, or inside a ``with`` block.

    A plain call sets the default of all threads. A ``with`` block takes precedence over it, in its
    own thread alone, as ``torch.no_grad`` does.

    Args:
        name: ``"auto"``, the kernels of the device and ``"eager"`` where they cannot run, logged
            once; ``"numba"``, kernels for the CPU; ``"triton"``, kernels for the GPU; ``"eager"``,
            plain PyTorch. One requested by name runs or raises.

    Raises:
        ValueError: there is no such backend.

    Example:
        >>> with backend("eager"):
        ...     requested_backend()
        'eager'
        >>> requested_backend()
        'auto'

    """

    def __init__(self, name: str) -> None:
        global _default
        if name not in NAMES:
            raise ValueError(
                f"no backend is called {name!r}.{suggestion(name, NAMES)} There are "
                f"{', '.join(NAMES)}."
            )
        self.name = name
        if torch.compiler.is_compiling():  # which cannot trace a lock
            self.previous, _default = _default, name
            return
        with _lock:
            self.previous, _default = _default, name
            _requests.append(self)
            del _requests[:-_MOST_REQUESTS]

    def __enter__(self) -> None:
        global _default
        if torch.compiler.is_compiling():
            _default = self.previous
        else:
            with _lock:
                self._withdraw()
        _in_thread.names += (self.name,)

    def _withdraw(self) -> None:
        """Undo what ``__init__`` did to the default, whatever other threads have done since."""
        global _default
        if self not in _requests:  # entered a second time
            return
        place = _requests.index(self)
        del _requests[place]
        if place < len(_requests):
            _requests[place].previous = self.previous
        else:
            _default = self.previous

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        _in_thread.names = _in_thread.names[:-1]


def requested_backend() -> str:
    """Return the name of the backend that is requested in this thread.

    Example:
        >>> requested_backend()
        'auto'

    """
    names = _in_thread.names
    return names[-1] if names else _default


def unavailable_reason(name: str, device: torch.device | None = None) -> str | None:
    """Return why a backend cannot run on this machine, or ``None``.

    Args:
        name: ``"numba"``, ``"triton"`` or ``"eager"``.
        device: of the input; with it, also why it cannot run there and in this place, inside a
            transform or an export say.

    Example:
        >>> unavailable_reason("eager") is None
        True

    """
    if name == "eager":
        return None
    if device is not None:
        wanted = "cpu" if name == "numba" or is_interpreted() else "cuda"
        if device.type != wanted:
            return f"its kernels are for {wanted}, the input is on {device.type}"
        if is_tracing():
            return "an exported program must not need this process's kernels"
        if functorch_active():
            return "torch.func transforms see through plain operations alone"
        if forward_ad_active():
            return "forward-mode differentiation sees through plain operations alone"
    return _uninstalled_reason(name)


@functools.cache
def _uninstalled_reason(name: str) -> str | None:
    if name == "numba":
        if importlib.util.find_spec("numba") is None:
            return "Numba is not installed; pip install numba"
        if os.environ.get("NUMBA_DISABLE_JIT", "0") not in ("", "0"):
            return "NUMBA_DISABLE_JIT is set"
        try:
            import numba  # noqa: F401
        except Exception as failure:  # a NumPy it does not know, a broken library
            return f"Numba cannot be imported: {failure}"
    if name == "triton":
        if importlib.util.find_spec("triton") is None:
            return "Triton is not installed; it comes with PyTorch for CUDA and ROCm"
        if not is_interpreted():
            if not torch.cuda.is_available():
                return "there is no GPU"
            if torch.version.hip is None and torch.cuda.get_device_capability() < (7, 0):
                return "the GPU is older than Triton supports"
        try:
            import triton  # noqa: F401
        except Exception as failure:
            return f"Triton cannot be imported: {failure}"
    return None


def is_interpreted() -> bool:
    """Whether Triton interprets its kernels, on tensors of the CPU."""
    return os.environ.get("TRITON_INTERPRET", "0") not in ("", "0")


def select_backend(device: torch.device) -> tuple[str, str | None]:
    """Return the backend for an input on ``device``, and why it is unavailable, or ``None``."""
    name = requested_backend()
    if name == "auto":
        name = "numba" if device.type == "cpu" else "triton"
    return name, unavailable_reason(name, device)


def report_fallback(layer: object, name: str, reason: str) -> None:
    """Log once that a layer runs eagerly, and why.

    Raises:
        RuntimeError: the backend was requested by name.

    """
    if requested_backend() != "auto":
        raise RuntimeError(
            f"the {name} backend cannot run {layer!r}: {reason}. "
            "tt.fuse.backend('auto') runs it eagerly."
        )
    _log_once(repr(layer), reason)


@functools.cache
def _log_once(layer: str, reason: str) -> None:
    _log.warning("%s runs step by step in plain PyTorch: %s.", layer, reason)


def _renew_lock() -> None:
    """Make a new lock after ``fork``: no thread is left in the child that would release it."""
    global _lock
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)
