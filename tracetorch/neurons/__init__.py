"""Neurons of the literature, each in a few statements: adaptive, refractory, nonlinear, resonating.

Their parameters are given as those of ``snn``'s layers, by a number or a tensor, or by a whole
setup: ``beta={"value": 0.95, "rank": 0, "learnable": False}``. One step is one millisecond in the
defaults; for another, ``tt.functional.time_constant_to_decay(tau, dt)`` gives a decay.
"""

from typing import TYPE_CHECKING, NoReturn

from tracetorch import snn
from tracetorch.neurons.adaptive import ALIF, AdLIF, SEAdLIF
from tracetorch.neurons.extended import GLIF, TCLIF, AlphaLIF, RefractoryLIF
from tracetorch.neurons.graded import MultiLevelLIF, SigmaDelta
from tracetorch.neurons.resonate import BRF, RF
from tracetorch.neurons.voltage import EIF, QIF, AdEx, Izhikevich

__all__ = [
    "ALIF",
    "BRF",
    "EIF",
    "GLIF",
    "QIF",
    "RF",
    "TCLIF",
    "AdEx",
    "AdLIF",
    "AlphaLIF",
    "Izhikevich",
    "MultiLevelLIF",
    "RefractoryLIF",
    "SEAdLIF",
    "SigmaDelta",
]


if not TYPE_CHECKING:  # a type checker would take every name for one of these

    def __getattr__(name: str) -> NoReturn:
        where = f" It is in tracetorch.snn: tt.snn.{name}." if name in snn.__all__ else ""
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}.{where}")
