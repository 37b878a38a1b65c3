"""Sum what a run of a model shows of each of its modules: operations, activity, memory."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import astuple, dataclass, field
from typing import Literal

from torch import Tensor, nn

from tracetorch.snn.spike_functions import spike_functions

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
    """Raise ``ValueError`` where products of a module cannot be counted."""
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
    """Sum the operations of all modules, per sample."""
    total = sum((stats.operations for stats in modules), NO_OPERATIONS)
    return SynapticOperations(*(figure / batch for figure in astuple(total)))
