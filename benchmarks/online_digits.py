"""Train on rows of digits online and by backpropagation through time, and compare the accuracies.

``python -m benchmarks.online_digits``. A neuron's reset is the one path that ``"eprop"`` drops in
this network; with ``detach_reset=True`` backpropagation leaves it out, too.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from typing import get_args

import torch
from torch import nn
from torch.nn.functional import cross_entropy

import tracetorch as tt
from tracetorch import snn
from tracetorch.online_learning.rules import Rule

_BATCH = 60


def network(detach_reset: bool) -> nn.Sequential:
    """Build a spiking layer and a readout whose neurons share a decay."""
    hidden = snn.LIF(64, 0.95, detach_reset=detach_reset)
    return nn.Sequential(nn.Linear(28, 64), hidden, nn.Linear(64, 10), snn.Readout(10, beta_rank=0))


def accuracy(
    rule: Rule | None, epochs: int, seed: int, rate: float, *, detach_reset: bool = False
) -> float:
    """Train by a rule, or by backpropagation through time; return the held-out accuracy in %."""
    digits = tt.data.load_digits()
    (rows, labels), (held_out, targets) = digits.train.tensors, digits.held_out.tensors
    rows, held_out = (each.squeeze(1).transpose(0, 1) for each in (rows, held_out))
    torch.manual_seed(seed)
    net = network(detach_reset)
    learner = net if rule is None else tt.online(net, rule)
    optimizer = torch.optim.Adam(net.parameters(), rate)
    for _ in range(epochs):
        for index in torch.randperm(len(labels)).split(_BATCH):
            x = rows[:, index]
            y = tt.unroll(net, x)[-1] if rule is None else [learner(step) for step in x][-1]
            cross_entropy(y, labels[index]).backward()
            tt.zero_states(learner)
            optimizer.step()
            optimizer.zero_grad()
    with torch.no_grad():
        y = tt.unroll(net, held_out, from_rest=True)[-1]
    return float((y.argmax(-1) == targets).double().mean()) * 100


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, and print a line for each rule."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, nargs="+", default=[2, 10])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--rate", type=float, default=5e-2, help="learning rate of Adam")
    parser.add_argument("--rules", nargs="*", default=["exact", "eprop"], choices=get_args(Rule))
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    for epochs in options.epochs:
        for rule, detached in [(None, False), (None, True), *((r, False) for r in options.rules)]:
            start = time.perf_counter()
            found = [
                accuracy(rule, epochs, seed, options.rate, detach_reset=detached)
                for seed in options.seeds
            ]
            name = rule or ("by time, reset detached" if detached else "by time")
            cells = " ".join(f"{each:5.1f}" for each in found)
            print(
                f"{epochs:>3} epochs  {name:24} {cells}  {time.perf_counter() - start:5.0f} s",
                flush=True,
            )


if __name__ == "__main__":
    main()
