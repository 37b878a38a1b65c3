"""The backends: which there are, which one is asked for, and why one cannot run."""

from __future__ import annotations

import difflib
import functools
import importlib.util
import logging
import os
from collections.abc import Callable
from types import TracebackType

import torch

from tracetorch.snn.module import is_exporting
from tracetorch.snn.neuron import Neuron

NAMES = ("auto", "numba", "triton", "eager")

_log = logging.getLogger("tracetorch")
_chosen = "auto"


class backend:  # noqa: N801 (used as a function, like torch.no_grad)
    """Choose who runs whole sequences: from now on, or inside a ``with`` block.

    Args:
        name: ``"auto"``, the kernels of the device and ``"eager"`` where they cannot run, said once
            through ``logging``; ``"numba"``, kernels for the CPU; ``"triton"``, kernels for the
            GPU; ``"eager"``, plain PyTorch. One asked for by name runs or raises.

    Raises:
        ValueError: there is no such backend.

    Example:
        >>> with backend("eager"):
        ...     chosen()
        'eager'
        >>> chosen()
        'auto'

    """

    def __init__(self, name: str) -> None:
        global _chosen
        if name not in NAMES:
            near = difflib.get_close_matches(str(name), NAMES, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"no backend is called {name!r}.{hint} There are {', '.join(NAMES)}.")
        self.previous, _chosen = _chosen, name

    def __enter__(self) -> None:
        return None

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        global _chosen
        _chosen = self.previous


def chosen() -> str:
    """The name of the backend that is asked for.

    Example:
        >>> chosen()
        'auto'

    """
    return _chosen


@functools.cache
def missing(name: str) -> str | None:
    """Why a backend cannot run on this machine at all, or ``None``.

    Args:
        name: ``"numba"``, ``"triton"`` or ``"eager"``.

    Example:
        >>> missing("eager") is None
        True

    """
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


def unsuited(name: str, device: torch.device) -> str | None:
    """Why a backend cannot run here and now, whatever the layer, or ``None``."""
    if name == "eager":
        return None
    wanted = "cpu" if name == "numba" or is_interpreted() else "cuda"
    if device.type != wanted:
        return f"its kernels are for {wanted}, the input is on {device.type}"
    if is_exporting() or torch.jit.is_tracing():  # type: ignore
        return "an exported program must not need this process's kernels"
    if torch._C._are_functorch_transforms_active():
        return "torch.func transforms see through plain operations alone"
    if torch.autograd.forward_ad._current_level >= 0:
        return "forward-mode differentiation sees through plain operations alone"
    return missing(name)


@functools.cache
def say_once(layer: str, reason: str) -> None:
    """Log why a layer runs eagerly, the first time."""
    _log.warning("%s runs step by step in plain PyTorch: %s.", layer, reason)


def candidates(device: torch.device) -> tuple[str, ...]:
    """The backends to try, in order, for what is asked for."""
    if _chosen != "auto":
        return (_chosen,)
    return ("numba" if device.type == "cpu" else "triton", "eager")


def settle(layer: Neuron, reason: Callable[[str], str | None], device: torch.device) -> str:
    """The first backend without a reason against it.

    Raises:
        RuntimeError: the one asked for by name has one.

    """
    for name in candidates(device):
        against = reason(name)
        if against is None:
            return name
        if name == _chosen:
            raise RuntimeError(
                f"the {name} backend cannot run {layer!r}: {against}. tt.fuse.backend('auto') "
                "runs it eagerly."
            )
        say_once(repr(layer), against)
    return "eager"
