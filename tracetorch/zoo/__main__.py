"""Verify, train and record the zoo: ``python -m tracetorch.zoo``."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence

from tracetorch import zoo
from tracetorch.zoo.measure import measure
from tracetorch.zoo.networks import NETWORKS
from tracetorch.zoo.record import record, refresh
from tracetorch.zoo.training import train_on


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status is 0 where all networks are as recorded."""
    parser = argparse.ArgumentParser(
        "python -m tracetorch.zoo",
        description="Verify the networks of the zoo; refresh the hashes of their code, where that "
        "has changed and computes the same; or train them anew from their seeds, each of which "
        "must land in the interval of its card.",
    )
    parser.add_argument("command", choices=("verify", "refresh", "train"))
    parser.add_argument("names", nargs="*", choices=[[], *NETWORKS], metavar="NAME", help="(all)")
    parser.add_argument(
        "--record",
        action="store_true",
        help="with train: train from five seeds, and replace file and card",
    )
    options = parser.parse_args(arguments)
    names = options.names or list(NETWORKS)
    if options.record and options.command != "train":
        parser.error("argument --record: only with train")
    if options.command != "train":
        report = zoo.verify(names)
        print(report)
        if options.command == "refresh":
            for verdict in report.verdicts:
                if verdict.ok and verdict.reason:
                    refresh(verdict.name)
        return 0 if report.ok else 1
    if options.record:
        for name in names:
            made = record(name)
            shares = ", ".join(f"{share:.3f}" for share in made.accuracies)
            print(f"{name}: {shares}; {made.num_bytes / 1000:.0f} kB", flush=True)
        return 0
    return max([_train(name) for name in names])


def _train(name: str) -> int:
    """Train a network from its seed; return 0 where it lands in the interval of its card."""
    network, (low, high) = NETWORKS[name], zoo.card(name).interval
    start = time.perf_counter()
    data = network.task.load()
    numbers = measure(train_on(network, data, network.recipe.seed), network.task, data[1])
    accuracy = numbers.correct / numbers.samples
    lands = low <= accuracy <= high
    print(
        f"{name}: {accuracy:.3f} is {'' if lands else 'not '}in {low:.3f} to {high:.3f}; "
        f"{time.perf_counter() - start:.0f} s",
        flush=True,
    )
    return 0 if lands else 1


if __name__ == "__main__":
    sys.exit(main())
