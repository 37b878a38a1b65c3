"""``SEWBlock``: a residual block that combines spikes with spikes."""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

from torch import Tensor, nn

from tracetorch.core.checks import check_choice
from tracetorch.core.walk import path_on_stack
from tracetorch.snn.module import TTModule

Combination: TypeAlias = Literal["add", "and", "iand"]


class SEWBlock(TTModule):
    """Spike-element-wise residual block: combine the spikes of a body with those of its input.

    ::

        a = body(x),  s = shortcut(x)      s = x without a shortcut
        "add":   output = a + s            0, 1 or 2
        "and":   output = a * s
        "iand":  output = (1 - a) * s      and not

    ``tt.init.identity_`` starts it as the identity. ``"add"`` learns best; its outputs are counts
    that grow by up to one a block. The others are for spikes of 0 and 1.

    Args:
        body: any module that ends in spikes.
        combine: ``"add"``, ``"and"`` or ``"iand"``.
        shortcut: a module that ends in spikes, where the body changes the shape.

    Shape:
        Input as the body's and the shortcut's, whose outputs have one shape, that of the output.

    Raises:
        TypeError, ValueError: no module, no such ``combine``, or the outputs differ in shape.

    Example:
        >>> block = SEWBlock(nn.Sequential(nn.Linear(3, 3), LIF(3)), "iand")
        >>> block(torch.ones(2, 3)).shape
        torch.Size([2, 3])

    Reference: Fang, Yu, Chen, Huang, Masquelier and Tian, Deep residual learning in spiking neural
    networks, NeurIPS 2021.
    """

    combine: Combination

    def __init__(
        self, body: nn.Module, combine: Combination = "add", shortcut: nn.Module | None = None
    ) -> None:
        super().__init__()
        for name, module in (("body", body), ("shortcut", shortcut)):
            if not isinstance(module, nn.Module) and (name, module) != ("shortcut", None):
                raise TypeError(f"{name} must be an nn.Module, got {type(module).__name__}.")
        self.body = body
        self.combine = combine
        check_choice("combine", combine, get_args(Combination))
        self.shortcut = nn.Identity() if shortcut is None else shortcut

    def forward(self, x: Tensor) -> Tensor:
        """Run one time step."""
        check_choice("combine", self.combine, get_args(Combination))
        a: Tensor = self.body(x)
        s: Tensor = self.shortcut(x)
        for name, output in (("body", a), ("shortcut", s)):
            if isinstance(output, (tuple, list, dict)):
                raise TypeError(
                    f"the {name} of the block must return a tensor, got {type(output).__name__}."
                )
        # torch.fx, with which tt.nir follows a forward, has no shapes
        if isinstance(a, Tensor) and a.shape != s.shape:
            raise ValueError(
                f"block {path_on_stack(self) or 'SEWBlock'!r} combines outputs of one shape; its "
                f"body gave {list(a.shape)}, its shortcut {list(s.shape)}."
            )
        if self.combine == "add":
            return a + s
        return a * s if self.combine == "and" else (1 - a) * s

    def extra_repr(self) -> str:
        """Show how the spikes are combined."""
        return f"combine={self.combine!r}"
