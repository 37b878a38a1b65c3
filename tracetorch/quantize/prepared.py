"""``Prepared``: a chain of integer layers whose integers follow from floats that learn."""

from __future__ import annotations

import copy
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn

from tracetorch.chips.target import Target
from tracetorch.core.walk import Opaque
from tracetorch.integers.arithmetic import limits
from tracetorch.integers.layers import Product
from tracetorch.integers.leaky_integrator import LeakyIntegrator
from tracetorch.integers.ranges import check_exact
from tracetorch.quantize.reader import run_by_step
from tracetorch.snn.module import TTModule, zero_states
from tracetorch.snn.neuron import Neuron


@dataclass
class Layer:
    """A product of a prepared model, and the neurons behind it."""

    label: str  # path of the product in the user's model
    path: str  # of the product in the prepared one
    unit: Tensor  # what one integer of what it feeds stands for
    neurons_label: str = ""  # path of the neurons in the user's model; empty where there are none
    neurons: str = ""  # path of the neurons, or of the Recurrent of them
    spikes: bool = False  # whether the neurons have a threshold
    depth: int = 0  # how many products are before it
    # of parameters in the user's model, by path and name in the prepared one
    names: dict[tuple[str, str], str] = field(default_factory=dict)
    # of those that do not learn, the share that is beyond an end of its range
    clipped: dict[str, float] = field(default_factory=dict)


@dataclass
class Plan(Opaque):
    """Plan of a conversion: target, sample, and the float model's outputs over it."""

    target: Target  # what it was prepared for
    sample: Tensor  # the inputs on which its scales were found
    output: Tensor  # of the float model over the sample
    signs: dict[str, Tensor]  # of the outputs of its neurons, by their path in it
    layers: list[Layer] = field(default_factory=list)  # in order
    # in what the prepared model differs from the float one, beside rounding
    differences: list[str] = field(default_factory=list)


class Prepared(nn.Sequential, TTModule):
    """A network that trains through integer forwards: what ``tt.quantize.prepare`` returns.

    An ``nn.Sequential`` of ``tt.integers`` or of a chip's neurons. Its parameters are the floats of
    the model that was prepared; integers follow from them, rounded straight through
    (``torch.nn.utils.parametrize``). Its output is integers: ``output_scale * output`` is what the
    float model returned.

    ``copy.deepcopy`` and ``state_dict`` serve it, which holds all that the sample decided; whole,
    it cannot be pickled, as nothing parametrized can. A slice of it is an ``nn.Sequential``.

    Attributes:
        output_scale: what one integer of the output stands for; 1 for spikes.
        plan: what ``convert`` needs to know.

    Example:
        >>> from tracetorch import quantize, snn
        >>> model = nn.Sequential(nn.Linear(4, 8), snn.LIF(8))
        >>> prepared = quantize.prepare(model, torch.ones(9, 1, 4))
        >>> prepared(torch.ones(1, 4)).shape, prepared.output_scale
        (torch.Size([1, 8]), 1.0)
    """

    output_scale: float
    plan: Plan

    def __getitem__(self, index: Any) -> Any:
        """Return a child, or an ``nn.Sequential`` of some, which are no prepared model alone."""
        return nn.Sequential(OrderedDict(self._modules))[index]

    def get_extra_state(self) -> Tensor:
        values = (
            torch.tensor([self.output_scale], dtype=torch.float64),
            *(layer.unit for layer in self.plan.layers),
        )
        return torch.cat([value.detach().double().flatten().cpu() for value in values])

    def set_extra_state(self, state: Tensor) -> None:
        """Take what another sample decided; in earlier versions there was more behind it."""
        least = self.get_extra_state().numel()
        if state.numel() < least:
            raise ValueError(
                f"_extra_state holds {state.numel()} numbers that a sample decided, and this model "
                f"has {least}. Prepare the same network in the same way."
            )
        self.output_scale, place = float(state[0]), 1
        for layer in self.plan.layers:
            end = place + layer.unit.numel()
            layer.unit = state[place:end].reshape(layer.unit.shape).to(layer.unit)
            place = end
            neuron = neurons_of(self, layer)
            if isinstance(neuron, LeakyIntegrator) and neuron.unit is not None:
                neuron.unit = float(1 / layer.unit)


def integer_model(prepared: Prepared) -> nn.Sequential:
    children = ((name, copy.deepcopy(child)) for name, child in prepared.named_children())
    model = nn.Sequential(OrderedDict(children)).train(prepared.training)
    for module in model.modules():
        values = unparametrized(module)
        for name, value in values.items():
            if isinstance(module, Product):
                narrow = torch.int8 if module.weight_bits <= 8 else torch.int16
                value = value.to(torch.int32 if name == "bias" else narrow)
            module.register_buffer(name, value)
    zero_states(model)
    return model


def unparametrized(module: nn.Module) -> dict[str, Tensor]:
    """Take the parametrizations of a module away, and return the values that they gave."""
    lists: Any = module._modules.get("parametrizations", {})
    values = {name: getattr(module, name).detach().clone() for name in lists}
    if values:
        del module._modules["parametrizations"]
        # the class that it had before PyTorch gave it properties, which copies share
        module.__class__ = type(module).__base__  # type: ignore[assignment]
    return values


@torch.no_grad()
def observed(
    model: nn.Module, x: Tensor, plan: Plan
) -> tuple[Tensor, dict[str, Tensor], dict[str, float]]:
    """Run integers, prepared or converted, over a sample, and prove that all are exact.

    Return outputs, and by label signs of neurons' outputs, and the share of states at an end.
    """
    found = {layer.neurons_label: neurons_of(model, layer) for layer in plan.layers}
    neurons = {name: neuron for name, neuron in found.items() if neuron is not None}
    shares: dict[str, list[float]] = {name: [] for name in neurons}
    limit, steps = limits(plan.target.state_width)[1], len(plan.sample)

    def see(name: str, neuron: Neuron) -> None:
        for state in neuron.active_states:
            value = getattr(neuron, state)
            # what is behind the sample is there for late spikes alone
            if state != "prev_output" and len(shares[name]) < steps * len(neuron.active_states):
                shares[name].append(float((value.double().abs() >= limit).double().mean()))

    check_exact(model, x)
    output, signs = run_by_step(model, x, neurons, see)
    return output, signs, {name: sum(each) / len(each) for name, each in shares.items()}


def neurons_of(model: nn.Module, layer: Layer) -> Neuron | None:
    if not layer.neurons:
        return None
    found = model.get_submodule(layer.neurons)
    return cast(Neuron, getattr(found, "neuron", found))
