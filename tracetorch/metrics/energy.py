"""What operations would cost in energy, under assumptions that are named."""

from __future__ import annotations

import math
import numbers
from dataclasses import dataclass, fields

from tracetorch.metrics.operations import SynapticOperations


@dataclass(frozen=True)
class EnergyAssumptions:
    """What one operation is taken to cost, in picojoules.

    The defaults are for a 45 nm process at 0.9 V: a 32-bit floating-point multiplication costs
    3.7 pJ and an addition 0.9 pJ. **Memory is left out**: to fetch a weight costs 5 pJ from a small
    cache and over 600 pJ from DRAM, more than any arithmetic, so that this tells networks on one
    kind of hardware apart, and is not what a chip will draw.

    Args:
        mac_pj: a multiply-accumulate.
        ac_pj: an accumulate.
        update_pj: one change of a membrane, a leak and an addition: one multiply-accumulate.
        source: where the figures are from.

    Raises:
        TypeError: a cost is not a number.
        ValueError: a cost is negative or not finite.

    Example:
        >>> EnergyAssumptions(mac_pj=0.3, ac_pj=0.1, update_pj=0.3, source="8-bit, 45 nm").ac_pj
        0.1

    Reference: Horowitz, "Computing's energy problem (and what we can do about it)", ISSCC 2014.
    """

    mac_pj: float = 4.6
    ac_pj: float = 0.9
    update_pj: float = 4.6
    source: str = "Horowitz, ISSCC 2014: 32-bit floating point, 45 nm, 0.9 V; without memory"

    def __post_init__(self) -> None:
        for one in fields(self):
            value = getattr(self, one.name)
            if one.name == "source":
                continue
            if isinstance(value, bool) or not isinstance(value, numbers.Real):
                raise TypeError(f"{one.name} must be a number of picojoules, got {value!r}.")
            if not 0 <= float(value) < math.inf:
                raise ValueError(f"{one.name} must be finite and not negative, got {value}.")

    def __str__(self) -> str:
        return (
            f"MAC {self.mac_pj} pJ, AC {self.ac_pj} pJ, membrane update {self.update_pj} pJ "
            f"({self.source})"
        )


@dataclass(frozen=True)
class Energy:
    """An estimate per sample, in picojoules.

    Args:
        synapses_pj: the effective operations of the weights.
        neurons_pj: the changes of the membranes.
        dense_pj: every product as a multiply-accumulate, zeros too: the same network, same number
            of steps, on hardware that takes no notice of spikes.
        assumptions: what it rests on.

    Example:
        >>> print(energy(SynapticOperations(0.0, 1000.0, 4000.0), updates=100.0))
        0.00136 uJ per sample (synapses 0.0009, neurons 0.00046; dense 0.0184) at MAC 4.6 pJ,
        AC 0.9 pJ, membrane update 4.6 pJ (Horowitz, ISSCC 2014: 32-bit floating point, 45 nm,
        0.9 V; without memory)
    """

    synapses_pj: float
    neurons_pj: float
    dense_pj: float
    assumptions: EnergyAssumptions

    @property
    def total_pj(self) -> float:
        """Synapses and neurons."""
        return self.synapses_pj + self.neurons_pj

    def __str__(self) -> str:
        told = [
            f"{pj * 1e-6:.3g}"
            for pj in (self.total_pj, self.synapses_pj, self.neurons_pj, self.dense_pj)
        ]
        return (
            f"{told[0]} uJ per sample (synapses {told[1]}, neurons {told[2]}; dense {told[3]}) at "
            f"{self.assumptions}"
        )


def energy(
    operations: SynapticOperations,
    *,
    updates: float = 0.0,
    assumptions: EnergyAssumptions | None = None,
) -> Energy:
    """An estimate of the energy that operations take.

    ::

        synapses = macs * mac_pj + acs * ac_pj
        neurons  = updates * update_pj
        dense    = dense * mac_pj

    Args:
        operations: what :func:`synaptic_operations` gave.
        updates: what :func:`membrane_updates` gave.
        assumptions: what an operation costs; those of Horowitz (2014) if left out.

    Example:
        >>> energy(SynapticOperations(0.0, 1000.0, 4000.0)).total_pj
        900.0

    Reference: Horowitz, "Computing's energy problem (and what we can do about it)", ISSCC 2014.
    """
    cost = EnergyAssumptions() if assumptions is None else assumptions
    return Energy(
        operations.effective_macs * cost.mac_pj + operations.effective_acs * cost.ac_pj,
        updates * cost.update_pj,
        operations.dense * cost.mac_pj,
        cost,
    )
