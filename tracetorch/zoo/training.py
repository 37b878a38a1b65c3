"""Train a network of the zoo by its recipe."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from tracetorch.chips import xylo
from tracetorch.core.checks import check_integer
from tracetorch.data.ragged import Batch
from tracetorch.init import calibrate_
from tracetorch.loss import count_cross_entropy, membrane_cross_entropy
from tracetorch.quantize import convert, prepare
from tracetorch.snn.delay import DelayedLinear
from tracetorch.snn.param_groups import param_groups
from tracetorch.unrolling import unroll
from tracetorch.zoo.networks import IntegerRecipe, Network, network, usual_defaults
from tracetorch.zoo.tasks import Data

_CALIBRATION = 200  # samples
_LOSSES: dict[str, Callable[..., Tensor]] = {
    "rate": partial(membrane_cross_entropy, over="mean"),
    "last": partial(membrane_cross_entropy, over="last"),
    "count": count_cross_entropy,
}


@usual_defaults()
def train(name: str, seed: int | None = None) -> nn.Module:
    """Train a network of the zoo anew, from a seed, as its file was trained.

    PyTorch's random numbers are afterwards where they were before.

    Args:
        name: one of :func:`names`.
        seed: another than that of the recipe.

    Returns:
        The network, in evaluation mode, at rest.

    Raises:
        TypeError: ``seed`` is not an integer.
        ValueError: there is no such network.
        ModuleNotFoundError: the package that brings the data is missing.

    Example:
        >>> train("nothing")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ValueError: there is no network 'nothing' in the zoo. It has ...
    """
    found = network(name)
    seed = found.recipe.seed if seed is None else check_integer("seed", seed)
    return train_on(found, found.task.load(), seed)


@usual_defaults()
def train_on(network: Network, data: Data, seed: int) -> nn.Module:
    """Train a network on the first of two batches; as :func:`train`."""
    recipe, task = network.recipe, network.task
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = (network.floats or network.build)()
        x, _, mask = task.batch(data[0], slice(_CALIBRATION))
        if recipe.calibrate:
            calibrate_(model, x, mask=None if task.steps else mask)
        _fit(model, network, data[0], recipe.epochs, recipe.lr, relative=recipe.calibrate)
        _sharpen(model, 1.0)
        if isinstance(recipe, IntegerRecipe):
            prepared = prepare(model, x, xylo.XYLO_2)
            # its weights have units of their own, to which calibration means nothing
            _fit(prepared, network, data[0], recipe.integer_epochs, recipe.integer_lr)
            model = nn.Sequential(*convert(prepared)[0])
    return model.eval().requires_grad_(True)


def _fit(
    model: nn.Module,
    network: Network,
    data: Batch,
    epochs: int,
    lr: float,
    *,
    relative: bool = False,
) -> None:
    """Train a model for some passes, one cycle of the learning rate."""
    recipe, task, size = network.recipe, network.task, len(data.y)
    options = {"decay_biases": True, "relative": relative}  # as the recorded networks were trained
    groups = param_groups(model, recipe.weight_decay, lr=lr, **options)
    optimizer = torch.optim.AdamW(groups, lr=lr)
    total = epochs * -(-size // recipe.batch_size)
    rates = [group["lr"] for group in optimizer.param_groups]
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rates, total_steps=total)
    loss_of = _LOSSES[task.by]
    model.train()
    done = 0
    for _ in range(epochs):
        for index in torch.split(torch.randperm(size), recipe.batch_size):
            _sharpen(model, done / total)
            done += 1
            x, y, mask = task.batch(data, index)
            loss = loss_of(
                unroll(model, x, from_rest=True),
                y,
                mask=None if task.steps else mask,
                label_smoothing=recipe.label_smoothing,
            )
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()


def _sharpen(model: nn.Module, progress: float) -> None:
    """Narrow the interpolation of learned delays, in the first half of a training."""
    for layer in model.modules():
        if isinstance(layer, DelayedLinear):
            widest = layer.max_delay / 2
            layer.sigma = max(0.5, widest * (0.5 / widest) ** min(1.0, 2 * progress))
            if progress >= 1:
                layer.round_()
