"""From a node of NIR to the module that computes it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from tracetorch import snn
from tracetorch.nir.clock import Array, Clock
from tracetorch.nir.graph import MEMBRANES, Node, Shape
from tracetorch.nir.modules import Across, DelayLine, Rescale, Spike
from tracetorch.nir.neurons import Membrane
from tracetorch.nir.raw import fill
from tracetorch.nir.shapes import flattened

Reset = Literal["zero", "subtract"]

LONGEST_DELAY = 10_000  # steps in one graph; each is a module, and a copy of what it holds
# how far from one a gain may lie that is one but for the file's dtype: not float32, float32
_ROUNDED = (1e-12, 1e-6)


def module(name: str, node: Node, shape: Shape, clock: Clock, reset: Reset) -> nn.Module:
    """The module that computes ``node`` for inputs of ``shape``; its parameters can be trained.

    Raises:
        ValueError: NIR can say it, traceTorch cannot do it; the node is named.
    """
    try:
        if node.kind in MEMBRANES:
            return _membrane(node, shape, clock, reset)
        if node.kind == "Delay":
            return _delay(node, shape, clock)
        return _PLAIN[node.kind](node, shape)
    except (TypeError, ValueError) as wrong:
        raise ValueError(f"node {name!r} ({node.kind}): {wrong}") from wrong


# Without memory


def _linear(node: Node, shape: Shape) -> nn.Module:
    weight = node.arrays["weight"]
    made = nn.Linear(weight.shape[1], weight.shape[0], "bias" in node.arrays, device="meta")
    return _given(made, node)


def _conv(node: Node, shape: Shape) -> nn.Module:
    weight, s = node.arrays["weight"], node.settings
    kind = nn.Conv1d if node.kind == "Conv1d" else nn.Conv2d
    made: nn.Module = kind(
        weight.shape[1] * s["groups"],
        weight.shape[0],
        weight.shape[2:],
        stride=s["stride"],
        padding=s["padding"],
        dilation=s["dilation"],
        groups=s["groups"],
        bias="bias" in node.arrays,
        device="meta",  # no memory and no random numbers for what is replaced below
    )
    return _given(made, node)


def _given(made: nn.Module, node: Node) -> nn.Module:
    for name, value in node.arrays.items():
        setattr(made, name, nn.Parameter(torch.from_numpy(value.copy())))
    return made


def _pool(node: Node, shape: Shape) -> nn.Module:
    s = node.settings
    # a sum is a mean that is divided by one
    divisor = 1 if node.kind == "SumPool2d" else None
    return nn.AvgPool2d(s["kernel_size"], s["stride"], s["padding"], divisor_override=divisor)


def _flatten(node: Node, shape: Shape) -> nn.Module:
    start, end = flattened(node, shape)
    return nn.Flatten(start + 1, end + 1)  # behind the batch


def _scale(node: Node, shape: Shape) -> nn.Module:
    return Rescale(torch.from_numpy(_fitting(node.arrays["scale"], shape)))


def _threshold(node: Node, shape: Shape) -> nn.Module:
    return Spike(torch.from_numpy(_fitting(node.arrays["threshold"], shape)))


def _nothing(node: Node, shape: Shape) -> nn.Module:
    return nn.Identity()


_PLAIN: Mapping[str, Callable[[Node, Shape], nn.Module]] = {
    "Affine": _linear,
    "AvgPool2d": _pool,
    "Conv1d": _conv,
    "Conv2d": _conv,
    "Flatten": _flatten,
    "Input": _nothing,
    "Linear": _linear,
    "Output": _nothing,
    "Scale": _scale,
    "SumPool2d": _pool,
    "Threshold": _threshold,
}


def _fitting(value: NDArray[Any], shape: Shape) -> NDArray[Any]:
    """One value for all as a number, whatever its shape: it takes no memory then."""
    kept: NDArray[Any] = value.reshape(()) if value.size == 1 else value
    return np.array(kept)


# With memory


def _delay(node: Node, shape: Shape, clock: Clock) -> nn.Module:
    delay = node.arrays["delay"].astype(np.float64)
    steps = np.rint(delay / clock.dt)
    if steps.max() > LONGEST_DELAY:
        raise ValueError(
            f"a delay of {delay.max()} s is {steps.max():.0f} steps of {clock.dt} s, more than "
            f"{LONGEST_DELAY}."
        )
    if not np.allclose(steps * clock.dt, delay, rtol=1e-6, atol=1e-6 * clock.dt):
        raise ValueError(
            f"delays must be whole steps of dt={clock.dt} s, got "
            f"{delay.flat[int(np.argmax(abs(steps * clock.dt - delay)))]} s."
        )
    return DelayLine(torch.from_numpy(_fitting(steps.astype(np.int64), shape)), shape)


def _membrane(node: Node, shape: Shape, clock: Clock, reset: Reset) -> nn.Module:
    rounded = _ROUNDED[any(value.dtype == np.float32 for value in node.arrays.values())]
    v = {name: value.astype(np.float64) for name, value in node.arrays.items()}
    dim, values = along(v, shape)
    if "v_threshold" in values:
        values.setdefault("v_reset", np.zeros_like(values["v_threshold"]))
    for tau, name in (("tau", "beta"), ("tau_mem", "beta"), ("tau_syn", "alpha")):
        if tau in values:
            values[name] = clock.complement(values.pop(tau))
            # a tau of just one step, rounded
            values[name] = np.where(abs(values[name] - 1) <= rounded, 1.0, values[name])
            if (values[name] > 1).any():
                longest = clock.dt / values[name].max()
                raise ValueError(
                    f"{tau} of {longest:.3g} s is shorter than a step of {clock.dt} s. Take "
                    "dt <= tau, or discretization='exponential'."
                )
            if not (values[name] > 0).all():
                raise ValueError(f"{tau} is so long that dt={clock.dt} s does nothing beside it.")
    if "alpha" in values:
        values.setdefault("w_in", np.ones_like(values["alpha"]))
    size = shape[dim] if dim is not None else int(np.prod(shape, dtype=np.int64))
    own = _own(values, rounded)
    made = _layer(values, own, size, -1 if dim is None else dim, clock, reset)
    return made if dim is not None else Across(made, len(shape))


def along(arrays: Mapping[str, Array], shape: Shape) -> tuple[int | None, dict[str, Array]]:
    """The dimension along which neurons differ, and their values there.

    One value for all comes back as a number. Where neurons differ along several dimensions, there
    is no such dimension, and the values come back flat.
    """
    full = [value for value in arrays.values() if value.size > 1]
    if not full:
        return -1, {name: value.reshape(()) for name, value in arrays.items()}
    for axis in range(len(shape)):
        firsts = [value[_first(axis, len(shape), keep=True)] for value in full]
        if all(bool((v == first).all()) for v, first in zip(full, firsts, strict=True)):
            chosen = _first(axis, len(shape), keep=False)
            return axis - len(shape), {
                name: value[chosen] if value.size > 1 else value.reshape(())
                for name, value in arrays.items()
            }
    return None, {
        name: value.reshape(-1 if value.size > 1 else ()) for name, value in arrays.items()
    }


def _first(axis: int, ndim: int, *, keep: bool) -> tuple[Any, ...]:
    """An index that takes the first element of every dimension but one."""
    return tuple(slice(None) if i == axis else slice(0, 1) if keep else 0 for i in range(ndim))


def _layer(
    values: dict[str, Array],
    own: tuple[dict[str, bool], dict[str, Array]] | None,
    size: int,
    dim: int,
    clock: Clock,
    reset: Reset,
) -> snn.Neuron:
    """One of our own layers where it computes the same, else a :class:`Membrane`."""
    if own is None:
        parameters = {name: torch.from_numpy(np.array(v)) for name, v in values.items()}
        return Membrane(size, dim, parameters, dt=clock.dt, reset=reset)
    averaging, kept = own
    told: dict[str, Any] = {
        name: torch.from_numpy(np.array(1 - kept[name] if name in ("alpha", "beta") else value))
        for name, value in kept.items()
    }
    layer: snn.LeakyIntegrator
    ema: dict[str, Any] = {f"{name}_ema": on for name, on in averaging.items()}
    if "pos_threshold" in told:
        kind = snn.SLIF if "alpha" in told else snn.LIF
        layer = kind(size, dim=dim, **told, **ema, reset=reset)
    elif averaging["beta"]:
        del ema["beta_ema"]
        readout = snn.SReadout if "alpha" in told else snn.Readout
        layer = readout(size, dim=dim, **told, **ema)
    else:
        setups: dict[str, Any] = {
            f"{name}_setup": {"value": value, "use_averaging": averaging[name]}
            for name, value in told.items()
        }
        layer = snn.LeakyIntegrator(size, dim, **setups)
    return fill(layer, kept, decays=("alpha", "beta"), thresholds=("pos_threshold",))


def _own(
    values: dict[str, Array], rounded: float
) -> tuple[dict[str, bool], dict[str, Array]] | None:
    """Which decays average, and the parameters our layers have; ``None`` if they lack one."""
    if "beta" not in values or any(
        values.get(name) is not None and bool((values[name] != 0).any())
        for name in ("v_leak", "v_reset")
    ):
        return None
    kept: dict[str, Array] = {}
    averaging: dict[str, bool] = {}
    for decay, gain in (("alpha", "w_in"), ("beta", "r")):
        if decay not in values:
            continue
        kept[decay] = values[decay]
        if np.allclose(values[gain], 1.0, rtol=0.0, atol=rounded):
            averaging[decay] = True
        elif np.allclose(values[gain] * values[decay], 1.0, rtol=0.0, atol=rounded):
            averaging[decay] = False
        else:
            return None
    threshold = values.get("v_threshold")
    if threshold is not None:
        if not (threshold > 0).all():
            return None
        kept["pos_threshold"] = threshold
    return averaging, kept
