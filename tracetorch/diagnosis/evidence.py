"""One pass forward and backward, and all that was seen in it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tracetorch.core.snapshot import restored
from tracetorch.core.torch_private import pytree
from tracetorch.core.walk import modules_of, named_modules
from tracetorch.diagnosis.reach import Approach, approach
from tracetorch.probe.layers import called_in_order, neurons_of, spike_functions, tried
from tracetorch.probe.watch import watch
from tracetorch.snn.module import zero_states
from tracetorch.snn.neuron import Neuron
from tracetorch.snn.recurrent import Recurrent
from tracetorch.snn.states import get_states, set_states
from tracetorch.unrolling import unroll
from tracetorch.unrolling.inputs import Inputs, call

Loss = Callable[..., Tensor]


@dataclass
class LayerEvidence:
    """What was seen of one neuron layer.

    Args:
        path: where it stands.
        layer: the layer.
        input: what it was given, ``[T, B, ...]``.
        output: what it gave.
        fires: whether it has a spike function.
        approach: how near its membranes came to their thresholds, where that is known.
        gradient: the gradient of the loss by its input, ``[T, B, ...]``; ``None``: there is none.
    """

    path: str
    layer: Neuron
    input: Tensor
    output: Tensor
    fires: bool
    approach: Approach | None
    gradient: Tensor | None


@dataclass
class Evidence:
    """What was seen of a model on a batch.

    Args:
        model: the model.
        given: its inputs.
        mask: which steps are real, ``[T, B]``; ``None``: all are.
        layers: its neuron layers, in the order in which they are called.
        idle: paths of neuron layers that were not called.
        loss: the value of the loss.
        outputs: what the model gave.
        output_gradients: the gradient of the loss by each of them, ``None`` where there is none.
        parameters: every parameter by path.
        gradients: the gradient of each that requires one; ``None``: the loss does not depend on it.
        held: the states that the model held before.
        fresh: shape, dtype and device of the states that this batch gives.
        loss_carried: the loss from the states that were held, where they fit.
        emptied: paths of neuron layers whose states of one step are gone when the next begins.
    """

    model: nn.Module
    given: Inputs
    mask: Tensor | None
    layers: list[LayerEvidence]
    idle: list[str]
    loss: Tensor
    outputs: list[Tensor]
    output_gradients: list[Tensor | None]
    parameters: dict[str, nn.Parameter]
    gradients: dict[str, Tensor | None]
    held: dict[str, Tensor]
    fresh: dict[str, Tensor] = field(default_factory=dict)
    loss_carried: float | None = None
    emptied: list[str] = field(default_factory=list)


def gather(
    model: nn.Module,
    given: Inputs,
    x: Any,
    rest: Sequence[Any],
    loss: Loss,
    *,
    mask: Tensor | None,
    steps: int | None,
    by: Literal["layer", "step"],
) -> Evidence:
    """Run the model from rest, as it stands, and the loss, and their backward pass."""
    neurons = neurons_of(model)
    parameters = named_parameters(model)
    held = get_states(model, detach=False)
    with restored(model), torch.inference_mode(False):
        zero_states(model)
        called = called_in_order(model, given, by)
        order = [path for path in called if path in neurons]
        emptied = _emptied(model, given, {path: neurons[path] for path in order})
        with torch.enable_grad():
            y, seen, sources = _run(model, x, order, neurons, steps, by)
            value = _loss(loss, y, rest)
            outputs = [leaf for leaf in pytree.tree_leaves(y) if isinstance(leaf, Tensor)]
            wanted = [
                *(p for p in parameters.values() if p.requires_grad),
                *(leaf for leaf in outputs if leaf.requires_grad),
                *(t for tensors in sources.values() for t in tensors if t.requires_grad),
            ]
            found: dict[int, Tensor | None] = {}
            if value.requires_grad and wanted:
                grads = torch.autograd.grad(value, wanted, allow_unused=True)
                found = {id(t): g for t, g in zip(wanted, grads, strict=True)}
        evidence = Evidence(
            model=model,
            given=given,
            mask=mask,
            layers=[_layer(path, neurons[path], seen, sources, found) for path in order],
            idle=[path for path in neurons if path not in order],
            loss=value.detach(),
            outputs=[leaf.detach() for leaf in outputs],
            output_gradients=[found.get(id(leaf)) for leaf in outputs],
            parameters=parameters,
            gradients={n: found.get(id(p)) for n, p in parameters.items() if p.requires_grad},
            held=held,
            fresh=get_states(model),
            emptied=emptied,
        )
        if held and not unfit(held, evidence.fresh):
            set_states(model, {name: state.detach() for name, state in held.items()})
            with torch.no_grad():
                again = unroll(model, x, steps=steps, by=by)
                evidence.loss_carried = float(_loss(loss, again, rest))
    return evidence


def unfit(held: dict[str, Tensor], fresh: dict[str, Tensor]) -> list[str]:
    """Names of the states held that the batch cannot go on from."""
    return [
        name
        for name, state in held.items()
        if name in fresh
        and (state.shape, state.dtype, state.device)
        != (fresh[name].shape, fresh[name].dtype, fresh[name].device)
    ]


def named_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Every parameter by path, each once, in hidden modules too."""
    found: dict[int, tuple[str, nn.Parameter]] = {}
    for path, module in named_modules(model):
        for name, parameter in module.named_parameters(recurse=False):
            found.setdefault(id(parameter), (f"{path}.{name}" if path else name, parameter))
    return dict(found.values())


def _emptied(model: nn.Module, given: Inputs, neurons: dict[str, Neuron]) -> list[str]:
    """Make two steps from rest, and look at what the second begins with; zero the states."""
    if given.steps < 2:
        return []
    first, second = given.first(2).each_step()
    found: dict[str, bool] = {}
    hooks = []
    try:
        with tried(model):
            call(model, first)
            for path, layer in neurons.items():
                kept = {name: getattr(layer, name) for name in layer.active_states}

                def look(now: Any, args: Any, path: str = path, kept: Any = kept) -> None:
                    gone = any(_gone(state, getattr(now, name)) for name, state in kept.items())
                    found.setdefault(path, gone)

                hooks.append(layer.register_forward_pre_hook(look))
            call(model, second)
    finally:
        for hook in hooks:
            hook.remove()
    return [path for path in neurons if found.get(path)]


def _gone(before: Tensor | None, now: Tensor | None) -> bool:
    if before is None:
        return False
    return now is None or (bool(before.any()) and not bool(now.any()))


def _run(
    model: nn.Module,
    x: Any,
    order: list[str],
    neurons: dict[str, Neuron],
    steps: int | None,
    by: Literal["layer", "step"],
) -> tuple[Any, dict[str, Tensor], dict[str, Sequence[Tensor]]]:
    """Outputs, trajectories, and the tensors by which gradients are wanted."""
    names = [
        f"{path}.{name}" if path else name
        for path in order
        for name in (*neurons[path].active_states, "input", "output")
    ]
    if by == "step":
        with watch(model, names, gradients=True) as watched:
            y = unroll(model, x, steps=steps, by="step")
        recording = watched.recording()
        inputs = {n: t for n, t in recording.sources.items() if n.rpartition(".")[2] == "input"}
        return y, dict(recording), inputs
    y, seen = unroll(model, x, steps=steps, by="layer", record=names)
    # inside a Recurrent the steps are run one by one, and what is recorded is a copy
    whole = {path for path, _ in modules_of(model, closed=Recurrent)}
    sources: dict[str, Sequence[Tensor]] = {
        name: [seen[name]]
        for path in order
        if path in whole
        for name in [f"{path}.input" if path else "input"]
    }
    return y, seen, sources


def _layer(
    path: str,
    layer: Neuron,
    seen: dict[str, Tensor],
    sources: dict[str, Sequence[Tensor]],
    found: dict[int, Tensor | None],
) -> LayerEvidence:
    def of(name: str) -> Tensor:
        return seen[f"{path}.{name}" if path else name].detach()

    gradient: Tensor | None = None
    tensors = sources.get(f"{path}.input" if path else "input", ())
    grads = [found.get(id(t)) for t in tensors]
    if any(grad is not None for grad in grads):
        pairs = zip(tensors, grads, strict=True)
        filled = [torch.zeros_like(t) if g is None else g for t, g in pairs]
        gradient = filled[0] if filled[0].ndim == of("input").ndim else torch.stack(filled)
    near = None
    if not isinstance(layer, Recurrent):
        near = approach(layer, of("input"), {name: of(name) for name in layer.active_states})
    fires = bool(spike_functions(layer))
    return LayerEvidence(path, layer, of("input"), of("output"), fires, near, gradient)


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
