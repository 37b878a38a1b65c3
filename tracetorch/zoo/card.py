"""Cards: what was recorded of each network when its file was made."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tracetorch.zoo import files
from tracetorch.zoo.networks import NETWORKS, network

_NORMAL = 2.58  # quantile for 99 %
# Student's, for 99 %, of one degree of freedom and more: a deviation of few seeds is uncertain
_STUDENT = (63.66, 9.92, 5.84, 4.60, 4.03, 3.71, 3.50, 3.36, 3.25)


@dataclass(frozen=True)
class Card:
    """Record of a network of the zoo: accuracy, spikes, recipe, hashes.

    Args:
        name: of the network.
        task: what it classifies.
        description: what it is made of.
        recipe: with what it was trained, the seed of the file among it.
        parameters: number of its parameters.
        accuracies: share of the test samples that are classified correctly, of a training from
            each of several seeds; the first is of the file.
        interval: in which the accuracy of a new training lies, from another seed and on another
            test set of this size.
        correct: test samples that the file's network classifies correctly, in float64.
        samples: all test samples.
        spikes: of every spiking layer, by path, on the test batch.
        output: mean absolute output on the test batch.
        batch: samples of the test batch.
        num_bytes: size of the file.
        file_hash: SHA-256 of the file.
        data_hash: of training and test data.
        torch: version that trained it.
        tracetorch: version that trained it.
        date: on which it was recorded.

    Example:
        >>> card("rows-lif").samples
        1000
    """

    name: str
    task: str
    description: str
    recipe: Mapping[str, Any]
    parameters: int
    accuracies: Sequence[float]
    interval: Sequence[float]
    correct: int
    samples: int
    spikes: Mapping[str, int]
    output: float
    batch: int
    num_bytes: int
    file_hash: str
    data_hash: str
    torch: str
    tracetorch: str
    date: str

    @property
    def accuracy(self) -> float:
        """Share of the test samples that the network of the file classifies correctly."""
        return self.correct / self.samples

    @property
    def spikes_per_sample(self) -> float:
        """Spikes of all layers for a sample of the test batch."""
        return sum(self.spikes.values()) / self.batch


def names() -> tuple[str, ...]:
    """Return the names of the networks in the zoo.

    Example:
        >>> names()[0]
        'digits-lif'
    """
    return tuple(NETWORKS)


def card(name: str) -> Card:
    """Return the card of a network: accuracy with its interval, spikes, recipe, hashes.

    Args:
        name: one of :func:`names`.

    Raises:
        ValueError: there is no such network, or its card is damaged.

    Example:
        >>> found = card("rows-lif")
        >>> found.parameters, found.recipe["epochs"], 0.8 < found.accuracy < 1
        (22036, 5, True)
    """
    network(name)
    path = files.FOLDER / f"{name}.json"
    try:
        recorded = json.loads(path.read_text(encoding="utf-8"))
        recorded.pop("code_hash", None)  # which older cards have, and nothing reads
        return Card(**recorded)
    except (ValueError, TypeError, AttributeError) as error:  # cut, or with other fields
        raise ValueError(
            f"{path} is damaged: {error}. Install traceTorch again, or restore the file in a clone."
        ) from error


def interval(accuracies: Sequence[float], samples: int) -> tuple[float, float]:
    """Return where 99 % of new trainings land: the formula of the package, for two to ten seeds."""
    mean = statistics.mean(accuracies)
    of_seeds = statistics.variance(accuracies) * (1 + 1 / len(accuracies))
    of_tests = 2 * mean * (1 - mean) / samples
    student = _STUDENT[len(accuracies) - 2]
    half = math.sqrt(student**2 * of_seeds + _NORMAL**2 * of_tests)
    return max(0.0, mean - half), min(1.0, mean + half)


def table() -> str:
    """Return the zoo as a Markdown table, from the cards.

    Example:
        >>> print(table().partition("|---")[0].strip())
        | name | task | network | accuracy | a new training | parameters | spikes | kB |
    """
    lines = [
        "| name | task | network | accuracy | a new training | parameters | spikes | kB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for each in map(card, names()):
        low, high = each.interval
        lines.append(
            f"| `{each.name}` | {each.task} | {each.description} | {100 * each.accuracy:.1f} % "
            f"| {100 * low:.1f} to {100 * high:.1f} % | {each.parameters:,} "
            f"| {each.spikes_per_sample:,.0f} | {each.num_bytes / 1000:.0f} |"
        )
    return "\n".join(lines)
