"""Compare a case on a device with the same case on the CPU: spikes and gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from benchmarks.cases import Case
from benchmarks.device import Device
from benchmarks.task import Adapter
from benchmarks.torch_task import TorchTask

# A layer alone has no product whose sums have another order on another device.
EXACT = ("lif", "growth", "bsrlif", "alif", "seadlif")
MOST = 1e-5  # of a gradient, relative to its largest value


def agreement(adapter: Adapter, case: Case, device: Device) -> dict[str, float]:
    """Return the share of spikes that are equal, and the largest difference of a gradient.

    The spikes of a network are those of its first layer. A difference is relative to the largest
    value of its gradient; there is none of a forward pass. Empty for what is no single pass of a
    model.
    """
    reference: Any = adapter.prepare(case)
    with device.building():
        task: Any = adapter.prepare(case)
    if not isinstance(task, TorchTask) or not isinstance(reference, TorchTask):
        return {}
    with torch.no_grad():
        for mine, its in zip(task.learnable, reference.learnable, strict=True):
            mine.copy_(its)
    equal = task.spikes().cpu() == reference.spikes()
    found = {"equal": equal.float().mean().item()}
    pairs = zip(task.gradients(), reference.gradients(), strict=True)
    differences = [_difference(mine, its) for mine, its in pairs]
    return {**found, "gradient": max(differences)} if differences else found


def _difference(found: Tensor | None, expected: Tensor | None) -> float:
    if found is None or expected is None:
        return 0.0 if found is expected else float("inf")
    largest = expected.abs().max().item()
    return (found.cpu() - expected).abs().max().item() / largest if largest else 0.0


def disagreement(case: Case, found: dict[str, float]) -> str | None:
    """Return why a case is wrong on the device, or ``None``; networks may differ by rounding."""
    if case.kind not in EXACT:
        return None
    equal, gradient = found["equal"], found.get("gradient", 0.0)
    if equal == 1.0 and gradient <= MOST:
        return None
    return f"{equal:.2%} of its spikes are those of the CPU, gradients to {gradient:.1e}"
