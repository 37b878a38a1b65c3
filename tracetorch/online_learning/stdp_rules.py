"""Rules of spike-timing-dependent plasticity: pairs and triplets of spikes, and their constants."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import ClassVar

from tracetorch.core.checks import check_finite, check_flag


@dataclass(frozen=True)
class STDPRule:
    """Constants of a rule of STDP, checked; every rule is one of triplets in the end."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name == "nearest":
                check_flag(field.name, value)
            elif check_finite(field.name, value) <= 0 and field.name.startswith("tau"):
                raise ValueError(f"{field.name} must be above 0, in steps, got {value}.")


@dataclass(frozen=True)
class TripletRule(STDPRule):
    """Triplet rule: how much a pair of spikes counts depends on the spike before it.

    ::

        at a spike of the output:  w += r1 (a2_plus + a3_plus o2)
        at a spike of the input:   w -= o1 (a2_minus + a3_minus r2)

    The traces ``r1`` and ``r2`` of the input decay with ``tau_plus`` and ``tau_x``, ``o1`` and
    ``o2`` of the output with ``tau_minus`` and ``tau_y``. With ``a3_minus=0`` it is the minimal
    rule. So pairs at a high rate potentiate, whatever their order, as in cortex.

    Args:
        a2_plus: potentiation by a pair.
        a3_plus: potentiation by two spikes of the output around one of the input.
        a2_minus: depression by a pair.
        a3_minus: depression by two spikes of the input around one of the output.
        tau_plus: time constant of ``r1``, in steps.
        tau_minus: time constant of ``o1``, in steps.
        tau_x: time constant of ``r2``, in steps.
        tau_y: time constant of ``o2``, in steps.
        nearest: a spike counts with the nearest one before it, not with all of them.

    Raises:
        TypeError: a number is none.
        ValueError: a number is not finite, or a time constant not above 0.

    Example:
        >>> TripletRule.presets["visual cortex, minimal"].a3_plus
        0.0065

    Source: Pfister and Gerstner, "Triplets of spikes in a model of spike timing-dependent
    plasticity", Journal of Neuroscience 26, 9673 (2006); ``presets`` are its fits of table 3
    with all spikes, for steps of a millisecond; the minimal one is the default.
    """

    a2_plus: float = 0.0
    a3_plus: float = 6.5e-3
    a2_minus: float = 7.1e-3
    a3_minus: float = 0.0
    tau_plus: float = 16.8
    tau_minus: float = 33.7
    tau_x: float = 101.0
    tau_y: float = 114.0
    nearest: bool = False

    presets: ClassVar[dict[str, TripletRule]]
    """Rules with the constants of the paper, ``"visual cortex"`` and its ``", minimal"`` form."""

    def triplet(self) -> TripletRule:
        """Return the rule itself."""
        return self


@dataclass(frozen=True)
class PairRule(STDPRule):
    """Pair rule: an input that spikes before the output gains weight, one that is late loses some.

    ::

        dw = a_plus  exp(-lag / tau_plus)    lag = steps from the input's spike to the output's >= 0
        dw = -a_minus exp(lag / tau_minus)   lag < 0

    Args:
        a_plus: potentiation at a lag of 0.
        a_minus: depression just below it.
        tau_plus: time constant of potentiation, in steps.
        tau_minus: time constant of depression, in steps.
        nearest: a spike counts with the nearest one before it, not with all of them.

    Raises:
        TypeError: a number is none.
        ValueError: a number is not finite, or a time constant not above 0.

    Example:
        >>> PairRule(a_minus=0.006)
        PairRule(a_plus=0.005, a_minus=0.006, tau_plus=20.0, tau_minus=20.0, nearest=False)

    Source: the defaults are those of Song, Miller and Abbott, "Competitive Hebbian learning through
    spike-timing-dependent synaptic plasticity", Nature Neuroscience 3, 919 (2000), for weights in
    [0, 1] and steps of a millisecond.
    """

    a_plus: float = 0.005
    a_minus: float = 0.00525
    tau_plus: float = 20.0
    tau_minus: float = 20.0
    nearest: bool = False

    def triplet(self) -> TripletRule:
        """Return it as a triplet rule whose triplets count nothing."""
        taus = {"tau_plus": self.tau_plus, "tau_minus": self.tau_minus}
        return TripletRule(self.a_plus, 0.0, self.a_minus, 0.0, **taus, nearest=self.nearest)


TripletRule.presets = {
    "visual cortex": TripletRule(5e-10, 6.2e-3, 7e-3, 2.3e-4, tau_x=101.0, tau_y=125.0),
    "visual cortex, minimal": TripletRule(0.0, 6.5e-3, 7.1e-3, 0.0, tau_y=114.0),
}
