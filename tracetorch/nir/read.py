"""Read a NIR graph or file as a model: ``from_nir``."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from tracetorch.core.checks import check_choice
from tracetorch.core.optional import require
from tracetorch.nir.model import NIRModel
from tracetorch.nir.node_graph import Node, NodeGraph, naming
from tracetorch.nir.node_to_module import modules_of
from tracetorch.nir.options import Clock, Discretization, Reset
from tracetorch.nir.parse import load, parse
from tracetorch.nir.wiring import wire
from tracetorch.snn import TTModule


def from_nir(
    graph: Any, *, dt: float, reset: Reset = "zero", discretization: Discretization = "euler"
) -> TTModule:
    """Make the model that a NIR graph describes, one call per time step.

    Nodes become PyTorch's modules and, where they compute the same, our layers: ``nir.LIF`` without
    leak and reset potentials is ``snn.LIF``, ``nir.LI`` is ``snn.Readout``, CubaLIF and CubaLI are
    ``snn.SLIF`` and ``snn.SReadout``, ``nir.Delay`` is ``snn.Delay``. Others keep all of NIR's
    parameters. What :func:`to_nir` wrote with ``mode="exact"`` comes back as the layers it was, if
    they are of this package and nothing was edited. Every parameter can be trained on.

    NIR speaks of continuous time and leaves three things open, decided so: a membrane starts at
    rest (``v_leak``; ``v_reset`` for an IF; zero for an I); a synapse moves before its membrane
    does; and a cycle brings what spiked in the step before, none at the first. Which edge is
    late follows from the nodes, in any order of edges: one into a node where the Inputs enter the
    cycle, out of what spikes or from behind it, in a cycle where nothing spikes out of what holds a
    state; then so in what is left of cycles. Where the Inputs enter at one place, it is what leads
    back there; two neurons that both get the Inputs and each other's spikes get these late. What a
    Scale by zero makes a constant of enters no cycle. What stands between, a Linear with its bias
    say, is computed of the late spikes, and so of none too, as in snnTorch's ``RLeaky``.

    Args:
        graph: a ``nir.NIRGraph``, or the path of a file.
        dt: seconds per time step. Decays follow from it: a file written at another ``dt`` describes
            the same continuous network, in other steps and with other spikes.
        reset: what a spike does to the membrane of LIF, CubaLIF and IF: ``"zero"`` sets it to
            ``v_reset``, ``"subtract"`` takes ``v_threshold - v_reset`` off.
        discretization: ``"euler"``, ``decay = 1 - dt / tau``; or ``"exponential"``,
            ``decay = exp(-dt / tau)``.

    Returns:
        A ``TTModule`` in float64 if all parameters in the graph are, else in float32.

    Raises:
        ModuleNotFoundError: the extra ``nir`` is not installed.
        FileNotFoundError: there is no such file.
        TypeError: an argument is of the wrong type.
        ValueError: the file is damaged, or holds what is no graph or cannot be computed; the
            message names the node.

    Example:
        >>> import numpy as np, nir
        >>> lif = nir.LIF(*(np.full(2, x) for x in (1e-3, 10.0, 0.0, 1.0)))
        >>> model = from_nir(nir.NIRGraph.from_list(lif), dt=1e-4)
        >>> [model(torch.tensor([[0.6, 0.2]])).tolist() for _ in range(2)]
        [[[0.0, 0.0]], [[1.0, 0.0]]]

    Reference: Pedersen et al., Neuromorphic intermediate representation, Nature Communications 15,
    8122 (2024), doi:10.1038/s41467-024-52259-9.
    """
    require("nir", "h5py", extra="nir", by="tt.nir")
    import nir

    clock = Clock(dt, discretization)
    check_choice("reset", reset, ("zero", "subtract"))
    if isinstance(graph, nir.NIRGraph):
        return model_of(graph.to_dict(), clock, reset)
    if isinstance(graph, (str, os.PathLike)):
        return model_of(load(graph), clock, reset)
    raise TypeError(f"expected a nir.NIRGraph or the path of a file, got {type(graph).__name__}.")


def model_of(dictionary: Any, clock: Clock, reset: Reset) -> NIRModel:
    """Return the model that NIR's dictionary describes."""
    checked = parse(dictionary)
    _check_clock(checked, clock)
    nodes, wiring = wire(checked, clock)
    modules = modules_of(nodes, wiring, clock, reset)
    dtype = _dtype(checked, nodes.values())
    for name, module in modules.items():
        with naming(name, nodes[name].kind):
            _check_range(module, dtype)
    return NIRModel(wiring, modules, clock).to(dtype)


def _check_clock(graph: NodeGraph, clock: Clock) -> None:
    # The feedback of a soft reset holds for one dt; a compact graph may be read at another.
    fixed = {"exact": ("dt", "discretization"), "compact": ("discretization",)}
    for name in fixed.get(str(graph.metadata.get("mode")), ()):
        written, requested = graph.metadata.get(name), getattr(clock, name)
        if isinstance(written, (str, float)) and written != requested:
            problem = f"the graph was written for {name}={written!r}, and holds for that alone"
            raise ValueError(f"{problem}, got {name}={requested!r}.")


def _check_range(module: nn.Module, dtype: torch.dtype) -> None:
    """Raise where a cast to ``dtype`` makes a finite value infinite."""
    for name, value in (*module.named_parameters(), *module.named_buffers()):
        beyond = value.isfinite() & ~value.to(dtype).isfinite()
        if beyond.any():
            field = name.rpartition(".")[2].removeprefix("raw_")
            raise ValueError(
                f"{field} holds {value[beyond][0].item():.3g}, which {dtype} cannot. A graph is "
                "read in float64 where all of its parameters are float64: write them so, or "
                "scale them."
            )


def _dtype(graph: NodeGraph, nodes: Iterable[Node]) -> torch.dtype:
    names = {str(graph.metadata.get("dtype"))}
    if names not in ({"float32"}, {"float64"}):
        names = {array.dtype.name for node in nodes for array in node.arrays.values()}
    return torch.float64 if names == {"float64"} else torch.float32
