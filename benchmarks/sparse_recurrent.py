"""Measure a loop along a list of edges: ``python -m benchmarks.sparse_recurrent``.

A network of the size of a fly's brain, of random edges with its statistics, and neurons with the
constants of Shiu et al., "A Drosophila computational brain model reveals sensorimotor processing",
Nature 634 (2024): the time and memory of a second of it, and of the gradient of all weights over a
tenth of one. Then a training step of a smaller network, beside a dense one and ``torch.sparse``.
The load of the machine is printed beside each row: threads wait for each other.
"""

from __future__ import annotations

import argparse
import math
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

import tracetorch as tt
from benchmarks.memory import resident
from tracetorch import functional, snn

NEURONS = 138_639
EDGES = 15_100_000
MOST = 9_600  # edges of a source
DRIVEN = 110  # neurons at 150 Hz: some 17,000 spikes a second in all
DT = 0.1  # ms
PER_EDGE = 0.275  # mV of a synapse; an edge has five of them on average
THRESHOLD = 7.0  # mV above rest


class FlyNeuron(snn.Neuron):
    """LIF with an exponential synapse; while it is refractory both stand still."""

    states = ("g", "v", "wait")

    def __init__(self, num_neurons: int, spike: functional.Surrogate) -> None:
        super().__init__(num_neurons)
        self.option("spike", spike)

    @staticmethod
    def step(x: Tensor, g: Tensor, v: Tensor, wait: Tensor, *, spike: Any) -> tuple[Tensor, ...]:
        """Return spikes and states, in mV above rest; ``wait`` are the steps that are left."""
        of_g, of_v = math.exp(-DT / 5), math.exp(-DT / 20)
        free = (wait <= 0).to(x.dtype)
        v = torch.where(wait <= 0, of_v * v + 5 / (5 - 20) * (of_g - of_v) * g, v)
        g = torch.where(wait <= 0, of_g * g, g) + x
        s = spike(v - THRESHOLD) * free
        fired = s.detach() > 0
        v, g = v * (1 - s), g * (1 - s)
        return s, g, v, torch.where(fired, round(2.2 / DT), wait - 1)


def drawn_edges(neurons: int, edges: int, most: int) -> tuple[Tensor, Tensor]:
    """Draw edges by source and target, out-degrees log-normal, and the sign of each source."""
    generator = torch.Generator().manual_seed(0)
    degrees = torch.randn(neurons, generator=generator).mul_(1.1).exp_()
    degrees = (degrees * (edges / float(degrees.sum()))).round_().clamp_(max=most).long()
    keys = torch.repeat_interleave(torch.arange(neurons), degrees).mul_(neurons)
    keys += torch.randint(neurons, keys.shape, generator=generator)
    keys = keys.sort().values
    signs = torch.where(torch.rand(neurons, generator=generator) < 0.7, 1.0, -1.0)
    return torch.stack([keys // neurons, keys % neurons]), signs


def fly(neurons: int, edges: int, most: int) -> snn.Recurrent:
    """Build the network, and print how long that takes from its edges on."""
    drawn, signs = drawn_edges(neurons, edges, most)
    generator = torch.Generator().manual_seed(1)
    count = drawn.shape[1]
    synapses = torch.empty(count).exponential_(0.2, generator=generator).ceil_()
    weight = signs[drawn[0]].mul_(synapses).mul_(PER_EDGE)
    start = time.perf_counter()
    connection = snn.SparseLinear(
        neurons, neurons, drawn, weight=weight, delay=round(1.8 / DT) - 1, bias=False
    )
    connection.plan  # noqa: B018 (made at the first call)
    took = time.perf_counter() - start
    print(f"build: {count:,} edges in {took:.2f} s{_load()}")
    return snn.Recurrent(FlyNeuron(neurons, functional.triangular_surrogate(0.5)), connection)


def _seconds() -> Callable[[], str]:
    """Return what tells the time since, and that of all cores: other processes change it less."""
    start = time.perf_counter(), time.process_time()

    def since() -> str:
        wall, cores = time.perf_counter() - start[0], time.process_time() - start[1]
        return f"{wall:.2f} s ({cores:.2f} s of cores)"

    return since


def _load() -> str:
    return f" (load {os.getloadavg()[0]:.1f}, {torch.get_num_threads()} threads)"


def measure(model: snn.Recurrent, steps: int, short: int, driven: int) -> None:
    """Print the time of a run, and of the gradient of all weights over a shorter one."""
    source = snn.PoissonInput(torch.arange(driven), 150e-3 * DT, value=250 * PER_EDGE)
    with torch.no_grad():
        model.run_events(source, 10)
    for _ in range(2):
        model.zero_states()
        took = _seconds()
        with torch.no_grad():
            run = model.run_events(source, steps, count_every=steps, events=True)
        spent = took()
    assert run.events is not None
    print(
        f"forward: {steps:,} steps in {spent}, {len(run.events):,} spikes, "
        f"{resident() / 1e6:,.0f} MB{_load()}"
    )
    for _ in range(2):
        model.zero_states()
        model.zero_grad()
        took = _seconds()
        run = model.run_events(source, short, count_every=short)
        assert run.counts is not None
        run.counts.square().mean().backward()
        spent = took()
    print(f"gradient: {short:,} steps in {spent}, {resident() / 1e6:,.0f} MB{_load()}")


class _Matrix(nn.Module):
    """A connection through ``torch.sparse``."""

    def __init__(self, matrix: Tensor) -> None:
        super().__init__()
        self.rows, self.columns, self.size = (
            matrix.crow_indices(),
            matrix.col_indices(),
            matrix.shape,
        )
        self.values = nn.Parameter(matrix.values())

    def forward(self, x: Tensor) -> Tensor:
        parts = self.rows, self.columns, self.values, self.size
        matrix = torch.sparse_csr_tensor(*parts, check_invariants=False)
        product: Tensor = torch.sparse.mm(matrix, x.t())
        return product.t()


def connections(neurons: int, share: float) -> dict[str, nn.Module]:
    """Return the same random connections in three layers."""
    generator = torch.Generator().manual_seed(0)
    edges = snn.random_edges(neurons, neurons, share, generator=generator)
    sparse = snn.SparseLinear(neurons, neurons, edges, bias=False)
    dense = nn.Linear(neurons, neurons, bias=False)
    with torch.no_grad():
        dense.weight.zero_()
        dense.weight[sparse.edges[1], sparse.edges[0]] = sparse.weight
    matrix = _Matrix(dense.weight.detach().to_sparse_csr())
    return {"SparseLinear": sparse, "nn.Linear": dense, "torch.sparse": matrix}


def peers(neurons: int, share: float, steps: int, samples: int, repeats: int) -> dict[str, float]:
    """Print and return the milliseconds of a training step, beside other connections."""
    x = torch.rand(steps, samples, neurons).mul_(0.3)
    found: dict[str, float] = {}
    for name, connection in connections(neurons, share).items():
        spike = functional.triangular_surrogate(0.5)
        model = snn.Recurrent(snn.LIF(neurons, surrogate_derivative=spike), connection)

        def run(model: snn.Recurrent = model) -> float:
            y: Tensor = tt.unroll(model, x, from_rest=True)
            y.square().mean().backward()
            return float(y.detach().mean())

        density = run()
        found[name] = shortest(run, repeats)
        print(f"{name:>14} {found[name]:9.1f} ms a training step, {density:.3f} spike{_load()}")
    return found


def shortest(run: Callable[[], object], repeats: int) -> float:
    """Return the shortest of some times, in milliseconds."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(1e3 * (time.perf_counter() - start))
    return min(times)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="tiny sizes: a smoke test")
    parser.add_argument("--only", choices=("fly", "peers"), help="leave the other out")
    options = parser.parse_args(arguments)
    quick = options.quick
    if options.only != "peers":
        model = fly(*((600, 12_000, 100) if quick else (NEURONS, EDGES, MOST)))
        measure(model, *((60, 40) if quick else (10_000, 1_000)), 300 if quick else DRIVEN)
    if options.only != "fly":
        peers(*((200, 0.05, 5, 2, 1) if quick else (10_000, 0.01, 100, 16, 2)))


if __name__ == "__main__":
    main()
