"""Estimate the energy of operations under explicit assumptions."""

from __future__ import annotations

from dataclasses import dataclass

from tracetorch.core.checks import check_nonnegative
from tracetorch.metrics.operations import SynapticOperations


@dataclass(frozen=True)
class EnergyAssumptions:
    """Energy of one operation of each kind, in picojoules.

    The defaults are for a 45 nm process at 0.9 V: a 32-bit floating-point multiplication costs
    3.7 pJ and an addition 0.9 pJ. **Memory is left out**: to fetch a weight costs 5 pJ from a small
    cache and over 600 pJ from DRAM, more than any arithmetic. The estimate compares networks on one
    kind of hardware; it does not predict the power of a chip.

    Args:
        mac_pj: energy of a multiply-accumulate.
        ac_pj: energy of an accumulate.
        update_pj: energy of a membrane update, a leak and an addition: one multiply-accumulate.
        source: reference for the figures.

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
        for name in ("mac_pj", "ac_pj", "update_pj"):
            check_nonnegative(name, getattr(self, name), unit="picojoules")

    def __str__(self) -> str:
        return (
            f"MAC {self.mac_pj} pJ, AC {self.ac_pj} pJ, membrane update {self.update_pj} pJ "
            f"({self.source})"
        )


@dataclass(frozen=True)
class Energy:
    """Energy estimate per sample, in picojoules.

    Args:
        synapses_pj: energy of the effective operations of the weights.
        neurons_pj: energy of the membrane updates.
        dense_pj: energy of all products as multiply-accumulates, zeros too: the same network and
            number of steps on hardware that does not exploit spikes.
        assumptions: the energy of one operation of each kind.

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
        """Energy of synapses and neurons together."""
        return self.synapses_pj + self.neurons_pj

    def __str__(self) -> str:
        figures = self.total_pj, self.synapses_pj, self.neurons_pj, self.dense_pj
        total, *parts = (f"{pj * 1e-6:.3g}" for pj in figures)
        shares = "(synapses {}, neurons {}; dense {})".format(*parts)
        return f"{total} uJ per sample {shares} at {self.assumptions}"


def energy(
    operations: SynapticOperations,
    *,
    updates: float = 0.0,
    assumptions: EnergyAssumptions | None = None,
) -> Energy:
    """Estimate the energy of operations.

    ::

        synapses = macs * mac_pj + acs * ac_pj
        neurons  = updates * update_pj
        dense    = dense * mac_pj

    Args:
        operations: result of :func:`synaptic_operations`.
        updates: result of :func:`membrane_updates`; 0 by default.
        assumptions: energy of one operation of each kind; that of Horowitz (2014) if left out.

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
