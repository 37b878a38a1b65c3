"""One time step as an ONNX file."""

from __future__ import annotations

import inspect
import os
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from tracetorch.core.files import atomic_replace
from tracetorch.core.optional import require
from tracetorch.core.torch_private import pytree
from tracetorch.core.version import __version__
from tracetorch.export.interface import KEY, Interface, named
from tracetorch.export.port import Port
from tracetorch.export.step import exported
from tracetorch.unrolling.inputs import parse_inputs

_MOST = 2_000_000_000  # bytes; a protobuf message ends at 2 GiB


def onnx(model: nn.Module, path: str | os.PathLike[str], sample: Any) -> None:
    """Write one time step of ``model`` as an ONNX file, its states named inputs and outputs.

    An input is named as the argument of ``forward`` (``x``), a state as by ``tt.get_states``
    (``net.1.mem``); the outputs are ``y`` (``y.0``, ``y.aux`` where there are several) and the next
    states ``net.1.mem.next``, for an ONNX graph gives each value a name of its own. The batch is
    free. Shapes and dtypes stand in the file's metadata under ``tracetorch``, so that zeros can be
    made for the first step; :class:`tt.export.OnnxStream` does.

    The file is that of the model in eval mode. In onnxruntime on the CPU the neurons compute what
    they compute in PyTorch, bit for bit; matrix products and convolutions round as a runtime likes.

    Args:
        model: any module whose call is one time step; it is left as it was.
        path: the file; replaced only when the new one is whole.
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
        program, probed = exported(model, sample)
        interface = Interface(
            _input_ports(model, program, sample),
            probed.states,
            _output_names(program, len(probed.states)),
            __version__,
        )
        names = [*interface.names_in(), *interface.names_out()]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(
                f"inputs, outputs and states of the file would share the names {twice}. Rename the "
                "arguments of forward, or the modules."
            )
        size = sum(t.nbytes for t in program.state_dict.values() if isinstance(t, Tensor))
        if size > _MOST:
            raise ValueError(
                f"the weights take {size / 1e9:.1f} GB, an ONNX file holds 2 GB. Export "
                "tt.export.step(model, sample) with torch.onnx.export(..., external_data=True)."
            )
        written = torch.onnx.export(
            program,
            (),
            dynamo=True,
            verbose=False,
            input_names=interface.names_in(),
            output_names=interface.names_out(),
        )
        if written is None:
            raise RuntimeError(f"torch.onnx of torch {torch.__version__} gave no program.")
        written.model.metadata_props[KEY] = interface.dumps()
        written.save(unfinished, external_data=False)


def _input_ports(model: nn.Module, program: ExportedProgram, sample: Any) -> dict[str, Port]:
    given = parse_inputs(sample, 1, 0, True).tensors
    if isinstance(given, dict):
        named_inputs = dict(given)
    else:
        several = given if isinstance(given, tuple) else (given,)
        bound = inspect.signature(model.forward).bind(*several)
        named_inputs = {}
        for name, value in bound.arguments.items():
            if isinstance(value, tuple):  # *args
                named_inputs |= {f"{name}.{i}": each for i, each in enumerate(value)}
            else:
                named_inputs[name] = value
    return {
        name: Port(("batch", *x.shape[1:]), str(x.dtype).removeprefix("torch."))
        for name, x in named_inputs.items()
    }


def _output_names(program: ExportedProgram, states: int) -> Any:
    spec = program.call_spec.out_spec
    places = list(range(len(program.graph_signature.user_outputs)))
    seen = {node.name: node.meta.get("val") for node in program.graph.nodes}
    for place, output in enumerate(program.graph_signature.user_outputs):
        if not isinstance(seen.get(str(output)), Tensor):
            raise TypeError(f"output {place} of forward is no tensor: {output!r}.")
    y, _ = pytree.tree_unflatten(places, spec)
    return named("y", y)
