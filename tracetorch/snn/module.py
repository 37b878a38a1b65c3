"""``TTModule``: an ``nn.Module`` whose states are cleared and detached in one call."""

from __future__ import annotations

import inspect

from torch import Tensor, nn

from tracetorch.core.checks import check_module
from tracetorch.core.walk import named_modules
from tracetorch.snn.traversal import TraversedModule, call_action, traverse


class TTModule(TraversedModule):
    """An ``nn.Module`` whose hidden states, however deep, are cleared and detached in one call.

    Inherit from it as you would from ``nn.Module``. ``zero_states`` and ``detach_states`` may be
    overridden; an override calls ``super()`` and runs exactly once however often its module is met.

    Example:
        >>> class Net(TTModule):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.cells = [LIF(3), LIF(3)]  # a plain list is found too
        ...
        ...     def forward(self, x):
        ...         return self.cells[1](self.cells[0](x))
        >>> net = Net()
        >>> net(torch.ones(2, 3)).shape
        torch.Size([2, 3])
        >>> net.zero_states()
        >>> net.cells[0].mem is None
        True
        >>> net.get_param_count()
        12
    """

    def zero_states(self, *, where: Tensor | None = None) -> None:
        """Set every state to ``None``, or with ``where`` reset just those samples.

        Args:
            where: boolean mask over dimension 0, the batch; ``True`` resets the sample. States of
                the others keep their values and their graph; states that are ``None`` stay so.

        Raises:
            TypeError: the mask is not a boolean tensor, or an override of ``zero_states`` in the
                model does not take ``where``.
            ValueError: the mask does not fit the batch of a layer, or dimension 0 of a layer holds
                its neurons. Nothing has been changed then.
        """
        traverse(self, "zero_states", where)

    def detach_states(self) -> None:
        """Cut every state from the graph that computed it; the values stay."""
        traverse(self, "detach_states")

    def get_param_count(self) -> int:
        """Count the parameter values in the module and all it holds, shared ones once."""
        found = {id(p): p for _, module in named_modules(self) for p in module.parameters()}
        return sum(p.numel() for p in found.values())

    def check_reset(self, path: str, where: Tensor) -> None:
        """Raise where ``zero_states(where=...)`` would fail on this very module.

        Args:
            path: path of the module in the model, for the message.
            where: the mask.
        """
        parameters = inspect.signature(self.zero_states).parameters.values()
        if not any(p.name == "where" or p.kind is p.VAR_KEYWORD for p in parameters):
            raise TypeError(
                f"{type(self).__name__}.zero_states, at {path or 'the root'!r}, does not take "
                "where=. Declare zero_states(self, *, where=None) and pass it on to super()."
            )


def zero_states(module: nn.Module, *, where: Tensor | None = None) -> None:
    """Clear the states of any module, an ``nn.Sequential`` say, as :meth:`.TTModule.zero_states`.

    Args:
        module: any ``nn.Module``.
        where: boolean mask over dimension 0; without it every state becomes ``None``.

    Raises:
        TypeError: ``module`` is not an ``nn.Module``, or as the method.
        ValueError: as the method.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 3), LIF(3))
        >>> _ = net(torch.ones(2, 4))
        >>> zero_states(net, where=torch.tensor([True, False]))
        >>> net[1].mem[0]
        tensor([0., 0., 0.], grad_fn=<SelectBackward0>)
        >>> zero_states(net)
        >>> net[1].mem is None
        True
    """
    check_module(module)
    if isinstance(module, TTModule):
        call_action(module, "zero_states", where)
    else:
        traverse(module, "zero_states", where)


def detach_states(module: nn.Module) -> None:
    """Detach the states of any module, as :meth:`.TTModule.detach_states`.

    Args:
        module: any ``nn.Module``.

    Raises:
        TypeError: ``module`` is not an ``nn.Module``.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 3), LIF(3))
        >>> _ = net(torch.ones(2, 4))
        >>> detach_states(net)
        >>> net[1].mem.requires_grad
        False
    """
    check_module(module)
    if isinstance(module, TTModule):
        module.detach_states()
    else:
        traverse(module, "detach_states")
