"""``to_nir`` and ``save``: a model becomes a graph, or a file."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from tracetorch.core.checks import check_module
from tracetorch.core.files import atomic_replace
from tracetorch.core.optional import require
from tracetorch.nir.clock import Clock, Discretization
from tracetorch.nir.fold import uniform_thresholds
from tracetorch.nir.graph import SETTINGS, Graph, Node, Shape
from tracetorch.nir.model import NIRModel
from tracetorch.nir.parse import parse
from tracetorch.nir.plan import INPUTS, plan
from tracetorch.nir.trace import traced
from tracetorch.nir.writing import Mode, Writing

if TYPE_CHECKING:
    import nir


def to_nir(
    model: nn.Module,
    sample: Tensor | Sequence[int] | tuple[Tensor, ...],
    *,
    dt: float = 1e-4,
    mode: Mode = "exact",
    discretization: Discretization = "euler",
    allow_hard_reset: bool = False,
) -> nir.NIRGraph:
    """The NIR graph of a model, with the same spikes.

    ``mode="exact"`` writes every neuron layer as LI, Threshold and Scale with edges that lead back
    one step later: subtractive reset, spikes of both signs and the recurrent trace too. A layer
    with ``reset="zero"`` is a LIF (with both thresholds it is refused: NIR has no such node), a
    readout an LI. :func:`from_nir` gives the layers back.

    ``mode="compact"`` writes nothing but LIF, CubaLIF, LI and CubaLI, in the form that
    SpikingJelly, snnTorch and Norse read. They all reset to zero. Thresholds that differ from
    neuron to neuron go into the weights before them, where those feed no one else; grouped
    convolutions are written with one group. Decays that differ within a layer are read by Norse
    alone; the others refuse them: train with ``beta_rank=0``.

    ``nn.Linear``, ``nn.Conv1d``, ``nn.Conv2d``, ``nn.Flatten``, ``nn.AvgPool2d`` (a sum with
    ``divisor_override=1``) and ``nn.AdaptiveAvgPool2d`` have nodes; a batch norm in eval mode is
    folded into the layer before it; dropout is left out; ``x + y`` is two edges; ``snn.Recurrent``
    is a cycle through its connection, and is read as one. Whether a
    parameter learns, surrogates and ``detach_reset`` are matters of training and are not in a
    graph. A model that :func:`from_nir` gave becomes a graph again, with the parameters it has now.

    Args:
        model: a model whose call is one time step. Its states are neither read nor changed.
        sample: the input of one step ``[B, ...]``, a tuple of them for several inputs, or the shape
            of one input without the batch.
        dt: seconds per time step; 1e-4 is what peers assume.
        mode: ``"exact"`` or ``"compact"``.
        discretization: what ``dt`` makes of a decay: ``"euler"``, ``tau = dt / (1 - beta)``, which
            peers assume, or ``"exponential"``, ``tau = -dt / log(beta)``.
        allow_hard_reset: write compact LIFs for layers that subtract, though a reader resets them
            to zero.

    Raises:
        ModuleNotFoundError: the extra ``nir`` is not installed.
        TypeError: an argument is of the wrong type, or the model's ``forward`` cannot be followed.
        ValueError: a layer or an operation has no counterpart; it is named, with the way out.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 3), LIF(3), nn.Linear(3, 2), Readout(2))
        >>> graph = to_nir(net, (4,))
        >>> sorted(graph.nodes)
        ['0', '1', '2', '3', 'input', 'output']
        >>> sorted(graph.nodes["1"].nodes)
        ['input', 'mem', 'output', 'pos_reset', 'pos_spike']

    Reference: Pedersen et al., Neuromorphic intermediate representation, Nature Communications 15,
    8122 (2024), doi:10.1038/s41467-024-52259-9.
    """
    require("nir", extra="nir", by="tt.nir")
    check_module(model)
    if mode not in ("exact", "compact"):
        raise ValueError(f"mode must be 'exact' or 'compact', got {mode!r}.")
    if not isinstance(allow_hard_reset, bool):
        raise TypeError(f"allow_hard_reset must be True or False, got {allow_hard_reset!r}.")
    clock = Clock(dt, discretization)
    inputs = _inputs(model, sample)
    with torch.no_grad():
        graph = traced(model, inputs, Writing(clock, mode, allow_hard_reset))
    if mode == "compact":
        graph = uniform_thresholds(graph)
    double = all(
        value.dtype == torch.float64
        for value in (*model.parameters(), *model.buffers())
        if value.is_floating_point()
    )
    metadata = {
        "mode": mode,
        "dt": float(dt),
        "discretization": discretization,
        "dtype": "float64" if double else "float32",
        # a file keeps nodes by name, and so forgets the order of arguments
        INPUTS: json.dumps(_order(model, graph)),
    }
    return _written(replace(graph, metadata=metadata), clock)


def save(
    model: nn.Module,
    path: str | os.PathLike[str],
    sample: Tensor | Sequence[int] | tuple[Tensor, ...],
    *,
    dt: float = 1e-4,
    mode: Mode = "exact",
    discretization: Discretization = "euler",
    allow_hard_reset: bool = False,
) -> None:
    """Write the graph of a model to a ``.nir`` file: :func:`to_nir`, and ``nir.write``.

    Args:
        model: as :func:`to_nir`.
        path: the file; one that stands there is replaced when the new one is complete.
        sample: as :func:`to_nir`; so are the others.
        dt: seconds per time step.
        mode: ``"exact"`` or ``"compact"``.
        discretization: ``"euler"`` or ``"exponential"``.
        allow_hard_reset: write compact LIFs for layers that subtract.

    Raises:
        TypeError, ValueError, ModuleNotFoundError: as :func:`to_nir`.
        OSError: the file cannot be written. What stood there stands still.

    Example:
        >>> import tempfile, tracetorch as tt
        >>> net = nn.Sequential(nn.Linear(4, 3), LIF(3))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save(net, f"{folder}/net.nir", (4,))
        ...     again = tt.nir.from_nir(f"{folder}/net.nir", dt=1e-4)
        >>> x = torch.rand(8, 4)
        >>> torch.equal(again(x), net(x))
        True
    """
    graph = to_nir(
        model,
        sample,
        dt=dt,
        mode=mode,
        discretization=discretization,
        allow_hard_reset=allow_hard_reset,
    )
    import nir

    with atomic_replace(path) as unfinished:
        nir.write(str(unfinished), graph)


def _inputs(model: nn.Module, sample: Any) -> tuple[Tensor, ...]:
    if isinstance(sample, Tensor):
        return (sample,)
    if isinstance(sample, tuple) and sample and all(isinstance(x, Tensor) for x in sample):
        return sample
    sizes = list(sample) if isinstance(sample, Sequence) and not isinstance(sample, str) else []
    if not sizes or any(isinstance(n, bool) or not isinstance(n, int) or n < 1 for n in sizes):
        raise TypeError(
            "sample must be a tensor [B, ...], a tuple of them, or the shape of one input without "
            f"the batch, (1, 28, 28) say; got {sample!r}."
        )
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    return (torch.zeros(1, *sizes, dtype=like.dtype, device=like.device),)


def _order(model: nn.Module, graph: Graph) -> list[str]:
    if isinstance(model, NIRModel):
        return model.wiring.inputs
    return [name for name, node in graph.nodes.items() if getattr(node, "kind", None) == "Input"]


def _written(graph: Graph, clock: Clock) -> nir.NIRGraph:
    """The graph in NIR's own classes, after the very checks that a reader makes."""
    made = _foreign(graph)
    _, wiring = plan(parse(made.to_dict()), clock)
    _declare(made, graph, "", {name: tuple(shape) for name, shape in wiring.shapes.items()})
    return made


def _foreign(graph: Graph) -> nir.NIRGraph:
    import nir

    nodes = {
        name: _foreign(node) if isinstance(node, Graph) else _node(node)
        for name, node in graph.nodes.items()
    }
    return nir.NIRGraph(nodes, list(graph.edges), metadata=dict(graph.metadata), type_check=False)


def _node(node: Node) -> nir.NIRNode:
    import nir

    fields: dict[str, Any] = {**node.arrays}
    for name in SETTINGS.get(node.kind, ()):
        fields[name] = _setting(node.kind, name, node.settings[name])
    if node.kind in ("Input", "Output"):
        fields = {f"{node.kind.lower()}_type": fields["shape"]}
    elif node.kind == "Flatten":
        fields["input_type"] = {"input": fields["input_type"]}
    return getattr(nir, node.kind)(**fields, metadata=dict(node.metadata))


def _setting(kind: str, name: str, value: Any) -> Any:
    if isinstance(value, tuple):
        if kind == "Conv1d":
            return int(value[0])
        if kind == "Conv2d":
            return tuple(value)
        return np.array(value)
    return value


def _declare(made: nir.NIRGraph, graph: Graph, prefix: str, shapes: dict[str, Shape]) -> None:
    """Tell NIR the shapes: it infers some of them, and those of non-square kernels wrongly."""
    before = {end: start for start, end in reversed(graph.edges)}
    for name, node in graph.nodes.items():
        full = f"{prefix}{name}"
        if isinstance(node, Graph):
            _declare(made.nodes[name], node, f"{full}.", shapes)
            continue
        leaving = shapes.get(full)
        if leaving is None:  # inside one of our own layers, where NIR knows
            continue
        source = before.get(name)
        entering = leaving if source is None else _leaving(graph, source, prefix, shapes)
        made.nodes[name].input_type = {"input": np.array(entering)}
        made.nodes[name].output_type = {"output": np.array(leaving)}


def _leaving(graph: Graph, name: str, prefix: str, shapes: dict[str, Shape]) -> Shape:
    """The shape of what a node gives, or of what the one Output of a graph within gives."""
    full, node = f"{prefix}{name}", graph.nodes[name]
    if full not in shapes and isinstance(node, Graph):
        return _leaving(node, node.named("Output")[0], f"{full}.", shapes)
    return shapes[full]
