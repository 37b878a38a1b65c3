"""Measure peak memory and time of training on a long sequence, in one piece and in segments.

``python -m benchmarks.long_sequence`` runs each in a process of its own for its memory, and all of
them in turns for their time, so that they see the same load. It prints how far values and gradients
are from those of one piece, relative to the largest.
"""

from __future__ import annotations

import argparse
import gc
import multiprocessing
import os
import statistics
import time
from collections.abc import Sequence

import torch
from torch import Tensor, nn

import tracetorch as tt
from benchmarks.machine import machine
from benchmarks.memory import growth_of
from tracetorch import events, snn

T, B, N = 16_384, 32, 128
INPUTS = 16
SEGMENTS = (None, 1024, 256, "auto")


def network(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    """Build two layers of neurons and a readout."""
    torch.manual_seed(0)
    first, second = (nn.Linear(INPUTS, N), snn.LIF(N)), (nn.Linear(N, N), snn.LIF(N))
    return nn.Sequential(*first, *second, nn.Linear(N, 2), snn.Readout(2)).to(dtype)


def inputs(batch: int = B, dtype: torch.dtype = torch.float32) -> Tensor:
    """Draw spikes, three in ten."""
    generator = torch.Generator().manual_seed(0)
    return (torch.rand(T, batch, INPUTS, generator=generator) < 0.3).to(dtype)


def train(net: nn.Module, x: Tensor, segment: int | str | None) -> Tensor:
    """Run the sequence and its backward pass from rest; return the output."""
    net.zero_grad()
    y: Tensor = tt.unroll(net, x, segment=segment, from_rest=True)
    y.square().mean().backward()
    return y.detach()


def memory(segment: int | str | None, threads: int) -> int:
    """Return by how much a run grows the memory of this process, which must be fresh."""
    torch.set_num_threads(threads)
    net, x = network(), inputs()
    train(net, x[:16], segment)
    return growth_of(lambda: train(net, x, segment))


def memories(threads: int) -> list[int]:
    """Return the memory of all runs, each in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        return pool.starmap(memory, [(each, threads) for each in SEGMENTS], chunksize=1)


def errors(segment: int | str | None, dtype: torch.dtype) -> tuple[float, float]:
    """Return how far values, and gradients, are from those of one piece; 0 where bits are equal."""
    found = []
    with events.mode("never"):  # which are chosen by density, segment by segment
        for each in (None, segment):
            net, x = network(dtype), inputs(4, dtype).requires_grad_()
            y = train(net, x, each)
            found.append([y, x.grad, *(p.grad for p in net.parameters())])
    far = [
        float((one - other).abs().max() / one.abs().max())
        for one, other in zip(*found, strict=True)
        if one is not None and other is not None
    ]
    return max(far[:2]), max(far[2:])


def times(threads: int, rounds: int) -> dict[int | str | None, float]:
    """Return medians of seconds of all runs, in turns."""
    torch.set_num_threads(threads)
    net, x = network(), inputs()
    found: dict[int | str | None, list[float]] = {segment: [] for segment in SEGMENTS}
    for _ in range(rounds + 1):  # the first one loads libraries and compiles kernels
        for segment, each in found.items():
            gc.collect()
            start = time.perf_counter()
            train(net, x, segment)
            each.append(time.perf_counter() - start)
    return {segment: statistics.median(each[1:]) for segment, each in found.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args(arguments)
    here = machine()
    load = ", ".join(f"{each:.2f}" for each in os.getloadavg())
    print(f"{here['processor']}, {given.threads} threads, load {load}, {here['date']}")
    print(f"T={T:,} B={B} N={N}")
    grown = memories(given.threads)
    seconds = times(given.threads, given.rounds)
    print("| segment | MB | of one piece | s | of one piece | values, gradients | in float64 |")
    print("|---|---|---|---|---|---|---|")
    for segment, size in zip(SEGMENTS, grown, strict=True):
        far = [errors(segment, dtype) for dtype in (torch.float32, torch.float64)]
        cells = [f"{value:.1g}, {gradient:.1g}" for value, gradient in far]
        print(
            f"| {segment} | {size / 1e6:.1f} | 1/{grown[0] / size:.1f} | {seconds[segment]:.2f} | "
            f"{seconds[segment] / seconds[None]:.2f} | {' | '.join(cells)} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
