"""Measure the memory of learning online as the sequence grows: resident memory by number of steps.

``python -m benchmarks.online_memory`` steps a small network a million times, with a backward pass
at every step, and prints a line at each power of ten and at the last step.
"""

from __future__ import annotations

import argparse
import gc
import time
from collections.abc import Iterator, Sequence

import torch
from torch import nn

import tracetorch as tt
from benchmarks.memory import resident
from tracetorch import snn

_FIRST = 1_000  # by then kernels are loaded and the allocator has its pages


def network() -> nn.Sequential:
    """Build a layer of neurons, whose gradients online are exact."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), snn.LIF(8))


def measure(steps: int) -> Iterator[tuple[int, int]]:
    """Learn for so many steps; yield steps and resident bytes at powers of ten and at the last."""
    learner = tt.online(network())
    generator = torch.Generator().manual_seed(0)
    at = _FIRST
    for step in range(1, steps + 1):
        x = torch.rand(1, 4, generator=generator)
        learner(x).square().sum().backward()
        if step in (at, steps):
            gc.collect()
            yield step, resident()
        if step == at:
            at *= 10


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=1_000_000)
    steps = parser.parse_args(arguments).steps
    torch.set_num_threads(1)
    start = time.perf_counter()
    for step, held in measure(steps):
        print(
            f"{step:>9,} steps  {held / 1e6:8.2f} MB  {time.perf_counter() - start:7.0f} s",
            flush=True,
        )


if __name__ == "__main__":
    main()
