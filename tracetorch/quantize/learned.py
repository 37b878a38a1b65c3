"""``LearnedIntegers``: integers that follow from floats which learn, straight through."""

from __future__ import annotations

import copy
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from tracetorch.cell import Constraint
from tracetorch.integers.straight_through import straight_through
from tracetorch.snn.connectivity import Connectivity


class LearnedIntegers(nn.Module):
    """Parametrization of a tensor of integers by the floats of the model that was prepared.

    ::

        y = step * clamp(round((constraint(raw) * factor + offset) / step), low, high)

    The gradient passes as if nothing were rounded or clamped, so that what has left the range can
    come back.

    Args:
        constraint: that the float layer has for the parameter.
        factor: integers in one unit of its value; a number, or shaped to broadcast.
        offset: added to it.
        low, high: the least and the largest multiple of ``step``.
        step: of which every integer is a multiple.
    """

    factor: Tensor
    step: Tensor

    def __init__(
        self,
        constraint: Constraint,
        factor: Tensor | float,
        low: float,
        high: float,
        *,
        offset: float = 0.0,
        step: float = 1.0,
    ) -> None:
        super().__init__()
        self.constraint = constraint
        self.register_buffer("factor", torch.as_tensor(factor, dtype=torch.get_default_dtype()))
        self.register_buffer("step", torch.tensor(step, dtype=torch.get_default_dtype()))
        self.low, self.high, self.offset = low, high, offset

    def forward(self, raw: Tensor) -> Tensor:
        """Return the integers."""
        value = self.constraint(raw) * self.factor + self.offset
        steps = torch.round(value.detach() / self.step).clamp(self.low, self.high)
        return straight_through(value, steps * self.step)

    def extra_repr(self) -> str:
        """Return the range, for ``repr``."""
        return f"{self.constraint.name}, {self.low:g} to {self.high:g}"


def parametrize_by(
    module: nn.Module,
    name: str,
    raw: Tensor,
    form: LearnedIntegers,
    rule: Connectivity | None = None,
    learnable: bool | None = None,
) -> None:
    """Let a tensor of a module follow from a float that learns as it learned before.

    Args:
        module: it has ``name`` as a parameter or a buffer, which is replaced.
        name: of the tensor.
        raw: the float, copied.
        form: how the integers follow.
        rule: mask and signs that the float is kept by before it is rounded, copied; ``None``: none.
        learnable: whether the float learns; ``None``: if it has a gradient.
    """
    module._buffers.pop(name, None)
    module._parameters.pop(name, None)
    learnable = raw.requires_grad if learnable is None else learnable
    learned = nn.Parameter(raw.detach().clone(), requires_grad=learnable)
    module.register_parameter(name, learned)
    if rule is not None:
        parametrize.register_parametrization(module, name, copy.deepcopy(rule), unsafe=True)
    parametrize.register_parametrization(module, name, form, unsafe=True)


def scaled_by(module: nn.Module, name: str) -> tuple[Tensor, Tensor]:
    """Return the floats that the integers of a tensor are rounded from, and their factor."""
    lists = cast(nn.ModuleDict, module.parametrizations)
    found = cast(parametrize.ParametrizationList, lists[name])
    value: Tensor = found.original
    *rules, form = found
    for rule in rules:
        value = rule(value)
    return value, cast(LearnedIntegers, form).factor


def original(path: str) -> str:
    """Return the path of the float that the integers at a path follow from."""
    owner, _, name = path.rpartition(".")
    return f"{owner}.parametrizations.{name}.original"
