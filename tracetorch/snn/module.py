"""``TTModule``, and what can be asked of all the states in a model at once."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor, nn

from tracetorch.snn.walk import named_modules

P = ParamSpec("P")
R = TypeVar("R")


class TTModule(nn.Module):
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
        """Set every state to ``None``, or with ``where`` reset just those samples to zero.

        Args:
            where: boolean mask over dimension 0, the batch; ``True`` resets the sample. States of
                the others keep their values and their graph; states that are ``None`` stay so.

        Raises:
            TypeError: the mask is not a boolean tensor, or an override of ``zero_states`` in the
                model does not take ``where``.
            ValueError: the mask does not fit the batch of a layer, or dimension 0 of a layer holds
                its neurons. Nothing has been changed then.

        """
        _spread(self, "zero_states", where)

    def detach_states(self) -> None:
        """Cut every state from the graph that computed it; the values stay."""
        _spread(self, "detach_states", None)

    def unroll(self, x: Any, **how: Any) -> Any:
        """Run the module over a sequence ``[T, B, ...]``: ``tt.unroll(self, x, ...)``."""
        from tracetorch.unrolling import unroll  # built on this class

        return unroll(self, x, **how)

    def get_param_count(self) -> int:
        """Number of parameter values in the module and all it holds, shared ones counted once."""
        found = {id(p): p for _, module in named_modules(self) for p in module.parameters()}
        return sum(p.numel() for p in found.values())

    def check_reset(self, path: str, where: Tensor) -> None:
        """Raise where ``zero_states(where=...)`` would fail on this very module.

        Args:
            path: where the module stands, for the message.
            where: the mask.
        """
        parameters = inspect.signature(self.zero_states).parameters.values()
        if not any(p.name == "where" or p.kind is p.VAR_KEYWORD for p in parameters):
            raise TypeError(
                f"{type(self).__name__}.zero_states, at {path or 'the root'!r}, does not take "
                "where=. Declare zero_states(self, *, where=None) and pass it on to super()."
            )


def zero_states(module: nn.Module, *, where: Tensor | None = None) -> None:
    """:meth:`TTModule.zero_states` for any module: an ``nn.Sequential``, a wrapped model.

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
        module.zero_states(**_given(where))
    else:
        _spread(module, "zero_states", where)


def detach_states(module: nn.Module) -> None:
    """:meth:`TTModule.detach_states` for any module.

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
        _spread(module, "detach_states", None)


def check_module(module: object) -> None:
    """Raise ``TypeError`` unless ``module`` is an ``nn.Module``."""
    if not isinstance(module, nn.Module):
        raise TypeError(f"expected an nn.Module, got {type(module).__name__}.")


class _Spreading(threading.local):
    """The call in progress: what it does, whom it has reached, and whose ``super()`` it awaits."""

    act: str = ""
    where: Tensor | None = None
    reached: set[int] | None = None
    awaited: int | None = None


_spreading = _Spreading()


def _spread(root: nn.Module, act: str, where: Tensor | None) -> None:
    """Call ``act`` of the nearest ``TTModule``s below ``root``; each of them goes on from there.

    An override reaches this through ``super()``, and then continues the call that reached it.
    Whatever else it calls is a call of its own.
    """
    if torch.compiler.is_dynamo_compiling():
        _spread_compiled(root, act, where)
        return
    now = _spreading
    if now.awaited == id(root) and now.act == act and now.where is where:
        now.awaited = None
        _spread_on(root)
        return
    if where is not None:
        _check_reset(root, where)
    outer = (now.act, now.where, now.reached, now.awaited)
    now.act, now.where, now.reached, now.awaited = act, where, {id(root)}, None
    try:
        _spread_on(root)
    finally:
        now.act, now.where, now.reached, now.awaited = outer


def _spread_on(root: nn.Module) -> None:
    act, given, reached = _spreading.act, _given(_spreading.where), _spreading.reached or set()
    for _, module in list(named_modules(root, closed=TTModule)):
        if isinstance(module, TTModule) and module is not root and id(module) not in reached:
            reached.add(id(module))
            _spreading.awaited = id(module)
            getattr(module, act)(**given)
            _spreading.awaited = None


class _SpreadingCompiled:
    """As :class:`_Spreading`; a plain object, which torch.compile can follow."""

    def __init__(self) -> None:
        # set here, not on the class: a program is compiled for the attributes that there are
        self.act = ""
        self.where: Tensor | None = None
        self.reached: list[nn.Module] | None = None
        self.awaited: nn.Module | None = None


_spreading_compiled = _SpreadingCompiled()  # while a program is traced; it never runs in it


def _spread_compiled(root: nn.Module, act: str, where: Tensor | None) -> None:
    """The same inside ``torch.compile``, which can follow registered modules alone."""
    now = _spreading_compiled
    if now.awaited is root and now.act == act and now.where is where:
        now.awaited = None
        _spread_on_compiled(root)
        return
    # an export raises by itself, at the first step of a layer that was not reached
    if not is_exporting() and _has_hidden_states(root):
        torch._dynamo.graph_break(
            msg="torch.compile cannot reach a stateful module that is held in a plain list, dict "
            "or object. Register it (nn.ModuleList, nn.ModuleDict), or zero the states outside."
        )
        _spread_uncompiled(root, act, where)
        return
    if where is not None:
        check_mask(where)
    outer = (now.act, now.where, now.reached, now.awaited)
    now.act, now.where, now.reached, now.awaited = act, where, [root], None
    try:
        _spread_on_compiled(root)
    finally:
        now.act, now.where, now.reached, now.awaited = outer


def _spread_on_compiled(root: nn.Module) -> None:
    now = _spreading_compiled
    reached = now.reached or []
    act, given = now.act, _given(now.where)
    pending = list(root.children())
    passed: list[nn.Module] = []
    for module in pending:
        if any(module is other for other in passed):
            continue
        passed.append(module)
        if not isinstance(module, TTModule):
            pending.extend(module.children())
        elif not any(module is other for other in reached):
            reached.append(module)
            now.awaited = module
            getattr(module, act)(**given)
            now.awaited = None


# as torch.compiler.disable, but without importing the compiler before it is used
_spread_uncompiled = torch._disable_dynamo(_spread)  # type: ignore[attr-defined]


def asked_once(function: Callable[P, R]) -> Callable[P, R]:
    """``torch.compiler.assume_constant_result``, without importing the compiler to say so."""
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


@asked_once
def _has_hidden_states(root: nn.Module) -> bool:
    """Whether a stateful module is held outside ``root.modules()``; asked once per compilation."""
    registered = {id(module) for module in root.modules()}
    return any(
        isinstance(module, TTModule) and id(module) not in registered
        for _, module in named_modules(root)
    )


def is_exporting() -> bool:
    """Whether ``torch.export`` is tracing.

    The flag, not ``torch.compiler.is_exporting()``, which torch 2.7 takes for true inside
    ``torch.compile`` as well.
    """
    return bool(torch.compiler._is_exporting_flag)


def _given(where: Tensor | None) -> dict[str, Tensor]:
    """``where`` only when there is one: an override need not know it to be zeroed whole."""
    return {} if where is None else {"where": where}


def check_mask(where: object) -> None:
    """Raise unless ``where`` can be a mask over the batch."""
    if not isinstance(where, Tensor) or where.dtype != torch.bool:
        got = f"a tensor of {where.dtype}" if isinstance(where, Tensor) else type(where).__name__
        raise TypeError(
            f"where must be a boolean tensor, got {got}. "
            "Try where=torch.as_tensor(done, dtype=torch.bool)."
        )
    if where.ndim != 1:
        raise ValueError(
            f"where must have one dimension, the batch, got shape {list(where.shape)}."
        )


def _check_reset(root: nn.Module, where: Tensor) -> None:
    check_mask(where)
    for path, module in named_modules(root):
        if isinstance(module, TTModule):
            module.check_reset(path, where)
