"""Test that dropped paths are named."""

from typing import Any

from torch import nn

import tracetorch as tt
from tests.cases import sequence, vary
from tests.online_learning.cases import network, two_layers
from tracetorch import snn
from tracetorch.online_learning import DroppedPath, OnlineLearner


def origins(learner: Any, path: str) -> set[str]:
    return {each.origin for each in learner.dropped if each.layer == path}


def test_dropped_paths_are_named() -> None:
    x = sequence(4, 6)
    learner = tt.online(two_layers(), "eprop")
    learner(x)
    assert origins(learner, "1") == {"1"}  # its own spikes
    assert origins(learner, "3") == set()
    vary(learner.model)
    learner(x)
    assert origins(learner, "3") == {"1"}  # the readout's decays differ
    learner = OnlineLearner(two_layers(), rule="ottt")
    learner(x)
    first = {"0.weight", "0.bias", "1.raw_beta", "1.raw_pos_threshold"}
    assert origins(learner, "1") == {"0.weight", "1"}
    assert origins(learner, "3") == first | {"2.weight"}
    learner = tt.online(two_layers(), "local")
    learner(x)
    assert set(learner.dropped) == {
        DroppedPath(path, path, "earlier steps are constants") for path in ("1", "3")
    }
    learner = tt.online(network(snn.Recurrent(snn.LIF(5), nn.Linear(5, 5))), "eprop")
    learner(x)
    assert origins(learner, "1") == {"1"}
    deep = network(snn.LIF(5), nn.Linear(5, 5), snn.LIF(5), nn.Linear(5, 5), snn.Readout(5))
    learner = tt.online(deep, "eprop")
    learner(x)
    assert origins(learner, "3") == {"3"}
    assert origins(learner, "5") == first
