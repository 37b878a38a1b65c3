"""Write one time step of a model as an ONNX file."""

from __future__ import annotations

import inspect
import os
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from tracetorch.core.files import atomic_replace
from tracetorch.core.optional import require
from tracetorch.core.torch_private import one_trace_at_a_time, pytree
from tracetorch.core.version import __version__
from tracetorch.export.exported import ignore_own_warnings
from tracetorch.export.interface import METADATA_KEY, Interface, Structure, name_leaves
from tracetorch.export.step import export_step
from tracetorch.export.tensor_spec import TensorSpec
from tracetorch.unrolling.inputs import parse_inputs

_CLAMPS = ("clamp.default", "clamp_.default", "clip.default", "clip_.default")
_MAX_BYTES = 2_000_000_000  # a protobuf message ends at 2 GiB


@one_trace_at_a_time
def onnx(model: nn.Module, path: str | os.PathLike[str], sample: Any) -> None:
    """Write one time step of ``model`` as an ONNX file, its states named inputs and outputs.

    An input is named as the argument of ``forward`` (``x``), a state as by ``tt.get_states``
    (``net.1.mem``); the outputs are ``y`` (``y.0``, ``y.aux`` where there are several) and the next
    states ``net.1.mem.next``, for an ONNX graph gives each value a name of its own. The batch is
    free. The file's metadata holds shapes and dtypes under ``tracetorch``, and what states
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
        interface = Interface(
            _input_specs(model, sample), signature.states,
            {name: value.tolist() for name, value in signature.initial.items()},
            _output_structure(program), __version__,
        )  # fmt: skip
        names = [*interface.input_names(), *interface.output_names()]
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
                program, (), dynamo=True, verbose=False, input_names=interface.input_names(),
                output_names=interface.output_names(),
            )  # fmt: skip
        converted.model.metadata_props[METADATA_KEY] = interface.dumps()
        converted.save(unfinished, external_data=False)


def _unify_clamps(program: ExportedProgram) -> None:
    """Give clamps of floats bounds of floats: ``torch.onnx`` fails at an int beside a float."""
    for node in program.graph.nodes:
        clamps = str(node.target).removeprefix("aten.") in _CLAMPS
        if clamps and node.meta["val"].dtype.is_floating_point:
            node.args = pytree.tree_map_only(int, float, node.args)
            node.kwargs = pytree.tree_map_only(int, float, node.kwargs)


def _input_specs(model: nn.Module, sample: Any) -> dict[str, TensorSpec]:
    """Return the spec of every input by the name of its argument of ``forward``."""
    tensors = parse_inputs(sample, 1, 0, True).tensors
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
    return {
        name: TensorSpec(("batch", *x.shape[1:]), str(x.dtype).removeprefix("torch."))
        for name, x in tensors.items()
    }


def _output_structure(program: ExportedProgram) -> Structure:
    """Name the outputs of a program, nested like the return value of ``forward``."""
    outputs = program.graph_signature.user_outputs
    values = {node.name: node.meta.get("val") for node in program.graph.nodes}
    for place, output in enumerate(outputs):
        if not isinstance(values.get(str(output)), Tensor):
            raise TypeError(f"output {place} of forward is no tensor: {output!r}.")
    # Unflattening the positions gives the nesting without the tensors; the states come second.
    y, _ = pytree.tree_unflatten(list(range(len(outputs))), program.call_spec.out_spec)
    return name_leaves("y", y)
