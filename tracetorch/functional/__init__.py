"""Pure functions on tensors and numbers: surrogates, half-lives, inverses of constraints."""

from tracetorch.functional.conversions import (
    decay_to_halflife,
    halflife_to_decay,
    sigmoid_inverse,
    softplus_inverse,
    time_constant_to_decay,
)
from tracetorch.functional.surrogates import (
    Surrogate,
    atan_surrogate,
    boxcar_surrogate,
    compact_support,
    fast_sigmoid_surrogate,
    gaussian_surrogate,
    sigmoid_surrogate,
    straight_through_surrogate,
    triangular_surrogate,
)

__all__ = [
    "Surrogate",
    "atan_surrogate",
    "boxcar_surrogate",
    "compact_support",
    "decay_to_halflife",
    "fast_sigmoid_surrogate",
    "gaussian_surrogate",
    "halflife_to_decay",
    "sigmoid_inverse",
    "sigmoid_surrogate",
    "softplus_inverse",
    "straight_through_surrogate",
    "time_constant_to_decay",
    "triangular_surrogate",
]
