"""Export one time step of a model as a program with explicit states."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from tracetorch.core.checks import check_module, check_unsharded
from tracetorch.core.hooks import forward_hooks
from tracetorch.core.snapshot import restored
from tracetorch.core.torch_private import one_trace_at_a_time, pytree, version_of
from tracetorch.core.walk import hidden_modules, join_path, named_modules
from tracetorch.export.program import (
    BATCHES,
    StepSignature,
    explain_trace_errors,
    initial_key,
    replace_tensors,
    resized,
    run_step,
    step_signature,
)
from tracetorch.snn.sequence_layer import SequenceLayer, transient_attributes_of
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
        >>> from tracetorch.export.program import initial_states
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

    With ``record`` the program returns ``y, {name: output}``, of those modules that are called.
    ``as_traced`` leaves composite operations and writes in place, in half of the time.
    """
    check_module(model)
    check_unsharded(model, "tt.export")
    tensors = parse_inputs(sample, 1).tensors
    with torch.inference_mode(False), restored(model, tensors=False):
        replace_tensors(model, lru_cache(maxsize=None)(_traceable))
        with _naming_kept_tensors(model):
            signature = step_signature(model, tensors, batch)
        with restored(model, tensors=False):
            function = ExplicitStep(model, signature, record)
            program = exported(function, model, tensors, signature, batch=batch)
        check_steps(model, program, tensors, signature, record is not None)
        return program if as_traced else decomposed(program, model), signature


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


def exported(
    function: nn.Module,
    model: nn.Module,
    sample: Any,
    signature: StepSignature,
    *,
    batch: int | None = None,
    steps: int | None = None,
) -> ExportedProgram:
    """Trace a function of inputs and states, the batch free unless it is given."""
    device = pytree.tree_leaves(sample)[0].device
    size = BATCHES[0] if batch is None else batch
    example = resized(sample, size, steps=steps), signature.initial_states(size, device)
    dynamic: Any = None
    if batch is None:
        free = Dim("batch")
        lead = {0: free} if steps is None else {0: Dim("time"), 1: free}
        states = {
            name: {
                dim: free if size == "batch" else spec.sizes(1)[dim] * free
                for dim, size in enumerate(spec.shape)
                if isinstance(size, str)
            }
            for name, spec in signature.states.items()
        }
        dynamic = pytree.tree_map(lambda _: lead, sample), states
    with torch.no_grad(), explain_trace_errors(model, RuntimeError):
        return torch.export.export(function, example, dynamic_shapes=dynamic)


def decomposed(program: ExportedProgram, model: nn.Module) -> ExportedProgram:
    """Return a program without composite operations and writes in place."""
    with torch.no_grad(), explain_trace_errors(model, RuntimeError):
        parts: ExportedProgram = program.run_decompositions({})
    return parts


def check_steps(
    model: nn.Module, program: ExportedProgram, given: Any, signature: StepSignature, recorded: bool
) -> None:
    """Raise ``ValueError`` unless a program computes what the model does in two steps.

    The first begins with random states and inputs, so that neurons fire and what remembers has
    something to remember; the second begins at rest, where states are ``None``, which a program
    cannot express.
    """
    leaves: list[Tensor] = pytree.tree_leaves(given)
    # Without values in the sample there is nothing to compare.
    if any(leaf.is_meta or not len(leaf) for leaf in leaves):
        return
    drawn = torch.Generator().manual_seed(0)

    def disturbed(x: Tensor) -> Tensor:
        if not x.is_floating_point():
            return x.clone()
        reach = 10.0 ** torch.randint(0, 4, x.shape, generator=drawn)
        return x + (reach * torch.randn(x.shape, generator=drawn)).to(x)

    initial = signature.initial_states(len(leaves[0]), leaves[0].device)
    random = {name: disturbed(state) for name, state in initial.items()}
    first = pytree.tree_map(disturbed, given)
    second = given if any(bool(leaf.any()) for leaf in leaves) else first
    pairs: list[tuple[Any, Any]] = []
    with restored(model, tensors=False, training=False), torch.no_grad():
        for x, before, start in ((first, random, random), (second, {}, initial)):
            set_states(model, before)
            y = call(model, pytree.tree_map(torch.clone, x))
            expected = pytree.tree_leaves((y, get_states(model)))
            output, after = run_step(program, x, start)
            found = pytree.tree_leaves((output[0] if recorded else output, after))
            pairs += zip(expected, found, strict=True)
    for one, other in pairs:
        if isinstance(one, Tensor) and not torch.allclose(
            one, other, 1e-5, 1e-6, equal_nan=one.is_floating_point()
        ):
            raise ValueError(
                f"{type(model).__name__} gives another step than its program, which knows states "
                "alone: forward depends on a state being None, draws random numbers in evaluation, "
                "or something else remembers. Let forward not depend on a state being None, draw "
                "by snn.Noise(..., seed=), and keep what remembers as a state of an snn.Neuron, or "
                "declare it by memory() of an snn.TTModule."
            )


class ExplicitStep(nn.Module):
    """Pure function of inputs and states that runs one step of a model, to be traced."""

    def __init__(
        self, model: nn.Module, signature: StepSignature, record: Mapping[str, nn.Module] | None
    ) -> None:
        super().__init__()
        self.model = model
        # in a tuple: not registered a second time
        self._record = None if record is None else tuple(record.items())
        # torch.export would take the weights of unregistered modules for constants.
        self.hidden = nn.ModuleList(module for _, module in hidden_modules(model))
        self._state_names = tuple(signature.states)
        # Tensors among the step kwargs are buffers of this module, here by their names.
        self._step_kwargs = signature.step_kwargs
        self._constants: dict[tuple[str, int, torch.dtype], dict[str, str]] = {}
        for layer_call, step_kwargs in signature.step_kwargs.items():
            path, *rest = layer_call
            names = self._constants[layer_call] = {}
            for name, value in step_kwargs.items():
                if isinstance(value, Tensor):
                    # A slash: buffers may have no dot in their names.
                    names[name] = f"{path.replace('.', '/')}/{name}"
                    # A layer that is called with two dtypes or ranks has constants for each.
                    if names[name] in self._buffers:
                        names[name] = "/".join(map(str, (names[name], *rest)))
                    self.register_buffer(names[name], value.detach())
        # The program does not read them: tt.export.initial_states does.
        for state, value in signature.initial.items():
            self.register_buffer(initial_key(state), value)

    def forward(self, x: Any, states: dict[str, Tensor]) -> tuple[Any, dict[str, Tensor]]:
        model = self.model
        given = {f"the state {name}": state for name, state in states.items()}
        for place, leaf in pytree.tree_flatten_with_path(x)[0]:
            given[f"the input {pytree.keystr(place)}".strip()] = leaf
        with restored(model, tensors=False, training=False), ExitStack() as overrides:
            for path, layer in named_holders(model):
                for name in layer.active_states:
                    setattr(layer, layer._attribute_of(name), states.get(join_path(path, name)))
                layer._mark_states_current()
                if isinstance(layer, SequenceLayer):
                    overrides.enter_context(layer._override_step_kwargs(self._step_kwargs_of(path)))
            before = {**_attributes(model), **given}
            versions = {name: version_of(value) for name, value in _tensors(before)}
            y = call(model, x) if self._record is None else self._recorded(x)
            after = {**_attributes(model), **given}
            changed = [n for n in {**before, **after} if before.get(n, n) is not after.get(n, n)]
            changed += [n for n, value in _tensors(before) if version_of(value) != versions[n]]
            next_states = get_states(model, detach=False)
        if changed:
            raise ValueError(
                f"one step changes {', '.join(map(repr, changed))} in {type(model).__name__}. The "
                "program would forget it, for it knows states alone. Keep it as a state of an "
                "snn.Neuron, or declare it by memory() of an snn.TTModule, or change it outside of "
                "forward; an input is changed in a copy."
            )
        # A state that a step does not change must be an output of its own, not an input.
        inputs = set(map(id, given.values()))
        return y, {
            name: state.clone() if id(state) in inputs else state
            for name in self._state_names
            for state in [next_states[name]]
        }

    def _recorded(self, x: Any) -> Any:
        """Call the model; return its output, and those of the recorded modules by name."""
        outputs: dict[str, Tensor] = {}

        def note(name: str, module: Any, args: Any, kwargs: Any, output: Tensor) -> Tensor:
            if name in outputs:
                raise ValueError(
                    f"{name} ({type(module).__name__}) is called several times in a step: the "
                    "call of the model must be one time step, without a loop over time, and "
                    "every place in it needs a layer of its own."
                )
            outputs[name] = output
            # what the model does in place with the output must not reach what was recorded
            return output.clone()

        hooks = [(module, partial(note, name)) for name, module in self._record or ()]
        with forward_hooks(after=hooks):
            return call(self.model, x), outputs

    def _step_kwargs_of(self, path: str) -> Any:
        """Return a replacement for a layer's ``step_kwargs`` that gives constants."""

        def step_kwargs(ndim: int, dtype: torch.dtype) -> dict[str, Any]:
            key = (path, ndim, dtype)
            names = self._constants[key]
            constants = {name: getattr(self, buffer) for name, buffer in names.items()}
            return {**self._step_kwargs[key], **constants}

        return step_kwargs


@contextmanager
def _naming_kept_tensors(model: nn.Module) -> Iterator[None]:
    """Name the tensors that a model keeps, where it fails on another batch than theirs."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        known = {name for name, _ in (*model.named_parameters(), *model.named_buffers())}
        kept = {n: each.shape for n, each in _tensors(_attributes(model)) if n not in known}
        if not kept or not isinstance(error.__cause__ or error, RuntimeError):
            raise
        shapes = ", ".join(f"{name!r} of shape {list(shape)}" for name, shape in kept.items())
        raise ValueError(
            f"{type(model).__name__} fails on another batch: {error} It holds {shapes}, beside "
            "parameters and states. Where a call has left that, set it to None, or export a new "
            "model; what a step needs of the one before is a state of an snn.Neuron, or memory() "
            "of an snn.TTModule."
        ) from error


def _attributes(model: nn.Module) -> dict[str, Any]:
    """Return what the modules of a model hold, states and what PyTorch keeps there left out.

    The items of dicts, lists and tuples are there one by one.
    """
    found: dict[str, Any] = {}
    for path, module in named_modules(model):
        left_out = {*vars(nn.Module()), *transient_attributes_of(module), "step_kwargs"}
        attributes = {**vars(module), **module._parameters, **module._buffers}
        for name in [name for name in attributes if name not in left_out]:
            for place, leaf in pytree.tree_flatten_with_path(attributes[name])[0]:
                found[join_path(path, name) + pytree.keystr(place)] = leaf
    return found


def _tensors(values: Mapping[str, Any]) -> list[tuple[str, Tensor]]:
    return [(name, value) for name, value in values.items() if isinstance(value, Tensor)]
