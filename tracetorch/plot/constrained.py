"""The decays and the thresholds of neuron layers, as they stand in the equations."""

from __future__ import annotations

from torch import Tensor, nn

from tracetorch.core.walk import named_modules
from tracetorch.snn.neuron import Neuron
from tracetorch.snn.parameters import Constraint, negative_softplus, sigmoid, softplus


def thresholds(layer: Neuron) -> dict[str, Tensor]:
    """The thresholds of a layer by name; those below zero are negative."""
    return _of(layer, (softplus, negative_softplus))


def decays(model: nn.Module) -> dict[str, Tensor]:
    """Every decay of every neuron layer by path, copied: what the model is now.

    Take them before training, and give both to :func:`tracetorch.plot.halflives`.

    Args:
        model: any ``nn.Module``.

    Raises:
        TypeError: ``model`` is no module.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 3), SLIF(3, alpha=0.5, beta=0.9))
        >>> decays(net)
        {'1.alpha': tensor([0.5000, 0.5000, 0.5000]), '1.beta': tensor([0.9000, 0.9000, 0.9000])}

    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"decays takes an nn.Module, got {type(model).__name__}.")
    return {
        f"{path}.{name}" if path else name: value
        for path, layer in named_modules(model)
        if isinstance(layer, Neuron)
        for name, value in _of(layer, (sigmoid,)).items()
    }


def _of(layer: Neuron, constraints: tuple[Constraint, ...]) -> dict[str, Tensor]:
    return {
        name: getattr(layer, name).detach().clone()
        for name, constraint in layer.constraints.items()
        if constraint in constraints
    }
