"""Convert a node of NIR to the module that computes it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from tracetorch import snn
from tracetorch.nir.graph import LAYER, LINEAR, MEMBRANES, Node, Shape, naming
from tracetorch.nir.layer_parameters import make_layer, write_values
from tracetorch.nir.modules import Across, DelayLine, Rescale, Spike
from tracetorch.nir.neurons import Membrane
from tracetorch.nir.options import Array, Clock, Reset
from tracetorch.nir.shapes import flattened_dims

MAX_DELAY = 10_000  # steps in one graph; each is a module, and a copy of what it holds
# How far a gain may lie from one that is one but for rounding, in float64 and in float32.
_ROUNDING = (1e-12, 1e-6)
# By whether a layer has a synapse and a threshold, where its membrane averages.
_LAYERS = {
    (False, False): snn.Readout,
    (True, False): snn.SReadout,
    (False, True): snn.LIF,
    (True, True): snn.SLIF,
}


def module_of(name: str, node: Node, shape: Shape, clock: Clock, reset: Reset) -> nn.Module:
    """Return the module that computes ``node`` for inputs of ``shape``; all parameters can learn.

    Raises:
        ValueError: NIR can say it, traceTorch cannot do it; the node is named.
    """
    with naming(name, node.kind):
        if node.kind == LAYER:
            layer: nn.Module = node.settings["layer"]
            return layer
        if node.kind in MEMBRANES:
            return _membrane(node, shape, clock, reset)
        if node.kind in LINEAR:
            return _linear(node)
        s = node.settings
        match node.kind:
            case "Delay":
                return _delay(node, shape, clock)
            case "Scale":
                return Rescale(_one_or_all(node.arrays["scale"]))
            case "Threshold":
                return Spike(_one_or_all(node.arrays["threshold"]))
            case "Flatten":
                start, end = flattened_dims(node, shape)
                return nn.Flatten(start + 1, end + 1)  # behind the batch
            case "AvgPool2d" | "SumPool2d":
                divisor = 1 if node.kind == "SumPool2d" else None  # a sum is a mean over one
                return nn.AvgPool2d(
                    s["kernel_size"], s["stride"], s["padding"], divisor_override=divisor
                )
        return nn.Identity()  # an Input or an Output


def _linear(node: Node) -> nn.Module:
    weight, s, bias = node.arrays["weight"], node.settings, "bias" in node.arrays
    inputs, outputs = weight.shape[1], weight.shape[0]
    module: nn.Module
    # on "meta": no memory and no random numbers for what is replaced below
    if node.kind in ("Affine", "Linear"):
        module = nn.Linear(inputs, outputs, bias, device="meta")
    else:
        options = {name: s[name] for name in ("stride", "padding", "dilation", "groups")}
        kind = nn.Conv1d if node.kind == "Conv1d" else nn.Conv2d
        channels, kernel = inputs * s["groups"], weight.shape[2:]
        module = kind(channels, outputs, kernel, bias=bias, device="meta", **options)
    for name, value in node.arrays.items():
        setattr(module, name, nn.Parameter(torch.from_numpy(value.copy())))
    return module


def _delay(node: Node, shape: Shape, clock: Clock) -> nn.Module:
    delay = node.arrays["delay"].astype(np.float64)
    steps = np.rint(delay / clock.dt)
    if steps.max() > MAX_DELAY:
        raise ValueError(
            f"a delay of {delay.max()} s is {steps.max():.0f} steps of {clock.dt} s, more than "
            f"{MAX_DELAY}."
        )
    error = abs(steps * clock.dt - delay)
    if (error > 1e-6 * (delay + clock.dt)).any():
        raise ValueError(
            f"delays must be whole steps of dt={clock.dt} s, got {delay.flat[error.argmax()]} s."
        )
    return DelayLine(_one_or_all(steps.astype(np.int64)), shape)


def _one_or_all(value: Array) -> Tensor:
    """Return one value for all as a number, whatever its shape: it takes no memory then."""
    return torch.from_numpy(np.array(value.reshape(()) if value.size == 1 else value))


def _membrane(node: Node, shape: Shape, clock: Clock, reset: Reset) -> nn.Module:
    rounding = _ROUNDING[any(value.dtype == np.float32 for value in node.arrays.values())]
    arrays = {name: value.astype(np.float64) for name, value in node.arrays.items()}
    dim, values = _along_one_dim(arrays, shape)
    if "v_threshold" in values:
        values.setdefault("v_reset", np.zeros_like(values["v_threshold"]))
    for tau, decay in (("tau", "beta"), ("tau_mem", "beta"), ("tau_syn", "alpha")):
        if tau in values:
            values[decay] = _complement(tau, values.pop(tau), clock, rounding)
    if "alpha" in values:
        values.setdefault("w_in", np.ones_like(values["alpha"]))
    size = int(np.prod(shape, dtype=np.int64)) if dim is None else shape[dim]
    layer: snn.Neuron | None = _own_layer(values, size, -1 if dim is None else dim, reset, rounding)
    if layer is None:
        tensors = {name: torch.from_numpy(np.array(value)) for name, value in values.items()}
        layer = Membrane(size, -1 if dim is None else dim, tensors, dt=clock.dt, reset=reset)
    return Across(layer, len(shape)) if dim is None else layer


def _complement(name: str, tau: Array, clock: Clock, rounding: float) -> Array:
    complement = clock.complement(tau)
    complement = np.where(abs(complement - 1) <= rounding, 1.0, complement)  # a tau of one step
    if (complement > 1).any():
        raise ValueError(
            f"{name} of {tau.min():.3g} s is shorter than a step of {clock.dt} s. Take dt <= tau, "
            "or discretization='exponential'."
        )
    if not (complement > 0).all():
        raise ValueError(f"{name} is so long that dt={clock.dt} s does nothing beside it.")
    return complement


def _along_one_dim(
    arrays: Mapping[str, Array], shape: Shape
) -> tuple[int | None, dict[str, Array]]:
    """Return the dimension along which neurons differ, and their values there.

    One value for all comes back as a number. Where neurons differ along several dimensions, there
    is no such dimension, and the values come back flat.
    """
    values = {name: value.reshape(()) for name, value in arrays.items() if value.size == 1}
    full = {name: value for name, value in arrays.items() if value.size > 1}
    if not full:
        return -1, values
    for axis in range(len(shape)):
        rows = {n: np.moveaxis(v, axis, 0).reshape(shape[axis], -1) for n, v in full.items()}
        if all((row == row[:, :1]).all() for row in rows.values()):
            return axis - len(shape), values | {name: row[:, 0] for name, row in rows.items()}
    return None, values | {name: value.reshape(-1) for name, value in full.items()}


def _own_layer(
    values: dict[str, Array], size: int, dim: int, reset: Reset, rounding: float
) -> snn.LeakyIntegrator | None:
    """Return one of our layers that computes the same, or ``None`` where none does."""
    rests = [values[name] for name in ("v_leak", "v_reset") if name in values]
    if "beta" not in values or any(rest.any() for rest in rests):
        return None
    own: dict[str, Array] = {}
    averaging = []
    for decay, gain in (("alpha", "w_in"), ("beta", "r")):
        if decay not in values:
            continue
        own[decay] = values[decay]
        if np.allclose(values[gain], 1.0, rtol=0.0, atol=rounding):
            averaging.append(decay)
        elif not np.allclose(values[gain] * values[decay], 1.0, rtol=0.0, atol=rounding):
            return None
    if "v_threshold" in values:
        if not (values["v_threshold"] > 0).all():
            return None
        own["pos_threshold"] = values["v_threshold"]
    spiking = "pos_threshold" in own
    named = spiking or "beta" in averaging  # readouts average
    kind = _LAYERS["alpha" in own, spiking] if named else snn.LeakyIntegrator
    tensors = {
        name: torch.from_numpy(np.array(value if name == "pos_threshold" else 1 - value))
        for name, value in own.items()
    }
    layer = make_layer(kind, size, dim, tensors, averaging, reset if spiking else "subtract")
    write_values(layer, own)
    return layer
