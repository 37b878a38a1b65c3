"""Read the parameters of neuron layers as NIR has them, and make layers that have them exactly."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 (PyTorch's own convention)
from numpy.typing import NDArray
from torch import Tensor

from tracetorch.functional import softplus_inverse
from tracetorch.nir.graph import Shape
from tracetorch.nir.options import Array
from tracetorch.snn import Decay, LeakyIntegrator, Neuron, Weight

DECAYS = ("alpha", "beta", "gamma")
# sigmoid(-60) is 1e-26: nothing beside an input in float64, and still not a zero to divide by
_MIN_LOGIT = -60.0


def read_values(layer: Neuron, shape: Shape) -> dict[str, Array]:
    """Return the parameters in float64, over the shape of the layer's input.

    Of decays it is the complement ``1 - decay``, of thresholds the magnitude.
    """
    values = {}
    for name, constraint in layer._constraints.items():
        raw = getattr(layer, f"raw_{name}").detach().to("cpu", torch.float64)
        if constraint is Decay.constraint:
            raw = torch.sigmoid(-raw)
        elif constraint is not Weight.constraint:
            raw = F.softplus(raw)
        if raw.ndim:
            raw = raw.reshape(-1, *[1] * (-neuron_dim(layer, shape) - 1))
        values[name] = raw.expand(shape).numpy()
    return values


def write_values(layer: Neuron, values: Mapping[str, Array]) -> None:
    """Set parameters, given as :func:`read_values` has them, to the last digit in float64.

    A constructor keeps them in the default dtype, and moves a decay that touches 0 or 1.
    """
    layer.to(torch.float64)
    for name, value in values.items():
        raw = torch.from_numpy(np.array(value, np.float64))
        if layer._constraints[name] is Decay.constraint:
            raw = (torch.log1p(-raw) - torch.log(raw)).clamp(min=_MIN_LOGIT)
        elif layer._constraints[name] is not Weight.constraint:
            raw = softplus_inverse(raw)
        with torch.no_grad():
            getattr(layer, f"raw_{name}").copy_(raw)


def make_layer(
    kind: type[LeakyIntegrator],
    num_neurons: int,
    dim: int,
    values: Mapping[str, Tensor],
    averaging: Collection[str],
    reset: str,
) -> LeakyIntegrator:
    """Construct a layer with these parameters, decays as such, some of them ``averaging``."""
    options: dict[str, Any] = {"dim": dim, "reset": reset, **values}
    options |= {f"{name}_ema": name in averaging for name in DECAYS if name in values}
    for name, value in values.items():
        options[f"{name}_setup"] = {"value": value}
        if name in DECAYS:
            options[f"{name}_setup"]["use_averaging"] = name in averaging
    accepted = inspect.signature(kind).parameters
    layer = kind(num_neurons, **{name: options[name] for name in options if name in accepted})
    # Not every constructor has all of these as arguments; they may be assigned on any layer.
    for name in DECAYS:
        setattr(layer, f"{name}_ema", name in averaging)
    layer.reset = reset
    return layer


def neuron_dim(layer: Neuron, shape: Shape) -> int:
    """Return the neuron dimension counted from the end, where a batch does not move it."""
    return layer.dim if layer.dim < 0 else layer.dim - len(shape) - 1


def to_array(value: Tensor) -> NDArray[Any]:
    """Return a tensor as NIR keeps it: float64 and float32 as they are, others in float32."""
    double = value.dtype == torch.float64
    return np.array(value.detach().to("cpu", torch.float64 if double else torch.float32).numpy())
