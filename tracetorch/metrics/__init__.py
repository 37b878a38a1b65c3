"""Measure accuracy, activity, operations, energy, size and time of a network.

Counting is NeuroBench's. An operation is effective where weight and input are nonzero; a step whose
inputs are all 0, 1 or -1 accumulates, any other multiplies. Counts are exact in float64.
"""

from tracetorch.metrics.activity import accuracy, dead, firing_rate, saturated, sparsity
from tracetorch.metrics.neurobench import (
    activation_sparsity,
    connection_sparsity,
    footprint,
    membrane_updates,
    parameter_count,
    synaptic_operations,
)
from tracetorch.metrics.operations import Energy, EnergyAssumptions, SynapticOperations, energy
from tracetorch.metrics.profile import profile
from tracetorch.metrics.table import LayerProfile, Profile

__all__ = [
    "Energy",
    "EnergyAssumptions",
    "LayerProfile",
    "Profile",
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
