"""Tables of calls that are refused, a line each: ``call -> Error: what its message says``."""

import builtins
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.parameter import is_lazy

import tracetorch as tt


def refusals(table: str) -> pytest.MarkDecorator:
    """Parametrize a test over the lines of a table: ``call``, and ``error`` as a pattern.

    A line may be broken before its arrow, or before a bar.
    """
    lines = re.sub(r"\s*\n\s*(->|\|) ", r" \1 ", table.strip()).splitlines()
    rows = [line.strip().split(" -> ") for line in lines]
    return pytest.mark.parametrize(("call", "error"), rows)


def check(call: str, error: str, names: Mapping[str, Any]) -> None:
    """Run a call of a table with the names of its module; it raises the error."""
    kind, _, message = error.partition(": ")
    with pytest.raises(getattr(builtins, kind), match=message):
        eval(call, dict(names))


@contextmanager
def unchanged(*modules: nn.Module) -> Iterator[None]:
    """Check that modules keep tensors and states, settings and hooks."""

    def values() -> list[Any]:
        kept = [{**each.state_dict(), **tt.get_states(each)} for each in modules]
        tensors = [
            {
                name: value.clone()
                for name, value in each.items()
                if isinstance(value, torch.Tensor) and not (is_lazy(value) or value.is_meta)
            }
            for each in kept
        ]
        parts = [part for each in modules for part in each.modules()]
        settings = [(part.training, type(part), sorted(vars(part))) for part in parts]
        hooks = [len(part._forward_hooks) + len(part._forward_pre_hooks) for part in parts]
        learns = [p.requires_grad for each in modules for p in each.parameters()]
        return [tensors, str([settings, hooks, learns])]

    before = values()
    try:
        yield
    finally:
        torch.testing.assert_close(values()[0], before[0], rtol=0, atol=0, equal_nan=True)
        assert values()[1] == before[1]
