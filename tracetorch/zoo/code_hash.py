"""Hash the code that a network is made of, as syntax trees without layout and comments."""

from __future__ import annotations

import ast
import hashlib
import inspect
import json
import textwrap
from collections.abc import Callable, Iterator
from types import FunctionType
from typing import Any

import torch

from tracetorch.checkpoint.layers import describe_layers
from tracetorch.snn.module import TTModule
from tracetorch.snn.neuron import Neuron
from tracetorch.zoo.networks import Network


def code_hash(network: Network) -> str:
    """Return the SHA-256 of what a network computes with, as far as this package defines it.

    That is its builder with the functions that this calls in its module; the equations, parts,
    options and constraints of its neuron layers; the step of each neuron; the classes of every
    other module, as far as they are traceTorch's. Comments, docstrings and layout are left out.
    """
    with torch.random.fork_rng(devices=[]):
        model = network.build()
    layers = describe_layers(model)
    for described in layers.values():
        del described["call"]  # a text for people
    kinds = {type(module) for module in model.modules()}
    steps = {kind.step for kind in kinds if issubclass(kind, Neuron)}
    # what every layer shares are mechanisms, which the numbers test
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
        *map(syntax, _functions(network.build)),
        *sorted(map(syntax, [*steps, *classes])),
    ]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def syntax(thing: Any) -> str:
    """Return the syntax tree of a function or class as text, the same in every Python.

    Example:
        >>> syntax(syntax) == syntax(syntax)
        True
    """
    tree = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(thing))))
    return _text(tree.body[0])


def _functions(build: Callable[..., Any]) -> Iterator[Callable[..., Any]]:
    """Yield a function, and those of its module that it calls."""
    pending = [build]
    seen: set[Callable[..., Any]] = set()
    while pending:
        function = pending.pop()
        if function in seen:
            continue
        seen.add(function)
        yield function
        scope = vars(inspect.getmodule(function))
        pending += [
            value
            for name in sorted(function.__code__.co_names)
            if isinstance(value := scope.get(name), FunctionType)
            and value.__module__ == function.__module__
        ]


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
