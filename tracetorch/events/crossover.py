"""Estimate the density below which a product with events is faster than the dense one."""

from __future__ import annotations

# Nanoseconds in float32 on two threads, where the dense product gains most from the second one;
# measured by benchmarks/event_crossover.py
_DENSE = 0.011  # a multiplication of the dense product
_ADDED = 0.035  # a value of a table's row that is added
_LISTED = 2.5  # an event that is listed
_SCANNED = 0.8  # a value that is scanned
_TRANSPOSED = 0.5  # a weight that is transposed
_CALLED = 150_000.0  # the calls around the kernels


def crossover(rows: int, inputs: int, outputs: int) -> float:
    """Return the density at which both take the same time; 0 where the dense product always wins.

    Args:
        rows: products of a vector with the weight: time steps times samples.
        inputs: of the layer.
        outputs: of the layer.

    Example:
        >>> 0.1 < crossover(6400, 256, 256) < 0.3, crossover(1, 16, 16)
        (True, 0.0)
    """
    values = max(1, rows * inputs)
    fixed = _SCANNED + _TRANSPOSED * outputs / max(1, rows) + _CALLED / values
    return max(0.0, (_DENSE * outputs - fixed) / (_ADDED * outputs + _LISTED))
