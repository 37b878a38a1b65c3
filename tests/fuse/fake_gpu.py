"""A fake GPU: tensors of the CPU, and kernels that fill their results and are counted."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch

from tracetorch.fuse.dispatch.backends import backend_named
from tracetorch.fuse.runtime import gpu

RESULTS = ("at_output", "at_end", "at_record", "at_checkpoints", "at_grad_input", "at_grad_start")


class Launch(NamedTuple):
    """A kernel that the fake GPU has run: its name, and what it was given by name."""

    kernel: str
    arguments: dict[str, Any]


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[Launch]:
    """Return what the fake GPU, ``tt.fuse.backend("triton")``, will run from now on."""
    found: list[Launch] = []

    def launch(kernel: str, lanes: int, device: torch.device, arguments: dict[str, Any]) -> None:
        found.append(Launch(kernel, arguments))
        for name, value in arguments.items():
            if name.startswith((*RESULTS, "at_one", "at_other")):
                value.fill_(0.5 if kernel == "uniforms" else 0.0)

    monkeypatch.setattr(gpu, "launch", launch)
    monkeypatch.setattr(gpu, "_kernel", lambda plan, name: name)
    monkeypatch.setattr(gpu, "_uniforms", lambda real: "uniforms")
    monkeypatch.setattr(gpu.TritonBackend, "device_type", lambda backend: "cpu")
    monkeypatch.setattr(gpu.TritonBackend, "uninstalled_reason", lambda backend: None)
    monkeypatch.setattr(backend_named("triton"), "tried", False)
    return found
