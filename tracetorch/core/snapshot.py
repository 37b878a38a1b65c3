"""Snapshot and restore a model: attributes, tensor values, gradients, and the random state.

Measurements leave no trace. ``restored`` (``tracetorch/core/snapshot.py``) restores all that a run
changes: the attributes of every module, and so its states and modes, the values of parameters and
buffers where they differ, gradients, the random state. ``profile`` and ``diagnose`` run inside it,
from rest. Gradients are taken with ``torch.autograd.grad``. A recorded gradient is of the very
tensor that the run used; inside a fused loop the states are no tensors, so theirs are had by step
alone.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from operator import is_not
from typing import Any

import torch
from torch import Tensor, nn

from tracetorch.core.thread_owner import check_thread
from tracetorch.core.values import (
    ValueSnapshot,
    Watched,
    can_be_watched,
    global_generators,
    set_values,
)
from tracetorch.core.walk import METHODS, Walk, join_path, named_modules, slot_values, walk

_MISSING = object()
_REGISTRIES = ("_parameters", "_buffers", "_modules")
_PLAIN = (Tensor, nn.Parameter, type(None))
# Wrappers that keep books of their own in every call, and put modules' parameters together anew.
_ENGINES = ("torch.nn.parallel", "torch.distributed")


def is_engine(kind: type[nn.Module]) -> bool:
    """Whether a class of modules belongs to an engine that keeps books of its own in a call."""
    return kind.__module__.startswith(_ENGINES)


class ModelSnapshot:
    """The contents of a model at one time: of its modules, their containers and plain objects.

    Args:
        model: any module, or the walk over one.
        clone: hold copies of tensors, those without a graph: they may change in place. What is
            restored then are the copies, and the tensors are left alone.
        values: also hold the values of what the walk does not enter: arrays, generators, files,
            and of tensors without a graph in tuples, which cannot be exchanged for copies.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 3))
        >>> before = ModelSnapshot(model)
        >>> model[0].bias, model.note = None, "changed"
        >>> before.changes()
        ['note', '0.bias']
        >>> before.restore()
        []
        >>> before.changes()
        []
    """

    def __init__(
        self, model: nn.Module | Walk, *, clone: bool = False, values: bool = False
    ) -> None:
        found = model if isinstance(model, Walk) else walk(model)
        clones: dict[int, Tensor] = {}  # by identity: a tensor that is held twice is one still

        def content(value: Any) -> Any:
            if not clone or not _is_constant(value):
                return value
            if id(value) not in clones:
                clones[id(value)] = value.clone()
            return clones[id(value)]

        self._modules: list[tuple[str, nn.Module, dict[str, Any]]] = []
        self._registries: list[tuple[str, dict[str, Any], dict[str, Any]]] = []
        for path, module in found.modules:
            check_thread(module)  # it would be restored under another thread's feet
            attributes = vars(module)
            # an engine's own attributes are its business, but for the mode
            kept = {"training": module.training} if is_engine(type(module)) else attributes
            self._modules.append((path, module, {n: content(v) for n, v in kept.items()}))
            for name in _REGISTRIES:
                registry = attributes[name]
                items = {key: content(value) for key, value in registry.items()}
                self._registries.append((path, registry, items))
        self._containers = [
            (path, owner, {key: content(value) for key, value in _items(owner).items()})
            for path, owner in found.owners
        ]
        held: list[tuple[str, object]] = []
        if values:
            held += found.held.values
            for path, owner in found.owners:
                if isinstance(owner, (tuple, frozenset)):
                    held += [(path, each) for each in owner if _is_constant(each)]
            held += global_generators()
        self._values = ValueSnapshot(held, whole=True)

    def changes(
        self, ignored: Callable[[nn.Module], Collection[str]] = lambda module: ()
    ) -> list[str]:
        """List the paths of attributes and items that are not the same objects as before.

        Args:
            ignored: names of a module's attributes that may change.
        """
        changed: list[str] = []
        for path, module, attributes in self._modules:
            names = _changed_keys(attributes, {} if is_engine(type(module)) else vars(module))
            ignored_names = ignored(module)
            changed += [join_path(path, name) for name in names if name not in ignored_names]
        for path, registry, items in self._registries:
            changed += [join_path(path, str(key)) for key in _changed_keys(items, registry)]
        for path, owner, items in self._containers:
            changed += [f"{path}[{key!r}]" for key in _changed_keys(items, _items(owner))]
        return changed

    def restore(self) -> list[str]:
        """Give every module its attributes, and every container and object its contents, back.

        Returns:
            The paths of values that cannot be given back.
        """
        for _, module, attributes in self._modules:
            now = vars(module)
            if not is_engine(type(module)):
                now.clear()
            now.update(attributes)
        for _, registry, items in self._registries:
            # what was sharded then is left alone: FSDP puts its parameters together by itself
            contents = {
                key: value if _is_plain(value) else registry.get(key, value)
                for key, value in items.items()
            }
            registry.clear()
            registry.update(contents)
        for _, owner, items in self._containers:
            if _changed_keys(items, _items(owner)):
                _refill(owner, items)
        return self._values.restore()


def _is_constant(value: object) -> bool:
    """Whether a value is a plain tensor without a graph."""
    return type(value) is Tensor and not value.requires_grad


def _is_plain(value: object) -> bool:
    return type(value) in _PLAIN or isinstance(value, nn.Module)


def _items(owner: Any) -> dict[Any, Any]:
    """Return the items of a container by key or position, of an object by attribute."""
    if isinstance(owner, dict):
        return dict(owner)
    if isinstance(owner, (list, tuple, deque)):
        return dict(enumerate(owner))
    if isinstance(owner, (set, frozenset)):
        return {each: each for each in owner}
    if isinstance(owner, (*METHODS, partial)):  # which cannot change
        return {}
    attributes = getattr(owner, "__dict__", {})
    return {**(attributes if isinstance(attributes, dict) else {}), **slot_values(owner)}


def _changed_keys(before: dict[Any, Any], after: dict[Any, Any]) -> list[Any]:
    """Keys under which another object is held."""
    return [
        key
        for key in {**before, **after}
        if before.get(key, _MISSING) is not after.get(key, _MISSING)
    ]


def _refill(owner: Any, items: dict[Any, Any]) -> None:
    """Give a container or an object its items back; a tuple and a frozen set cannot change."""
    if isinstance(owner, (dict, set)):
        owner.clear()
        owner.update(items)
    elif isinstance(owner, (list, deque)):
        owner.clear()
        owner.extend(items.values())
    elif not isinstance(owner, (tuple, frozenset)):
        for key in _items(owner).keys() - items.keys():
            object.__delattr__(owner, key)
        for key, value in items.items():
            object.__setattr__(owner, key, value)


class ConsumptionWatch:
    """Within a block, note which of the iterators, generators and queues of a model are consumed.

    They cannot be read, so others stand in for them in the modules, containers and objects that
    hold them; a tuple, a ``partial`` and a bound method are replaced by others.

    Args:
        found: the walk over the model.
    """

    def __init__(self, found: Walk) -> None:
        self._found = found
        self._stand_ins: dict[int, tuple[str, Watched]] = {}
        self._replaced: list[tuple[object, object]] = []  # what is there now, and what was
        for path, each in found.held.values:
            if can_be_watched(type(each)):  # type: ignore[arg-type]
                self._stand_ins.setdefault(id(each), (path, Watched(each)))

    def __enter__(self) -> ConsumptionWatch:
        if self._stand_ins:
            self._exchange(self._watched)
        return self

    def __exit__(self, *_: object) -> None:
        if self._stand_ins:
            before = {id(new): old for new, old in self._replaced}
            self._exchange(lambda value: before.get(id(value), value))

    def _watched(self, value: Any) -> Any:
        """Return what takes the place of a value, or the value."""
        new = value
        if id(value) in self._stand_ins:
            new = self._stand_ins[id(value)][1]
        elif isinstance(value, METHODS) and id(value.__self__) in self._stand_ins:
            new = partial(self._stand_ins[id(value.__self__)][1].call, value.__name__)
        elif type(value) is partial:
            keywords = {key: self._watched(each) for key, each in value.keywords.items()}
            called = [self._watched(each) for each in (value.func, *value.args)]
            held = (value.func, *value.args, *value.keywords.values())
            if any(map(is_not, (*called, *keywords.values()), held)):
                new = partial(called[0], *called[1:], **keywords)
        elif isinstance(value, tuple):
            items = [self._watched(each) for each in value]
            if any(map(is_not, items, value)):
                new = type(value)(*items) if hasattr(value, "_fields") else tuple(items)
        if new is not value:
            self._replaced.append((new, value))
        return new

    def _exchange(self, exchanged: Callable[[Any], Any]) -> None:
        """Replace what modules, containers and objects hold."""
        owners: list[Any] = [vars(module) for _, module in self._found.modules]
        owners += [owner for _, owner in self._found.owners]
        for owner in owners:
            if isinstance(owner, (tuple, frozenset)):
                continue
            for key, value in _items(owner).items():
                new = exchanged(value)
                if new is value:
                    continue
                if isinstance(owner, (dict, list, deque)):
                    owner[key] = new
                elif isinstance(owner, set):
                    owner.remove(value)
                    owner.add(new)
                else:
                    object.__setattr__(owner, key, new)

    def consumed(self) -> list[str]:
        """List the paths of those that something was taken from, or given to."""
        return [path for path, stand_in in self._stand_ins.values() if stand_in.moved]


@contextmanager
def restored(
    model: nn.Module, *, tensors: bool = True, training: bool | None = None
) -> Iterator[ModelSnapshot]:
    """Restore a model at the end of a block, whatever the block did to it.

    Attributes, and with them states and modes, are restored always. What user code keeps outside of
    the attributes of modules cannot be known.

    Args:
        model: any module.
        tensors: also restore the values and the gradients of parameters, buffers, and tensors in
            attributes and containers, and the state of the random number generators.
        training: the mode of every module within the block; ``None`` leaves it.
    """
    before = ModelSnapshot(model)
    with _tensors_restored(model) if tensors else nullcontext():
        try:
            if training is not None:
                for _, module in named_modules(model):
                    module.training = training
            yield before
        finally:
            before.restore()


@contextmanager
def _tensors_restored(model: nn.Module) -> Iterator[None]:
    found = walk(model)
    tensors = {
        id(t): t for _, m in found.modules for t in (*m.parameters(False), *m.buffers(False))
    }
    # those in plain attributes and containers too: a model may change them in place
    tensors |= {id(t): t for _, t in found.held.tensors if not t.is_inference() and not t.is_meta}
    saved = [
        (t, t.detach().clone(), t.grad if t.is_leaf else None, t.requires_grad)
        for t in tensors.values()
    ]
    cuda = {t.device for t in tensors.values() if t.is_cuda}
    others = ValueSnapshot([*found.held.values, *global_generators()], whole=True)
    with torch.random.fork_rng([device.index for device in cuda]):
        try:
            yield
        finally:
            others.restore()
            for tensor, value, grad, requires_grad in saved:
                set_values(tensor, value)
                if tensor.is_leaf:
                    tensor.grad = grad
                    if tensor.requires_grad is not requires_grad:  # fails for one of inference mode
                        tensor.requires_grad_(requires_grad)


@contextmanager
def restored_on_error(tensors: Iterable[Tensor]) -> Iterator[None]:
    """Give tensors the values that they had before a block, where the block fails."""
    saved = [(tensor, tensor.detach().clone()) for tensor in tensors]
    try:
        yield
    except BaseException:
        with torch.no_grad():
            for tensor, value in saved:
                tensor.copy_(value)
        raise
