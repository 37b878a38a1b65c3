"""Read the decays and thresholds of neuron layers: constrained values, as in the equations."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from tracetorch.cell import Constraint
from tracetorch.core.walk import join_path, named_modules
from tracetorch.snn.parameters import is_decay, negative_softplus, softplus
from tracetorch.snn.sequence_layer import SequenceLayer


def thresholds(layer: SequenceLayer) -> dict[str, Tensor]:
    """Return the thresholds of a layer by name; those for negative spikes are negative."""
    return _constrained_values(layer, (softplus, negative_softplus).__contains__)


def decays(model: nn.Module) -> dict[str, Tensor]:
    """Copy every decay of every neuron layer, by path.

    Copy them before and after training, and compare them with :func:`tracetorch.plot.halflives`.

    Args:
        model: any ``nn.Module``.

    Raises:
        TypeError: ``model`` is not an ``nn.Module``.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 3), SLIF(3, alpha=0.5, beta=0.9))
        >>> decays(net)
        {'1.alpha': tensor([0.5000, 0.5000, 0.5000]), '1.beta': tensor([0.9000, 0.9000, 0.9000])}
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"decays takes an nn.Module, got {type(model).__name__}.")
    return {
        join_path(path, name): value
        for path, layer in named_modules(model)
        if isinstance(layer, SequenceLayer)
        for name, value in _constrained_values(layer, is_decay).items()
    }


def _constrained_values(
    layer: SequenceLayer, wanted: Callable[[Constraint], bool]
) -> dict[str, Tensor]:
    """Copy the parameters of a layer whose constraints are wanted."""
    return {
        # cloned: training changes parameters in place
        name: getattr(layer, name).detach().clone()
        for name, constraint in layer.constraints.items()
        if wanted(constraint)
    }
