"""Docstrings that shared descriptions complete: their order, and what stands as it is."""

from typing import Any

import pytest

from tests.test_docstrings import documented_arguments, mismatched_arguments
from tracetorch.core.docstrings import SharedDescriptions

SHARED = SharedDescriptions(
    {"x": "the input.", "*_rank": "0 or 1.", "a_rank": "alone.", "rest": "more."},
    shape="``[B]``.",
    raises={"ValueError": "shapes do not fit."},
)


def bare(x: Any, a_rank: int, b_rank: int, c_rank: int) -> None:
    """Do it."""


def described(b_rank: int, x: Any, c_rank: int, *rest: Any, own: int = 0) -> None:
    """Do it.

    Some words.

    Args:
        own, c_rank: described
            here.

    Raises:
        ValueError: ``own`` is wrong.
        TypeError: it is no number.

    Example:
        >>> 1
        1
    """


def test_a_docstring_without_sections() -> None:
    assert SHARED(bare) is bare
    assert bare.__doc__ == (
        "Do it.\n\nArgs:\n    x: the input.\n    a_rank: alone.\n    b_rank, c_rank: 0 or 1.\n\n"
        "Shape:\n    ``[B]``.\n\nRaises:\n    ValueError: shapes do not fit.\n"
    )


def test_what_a_docstring_says_stands_in_the_order_of_the_signature() -> None:
    SHARED(described)
    text = described.__doc__ or ""
    assert documented_arguments(text) == ["b_rank", "x", "own", "c_rank", "rest"]
    assert mismatched_arguments(described) == set()
    assert "    own, c_rank: described\n        here.\n" in text
    order = ["Some", "Args:", "Shape:", "Raises:", "``own`` is wrong", "shapes do", "Example"]
    assert sorted(order, key=text.index) == order


@pytest.mark.parametrize("doc", [None, ""])
def test_without_docstrings_nothing_is_made(doc: str | None) -> None:
    """As under ``python -OO``."""

    def silent(x: Any) -> None: ...

    silent.__doc__ = doc
    assert SHARED(silent).__doc__ == doc
