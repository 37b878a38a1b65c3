"""Check arguments: raise ``TypeError`` or ``ValueError`` with what came and what is allowed."""

from __future__ import annotations

import difflib
import math
import numbers
from collections.abc import Iterable

from torch import nn


def check_flag(name: str, value: object) -> bool:
    """Return ``value``; raise ``TypeError`` unless it is a bool."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r}.")
    return value


def check_integer(name: str, value: object) -> int:
    """Return ``value`` as an int; raise ``TypeError`` for anything but an integer."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name} must be an integer, got {value!r}.")
    return int(value)


def check_count(name: str, value: object) -> int:
    """Return ``value`` as an int of at least 1; raise ``TypeError`` or ``ValueError``."""
    count = check_integer(name, value)
    if count < 1:
        raise ValueError(f"{name} must be at least 1, got {count}.")
    return count


def check_number(name: str, value: object, *, unit: str = "") -> float:
    """Return ``value`` as a float; raise ``TypeError``, which names the unit, if it is no number.

    A bool is no number here, as it is no integer for :func:`check_integer`.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        kind = f"a number of {unit}" if unit else "a number"
        raise TypeError(f"{name} must be {kind}, got {value!r}.")
    return float(value)


def check_finite(name: str, value: object, *, unit: str = "") -> float:
    """Return ``value`` as a float that is neither infinite nor NaN; raise otherwise."""
    number = check_number(name, value, unit=unit)
    if not math.isfinite(number):
        raise ValueError(f"{name} must be finite, got {value}.")
    return number


def check_nonnegative(name: str, value: object, *, unit: str = "") -> float:
    """Return ``value`` as a finite float that is not negative; raise otherwise."""
    number = check_number(name, value, unit=unit)
    # NaN fails every comparison, and so this one too.
    if not 0 <= number < float("inf"):
        raise ValueError(f"{name} must be finite and not negative, got {value}.")
    return number


def check_positive(name: str, value: object, *, unit: str = "") -> float:
    """Return ``value`` as a finite float above 0; raise otherwise."""
    number = check_number(name, value, unit=unit)
    if not 0 < number < float("inf"):
        raise ValueError(f"{name} must be positive and finite, got {value}.")
    return number


def check_share(name: str, value: object) -> float:
    """Return ``value`` as a float in [0, 1], a share or a probability; raise otherwise."""
    number = check_number(name, value)
    if not 0 <= number <= 1:
        raise ValueError(f"{name} must lie in [0, 1], got {value}.")
    return number


def check_module(module: object) -> None:
    """Raise ``TypeError`` unless ``module`` is an ``nn.Module``."""
    if not isinstance(module, nn.Module):
        raise TypeError(f"expected an nn.Module, got {type(module).__name__}.")


def suggestion(name: object, allowed: Iterable[str]) -> str:
    """Return ``" Did you mean 'x'?"`` for the nearest allowed name, or ``""`` where none is near.

    Example:
        >>> suggestion("tirton", ["numba", "triton"])
        " Did you mean 'triton'?"
        >>> suggestion("cuda", ["numba", "triton"])
        ''
    """
    near = difflib.get_close_matches(str(name), list(allowed), n=1)
    return f" Did you mean {near[0]!r}?" if near else ""
