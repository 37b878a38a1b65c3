"""Measure accuracy, activity, operations, energy, size and time of a network.

Functions in lower case measure one batch and need PyTorch alone. Classes accumulate the same
figures over many batches, as ``torchmetrics.Metric``s, from the extra ``metrics``.

Counting is NeuroBench's. An operation is effective where weight and input are nonzero; a step whose
inputs are all 0, 1 or -1 accumulates, any other multiplies. Since that is linear, inputs are summed
over the batch first, and counts are exact in float64.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from tracetorch.core.optional import require
from tracetorch.metrics.accuracy import accuracy
from tracetorch.metrics.activity import dead, firing_rate, saturated, sparsity
from tracetorch.metrics.energy import Energy, EnergyAssumptions, energy
from tracetorch.metrics.neurobench import activation_sparsity, membrane_updates, synaptic_operations
from tracetorch.metrics.operations import SynapticOperations
from tracetorch.metrics.profile import profile
from tracetorch.metrics.size import connection_sparsity, footprint, parameter_count
from tracetorch.metrics.table import LayerProfile, Profile

if TYPE_CHECKING:
    from tracetorch.metrics.running import (
        Accuracy,
        DeadNeurons,
        FiringRate,
        Operations,
        SaturatedNeurons,
        Sparsity,
    )

__all__ = [
    "Accuracy",
    "DeadNeurons",
    "Energy",
    "EnergyAssumptions",
    "FiringRate",
    "LayerProfile",
    "Operations",
    "Profile",
    "SaturatedNeurons",
    "Sparsity",
    "SynapticOperations",
    "accuracy",
    "activation_sparsity",
    "connection_sparsity",
    "dead",
    "energy",
    "firing_rate",
    "footprint",
    "membrane_updates",
    "parameter_count",
    "profile",
    "saturated",
    "sparsity",
    "synaptic_operations",
]


def __getattr__(name: str) -> Any:
    if name in __all__:  # of those that are not here by now, each needs torchmetrics
        require("torchmetrics", extra="metrics", by=f"tt.metrics.{name}")
        return getattr(importlib.import_module("tracetorch.metrics.running"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
