"""What a network says, read off its output over time.

Every decoder is a pure function from ``[T, B, ...]`` to ``[B, ...]``. With ``mask`` ``[T, B]``,
true where a step is real, each sequence gives what it would give alone at its own length.
"""

from tracetorch.decode.first_spike import first_spike
from tracetorch.decode.membrane import last, maximum
from tracetorch.decode.rate import count, rate

__all__ = ["count", "first_spike", "last", "maximum", "rate"]
