"""Refuse wrong arguments, with what came and what is allowed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from tracetorch import metrics, snn

call: Any = metrics  # arguments are wrong on purpose

X, CLASSES = torch.rand(9, 40, 5), torch.arange(40) % 5
SPIKES, STEPS = torch.ones(4, 2, 3), torch.ones(2, 1, 3)
DENSE, LIF = nn.Linear(3, 3), snn.LIF(3)
ACTIVITY = (metrics.firing_rate, metrics.dead, metrics.saturated)
SIZES = (metrics.footprint, metrics.parameter_count, metrics.connection_sparsity)

WRONG: list[tuple[Callable[[], object], type[Exception], str]] = [
    (lambda: call.accuracy(X[:, :0], CLASSES[:0]), ValueError, r"x has no sample: its shape is "),
    (lambda: call.accuracy(X, CLASSES.tolist()), TypeError, r"got list\. Wrap it: torch\.as_tenso"),
    (lambda: call.accuracy(X, CLASSES, by="rates"), ValueError, "by must be one of rate, count, f"),
    (lambda: call.accuracy(X, CLASSES.float()), TypeError, "of integers, the classes, got a tenso"),
    (lambda: call.accuracy(X, CLASSES[:3]), ValueError, r"target \[B\], got \[9, 40, 5\] and \[3"),
    (lambda: call.accuracy(X, CLASSES * 2), ValueError, "target has the classes 0 to 8, the outpu"),
    (lambda: call.accuracy([1.0], CLASSES), TypeError, "spikes must be a tensor, got list"),
    *((lambda m=m: m(SPIKES[:, :0]), ValueError, r"spikes has no sample: .* \[4, 0, 3\]")
      for m in ACTIVITY),
    (lambda: call.dead(SPIKES, dim=-3), ValueError, "dim is -3, but one step of spikes has the sh"),
    (lambda: call.dead(SPIKES, dim=2), ValueError, "dim is 2, but one step of spikes has the shap"),
    (lambda: call.saturated(SPIKES, above=-0.1), ValueError, r"above must lie in \[0, 1\]"),
    (lambda: call.saturated(SPIKES, above=1.01), ValueError, r"above must lie in \[0, 1\]"),
    (lambda: call.saturated(SPIKES, above="x"), TypeError, "above must be a number, got 'x'"),
    (lambda: call.firing_rate(SPIKES, dim=1.0), TypeError, "dim must be an integer"),
    (lambda: call.firing_rate(SPIKES, mask=torch.ones(3, 2).bool()), ValueError,
     r"mask must have the shape \[T, B\] of spikes"),
    (lambda: call.EnergyAssumptions(ac_pj=-1.0), ValueError, "ac_pj must be finite and not negati"),
    (lambda: call.EnergyAssumptions(mac_pj=float("nan")), ValueError, "mac_pj must be finite and"),
    (lambda: call.EnergyAssumptions(update_pj="1"), TypeError, "a number of picojoules, got '1'"),
    (lambda: call.membrane_updates(DENSE, STEPS), ValueError, "Linear has no neuron layer"),
    (lambda: call.Operations().update(DENSE, STEPS), ValueError, "Linear has no neuron layer"),
    (lambda: call.activation_sparsity(DENSE, STEPS), ValueError, "no activation: no neuron that s"),
    (lambda: call.connection_sparsity(LIF), ValueError, "LIF has no connections: no linear, convo"),
    *((lambda m=m: m("model"), TypeError, r"expected an nn\.Module, got str") for m in SIZES),
    (lambda: call.profile(LIF, STEPS, repeats=0), ValueError, "repeats must be at least 1, got 0"),
    (lambda: call.profile(LIF, STEPS[:, :0]), ValueError, "x has no sample"),
    (lambda: call.synaptic_operations(LIF, STEPS[:, :0]), ValueError, "x has no sample"),
    (lambda: call.profile(LIF, STEPS, mask=torch.ones(1, 2).bool()), ValueError,
     r"mask must have the shape \[T, B\] of x"),
    (lambda: call.Accuracy("rates"), ValueError, "by must be one of rate, count, first_spike"),
    (lambda: call.DeadNeurons(3).update(torch.ones(2, 1, 4)), ValueError, "was made for 3 neurons"),
    (lambda: call.SaturatedNeurons(0), ValueError, "num_neurons must be at least 1"),
    (lambda: call.SaturatedNeurons(3, above=2.0), ValueError, r"above must lie in \[0, 1\]"),
    (lambda: call.Accuracies, AttributeError, "has no attribute 'Accuracies'"),
]  # fmt: skip


@pytest.mark.parametrize(("wrong", "error", "match"), WRONG)
def test_wrong_arguments_are_refused(wrong: Any, error: Any, match: str) -> None:
    with pytest.raises(error, match=match):
        wrong()
