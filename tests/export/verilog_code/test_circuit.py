"""Circuits of integer steps equal PyTorch in every bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.export.verilog_code.steps import drawn, expected_ports, port_values, step_of
from tracetorch import chips, integers

LEAKS = [
    *(integers.Multiplier(8, rounding) for rounding in ("trunc", "floor", "nearest")),
    *(integers.Shift(rounding) for rounding in ("floor", "trunc", "nearest", "at_least_one")),
]
PARTS: dict[str, dict[str, Any]] = {
    "": {},
    "S": {"alpha": (200, 3)},
    "R": {"gamma": (220, 2), "rec_weight": 3, "bias": -5},
    "RS": {"alpha": (200, 3), "gamma": (220, 2), "rec_weight": 3, "bias": 7},
}
ENDS: dict[str, dict[str, Any]] = {
    "readout": {},
    "LIF": {"pos_threshold": 100},
    "BLIF": {"pos_threshold": 100, "neg_threshold": 80, "pos_scale": 2, "neg_scale": 3},
}


def leaky(leak: Any, parts: str = "", ends: str = "LIF", **more: Any) -> nn.Module:
    """Return a leaky integrator of three neurons, each with parameters of its own."""
    shifts = isinstance(leak, integers.Shift)
    given = {**PARTS[parts], **ENDS[ends], "beta": (230, 4), **more}
    decays = {name: given[name][shifts] for name in ("alpha", "beta", "gamma") if name in given}
    spread = torch.tensor([-1.0, 0.0, 1.0])
    given.update({name: decay + spread for name, decay in decays.items()})
    return integers.LeakyIntegrator(3, decay=leak, **given)


def check(layer: nn.Module, count: int = 2000, **how: Any) -> None:
    """Compare a circuit with the step of PyTorch."""
    step = step_of(layer, **how)
    values = drawn(step, count)
    found = step.circuit.evaluate(port_values(step, values))
    for name, wanted in expected_ports(step, values).items():
        np.testing.assert_array_equal(np.broadcast_to(found[name], wanted.shape), wanted, name)


@pytest.mark.parametrize("leak", LEAKS, ids=str)
@pytest.mark.parametrize("ends", ENDS)
@pytest.mark.parametrize("parts", PARTS)
def test_leaky_integrators(parts: str, ends: str, leak: Any) -> None:
    check(leaky(leak, parts, ends))


@pytest.mark.parametrize("layer", [chips.xylo.LIF(3), chips.loihi.LIF(3)], ids=["xylo", "loihi"])
def test_chips(layer: nn.Module) -> None:
    check(layer)
