"""Programs of a step: shapes and first values of states, found on fake tensors; how one is run."""

from __future__ import annotations

import logging
import math
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import Interpreter

from tracetorch.core.checks import check_count
from tracetorch.core.hooks import WEIGHT_HOOKS
from tracetorch.core.snapshot import restored
from tracetorch.core.torch_private import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
    pytree,
)
from tracetorch.core.walk import join_path, named_modules
from tracetorch.snn.declarations import StepKwargs
from tracetorch.snn.module import layer_label
from tracetorch.snn.noise import Noise
from tracetorch.snn.sequence_layer import SequenceLayer
from tracetorch.snn.states import get_states, named_holders, set_states
from tracetorch.unrolling.inputs import call

# The dtypes that a file may name: to look any name up in torch could give anything.
_NAMES = "float16 bfloat16 float32 float64 bool uint8 int8 int16 int32 int64"
DTYPES: dict[str, torch.dtype] = {name: getattr(torch, name) for name in _NAMES.split()}
_SIZE = re.compile(r"(?:([1-9]\d{0,8})\*)?batch")
_VALUE_ERRORS = (DataDependentOutputException, DynamicOutputShapeException)
BATCHES = (2, 3)  # PyTorch takes a size of 1 for fixed
_FAKE_TENSORS = logging.getLogger("torch._subclasses.fake_tensor")


@dataclass(frozen=True)
class TensorSpec:
    """Shape and dtype of a tensor; a size is a number, ``"batch"``, or ``"4*batch"``.

    Example:
        >>> TensorSpec(("batch", 3), "float32").sizes(8)
        (8, 3)
        >>> TensorSpec(("4*batch", 3), "float32").batch_of((32, 3))
        8
    """

    shape: tuple[int | str, ...]  # the sizes of its dimensions
    dtype: str  # PyTorch's name of the dtype, without ``torch.``

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ValueError(f"{self.dtype!r} is not a dtype of {', '.join(DTYPES)}.")
        for size in self.shape:
            is_free = isinstance(size, str) and _SIZE.fullmatch(size)
            if not is_free and (type(size) is not int or size < 0):
                raise ValueError(f"{size!r} is not a size.")

    def sizes(self, batch: int) -> tuple[int, ...]:
        """Return the shape for a batch size."""
        return tuple(factor_of(s) * batch if isinstance(s, str) else s for s in self.shape)

    def batch_of(self, shape: Sequence[int]) -> int | None:
        """Return the batch size of a shape; ``None`` where it does not fit or has no batch."""
        pairs = list(zip(shape, self.shape, strict=False))
        batches = {size // factor_of(s) for size, s in pairs if isinstance(s, str)}
        batch = batches.pop() if len(batches) == 1 else None
        return None if batch is None or tuple(shape) != self.sizes(batch) else batch

    def full(
        self, batch: int, value: Tensor | float = 0.0, device: torch.device | str | None = None
    ) -> Tensor:
        """Return a tensor of this shape and dtype for a batch size, filled with ``value``."""
        filled = torch.as_tensor(value, dtype=DTYPES[self.dtype], device=device)
        return filled.expand(self.sizes(batch)).clone(memory_format=torch.contiguous_format)

    @classmethod
    def inferred(cls, name: str, tensors: Sequence[Tensor], batches: Sequence[int]) -> TensorSpec:
        """Infer the spec of a tensor from its shapes for one batch size, which is fixed, or two."""
        shapes = [tuple(tensor.shape) for tensor in tensors]
        sizes: list[int | str] = []
        for few, many in zip(shapes[0], shapes[-1], strict=True):
            # The batch sizes are coprime: a multiple of the batch has its factor as divisor.
            factor = math.gcd(few, many)
            if few == many:
                sizes.append(few)
            elif (few, many) == (factor * batches[0], factor * batches[-1]):
                sizes.append("batch" if factor == 1 else f"{factor}*batch")
            else:
                raise ValueError(
                    f"{name} has the shapes {shapes} for batches of {list(batches)}; a size must "
                    "be fixed or a multiple of the batch."
                )
        return cls(tuple(sizes), dtype_name(tensors[0]))

    def __str__(self) -> str:
        return f"[{', '.join(map(str, self.shape))}], {self.dtype}"


def factor_of(size: str) -> int:
    """Return how many times the batch a size is."""
    match = _SIZE.fullmatch(size)
    return int(match[1] or 1) if match else 1


def dtype_name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def initial_key(state: str) -> str:
    """Name the tensor of a program that holds what a state starts from."""
    return f"{state.replace('.', '/')}/initial"


def initial_states(
    program: ExportedProgram, batch: int, *, device: torch.device | str | None = None
) -> dict[str, Tensor]:
    """Return the states of a program before the first step: zeros, or what a layer declares.

    Shapes and values are those of the program itself, also of one that ``torch.export.load`` read.

    Args:
        program: a program made by ``tt.export.step`` or ``tt.export.sequence``.
        batch: size of the batch, at least 1.
        device: device of the states; that of the program if left out.

    Raises:
        TypeError: ``program`` is no ``ExportedProgram``, or ``batch`` no integer.
        ValueError: ``tt.export`` did not make the program, or ``batch`` is below 1.

    Example:
        >>> from tracetorch.export.step import step
        >>> program = step(LIF(3), torch.rand(1, 3))
        >>> initial_states(program, batch=2)
        {'mem': tensor([[0., 0., 0.],
                [0., 0., 0.]])}
    """
    check_count("batch", batch)
    if not isinstance(program, ExportedProgram):
        raise TypeError(
            f"program must be an ExportedProgram, got {type(program).__name__}. "
            "Make one with tt.export.step(model, sample)."
        )
    # Every node of the graph holds a fake tensor, whose shape is symbolic in the batch.
    nodes = {node.name: node.meta.get("val") for node in program.graph.nodes}
    leaves = [nodes.get(name) for name in program.graph_signature.user_inputs]
    args, kwargs = pytree.tree_unflatten(leaves, program.call_spec.in_spec)
    if len(args) != 2 or kwargs or not isinstance(args[1], dict):
        raise ValueError(
            "the program does not take (x, states): it is none that tt.export.step or "
            "tt.export.sequence made."
        )
    states: dict[str, Tensor] = {}
    for name, state in args[1].items():
        sizes = [s if isinstance(s, int) else f"{_at_one(s)}*batch" for s in state.shape]
        key = initial_key(name)
        # tt.export.sequence holds the tensors of one step under a slash
        start = program.state_dict.get(key, program.state_dict.get(f"/{key}", 0.0))
        spec = TensorSpec(tuple(sizes), dtype_name(state))
        states[name] = spec.full(batch, start, device or state.device)
    return states


def _at_one(size: Any) -> int:
    """Return a symbolic size for a batch of one."""
    expression = size.node.expr
    return int(expression.subs(dict.fromkeys(expression.free_symbols, 1)))


# Running and tracing


@contextmanager
def ignore_own_warnings() -> Iterator[None]:
    """Ignore what PyTorch warns of in its own code, about which a user can do nothing."""
    with warnings.catch_warnings():
        # when it copies a program (torch 2.13)
        warnings.filterwarnings("ignore", r".*isinstance\(treespec, LeafSpec\)", FutureWarning)
        # it logs the traceback of an error that it raises (torch 2.13)
        _FAKE_TENSORS.addFilter(_refuse)
        try:
            yield
        finally:
            _FAKE_TENSORS.removeFilter(_refuse)


def _refuse(record: logging.LogRecord) -> bool:
    return False


@contextmanager
def explain_trace_errors(model: nn.Module, *kinds: type[RuntimeError]) -> Iterator[None]:
    """Raise errors of a trace as ``ValueError``s that name the model and the remedy."""
    try:
        with ignore_own_warnings():
            yield
    except kinds as error:
        # The lines after the first are advice on torch.export itself, which the user did not call.
        reason = str(error).strip().partition("\n")[0].rstrip(".")
        raise ValueError(
            f"{type(model).__name__} cannot be exported: {reason}. Keep sizes and branches "
            "in forward free of the batch's size and of the values of tensors; batch first, "
            "x.flatten(1) instead of x.view(2, -1)."
        ) from error


def run_step(
    program: ExportedProgram, x: Any, states: Mapping[str, Tensor], run: Interpreter | None = None
) -> tuple[Any, dict[str, Tensor]]:
    """Return output and next states of a step."""
    run = run or Interpreter(program.graph_module)
    constants, given = constants_of(program), iter(pytree.tree_leaves((x, dict(states))))
    names = [node.name for node in program.graph.nodes if node.op == "placeholder"]
    results = run.run(*(constants[n] if n in constants else next(given) for n in names))
    y, after = pytree.tree_unflatten(list(results), program.call_spec.out_spec)
    return y, after


def constants_of(program: ExportedProgram) -> dict[str, Tensor]:
    """Return the parameters, buffers and constants of a program, by placeholder."""
    signature = program.graph_signature
    names = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    names |= signature.inputs_to_lifted_tensor_constants
    values = {**program.state_dict, **program.constants}
    return {node: values[name].detach() for node, name in names.items()}


def named_leaves(name: str, value: Any, join: str = "_") -> Sequence[tuple[str, Any]]:
    """Name every leaf of a nest, ``y_0_aux`` for ``y[0]["aux"]``."""
    parts: Any = None
    if isinstance(value, (tuple, list)):
        parts = enumerate(value)
    elif isinstance(value, dict):
        parts = value.items()
    if parts is None:
        return [(name, value)]
    return [leaf for key, each in parts for leaf in named_leaves(f"{name}{join}{key}", each, join)]


# States and step kwargs of a model


@dataclass(frozen=True)
class StepSignature:
    """States and step kwargs of one time step of a model."""

    states: Mapping[str, TensorSpec]  # shape and dtype of every state, by its name
    # values that states start from where it is not zero, by name; they broadcast
    initial: Mapping[str, Tensor]
    # step kwargs of each layer, by its path and the number of dimensions and the dtype that it is
    # called with
    step_kwargs: Mapping[tuple[str, int, torch.dtype], Mapping[str, Any]]

    def initial_states(self, batch: int, device: torch.device) -> dict[str, Tensor]:
        starts = self.initial
        return {n: spec.full(batch, starts.get(n, 0.0), device) for n, spec in self.states.items()}


def step_signature(model: nn.Module, sample: Any, batch: int | None = None) -> StepSignature:
    """Run one step from rest on fake tensors, for two batch sizes where the batch is free."""
    layers = dict(named_holders(model))
    calls: dict[tuple[str, int, torch.dtype], None] = {}

    def noting(path: str, original: StepKwargs) -> StepKwargs:
        def step_kwargs(ndim: int, dtype: torch.dtype) -> dict[str, Any]:
            calls[path, ndim, dtype] = None
            return original(ndim, dtype)

        return step_kwargs

    batches = BATCHES if batch is None else (batch,)
    runs: list[dict[str, Tensor]] = []
    for size in batches:
        # An error that the first batch size does not cause is about the size of the batch.
        kinds = (RuntimeError,) if runs else _VALUE_ERRORS
        with (
            restored(model, tensors=False, training=False),
            torch.no_grad(),
            FakeTensorMode() as mode,
            ExitStack() as overrides,
        ):
            set_states(model, {})
            for path, layer in layers.items():
                if isinstance(layer, SequenceLayer):
                    replacement = noting(path, layer.step_kwargs)
                    overrides.enter_context(layer._override_step_kwargs(replacement))
            replace_tensors(model, mode.from_tensor)
            with explain_trace_errors(model, *kinds):
                call(model, resized(sample, size))
            runs.append(get_states(model, detach=False))
    states = {
        name: TensorSpec.inferred(f"the state {name!r}", [run[name] for run in runs], batches)
        for name in runs[0]
    }
    # Outside of the fake mode: these tensors have values, the constants of the program.
    initial: dict[str, Tensor] = {}
    with torch.no_grad():
        for path, layer in layers.items():
            if isinstance(layer, Noise) and "initial_position" not in layer._buffers:
                raise ValueError(
                    f"{layer_label(layer, path)} has no seed: every sequence draws where its noise "
                    "starts, which a program cannot. Build it with seed=; a caller of the program "
                    "may start from any other position."
                )
            for state in layer.active_states:
                if (name := join_path(path, state)) in states:
                    start = _without_repeats(layer._start_of(state, states[name].full(1)))
                    if bool((start != 0).any()):
                        initial[name] = start
        for layer in layers.values():
            for hook in layer._forward_pre_hooks.values():
                if isinstance(hook, WEIGHT_HOOKS):  # what it set in the last call may be stale
                    hook(layer, ())
        step_kwargs = {
            key: cast(SequenceLayer, layers[key[0]]).step_kwargs(*key[1:]) for key in calls
        }
    return StepSignature(states, initial, step_kwargs)


def _without_repeats(value: Tensor) -> Tensor:
    """Return a tensor of size 1 in every dimension over which its values are equal."""
    for dim in range(value.ndim):
        first = value.narrow(dim, 0, 1)
        if bool((value == first).all()):
            value = first
    return value.clone()


def resized(sample: Any, batch: int, *, steps: int | None = None) -> Any:
    """Return zeros like ``sample`` ``[B, ...]`` of another batch size, and ``steps`` of time."""
    lead = (batch,) if steps is None else (steps, batch)

    def zeros(x: Tensor) -> Tensor:
        return torch.zeros((*lead, *x.shape[1:]), dtype=x.dtype, device=x.device)

    return pytree.tree_map_only(Tensor, zeros, sample)


def replace_tensors(model: nn.Module, replacement_of: Callable[[Tensor], Tensor]) -> None:
    """Replace every tensor in the modules' attributes, and in dicts and lists there, by another."""
    for _, module in named_modules(model):
        attributes = vars(module)
        nested = [each for each in attributes.values() if isinstance(each, (dict, list))]
        container: Any
        for container in (attributes, *nested):
            keys: Any = list(container) if isinstance(container, dict) else range(len(container))
            for key in keys:
                if isinstance(container[key], Tensor):
                    container[key] = replacement_of(container[key])
