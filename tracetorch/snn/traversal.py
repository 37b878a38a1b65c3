"""Traverse a model to clear or detach its states, calling each override exactly once.

A :class:`TTModule` may override ``zero_states`` or ``detach_states``. So a call on a model does not
visit every layer itself: it calls the nearest ``TTModule``s below, and each of them goes on from
there through ``super()``.
"""

from __future__ import annotations

import threading
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from tracetorch.core.torch_private import (
    constant_in_compile,
    exclude_from_compile,
    graph_break,
    is_exporting,
)
from tracetorch.core.walk import named_modules
from tracetorch.core.walk_memo import remembered_walk

Action: TypeAlias = Literal["zero_states", "detach_states"]

_HIDDEN = (
    "torch.compile cannot reach a stateful module that is held in a plain list, dict or object. "
    "Register it (nn.ModuleList, nn.ModuleDict), or zero the states outside."
)


class TraversedModule(nn.Module):
    """Base of modules that take part in the traversal."""

    def check_reset(self, path: str, where: Tensor) -> None:
        """Raise where ``zero_states(where=...)`` would fail on this very module.

        Args:
            path: path of the module in the model, for the message.
            where: the mask.
        """


class _Traversal:
    """The call in progress: its action, the modules it has reached, whose ``super()`` it awaits."""

    def __init__(self) -> None:
        # set here, not on the class: torch.compile specialises on the attributes of the object
        self.action = ""
        self.where: Tensor | None = None
        self.reached: Any = None
        self.awaited: nn.Module | None = None

    def first_visit(self, module: nn.Module) -> bool:
        """Whether ``module`` is reached for the first time."""
        if id(module) in self.reached:
            return False
        self.reached.add(id(module))
        return True

    def start(self, root: nn.Module) -> None:
        """Count ``root`` as reached, and nothing else."""
        self.reached = {id(root)}

    def nearest(self, root: nn.Module) -> list[nn.Module]:
        """List the outermost stateful modules below ``root``."""
        found = remembered_walk(root, closed=TraversedModule)
        numbers = found.facts.get("nearest")
        if numbers is None:
            numbers = found.facts["nearest"] = [
                number
                for number, (_, module) in enumerate(found.modules)
                if isinstance(module, TraversedModule) and module is not root
            ]
        return [found.modules[number][1] for number in numbers]


class _ThreadTraversal(_Traversal, threading.local):
    """A traversal for each thread: models may be zeroed in several at once."""


class _CompiledTraversal(_Traversal):
    """The same for ``torch.compile``, which follows registered modules and compares by identity."""

    def first_visit(self, module: nn.Module) -> bool:
        if any(module is other for other in self.reached):
            return False
        self.reached.append(module)
        return True

    def start(self, root: nn.Module) -> None:
        self.reached = [root]

    def nearest(self, root: nn.Module) -> list[nn.Module]:
        found: list[nn.Module] = []
        entered: list[nn.Module] = []
        pending = list(root.children())
        for module in pending:
            if any(module is other for other in entered):
                continue
            entered.append(module)
            if isinstance(module, TraversedModule):
                found.append(module)
            else:
                pending.extend(module.children())
        return found


_eager = _ThreadTraversal()
_compiled = _CompiledTraversal()  # while a program is traced; it never runs in it


def traverse(root: nn.Module, action: Action, where: Tensor | None = None) -> None:
    """Call ``action`` of every stateful module below ``root``, each once.

    Args:
        root: any module; its own override, if it has one, is what calls this.
        action: name of the method.
        where: mask over the batch, for ``zero_states``.

    Raises:
        TypeError, ValueError: the mask does not fit; nothing has been changed then.
    """
    compiling = torch.compiler.is_dynamo_compiling()
    current: _Traversal = _compiled if compiling else _eager
    if current.awaited is root and current.action == action and current.where is where:
        # an override has called super(): go on with the call that has reached it
        current.awaited = None
        _visit(root, current)
        return
    # an export raises by itself, at the first step of a layer that was not reached
    if compiling and not is_exporting() and _has_hidden_states(root):
        graph_break(_HIDDEN)
        _traverse_uncompiled(root, action, where)
        return
    if where is not None:
        check_mask(where)
        if not compiling:
            _check_reset(root, where)
    # whatever else an override calls is a traversal of its own: the outer one waits
    outer = (current.action, current.where, current.reached, current.awaited)
    current.action, current.where, current.awaited = action, where, None
    current.start(root)
    try:
        _visit(root, current)
    finally:
        current.action, current.where, current.reached, current.awaited = outer


def _visit(root: nn.Module, current: _Traversal) -> None:
    action, where = current.action, current.where
    for module in current.nearest(root):
        if current.first_visit(module):
            current.awaited = module
            call_action(module, action, where)
            current.awaited = None


def call_action(module: nn.Module, action: Action | str, where: Tensor | None) -> None:
    """Call the method; ``where`` only when given, for an override need not take it."""
    if where is None:
        getattr(module, action)()
    else:
        getattr(module, action)(where=where)


_traverse_uncompiled = exclude_from_compile(traverse)


@constant_in_compile
def _has_hidden_states(root: nn.Module) -> bool:
    """Whether a stateful module is held outside ``root.modules()``; called once per compilation."""
    registered = {id(module) for module in root.modules()}
    return any(
        isinstance(module, TraversedModule) and id(module) not in registered
        for _, module in named_modules(root)
    )


def check_mask(where: object) -> None:
    """Raise unless ``where`` is a boolean mask over the batch."""
    if not isinstance(where, Tensor) or where.dtype != torch.bool:
        got = f"a tensor of {where.dtype}" if isinstance(where, Tensor) else type(where).__name__
        raise TypeError(
            f"where must be a boolean tensor, got {got}. Try where=torch.as_tensor(done, "
            "dtype=torch.bool); of indices mask = torch.zeros(batch, dtype=torch.bool); "
            "mask[indices] = True; where=mask."
        )
    if where.ndim != 1:
        raise ValueError(
            f"where must have one dimension, the batch, got shape {list(where.shape)}."
        )


def _check_reset(root: nn.Module, where: Tensor) -> None:
    for path, module in named_modules(root):
        if isinstance(module, TraversedModule):
            module.check_reset(path, where)
