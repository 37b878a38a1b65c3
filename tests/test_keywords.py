"""Every public keyword is passed somewhere in the tests, with another value than its default.

Calls are read from the source of the tests, by name: ``tt.unroll(net, x, check=True)``. The
keywords of ``**options`` are the keys of dicts of the same file; a callable that is passed around
(``parametrize``) has those of calls of unknown names in the same file.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import tracetorch as tt
from tests.cases import LAYERS, NEURONS

TESTS = sorted(path for path in Path(__file__).parent.rglob("*.py") if path != Path(__file__))

# tests/snn/test_wrappers.py and tests/neurons/test_neurons.py pass every argument of these, one by
# one, by names that they build
BUILT = {f"snn.{name}" for name in LAYERS} | {f"neurons.{name}" for name in NEURONS}
# patterns of a callable and a keyword: the reason why no call in the source shows it
EXCEPTIONS = {
    ("plot.*", "ax"): "PLOTS of tests/plot/cases.py pass it on: PLOTS[name](ax=...)",
    ("plot.*", "title"): "as ax",
    (
        "*STDP.forward",
        "mask",
    ): "in_steps of tests/online_learning/test_stdp.py passes it on by step",
}


def public_callables() -> Iterator[tuple[str, str, Any]]:
    """Yield name with its room, name in a call, and callable: constructors, methods, functions."""
    rooms = {"": tt, **{n: getattr(tt, n) for n in tt.__all__}}
    for room, module in rooms.items():
        if not isinstance(module, ModuleType):
            continue
        for name in module.__all__:
            thing = getattr(module, name)
            if isinstance(thing, ModuleType) or not callable(thing):
                continue
            full = f"{room}.{name}".lstrip(".")
            if not isinstance(thing, type):
                if inspect.isfunction(thing):
                    yield full, name, thing
                continue
            yield full, name, thing.__init__  # type: ignore[misc]
            for method, member in vars(thing).items():
                function = getattr(member, "__func__", member)
                if not method.startswith("_") and inspect.isfunction(function):
                    yield f"{full}.{method}", method, function


def keywords(function: Any) -> dict[str, tuple[int | None, Any]]:
    """Return the arguments that have a default, each with its place and the default."""
    parameters = [p for p in inspect.signature(function).parameters.values() if p.name != "self"]
    return {
        p.name: (None if p.kind is p.KEYWORD_ONLY else place, p.default)
        for place, p in enumerate(parameters)
        if p.default is not p.empty
    }


def differs(value: ast.expr, default: object) -> bool:
    """Whether an expression can be another value than the default."""
    if ast.unparse(value) == repr(default):
        return False
    try:
        return bool(ast.literal_eval(value) != default)
    except ValueError:
        return True  # a name: a case of ``parametrize``


class Calls:
    """The calls of one source.

    Args:
        source: text of a module.
    """

    def __init__(self, source: str) -> None:
        tree = ast.parse(source)
        self.by_name: dict[str, list[ast.Call]] = {}
        self.entries: list[tuple[str, ast.expr]] = []
        called: set[int] = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                called.add(id(node.func))
                self.by_name.setdefault(last_name(node.func), []).append(node)
            if isinstance(node, ast.Dict):
                self.entries += [
                    (key.value, value)
                    for key, value in zip(node.keys, node.values, strict=True)
                    if isinstance(key, ast.Constant) and isinstance(key.value, str)
                ]
        names = [n for n in ast.walk(tree) if isinstance(n, (ast.Name, ast.Attribute))]
        self.passed = {last_name(n) for n in names if id(n) not in called}
        functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)]
        self.unknown = {argument.arg for f in functions for argument in f.args.args}

    def passes(self, name: str, keyword: str, place: int | None, default: object) -> bool:
        """Whether a call of ``name`` passes a keyword with another value than its default."""
        unknown = self.unknown if name in self.passed else set()
        for call in (c for n in {name, *unknown} for c in self.by_name.get(n, ())):
            if any(k.arg == keyword and differs(k.value, default) for k in call.keywords):
                return True
            starred = any(isinstance(a, ast.Starred) for a in call.args)
            at = None if place is None or starred else place
            if at is not None and at < len(call.args) and differs(call.args[at], default):
                return True
            if any(k.arg is None for k in call.keywords) and any(
                key == keyword and differs(value, default) for key, value in self.entries
            ):
                return True
        return False


def last_name(node: ast.expr) -> str:
    return getattr(node, "attr", getattr(node, "id", ""))


def never_passed(sources: list[str]) -> list[tuple[str, str]]:
    """Return callable and keyword that no source passes."""
    calls = [Calls(source) for source in sources]
    return [
        (full, keyword)
        for full, name, function in public_callables()
        if full not in BUILT
        for keyword, (place, default) in keywords(function).items()
        if not any(each.passes(name, keyword, place, default) for each in calls)
    ]


def matches(found: tuple[str, str], pattern: tuple[str, str]) -> bool:
    return all(fnmatch(*pair) for pair in zip(found, pattern, strict=True))


def test_every_keyword_is_passed_with_another_value() -> None:
    found = never_passed([path.read_text() for path in TESTS])
    assert [each for each in found if not any(matches(each, p) for p in EXCEPTIONS)] == []
    assert all(any(matches(each, p) for each in found) for p in EXCEPTIONS)  # none is left over


@pytest.mark.parametrize(
    ("source", "passed"),
    [
        ("tt.encode.latency(x, 5, tau=20.0)", False),
        ("tt.encode.latency(x, 5, kind='linear')", False),
        ("tt.encode.rate(x, 5, tau=2.0)", False),
        ("tt.encode.latency(x, 5, tau=2.0)", True),
        ("latency(x, 5, tau=tau)", True),
        ("options = {'tau': 2.0}\nlatency(x, 5, **options)", True),
        ("options = {'tau': 20.0}\nlatency(x, 5, **options)", False),
        ("def test(function):\n    function(x, tau=2.0)\nCASES = [encode.latency]", True),
        ("def test(function):\n    function(x, tau=2.0)\nlatency(x, 5)", False),
    ],
)
def test_calls_are_read_from_the_source(source: str, passed: bool) -> None:
    assert (("encode.latency", "tau") not in never_passed([source])) is passed


def test_positional_arguments_are_read_from_the_source() -> None:
    assert ("data.pad", "value") in never_passed(["pad(x, 0.0)", "pad(*x)", "pad(x)"])
    assert ("data.pad", "value") not in never_passed(["pad(x, 1.0)"])
