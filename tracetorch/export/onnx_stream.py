"""Run an exported ONNX file step by step, keeping its states: ``OnnxStream``."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tracetorch.core.checks import require, suggestion
from tracetorch.core.files import check_regular_file
from tracetorch.export.onnx_file import FORMAT, METADATA_KEY, next_state_name
from tracetorch.export.program import DTYPES, TensorSpec, factor_of
from tracetorch.snn.module import check_mask

Array: TypeAlias = Tensor | NDArray[Any]
# all that indexing, iterating and nesting of arbitrary JSON can raise
_MALFORMED = (LookupError, TypeError, AttributeError, ValueError, RuntimeError, OverflowError)
Specs: TypeAlias = dict[str, TensorSpec]


class OnnxStream:
    """Run a file that ``tt.export.onnx`` wrote, step by step, with ``onnxruntime``.

    A call runs one time step, like a call of the model: the states start as the model's, take the
    batch size of the first input, and are kept until ``zero_states()``. A call that fails changes
    nothing. Of a model that returns tuples, lists or dicts the outputs are in a dict, by their
    names in the file, ``y.0`` or ``y.aux``.

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
            says of inputs and states is not so in its graph.

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
        self._inputs, self._known, self._starts = _described(self._session, self.path)
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
        names = list(self._inputs)
        inputs = {**dict(zip(names, args, strict=False)), **kwargs}
        if len(args) + len(kwargs) != len(names) or inputs.keys() != set(names):
            raise TypeError(
                f"the model takes {names}, each once; got {len(args)} by position and "
                f"{list(kwargs)} by name."
            )
        arrays, batch = _checked("input", inputs, self._inputs)
        states = self._states
        if states is None:
            states = self._initial(batch)
        elif batch != self._batch:
            raise ValueError(
                f"the states are those of a batch of {self._batch}, the input has {batch}. Call "
                "zero_states() before a new sequence."
            )
        names = [each.name for each in self._session.get_outputs()]
        values: dict[str, Any] = dict(
            zip(names, self._session.run(names, {**arrays, **states}), strict=True)
        )
        # Only after the run: a step that fails leaves the states unchanged.
        self._states = {name: values.pop(next_state_name(name)) for name in self._known}
        self._batch = batch
        if any(isinstance(each, Tensor) for each in inputs.values()):
            values = {name: torch.from_numpy(value) for name, value in values.items()}
        return values["y"] if [*values] == ["y"] else values

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
            changed[name][mask] = start[mask]
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
        # Some states alone would mix two sequences.
        if states.keys() != self._known.keys():
            unknown = [name for name in states if name not in self._known]
            hint = suggestion(unknown[0], self._known) if unknown else ""
            raise ValueError(
                f"all states are needed, or none: {list(self._known)}, got {list(states)}.{hint} "
                "To change some, write stream.set_states({**stream.get_states(), ...})."
            )
        arrays, self._batch = _checked("state", states, self._known)
        self._states = {name: array.copy() for name, array in arrays.items()}

    def _initial(self, batch: int) -> dict[str, NDArray[Any]]:
        starts = self._starts
        return {n: spec.full(batch, starts.get(n, 0.0)).numpy() for n, spec in self._known.items()}

    def __repr__(self) -> str:
        inputs = ", ".join(f"{name}: {spec}" for name, spec in self._inputs.items())
        return f"OnnxStream({str(self.path)!r}, {inputs}, {len(self._known)} states)"


def _checked(
    kind: str, values: Mapping[str, Array], specs: Specs
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


def _described(session: Any, path: Path) -> tuple[Specs, Specs, dict[str, Tensor]]:
    """Read specs of inputs and states, and what states start from; check them with the graph."""
    text = session.get_modelmeta().custom_metadata_map.get(METADATA_KEY)
    if text is None:
        raise ValueError(
            f"{str(path)!r} was not written by tt.export.onnx: it does not say which of its inputs "
            "are states."
        )
    graph = session.get_inputs()
    try:
        fields = json.loads(text)
        if fields["format"] != FORMAT:
            raise ValueError(f"it has format {fields['format']!r}, this version reads {FORMAT}")
        inputs, states = (
            {n: TensorSpec(tuple(of["shape"]), of["dtype"]) for n, of in fields[kind].items()}
            for kind in ("inputs", "states")
        )
        outputs = {each.name for each in session.get_outputs()}
        if not inputs or not outputs.issuperset(map(next_state_name, states)):
            raise ValueError("it has no input, or no next value of a state")
        _check_graph([*inputs.items(), *states.items()], graph)
        initial: dict[str, Tensor] = {}
        for name, value in fields.get("initial", {}).items():
            initial[name] = torch.as_tensor(value, dtype=DTYPES[states[name].dtype])
            initial[name].expand(states[name].sizes(1))
            if bool(initial[name].isnan().any()):
                raise ValueError(f"the state {name!r} starts from NaN")
    except _MALFORMED as error:
        raise ValueError(
            f"{str(path)!r} describes itself wrongly ({type(error).__name__}: {error}); its graph "
            f"takes {[(each.name, each.type, each.shape) for each in graph]}. Export it again."
        ) from None
    return inputs, states, initial


def _check_graph(specs: Sequence[tuple[str, TensorSpec]], graph: Sequence[Any]) -> None:
    """Raise unless specs are those of a graph's inputs; its batch may be fixed, or any name."""
    names = [name for name, _ in specs]
    if [each.name for each in graph] != names:
        raise ValueError(f"it speaks of {names}")
    batch = graph[0].shape[0]

    def is_so(size: int | str, there: int | str | None) -> bool:
        if isinstance(size, int) or isinstance(batch, int):
            return there == (size if isinstance(size, int) else factor_of(size) * batch)
        return not there or there == size.replace("batch", str(batch))

    for each, (name, spec) in zip(graph, specs, strict=True):
        kind = {"float32": "float", "float64": "double"}.get(spec.dtype, spec.dtype)
        same_type = each.type == f"tensor({kind})" and len(each.shape) == len(spec.shape)
        if not same_type or not all(map(is_so, spec.shape, each.shape)):
            raise ValueError(f"it has {name!r} of {spec}")
