"""Draw random numbers from a counter, by a kernel where one can run."""

from __future__ import annotations

import torch
from torch import Tensor

from tracetorch.core.torch_private import dispatch_modes, has_values
from tracetorch.fuse.dispatch.backends import report_fallback, select_backend
from tracetorch.fuse.runtime import first_run
from tracetorch.fuse.runtime.backend import Backend
from tracetorch.fuse.runtime.threefry import uniforms

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
        or (backend.tried and not _is_believed(backend, device, dtype))
    ):
        return uniforms(position, steps, dtype)
    return backend.uniforms(position, steps, dtype)


def _is_believed(backend: Backend, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the kernel gives the numbers that it must, to the bit; tried once on a device."""
    key = (backend.name, device, dtype)
    if key not in _failures:
        if first_run.is_capturing(device):
            return True

        def compare() -> str | None:
            lanes = torch.arange(131, device=device)
            position = 2**32 - 2 + lanes.remainder(3) + (lanes << 33)
            found, expected = (draw(position, 3, dtype) for draw in (backend.uniforms, uniforms))
            same = map(torch.equal, found, expected)
            return None if all(same) else "gives other numbers than PyTorch"

        what = f"the {backend.name} kernel of random numbers in {dtype}"
        _failures[key] = first_run.failure_in(compare, what, device)
    reason = _failures[key]
    if reason is not None:
        report_fallback("Noise", backend.name, reason)
    return reason is None
