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
from tracetorch.export.tensor_spec import DTYPES, TensorSpec
from tracetorch.snn.module import check_mask

Array: TypeAlias = Tensor | NDArray[Any]


# names of onnxruntime where they are not PyTorch's
_DTYPES = {f"tensor({name})": name for name in DTYPES} | {
    "tensor(float)": "float32",
    "tensor(double)": "float64",
}


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
        ValueError: the file is not an ONNX file, ``tt.export.onnx`` did not write it, or what it
            says of its inputs and states is not what its graph has.

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
        inputs = self._bind_inputs(args, kwargs)
        arrays: dict[str, NDArray[Any]] = {}
        batches: dict[str, int] = {}
        for name, spec in self.interface.inputs.items():
            arrays[name], batches[name] = _check_array(f"the input {name!r}", inputs[name], spec)
        batch = next(iter(batches.values()))
        if len(set(batches.values())) > 1:
            raise ValueError(f"the inputs differ in batch: {batches}.")
        if self._states is not None and batch != self._batch:
            raise ValueError(
                f"the states are those of a batch of {self._batch}, the input has {batch}. Call "
                "zero_states() before a new sequence."
            )
        states = self._states
        if states is None:
            states = {n: s.numpy() for n, s in self.interface.initial_states(batch).items()}
        names = self.interface.output_names()
        values = dict(zip(names, self._session.run(names, {**arrays, **states}), strict=True))
        # Only after the run: a step that fails leaves the states unchanged.
        self._states = {name: values[next_state_name(name)] for name in self.interface.states}
        self._batch = batch
        outputs = self.interface.outputs
        if any(isinstance(each, Tensor) for each in inputs.values()):
            values = {name: torch.from_numpy(values[name]) for name in leaf_names(outputs)}
        return fill_structure(outputs, values)

    def zero_states(self, *, where: Tensor | None = None) -> None:
        """Start a new sequence, with any batch size; with ``where`` restart just those samples.

        Args:
            where: boolean mask over the batch; ``True`` sets the sample to initial states.

        Raises:
            TypeError: the mask is not a boolean tensor.
            ValueError: it does not fit the batch.
        """
        if where is None:
            self._states = None
            return
        check_mask(where)
        if self._states is None:
            return
        for name, state in self._states.items():
            if len(state) != len(where):  # of a module that folds something into the batch, too
                raise ValueError(
                    f"{name} is held for a batch of {len(state)}, shape {list(state.shape)}; the "
                    f"mask has {len(where)} entries."
                )
        mask = where.cpu().numpy()
        for name, start in self.interface.initial_states(len(where)).items():
            state = self._states[name].copy()
            state[mask] = start.numpy()[mask]
            self._states[name] = state

    def get_states(self) -> dict[str, Tensor]:
        """Return copies of the states, as ``tt.get_states`` does; none before the first input."""
        return {name: torch.tensor(state) for name, state in (self._states or {}).items()}

    def set_states(self, states: Mapping[str, Array]) -> None:
        """Continue from ``states``, from this stream or from ``tt.get_states(model)``.

        Args:
            states: every state by its name, all of one batch size; an empty dict does the same as
                ``zero_states()``.

        Raises:
            TypeError: ``states`` is not a mapping, or a state is of another dtype.
            ValueError: a name is unknown or missing, or a shape does not fit.
        """
        if not isinstance(states, Mapping):
            raise TypeError(f"states must be a mapping of names to tensors, got {states!r}.")
        known = self.interface.states
        for name in states:
            if name not in known:
                raise ValueError(
                    f"no state is called {name!r}.{suggestion(name, known)} "
                    f"There are {list(known)}."
                )
        if not states:
            self.zero_states()
            return
        # Some states alone would mix two sequences.
        missing = [name for name in known if name not in states]
        if missing:
            raise ValueError(
                f"all states are needed, or none; {missing} are not given. To change some, write "
                "stream.set_states({**stream.get_states(), ...})."
            )
        arrays: dict[str, NDArray[Any]] = {}
        batches: dict[str, int] = {}
        for name, spec in known.items():
            array, batches[name] = _check_array(f"the state {name!r}", states[name], spec)
            arrays[name] = array.copy()  # the caller may change theirs
        if len(set(batches.values())) > 1:
            raise ValueError(f"the states differ in batch: {batches}.")
        self._states, self._batch = arrays, next(iter(batches.values()))

    def __repr__(self) -> str:
        inputs = ", ".join(f"{name}: {spec}" for name, spec in self.interface.inputs.items())
        return f"OnnxStream({str(self.path)!r}, {inputs}, {len(self.interface.states)} states)"

    def _bind_inputs(self, args: tuple[Array, ...], kwargs: dict[str, Array]) -> dict[str, Array]:
        """Return the inputs by name, as Python binds arguments to the parameters of a function."""
        names = list(self.interface.inputs)
        if len(args) > len(names):
            raise TypeError(f"the model takes {names}, got {len(args)} inputs.")
        inputs = dict(zip(names, args, strict=False))
        for name, value in kwargs.items():
            if name not in names or name in inputs:
                raise TypeError(f"the input {name!r} is unknown or given twice; there are {names}.")
            inputs[name] = value
        missing = [name for name in names if name not in inputs]
        if missing:
            raise TypeError(f"the inputs {missing} are not given; there are {names}.")
        return inputs


def _check_array(label: str, value: object, spec: TensorSpec) -> tuple[NDArray[Any], int]:
    """Return ``value`` as an array, and its batch size; raise where it does not fit ``spec``."""
    if isinstance(value, Tensor):
        value = value.detach().cpu()
    elif not isinstance(value, np.ndarray):
        raise TypeError(
            f"{label} must be a tensor or an array, got {type(value).__name__}. "
            "Wrap numbers in torch.as_tensor(...)."
        )
    dtype = str(value.dtype).removeprefix("torch.")
    if dtype != spec.dtype:
        raise TypeError(f"{label} must be {spec.dtype}, got {dtype}. Convert it first.")
    batch = spec.batch_of(value.shape)
    if not batch:
        raise ValueError(f"{label} must have the shape {spec}, got {list(value.shape)}.")
    return np.ascontiguousarray(value), batch


def _open_session(path: Path, providers: list[str], threads: int) -> Any:
    import onnxruntime

    available = onnxruntime.get_available_providers()
    unknown = [name for name in providers if name not in available]
    if unknown or not providers:
        raise ValueError(f"onnxruntime has the providers {available}, got {providers}.")
    # Operations of one step depend on each other: running several at once gains nothing.
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3  # errors only
    try:
        return onnxruntime.InferenceSession(path, options, providers=providers)
    except Exception as error:  # onnxruntime's errors have no common base
        # A kernel is missing for a dtype, where the file itself is right.
        if "NOT_IMPLEMENTED" in str(error):
            raise ValueError(
                f"onnxruntime cannot run {str(path)!r} with {providers}: {error}. If that is for a "
                "dtype, export the model in float32: model.float()."
            ) from error
        raise ValueError(
            f"onnxruntime cannot read {str(path)!r} as an ONNX file: {error}"
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
    except ValueError as error:
        raise ValueError(f"{str(path)!r} describes itself wrongly: {error}") from None
    inputs = {each.name: each for each in session.get_inputs()}
    outputs = {each.name for each in session.get_outputs()}
    # An edited file may have outputs besides; a missing one would fail at the first step.
    if set(interface.input_names()) != set(inputs) or not set(interface.output_names()) <= outputs:
        raise ValueError(
            f"{str(path)!r} describes itself wrongly: it has inputs {sorted(inputs)} and outputs "
            f"{sorted(outputs)}, and speaks of {interface.input_names()} and "
            f"{interface.output_names()}."
        )
    for name, spec in {**interface.inputs, **interface.states}.items():
        node = inputs[name]
        if not spec.fits(node.shape) or _DTYPES.get(node.type, node.type) != spec.dtype:
            raise ValueError(
                f"{str(path)!r} describes itself wrongly: its graph has {name!r} of shape "
                f"{node.shape}, {node.type}, and it speaks of {spec}."
            )
        if DTYPES[spec.dtype] is torch.bfloat16:
            raise ValueError(f"{name!r} is bfloat16, which NumPy and onnxruntime on the CPU lack.")
    return interface
