"""Every ``Args:`` section names exactly the arguments of its signature.

Ruff compares functions (D417). This compares classes too, whose arguments are those of ``__init__``
or the fields of a dataclass, reads entries of several names (``a, b: ...``), and finds descriptions
of arguments that do not exist. Docstrings without an ``Args:`` section are free.
"""

import importlib
import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass
from types import FunctionType
from typing import Any

from tests.test_package import MODULES

ENTRY = re.compile(r"^    (\*{0,2}\w+(?:,\s+\*{0,2}\w+)*):", flags=re.MULTILINE)


def documented_arguments(docstring: str) -> list[str] | None:
    """Return the names in the ``Args:`` section, or None without one."""
    section = re.search(r"^Args:\n((?: +.*\n|\n)*)", docstring + "\n", flags=re.MULTILINE)
    if section is None:
        return None
    return [
        name.lstrip("*") for entry in ENTRY.findall(section[1]) for name in re.split(r",\s+", entry)
    ]


def signature_arguments(thing: Any) -> set[str]:
    """Return the names of the arguments that a caller passes."""
    # a metaclass or a __new__ may hide the signature of __init__, which callers go by
    has_init = isinstance(thing, type) and thing.__init__ is not object.__init__  # type: ignore[misc]
    signature = inspect.signature(thing.__init__ if has_init else thing)
    return set(signature.parameters) - {"self", "cls"}


def mismatched_arguments(thing: Any) -> set[str]:
    """Return arguments that only the docstring or only the signature names, and repeated ones."""
    documented = documented_arguments(inspect.cleandoc(thing.__doc__ or ""))
    if documented is None:
        return set()
    repeated = {name for name in documented if documented.count(name) > 1}
    return set(documented) ^ signature_arguments(thing) | repeated


def is_generated(thing: Any) -> bool:
    """Whether torch.compile has left a function there, in a test before."""
    return "torch_dynamo_resume" in getattr(thing, "__qualname__", "")


def definitions(module: str) -> Iterator[Any]:
    """Yield the functions, classes and methods that a module defines."""
    for thing in list(vars(importlib.import_module(module)).values()):
        if getattr(thing, "__module__", None) != module or is_generated(thing):
            continue
        if isinstance(thing, type):
            yield thing
            # static and class methods hold their function in __func__
            members = (getattr(m, "__func__", m) for m in list(vars(thing).values()))
            functions = (m for m in members if isinstance(m, FunctionType) and not is_generated(m))
            # PyTorch puts the step of an optimizer, wrapped, into the classes derived from it
            yield from (m for m in functions if m.__module__ == module)
        elif callable(thing) and hasattr(thing, "__qualname__"):
            yield thing


def test_args_sections_name_the_arguments() -> None:
    found = {
        f"{module}.{thing.__qualname__}": mismatched_arguments(thing)
        for module in MODULES
        for thing in definitions(module)
    }
    assert {name: names for name, names in found.items() if names} == {}


def test_what_is_public_has_a_docstring() -> None:
    """Of names in an ``__all__`` and of their methods, but ``step``, which the class describes."""
    missing = []
    for module in map(importlib.import_module, MODULES):
        for name in getattr(module, "__all__", ()):
            thing = getattr(module, name)
            if not str(getattr(thing, "__module__", "")).startswith("tracetorch."):
                continue  # PyTorch's, or a number
            own = vars(thing) if isinstance(thing, type) else {}
            public = [
                getattr(thing, n)
                for n, m in own.items()
                if n[0] != "_" and n != "step" and is_method(m)
            ]
            if not all(map(inspect.getdoc, [thing, *public])):
                missing.append(f"{module.__name__}.{name}")
    assert missing == []


def is_method(member: object) -> bool:
    return isinstance(member, FunctionType | property | classmethod | staticmethod)


def several(a: int, b: int, *rest: int, last: int = 0, **kwargs: int) -> None:
    """Take several arguments.

    Args:
        a, b: two in one entry.
        *rest: described over two
            lines: with a colon.
        last: the last.
        **kwargs: more.

    Raises:
        ValueError: never.
    """


@dataclass
class Fields:
    """Hold fields.

    Args:
        a: described; so is one that does not exist, and one is missing.
        c: does not exist.
    """

    a: int
    b: int = 0


def test_mismatches_are_found() -> None:
    assert mismatched_arguments(several) == set()
    assert mismatched_arguments(Fields) == {"b", "c"}
    assert mismatched_arguments(test_mismatches_are_found) == set()
