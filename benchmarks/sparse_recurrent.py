"""Measure a loop along a list of edges: ``python -m benchmarks.sparse_recurrent``.

The network of the size of a fly's brain of ``examples/fly.py``: the time and memory of a second of
it, beside Brian2's C++ on the same graph and input where ``make bench-peers`` has installed it, and
of the gradient of all weights over a tenth of one. Then a training step of a smaller network,
beside a dense one and ``torch.sparse``. ``--plot FILE`` draws how the fly's times grow. The load of
the machine is printed beside each row: threads wait for each other.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

import tracetorch as tt
from benchmarks.libraries import ROOT
from benchmarks.memory import resident
from examples import fly
from tracetorch import functional, snn

BRIAN2 = ROOT / ".venv-brian2" / "bin" / "python"


def build(graph: fly.Graph) -> snn.Recurrent:
    """Build the network, and print how long that takes from its edges on."""
    start = time.perf_counter()
    model = fly.network(graph)
    cast(snn.SparseLinear, model.connection).plan  # noqa: B018 (made at the first call)
    took = time.perf_counter() - start
    print(f"build: {graph.edges.shape[1]:,} edges in {took:.2f} s{_load()}")
    return model


def _seconds() -> Callable[[], str]:
    """Return what tells the time since, and that of all cores: other processes change it less."""
    start = time.perf_counter(), time.process_time()

    def since() -> str:
        wall, cores = time.perf_counter() - start[0], time.process_time() - start[1]
        return f"{wall:.2f} s ({cores:.2f} s of cores)"

    return since


def _load() -> str:
    return f" (load {os.getloadavg()[0]:.1f}, {torch.get_num_threads()} threads)"


def forward(model: snn.Recurrent, source: snn.PoissonInput, steps: int) -> None:
    """Print the time of a run."""
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


def gradient(model: snn.Recurrent, source: snn.PoissonInput, steps: int) -> None:
    """Print the time of a run and of the gradient of all weights."""
    for _ in range(2):
        model.zero_states()
        model.zero_grad()
        took = _seconds()
        run = model.run_events(source, steps, count_every=steps)
        assert run.counts is not None
        run.counts.square().mean().backward()
        spent = took()
    print(f"gradient: {steps:,} steps in {spent}, {resident() / 1e6:,.0f} MB{_load()}")


def brian2(graph: fly.Graph, source: snn.PoissonInput, steps: int, python: Path) -> None:
    """Print the time of the same run in Brian2, by C++ on one thread and on as many as ours."""
    places, _ = source.between(snn.event_inputs.Span(0, steps, 1, graph.neurons), torch.float32)
    arrays: dict[str, Any] = {
        "neurons": graph.neurons,
        "steps": steps,
        "kick": fly.SYNAPSE * fly.KICK,
        "edges": graph.edges.numpy(),
        "weight": fly.SYNAPSE * graph.synapses.numpy(),
        "events": torch.stack([places // graph.neurons, places % graph.neurons], 1).numpy(),
    }
    with tempfile.TemporaryDirectory() as folder:
        np.savez(f"{folder}/fly.npz", **arrays)
        for threads in sorted({1, torch.get_num_threads()}):
            words = [str(python), "-W", "ignore", "-m", "benchmarks.brian2_fly"]
            words += [f"{folder}/fly.npz", "--threads", str(threads)]
            load = os.getloadavg()[0]
            done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
            if done.returncode:
                print(f"Brian2: failed: {done.stderr.strip().splitlines()[-1]}")
                return
            found = json.loads(done.stdout.splitlines()[-1])
            print(
                f"Brian2 {found['version']}: {steps:,} steps in {found['seconds']:.2f} s, "
                f"{found['spikes']:,} spikes, written and compiled in {found['built']:.0f} s "
                f"(load {load:.1f}, {threads} threads)"
            )


def growth(graph: fly.Graph, path: Path, shares: Sequence[float]) -> None:
    """Draw the seconds of CPU of 100 ms and of their gradient, as edges and spikes grow."""
    import matplotlib.pyplot as plt

    options = argparse.Namespace(shares=shares, lengths=(0.1,), repeats=2)
    rows = fly.growth(graph, options)
    figure, axes = plt.subplots(1, 2, figsize=(7.2, 2.8), layout="constrained")
    for ax, (name, found) in zip(axes, rows.items(), strict=True):
        counts, *times = zip(*found, strict=True)
        for label, seconds in zip(("run", "gradient"), times, strict=True):
            ax.plot(counts, seconds, "o-", label=label)
        ax.set(xlabel=name.partition("_")[2], ylabel="seconds of CPU", xlim=(0, None))
        ax.set_ylim(0, None)
    axes[0].legend()
    figure.savefig(path, dpi=150)
    plt.close(figure)


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
    parser.add_argument("--plot", type=Path, help="file of a plot of the fly's growth")
    parser.add_argument("--brian2", type=Path, default=BRIAN2, help="the Python of Brian2")
    options = parser.parse_args(arguments)
    quick = options.quick
    if options.only != "peers":
        graph = fly.draw_graph(600 if quick else fly.NEURONS)
        steps, short = (300, 100) if quick else (10_000, 1_000)
        # some 17,000 spikes a second in all
        source = fly.stimulus(fly.inputs_of(graph)[0], seed=0)
        model = build(graph)
        forward(model, source, steps)
        python = options.brian2 if options.brian2.exists() else Path(sys.executable)
        if options.brian2.exists() or find_spec("brian2") is not None:
            brian2(graph, source, steps, python)
        else:
            print("Brian2: not installed, see make bench-peers")
        gradient(model, source, short)
        if options.plot:
            growth(graph, options.plot, (0.5, 1.0) if quick else (0.25, 0.5, 0.75, 1.0))
    if options.only != "fly":
        peers(*((200, 0.05, 5, 2, 1) if quick else (10_000, 0.01, 100, 16, 2)))


if __name__ == "__main__":
    main()
