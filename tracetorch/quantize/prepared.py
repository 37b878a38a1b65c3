"""``Prepared``: a chain of integer layers whose integers follow from floats that learn."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from tracetorch.core.walk import Opaque
from tracetorch.integers.exact import check_exact
from tracetorch.quantize.target import Target
from tracetorch.snn.module import TTModule, zero_states

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

    ``copy.deepcopy`` and ``state_dict`` serve it; whole, it cannot be pickled, as nothing
    parametrized can.

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
