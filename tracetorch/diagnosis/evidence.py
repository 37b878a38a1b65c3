"""Run a model forward and backward once and collect what the diagnosis needs: ``gather``."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tracetorch.core.checks import check_has_values, check_module, check_unsharded
from tracetorch.core.hooks import PreHook, forward_hooks
from tracetorch.core.snapshot import restored
from tracetorch.core.torch_private import pytree
from tracetorch.core.walk import join_path, modules_of, named_modules, named_parameters
from tracetorch.diagnosis.reach import SpikeInputs, spike_inputs
from tracetorch.events import Product, observed_products
from tracetorch.init.calibrate import scale_for_batch
from tracetorch.probe.layers import (
    call_order,
    neuron_layers,
    recordable_names,
)
from tracetorch.probe.recording import join_gradients
from tracetorch.probe.watch import watch
from tracetorch.snn.module import zero_states
from tracetorch.snn.neuron import has_step
from tracetorch.snn.recurrent import Recurrent
from tracetorch.snn.sequence_layer import SequenceLayer
from tracetorch.snn.spike_functions import spike_functions
from tracetorch.snn.states import get_states, set_states
from tracetorch.unrolling import unroll
from tracetorch.unrolling.inputs import Inputs, call

Loss = Callable[..., Tensor]


@dataclass
class LayerEvidence:
    """Inputs, outputs and gradient of one neuron layer.

    Args:
        path: path of the layer in the model.
        module: the layer.
        input: its input, ``[T, B, ...]``.
        output: its output, ``[T, B, ...]``.
        fires: whether it has a spike function.
        spike_inputs: distances of its membranes from their thresholds; ``None``: unknown.
        gradient: gradient of the loss by its input, ``[T, B, ...]``; ``None``: there is none.
    """

    path: str
    module: SequenceLayer
    input: Tensor
    output: Tensor
    fires: bool
    spike_inputs: SpikeInputs | None
    gradient: Tensor | None


@dataclass
class Evidence:
    """Measurements of a model on one batch.

    Args:
        model: the model.
        inputs: its inputs.
        mask: mask of the real steps, ``[T, B]``; ``None``: all are.
        layers: its neuron layers, in the order in which they are called.
        uncalled: paths of neuron layers that were not called.
        loss: value of the loss.
        outputs: outputs of the model.
        output_gradients: gradient of the loss by each output; ``None``: there is none.
        parameters: every parameter by path.
        gradients: gradient of each parameter that requires one; ``None``: the loss does not depend
            on it.
        old_states: states that the model held before.
        new_states: states after this batch.
        loss_from_old_states: the loss of a run that starts from the old states, where they fit.
        zeroed: paths of neuron layers whose states are lost between two steps.
        products: calls of the layers that may compute with events, by path.
    """

    model: nn.Module
    inputs: Inputs
    mask: Tensor | None
    layers: list[LayerEvidence]
    uncalled: list[str]
    loss: Tensor
    outputs: list[Tensor]
    output_gradients: list[Tensor | None]
    parameters: dict[str, nn.Parameter]
    gradients: dict[str, Tensor | None]
    old_states: dict[str, Tensor]
    new_states: dict[str, Tensor] = field(default_factory=dict)
    loss_from_old_states: float | None = None
    zeroed: list[str] = field(default_factory=list)
    products: dict[str, list[Product]] = field(default_factory=dict)

    @cached_property
    def calibration(self) -> str | None:
        """The call that brings the membranes of all layers near their thresholds, if it runs."""
        steps = self.inputs.steps if self.inputs.static else None
        try:
            with restored(self.model), torch.inference_mode(False):
                scale_for_batch(self.model, self.inputs.tensors, steps=steps, mask=self.mask)
        except (ValueError, TypeError, RuntimeError, IndexError):
            return None
        given = ", steps=steps" * self.inputs.static + ", mask=mask" * (self.mask is not None)
        return f"tt.init.calibrate_(model, x{given})"


def gather(
    model: nn.Module,
    inputs: Inputs,
    x: Any,
    rest: Sequence[Any],
    loss: Loss,
    *,
    mask: Tensor | None,
    steps: int | None,
    by: Literal["layer", "step"],
) -> Evidence:
    """Run model and loss from rest, in the model's own mode, and their backward pass."""
    check_module(model)
    check_unsharded(model, "tt.diagnose")
    check_has_values(model)
    neurons = neuron_layers(model)
    parameters = named_parameters(model)
    old_states = get_states(model, detach=False)
    # A caller's inference mode would make tensors that autograd cannot use.
    with restored(model), torch.inference_mode(False):
        zero_states(model)
        called = call_order(model, inputs, by)
        order = [path for path in called if path in neurons]
        zeroed = _layers_zeroed_between_steps(model, inputs, {p: neurons[p] for p in order})
        if zeroed:  # which by layer cannot be run
            by = "step"
        with torch.enable_grad():
            with observed_products() as observed:
                y, trajectories, sources = _run(model, x, order, neurons, steps, by)
            value = _loss(loss, y, rest)
            outputs = [leaf for leaf in pytree.tree_leaves(y) if isinstance(leaf, Tensor)]
            inside = itertools.chain.from_iterable(sources.values())
            gradients = _gradients(value, [*parameters.values(), *outputs, *inside])
        evidence = Evidence(
            model=model,
            inputs=inputs,
            mask=mask,
            layers=[_layer(p, neurons[p], trajectories, sources, gradients) for p in order],
            uncalled=[path for path in neurons if path not in order],
            loss=value.detach(),
            outputs=[leaf.detach() for leaf in outputs],
            output_gradients=[gradients.get(id(leaf)) for leaf in outputs],
            parameters=parameters,
            gradients={n: gradients.get(id(p)) for n, p in parameters.items() if p.requires_grad},
            old_states=old_states,
            new_states=get_states(model),
            zeroed=zeroed,
            products=_by_path(model, observed),
        )
        if old_states and not unfit_states(old_states, evidence.new_states):
            set_states(model, {name: state.detach() for name, state in old_states.items()})
            with torch.no_grad():
                again = unroll(model, x, steps=steps, by=by)
                evidence.loss_from_old_states = float(_loss(loss, again, rest))
    return evidence


def _gradients(value: Tensor, tensors: Sequence[Tensor]) -> dict[int, Tensor | None]:
    """Return the gradients of a loss, by the identity of each tensor that requires one."""
    differentiated = [tensor for tensor in tensors if tensor.requires_grad]
    if not value.requires_grad or not differentiated:
        return {}
    # grad(), not backward(): the gradients of the parameters are the user's.
    grads = torch.autograd.grad(value, differentiated, allow_unused=True)
    return {id(t): g for t, g in zip(differentiated, grads, strict=True)}


def unfit_states(old: dict[str, Tensor], new: dict[str, Tensor]) -> list[str]:
    """List the states that the batch cannot continue from: of another shape, dtype or device."""
    return [
        name
        for name, state in old.items()
        if name in new
        and (state.shape, state.dtype, state.device)
        != (new[name].shape, new[name].dtype, new[name].device)
    ]


def _by_path(
    model: nn.Module, observed: Sequence[tuple[nn.Module, Product]]
) -> dict[str, list[Product]]:
    calls = (
        (path, [p for m, p in observed if m is module]) for path, module in named_modules(model)
    )
    return {path: products for path, products in calls if products}


def _layers_zeroed_between_steps(
    model: nn.Module, inputs: Inputs, neurons: dict[str, SequenceLayer]
) -> list[str]:
    """List the layers whose states are lost after the first of two steps from rest."""
    if inputs.steps < 2:
        return []
    first, second = inputs.first(2).each_step()
    zeroed: dict[str, bool] = {}

    def compare(path: str, layer: SequenceLayer) -> PreHook:
        before = {name: getattr(layer, name) for name in layer.active_states}

        def hook(module: Any, args: Any) -> None:
            lost = any(_is_lost(module, name, state) for name, state in before.items())
            zeroed.setdefault(path, lost)  # a layer may be called several times in a step

        return hook

    with restored(model, tensors=False, training=False), torch.no_grad():
        call(model, first)
        hooks = [(layer, compare(path, layer)) for path, layer in neurons.items()]
        with forward_hooks(before=hooks):
            call(model, second)
    return [path for path in neurons if zeroed.get(path)]


def _is_lost(layer: SequenceLayer, name: str, before: Tensor | None) -> bool:
    """Whether a state that was another than the initial one is the initial one now."""
    now: Tensor | None = getattr(layer, name)
    if before is None or now is None:
        return before is not None
    start = layer.initial_state(name, now.shape, now.dtype, now.device)
    return torch.equal(now, start) and not torch.equal(before, start)


def _run(
    model: nn.Module,
    x: Any,
    order: list[str],
    neurons: dict[str, SequenceLayer],
    steps: int | None,
    by: Literal["layer", "step"],
) -> tuple[Any, dict[str, Tensor], dict[str, Sequence[Tensor]]]:
    """Run the model; return outputs, trajectories, and each layer's inputs in the graph."""
    names = list(recordable_names({path: neurons[path] for path in order}))
    if by == "step":
        with watch(model, names, gradients=True) as watched:
            y = unroll(model, x, steps=steps, by="step")
        recording = watched.recording()
        inputs = {n: t for n, t in recording.sources.items() if n.rpartition(".")[2] == "input"}
        return y, dict(recording), inputs
    y, trajectories = unroll(model, x, steps=steps, by="layer", record=names)
    # Inside a Recurrent, steps run one by one: the recorded input is a copy outside of the graph.
    in_one_call = {path for path, _ in modules_of(model, closed=Recurrent)}
    sources: dict[str, Sequence[Tensor]] = {
        name: [trajectories[name]]
        for path in order
        if path in in_one_call
        for name in [join_path(path, "input")]
    }
    return y, trajectories, sources


def _layer(
    path: str,
    layer: SequenceLayer,
    trajectories: dict[str, Tensor],
    sources: dict[str, Sequence[Tensor]],
    gradients: dict[int, Tensor | None],
) -> LayerEvidence:
    """Assemble the measurements of one layer."""

    def trajectory(name: str) -> Tensor:
        return trajectories[join_path(path, name)].detach()

    x = trajectory("input")
    gradient: Tensor | None = None
    tensors = sources.get(join_path(path, "input"), ())
    grads = [gradients.get(id(t)) for t in tensors]
    if any(grad is not None for grad in grads):
        gradient = join_gradients(tensors, grads, x.ndim)
    distances = None
    if has_step(layer):
        states = {name: trajectory(name) for name in layer.active_states}
        distances = spike_inputs(layer, x, states)
    fires = bool(spike_functions(layer))
    return LayerEvidence(path, layer, x, trajectory("output"), fires, distances, gradient)


def _loss(loss: Loss, y: Any, rest: Sequence[Any]) -> Tensor:
    value = loss(y, *rest)
    if not isinstance(value, Tensor):
        raise TypeError(f"loss must return a tensor, got {type(value).__name__}.")
    if value.numel() != 1:
        raise ValueError(
            f"loss must return one number, got a tensor of shape {list(value.shape)}. Reduce it, "
            "with .mean() say."
        )
    return value.reshape(())
