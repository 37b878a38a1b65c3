"""Measure a sparse layer: ``python -m benchmarks.sparse_linear``, its growth and its peers.

Milliseconds of one step as edges and spikes grow, which is linear in both, and of a training step
beside ``nn.Linear`` and ``torch.sparse``; and the time and memory of a layer of 15 million edges.
``--plot FILE`` draws the growth.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

import torch
from torch import Tensor

from benchmarks.memory import resident
from benchmarks.sparse_recurrent import connections, shortest
from tracetorch import snn

NEURONS = 138_639  # of a fly's brain
EDGES = (500_000, 1_000_000, 2_000_000, 4_000_000, 8_000_000, 15_000_000)
SPIKES = (30, 100, 300, 1_000, 3_000, 10_000)
_REPEATS = 9


def layer_of(neurons: int, edges: int) -> snn.SparseLinear:
    """Build a layer with about so many random edges."""
    generator = torch.Generator().manual_seed(0)
    drawn = snn.random_edges(neurons, neurons, edges / neurons**2, generator=generator)
    return snn.SparseLinear(neurons, neurons, drawn, bias=False)


def spikes_of(rows: int, neurons: int, count: int) -> Tensor:
    """Draw rows with so many spikes each."""
    generator = torch.Generator().manual_seed(1)
    chosen = torch.rand(rows, neurons, generator=generator).topk(count, 1).indices
    return torch.zeros(rows, neurons).scatter_(1, chosen, 1.0)


def step_times(layer: snn.SparseLinear, x: Tensor) -> tuple[float, float]:
    """Return the milliseconds of the output, and of the gradient of all weights."""
    with torch.no_grad():
        forward = shortest(lambda: layer(x), _REPEATS)
    y = layer(x)
    seed = torch.ones_like(y)
    by_weight = lambda: torch.autograd.grad(y, layer.weight, seed, retain_graph=True)  # noqa: E731
    backward = shortest(by_weight, _REPEATS)
    return forward, backward


def growth(neurons: int, edges: Sequence[int], spikes: Sequence[int]) -> dict[str, list[float]]:
    """Print and return the milliseconds of 100 steps as edges grow, and as spikes do."""
    found: dict[str, list[float]] = {"edges": [], "spikes": []}
    some = spikes[len(spikes) // 2]
    for count in edges:
        forward, backward = step_times(layer_of(neurons, count), spikes_of(100, neurons, some))
        print(f"{count:>11,} edges {forward:9.2f} ms, weights' gradient {backward:9.2f} ms")
        found["edges"].append(forward)
    layer = layer_of(neurons, edges[-1])
    for count in spikes:
        forward, backward = step_times(layer, spikes_of(100, neurons, count))
        print(f"{count:>10,} spikes {forward:9.2f} ms, weights' gradient {backward:9.2f} ms")
        found["spikes"].append(forward)
    return found


def peers(neurons: int, share: float, rows: int, density: float) -> None:
    """Print the milliseconds of a training step beside a dense layer and ``torch.sparse``."""
    x = spikes_of(rows, neurons, max(1, int(density * neurons))).requires_grad_()
    for name, layer in connections(neurons, share).items():
        took = shortest(lambda layer=layer: layer(x).sum().backward(), 3)  # type: ignore[misc]
        print(f"{name:>14} {took:9.1f} ms a training step")


def build(neurons: int, edges: int) -> None:
    """Print the time and the memory of a large layer."""
    before, start = resident(), time.perf_counter()
    layer = layer_of(neurons, edges)
    drawn = time.perf_counter()
    layer.plan  # noqa: B018 (made at the first call)
    took, held = time.perf_counter() - start, resident() - before
    count = layer.edges.shape[1]
    print(f"{count:,} edges: built in {took:.2f} s, the plan {took - (drawn - start):.2f} s of it")
    print(f"{held / 1e6:,.0f} MB held, {held / count:.1f} bytes an edge")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="tiny sizes: a smoke test")
    parser.add_argument("--plot", help="file of a plot of the growth")
    options = parser.parse_args(arguments)
    edges: Sequence[int] = EDGES
    spikes: Sequence[int] = SPIKES
    neurons = NEURONS
    if options.quick:
        edges, spikes, neurons = (1_000, 2_000), (3, 6), 1_000
    build(neurons, edges[-1])
    found = growth(neurons, edges, spikes)
    peers(200 if options.quick else 10_000, 0.01, 16 if options.quick else 1_600, 0.02)
    if options.plot:
        _draw(found, edges, spikes, options.plot)


def _draw(
    found: dict[str, list[float]], edges: Sequence[int], spikes: Sequence[int], path: str
) -> None:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(7.2, 2.8), layout="constrained")
    for ax, (name, counts) in zip(axes, (("edges", edges), ("spikes", spikes)), strict=True):
        ax.loglog(counts, found[name], "o-")
        ax.loglog(counts, [found[name][-1] * n / counts[-1] for n in counts], ":", color="gray")
        ax.set(xlabel=f"{name}{' a step' * (name == 'spikes')}", ylabel="ms, 100 steps")
    figure.savefig(path, dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    main()
