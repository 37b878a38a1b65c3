"""Measure products with events against dense ones: ``python -m benchmarks.event_crossover``.

The constants of ``tracetorch/events/choice.py`` are those of this table. It prints milliseconds
of the dense product, and with events, for the forward pass, and for it and the gradient of weight
and bias, at several densities; and where the estimated crossover lies.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

import torch
from torch import nn

from tracetorch.events import crossover, mode
from tracetorch.events.choice import conv_crossover
from tracetorch.events.passes import EventProducts
from tracetorch.snn.passes import Pass

# rows, inputs, outputs; images, channels, side, outputs of a 3x3 kernel
SIZES = ((6400, 700, 256), (6400, 256, 256), (8000, 512, 512), (1024, 256, 256), (6400, 256, 20))
CONVOLUTIONS = ((320, 32, 34, 64), (256, 32, 17, 64), (256, 16, 28, 32))
DENSITIES = (0.005, 0.02, 0.05, 0.1, 0.15, 0.25, 0.4)
_SECONDS = 0.15  # for each figure


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table, for the number of threads that is the first argument."""
    given = sys.argv[1:] if arguments is None else arguments
    if given:
        torch.set_num_threads(int(given[0]))
    print(f"{torch.get_num_threads()} threads; ms dense, and with events (times faster)")
    for rows, inputs, outputs in SIZES:
        limit = crossover(rows, inputs, outputs)
        print(f"\n{rows} x {inputs} -> {outputs}, estimated crossover {limit:.3f}")
        _rows(nn.Linear(inputs, outputs), (rows, inputs))
    for images, channels, side, outputs in CONVOLUTIONS:
        layer, shape = nn.Conv2d(channels, outputs, 3, padding=1), (images, channels, side, side)
        limit = conv_crossover(shape, layer.weight.shape, (side, side))
        print(f"\n{list(shape)} -> {outputs} channels, estimated crossover {limit:.3f}")
        _rows(layer, shape)
    return 0


def _rows(layer: nn.Module, shape: Sequence[int]) -> None:
    for density in DENSITIES:
        print(f"  {100 * density:5.1f} %  {_row(layer, shape, density)}", flush=True)


def _row(layer: nn.Module, shape: Sequence[int], density: float) -> str:
    torch.manual_seed(0)
    x = (torch.rand(*shape) < density).float()
    grad = torch.randn_like(layer(x))

    def forward() -> None:
        with torch.no_grad():
            layer(x)

    def train() -> None:
        layer.zero_grad()
        layer(x).backward(grad)

    cells = []
    products = EventProducts([layer])
    for run in (forward, train):
        times: dict[str, list[float]] = {"never": [], "always": []}
        deadline = time.perf_counter() + _SECONDS
        while time.perf_counter() < deadline or len(times["always"]) < 4:
            for name, found in times.items():  # side by side, so that both see the same load
                with mode(name):
                    call = Pass(folded=True)
                    products.enter(call)
                    start = time.perf_counter()
                    call.call(run)
                    found.append(time.perf_counter() - start)
                    products.leave(call)
        dense, events = (1e3 * sorted(found[1:])[len(found[1:]) // 2] for found in times.values())
        cells.append(f"{dense:7.2f} {events:7.2f} ({dense / events:4.1f})")
    return "    forward + weight gradient ".join(["forward " + cells[0], cells[1]])


if __name__ == "__main__":
    sys.exit(main())
