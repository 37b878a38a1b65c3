from __future__ import annotations

import pytest

from tracetorch import metrics
from tracetorch.metrics import EnergyAssumptions, SynapticOperations


def test_energy_is_the_sum_of_operations_times_their_cost_of_any_assumptions() -> None:
    found = metrics.energy(SynapticOperations(10.0, 100.0, 500.0), updates=3.0)
    assert found.synapses_pj == pytest.approx(10 * 4.6 + 100 * 0.9)
    assert found.neurons_pj == pytest.approx(3 * 4.6)
    assert found.dense_pj == pytest.approx(500 * 4.6)
    assert found.total_pj == found.synapses_pj + found.neurons_pj
    assert "Horowitz, ISSCC 2014" in str(found)
    assert "without memory" in str(found)
    cost = EnergyAssumptions(mac_pj=2, ac_pj=1, update_pj=0, source="ours")
    found = metrics.energy(SynapticOperations(1.0, 1.0, 4.0), updates=9.0, assumptions=cost)
    assert (found.total_pj, found.dense_pj, found.assumptions) == (3.0, 8.0, cost)
    assert str(found).endswith("MAC 2 pJ, AC 1 pJ, membrane update 0 pJ (ours)")
