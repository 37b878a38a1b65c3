"""Hold operations and their energy, and what a run of a model shows of each of its modules."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import astuple, dataclass, field
from typing import Literal

from torch import Tensor, nn

from tracetorch.core.checks import check_nonnegative
from tracetorch.snn.neuron import spike_functions

# Activations in NeuroBench's sense, besides neurons that spike; layers whose weights it counts
_ACTIVATIONS = (nn.ReLU, nn.Sigmoid)
WEIGHTED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class SynapticOperations:
    """Number of products of a weight and an input, per sample, summed over the time steps.

    An operation is *effective* where neither is zero. At a step whose inputs to a layer are all 0,
    1 or -1, it adds a weight (AC); otherwise it multiplies one too (MAC). Biases are not counted.

    Args:
        effective_macs: number of multiply-accumulates.
        effective_acs: number of accumulates.
        dense: number of all products, zeros too: the cost on hardware that cannot skip zeros.

    Example:
        >>> SynapticOperations(effective_macs=0.0, effective_acs=12.0, dense=40.0).effective
        12.0
    """

    effective_macs: float
    effective_acs: float
    dense: float

    @property
    def effective(self) -> float:
        """Sum of both kinds, the SynOps of neuromorphic hardware."""
        return self.effective_macs + self.effective_acs

    def __add__(self, other: SynapticOperations) -> SynapticOperations:
        both = zip(astuple(self), astuple(other), strict=True)
        return SynapticOperations(*(one + more for one, more in both))


NO_OPERATIONS = SynapticOperations(0.0, 0.0, 0.0)


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


@dataclass
class ModuleStats:
    """Measurements of one module, summed over all real steps and samples."""

    path: str
    module: nn.Module
    operations: SynapticOperations = NO_OPERATIONS
    multiplies: bool = False  # it computes products that are counted
    uncounted: dict[str, None] = field(default_factory=dict)  # why others are not, each reason once
    shape: tuple[int, ...] | None = None  # of the output at one step, without the batch
    fired: Tensor | Literal[0] = 0  # outputs of an activation that are not 0, spikes by neuron
    total: Tensor | Literal[0] = 0  # and those that could be; 0: it is none, or was not called
    updates: float = 0.0  # of membranes
    output_bytes: int = 0  # views of the input excepted
    state_bytes: int = 0

    @property
    def spikes(self) -> bool:
        """Whether its output is spikes."""
        return bool(spike_functions(self.module))

    @property
    def activates(self) -> bool:
        """Whether its output is an activation in NeuroBench's sense."""
        return self.spikes or isinstance(self.module, _ACTIVATIONS)


def check_counted(modules: list[ModuleStats]) -> None:
    """Raise where products of a module cannot be counted."""
    if uncounted := uncounted_products(modules):
        module, _, reason = uncounted[0].partition(": ")
        raise ValueError(
            f"{module} multiplies by weights or activations in a way that is not counted: {reason}."
            " Linear layers, convolutions, matrix products and attention are. Count the parts of "
            "the model that consist of those; tt.metrics.profile counts them and names the others."
        )


def uncounted_products(modules: list[ModuleStats]) -> tuple[str, ...]:
    """List the modules with products that are not counted, each with the reason."""
    return tuple(
        f"{stats.path or 'the model'} ({type(stats.module).__name__}): {reason}"
        for stats in modules
        for reason in stats.uncounted
    )


def sum_operations(modules: Iterable[ModuleStats], batch: int) -> SynapticOperations:
    total = sum((stats.operations for stats in modules), NO_OPERATIONS)
    return SynapticOperations(*(figure / batch for figure in astuple(total)))
