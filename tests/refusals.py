"""Tables of calls that are refused, a line each: ``call -> Error: what its message says``."""

import builtins
from collections.abc import Mapping
from typing import Any

import pytest


def refusals(table: str) -> pytest.MarkDecorator:
    """Parametrize a test over the lines of a table: ``call``, and ``error`` as a pattern."""
    rows = [line.strip().split(" -> ") for line in table.strip().splitlines()]
    return pytest.mark.parametrize(("call", "error"), rows)


def check(call: str, error: str, names: Mapping[str, Any]) -> None:
    """Run a call of a table with the names of its module; it raises the error."""
    kind, _, message = error.partition(": ")
    with pytest.raises(getattr(builtins, kind), match=message):
        eval(call, dict(names))
