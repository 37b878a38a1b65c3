"""A controller on a stream, a sample every 10 ms: it acts, learns, is saved, resumed, exported.

It predicts the product of two of its three inputs. A step runs under ``no_grad``; after every ten
the same ten are run again with a graph, from the states before them: truncated backpropagation
through time, for the price of one ``tt.unroll``. Lost packets arrive as NaN, which would stay in
the membranes: the last good sample takes their place.

``python -m examples.stream`` takes about twenty seconds of one core.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

import tracetorch as tt
from tracetorch import snn

CHUNK = 10
"""Steps between two updates."""

LOST = 0.05
"""Share of the packets that are lost."""


def network() -> nn.Sequential:
    """Return the controller: three inputs, two layers of 32 neurons, a readout."""
    return nn.Sequential(
        nn.Linear(3, 32),
        snn.LIF(32),
        nn.Linear(32, 32),
        snn.LIF(32),
        nn.Linear(32, 1),
        snn.Readout(1, 0.7),
    )


def signals(steps: int) -> tuple[Tensor, Tensor]:
    """Return what the sensors send, ``[T, 1, 3]``, with NaN for lost packets, and the targets.

    Args:
        steps: samples, 10 ms apart.
    """
    t = 0.01 * torch.arange(steps)
    waves = [torch.sin(2 * t), torch.cos(5 * t), torch.sin(1.3 * t + 1)]
    sensors = torch.stack(waves, -1)[:, None]
    target = sensors[..., :1] * sensors[..., 1:2]
    received = 2 * sensors
    received[torch.rand(steps) < LOST] = torch.nan
    return received, target


def run(net: nn.Sequential, received: Tensor, target: Tensor) -> tuple[list[float], list[float]]:
    """Act at each sample, learn after every ten; return the losses and the seconds of the steps.

    Args:
        net: the controller, whose states go on from what they are.
        received: samples ``[T, 1, 3]``.
        target: ``[T, 1, 1]``.
    """
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    last, chunk = torch.zeros_like(received[0]), []
    before = tt.get_states(net)
    losses, seconds = [], []
    for now, sample in enumerate(received):
        start = time.thread_time()
        last = sample if sample.isfinite().all() else last
        with torch.no_grad():
            action = net(last)
        seconds.append(time.thread_time() - start)
        losses.append((action - target[now]).square().item())
        chunk.append(last)
        if len(chunk) == CHUNK:
            tt.set_states(net, before)
            y = tt.unroll(net, torch.stack(chunk))
            (y - target[now + 1 - CHUNK : now + 1]).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            tt.detach_states(net)
            before, chunk = tt.get_states(net), []
    return losses, seconds


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the stream, then save, resume, restart and export it.

    Args:
        arguments: of the command line; those of the process where ``None``.
    """
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--steps", type=int, default=20_000, help="samples of the stream")
    parser.add_argument("--out", type=Path, default=Path("runs/stream"), help="folder for files")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    torch.set_num_threads(1)  # the fastest for a batch of one

    net = network()
    received, target = signals(options.steps)
    losses, seconds = run(net, received, target)
    tenth = max(1, options.steps // 10)
    print(f"loss of the first tenth {statistics.mean(losses[:tenth]):.3f}, ", end="")
    print(f"of the last {statistics.mean(losses[-tenth:]):.3f}")
    print(f"a step {1e3 * statistics.median(seconds):.3f} ms of CPU")

    # another process would do the same
    tt.save(net, options.out / "controller.safetensors", states=True)
    again = network()
    tt.load(options.out / "controller.safetensors", again, states=True)
    samples = torch.randn(100, 1, 3)
    with torch.no_grad():
        print("resumed, equal:", all(torch.equal(net(x), again(x)) for x in samples))

        # eight environments, two of which end
        tt.zero_states(net)
        for x in torch.randn(50, 8, 3):
            net(x)
        tt.zero_states(net, where=torch.arange(8) < 2)
        print("at rest:", int((tt.get_states(net)["1.mem"] == 0).all(1).sum()), "of 8")

        # ONNX goes on from the states of the stream
        tt.export.onnx(net, options.out / "controller.onnx", samples[0])
        stream = tt.export.OnnxStream(options.out / "controller.onnx")
        stream.set_states(tt.get_states(net))
        x = torch.randn(8, 3)
        print(f"ONNX differs by {(net(x) - stream(x)).abs().max().item():.0e}")


if __name__ == "__main__":
    main()
