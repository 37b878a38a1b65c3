"""Run a model forward and backward once and collect what the diagnosis needs: ``gather``."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from tracetorch.core.checks import check_has_values, check_module, check_unsharded
from tracetorch.core.hooks import PreHook, forward_hooks
from tracetorch.core.snapshot import restored
from tracetorch.core.torch_private import pytree
from tracetorch.core.walk import join_path, modules_of, named_modules, named_parameters
from tracetorch.diagnosis.criteria import (
    CLASSIFIES,
    Criteria,
    Criterion,
    last_activation,
)
from tracetorch.diagnosis.reach import SpikeInputs, spike_inputs
from tracetorch.events import Product, observed_products
from tracetorch.metrics.activity import count_spikes
from tracetorch.probe.layers import call_order, neuron_layers, recordable_names
from tracetorch.probe.recording import join_gradients
from tracetorch.probe.watch import watch
from tracetorch.ragged import real_steps_first
from tracetorch.snn.dropout import LockedDropout
from tracetorch.snn.module import zero_states
from tracetorch.snn.neuron import has_step, spike_functions
from tracetorch.snn.parameters import is_decay
from tracetorch.snn.recurrent import Recurrent
from tracetorch.snn.sequence_layer import SequenceLayer
from tracetorch.snn.states import get_states, set_states
from tracetorch.unrolling import unroll
from tracetorch.unrolling.inputs import Inputs, call

Loss = Callable[..., Tensor]


@dataclass
class LayerEvidence:
    """Inputs, outputs and gradient of one neuron layer."""

    path: str
    module: SequenceLayer
    input: Tensor  # [T, B, ...], as all that follow
    output: Tensor
    spike_inputs: SpikeInputs | None = None  # distances from thresholds; None: unknown
    gradient: Tensor | None = None  # of the loss by the input; None: there is none
    mask: Tensor | None = None  # [T, B], true where a step is real; None: all are

    @cached_property
    def counts(self) -> tuple[Tensor, Tensor] | None:
        """Spikes of every neuron, and the real steps at which it could fire; of readouts none."""
        if not spike_functions(self.module):
            return None
        return count_spikes(self.output, dim=self.module.dim, mask=self.mask)

    def real(self, values: Tensor) -> Tensor:
        """Return values of the real steps, ``[n, ...]``; all, ``[T, B, ...]``, without a mask."""
        return values if self.mask is None else values[self.mask]

    @property
    def reach(self) -> float | None:
        """Share of membranes within the surrogate's reach, over the real steps."""
        if self.spike_inputs is None:
            return None
        return float(self.real(self.spike_inputs.in_reach).double().mean())

    @property
    def gradient_norm(self) -> float | None:
        """Norm of the gradient."""
        return None if self.gradient is None else float(self.gradient.double().norm())

    @property
    def norms_to_the_end(self) -> Tensor | None:
        """Norm of the gradient by step, where the last real steps of all sequences are one."""
        gradient, mask = self.gradient, self.mask
        if gradient is not None and mask is not None:
            gradient = real_steps_first(gradient.flip(0), mask.flip(0)).flip(0)
        return norm_by_step(gradient)

    @property
    def halflives(self) -> tuple[float, float] | None:
        """Shortest and longest half-life of the layer's decays in steps; ``None`` without any."""
        lives = [
            halflife_of(getattr(self.module, name))
            for name, constraint in self.module.constraints.items()
            if is_decay(constraint)
        ]
        if not lives:
            return None
        return min(float(each.min()) for each in lives), max(float(each.max()) for each in lives)


@dataclass
class Evidence:
    """Measurements of a model on one batch, of which every finding is a function."""

    model: nn.Module
    inputs: Inputs
    layers: list[LayerEvidence]  # in the order in which they are called
    loss: Tensor
    outputs: list[Tensor]
    output_gradients: list[Tensor | None]  # of the loss by each output; None: there is none
    parameters: dict[str, nn.Parameter]
    gradients: dict[str, Tensor | None]  # of what requires one; None: the loss depends on none
    mask: Tensor | None = None  # [T, B], true where a step is real; None: all are
    stream: bool = False  # states are carried on purpose
    optimizer: Optimizer | None = None
    uncalled: list[str] = field(default_factory=list)
    old_states: dict[str, Tensor] = field(default_factory=dict)
    new_states: dict[str, Tensor] = field(default_factory=dict)
    loss_from_old_states: float | None = None  # where they fit
    zeroed: list[str] = field(default_factory=list)  # layers whose states are lost between steps
    products: dict[str, list[Product]] = field(default_factory=dict)  # that may be by events
    criteria: Sequence[Criterion] = ()  # losses of PyTorch's that were called
    activations: dict[int, str] = field(default_factory=dict)  # before those, by their identity
    dtypes: dict[str, torch.dtype] = field(default_factory=dict)  # of inputs that had to be cast

    @cached_property
    def closed(self) -> bool:
        """Whether a weight of zeros that learns passes nothing back: that comes a step later."""
        return any(
            g is not None and bool(g.any()) and not bool(self.parameters[name].any())
            for name, g in self.gradients.items()
            if name.endswith("weight")
        )

    def unfit_states(self) -> list[str]:
        """List the old states that the batch cannot continue from: of another kind of tensor."""

        def kind(state: Tensor) -> object:
            return state.shape, state.dtype, state.device

        shared = [name for name in self.old_states if name in self.new_states]
        return [n for n in shared if kind(self.old_states[n]) != kind(self.new_states[n])]


def halflife_of(decay: Tensor) -> Tensor:
    """Return ``log(0.5) / log(decay)``, infinite where the decay has rounded to 1."""
    return -math.log(2) / torch.log(decay.detach().double())


def norm_by_step(gradient: Tensor | None) -> Tensor | None:
    """Return the norm of a gradient at every time step, ``[T]``; ``None`` without one."""
    return None if gradient is None else gradient.double().flatten(1).norm(dim=1)


def gather(
    model: nn.Module,
    inputs: Inputs,
    loss: Callable[[Any], Tensor],
    *,
    mask: Tensor | None,
    by: Literal["layer", "step"],
) -> Evidence:
    """Run model and loss from rest, in the model's own mode, and their backward pass."""
    check_module(model)
    check_unsharded(model, "tt.diagnose")
    check_has_values(model)
    # a dropout that is off has no mask
    layers = neuron_layers(model).items()
    neurons = {p: n for p, n in layers if n.training or type(n) is not LockedDropout}
    parameters = named_parameters(model)
    old_states = get_states(model, detach=False)
    # A caller's inference mode would make tensors that autograd cannot use.
    with restored(model), torch.inference_mode(False):
        zero_states(model)
        order = {p: neurons[p] for p in call_order(model, inputs) if p in neurons}
        zeroed = _layers_zeroed_between_steps(model, inputs, order)
        if zeroed or inputs.steps == 1:  # states that are zeroed by layer cannot be run
            by = "step"
        with torch.enable_grad():
            with observed_products() as observed:
                y, trajectories, sources = _run(model, inputs, order, by)
            products: dict[str, list[Product]] = {}
            for path, module in named_modules(model):
                if calls := [product for called, product in observed if called is module]:
                    products[path] = calls
            with Criteria() as criteria:
                value = loss(y)
            activations = _activations(criteria.found, list(order.items()), sources)
            outputs = [leaf for leaf in pytree.tree_leaves(y) if isinstance(leaf, Tensor)]
            inside = itertools.chain.from_iterable(sources.values())
            gradients = _gradients(value, [*parameters.values(), *outputs, *inside])
        evidence = Evidence(
            model=model,
            inputs=inputs,
            mask=mask,
            layers=[_layer(p, each, trajectories, mask) for p, each in order.items()],
            uncalled=[path for path in neurons if path not in order],
            loss=value.detach(),
            outputs=[leaf.detach() for leaf in outputs],
            output_gradients=[gradients.get(id(leaf)) for leaf in outputs],
            parameters=parameters,
            gradients={n: gradients.get(id(p)) for n, p in parameters.items() if p.requires_grad},
            old_states=old_states,
            new_states=get_states(model),
            zeroed=zeroed,
            products=products,
            criteria=criteria.found,
            activations=activations,
        )
        for layer in evidence.layers:
            tensors = sources.get(join_path(layer.path, "input"), ())
            found = [gradients.get(id(t)) for t in tensors]
            if any(gradient is not None for gradient in found):
                layer.gradient = join_gradients(tensors, found, layer.input.ndim)
        if old_states and not evidence.unfit_states():
            set_states(model, {name: state.detach() for name, state in old_states.items()})
            with torch.no_grad():
                y = unroll(model, inputs.tensors, steps=inputs.repeats, by=by)
                evidence.loss_from_old_states = float(loss(y))
    return evidence


def _activations(
    criteria: Sequence[Criterion],
    layers: Sequence[tuple[str, SequenceLayer]],
    sources: dict[str, Sequence[Tensor]],
) -> dict[int, str]:
    """Name the activation before each loss of logits, that before a readout too."""
    found: dict[int, str] = {}
    for criterion in criteria:
        if criterion.function is CLASSIFIES[1]:
            continue
        name = last_activation(criterion.input)
        if name is None and layers and not spike_functions(layers[-1][1]):
            inputs = sources.get(join_path(layers[-1][0], "input"), ())
            name = next((each for each in map(last_activation, inputs) if each), None)
        if name is not None:
            found[id(criterion)] = name
    return found


def _gradients(value: Tensor, tensors: Sequence[Tensor]) -> dict[int, Tensor | None]:
    """Return the gradients of a loss, by the identity of each tensor that requires one."""
    differentiated = [tensor for tensor in tensors if tensor.requires_grad]
    if not value.requires_grad or not differentiated:
        return {}
    # grad(), not backward(): the gradients of the parameters are the user's.
    grads = torch.autograd.grad(value, differentiated, allow_unused=True)
    return {id(t): g for t, g in zip(differentiated, grads, strict=True)}


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
    given: Inputs,
    neurons: dict[str, SequenceLayer],
    by: Literal["layer", "step"],
) -> tuple[Any, dict[str, Tensor], dict[str, Sequence[Tensor]]]:
    """Run the model; return outputs, trajectories, and each layer's inputs in the graph."""
    names = list(recordable_names(neurons))
    if by == "step":
        with watch(model, names, gradients=True) as watched:
            y = unroll(model, given.tensors, steps=given.repeats, by="step")
        recording = watched.recording()
        inputs = {n: t for n, t in recording.sources.items() if n.rpartition(".")[2] == "input"}
        return y, dict(recording), inputs
    y, trajectories = unroll(model, given.tensors, steps=given.repeats, record=names)
    # Inside a Recurrent, steps run one by one: the recorded input is a copy outside of the graph.
    in_one_call = {path for path, _ in modules_of(model, closed=Recurrent)}
    paths = [join_path(path, "input") for path in neurons if path in in_one_call]
    return y, trajectories, {path: [trajectories[path]] for path in paths}


def _layer(
    path: str, layer: SequenceLayer, trajectories: dict[str, Tensor], mask: Tensor | None
) -> LayerEvidence:
    """Assemble the measurements of one layer."""

    def trajectory(name: str) -> Tensor:
        return trajectories[join_path(path, name)].detach()

    x, distances = trajectory("input"), None
    if has_step(layer):
        states = {name: trajectory(name) for name in layer.active_states}
        distances = spike_inputs(layer, x, states)
    return LayerEvidence(path, layer, x, trajectory("output"), distances, mask=mask)
