"""Write a model as a NIR graph or file: ``to_nir`` and ``save``."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from tracetorch.core.checks import check_module, check_unsharded, require
from tracetorch.core.files import atomic_replace
from tracetorch.nir.model_to_graph import fold_thresholds, graph_of
from tracetorch.nir.modules import NIRModel
from tracetorch.nir.nodes import Clock, Discretization, Mode, Node, NodeGraph, Options
from tracetorch.nir.read import model_of
from tracetorch.nir.wiring import INPUT_ORDER, Wiring

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
    """Convert a model to a NIR graph with the same spikes, but for rounding.

    ``mode="exact"`` writes the twelve layers as LI, Threshold and Scale with edges that lead back
    one step later: subtractive reset, spikes of both signs and the recurrent trace too. A layer
    with ``reset="zero"`` is a LIF (with both thresholds it is refused: NIR has no such node), a
    readout an LI, ``models.IF`` an IF. Other neurons are refused.

    ``mode="compact"`` writes nothing but LIF, CubaLIF, LI, CubaLI and IF, in the form that
    SpikingJelly, snnTorch (but for IF) and Norse read. They all reset to zero. Thresholds that
    differ from neuron to neuron go into the weights before them, where those feed no one else;
    grouped convolutions are written with one group. Decays that differ within a layer are read by
    Norse alone; the others refuse them: train with ``beta_rank=0``.

    ``nn.Linear``, ``nn.Conv1d``, ``nn.Conv2d``, ``nn.Flatten``, ``nn.AvgPool2d`` (a sum with
    ``divisor_override=1``) and ``nn.AdaptiveAvgPool2d`` have nodes; a batch norm in eval mode is
    folded into the layer before it; dropout is left out; ``x + y`` is two edges; ``snn.Recurrent``
    is a cycle. What matters only in training is not in a graph: whether a parameter learns,
    surrogates, ``detach_reset``. A model that :func:`from_nir` gave becomes a graph again.

    Args:
        model: a model whose call is one time step. Its states are neither read nor changed.
        sample: the input of one step ``[B, ...]``, a tuple of them for several inputs, or the shape
            of one input without the batch.
        dt: seconds per time step, positive; 1e-4, the default, is what peers assume.
        mode: ``"exact"`` (default) or ``"compact"``.
        discretization: what ``dt`` makes of a decay: ``"euler"`` (default), ``tau = dt / (1 -
            beta)``, which peers assume, or ``"exponential"``, ``tau = -dt / log(beta)``.
        allow_hard_reset: write compact LIFs for layers that subtract, though a reader resets them
            to zero; ``False`` by default.

    Raises:
        ModuleNotFoundError: the extra ``nir`` is not installed.
        TypeError: an argument is of the wrong type.
        ValueError: a layer or an operation has no counterpart, or the model cannot be read; the
            place is named, with the way out.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 3), LIF(3), nn.Linear(3, 2), Readout(2))
        >>> sorted(to_nir(net, (4,)).nodes)
        ['0', '1', '2', '3', 'input', 'output']

    Reference: Pedersen et al., Neuromorphic intermediate representation, Nature Communications 15,
    8122 (2024), doi:10.1038/s41467-024-52259-9.
    """
    require("nir", extra="nir", by="tt.nir")
    check_module(model)
    check_unsharded(model, "tt.nir")
    options = Options(Clock(dt, discretization), mode, allow_hard_reset)
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_floating_point() and tensor.dtype not in (torch.float32, torch.float64):
            advice = "a file is read in float32 or float64. Give model.float()"
            raise ValueError(f"{name} is {tensor.dtype}, and {advice}.")
    dictionary = _dictionary(_graph(model, sample, options))
    wiring = model_of(dictionary, options.clock, "zero").flow  # by the very checks of a reader
    import nir

    written = nir.dict2NIRNode(dictionary)
    _declare_shapes(written, wiring)
    return written


def _graph(model: nn.Module, sample: Any, options: Options) -> NodeGraph:
    """Return the graph of a model, with what a reader must know beside its nodes."""
    inputs = _inputs(model, sample)
    try:
        with torch.no_grad():
            graph = graph_of(model, inputs, options)
    except RuntimeError as error:
        shapes = ", ".join(str(list(x.shape)) for x in inputs)
        problem = f"the model fails on one step of the sample, {shapes} with the batch"
        raise ValueError(f"{problem}: {error}") from error
    if options.mode == "compact":
        graph = fold_thresholds(graph)
    tensors = [t for t in (*model.parameters(), *model.buffers()) if t.is_floating_point()]
    double = all(t.dtype == torch.float64 for t in tensors)
    # a file keeps nodes by name, and so forgets the order of arguments
    names = model.flow.inputs if isinstance(model, NIRModel) else graph.names("Input")
    dt, discretization = float(options.clock.dt), options.clock.discretization
    graph.metadata.update(mode=options.mode, dt=dt, discretization=discretization)
    graph.metadata["dtype"] = "float64" if double else "float32"
    graph.metadata[INPUT_ORDER] = json.dumps(names)
    return graph


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
        model: as :func:`to_nir`; so are all arguments but ``path``.
        path: the file; an existing one is replaced when the new one is complete.
        sample: the input of one step, or its shape without the batch.
        dt: seconds per time step.
        mode: ``"exact"`` or ``"compact"``.
        discretization: ``"euler"`` or ``"exponential"``.
        allow_hard_reset: write compact LIFs for layers that subtract.

    Raises:
        TypeError, ValueError, ModuleNotFoundError: as :func:`to_nir`.
        OSError: the file cannot be written; an existing one is left as it is.

    Example:
        >>> import tempfile, tracetorch as tt
        >>> net = nn.Sequential(nn.Linear(4, 3), LIF(3)).double()
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save(net, f"{folder}/net.nir", (4,))
        ...     again = tt.nir.from_nir(f"{folder}/net.nir", dt=1e-4)
        >>> x = torch.rand(8, 4).double()
        >>> torch.equal(again(x), net(x))
        True
    """
    options: Any = {"discretization": discretization, "allow_hard_reset": allow_hard_reset}
    graph = to_nir(model, sample, dt=dt, mode=mode, **options)
    import nir

    # HDF5 keeps a file that it failed to write, and ends the process when it closes it: no disk
    file = io.BytesIO()
    nir.write(file, graph)
    with atomic_replace(path) as unfinished:
        unfinished.write_bytes(file.getbuffer())


def _inputs(model: nn.Module, sample: Any) -> tuple[Tensor, ...]:
    if isinstance(sample, Tensor):
        return (sample,)
    if isinstance(sample, tuple) and sample and all(isinstance(x, Tensor) for x in sample):
        return sample
    sizes = list(sample) if isinstance(sample, Sequence) and not isinstance(sample, str) else []
    if not sizes or any(isinstance(n, bool) or not isinstance(n, int) or n < 1 for n in sizes):
        allowed = "a tensor [B, ...], a tuple of them, or the shape of one input without the batch"
        raise TypeError(f"sample must be {allowed}, (1, 28, 28) say; got {sample!r}.")
    tensors = (*model.parameters(), *model.buffers(), torch.empty(0))
    like = next(each for each in tensors if each.is_floating_point())
    return (torch.zeros(1, *sizes, dtype=like.dtype, device=like.device),)


def _dictionary(node: Node | NodeGraph) -> dict[str, Any]:
    """Return the dictionary that NIR makes of a node, and a node of."""
    if isinstance(node, NodeGraph):
        nodes = {name: _dictionary(part) for name, part in node.nodes.items()}
        graph = {"nodes": nodes, "edges": list(node.edges), "metadata": dict(node.metadata)}
        return {"type": "NIRGraph", "type_check": False, **graph}
    fields: dict[str, Any] = {"type": node.kind, "metadata": {}, **node.arrays}
    for name, value in node.settings.items():
        if isinstance(value, tuple) and node.kind != "Conv2d":
            value = int(value[0]) if node.kind == "Conv1d" else np.array(value)
        fields[name] = value
    return fields


def _declare_shapes(graph: nir.NIRGraph, wiring: Wiring, prefix: str = "") -> None:
    """Declare all shapes: NIR infers some of them, and those of non-square kernels wrongly."""
    for name, node in graph.nodes.items():
        full = f"{prefix}{name}"
        if hasattr(node, "nodes"):
            _declare_shapes(node, wiring, f"{full}.")
        elif full in wiring.shapes:  # it leads to an Output
            node.input_type = {"input": np.array(wiring.input_shape(full))}
            node.output_type = {"output": np.array(wiring.shapes[full])}
