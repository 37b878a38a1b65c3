"""``Prepared``: a chain of integer layers whose integers follow from floats that learn."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from tracetorch.core.walk import Opaque
from tracetorch.integers.exact import check_exact
from tracetorch.integers.leaky_integrator import LeakyIntegrator
from tracetorch.quantize.target import Target
from tracetorch.snn.module import TTModule, zero_states
from tracetorch.snn.recurrent import Recurrent

Recipe = Callable[[Any], nn.Module]


@dataclass
class Plan(Opaque):
    """Plan of a conversion: samples, float twin, and recipes of a prepared model.

    Args:
        target: what it was prepared for.
        sample: the inputs on which its scales were found.
        twin: the float model, batch norms folded, with the same names.
        labels: path in the user's model, by name.
        recipes: how integer modules are made of prepared ones, by name.
        sources: path of a float that learns, and of its place in the twin.
        units: what one integer of the states stands for, by name.
        differences: in what a chip's neurons differ from the model's.
    """

    target: Target
    sample: Tensor
    twin: nn.Sequential
    labels: dict[str, str] = field(default_factory=dict)
    recipes: dict[str, Recipe] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)
    units: dict[str, Tensor] = field(default_factory=dict)
    differences: list[str] = field(default_factory=list)


def integer_model(prepared: Prepared) -> nn.Sequential:
    """Return the integers of a prepared model alone, at rest, proved exact on its sample.

    Raises:
        ValueError: a number can leave the exact range.
    """
    recipes = prepared.plan.recipes
    made = OrderedDict((name, recipes[name](each)) for name, each in prepared.named_children())
    model = nn.Sequential(made).train(prepared.training)
    zero_states(model)  # delays are copied with what they hold
    check_exact(model, prepared.plan.sample)
    return model


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
        """Return what the sample decided, and the floats that do not learn, for ``state_dict``."""
        values = [torch.tensor([self.output_scale], dtype=torch.float64), *self._decided()]
        return torch.cat([value.detach().double().flatten().cpu() for value in values])

    def set_extra_state(self, state: Tensor) -> None:
        """Take what another sample decided."""
        self.output_scale = float(state[0])
        held = self._decided()
        values = torch.split(state[1:], [value.numel() for value in held])
        with torch.no_grad():
            for value, given in zip(held, values, strict=True):
                value.copy_(given.reshape(value.shape))
        unit = torch.ones(())
        for name, module in self.named_children():
            unit = self.plan.units.get(name, unit)
            neuron = module.neuron if isinstance(module, Recurrent) else module
            if isinstance(neuron, LeakyIntegrator) and neuron.unit is not None:
                neuron.unit = float(1 / unit)

    def _decided(self) -> list[Tensor]:
        """Return the units of states, and those floats of the twin that no others replace."""
        twin, learned = self.plan.twin, set(self.plan.sources.values())
        floats = {**dict(twin.named_parameters()), **dict(twin.named_buffers())}
        kept = [value for name, value in floats.items() if name not in learned]
        return [*self.plan.units.values(), *kept]

    def _load_from_state_dict(
        self, state_dict: Any, prefix: str, metadata: Any, strict: bool, *lists: list[str]
    ) -> None:
        state = state_dict.get(f"{prefix}_extra_state")
        if state is not None and state.shape != (own := self.get_extra_state()).shape:
            *_, messages = lists
            messages.append(
                f"{prefix}_extra_state: {state.numel()} numbers that a sample decided, and this "
                f"model has {own.numel()}. Prepare the same network in the same way."
            )
            return
        super()._load_from_state_dict(state_dict, prefix, metadata, strict, *lists)
