"""Remember walks: a model that was walked before is compared with it instead of walked again.

What a walk finds follows from which modules and containers there are, and from the types of all
that they hold. Both are compared at every call, in a fraction of the time of a walk; and where
others have concluded something from the walk, the methods of the modules' classes too. No model is
kept alive: modules are held weakly, and containers are found again through those that hold them.

Unchanged. Three mechanisms tell, each one thing. A remembered walk tells whether a model has the
modules that it had. A layer's ``cell`` (``tracetorch/cell.py``) tells whether it is the neuron that
it was: what was prepared for it, kernels among it, holds as long as the cell is the same object.
``Contents`` (``tracetorch/core/snapshot.py``) tells whether a call has changed what a model holds,
tensors by version and by value too. Beside them the compiled single step compares raw parameters
byte by byte with those that it has constrained: a fused optimizer leaves no other trace.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from functools import partial
from itertools import starmap
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from tracetorch.core.walk import (
    CONTAINERS,
    MODULE_ATTRIBUTES,
    Held,
    Walk,
    dict_descriptor,
    has_value,
    is_opaque,
    join_path,
    parts_of,
    slots_of,
    walk,
)

# What an attribute may change between unseen: a state, a cache that is filled and emptied.
_TENSOR_OR_NONE = frozenset({torch.Tensor, type(None)})
# Methods of modules' classes that others conclude something from; a class may be patched.
_METHODS = ("forward", "zero_states", "forward_step", "forward_sequence")
_MOST_KINDS = 8  # of attributes' types that are remembered for one module

_Names = tuple[str, ...]


class _ChangedError(Exception):
    """Something is not as the walk has found it."""


class _Container(NamedTuple):
    """A container or plain object that a walk has entered.

    Args:
        place: its number among the owners of the walk.
        path: its path.
        kind: its type.
        constants: types of all that it holds where nothing of it is entered, and it is a tuple, a
            list or an object without slots; else ``None``.
        names: names of the parts that are entered.
        parts: those parts, each a number of a module, or a container.
    """

    place: int
    path: str
    kind: type
    constants: frozenset[type] | None
    names: tuple[str, ...]
    parts: tuple[int | _Container, ...]


class _Module(NamedTuple):
    """A module that a walk has found.

    Args:
        module: the module, held weakly.
        path: its path.
        kind: its type.
        seen: the types of its attributes, to their names and the names of those that are tensors
            or other values; every combination that leaves the walk as it is, as far as it has been
            seen. Empty where the module was not entered.
        child_names, children: the names and the ids of the registered modules.
        parts: what else is entered, by name of the attribute.
    """

    module: weakref.ref[nn.Module]
    path: str
    kind: type
    seen: dict[tuple[type, ...], tuple[_Names, _Names]]
    child_names: list[str]
    children: list[int]
    parts: tuple[tuple[str, int | _Container], ...]


class _Memo:
    """A finished walk, and all that it depends on.

    Args:
        root: the root.
        found: the walk over it.
        closed: the type of modules that it did not enter.

    Raises:
        _ChangedError: it depends on something that cannot be compared.
    """

    def __init__(self, root: object, found: Walk, closed: type[nn.Module] | None) -> None:
        self.places = {id(owner): place for place, (_, owner) in enumerate(found.owners)}
        self.numbers = {id(module): number for number, (_, module) in enumerate(found.modules)}
        self.paths = [path for path, _ in found.modules]
        self.owner_paths = [path for path, _ in found.owners]
        self.facts = found.facts
        self.pending = set(self.places)
        self.end: object = None
        self.modules: list[_Module] = []
        for path, module in found.modules:
            entered = closed is None or module is root or not isinstance(module, closed)
            self.modules.append(self._module(path, module, entered))
        if self.pending:
            raise _ChangedError
        kinds = {each.kind: None for each in self.modules}
        self.methods = [(k, name, None) for k in kinds for name in _METHODS if hasattr(k, name)]
        self.seen = list(starmap(getattr, self.methods))
        # ids are those of this moment
        del self.places, self.numbers, self.pending

    def _module(self, path: str, module: nn.Module, entered: bool) -> _Module:
        kind: Any = type(module)
        if dict_descriptor(kind) is None or slots_of(kind):
            raise _ChangedError
        reference = weakref.ref(module)
        if not entered:
            return _Module(reference, path, kind, {}, [], [], ())
        # read once: another thread may set and delete attributes meanwhile
        attributes = dict(module.__dict__)
        children = dict(attributes["_modules"])
        if not all(child is None or id(child) in self.numbers for child in children.values()):
            raise _ChangedError
        parts = tuple([(name, self._part(value)) for name, value in _entered(attributes)])
        seen = {tuple(map(type, attributes.values())): _names(attributes)}
        ids = list(map(id, children.values()))
        return _Module(reference, path, kind, seen, list(children), ids, parts)

    def _part(self, part: object) -> int | _Container:
        if id(part) in self.numbers:
            return self.numbers[id(part)]
        if id(part) not in self.places:  # another thread has put it there since the walk
            raise _ChangedError
        place, kind = self.places[id(part)], type(part)
        path = self.owner_paths[place]
        if id(part) not in self.pending:  # it has been described where it was first met
            return _Container(place, path, kind, None, (), ())
        self.pending.remove(id(part))
        contents: Any = part if kind in (tuple, list) else _attributes(part)
        if contents is not None:
            items = frozenset(map(type, contents))
            if all(map(is_opaque, items)) and not any(map(_is_held, items)):
                return _Container(place, path, kind, items, (), ())
        found = parts_of(part, path, Held([], []))
        inner = [(name, p) for name, p in found if not is_opaque(type(p))]  # type: ignore[arg-type]
        names = tuple([name for name, _ in inner])
        return _Container(place, path, kind, None, names, tuple([self._part(p) for _, p in inner]))

    def again(self, root: object) -> Walk:
        """Return what a walk would find now, which is what it has found before.

        Raises:
            _ChangedError: it would find something else.
        """
        if self.facts and list(starmap(getattr, self.methods)) != self.seen:
            raise _ChangedError
        modules: list[nn.Module] = []
        held = Held([], [])
        for reference, path, kind, seen, child_names, children, _parts in self.modules:
            module = reference()
            if module is None or type(module) is not kind:
                raise _ChangedError
            modules.append(module)
            if not seen:
                continue
            attributes = module.__dict__
            kinds = tuple(map(type, attributes.values()))
            names, held_names = seen[kinds] if kinds in seen else _accept(seen, dict(attributes))
            registered = attributes["_modules"]
            # a child is alive where its own comparison succeeds, and so its id is its own
            if (*attributes,) != names or (
                (registered or children)
                and ([*map(id, registered.values())] != children or [*registered] != child_names)
            ):
                raise _ChangedError
            for name in held_names:
                held.add(join_path(path, name), attributes[name])
        if modules[0] is not root:
            raise _ChangedError
        owners: list[Any] = [None] * len(self.owner_paths)
        if owners:
            for module, remembered in zip(modules, self.modules, strict=True):
                for name, part in remembered.parts:
                    _compare(module.__dict__[name], part, modules, owners, held)
        return Walk(
            list(zip(self.paths, modules, strict=True)),
            list(zip(self.owner_paths, owners, strict=True)),
            held,
            self.facts,
        )


def _attributes(owner: object) -> Iterable[object] | None:
    """Return the values of an object's attributes; ``None`` where there may be other parts."""
    kind: Any = type(owner)
    holds_more = issubclass(kind, (*CONTAINERS, np.ndarray, partial))
    if holds_more or dict_descriptor(kind) is None or slots_of(kind):
        return None
    return owner.__dict__.values()


def _entered(attributes: dict[str, Any]) -> list[tuple[str, Any]]:
    """Return the plain attributes of a module that a walk enters."""
    return [
        (name, value)
        for name, value in attributes.items()
        if name not in MODULE_ATTRIBUTES and not is_opaque(type(value))  # type: ignore[arg-type]
    ]


def _names(attributes: dict[str, Any]) -> tuple[_Names, _Names]:
    """Return the names of attributes, and of those that are tensors or other values."""
    held = [
        name
        for name, value in attributes.items()
        if _is_held(type(value)) and name not in MODULE_ATTRIBUTES
    ]
    return tuple(attributes), tuple(held)


def _is_held(kind: type) -> bool:
    return issubclass(kind, torch.Tensor) or has_value(kind)  # type: ignore[arg-type]


def _accept(
    seen: dict[tuple[type, ...], tuple[_Names, _Names]], attributes: dict[str, Any]
) -> tuple[_Names, _Names]:
    """Remember other types of attributes that leave the walk as it is: tensors come and go.

    Args:
        seen: what has been accepted so far; this combination is added.
        attributes: a copy of a module's attributes, which another thread may change.

    Raises:
        _ChangedError: there is another difference.
    """
    known, (names, _) = next(iter(seen.items()))
    before = dict(zip(names, known, strict=True))
    if before.keys() != attributes.keys() or len(seen) >= _MOST_KINDS:
        raise _ChangedError
    for name, value in attributes.items():
        if type(value) is not before[name] and not {type(value), before[name]} <= _TENSOR_OR_NONE:
            raise _ChangedError
    # what is entered is entered in the order of the attributes
    entered = [
        n for n, kind in before.items() if n not in MODULE_ATTRIBUTES and not is_opaque(kind)
    ]
    if [name for name, _ in _entered(attributes)] != entered:
        raise _ChangedError
    names_now = seen[tuple(map(type, attributes.values()))] = _names(attributes)
    return names_now


def _compare(
    part: Any,
    expected: int | _Container,
    modules: list[nn.Module],
    owners: list[Any],
    held: Held,
) -> None:
    """Compare something that is entered with what it was, and note it among the owners.

    Raises:
        _ChangedError: it is another module, or a container of other things.
    """
    if isinstance(expected, int):
        if part is not modules[expected]:
            raise _ChangedError
        return
    if type(part) is not expected.kind:
        raise _ChangedError
    before = owners[expected.place]
    if before is not None:
        if part is not before:
            raise _ChangedError
        return
    owners[expected.place] = part
    if expected.constants is not None:
        contents: Any = part if expected.kind in (tuple, list) else part.__dict__.values()
        if not expected.constants.issuperset(map(type, contents)):
            raise _ChangedError
        return
    inner = [(n, p) for n, p in parts_of(part, expected.path, held) if not is_opaque(type(p))]  # type: ignore[arg-type]
    if tuple([name for name, _ in inner]) != expected.names:
        raise _ChangedError
    for (_, each), remembered in zip(inner, expected.parts, strict=True):
        _compare(each, remembered, modules, owners, held)


_memos: dict[tuple[int, type[nn.Module] | None], _Memo] = {}


def remembered_walk(root: nn.Module, *, closed: type[nn.Module] | None = None) -> Walk:
    """Walk as :func:`walk`, or compare the model with what an earlier walk has found.

    The ``facts`` of the result stay as long as the model has the same modules, whose classes have
    the same methods, the same containers, names and types of attributes, tensors that come and go
    apart; whoever concludes from more than that compares it at every call.

    Args:
        root: a module.
        closed: modules of this type, the root apart, are found but not entered.
    """
    if torch.compiler.is_dynamo_compiling():  # it would trace the memos of other models too
        return walk(root, closed=closed)
    key = (id(root), closed)
    if key in _memos:
        try:
            return _memos[key].again(root)
        except (_ChangedError, KeyError, RuntimeError):  # or another thread is changing it
            pass
    found = walk(root, closed=closed)
    try:
        memo = _Memo(root, found, closed)
    except (_ChangedError, KeyError):
        return found
    memo.end = weakref.ref(root, lambda _: _memos.pop(key, None))
    _memos[key] = memo
    return found
