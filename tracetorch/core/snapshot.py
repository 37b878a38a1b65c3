"""Snapshot, compare and restore a model: attributes, items, tensors, other values, random state.

``Contents`` is the one snapshot of what modules hold. Passes by layer compare it, segments exchange
it, measurements restore it: ``restored`` gives back all that a run changes, the attributes of every
module, and so its states and modes, the values of parameters and buffers where they differ,
gradients, the random state. Gradients are taken with ``torch.autograd.grad``. A recorded gradient
is of the very tensor that the run used; inside a fused loop the states are no tensors, so theirs
are had by step alone.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import cached_property, partial
from operator import is_, is_not, itemgetter
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tracetorch.core.thread_owner import check_thread
from tracetorch.core.values import (
    Values,
    Watched,
    can_be_watched,
    global_generators,
    set_values,
)
from tracetorch.core.walk import METHODS, Walk, join_path, slot_values, slots_of, walk

_MISSING = object()
_REGISTRIES = ("_parameters", "_buffers", "_modules")
_PLAIN = (Tensor, nn.Parameter, type(None))
# Wrappers that keep books of their own in every call, and put modules' parameters together anew.
_ENGINES = ("torch.nn.parallel", "torch.distributed")


def is_engine(kind: Any) -> bool:
    """Whether modules of a class belong to an engine, which keeps books of its own in a call."""
    # torch.jit keeps the attributes of what it has compiled, and Python sees a view of them
    return kind.__module__.startswith(_ENGINES) or issubclass(kind, torch.jit.ScriptModule)


class Layout:
    """Numbers of the modules, containers and objects of a walk that can change, once for a walk.

    Args:
        found: the walk.
        exempt: whether modules of a class are not looked at.
        registries: which dicts of every module are, beside its attributes.
        empty: whether what comes into an empty registry is a change.
    """

    def __init__(
        self,
        found: Walk,
        exempt: Callable[[Any], bool] = is_engine,
        registries: Sequence[str] = _REGISTRIES,
        empty: bool = True,
    ) -> None:
        self.registries, self.empty = registries, empty
        self.registries_of = itemgetter(*registries)
        self.modules = [
            n for n, (_, module) in enumerate(found.modules) if not exempt(type(module))
        ]
        self.dicts: list[int] = []
        self.sequences: list[int] = []
        self.objects: list[int] = []
        self.slotted: list[int] = []
        for number, (_, owner) in enumerate(found.owners):
            if isinstance(owner, dict):
                self.dicts.append(number)
            elif isinstance(owner, (list, deque, set)):
                self.sequences.append(number)
            elif not isinstance(owner, (tuple, frozenset, partial, *METHODS)):
                if isinstance(getattr(owner, "__dict__", None), dict):
                    self.objects.append(number)
                if slots_of(type(owner)):  # type: ignore[arg-type]
                    self.slotted.append(number)


class Contents:
    """The contents of a model at one time: of its modules, their containers and plain objects.

    Args:
        model: any module, or the walk over one.
        tensors: ``"held"``: which objects they are. ``"copied"``: those without a graph are held as
            copies, for they may change in place; what is restored then are the copies, and the
            tensors are left alone. ``"written"``: values and gradients are written back.
        values: also hold the values of what the walk does not enter, arrays, generators, files, and
            the global generators of random numbers.
        layout: what of the walk can change; ``None``: all.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 3))
        >>> before = Contents(model)
        >>> model[0].bias, model.note = None, "changed"
        >>> list(before.changes())
        ['note', '0.bias']
        >>> before.restore()
        []
        >>> list(before.changes())
        []
    """

    def __init__(
        self,
        model: nn.Module | Walk,
        *,
        tensors: Literal["held", "copied", "written"] = "held",
        values: bool = False,
        layout: Layout | None = None,
    ) -> None:
        # written for speed: it runs at every call of unroll
        self.found = found = model if isinstance(model, Walk) else walk(model)
        self._modes: list[tuple[nn.Module, bool]] = []
        if layout is None:
            layout = Layout(found)
            for _, module in found.modules:
                check_thread(module)  # it would be restored under another thread's feet
                # whose other attributes are its business; torch.jit.freeze leaves no mode
                if is_engine(type(module)) and hasattr(module, "training"):
                    self._modes.append((module, module.training))
        self._layout = layout
        now: list[dict[Any, Any]] = []
        registries_of = layout.registries_of
        for number in layout.modules:
            attributes = found.modules[number][1].__dict__
            now.append(attributes)
            now += registries_of(attributes)
        owners: list[tuple[str, Any]] = found.owners
        for number in layout.dicts:
            now.append(owners[number][1])
        for number in layout.objects:
            now.append(owners[number][1].__dict__)
        self._now = now
        self._before = list(map(dict.copy, now))
        self._sequences: list[tuple[str, Any, tuple[Any, ...]]] = []
        for number in layout.sequences:
            self._sequences.append((*owners[number], tuple(owners[number][1])))
        self._slots: list[tuple[str, Any, dict[str, Any]]] = []
        for number in layout.slotted:
            self._slots.append((*owners[number], slot_values(owners[number][1])))
        self.written: list[tuple[Tensor, Tensor]] = []
        self._leaves: list[tuple[Tensor, Tensor | None, bool]] = []
        self._values: Values | None = None
        if values:
            self._values = Values(self._values_to_restore(tensors == "copied"), whole=True)
        if tensors == "copied":
            self._hold_copies()
        if tensors == "written":
            self._hold_values()

    def _values_to_restore(self, copied: bool) -> Iterator[tuple[str, object]]:
        yield from (*self.found.held.values, *global_generators())
        for path, owner in self.found.owners if copied else ():
            if isinstance(owner, (tuple, frozenset)):  # whose tensors cannot be exchanged
                yield from ((path, each) for each in owner if _is_constant(each))

    def _hold_copies(self) -> None:
        copies: dict[int, Tensor] = {}  # by identity: a tensor that is held twice is one still

        def copy(value: Any) -> Any:
            if not _is_constant(value):
                return value
            if id(value) not in copies:
                copies[id(value)] = value.clone()
            return copies[id(value)]

        self._before = [{key: copy(each) for key, each in d.items()} for d in self._before]
        self._sequences = [(*place, tuple(map(copy, items))) for *place, items in self._sequences]
        self._slots = [
            (*place, {key: copy(each) for key, each in items.items()})
            for *place, items in self._slots
        ]

    def _hold_values(self) -> None:
        found = self.found
        # those in plain attributes and containers too: a model may change them in place
        held = [t for _, t in found.held.tensors if not t.is_inference() and not t.is_meta]
        registered = [
            t for _, m in found.modules for t in (*m.parameters(False), *m.buffers(False))
        ]
        tensors = {id(tensor): tensor for tensor in (*registered, *held)}
        self.written = [(t, t.detach().clone()) for t in tensors.values()]
        self._leaves = [(t, t.grad, t.requires_grad) for t in tensors.values() if t.is_leaf]

    def dicts(self) -> Iterator[tuple[str, Any, dict[Any, Any], dict[Any, Any]]]:
        """Iterate over path and owner of every dict, and what it holds now and held before."""
        layout = self._layout
        places: list[tuple[str, Any]] = []
        for number in layout.modules:
            places += [self.found.modules[number]] * (1 + len(layout.registries))
        places += [self.found.owners[number] for number in (*layout.dicts, *layout.objects)]
        for (path, owner), now, before in zip(places, self._now, self._before, strict=True):
            if before or layout.empty or not is_registry(owner, now):
                yield path, owner, now, before

    def changes(
        self,
        ignored: Callable[[nn.Module], Collection[str]] = lambda module: (),
        same: Callable[[Any, Any], bool] = is_,
    ) -> Iterator[str]:
        """Iterate over the paths of attributes and items that are not what they were.

        Args:
            ignored: names of a module's attributes that may change.
            same: whether something is what it was; by default, whether it is the same object.
        """
        yield from self.changed_items(ignored, same)
        yield from self.changed_parts(same)

    def changed_items(
        self, ignored: Callable[[nn.Module], Collection[str]], same: Callable[[Any, Any], bool]
    ) -> Iterator[str]:
        """Iterate over the changes of attributes and of the items of dicts."""
        for path, owner, now, before in self.dicts():
            if identical(now, before):
                continue
            names = ignored(owner) if isinstance(owner, nn.Module) else ()
            for key in changed_keys(before, now, same, names):
                if key in before or not _is_looked_up(owner, key, now[key]):
                    yield f"{path}[{key!r}]" if now is owner else join_path(path, str(key))

    def changed_parts(self, same: Callable[[Any, Any], bool]) -> Iterator[str]:
        """Iterate over the changes of other containers, of slots and of values."""
        for path, owner, items in self._sequences:
            if len(items) != len(owner) or not all(map(same, items, owner)):
                for key in changed_keys(dict(enumerate(items)), dict(enumerate(owner)), same):
                    yield f"{path}[{key}]"
        for path, owner, slots in self._slots:
            for key in changed_keys(slots, slot_values(owner), same):
                yield f"{path}.{key}"
        if self._values is not None:
            yield from self._values.changes()

    def restore(self) -> list[str]:
        """Give every module its attributes, and every container and object its contents, back.

        Returns:
            The paths of values that cannot be given back.
        """
        for _, owner, now, before in self.dicts():
            if identical(now, before):
                continue
            if is_registry(owner, now):
                # what was sharded then is left alone: FSDP puts its parameters together by itself
                before = {k: v if _is_plain(v) else now.get(k, v) for k, v in before.items()}
            now.clear()
            now.update(before)
        for _, owner, items in self._sequences:
            if len(items) != len(owner) or not all(map(is_, items, owner)):
                owner.clear()
                owner.update(items) if isinstance(owner, set) else owner.extend(items)
        for _, owner, slots in self._slots:
            for key in changed_keys(slots, slot_values(owner), is_):
                if key in slots:
                    object.__setattr__(owner, key, slots[key])
                else:
                    object.__delattr__(owner, key)
        for module, training in self._modes:
            module.training = training
        for tensor, value in self.written:
            set_values(tensor, value)
        for tensor, grad, requires_grad in self._leaves:
            tensor.grad = grad
            if tensor.requires_grad is not requires_grad:  # fails for one of inference mode
                tensor.requires_grad_(requires_grad)
        return [] if self._values is None else self._values.restore()

    def exchange(self, exchanged: Callable[[Any], Any]) -> None:
        """Replace what is held now by what a function returns of it."""
        for now in self._now:
            for key, value in list(now.items()):
                if (new := exchanged(value)) is not value:
                    now[key] = new
        for _, owner, _ in self._sequences:
            for place, value in enumerate(list(owner)):
                if (new := exchanged(value)) is value:
                    continue
                if isinstance(owner, set):
                    owner.remove(value)
                    owner.add(new)
                else:
                    owner[place] = new
        for _, owner, _ in self._slots:
            for key, value in slot_values(owner).items():
                if (new := exchanged(value)) is not value:
                    object.__setattr__(owner, key, new)


def _is_constant(value: object) -> bool:
    """Whether a value is a plain tensor without a graph."""
    return type(value) is Tensor and not value.requires_grad


def _is_plain(value: object) -> bool:
    return type(value) in _PLAIN or isinstance(value, nn.Module)


def is_registry(owner: object, content: dict[Any, Any]) -> bool:
    """Whether a dict is a module's one of parameters, buffers or modules."""
    return isinstance(owner, nn.Module) and content is not owner.__dict__


def identical(now: dict[Any, Any], before: dict[Any, Any]) -> bool:
    """Whether a dict holds the same objects under the same keys."""
    return now.keys() == before.keys() and all(map(is_, map(now.get, before), before.values()))


def changed_keys(
    before: dict[Any, Any],
    now: dict[Any, Any],
    same: Callable[[Any, Any], bool],
    ignored: Collection[str] = (),
) -> Iterator[Any]:
    """Iterate over the keys under which another thing is held than before, but for ``ignored``."""
    for key in {**before, **now}:
        # not looked at: what a transform of torch.func has put there cannot be compared
        if key not in ignored and not same(before.get(key, _MISSING), now.get(key, _MISSING)):
            yield key


def _is_looked_up(owner: object, key: Any, value: object) -> bool:
    """Whether a key is there only because a ``defaultdict``, or a ``cached_property``, was read."""
    if isinstance(owner, defaultdict):
        return isinstance(value, (dict, list, set, tuple, deque)) and not value
    return isinstance(getattr(type(owner), str(key), None), cached_property)


class ConsumptionWatch:
    """Within a block, note which of the iterators, generators and queues of a model are consumed.

    They cannot be read, so others stand in for them in the modules, containers and objects that
    hold them; a tuple, a ``partial`` and a bound method are replaced by others.

    Args:
        contents: the contents of the model.
    """

    def __init__(self, contents: Contents) -> None:
        self._contents = contents
        self._stand_ins: dict[int, tuple[str, Watched]] = {}
        self._replaced: list[tuple[object, object]] = []  # what is there now, and what was
        for path, each in contents.found.held.values:
            if can_be_watched(type(each)):  # type: ignore[arg-type]
                self._stand_ins.setdefault(id(each), (path, Watched(each)))

    def __enter__(self) -> ConsumptionWatch:
        if self._stand_ins:
            self._contents.exchange(self._watched)
        return self

    def __exit__(self, *_: object) -> None:
        if self._stand_ins:
            before = {id(new): old for new, old in self._replaced}
            self._contents.exchange(lambda value: before.get(id(value), value))

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

    def consumed(self) -> list[str]:
        """List the paths of those that something was taken from, or given to."""
        return [path for path, stand_in in self._stand_ins.values() if stand_in.moved]


@contextmanager
def restored(
    model: nn.Module, *, tensors: bool = True, training: bool | None = None
) -> Iterator[None]:
    """Restore a model at the end of a block, whatever the block did to it.

    Attributes, and with them states and modes, are restored always. What user code keeps outside of
    the attributes of modules cannot be known.

    Args:
        model: any module.
        tensors: also restore the values and the gradients of parameters, buffers, and tensors in
            attributes and containers, and the state of the random number generators.
        training: the mode of every module within the block; ``None`` leaves it.
    """
    before = Contents(model, tensors="written" if tensors else "held", values=tensors)
    modules = [module for _, module in before.found.modules]
    cuda = {tensor.device.index for tensor, _ in before.written if tensor.is_cuda}
    with torch.random.fork_rng(cuda) if tensors else nullcontext():
        try:
            if training is not None:
                for module in modules:
                    module.training = training
            yield
        finally:
            before.restore()


@contextmanager
def restored_on_error(tensors: Iterable[Tensor]) -> Iterator[None]:
    """Give tensors the values that they had before a block, where the block fails."""
    saved = [(tensor, tensor.detach().clone()) for tensor in tensors]
    try:
        yield
    except BaseException:
        for tensor, value in saved:
            set_values(tensor, value)
        raise
