"""A stream through an ONNX file: the runner keeps the states from step to step."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tracetorch.core.optional import require
from tracetorch.export.interface import KEY, Interface, filled, leaves, next_of
from tracetorch.export.port import DTYPES, Port

Array: TypeAlias = Tensor | NDArray[Any]


class OnnxStream:
    """Run a file that ``tt.export.onnx`` wrote, step by step, with ``onnxruntime``.

    Calling it runs one time step, as calling the model does: the states start at zero, follow the
    batch of the first input, and carry over until ``zero_states()``. A call that fails changes
    nothing.

    Args:
        path: the file.
        providers: where ``onnxruntime`` runs it, in order of preference.
        threads: how many threads one operation may use; for the small products of a single step one
            is usually fastest.

    Shape:
        Inputs ``[B, ...]`` and outputs as the model's.

    Raises:
        ModuleNotFoundError: the extra ``export`` is missing.
        FileNotFoundError: there is no such file.
        ValueError: the file is not an ONNX file, or not one of ours.

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
        self.path = Path(path)
        if not self.path.is_file():
            raise FileNotFoundError(f"there is no file {str(self.path)!r}.")
        self._session = _session(self.path, list(providers), threads)
        self.interface = _interface(self._session, self.path)
        self._states: dict[str, NDArray[Any]] | None = None
        self._batch = 0

    def __call__(self, *args: Array, **kwargs: Array) -> Any:
        """One time step; tensors come back where a tensor was given, else NumPy arrays.

        Args:
            args: the inputs, as ``forward`` takes them.
            kwargs: likewise, by name.

        Raises:
            TypeError: an input is missing, unknown, or of another dtype.
            ValueError: an input is of another shape, or of another batch than the states.
        """
        given = self._bound(args, kwargs)
        arrays: dict[str, NDArray[Any]] = {}
        batches: dict[str, int] = {}
        for name, port in self.interface.inputs.items():
            arrays[name], batches[name] = _checked(f"the input {name!r}", given[name], port)
        batch = next(iter(batches.values()))
        if len(set(batches.values())) > 1:
            raise ValueError(f"the inputs differ in batch: {batches}.")
        if self._states is not None and batch != self._batch:
            raise ValueError(
                f"the states are those of a batch of {self._batch}, the input has {batch}. Call "
                "zero_states() before a new sequence."
            )
        states = self._zeros(batch) if self._states is None else self._states
        names = self.interface.names_out()
        values = dict(zip(names, self._session.run(names, {**arrays, **states}), strict=True))
        self._states = {name: values[next_of(name)] for name in self.interface.states}
        self._batch = batch
        if any(isinstance(each, Tensor) for each in given.values()):
            values = {name: torch.from_numpy(values[name]) for name in self._outputs()}
        return filled(self.interface.outputs, values)

    def zero_states(self) -> None:
        """Start a new sequence, of any batch."""
        self._states = None

    def get_states(self) -> dict[str, Tensor]:
        """Copies of the states, as ``tt.get_states`` gives them; none before the first input."""
        return {name: torch.tensor(state) for name, state in (self._states or {}).items()}

    def set_states(self, states: Mapping[str, Array]) -> None:
        """Go on from ``states``, this stream's or those that ``tt.get_states`` read off the model.

        Args:
            states: every state by its name, all of one batch; an empty dict is ``zero_states()``.

        Raises:
            TypeError: ``states`` is not a mapping, or a state is of another dtype.
            ValueError: a name is unknown or missing, or a shape does not fit.
        """
        if not isinstance(states, Mapping):
            raise TypeError(f"states must be a mapping of names to tensors, got {states!r}.")
        known = self.interface.states
        for name in states:
            if name not in known:
                near = difflib.get_close_matches(str(name), list(known), n=1)
                hint = f" Did you mean {near[0]!r}?" if near else ""
                raise ValueError(f"no state is called {name!r}.{hint} There are {list(known)}.")
        if not states:
            self.zero_states()
            return
        missing = [name for name in known if name not in states]
        if missing:
            raise ValueError(
                f"all states are needed, or none; {missing} are not given. To change some, write "
                "stream.set_states({**stream.get_states(), ...})."
            )
        arrays: dict[str, NDArray[Any]] = {}
        batches: dict[str, int] = {}
        for name, port in known.items():
            array, batches[name] = _checked(f"the state {name!r}", states[name], port)
            arrays[name] = array.copy()
        if len(set(batches.values())) > 1:
            raise ValueError(f"the states differ in batch: {batches}.")
        self._states, self._batch = arrays, next(iter(batches.values()))

    def __repr__(self) -> str:
        told = ", ".join(f"{name}: {port}" for name, port in self.interface.inputs.items())
        return f"OnnxStream({str(self.path)!r}, {told}, {len(self.interface.states)} states)"

    def _outputs(self) -> list[str]:
        return leaves(self.interface.outputs)

    def _zeros(self, batch: int) -> dict[str, NDArray[Any]]:
        return {name: port.zeros(batch).numpy() for name, port in self.interface.states.items()}

    def _bound(self, args: tuple[Array, ...], kwargs: dict[str, Array]) -> dict[str, Array]:
        names = list(self.interface.inputs)
        if len(args) > len(names):
            raise TypeError(f"the model takes {names}, got {len(args)} inputs.")
        given = dict(zip(names, args, strict=False))
        for name, value in kwargs.items():
            if name not in names or name in given:
                raise TypeError(f"the input {name!r} is unknown or given twice; there are {names}.")
            given[name] = value
        missing = [name for name in names if name not in given]
        if missing:
            raise TypeError(f"the inputs {missing} are not given; there are {names}.")
        return given


def _checked(what: str, value: object, port: Port) -> tuple[NDArray[Any], int]:
    """The value as an array of the port's shape and dtype, and its batch."""
    if isinstance(value, Tensor):
        value = value.detach().cpu()
    elif not isinstance(value, np.ndarray):
        raise TypeError(
            f"{what} must be a tensor or an array, got {type(value).__name__}. "
            "Wrap numbers in torch.as_tensor(...)."
        )
    dtype = str(value.dtype).removeprefix("torch.")
    if dtype != port.dtype:
        raise TypeError(f"{what} must be {port.dtype}, got {dtype}. Convert it first.")
    batch = port.batch_of(value.shape)
    if not batch:
        raise ValueError(f"{what} must have the shape {port}, got {list(value.shape)}.")
    return np.ascontiguousarray(value), batch


def _session(path: Path, providers: list[str], threads: int) -> Any:
    import onnxruntime

    available = onnxruntime.get_available_providers()
    unknown = [name for name in providers if name not in available]
    if unknown or not providers:
        raise ValueError(f"onnxruntime has the providers {available}, got {providers}.")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(path, options, providers=providers)
    except Exception as error:  # onnxruntime's own have no common base
        if "NOT_IMPLEMENTED" in str(error):
            raise ValueError(
                f"onnxruntime cannot run {str(path)!r} with {providers}: {error}. If that is for a "
                "dtype, export the model in float32: model.float()."
            ) from error
        raise ValueError(
            f"onnxruntime cannot read {str(path)!r} as an ONNX file: {error}"
        ) from error


def _interface(session: Any, path: Path) -> Interface:
    told = session.get_modelmeta().custom_metadata_map.get(KEY)
    if told is None:
        raise ValueError(
            f"{str(path)!r} was not written by tt.export.onnx: it does not say which of its inputs "
            "are states."
        )
    try:
        interface = Interface.loads(told)
    except ValueError as error:
        raise ValueError(f"{str(path)!r} describes itself wrongly: {error}") from None
    names_in = {each.name for each in session.get_inputs()}
    names_out = {each.name for each in session.get_outputs()}
    if set(interface.names_in()) != names_in or not set(interface.names_out()) <= names_out:
        raise ValueError(
            f"{str(path)!r} describes itself wrongly: it has inputs {sorted(names_in)} and outputs "
            f"{sorted(names_out)}, and speaks of {interface.names_in()} and "
            f"{interface.names_out()}."
        )
    for name, port in {**interface.inputs, **interface.states}.items():
        if DTYPES[port.dtype] is torch.bfloat16:
            raise ValueError(f"{name!r} is bfloat16, which NumPy and onnxruntime on the CPU lack.")
    return interface
