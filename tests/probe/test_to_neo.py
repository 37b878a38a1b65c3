"""Recordings as Neo blocks, and the statistics that Elephant makes of them."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
import torch

import tracetorch as tt
from tracetorch import snn
from tracetorch.core import optional
from tracetorch.probe import Recording

needs_neo = pytest.mark.skipif(
    not all(map(find_spec, ("neo", "elephant"))), reason="needs the extra neuroscience"
)
STEPS, BATCH = 40, 3


def recorded() -> Recording:
    torch.manual_seed(0)
    net = torch.nn.Sequential(snn.BLIF(4, beta=0.8), snn.LIF(4, beta=0.5), snn.Readout(4))
    x = 1.5 * torch.randn(STEPS, BATCH, 4)
    return tt.probe.record(net, x, ["mem", "output"])[1]


@needs_neo
@pytest.mark.parametrize("dt", [1.0, 0.1, 0.3])
def test_spikes_are_in_the_middle_of_their_steps(dt: float) -> None:
    import quantities as pq

    seen = recorded()
    block: Any = seen.to_neo(dt=dt)
    assert [segment.name for segment in block.segments] == ["sample 0", "sample 1", "sample 2"]
    for sample, segment in enumerate(block.segments):
        trains = segment.spiketrains
        # the first layer spikes with both signs: two trains for each neuron
        assert len(trains) == 4 + 8
        for train in trains:
            a = train.annotations
            values = seen[a["path"]][:, sample, a["neuron"]].detach().numpy() * a["sign"]
            expected = (np.flatnonzero(values > 0) + 0.5) * dt
            assert np.array_equal(train.rescale(pq.ms).magnitude, expected)
            assert float(train.t_stop.rescale(pq.ms)) == STEPS * dt
            assert train.name == f"{a['path']}[{a['neuron']}]"
        assert sum(map(len, trains)) == sum(
            int((seen[f"{n}.output"][:, sample] != 0).sum()) for n in (0, 1)
        )
        # membranes, and the output of the readout, which is its membrane
        signals = {signal.name: signal for signal in segment.analogsignals}
        assert set(signals) == {"0.mem", "1.mem", "2.mem", "2.output"}
        for name, signal in signals.items():
            assert np.array_equal(signal.magnitude, seen[name][:, sample].detach().numpy())
            assert np.isclose(float(signal.t_start.rescale(pq.ms)), 0.5 * dt)
            assert np.isclose(float(signal.sampling_period.rescale(pq.ms)), dt)


@needs_neo
@pytest.mark.slow  # Elephant imports for seconds
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Elephant and what it imports
@pytest.mark.parametrize("dt", [1.0, 0.1, 0.3])
def test_elephant_bins_one_step_each_and_makes_the_statistics(dt: float) -> None:
    import quantities as pq
    from elephant.conversion import BinnedSpikeTrain
    from elephant.spike_train_correlation import correlation_coefficient
    from elephant.statistics import cv, fanofactor, isi

    spikes = (torch.rand(STEPS, 2, 5, generator=torch.Generator().manual_seed(0)) < 0.4).float()
    block: Any = Recording({"1.output": spikes}).to_neo(dt=dt)
    for sample, segment in enumerate(block.segments):
        trains, train = segment.spiketrains, spikes[:, sample].numpy()
        binned = BinnedSpikeTrain(trains, bin_size=dt * pq.ms, n_bins=STEPS)
        assert np.array_equal(binned.to_array(), train.T)
        gaps = [np.diff(np.flatnonzero(column)) for column in train.T]
        for each, gap in zip(trains, gaps, strict=True):
            intervals = isi(each).rescale(pq.ms).magnitude
            assert np.allclose(intervals, gap * dt)
            assert np.isclose(cv(intervals), gap.std() / gap.mean())
        counts = train.sum(0)
        assert np.isclose(fanofactor(trains), counts.var() / counts.mean())
        assert np.allclose(correlation_coefficient(binned), np.corrcoef(train.T))


def test_what_cannot_be_a_block(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = recorded()
    with pytest.raises(ValueError, match="dt must be positive and finite, got 0"):
        seen.to_neo(dt=0)
    with pytest.raises(TypeError, match="dt must be a number of milliseconds"):
        seen.to_neo(dt="1 ms")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"'x' must be \[T, B, ...\] for Recording.to_neo"):
        Recording({"x": torch.zeros(3, 2)}).to_neo(1.0)
    both = Recording({"a": torch.zeros(3, 2, 1), "b": torch.zeros(4, 2, 1)})
    with pytest.raises(ValueError, match=r"of one number of steps and samples, got \[\(3, 2\)"):
        both.to_neo(1.0)
    with pytest.raises(ValueError, match="of one number of steps and samples, got"):
        Recording({}).to_neo(1.0)
    monkeypatch.setattr(optional, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"needs neo, from the extra 'neuroscience'"):
        seen.to_neo(1.0)
