"""Refuse wrong arguments, with what came and what is allowed."""

# ruff: noqa: F401, F403 (the table names what is imported)

from __future__ import annotations

import torch
from torch import nn

from tests.refusals import check, refusals
from tracetorch import metrics, snn
from tracetorch.metrics import *

X, CLASSES = torch.rand(9, 40, 5), torch.arange(40) % 5
SPIKES, STEPS = torch.ones(4, 2, 3), torch.ones(2, 1, 3)
DENSE, LIF = nn.Linear(3, 3), snn.LIF(3)


@refusals(r"""
    accuracy(X[:, :0], CLASSES[:0]) -> ValueError: x has no sample: its shape is
    accuracy(X, CLASSES.tolist()) -> TypeError: got list\. Wrap it: torch\.as_tenso
    accuracy(X, CLASSES, by="mean") -> ValueError: must be 'rate' for the mean over time
    accuracy(X, CLASSES.float()) -> TypeError: of integers, the classes, got a tenso
    accuracy(X, CLASSES[:3]) -> ValueError: target \[B\], got \[9, 40, 5\] and \[3
    accuracy(X, CLASSES * 2) -> ValueError: target has the classes 0 to 8, the outpu
    accuracy([1.0], CLASSES) -> TypeError: spikes must be a tensor, got list
    firing_rate(SPIKES[:, :0]) -> ValueError: spikes has no sample: .* \[4, 0, 3\]
    dead(SPIKES, dim=2) -> ValueError: dim is 2, but one step of spikes has the shap
    saturated(SPIKES, above=-0.1) -> ValueError: above must lie in \[0, 1\]
    saturated(SPIKES, above="x") -> TypeError: above must be a number, got 'x'
    firing_rate(SPIKES, dim=1.0) -> TypeError: dim must be an integer
    firing_rate(SPIKES, mask=torch.ones(3, 2).bool()) -> ValueError: the shape \[T, B\] of spikes
    EnergyAssumptions(ac_pj=-1.0) -> ValueError: ac_pj must be finite and not negati
    EnergyAssumptions(update_pj="1") -> TypeError: a number of picojoules, got '1'
    membrane_updates(DENSE, STEPS) -> ValueError: Linear has no neuron layer
    activation_sparsity(DENSE, STEPS) -> ValueError: no activation: no neuron that s
    connection_sparsity(LIF) -> ValueError: LIF has no connections: no linear, convo
    profile(LIF, STEPS[:, :0]) -> ValueError: x has no sample
    profile(LIF, STEPS, mask=torch.ones(1, 2).bool()) -> ValueError: the shape \[T, B\] of x
""")
def test_wrong_arguments_are_refused(call: str, error: str) -> None:
    check(call, error, globals())
