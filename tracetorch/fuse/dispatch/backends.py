"""Select a backend: which there are, which one is requested, and why one is unavailable."""

from __future__ import annotations

import functools
import importlib
import logging
import os

import torch

from tracetorch.core.requests import Request, Requests
from tracetorch.fuse.runtime.backend import Backend

# each imported at the first call
_BACKENDS = {"cpu": ("cpu", "CpuBackend"), "triton": ("gpu", "TritonBackend")}
_BY_DEVICE = {"cpu": "cpu", "cuda": "triton"}  # what "auto" selects
SWITCH = "TRACETORCH_CHECK_KERNELS"
NAMES = ("auto", *_BACKENDS, "eager")

_log = logging.getLogger("tracetorch")
_reported: set[tuple[str, str]] = set()  # what this process has logged
_requests = Requests("backend", NAMES, {"numba": "cpu"})


class backend(Request):  # noqa: N801 (used as a function, like torch.no_grad)
    """Request a backend for whole sequences: from now on, or inside a ``with`` block.

    A plain call sets the default of all threads. A ``with`` block takes precedence over it, in its
    own thread alone, as ``torch.no_grad`` does.

    Args:
        name: ``"auto"``, the kernels of the device and ``"eager"`` where they cannot run, logged
            once; ``"cpu"``, kernels for the CPU; ``"triton"``, kernels for the GPU; ``"eager"``,
            plain PyTorch. One requested by name runs or raises. ``"numba"`` is an earlier name of
            ``"cpu"``.

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
    names = _requests.in_thread.names
    return names[-1] if names else _requests.default


def is_wanted(backend: Backend) -> bool:
    """Whether kernels are tried on a sample: by the environment, or where it says so."""
    setting = os.environ.get(SWITCH, "")
    if setting not in ("", "0", "1"):
        raise ValueError(
            f"{SWITCH} must be 1, which tries every kernel before it is used, or 0, none, got "
            f"{setting!r}. Leave it out to try those for a GPU."
        )
    return type(backend).tried if setting == "" else setting == "1"


@functools.cache
def backend_named(name: str) -> Backend:
    """Return the backend of a name, the same object each time."""
    module, kind = _BACKENDS[name]
    found: Backend = getattr(importlib.import_module(f"tracetorch.fuse.runtime.{module}"), kind)()
    found.tried = is_wanted(found)
    return found


def unavailable_reason(name: str, device: torch.device | None = None) -> str | None:
    """Return why a backend cannot run on this machine, or ``None``.

    Args:
        name: ``"cpu"``, ``"triton"`` or ``"eager"``.
        device: of the input; with it, also why it cannot run there and in this place, inside a
            transform or an export say.

    Raises:
        ValueError: there is no such backend.

    Example:
        >>> unavailable_reason("eager") is None
        True
    """
    name = _requests.check(name)
    return None if name in ("auto", "eager") else backend_named(name).unavailable_reason(device)


def select_backend(device: torch.device) -> Backend | None:
    """Return the backend for an input on ``device``; ``None`` where eager steps are requested."""
    name = requested_backend()
    if name == "auto":
        name = _BY_DEVICE.get(device.type, "triton")  # which says why not, elsewhere
    return None if name == "eager" else backend_named(name)


def report_fallback(layer: str, name: str, reason: str) -> None:
    """Log once why a layer runs eagerly; raise if the backend was requested by name."""
    if requested_backend() != "auto":
        raise RuntimeError(
            f"the {name} backend cannot run {layer}: {reason}. "
            "tt.fuse.backend('auto') runs it eagerly."
        )
    log_fallback(layer, reason)


def log_fallback(layer: str, reason: str) -> None:
    """Log once that a layer runs step by step, and why."""
    if (layer, reason) not in _reported:
        _reported.add((layer, reason))
        _log.warning("%s runs step by step in plain PyTorch: %s.", layer, reason)
