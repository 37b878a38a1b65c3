"""Write one time step of a model as an ONNX file."""

from __future__ import annotations

import inspect
import json
import os
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from tracetorch.core import __version__
from tracetorch.core.checks import require
from tracetorch.core.files import atomic_replace
from tracetorch.core.torch_private import one_trace_at_a_time, pytree
from tracetorch.export.program import (
    TensorSpec,
    dtype_name,
    ignore_own_warnings,
    named_leaves,
)
from tracetorch.export.step import export_step
from tracetorch.unrolling.inputs import parse_inputs

METADATA_KEY = "tracetorch"
FORMAT = 1
_CLAMPS = ("clamp.default", "clamp_.default", "clip.default", "clip_.default")
_MAX_BYTES = 2_000_000_000  # a protobuf message ends at 2 GiB


@one_trace_at_a_time
def onnx(model: nn.Module, path: str | os.PathLike[str], sample: Any) -> None:
    """Write one time step of ``model`` as an ONNX file, its states named inputs and outputs.

    An input is named as the argument of ``forward`` (``x``), a state as by ``tt.get_states``
    (``net.1.mem``); the outputs are ``y`` (``y.0``, ``y.aux`` of tuples, lists and dicts) and the
    next states ``net.1.mem.next``, for an ONNX graph gives each value a name of its own. The batch
    is free. The file's metadata holds shapes and dtypes under ``tracetorch``, and what states
    start from, zero unless a layer declares it; :class:`tt.export.OnnxStream` reads them.

    The file is that of the model in eval mode. In onnxruntime on the CPU the neurons compute bit
    for bit what they compute in PyTorch; matrix products and convolutions may round differently.

    Args:
        model: any module whose call is one time step; it is unchanged afterwards.
        path: the file; replaced only when the new one is complete.
        sample: an input of one step, batch first: a tensor, or a tuple or a dict of them.

    Shape:
        ``sample`` ``[B, ...]``.

    Raises:
        ModuleNotFoundError: the extra ``export`` is missing.
        TypeError: as :func:`tt.export.step`; or ``forward`` returns something other than tensors in
            tuples, lists and dicts.
        ValueError: as :func:`tt.export.step`; two names collide; the weights exceed 2 GB.

    Example:
        >>> import tempfile
        >>> import onnxruntime
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     onnx(nn.Sequential(nn.Linear(4, 3), LIF(3)), f"{folder}/net.onnx", torch.rand(1, 4))
        ...     session = onnxruntime.InferenceSession(f"{folder}/net.onnx")
        >>> [value.name for value in session.get_inputs()]
        ['input', '1.mem']
        >>> [value.name for value in session.get_outputs()]
        ['y', '1.mem.next']
    """
    require("onnx", "onnxscript", extra="export", by="tt.export.onnx")
    with atomic_replace(path) as unfinished:
        # torch.onnx decomposes it itself, which takes as long as tracing does
        program, signature = export_step(model, sample, as_traced=True)
        specs = {"inputs": _input_specs(model, sample), "states": signature.states}
        inputs = [*specs["inputs"], *specs["states"]]
        outputs = [*_output_names(program), *map(next_state_name, signature.states)]
        names = [*inputs, *outputs]
        duplicates = sorted({name for name in names if names.count(name) > 1})
        if duplicates:
            raise ValueError(
                f"inputs, outputs and states of the file would share the names {duplicates}. "
                "Rename the arguments of forward, or the modules."
            )
        size = sum(t.nbytes for t in program.state_dict.values() if isinstance(t, Tensor))
        if size > _MAX_BYTES:  # it would fail late, and with an error of protobuf
            raise ValueError(
                f"the weights take {size / 1e9:.1f} GB, an ONNX file holds 2 GB. Export "
                "tt.export.step(model, sample) with torch.onnx.export(..., external_data=True)."
            )
        _unify_clamps(program)
        with ignore_own_warnings():
            converted: Any = torch.onnx.export(
                program, (), dynamo=True, verbose=False, input_names=inputs, output_names=outputs
            )
        description = {
            kind: {n: asdict(spec) for n, spec in of.items()} for kind, of in specs.items()
        }
        initial = {name: value.tolist() for name, value in signature.initial.items()}
        converted.model.metadata_props[METADATA_KEY] = json.dumps(
            {"format": FORMAT, "version": __version__, **description, "initial": initial}
        )
        converted.save(unfinished, external_data=False)


def _unify_clamps(program: ExportedProgram) -> None:
    """Give clamps of floats bounds of floats: ``torch.onnx`` fails at an int beside a float."""
    for node in program.graph.nodes:
        clamps = str(node.target).removeprefix("aten.") in _CLAMPS
        if clamps and node.meta["val"].dtype.is_floating_point:
            node.args = pytree.tree_map_only(int, float, node.args)
            node.kwargs = pytree.tree_map_only(int, float, node.kwargs)


def _input_specs(model: nn.Module, sample: Any) -> dict[str, TensorSpec]:
    tensors = parse_inputs(sample, 1).tensors
    if not isinstance(tensors, dict):
        # Positional inputs get the names of forward's arguments.
        args = tensors if isinstance(tensors, tuple) else (tensors,)
        bound = inspect.signature(model.forward).bind(*args)
        tensors = {}
        for name, value in bound.arguments.items():
            if isinstance(value, tuple):  # *args
                tensors |= {f"{name}.{i}": each for i, each in enumerate(value)}
            else:
                tensors[name] = value
    return {name: TensorSpec(("batch", *x.shape[1:]), dtype_name(x)) for name, x in tensors.items()}


def _output_names(program: ExportedProgram) -> list[str]:
    """Name the tensors that ``forward`` returns, ``y.0.aux`` for ``y[0]["aux"]``."""
    ends = list(program.graph_signature.user_outputs)
    values = {node.name: node.meta.get("val") for node in program.graph.nodes}
    y, _ = pytree.tree_unflatten(ends, program.call_spec.out_spec)
    leaves = named_leaves("y", y, ".")
    for name, output in leaves:
        if not isinstance(values.get(str(output)), Tensor):
            raise TypeError(f"the output {name} of forward is no tensor: {output!r}.")
    return [name for name, _ in leaves]


def next_state_name(state: str) -> str:
    """Name the output of a state's next value: in ONNX it cannot have the input's name."""
    return f"{state}.next"
