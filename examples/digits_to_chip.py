"""Digits on a chip: trained in floats, then through Xylo's integers, which C is compared with.

Xylo 2 has 16 inputs and 8 outputs: digits 0 to 7, as spikes of 4 by 4 pixels. The integers are
tried in two forms on every held-out digit, and must fire the same spikes: as the model, which fits
the chip and equals its simulator, and as a program in C that reads spikes and writes spikes, as one
on a microcontroller would. Needs a C compiler, ``cc``.

``python -m examples.digits_to_chip`` takes about fifteen seconds of one core.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, cross_entropy
from torch.utils.data import TensorDataset

import tracetorch as tt
from examples.compiled_digits import outputs_of_c
from tracetorch import chips, snn
from tracetorch.chips.xylo import XYLO_2
from tracetorch.quantize import Report

Samples: TypeAlias = tuple[Tensor, Tensor]
"""Spikes ``[T, N, 16]`` and classes ``[N]``."""

INPUTS, HIDDEN, OUTPUTS = 16, 60, 8
"""Inputs and outputs are all that Xylo 2 has; of hidden neurons it has 1,000."""

STEPS = 20
"""Time steps for which a digit is shown."""


def spikes_of(data: TensorDataset) -> Samples:
    """Turn images into spikes: 4 by 4 pixels, each of which fires with its brightness.

    Args:
        data: images ``[1, 28, 28]`` of digits, of which 0 to 7 are kept, and their classes.
    """
    images, classes = data.tensors
    few = classes < OUTPUTS
    # the border of four pixels is empty
    pixels = avg_pool2d(images[few, :, 4:24, 4:24], 5).flatten(1)
    return tt.encode.rate(pixels / pixels.amax(1, keepdim=True), STEPS), classes[few]


def network() -> nn.Sequential:
    """Return the network in floats: neurons with a synapse, as the chip's have one."""
    return nn.Sequential(
        nn.Linear(INPUTS, HIDDEN),
        snn.SLIF(HIDDEN, beta=0.875),
        nn.Linear(HIDDEN, OUTPUTS),
        snn.SLIF(OUTPUTS),
    )


def train(model: nn.Module, data: Samples, epochs: int, rate: float) -> None:
    """Train on the numbers of output spikes; the model is one of floats or of integers.

    Args:
        model: from :func:`network`, or from ``tt.quantize.prepare``.
        data: spikes and classes.
        epochs: passes over the data.
        rate: of Adam.
    """
    x, classes = data
    optimizer = torch.optim.Adam(model.parameters(), rate)
    for _ in range(epochs):
        for index in torch.randperm(len(classes)).split(200):
            counts = tt.unroll(model, x[:, index], from_rest=True).sum(0)
            optimizer.zero_grad()
            cross_entropy(counts / 2, classes[index]).backward()
            optimizer.step()


def trained(data: Samples, epochs: int) -> tuple[nn.Sequential, nn.Module, nn.Module, Report]:
    """Train; return the network in floats, its integers at once, those trained on, their report.

    Args:
        data: spikes and classes.
        epochs: passes over the data in floats; half as many follow in integers.
    """
    net = network()
    sample = data[0][:, :500]
    tt.init.calibrate_(net, sample)
    train(net, data, epochs, 2e-2)
    prepared = tt.quantize.prepare(net, sample, XYLO_2)
    at_once, _ = tt.quantize.convert(prepared)
    train(prepared, data, epochs // 2, 1e-2)
    model, report = tt.quantize.convert(prepared)
    return net, at_once, model, report


@torch.no_grad()
def fired(model: nn.Module, x: Tensor) -> Tensor:
    """Return the output spikes ``[T, N, 8]``, each sample from rest."""
    spikes: Tensor = tt.unroll(model, x, from_rest=True)
    return spikes


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, quantise, export and compare; return 1 where a spike differs.

    Args:
        arguments: of the command line; those of the process where ``None``.
    """
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--epochs", type=int, default=20, help="passes over the data, in floats")
    parser.add_argument("--seed", type=int, default=0, help="of weights, spikes and order")
    parser.add_argument("--out", type=Path, default=Path("runs/digits_to_chip"), help="folder")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(options.seed)
    torch.set_num_threads(1)

    digits = tt.data.load_digits()
    data, (x, classes) = spikes_of(digits.train), spikes_of(digits.held_out)
    net, at_once, model, report = trained(data, options.epochs)
    print(report)
    for name, each in {"floats": net, "integers at once": at_once, "trained on": model}.items():
        print(f"{name}: {tt.metrics.accuracy(fired(each, x), classes):.1%} of {len(classes)} right")

    spikes = fired(model, x)
    arrays = chips.xylo.configuration(model)
    sizes = {name: value.shape for name, value in arrays.items() if "weights" in name}
    print(f"the chip's arrays: {sizes}")
    by_c = torch.equal(outputs_of_c(model, x, options.out / "c", 8), spikes)
    print(f"{int(spikes.sum()):,} spikes; equal by C: {by_c}")
    return 0 if by_c and not report.misfits else 1


if __name__ == "__main__":
    sys.exit(main())
