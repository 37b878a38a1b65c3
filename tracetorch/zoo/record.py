"""Train a network of the zoo from several seeds, and write its file and card."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import date

import torch
from torch import Tensor

from tracetorch.checkpoint import save
from tracetorch.core.files import atomic_replace_all
from tracetorch.core.version import __version__
from tracetorch.zoo import files
from tracetorch.zoo.card import Card, interval
from tracetorch.zoo.measure import BATCH, measure
from tracetorch.zoo.networks import network, usual_defaults
from tracetorch.zoo.tasks import data_hash
from tracetorch.zoo.training import train_on

SEEDS = 5


@usual_defaults()
def record(name: str) -> Card:
    """Train from five seeds, the recipe's first, whose network becomes the file; write the card."""
    found = network(name)
    data = found.task.load()
    first = found.recipe.seed
    path = files.file_of(name)
    trained = [train_on(found, data, first + number) for number in range(SEEDS)]
    with atomic_replace_all([path, path.with_suffix(".json")]) as (tensors, text):
        save(trained[0], tensors)
        numbers = [measure(model, found.task, data[1]) for model in trained]
        learned: list[Tensor] = [*trained[0].parameters()]
        values = learned or [*trained[0].buffers()]  # of a network of integers
        accuracies = [each.correct / each.samples for each in numbers]
        written = Card(
            name=name,
            task=found.task.title,
            description=found.description,
            recipe=asdict(found.recipe),
            parameters=sum(each.numel() for each in values),
            accuracies=accuracies,
            interval=interval(accuracies, numbers[0].samples),
            **asdict(numbers[0]),
            batch=BATCH,
            num_bytes=tensors.stat().st_size,
            file_hash=files.file_hash(tensors),
            data_hash=data_hash(data),
            torch=torch.__version__,
            tracetorch=__version__,
            date=date.today().isoformat(),
        )
        text.write_text(json.dumps(asdict(written), indent=1) + "\n", encoding="utf-8")
    return written
