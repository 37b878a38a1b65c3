from __future__ import annotations

import os
from typing import Any

import pytest
import torch

from tests import cases
from tests.fuse.cases import CONFIGURATIONS, agree, make, name_of
from tracetorch import fuse, snn

pytest.importorskip("triton", reason="Triton is not installed")
if os.environ.get("TRITON_INTERPRET", "0") == "0":
    pytest.skip("runs with TRITON_INTERPRET=1", allow_module_level=True)


@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")  # exp(-large), by NumPy
@pytest.mark.parametrize("case", [c for c in CONFIGURATIONS if max(c[2]) < 63], ids=name_of)
def test_parity_under_the_interpreter(case: Any) -> None:
    agree(make(case), cases.sequence(4, *case[2], dtype=torch.float32), "triton", live=True)


def test_long_sequences_restart_from_kept_states() -> None:
    agree(cases.layer("BSRLIF", 3), cases.sequence(70, 1, 3, dtype=torch.float32), "triton")


def test_trajectories() -> None:
    layer, x = cases.layer("SLIF", 3), cases.sequence(4, 2, 3, dtype=torch.float32)
    with fuse.backend("triton"):
        _, told = fuse.sequence(layer, x, record=["syn"])
    layer.zero_states()
    with fuse.backend("eager"):
        assert torch.equal(fuse.sequence(layer, x, record=["syn"])[1]["syn"], told["syn"])
    assert isinstance(layer, snn.Neuron)
