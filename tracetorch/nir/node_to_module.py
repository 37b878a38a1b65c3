"""Convert a node of NIR to the module that computes it."""

from __future__ import annotations

import math
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import nn

from tracetorch import snn
from tracetorch.nir.layer_nodes import write_values
from tracetorch.nir.modules import Membrane, PerElement
from tracetorch.nir.nodes import Array, Clock, Node, Reset, Shape, naming
from tracetorch.nir.wiring import Wiring

Values: TypeAlias = dict[str, Array]

_MAX_DELAY = 10_000  # steps; each is a copy of a sample
# How far a gain may lie from one that is one but for rounding, in float64 and in float32.
_ROUNDING = (1e-12, 1e-6)
# of the input of a node, without the batch
_DIMENSIONS = {"Affine": 1, "Linear": 1, "Conv1d": 2, "Conv2d": 3, "AvgPool2d": 3, "SumPool2d": 3}


def modules_of(
    nodes: dict[str, Node], wiring: Wiring, clock: Clock, reset: Reset
) -> dict[str, nn.Module]:
    """Return the module that computes each node, and note the shapes of their outputs."""
    modules: dict[str, nn.Module] = {}
    for name in wiring.order:
        node, sources = nodes[name], wiring.now[name]
        with naming(name, node.kind):
            shape = wiring.shapes[sources[0]] if sources else node.settings["shape"]
            _check_shapes([wiring.shapes[source] for source in sources], shape)
            _check_fits(node, shape)
            modules[name] = _module(node, shape, clock, reset)
            wiring.shapes[name] = _output_shape(modules[name], node, shape)
    for name, late in wiring.late.items():
        with naming(name, nodes[name].kind):
            _check_shapes([wiring.shapes[source] for source in late], wiring.input_shape(name))
    return modules


def _check_shapes(found: list[Shape], shape: Shape) -> None:
    if any(each != shape for each in found):
        raise ValueError(f"it adds up inputs of the shapes {sorted({shape, *found})}.")


def _check_fits(node: Node, shape: Shape) -> None:
    """Raise where a node takes another shape, as far as PyTorch would not."""
    declared, given = node.settings.get("shape") or node.settings.get("input_type"), shape
    if node.settings.get("input_shape") is not None:  # of the places of a convolution
        declared, given = node.settings["input_shape"], shape[1:]
    if declared not in (None, given):
        raise ValueError(f"it is declared for {list(declared)}, and gets {list(given)}.")
    if node.kind in _DIMENSIONS:
        if len(shape) != _DIMENSIONS[node.kind]:
            needed = f"it takes {_DIMENSIONS[node.kind]} dimensions"
            raise ValueError(f"{needed}, the input has shape {list(shape)}. Put a Flatten before.")
        weight, bias = node.arrays.get("weight"), node.arrays.get("bias")
        if weight is not None and bias is not None and bias.shape != weight.shape[:1]:
            raise ValueError(f"bias must have shape {[len(weight)]}, got {list(bias.shape)}.")
        return
    for name, value in node.arrays.items():
        if value.size != 1 and value.shape != shape:
            got = f"{name} has shape {list(value.shape)}, the input {list(shape)}"
            raise ValueError(f"{got}. NIR wants one value per element.")


def _output_shape(module: nn.Module, node: Node, shape: Shape) -> Shape:
    """Return the shape of an output, by a run without values."""
    if node.kind not in (*_DIMENSIONS, "Flatten"):
        return shape
    # in one dtype, for a file may mix them
    values = {n: p.to("meta", torch.float32) for n, p in module.named_parameters()}
    x = torch.empty(1, *shape, device="meta")
    return tuple(torch.func.functional_call(module, values, (x,)).shape[1:])


def _module(node: Node, shape: Shape, clock: Clock, reset: Reset) -> nn.Module:
    arrays, s = node.arrays, node.settings
    match node.kind:
        case "Affine" | "Linear" | "Conv1d" | "Conv2d":
            return _linear(node)
        case "AvgPool2d" | "SumPool2d":
            divisor = 1 if node.kind == "SumPool2d" else None  # a sum is a mean over one
            windows = s["kernel_size"], s["stride"], s["padding"]
            return nn.AvgPool2d(*windows, divisor_override=divisor)
        case "Delay":
            return _delay(arrays["delay"].astype(np.float64), shape, clock)
        case "Flatten":  # behind the batch
            start, end = (dim + (dim >= 0) for dim in (s["start_dim"], s["end_dim"]))
            return nn.Flatten(start, end)
        case "Input" | "Output":
            return nn.Identity()
        case "Scale" | "Threshold":
            field = node.kind.lower()
            value = arrays[field]  # one for all as a number, which takes no memory
            value = value.reshape(()) if value.size == 1 else value
            return PerElement(field, torch.from_numpy(np.array(value)))
    return _membrane(node, shape, clock, reset)


def _linear(node: Node) -> nn.Module:
    weight, s, bias = node.arrays["weight"], node.settings, "bias" in node.arrays
    outputs, inputs, *kernel = weight.shape
    module: nn.Module
    # on "meta": no memory and no random numbers for what is replaced below
    if node.kind in ("Affine", "Linear"):
        module = nn.Linear(inputs, outputs, bias, device="meta")
    else:
        options = {name: s[name] for name in s if name != "input_shape"}
        kind = nn.Conv1d if node.kind == "Conv1d" else nn.Conv2d
        channels, size = inputs * s["groups"], tuple(kernel)
        module = kind(channels, outputs, size, bias=bias, device="meta", **options)
    for name, value in node.arrays.items():
        setattr(module, name, nn.Parameter(torch.from_numpy(value.copy())))
    return module


def _delay(delay: Array, shape: Shape, clock: Clock) -> nn.Module:
    steps = np.rint(delay / clock.dt)
    off = abs(steps * clock.dt - delay) > 1e-6 * (delay + clock.dt)
    if off.any() or steps.max() > _MAX_DELAY:
        wrong = delay[off][0] if off.any() else delay.max()
        needed = f"whole steps of dt={clock.dt} s, at most {_MAX_DELAY}"
        raise ValueError(f"delays must be {needed}, got {wrong} s.")
    size, dim, values = _along_one_dim({"delay": steps}, shape)
    most, given = max(int(steps.max()), 1), torch.from_numpy(values["delay"].copy())
    return _shaped(snn.Delay(size, dim or -1, max_delay=most, delay=given), dim, shape)


def _membrane(node: Node, shape: Shape, clock: Clock, reset: Reset) -> nn.Module:
    rounding = _ROUNDING[any(value.dtype == np.float32 for value in node.arrays.values())]
    arrays = {name: value.astype(np.float64) for name, value in node.arrays.items()}
    size, dim, values = _along_one_dim(arrays, shape)
    if "v_threshold" in values:
        values.setdefault("v_reset", np.zeros_like(values["v_threshold"]))
    for tau, decay in (("tau", "beta"), ("tau_mem", "beta"), ("tau_syn", "alpha")):
        if tau in values:
            given = values.pop(tau)
            lost = clock.complement(given)
            lost = np.where(abs(lost - 1) <= rounding, 1.0, lost)  # a tau of one step
            if (lost > 1).any() or not (lost > 0).all():
                problem = f"{tau} from {given.min():.3g} to {given.max():.3g} s is no fit for"
                advice = "Take dt <= tau, or discretization='exponential'."
                raise ValueError(f"{problem} dt={clock.dt} s. {advice}")
            values[decay] = lost
    if "alpha" in values:
        values.setdefault("w_in", np.ones_like(values["alpha"]))
    # A layer of our own where one computes the same, else one with all parameters of NIR.
    layer: snn.Neuron | None = _own_layer(values, size, dim or -1, reset, rounding)
    if layer is None:
        layer = Membrane(size, dim or -1, values, dt=clock.dt, reset=reset)
    return _shaped(layer, dim, shape)


def _along_one_dim(arrays: Values, shape: Shape) -> tuple[int, int | None, Values]:
    """Return number and dimension of neurons, ``None`` where they differ everywhere, and values."""
    values = {name: value.reshape(()) for name, value in arrays.items() if value.size == 1}
    full = {name: value for name, value in arrays.items() if value.size > 1}
    # Try every dimension: neurons differ along it alone if each of its rows holds one value.
    for axis in range(len(shape)) if full else [len(shape) - 1]:
        rows = {n: np.moveaxis(v, axis, 0).reshape(shape[axis], -1) for n, v in full.items()}
        if all((row == row[:, :1]).all() for row in rows.values()):
            found = values | {name: row[:, 0] for name, row in rows.items()}
            return shape[axis], axis - len(shape), found
    return math.prod(shape), None, values | {name: v.reshape(-1) for name, v in full.items()}


def _shaped(layer: nn.Module, dim: int | None, shape: Shape) -> nn.Module:
    """Return a layer for samples of ``shape``, flattened inside where ``dim`` is ``None``."""
    if dim is not None:
        return layer
    return nn.Sequential(nn.Flatten(), layer, nn.Unflatten(1, shape))


def _own_layer(
    values: Values, size: int, dim: int, reset: Reset, rounding: float
) -> snn.LeakyIntegrator | None:
    """Return one of our layers that computes the same, or ``None`` where none does."""
    if "beta" not in values or any(values[n].any() for n in ("v_leak", "v_reset") if n in values):
        return None
    own: Values = {name: values[name] for name in ("alpha", "beta") if name in values}
    # Our inflow has the gain of an average or none at all; any other needs a Membrane.
    averaging = []
    for decay in own:
        gain = values["w_in" if decay == "alpha" else "r"]
        if np.allclose(gain, 1.0, rtol=0.0, atol=rounding):
            averaging.append(decay)
        elif not np.allclose(gain * values[decay], 1.0, rtol=0.0, atol=rounding):
            return None
    kind: type[snn.LeakyIntegrator] = snn.LeakyIntegrator
    if "v_threshold" in values:
        if not (values["v_threshold"] > 0).all():
            return None
        own["pos_threshold"] = values["v_threshold"]
        kind = snn.SLIF if "alpha" in own else snn.LIF
    elif "beta" in averaging:
        kind = snn.SReadout if "alpha" in own else snn.Readout
    # A constructor rounds to the default dtype: give it any legal value here, and write over it.
    given: dict[str, Any] = {name: torch.full(value.shape, 0.5) for name, value in own.items()}
    if kind is snn.LeakyIntegrator:
        given = {f"{name}_setup": {"value": value} for name, value in given.items()}
    layer = kind(size, dim=dim, **given)
    for decay in ("alpha", "beta"):
        setattr(layer, f"{decay}_ema", decay in averaging)
    if "v_threshold" in values:
        layer.reset = reset
    write_values(layer, own)
    return layer
