"""Export one time step of a model as a program with explicit states."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from tracetorch.core.checks import check_module, check_unsharded
from tracetorch.core.hooks import Hook, forward_hooks
from tracetorch.core.snapshot import restored
from tracetorch.core.torch_private import one_trace_at_a_time, pytree
from tracetorch.core.walk import hidden_modules, join_path
from tracetorch.export.signature import (
    BATCHES,
    StepSignature,
    replace_tensors,
    resized,
    step_signature,
)
from tracetorch.export.tensor_spec import TensorSpec
from tracetorch.export.trace_errors import explain_trace_errors
from tracetorch.snn.sequence_layer import SequenceLayer
from tracetorch.snn.states import get_states, named_holders, set_states
from tracetorch.unrolling.inputs import call, parse_inputs


def step(model: nn.Module, sample: Any) -> ExportedProgram:
    """Export one time step of ``model`` as a program whose states are explicit.

    ::

        y, states = program.module()(x, states)

    ``states`` is a flat dict, in and out, with the names of ``tt.get_states``;
    ``tt.export.initial_states`` makes those of the first step. The batch is free. The program
    is that of the model in eval mode, without gradients: a spike is ``u > 0``, and the constrained
    parameters of the neuron layers are constants in it, so that the rounding of another runtime's
    sigmoid cannot move a threshold. The model is unchanged afterwards.

    Args:
        model: any module whose call is one time step.
        sample: an input of one step, batch first: a tensor, a tuple (``model(*sample)``) or a dict
            (``model(**sample)``) of them; the program's ``x`` has the same form. Only its feature
            dimensions matter, not the batch size.

    Shape:
        ``sample`` ``[B, ...]``; ``x`` and ``y`` the same for any other ``B``.

    Raises:
        TypeError: ``model`` is not a module, or ``sample`` holds anything but tensors.
        ValueError: the model keeps something from step to step that is not a state of a neuron
            layer, depends on whether a state is ``None``, changes its input in place, or fixes its
            batch size; or as the model.

    Example:
        >>> from tracetorch.export.initial import initial_states
        >>> net = nn.Sequential(nn.Linear(4, 3), LIF(3))
        >>> program = step(net, torch.rand(1, 4))
        >>> states = initial_states(program, batch=8)
        >>> y, states = program.module()(torch.rand(8, 4), states)
        >>> y.shape, {name: list(state.shape) for name, state in states.items()}
        (torch.Size([8, 3]), {'1.mem': [8, 3]})
    """
    return export_step(model, sample)[0]


@one_trace_at_a_time
def export_step(
    model: nn.Module,
    sample: Any,
    *,
    batch: int | None = None,
    record: Mapping[str, nn.Module] | None = None,
    as_traced: bool = False,
) -> tuple[ExportedProgram, StepSignature]:
    """Export one step as :func:`step` does; return the program and its signature.

    Args:
        model: any module.
        sample: an input of one step.
        batch: the batch of the program, which is free by default.
        record: modules whose outputs the program returns too, by name: ``y, {name: output}`` takes
            the place of ``y``, without modules that are not called. Several calls are refused: a
            step has one output of each.
        as_traced: whether composite operations and writes in place are left as they are, in half
            of the time.
    """
    check_module(model)
    check_unsharded(model, "tt.export")
    with torch.inference_mode(False), restored(model, tensors=False):
        replace_tensors(model, lru_cache(maxsize=None)(_traceable))
        return _export_step(
            model, parse_inputs(sample, 1, 0, True).tensors, batch, record, as_traced
        )


def _traceable(tensor: Tensor) -> Tensor:
    """Return a tensor without a graph, which a weight that a hook computes has, or a copy.

    Of what inference mode made: ``torch.export`` refuses it, and no write to it is counted.
    """
    if not tensor.is_inference():
        return tensor if tensor.is_leaf else tensor.detach()
    copied = tensor.clone().detach()
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(copied, tensor.requires_grad)
    return copied


def _export_step(
    model: nn.Module,
    tensors: Any,
    batch: int | None,
    record: Mapping[str, nn.Module] | None,
    as_traced: bool,
) -> tuple[ExportedProgram, StepSignature]:
    signature = step_signature(model, tensors, free_batch=batch is None)
    _check_step_from_rest(model, tensors, signature)
    with restored(model, tensors=False):
        step = ExplicitStep(model, signature, record)
        settings: dict[str, Any] = {"fixed_batch": batch, "as_traced": as_traced}
        program = exported(step, model, tensors, signature, **settings)
    return program, signature


def exported(
    function: nn.Module,
    model: nn.Module,
    sample: Any,
    signature: StepSignature,
    steps: int | None = None,
    *,
    fixed_batch: int | None = None,
    as_traced: bool = False,
) -> ExportedProgram:
    """Export a function of inputs and states, the batch free unless it is given.

    Args:
        function: it.
        model: what errors name.
        sample: inputs of one step.
        signature: the states.
        steps: of the example, where the function takes sequences; their number is free too.
        fixed_batch: the batch of the program.
        as_traced: whether composite operations are left as they are.
    """
    batch = Dim("batch")
    lead = {0: batch} if steps is None else {0: Dim("time"), 1: batch}
    device = pytree.tree_leaves(sample)[0].device
    size = BATCHES[0] if fixed_batch is None else fixed_batch
    example = resized(sample, size, steps=steps), signature.initial_states(size, device)
    dynamic = (
        None
        if fixed_batch is not None
        else (
            pytree.tree_map(lambda _: lead, sample),
            {name: _dynamic_sizes(spec, batch) for name, spec in signature.states.items()},
        )
    )
    free_batch = fixed_batch is None
    with torch.no_grad(), explain_trace_errors(model, RuntimeError, free_batch=free_batch):
        program = torch.export.export(function, example, dynamic_shapes=dynamic)
        return program if as_traced else program.run_decompositions({})


def _check_step_from_rest(model: nn.Module, tensors: Any, signature: StepSignature) -> None:
    """Raise ``ValueError`` unless the step from no states equals the step from initial ones.

    A layer at rest has the states ``None``, which a program cannot express.
    """
    leaves: list[Tensor] = pytree.tree_leaves(tensors)
    # Without values in the sample there is nothing to compare.
    if any(leaf.is_meta or not len(leaf) for leaf in leaves):
        return
    results = []
    with restored(model, tensors=False, training=False), torch.no_grad():
        initial = signature.initial_states(len(leaves[0]), leaves[0].device)
        for states in ({}, initial):
            set_states(model, states)
            y = call(model, pytree.tree_map(torch.clone, tensors))
            results.append(pytree.tree_leaves((y, get_states(model))))
    for from_rest, from_initial in zip(*results, strict=True):
        if not isinstance(from_rest, Tensor):
            continue
        nan = from_rest.is_floating_point()
        if not torch.allclose(from_rest, from_initial, 1e-5, 1e-6, equal_nan=nan):
            raise ValueError(
                f"{type(model).__name__} gives another first step where its states are None than "
                "from their initial values: its forward seems to depend on them. An exported "
                "program always has states; let forward not depend on a state being None."
            )


class ExplicitStep(nn.Module):
    """Pure function of inputs and states that runs one step of a model, to be traced.

    Args:
        model: the model.
        signature: its states and step kwargs.
        record: modules whose outputs are returned too, by name.
    """

    def __init__(
        self,
        model: nn.Module,
        signature: StepSignature,
        record: Mapping[str, nn.Module] | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        # in a tuple: not registered a second time
        self._record = None if record is None else tuple(record.items())
        # torch.export would take the weights of unregistered modules for constants.
        self.hidden = nn.ModuleList(module for _, module in hidden_modules(model))
        self._state_names = tuple(signature.states)
        # Step kwargs by layer and call: tensors are buffers of this module, here by their names.
        self._options: dict[tuple[str, int, torch.dtype], dict[str, Any]] = {}
        self._constants: dict[tuple[str, int, torch.dtype], dict[str, str]] = {}
        for layer_call, step_kwargs in signature.step_kwargs.items():
            path, *rest = layer_call
            self._options[layer_call], self._constants[layer_call] = {}, {}
            for name, value in step_kwargs.items():
                if isinstance(value, Tensor):
                    # A slash: buffers may have no dot in their names.
                    buffer = f"{path.replace('.', '/')}/{name}"
                    # A layer that is called with two dtypes or ranks has constants for each.
                    if buffer in self._buffers:
                        buffer = "/".join(map(str, (buffer, *rest)))
                    self.register_buffer(buffer, value.detach())
                    self._constants[layer_call][name] = buffer
                else:
                    self._options[layer_call][name] = value
        # The program does not read them: tt.export.initial_states does.
        for state, value in signature.initial.items():
            self.register_buffer(initial_key(state), value)

    def forward(self, x: Any, states: dict[str, Tensor]) -> tuple[Any, dict[str, Tensor]]:
        """Return outputs and next states of one step."""
        with restored(self.model, tensors=False, training=False), ExitStack() as overrides:
            for path, layer in named_holders(self.model):
                for name in layer.active_states:
                    setattr(layer, layer._attribute_of(name), states.get(join_path(path, name)))
                layer._mark_states_current()
                if isinstance(layer, SequenceLayer):
                    overrides.enter_context(layer.override_step_kwargs(self._step_kwargs_of(path)))
            y = call(self.model, x) if self._record is None else self._recorded(x)
            next_states = get_states(self.model, detach=False)
        # A state that a step does not change must be an output of its own, not an input.
        inputs = [leaf for leaf in pytree.tree_leaves((x, states)) if isinstance(leaf, Tensor)]
        return y, {
            name: state.clone() if _is_one_of(state, inputs) else state
            for name in self._state_names
            for state in [next_states[name]]
        }

    def _recorded(self, x: Any) -> Any:
        """Call the model; return its output, and those of the recorded modules by name."""
        outputs: dict[str, Tensor] = {}

        def note(name: str) -> Hook:
            def hook(module: Any, args: Any, kwargs: Any, output: Tensor) -> Tensor:
                if name in outputs:
                    raise ValueError(
                        f"{name} ({type(module).__name__}) is called several times in a step: the "
                        "call of the model must be one time step, without a loop over time, and "
                        "every place in it needs a layer of its own."
                    )
                outputs[name] = output
                # what the model does in place with the output must not reach what was recorded
                return output.clone()

            return hook

        with forward_hooks(after=[(module, note(name)) for name, module in self._record or ()]):
            return call(self.model, x), outputs

    def _step_kwargs_of(self, path: str) -> Any:
        """Return a replacement for a layer's ``step_kwargs`` that gives constants."""

        def step_kwargs(ndim: int, dtype: torch.dtype) -> dict[str, Any]:
            key = (path, ndim, dtype)
            constants = {
                name: getattr(self, buffer) for name, buffer in self._constants[key].items()
            }
            return {**self._options[key], **constants}

        return step_kwargs


def initial_key(state: str) -> str:
    """Name the tensor of a program that holds what a state starts from."""
    return f"{state.replace('.', '/')}/initial"


def _dynamic_sizes(spec: TensorSpec, batch: Any) -> dict[int, Any]:
    """Return the sizes of a state that follow the batch, in ``torch.export``'s notation."""
    dynamic: dict[int, Any] = {}
    for dim, size in enumerate(spec.shape):
        if isinstance(size, str):
            factor = spec.sizes(1)[dim]
            dynamic[dim] = batch if factor == 1 else factor * batch
    return dynamic


def _is_one_of(value: Tensor, others: list[Tensor]) -> bool:
    return any(value is other for other in others)
