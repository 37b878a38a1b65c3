"""Estimate the density below which a product with events is faster than the dense one."""

from __future__ import annotations

# Nanoseconds of the forward pass and the weight's gradient together, in float32 on two threads;
# on one all take about twice as long. Measured by benchmarks/event_crossover.py.
_DENSE = 0.023  # a multiplication of the dense product
_READ = 0.3  # a value of the input that the dense product reads
_ADDED = 0.041  # a value of a table's row that is added
_LISTED = 2.5  # an event that is listed
_SCANNED = 0.4  # a value of the input that is scanned
_WRITTEN = 0.9  # a value of the output
_TRANSPOSED = 1.5  # a weight that is transposed
_CALLED = 300_000.0  # the calls around the kernels


def crossover(rows: int, inputs: int, outputs: int) -> float:
    """Return the density at which both take the same time; 0 where the dense product always wins.

    Args:
        rows: products of a vector with the weight: time steps times samples.
        inputs: of the layer.
        outputs: of the layer.

    Example:
        >>> 0.3 < crossover(6400, 256, 256) < 0.4, crossover(1, 16, 16)
        (True, 0.0)
    """
    values = max(1, rows * inputs)
    # for each value of the input
    dense = _READ + _DENSE * outputs
    fixed = _SCANNED + _WRITTEN * outputs / max(1, inputs) + _CALLED / values
    fixed += _TRANSPOSED * outputs / max(1, rows)
    return max(0.0, (dense - fixed) / (_ADDED * outputs + _LISTED))
