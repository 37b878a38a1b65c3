"""Multiply rows by a square matrix inside a kernel, by their events or densely: Numba's source.

The functions are ordinary Python; :func:`product_source` gives their text to a printed module,
which compiles them with its kernel. The matrix comes in panels of ``PANEL`` columns: all rows of
the first panel, then all rows of the second, the last one padded with zeros. So a loop over the
columns of a panel has a fixed length, a panel is read once for several rows of the source, and the
places of its rows differ by constants: the vectoriser has little to check.
"""

from __future__ import annotations

import inspect
from typing import Any

PANEL = 64  # columns
QUAD = 4  # rows that share what is read of the matrix
DENSE = 0.4  # share of values that are not zero from which the dense product is faster


def multiply(
    source: Any, matrix: Any, target: Any, rows: int, size: int, sums: Any, events: Any
) -> None:
    """Set ``rows`` rows of ``target`` to the product of those of ``source`` with ``matrix``.

    A zero of the source is skipped where its row is sparse: the matrix must be finite.

    Args:
        source: ``rows`` rows of ``size`` values.
        matrix: ``size`` rows of as many values, in panels.
        target: like ``source``.
        rows: how many.
        size: of a row.
        sums: scratch of ``QUAD * PANEL`` values.
        events: scratch of ``size + 1`` indices.

    """
    row = 0
    while row < rows:
        count = 0
        last = min(row + QUAD, rows)
        if last - row == QUAD:
            for value in source[row * size : last * size]:
                count += value != 0
        if count > DENSE * QUAD * size:
            multiply_densely(source, matrix, target, row, size, sums)
        else:
            for each in range(row, last):
                multiply_events(source, matrix, target, each, size, sums, events)
        row = last


def multiply_densely(source: Any, matrix: Any, target: Any, row: int, size: int, sums: Any) -> None:
    """Multiply ``QUAD`` rows, from ``row`` on, taking four rows of a panel at a time."""
    a = source[row * size : (row + 1) * size]
    b = source[(row + 1) * size : (row + 2) * size]
    c = source[(row + 2) * size : (row + 3) * size]
    d = source[(row + 3) * size : (row + 4) * size]
    for left in range(0, size, PANEL):
        for j in range(QUAD * PANEL):
            sums[j] = 0
        k = 0
        while k + 4 <= size:
            start = (left // PANEL * size + k) * PANEL
            m = matrix[start : start + 4 * PANEL]
            a0, a1, a2, a3 = a[k], a[k + 1], a[k + 2], a[k + 3]
            b0, b1, b2, b3 = b[k], b[k + 1], b[k + 2], b[k + 3]
            c0, c1, c2, c3 = c[k], c[k + 1], c[k + 2], c[k + 3]
            d0, d1, d2, d3 = d[k], d[k + 1], d[k + 2], d[k + 3]
            for j in range(PANEL):
                m0, m1, m2, m3 = m[j], m[PANEL + j], m[2 * PANEL + j], m[3 * PANEL + j]
                sums[j] += a0 * m0 + a1 * m1 + a2 * m2 + a3 * m3
                sums[PANEL + j] += b0 * m0 + b1 * m1 + b2 * m2 + b3 * m3
                sums[2 * PANEL + j] += c0 * m0 + c1 * m1 + c2 * m2 + c3 * m3
                sums[3 * PANEL + j] += d0 * m0 + d1 * m1 + d2 * m2 + d3 * m3
            k += 4
        while k < size:
            start = (left // PANEL * size + k) * PANEL
            m = matrix[start : start + PANEL]
            a0, b0, c0, d0 = a[k], b[k], c[k], d[k]
            for j in range(PANEL):
                sums[j] += a0 * m[j]
                sums[PANEL + j] += b0 * m[j]
                sums[2 * PANEL + j] += c0 * m[j]
                sums[3 * PANEL + j] += d0 * m[j]
            k += 1
        width = min(PANEL, size - left)
        for r in range(QUAD):
            start = (row + r) * size + left
            out = target[start : start + width]
            panel = sums[r * PANEL : r * PANEL + width]
            for j in range(width):
                out[j] = panel[j]


def multiply_events(
    source: Any, matrix: Any, target: Any, row: int, size: int, sums: Any, events: Any
) -> None:
    """Multiply one row: add up the rows of the matrix where it is not zero, four at a time."""
    values = source[row * size : (row + 1) * size]
    count = 0
    # Each index is written and the next one overwrites it unless it is an event: no branches.
    for k in range(size):
        events[count] = k
        count += values[k] != 0
    for left in range(0, size, PANEL):
        first = left // PANEL * size
        for j in range(PANEL):
            sums[j] = 0
        e = 0
        while e + 4 <= count:
            k0, k1, k2, k3 = events[e], events[e + 1], events[e + 2], events[e + 3]
            v0, v1, v2, v3 = values[k0], values[k1], values[k2], values[k3]
            m0 = matrix[(first + k0) * PANEL : (first + k0 + 1) * PANEL]
            m1 = matrix[(first + k1) * PANEL : (first + k1 + 1) * PANEL]
            m2 = matrix[(first + k2) * PANEL : (first + k2 + 1) * PANEL]
            m3 = matrix[(first + k3) * PANEL : (first + k3 + 1) * PANEL]
            for j in range(PANEL):
                sums[j] += v0 * m0[j] + v1 * m1[j] + v2 * m2[j] + v3 * m3[j]
            e += 4
        while e < count:
            k0 = events[e]
            v0 = values[k0]
            m0 = matrix[(first + k0) * PANEL : (first + k0 + 1) * PANEL]
            for j in range(PANEL):
                sums[j] += v0 * m0[j]
            e += 1
        width = min(PANEL, size - left)
        out = target[row * size + left : row * size + left + width]
        for j in range(width):
            out[j] = sums[j]


def product_source() -> str:
    """Return the text of the functions, for a printed module.

    Contraction is allowed, unlike in a step: no sum of products has an order that is promised.
    """
    decorator = 'njit(nogil=True, error_model="numpy", boundscheck=False, fastmath={"contract"})'
    parts = ["from numba import njit\n\n", f"PANEL = {PANEL}\nQUAD = {QUAD}\nDENSE = {DENSE}\n"]
    for function in (multiply_densely, multiply_events, multiply):
        text = inspect.getsource(function).replace(": Any", "").replace(": int", "")
        parts.append(f"\n\n@{decorator}\n{text}")
    return "".join(parts)
