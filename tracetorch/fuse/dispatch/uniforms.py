"""Draw random numbers from a counter, by a kernel where one can run."""

from __future__ import annotations

import torch
from torch import Tensor

from tracetorch.core.torch_private import dispatch_modes, has_values
from tracetorch.fuse.dispatch.backends import report_fallback, select_backend
from tracetorch.fuse.runtime import first_run
from tracetorch.fuse.runtime.backend import Backend
from tracetorch.fuse.runtime.threefry import uniforms

# of the kernels that were tried, by backend, device and dtype; None where one is right
_failures: dict[tuple[str, torch.device, torch.dtype], str | None] = {}


def draw_uniforms(position: Tensor, steps: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return what :func:`.threefry.uniforms` does."""
    device = position.device
    backend = None if torch.compiler.is_compiling() else select_backend(device)
    if (
        backend is None
        or dispatch_modes()
        or not has_values(position)
        or backend.unavailable_reason(device) is not None
    ):
        return uniforms(position, steps, dtype)
    key = backend.name, device, dtype
    if backend.tried and key not in _failures and not first_run.is_capturing(device):
        _failures[key] = _failure(backend, device, dtype)
    reason = _failures.get(key) if backend.tried else None
    if reason is not None:
        report_fallback("Noise", backend.name, reason)
        return uniforms(position, steps, dtype)
    return backend.uniforms(position, steps, dtype)


def _failure(backend: Backend, device: torch.device, dtype: torch.dtype) -> str | None:
    """Return how the kernel does not give the numbers that it must, to the bit, or ``None``."""

    def compare() -> str | None:
        lanes = torch.arange(131, device=device)
        position = 2**32 - 2 + lanes.remainder(3) + (lanes << 33)
        found, expected = (draw(position, 3, dtype) for draw in (backend.uniforms, uniforms))
        return None if all(map(torch.equal, found, expected)) else "gives other numbers"

    return first_run.failure_in(
        compare, f"the {backend.name} kernel of random numbers in {dtype}", device
    )
