"""Step a copy of a model and its learner, of either kind, and ask what the weights are then."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeAlias

import torch
from torch import Tensor, nn

from tracetorch.core.hooks import forward_hooks
from tracetorch.core.walk import join_path, named_modules, named_parameters
from tracetorch.export.c_code.stages import Phase
from tracetorch.export.program import named_leaves
from tracetorch.online_learning import STDP, OnlineLearner
from tracetorch.online_learning.linear_maps import is_convolution
from tracetorch.snn.connectivity import raw_weight
from tracetorch.snn.neuron import has_step
from tracetorch.snn.states import get_states, set_states
from tracetorch.unrolling.inputs import call


@dataclass
class GradientTrial:
    """A copy of a model with an online learner, and what plain SGD makes of its gradients."""

    learner: OnlineLearner
    learned: dict[str, Tensor]  # the parameters that change, by name
    rates: dict[str, float]  # of each
    signals: dict[str, Tensor]  # the form of those that a step takes: a gradient of each output
    # modules whose outputs a step returns too, by name, as ``(y, outputs)``
    shown: dict[str, nn.Module] = field(default_factory=dict)

    phase: ClassVar[Phase] = Phase.ADVANCE  # in which traces move on

    @property
    def model(self) -> nn.Module:
        """The copy of the model."""
        return self.learner.model

    silent: ClassVar[str] = "no parameter of the optimizer has a gradient in a step of the learner."

    def step(self, x: Any, signals: Mapping[str, Tensor]) -> tuple[Any, dict[str, Tensor | None]]:
        """Run a step, and return the output and the next value of each parameter."""
        seen: dict[str, Tensor] = {}
        with forward_hooks(after=[(module, _noting(seen, n)) for n, module in self.shown.items()]):
            y = call(self.learner, x)
        ends = [leaf for _, leaf in named_leaves("y", y) if leaf.is_floating_point()]
        pairs = [(e, s) for e, s in zip(ends, signals.values(), strict=True) if e.requires_grad]
        found: Sequence[Tensor | None] = [None] * len(self.learned)
        if pairs and self.learned:
            outputs, seeds = zip(*pairs, strict=True)
            parameters = list(self.learned.values())
            found = torch.autograd.grad(outputs, parameters, seeds, allow_unused=True)
        new: dict[str, Tensor | None] = {}
        with torch.no_grad():
            for (name, parameter), gradient in zip(self.learned.items(), found, strict=True):
                rate = self.rates[name]
                # as torch.optim.SGD does, rounded once
                new[name] = (
                    None if gradient is None else torch.add(parameter, gradient, alpha=-rate)
                )
        return ((y, seen) if self.shown else y), new

    @torch.no_grad()
    def apply(self, new: Mapping[str, Tensor | None]) -> None:
        """Move the parameters."""
        for name, value in new.items():
            if value is not None:
                self.learned[name].copy_(value)

    def states(self) -> dict[str, Tensor]:
        """Return the states of the model."""
        return get_states(self.learner.model, detach=False)

    def traces(self) -> dict[str, Tensor]:
        """Return the traces."""
        return self.learner.extra_states()

    def notes(self) -> tuple[str, ...]:
        """Return lines for whoever calls ``tt_learn``."""
        return (
            "What it takes is the gradient of the loss by each output of that step.",
            "Traces go on in every step, whether it is called or not.",
            f"Weights move by the rule {self.learner.rule} and plain SGD, at rates of",
            *(f"    {self.rates[name]:g}: {name}" for name in self.learned),
        )

    def renew(self) -> None:
        """Give states and traces memory of their own."""
        set_states(self.learner, get_states(self.learner))


@dataclass
class PlasticTrial:
    """A copy of a model whose connections change by spike timing after every step."""

    model: nn.Module
    rules: dict[str, STDP]  # by the path of the connection
    neurons: dict[str, str]  # path of the layer behind each connection
    learned: dict[str, Tensor]
    signals: dict[str, Tensor]  # the reward, where a rule waits for one

    phase: ClassVar[Phase] = Phase.LEARN  # as in Python, a step without learning moves no trace
    silent: ClassVar[str] = "there is no connection."

    @torch.no_grad()
    def step(self, x: Any, signals: Mapping[str, Tensor]) -> tuple[Any, dict[str, Tensor | None]]:
        """Run a step and the rules; the weights have moved then."""
        # several connections may drive one layer
        paths = dict.fromkeys([*self.rules, *self.neurons.values()])
        y, seen = _watched(self.model, x, [*paths])
        for path, rule in self.rules.items():
            reward = signals.get("reward") if rule.tau_eligibility is not None else None
            rule(seen[path][0], seen[self.neurons[path]][1], reward)
            rule.update_()
        return y, dict(self.learned)

    def apply(self, new: Mapping[str, Tensor | None]) -> None:
        """Do nothing: the rules have moved the weights."""

    def states(self) -> dict[str, Tensor]:
        """Return the states of the model."""
        return get_states(self.model, detach=False)

    def traces(self) -> dict[str, Tensor]:
        """Return the traces of the rules, each behind the path of its connection."""
        return {
            join_path(path, name): value
            for path, rule in self.rules.items()
            for name, value in get_states(rule, detach=False).items()
        }

    def notes(self) -> tuple[str, ...]:
        """Return lines for whoever calls ``tt_learn``."""
        moved = "Weights move by the timing of the spikes of that step (STDP)"
        if self.signals:
            moved += ", and by the reward"
        return (f"{moved}.", "A step without it moves no trace of the rule.")

    def renew(self) -> None:
        """Give states and traces memory of their own."""
        for each in (self.model, *self.rules.values()):
            set_states(each, get_states(each))


Trial: TypeAlias = GradientTrial | PlasticTrial


def learns_integers(learner: Any) -> bool:
    """Whether a learner is STDP of integers; raise where it is that of floats as well."""
    rules = learner if isinstance(learner, (tuple, list)) else [learner]
    found = {isinstance(rule, STDP) and rule.remainder is not None for rule in rules}
    if len(found) > 1:
        raise ValueError(
            "learner has STDP of integers and of floats, and C has one kind of numbers. Quantise "
            "all of the model, tt.quantize.prepare and tt.quantize.convert."
        )
    return found == {True}


def trial_of(model: nn.Module, learner: Any, optimizer: Any, x: Any) -> Trial:
    """Check a learner and its optimizer, and return a trial of copies in eval mode."""
    if isinstance(learner, OnlineLearner):
        return _gradient_trial(model, learner, optimizer, x)
    rules = learner if isinstance(learner, (tuple, list)) and learner else [learner]
    if not all(isinstance(rule, STDP) for rule in rules):
        raise TypeError(
            "learner must be made by tt.online(model, rule), or be a tt.STDP or several, got "
            f"{type(learner).__name__}."
        )
    if optimizer is not None:
        raise ValueError("STDP moves the weights itself: leave optimizer out.")
    return _plastic_trial(model, rules, x)


def _gradient_trial(
    model: nn.Module, learner: OnlineLearner, optimizer: Any, x: Any
) -> GradientTrial:
    if learner.model is not model:
        raise ValueError("learner is one of another model: give tt.online(model, rule).")
    if optimizer is None:
        raise ValueError(
            "an online learner gives gradients, and C moves the weights by plain SGD: give "
            "optimizer=torch.optim.SGD(model.parameters(), lr) of what is to learn."
        )
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(f"optimizer must be a torch.optim.SGD, got {type(optimizer).__name__}.")
    for path, module in named_modules(model):
        if isinstance(module, nn.Conv2d) and module.weight.requires_grad:
            raise ValueError(
                f"{path} ({type(module).__name__}) has places that share a weight, each with a "
                "trace of its own: in C an nn.Linear learns. Freeze it, requires_grad_(False)."
            )
    names = {id(parameter): name for name, parameter in named_parameters(model).items()}
    rates: dict[str, float] = {}
    for group in optimizer.param_groups:
        extras = ("momentum", "dampening", "weight_decay", "nesterov", "maximize")
        used = [f"{name}={group[name]}" for name in extras if group.get(name)]
        if type(optimizer) is not torch.optim.SGD or used:
            raise ValueError(
                f"optimizer is {type(optimizer).__name__}{' with ' * bool(used)}{', '.join(used)}, "
                "and C has plain SGD, without memory: torch.optim.SGD(parameters, lr)."
            )
        for parameter in group["params"]:
            if id(parameter) not in names:
                raise ValueError(
                    f"optimizer has a parameter of shape {list(parameter.shape)} that the model "
                    "does not have. Make it of model.parameters()."
                )
            rates[names[id(parameter)]] = float(group["lr"])
    copied = copy.deepcopy(learner).cpu().eval()
    with torch.no_grad():
        outputs = named_leaves("y", call(copied.model, x))
    copied.zero_states()
    parameters = named_parameters(copied.model)
    learned: dict[str, Tensor] = {n: parameters[n] for n in rates if parameters[n].requires_grad}
    floats = [(name, leaf) for name, leaf in outputs if leaf.is_floating_point()]
    signals = {f"signal{n.removeprefix('y')}": torch.zeros_like(v) for n, v in floats}
    return GradientTrial(copied, learned, rates, signals)


def _plastic_trial(model: nn.Module, rules: Sequence[STDP], x: Any) -> PlasticTrial:
    paths = {id(module): path for path, module in reversed(named_modules(model))}
    for path, module in named_modules(model):
        if isinstance(module, STDP):
            raise ValueError(
                f"{path} (STDP) is a part of the model. Keep rules beside it, and give them as "
                "learner: forward calls none."
            )
    by_path: dict[str, STDP] = {}
    for rule in rules:
        if id(rule.connection) not in paths:
            raise ValueError(f"{rule.connection!r} of an STDP is no part of the model.")
        path = paths[id(rule.connection)]
        if is_convolution(rule.connection):
            raise ValueError(
                f"{path} ({type(rule.connection).__name__}) has places that share a weight: in C "
                "STDP is that of linear layers."
            )
        if path in by_path:
            raise ValueError(f"{path} has two rules of STDP: give one of each connection.")
        by_path[path] = rule
    # the two are copied together: a rule goes on with the copy's connection
    copied, own = copy.deepcopy((model, by_path))
    for each in (copied, *own.values()):
        set_states(each.cpu().eval(), {})
    for rule in own.values():
        rule._potentiation = rule._depression = None
        if rule.remainder is not None:  # integers in the dtype of the input, which holds them
            dtype = next(leaf.dtype for _, leaf in named_leaves("x", x) if leaf.is_floating_point())
            for integers in (raw_weight(rule.connection), rule.remainder):
                integers.data = integers.to(dtype)
    neurons = _layers_behind(copied, own, x)
    names = {id(parameter): name for name, parameter in named_parameters(copied).items()}
    learned = {}
    for path, rule in own.items():
        weight = raw_weight(rule.connection)
        learned[names.get(id(weight), f"{path}.weight")] = weight
        if rule.remainder is not None:
            learned[f"{path}.remainder"] = rule.remainder
    waits = any(rule.tau_eligibility is not None for rule in own.values())
    return PlasticTrial(copied, own, neurons, learned, {"reward": torch.zeros(1)} if waits else {})


def _layers_behind(model: nn.Module, rules: Mapping[str, STDP], x: Any) -> dict[str, str]:
    """Return the neuron layer that is called next after each connection."""
    layers = [path for path, module in named_modules(model) if has_step(module)]
    with torch.no_grad():
        _, seen = _watched(model, x, [*rules, *layers])
    set_states(model, {})
    order = list(seen)
    found: dict[str, str] = {}
    for path, rule in rules.items():
        behind = order[order.index(path) + 1 :] if path in seen else []
        layer = next((each for each in behind if each in layers), None)
        size = rule.connection.weight.shape[0]
        if layer is None or seen[layer][1].shape[-1] != size:
            raise ValueError(
                f"{path} ({type(rule.connection).__name__}) has {size} outputs, and the neuron "
                f"layer that is called next is {layer or 'none'}: STDP needs its spikes."
            )
        found[path] = layer
    return found


def _watched(
    model: nn.Module, x: Any, paths: Sequence[str]
) -> tuple[Any, dict[str, tuple[Tensor, Tensor]]]:
    """Run a step; return the output, and input and output of some modules in order of calls."""
    inputs: dict[str, Tensor] = {}
    outputs: dict[str, Tensor] = {}
    modules = dict(named_modules(model))
    with forward_hooks(after=[(modules[path], _noting(outputs, path, inputs)) for path in paths]):
        y = call(model, x)
    return y, {path: (inputs[path], output) for path, output in outputs.items()}


def _noting(
    outputs: dict[str, Tensor], name: str, inputs: dict[str, Tensor] | None = None
) -> Callable[..., None]:
    """Return a hook that notes what a module gives, and its input where there is a dict for it."""

    def note(module: nn.Module, args: Any, kwargs: Any, output: Tensor) -> None:
        if name in outputs:
            raise ValueError(f"{name} is called twice in a step, which a learner in C cannot tell.")
        outputs[name] = output
        if inputs is not None:
            inputs[name] = args[0]

    return note
