"""Find layers whose input is too busy for its product to be computed with events."""

from __future__ import annotations

from collections.abc import Iterator

from tracetorch.diagnosis.evidence import Evidence
from tracetorch.diagnosis.finding import Finding, finder, measured

_NUMBERS = 0.9  # an input of more events than that is one of numbers, which no rate makes sparse


@finder
def busy_inputs(evidence: Evidence) -> Iterator[Finding]:
    """Find products that are large enough for events, and were dense for there were too many."""
    for path, products in evidence.products.items():
        busy = [
            (product.density, product.crossover)
            for product in products
            if product.density is not None and 0 < product.crossover < product.density <= _NUMBERS
        ]
        if busy:
            density, crossover = max(busy)
            yield measured("too-busy-for-events", path, density, crossover=100 * crossover)
