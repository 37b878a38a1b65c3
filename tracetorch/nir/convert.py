"""One table: what each module of PyTorch and of ours is in NIR."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tracetorch.nir.clock import Clock
from tracetorch.nir.forms import compact, constant, exact
from tracetorch.nir.graph import Graph, Node, Shape, membrane, over
from tracetorch.nir.model import NIRModel
from tracetorch.nir.modules import Across, DelayLine, Rescale, Spike
from tracetorch.nir.neurons import Membrane
from tracetorch.nir.shapes import leaving
from tracetorch.snn import LeakyIntegrator, Neuron, Recurrent

Mode: TypeAlias = Literal["exact", "compact"]

LINEAR = ("Affine", "Conv1d", "Conv2d", "Linear")
# What passes its input on where nothing is trained.
PASSING = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)


@dataclass(frozen=True)
class Writing:
    """How a model is to be written.

    Args:
        clock: seconds and steps.
        mode: ``"exact"`` or ``"compact"``.
        allow_hard_reset: in compact mode, whether a subtracting layer may be written.
    """

    clock: Clock
    mode: Mode
    allow_hard_reset: bool


def converted(module: nn.Module, shape: Shape, told: str, how: Writing) -> Node | Graph:
    """The node, or the graph, that computes what ``module`` does.

    Args:
        module: the module; types are compared exactly, for a subclass may compute anything.
        shape: the shape of its input without the batch.
        told: how messages call it.
        how: what is to be written.

    Raises:
        ValueError: NIR has nothing for the module, or not for how it is set.
    """
    if isinstance(module, LeakyIntegrator) and _runs_as(module, LeakyIntegrator):
        if how.mode == "exact":
            return exact(module, shape, how.clock, told)
        return compact(module, shape, how.clock, told, how.allow_hard_reset)
    rule = _TABLE.get(type(module))
    if rule is None:
        hint = _HINTS.get(type(module), "Replace it, or leave it out of what is exported.")
        raise ValueError(f"{told} has no counterpart in NIR. {hint}")
    return rule(module, shape, told, how)


def array(value: Tensor) -> NDArray[Any]:
    """A parameter as NIR keeps it: float64 and float32 as they are, others in float32."""
    value = value.detach().cpu()
    if value.dtype not in (torch.float32, torch.float64):
        value = value.float()
    return np.array(value.numpy())


def _runs_as(module: nn.Module, kind: type[Neuron]) -> bool:
    """Whether a subclass has left alone what it computes."""
    return all(
        getattr(type(module), name) is getattr(kind, name)
        for name in ("forward", "one_step", "step")
    )


# PyTorch's modules


def _linear(m: nn.Linear, shape: Shape, told: str, how: Writing) -> Node:
    if len(shape) != 1:
        raise ValueError(
            f"{told} is applied to {list(shape)}; in NIR it takes one dimension. Put nn.Flatten() "
            "before it."
        )
    if m.bias is None:
        return Node("Linear", {"weight": array(m.weight)})
    return Node("Affine", {"weight": array(m.weight), "bias": array(m.bias)})


def _conv(m: nn.Conv1d | nn.Conv2d, shape: Shape, told: str, how: Writing) -> Node:
    if m.padding_mode != "zeros":
        raise ValueError(f"{told} pads by {m.padding_mode!r}; NIR pads with zeros.")
    weight = array(m.weight)
    groups = m.groups
    if how.mode == "compact" and groups > 1:  # peers read one group only
        weight, groups = _ungrouped(weight, groups), 1
    bias = np.zeros(len(weight), weight.dtype) if m.bias is None else array(m.bias)
    settings = {
        "input_shape": shape[1:],
        "stride": m.stride,
        "padding": m.padding,
        "dilation": m.dilation,
        "groups": groups,
    }
    kind = "Conv1d" if isinstance(m, nn.Conv1d) else "Conv2d"
    return Node(kind, {"weight": weight, "bias": bias}, settings)


def _ungrouped(weight: NDArray[Any], groups: int) -> NDArray[Any]:
    """The same convolution with one group: zero between channels of different groups."""
    out, inner = weight.shape[:2]
    whole = np.zeros((out, inner * groups, *weight.shape[2:]), weight.dtype)
    for g in range(groups):
        rows = slice(g * out // groups, (g + 1) * out // groups)
        whole[rows, g * inner : (g + 1) * inner] = weight[rows]
    return whole


def _average(m: nn.AvgPool2d, shape: Shape, told: str, how: Writing) -> Node:
    settings = {
        "kernel_size": _pair(m.kernel_size),
        "stride": _pair(m.stride),
        "padding": _pair(m.padding),
    }
    if m.ceil_mode:
        raise ValueError(f"{told} has ceil_mode=True, which NIR does not have.")
    if not m.count_include_pad and any(settings["padding"]):
        raise ValueError(f"{told} has count_include_pad=False; NIR counts the padding.")
    if m.divisor_override == 1:
        return Node("SumPool2d", settings=settings)
    if m.divisor_override not in (None, int(np.prod(settings["kernel_size"]))):
        raise ValueError(f"{told} divides by {m.divisor_override}; NIR sums, or takes the mean.")
    return Node("AvgPool2d", settings=settings)


def _adaptive(m: nn.AdaptiveAvgPool2d, shape: Shape, told: str, how: Writing) -> Node:
    goal = tuple(m.output_size) if isinstance(m.output_size, tuple) else (m.output_size,) * 2
    sizes = tuple(n if g is None else g for n, g in zip(shape[1:], goal, strict=True))
    if any(n % g for n, g in zip(shape[1:], sizes, strict=True)):
        raise ValueError(
            f"{told} makes {list(sizes)} of {list(shape[1:])}, which windows of one size do not "
            "divide. Use nn.AvgPool2d."
        )
    window = tuple(n // g for n, g in zip(shape[1:], sizes, strict=True))
    return Node("AvgPool2d", settings={"kernel_size": window, "stride": window, "padding": (0, 0)})


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value)


def _flatten(m: nn.Flatten, shape: Shape, told: str, how: Writing) -> Node:
    return flatten(m.start_dim, m.end_dim, shape, told)


def flatten(start: int, end: int, shape: Shape, told: str) -> Node:
    """A Flatten; PyTorch counts dimensions with the batch, NIR without."""
    ndim = len(shape) + 1
    first = start + ndim if start < 0 else start
    last = end + ndim if end < 0 else end
    if not 1 <= first <= last < ndim:
        raise ValueError(
            f"{told} flattens from {start} to {end}, which leaves no batch in front. Use "
            "start_dim=1."
        )
    return Node(
        "Flatten", settings={"input_type": shape, "start_dim": first - 1, "end_dim": last - 1}
    )


def _norm(m: Any, shape: Shape, told: str, how: Writing) -> Node:
    """A batch norm by itself: a matrix with a diagonal, or a convolution of one pixel."""
    scale, shift = normalising(m, told)
    if len(shape) == 1:
        return Node("Affine", {"weight": np.diag(scale), "bias": shift})
    spatial = len(shape) - 1
    settings = {
        "input_shape": shape[1:],
        "stride": (1,) * spatial,
        "padding": (0,) * spatial,
        "dilation": (1,) * spatial,
        "groups": 1,
    }
    weight = np.diag(scale).reshape(len(scale), len(scale), *[1] * spatial)
    return Node(f"Conv{spatial}d", {"weight": weight, "bias": shift}, settings)


def normalising(m: Any, told: str) -> tuple[NDArray[Any], NDArray[Any]]:
    """Factor and summand per channel of a batch norm that no longer learns."""
    if m.training or m.running_mean is None or m.running_var is None:
        raise ValueError(
            f"{told} takes its statistics from the batch. Call model.eval() before the export; "
            "it needs track_running_stats=True."
        )
    dtype = m.running_mean.dtype
    scale = 1 / torch.sqrt(m.running_var.double() + m.eps)
    if m.weight is not None:
        scale = scale * m.weight.detach().double()
    shift = -m.running_mean.double() * scale
    if m.bias is not None:
        shift = shift + m.bias.detach().double()
    return array(scale.to(dtype)), array(shift.to(dtype))


def folded(node: Node, scale: NDArray[Any], shift: NDArray[Any]) -> Node:
    """The linear node before a batch norm, and the norm, in one."""
    weight = node.arrays["weight"]
    tall = scale.astype(np.float64).reshape(-1, *[1] * (weight.ndim - 1))
    bias = shift.astype(np.float64)
    if "bias" in node.arrays:
        bias = bias + node.arrays["bias"] * scale.astype(np.float64)
    arrays = {"weight": (weight * tall).astype(weight.dtype), "bias": bias.astype(weight.dtype)}
    kind = "Affine" if node.kind == "Linear" else node.kind
    return Node(kind, arrays, node.settings, node.metadata)


def _recurrent(m: Recurrent, shape: Shape, told: str, how: Writing) -> Graph:
    """The neuron and a connection back to it; its bias, which acts at once, goes another way."""
    if how.mode == "compact":
        raise ValueError(
            f"{told} hears itself again, which peers read in ways of their own. Use mode='exact'."
        )
    back = converted(m.connection, shape, f"the connection of {told}", how)
    if not isinstance(back, Node) or back.kind not in LINEAR:
        raise ValueError(
            f"{told} is connected to itself by {type(m.connection).__name__}; in NIR it must be "
            "nn.Linear or a convolution."
        )
    came = leaving("back", back, shape)
    if came != shape:
        raise ValueError(
            f"{told} needs a connection that keeps the shape {list(shape)}, got {list(came)}."
        )
    edges = [("input", "neuron"), ("neuron", "back"), ("back", "neuron"), ("neuron", "output")]
    nodes: dict[str, Node | Graph] = {
        "input": Node("Input", settings={"shape": shape}),
        "neuron": converted(m.neuron, shape, f"the neuron of {told}", how),
        "output": Node("Output", settings={"shape": shape}),
    }
    bias = back.arrays.get("bias")
    if bias is None or not bias.any():
        nodes["back"] = back
    else:
        drive = constant(over(shape, bias.reshape(-1, *[1] * (len(shape) - 1))), shape)
        nodes |= drive
        edges += pairwise(("input", *drive, "neuron"))
        nodes["back"] = (
            Node("Linear", {"weight": back.arrays["weight"]})
            if back.kind == "Affine"
            else Node(back.kind, {**back.arrays, "bias": np.zeros_like(bias)}, back.settings)
        )
    return Graph(nodes, edges)


# The modules that a graph was read into


def _rescale(m: Rescale, shape: Shape, told: str, how: Writing) -> Node:
    return Node("Scale", {"scale": over(shape, array(m.scale)).astype(array(m.scale).dtype)})


def _spike(m: Spike, shape: Shape, told: str, how: Writing) -> Node:
    threshold = array(m.threshold)
    return Node("Threshold", {"threshold": over(shape, threshold).astype(threshold.dtype)})


def _delay(m: DelayLine, shape: Shape, told: str, how: Writing) -> Node:
    return membrane("Delay", shape, delay=m.steps.cpu().numpy() * how.clock.dt)


def _membrane(m: Membrane, shape: Shape, told: str, how: Writing) -> Node:
    if m.v_threshold is not None and m.reset == "subtract" and not how.allow_hard_reset:
        raise ValueError(
            f"{told} was read with reset='subtract', which its node cannot say. Give "
            "allow_hard_reset=True, and reset='subtract' when you read it."
        )
    after = -m.dim - 1
    v: dict[str, NDArray[np.float64]] = {}
    for name in m._constraints:
        raw = getattr(m, f"raw_{name}").detach().to("cpu", torch.float64)
        raw = torch.sigmoid(-raw) if name in ("alpha", "beta") else raw
        v[name] = over(shape, raw.reshape(-1, *[1] * after).numpy() if raw.ndim else raw.numpy())
    if m.dt != how.clock.dt and "beta" not in v:
        raise ValueError(f"{told} was read with dt={m.dt}, and cannot be written for another.")
    tau = {"alpha": "tau_syn", "beta": "tau_mem" if "alpha" in v else "tau"}
    arrays = {
        tau.get(name, name): how.clock.tau(value) if name in tau else value
        for name, value in v.items()
    }
    kind = ("I" if "beta" not in v else "LI") + ("F" if "v_threshold" in v else "")
    return Node(f"Cuba{kind}" if "alpha" in v else kind, arrays)


def _across(m: Across, shape: Shape, told: str, how: Writing) -> Node:
    flat = converted(m.neuron, (int(np.prod(shape)),), told, how)
    if isinstance(flat, Graph):
        flat = compact(m.neuron, (int(np.prod(shape)),), how.clock, told, how.allow_hard_reset)  # type: ignore[arg-type]
    return Node(flat.kind, {name: value.reshape(shape) for name, value in flat.arrays.items()})


def _model(m: NIRModel, shape: Shape, told: str, how: Writing) -> Graph:
    """A graph that was read, with the parameters it has now."""
    nodes: dict[str, Node | Graph] = {}
    wiring = m.wiring
    for name in wiring.order:
        came = wiring.now[name]
        here = wiring.shapes[came[0]] if came else wiring.shapes[name]
        if name in wiring.inputs or name in wiring.outputs:
            kind = "Input" if name in wiring.inputs else "Output"
            nodes[name] = Node(kind, settings={"shape": here})
        elif type(m.nodes[m.keys[name]]) is nn.Identity:  # the ends of a graph within
            nodes[name] = membrane("Scale", here, scale=1.0)
        else:
            inner = m.nodes[m.keys[name]]
            nodes[name] = converted(inner, here, f"node {name!r}, {inner!r},", how)
    edges = [(source, name) for name in wiring.order for source in wiring.now[name]]
    edges += [(source, name) for name in wiring.order for source in wiring.late[name]]
    return Graph(nodes, edges)


_TABLE: Mapping[type[nn.Module], Callable[[Any, Shape, str, Writing], Node | Graph]] = {
    Across: _across,
    DelayLine: _delay,
    Membrane: _membrane,
    NIRModel: _model,
    Recurrent: _recurrent,
    Rescale: _rescale,
    Spike: _spike,
    nn.AdaptiveAvgPool2d: _adaptive,
    nn.AvgPool2d: _average,
    nn.BatchNorm1d: _norm,
    nn.BatchNorm2d: _norm,
    nn.Conv1d: _conv,
    nn.Conv2d: _conv,
    nn.Flatten: _flatten,
    nn.Linear: _linear,
}
_HINTS: Mapping[type[nn.Module], str] = {
    nn.MaxPool2d: "Use nn.AvgPool2d.",
    nn.MaxPool1d: "Use a convolution with a stride.",
    nn.ReLU: "Spikes are its non-linearity: use snn.LIF.",
}
