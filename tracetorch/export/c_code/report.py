"""Report what a network in C needs: flash, RAM, stack, operations, memory accesses and energy."""

from __future__ import annotations

from dataclasses import dataclass

from tracetorch.metrics.energy import Energy, EnergyAssumptions, energy
from tracetorch.metrics.operations import SynapticOperations

# a multiplication of 32 bits costs 3.1 pJ, an addition 0.1 pJ; C computes in such integers
INTEGERS = EnergyAssumptions(
    mac_pj=3.2,
    ac_pj=0.1,
    update_pj=3.2,
    source="Horowitz, ISSCC 2014: 32-bit integers, 45 nm, 0.9 V; without memory",
)
MEMORY_PJ = 5.0
MEMORY_SOURCE = "Horowitz, ISSCC 2014: 32 bits from a memory of 8 KB, 45 nm"


@dataclass(frozen=True)
class CReport:
    """Needs of a network in C, and costs of a step, a mean over the sample's first stream.

    Args:
        files: names of the files.
        flash_bytes: size of the constant tables; the code itself is measured by ``make size``.
        ram_bytes: size of the struct of one stream: states and work memory.
        stack_bytes: bound of the stack that ``tt_step`` takes, without that of the functions of
            ``math.h``.
        operations: effective and dense products that the program does per step.
        updates: values that the neurons' states get per step.
        memory_accesses: reads and writes of arrays per step; what stays in registers is none.
        input_range: least and largest value of each input for which integers are proved not to
            overflow, by name; empty for float32. Those of the sample, or of the bits of a first
            ``integers.Quantize``.
        types: C type of every input, state and output, by name.
        events: names of the modules whose products skip zeros.

    Example:
        >>> import tempfile, torch, tracetorch as tt
        >>> from torch import nn
        >>> net = nn.Sequential(nn.Linear(8, 4), tt.snn.LIF(4))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     report = tt.export.c(net, folder, torch.rand(5, 1, 8).round())
        >>> report.flash_bytes, report.ram_bytes
        (144, 32)
    """

    files: tuple[str, ...]
    flash_bytes: int
    ram_bytes: int
    stack_bytes: int
    operations: SynapticOperations
    updates: float
    memory_accesses: float
    input_range: dict[str, tuple[float, float]]
    types: dict[str, str]
    events: tuple[str, ...]

    def energy(self, assumptions: EnergyAssumptions | None = None) -> Energy:
        """Estimate the energy of a step's arithmetic, as :func:`tt.metrics.energy` does.

        Without ``assumptions`` at the cost of 32-bit floats, with ``dtype="int"`` of integers.
        """
        if assumptions is None and self.input_range:
            assumptions = INTEGERS
        return energy(self.operations, updates=self.updates, assumptions=assumptions)

    @property
    def memory_pj(self) -> float:
        """Energy of a step's memory accesses at 5 pJ each, those of 8 KB of SRAM in 45 nm.

        Reference: Horowitz, "Computing's energy problem", ISSCC 2014.
        """
        return self.memory_accesses * MEMORY_PJ

    def __str__(self) -> str:
        arithmetic = self.energy()
        ranges = ", ".join(
            f"{n} {low:.0f} to {high:.0f}" for n, (low, high) in self.input_range.items()
        )
        lines = [
            f"flash        {self.flash_bytes} bytes of tables, and the code (make size)",
            f"RAM          {self.ram_bytes} bytes for each stream",
            f"stack        at most {self.stack_bytes} bytes, without math.h",
            f"operations   {self.operations.effective:.1f} of {self.operations.dense:.0f} products "
            f"per step ({self.operations.effective_acs:.1f} of them additions alone), "
            f"{self.updates:.0f} updates of states",
            f"memory       {self.memory_accesses:.1f} accesses per step",
            f"energy       {arithmetic.total_pj * 1e-6:.3g} uJ per step for arithmetic "
            f"({arithmetic.assumptions}), {self.memory_pj * 1e-6:.3g} uJ for memory "
            f"({MEMORY_PJ:g} pJ each, {MEMORY_SOURCE})",
            *([f"inputs       {ranges}"] if ranges else []),
            *(f"type         {name}: {kind}" for name, kind in self.types.items()),
        ]
        return "\n".join(lines) + "\n"
