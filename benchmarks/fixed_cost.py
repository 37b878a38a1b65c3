"""Measure the fixed cost of small networks: calls, and times hot and cold.

``python -m benchmarks.fixed_cost``. Hot runs follow each other; before each cold one a product of
large matrices takes the caches, as in a training loop.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import tracetorch as tt
from benchmarks.machine import machine
from tracetorch import snn

T, B, N = 4, 2, 8
_SIDE = 1024  # of the matrices that take the caches


def five_modules() -> nn.Sequential:
    """Build two neuron layers between three linear ones."""
    return nn.Sequential(nn.Linear(N, N), snn.LIF(N), nn.Linear(N, N), snn.LIF(N), nn.Linear(N, N))


def pairs(count: int, neuron: Callable[[], nn.Module]) -> nn.Sequential:
    """Build so many pairs of a linear layer and what stands for its neurons."""
    return nn.Sequential(*(m for _ in range(count) for m in (nn.Linear(N, N), neuron())))


def models() -> dict[str, nn.Module]:
    """Build the models by name."""
    return {
        "LIF": snn.LIF(N),
        "Linear, LIF, Linear, LIF, Linear": five_modules(),
        "4 x (Linear, LIF)": pairs(4, lambda: snn.LIF(N)),
        "4 x (Linear, ReLU)": pairs(4, nn.ReLU),
    }


def forward(model: nn.Module, x: Tensor) -> None:
    """Run a sequence without a graph, from zero states."""
    tt.zero_states(model)
    with torch.no_grad():
        tt.unroll(model, x)


def train(model: nn.Module, x: Tensor) -> None:
    """Run a sequence and its backward pass, from zero states."""
    tt.zero_states(model)
    for parameter in model.parameters():
        parameter.grad = None
    tt.unroll(model, x).sum().backward()


WAYS = {"forward": forward, "train": train}


def calls(function: Callable[[], Any]) -> tuple[int, int]:
    """Count the calls of Python functions, and of those in C, that Python's profiler sees."""
    seen = {"call": 0, "c_call": 0}

    def count(frame: Any, event: str, argument: Any) -> None:
        if event in seen:
            seen[event] += 1

    sys.setprofile(count)
    try:
        function()
    finally:
        sys.setprofile(None)
    return seen["call"], seen["c_call"] - 1  # the last is sys.setprofile itself


class PackageCalls(NamedTuple):
    """Calls of the package's own functions in one run.

    Args:
        calls: how many, comprehensions and generators among them.
        changes: how often the next one is in another file.
    """

    calls: int
    changes: int


def package_calls(function: Callable[[], Any]) -> PackageCalls:
    """Count the calls of the package's own functions that a run makes, and changes of file."""
    files: list[str] = []
    package = str(Path(tt.__file__).parent)

    def note(frame: Any, event: str, argument: Any) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(package):
            files.append(frame.f_code.co_filename)

    sys.setprofile(note)
    try:
        function()
    finally:
        sys.setprofile(None)
    return PackageCalls(len(files), sum(a != b for a, b in itertools.pairwise(files)))


def single_calls() -> dict[str, Callable[[], Any]]:
    """Return the calls whose fixed cost the package's own functions make, by name; warmed up."""
    x = torch.rand(T, B, N, generator=torch.Generator().manual_seed(0))
    net = nn.Sequential(nn.Linear(N, N), snn.LIF(N), nn.Linear(N, N), snn.Readout(N))
    alone, stepped, streamed = snn.LIF(N), snn.LIF(N), snn.LIF(N)
    found: dict[str, Callable[[], Any]] = {
        "unroll(Linear-LIF-Linear-Readout)": lambda: tt.unroll(net, x, from_rest=True),
        "unroll(LIF)": lambda: tt.unroll(alone, x, from_rest=True),
        "layer(x) with a graph": lambda: stepped(x[0]),
        "layer(x) without a graph": torch.no_grad()(lambda: streamed(x[0])),
    }
    return _warmed(found)


def _warmed(found: dict[str, Callable[[], Any]]) -> dict[str, Callable[[], Any]]:
    for function in found.values():
        for _ in range(20):
            function()
    return found


def single_steps() -> dict[str, Callable[[], Any]]:
    """Return one step of one sample without a graph, as a robot takes it, by name."""
    x = torch.rand(1, N, generator=torch.Generator().manual_seed(0))
    three = nn.Sequential(nn.Linear(N, N), snn.LIF(N), nn.Linear(N, N), snn.LIF(N), snn.Readout(N))
    modules: dict[str, Callable[[Tensor], Any]] = {
        "Linear": nn.Linear(N, N),
        "LIF": snn.LIF(N),
        "Delay": snn.Delay(N, max_delay=T),
        "DelayedLinear": snn.DelayedLinear(N, N, max_delay=T),
        "Recurrent(LIF, Linear)": snn.Recurrent(snn.LIF(N), nn.Linear(N, N)),
        "BatchNorm1d.eval()": nn.BatchNorm1d(N).eval(),
        "BatchNormThroughTime.eval()": snn.BatchNormThroughTime(N, steps=T).eval(),
        "Linear-LIF-Linear-LIF-Readout": three,
        "Stream of it": tt.Stream(three),
    }
    without_graph = torch.no_grad()
    return _warmed({name: partial(without_graph(each), x) for name, each in modules.items()})


def microseconds(
    function: Callable[[], Any], rounds: int, between: Callable[[], Any] = lambda: None
) -> float:
    """Return the median time of runs, before each of which something else runs."""
    found = []
    for _ in range(rounds):
        between()
        start = time.perf_counter()
        function()
        found.append(time.perf_counter() - start)
    return 1e6 * statistics.median(found)


def times(function: Callable[[], Any], rounds: int) -> tuple[float, float]:
    """Return medians in microseconds: of runs that follow each other, and of cold ones."""
    a, b = torch.rand(_SIDE, _SIDE), torch.rand(_SIDE, _SIDE)
    return microseconds(function, rounds), microseconds(function, rounds, partial(torch.mm, a, b))


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print a table.

    Args:
        arguments: of the command line; those of the process where ``None``.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fixed_cost", description=__doc__)
    parser.add_argument("--rounds", type=int, default=300, help="runs of each kind (300)")
    rounds = parser.parse_args(arguments).rounds
    here = machine()
    print(f"{here['processor']}, {torch.get_num_threads()} threads, T={T} B={B} N={N}")
    print("| network | pass | calls of Python | of C | hot, us | cold, us |")
    print("|---|---|---|---|---|---|")
    for name, model in models().items():
        x = torch.rand(T, B, N, generator=torch.Generator().manual_seed(0))
        for way, run in WAYS.items():

            def once(run: Any = run, model: nn.Module = model, x: Tensor = x) -> None:
                run(model, x)

            for _ in range(20):
                once()
            python, c = calls(once)
            hot, cold = times(once, rounds)
            print(f"| {name} | {way} | {python} | {c} | {hot:.0f} | {cold:.0f} |", flush=True)
    print("\n| one call, warm | calls of the package's functions | changes of file |")
    print("|---|---|---|")
    for name, function in single_calls().items():
        counted = package_calls(function)
        print(f"| {name} | {counted.calls} | {counted.changes} |")
    print("\n| one step, B=1, without a graph | hot, us | cold, us |")
    print("|---|---|---|")
    for name, function in single_steps().items():
        hot, cold = times(function, rounds)
        print(f"| {name} | {hot:.1f} | {cold:.0f} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
