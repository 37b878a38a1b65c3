"""Select a backend: which there are, which one is requested, and why one is unavailable."""

from __future__ import annotations

import functools
import importlib.util
import logging
import os

import torch

from tracetorch.core.requests import Request, Requests
from tracetorch.core.torch_private import forward_ad_active, functorch_active, is_tracing

NAMES = ("auto", "numba", "triton", "eager")

_log = logging.getLogger("tracetorch")
_requests = Requests("backend", NAMES)


class backend(Request):  # noqa: N801 (used as a function, like torch.no_grad)
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

    requests = _requests


def requested_backend() -> str:
    """Return the name of the backend that is requested in this thread.

    Example:
        >>> requested_backend()
        'auto'

    """
    return _requests.name


def unavailable_reason(name: str, device: torch.device | None = None) -> str | None:
    """Return why a backend cannot run on this machine, or ``None``.

    Args:
        name: ``"numba"``, ``"triton"`` or ``"eager"``.
        device: of the input; with it, also why it cannot run there and in this place, inside a
            transform or an export say.

    Raises:
        ValueError: there is no such backend.

    Example:
        >>> unavailable_reason("eager") is None
        True

    """
    _requests.check(name)
    if name in ("auto", "eager"):
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
