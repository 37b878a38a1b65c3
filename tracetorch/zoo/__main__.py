"""Verify, train and record the zoo: ``python -m tracetorch.zoo``."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence

from tracetorch import zoo
from tracetorch.zoo.measure import measure
from tracetorch.zoo.networks import NETWORKS
from tracetorch.zoo.record import record
from tracetorch.zoo.training import train_on


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status is 0 where all networks are as recorded."""
    parser = argparse.ArgumentParser(
        "python -m tracetorch.zoo",
        description="Verify the networks of the zoo, or train them anew from their seeds, each of "
        "which must land in the interval of its card.",
    )
    parser.add_argument("command", choices=("verify", "train"))
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
    if options.command == "verify":
        report = zoo.verify(names)
        print(report)
        return 0 if report.ok else 1
    all_land = True
    for name in names:
        start = time.perf_counter()
        if options.record:
            made = record(name)
            shares = ", ".join(f"{share:.3f}" for share in made.accuracies)
            print(f"{name}: {shares}; {made.num_bytes / 1000:.0f} kB", flush=True)
            continue
        network, (low, high) = NETWORKS[name], zoo.card(name).interval
        data = network.task.load()
        numbers = measure(train_on(network, data, network.recipe.seed), network.task, data[1])
        accuracy = numbers.correct / numbers.samples
        lands = low <= accuracy <= high
        all_land = all_land and lands
        print(
            f"{name}: {accuracy:.3f} is {'' if lands else 'not '}in {low:.3f} to {high:.3f}; "
            f"{time.perf_counter() - start:.0f} s",
            flush=True,
        )
    return 0 if all_land else 1


if __name__ == "__main__":
    sys.exit(main())
