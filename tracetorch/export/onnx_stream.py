"""Run an exported ONNX file step by step, keeping its states: ``OnnxStream``."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tracetorch.core.checks import suggestion
from tracetorch.core.files import check_regular_file
from tracetorch.core.optional import require
from tracetorch.export.interface import (
    METADATA_KEY,
    Interface,
    fill_structure,
    leaf_names,
    next_state_name,
)
from tracetorch.export.tensor_spec import TensorSpec, initial_states
from tracetorch.snn.module import check_mask

Array: TypeAlias = Tensor | NDArray[Any]


class OnnxStream:
    """Run a file that ``tt.export.onnx`` wrote, step by step, with ``onnxruntime``.

    A call runs one time step, like a call of the model: the states start as the model's, take the
    batch size of the first input, and are kept until ``zero_states()``. A call that fails changes
    nothing.

    Args:
        path: the file.
        providers: execution providers of ``onnxruntime``, in order of preference.
        threads: number of threads for one operation; for the small products of a single step one
            is usually fastest.

    Shape:
        Inputs ``[B, ...]`` and outputs as the model's.

    Raises:
        ModuleNotFoundError: the extra ``export`` is missing.
        FileNotFoundError: there is no such file.
        ValueError: the file is not an ONNX file, ``tt.export.onnx`` did not write it, or the names
            that it gives to inputs and states are not those of its graph.

    Example:
        >>> import tempfile
        >>> from tracetorch.export.onnx_file import onnx
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     onnx(LIF(2, beta=0.5), f"{folder}/lif.onnx", torch.rand(1, 2))
        ...     stream = OnnxStream(f"{folder}/lif.onnx")
        >>> [stream(torch.tensor([[0.75, 0.25]])).tolist() for _ in range(2)]
        [[[0.0, 0.0]], [[1.0, 0.0]]]
        >>> stream.get_states()
        {'mem': tensor([[0.1250, 0.3750]])}
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        providers: Sequence[str] = ("CPUExecutionProvider",),
        threads: int = 1,
    ) -> None:
        require("onnxruntime", extra="export", by="tt.export.OnnxStream")
        self.path = check_regular_file(path, "an ONNX file")
        self._session = _open_session(self.path, list(providers), threads)
        self.interface = _read_interface(self._session, self.path)
        # None before the first step: only the first input gives the batch size.
        self._states: dict[str, NDArray[Any]] | None = None
        self._batch: int | None = None

    def __call__(self, *args: Array, **kwargs: Array) -> Any:
        """Run one time step; return tensors if any input is a tensor, else NumPy arrays.

        Args:
            args: positional inputs, as for ``forward``.
            kwargs: inputs by name.

        Raises:
            TypeError: an input is missing, unknown, or of another dtype.
            ValueError: an input is of another shape, or of another batch than the states.
        """
        names = list(self.interface.inputs)
        inputs = {**dict(zip(names, args, strict=False)), **kwargs}
        if len(args) + len(kwargs) != len(names) or inputs.keys() != set(names):
            raise TypeError(
                f"the model takes {names}, each once; got {len(args)} by position and "
                f"{list(kwargs)} by name."
            )
        arrays, batch = _checked("input", inputs, self.interface.inputs)
        states = self._states
        if states is None:
            states = {name: start.numpy() for name, start in self._initial(batch).items()}
        elif batch != self._batch:
            raise ValueError(
                f"the states are those of a batch of {self._batch}, the input has {batch}. Call "
                "zero_states() before a new sequence."
            )
        outputs = self.interface.outputs
        values = dict(
            zip(
                self.interface.output_names(),
                self._session.run(self.interface.output_names(), {**arrays, **states}),
                strict=True,
            )
        )
        # Only after the run: a step that fails leaves the states unchanged.
        self._states = {name: values[next_state_name(name)] for name in self.interface.states}
        self._batch = batch
        if any(isinstance(each, Tensor) for each in inputs.values()):
            values = {name: torch.from_numpy(values[name]) for name in leaf_names(outputs)}
        return fill_structure(outputs, values)

    def zero_states(self, *, where: Tensor | None = None) -> None:
        """Start a new sequence, with any batch size; with ``where`` restart just those samples.

        Args:
            where: boolean mask over the batch; ``True`` sets the sample to initial states.

        Raises:
            TypeError: the mask is not a boolean tensor.
            IndexError: it does not fit the batch.
        """
        if where is not None:
            check_mask(where)
        if where is None or self._states is None:
            self._states = None
            return
        mask = where.cpu().numpy()
        changed = {name: state.copy() for name, state in self._states.items()}
        for name, start in self._initial(len(where)).items():
            changed[name][mask] = start.numpy()[mask]
        self._states = changed

    def get_states(self) -> dict[str, Tensor]:
        """Return copies of the states, as ``tt.get_states`` does; none before the first input."""
        return {name: torch.tensor(state) for name, state in (self._states or {}).items()}

    def set_states(self, states: Mapping[str, Array]) -> None:
        """Continue from ``states``, from this stream or from ``tt.get_states(model)``.

        Args:
            states: every state by its name, all of one batch size; an empty dict does the same as
                ``zero_states()``.

        Raises:
            TypeError: a state is of another dtype.
            ValueError: a name is unknown or missing, or a shape does not fit.
        """
        if not states:
            self.zero_states()
            return
        known = self.interface.states
        # Some states alone would mix two sequences.
        if states.keys() != known.keys():
            unknown = [name for name in states if name not in known]
            hint = suggestion(unknown[0], known) if unknown else ""
            raise ValueError(
                f"all states are needed, or none: {list(known)}, got {list(states)}.{hint} To "
                "change some, write stream.set_states({**stream.get_states(), ...})."
            )
        arrays, self._batch = _checked("state", states, known)
        self._states = {name: array.copy() for name, array in arrays.items()}

    def _initial(self, batch: int) -> dict[str, Tensor]:
        return initial_states(self.interface.states, self.interface.initial, batch)

    def __repr__(self) -> str:
        inputs = ", ".join(f"{name}: {spec}" for name, spec in self.interface.inputs.items())
        return f"OnnxStream({str(self.path)!r}, {inputs}, {len(self.interface.states)} states)"


def _checked(
    kind: str, values: Mapping[str, Array], specs: Mapping[str, TensorSpec]
) -> tuple[dict[str, NDArray[Any]], int]:
    """Return values as arrays, and their batch size; raise where one does not fit its spec."""
    arrays: dict[str, NDArray[Any]] = {}
    batches: dict[str, int] = {}
    for name, spec in specs.items():
        value = values[name]
        array = value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
        if str(array.dtype) != spec.dtype:
            raise TypeError(
                f"the {kind} {name!r} must be {spec.dtype}, got {array.dtype}. Convert it first."
            )
        batch = spec.batch_of(array.shape)
        if not batch:
            raise ValueError(
                f"the {kind} {name!r} must have the shape {spec}, got {list(array.shape)}."
            )
        arrays[name], batches[name] = np.ascontiguousarray(array), batch
    if len(set(batches.values())) > 1:
        raise ValueError(f"the {kind}s differ in batch: {batches}.")
    return arrays, next(iter(batches.values()))


def _open_session(path: Path, providers: list[str], threads: int) -> Any:
    import onnxruntime

    available = onnxruntime.get_available_providers()
    # onnxruntime would take another one
    if not providers or not {*providers} <= {*available}:
        raise ValueError(f"onnxruntime has the providers {available}, got {providers}.")
    # Operations of one step depend on each other: running several at once gains nothing.
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3  # errors only
    try:
        return onnxruntime.InferenceSession(path, options, providers=providers)
    except Exception as error:  # onnxruntime's errors have no common base
        raise ValueError(
            f"onnxruntime cannot run {str(path)!r} with {providers}: {error}. If that is for a "
            "dtype, export the model in float32: model.float()."
        ) from error


def _read_interface(session: Any, path: Path) -> Interface:
    """Read the interface from a file's metadata, and check it against the graph."""
    text = session.get_modelmeta().custom_metadata_map.get(METADATA_KEY)
    if text is None:
        raise ValueError(
            f"{str(path)!r} was not written by tt.export.onnx: it does not say which of its inputs "
            "are states."
        )
    try:
        interface = Interface.loads(text)
        graph = {each.name for each in session.get_inputs()}
        outputs = {each.name for each in session.get_outputs()}
        names = interface.input_names(), interface.output_names()
        # An edited file may have outputs besides; a missing one would fail at the first step.
        if {*names[0]} != graph or not {*names[1]} <= outputs:
            raise ValueError(
                f"it has inputs {sorted(graph)} and outputs {sorted(outputs)}, and speaks of "
                f"{names[0]} and {names[1]}."
            )
    except ValueError as error:
        raise ValueError(f"{str(path)!r} describes itself wrongly: {error}") from None
    return interface
