"""``Recipe``: with which settings a network of the zoo is trained, and from which seed."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Recipe:
    """Settings of a training: AdamW, one cycle of the learning rate, cross entropy.

    Args:
        epochs: passes over the training data.
        batch_size: samples per step of the optimizer.
        lr: highest learning rate.
        calibrate: whether the weights are calibrated first, and each has a rate of its size
            (``tt.init.calibrate_``, ``tt.param_groups(..., relative=True)``).
        label_smoothing: of the cross entropy.
        weight_decay: of all but the parameters of neurons.
        seed: of the weights, the order of the samples and the dropout.

    Example:
        >>> Recipe(epochs=5, batch_size=50, lr=1e-2).seed
        0
    """

    epochs: int
    batch_size: int
    lr: float
    calibrate: bool = True
    label_smoothing: float = 0.1
    weight_decay: float = 1e-2
    seed: int = 0


@dataclass(frozen=True)
class IntegerRecipe(Recipe):
    """Settings of a training whose network becomes one of integers, for Xylo.

    Floats are trained first; then ``tt.quantize.prepare`` makes integers of them, through which
    they are trained on; ``tt.quantize.convert`` keeps the integers.

    Args:
        epochs, lr, calibrate: of the training in floats, as in :class:`Recipe`.
        batch_size, label_smoothing, weight_decay, seed: of both, as there.
        integer_epochs: passes through the integers.
        integer_lr: highest learning rate in these.

    Example:
        >>> IntegerRecipe(6, 50, 1e-2, integer_epochs=10).epochs
        6
    """

    integer_epochs: int = 10
    integer_lr: float = 8e-3
