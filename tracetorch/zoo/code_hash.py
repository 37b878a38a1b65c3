"""Hash the code that a network is made of, as syntax trees without layout and comments."""

from __future__ import annotations

import ast
import hashlib
import inspect
import json
import sys
import textwrap
from collections.abc import Iterable
from types import FunctionType
from typing import Any

import torch

from tracetorch.checkpoint.layers import describe_layers
from tracetorch.snn.module import TTModule
from tracetorch.snn.neuron import Neuron
from tracetorch.zoo.networks import Network, usual_defaults

_MECHANISMS = ("tracetorch.core.", "tracetorch.fuse.")


@usual_defaults()
def code_hash(network: Network) -> str:
    """Return the SHA-256 of what a network computes with, as far as this package defines it.

    That is its builder; the equations, parts, options and constraints of its neuron layers; the
    step of each neuron; the classes of every other module, as far as they are traceTorch's; and the
    functions that all of these call. Comments, docstrings and layout are left out.
    """
    with torch.random.fork_rng(devices=[]):
        model = network.build()
    layers = describe_layers(model)
    for described in layers.values():
        del described["call"]  # a text for people
    kinds = {type(module) for module in model.modules()}
    steps = {kind.step for kind in kinds if issubclass(kind, Neuron)}
    # what every layer shares are mechanisms, which the numbers test, as the packages in _MECHANISMS
    shared = {*Neuron.__mro__, *TTModule.__mro__}
    classes = {
        base
        for kind in kinds
        if not issubclass(kind, Neuron)
        for base in kind.__mro__
        if base.__module__.startswith("tracetorch.") and base not in shared
    }
    parts = [
        json.dumps(layers, sort_keys=True),
        *sorted(map(syntax, _with_functions([network.build, *steps, *classes]))),
    ]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def syntax(thing: Any) -> str:
    """Return the syntax tree of a function or class as text, the same in every Python.

    Example:
        >>> syntax(syntax) == syntax(syntax)
        True
    """
    return _text(_tree(thing))


def _tree(thing: Any) -> ast.AST:
    source = inspect.getsource(inspect.unwrap(thing))
    return ast.parse(textwrap.dedent(source)).body[0]


def _with_functions(things: Iterable[Any]) -> set[Any]:
    """Return functions and classes, and the functions of traceTorch that they call by name."""
    pending = [*things]
    seen: set[Any] = set()
    while pending:
        thing = pending.pop()
        if thing in seen:
            continue
        seen.add(thing)
        scope = vars(sys.modules[thing.__module__])
        names = {each.id for each in ast.walk(_tree(thing)) if isinstance(each, ast.Name)}
        pending += [
            value
            for name in names
            if isinstance(value := scope.get(name), FunctionType)
            and value.__module__.startswith("tracetorch.")
            and not value.__module__.startswith(_MECHANISMS)
        ]
    return seen


def _text(node: object) -> str:
    """Write a node with the fields that hold something: versions of Python add empty ones."""
    if isinstance(node, list):
        return f"[{', '.join(map(_text, node))}]"
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = dict(ast.iter_fields(node))
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and ast.get_docstring(node) is not None:
        fields["body"] = node.body[1:]
    written = (
        f"{name}={_text(value)}"
        for name, value in fields.items()
        if value not in (None, []) and name not in ("ctx", "kind", "type_comment")
    )
    return f"{type(node).__name__}({', '.join(written)})"
