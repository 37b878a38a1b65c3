"""The device of a run: whether it is there, how to wait for it, and its peak memory.

``python -m benchmarks.device cuda`` ends with 2, and says why, where it is not there.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from benchmarks.memory import growth_of

NAMES = ("cpu", "cuda")  # PyTorch calls AMD's cards cuda too


@dataclass(frozen=True)
class Device:
    """A device by its name in PyTorch; a worker of JAX knows ``"cpu"`` alone."""

    name: str = "cpu"

    def missing_reason(self) -> str | None:
        """Return why it is not there, or ``None``."""
        if self.name == "cpu" or _cuda().is_available():
            return None
        import torch

        built = torch.version.cuda or torch.version.hip
        of = f"is for {built}" if built else "is for the CPU alone"
        return (
            f"there is no GPU that PyTorch {torch.__version__} can use, which {of}. Run this on a "
            "machine with a card, and PyTorch for CUDA or ROCm: https://pytorch.org/get-started."
        )

    def description(self) -> str:
        """Return the name of the card and the release of its libraries; empty for the CPU."""
        if self.name == "cpu":
            return ""
        import torch

        release = f"ROCm {torch.version.hip}" if torch.version.hip else f"CUDA {torch.version.cuda}"
        return f"{_cuda().get_device_name()}, {release}"

    def building(self) -> AbstractContextManager[Any]:
        """Open a block whose new tensors are there; it slows each call, so nothing is timed in."""
        if self.name == "cpu":
            return contextlib.nullcontext()
        import torch

        return torch.device(self.name)

    def wait(self) -> None:
        """Wait until everything that was begun there is done."""
        if self.name != "cpu":
            _cuda().synchronize()

    def growth(self, run: Callable[[], object]) -> int:
        """Return by how many bytes a run grows the peak memory there."""
        if self.name == "cpu":
            return growth_of(run)
        self.wait()
        _cuda().reset_peak_memory_stats()
        before = _cuda().memory_allocated()
        run()
        self.wait()
        return int(_cuda().max_memory_allocated() - before)


def _cuda() -> Any:
    import torch

    return torch.cuda


def main(arguments: Sequence[str] | None = None) -> int:
    """Print what a device is, or why it is not there."""
    (name,) = sys.argv[1:] if arguments is None else arguments
    reason = Device(name).missing_reason()
    print(reason or Device(name).description() or name)
    return 2 if reason else 0


if __name__ == "__main__":
    sys.exit(main())
