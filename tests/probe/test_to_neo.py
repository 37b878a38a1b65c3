"""Recordings as Neo blocks, and the statistics that Elephant makes of them."""

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


def kinds(recording: Recording) -> tuple[list[list[int]], list[str]]:
    """Return the steps of every train of the first sample, and the names of its signals."""
    segment = recording.to_neo(1.0).segments[0]
    trains = [(train.magnitude - 0.5).astype(int).tolist() for train in segment.spiketrains]
    return trains, [signal.name for signal in segment.analogsignals]


@needs_neo
@pytest.mark.parametrize("by", ["layer", "step"])
def test_names_and_not_values_tell_spikes_from_states(by: Any) -> None:
    recurrent = snn.Recurrent(snn.LIF(2), torch.nn.Linear(2, 2, bias=False))
    net = torch.nn.Sequential(recurrent, snn.RLIF(2), snn.Readout(2))
    what = ["input", "mem", "rec", "output", "prev_output"]
    _, seen = tt.probe.record(net, torch.zeros(5, 1, 2), what, by=by)  # all of it is 0
    spikes = [n for n in seen if n.endswith("output") and not n.startswith("2")]
    assert len(spikes) >= 4
    for recording in (seen, seen.detach(), seen.select("*")):
        trains, signals = kinds(recording)
        assert trains == [[]] * 2 * len(spikes)
        assert signals == [name for name in seen if name not in spikes]


@needs_neo
def test_levels_are_counts_and_scaled_spikes_are_one_each() -> None:
    x = torch.tensor([0.0, 4.0, 0.0, 2.0, 1.0])[:, None, None]
    levels = tt.neurons.MultiLevelLIF(1, beta=1e-7)
    _, seen = tt.probe.record(levels, x, "output")
    assert seen["output"].flatten().tolist() == x.flatten().tolist()
    assert kinds(seen) == ([[1, 1, 1, 1, 3, 3, 4]], [])
    assert kinds(Recording({"a.output": -x})) == ([[], [1, 1, 1, 1, 3, 3, 4]], [])
    scaled = snn.LeakyIntegrator(
        1,
        beta_setup={"value": 1e-7},
        pos_threshold_setup={"value": 1.0},
        pos_scale_setup={"value": 2.0},
    )
    _, seen = tt.probe.record(scaled, 1.5 * (x > 0), "output")
    assert seen["output"].max() == 2
    assert kinds(seen) == ([[1, 3, 4]], [])
    graded = tt.neurons.SigmaDelta(1)  # what it sends are numbers
    _, seen = tt.probe.record(graded, x / 7, "output")
    assert kinds(seen) == ([], ["output"])


@needs_neo
def test_gradients_of_spikes_are_signals() -> None:
    layer = snn.LIF(2)
    x = torch.rand(5, 1, 2, requires_grad=True)
    y, seen = tt.probe.record(layer, x, "output", gradients=True)
    y.sum().backward()
    assert kinds(seen.gradients()) == ([], ["output"])  # all of them are 1


@needs_neo
def test_values_tell_only_where_names_do_not() -> None:
    once = torch.tensor([0.0, 0.7, 0.0])[:, None, None]
    assert kinds(Recording({"a.mem": once, "input": once})) == ([], ["a.mem", "input"])
    assert kinds(Recording({"x": once})) == ([[1]], [])
    assert kinds(Recording({"x": once + 0.1, "y": 3 * (once > 0) + (once == 0)})) == (
        [],
        ["x", "y"],
    )
    assert kinds(Recording({"x": once > 0, "output": once > 0})) == ([[1], [1]], [])
    assert kinds(Recording({"output": once.cumsum(0).cumsum(0)})) == ([], ["output"])


@needs_neo
def test_a_kind_that_is_given_decides() -> None:
    recording = Recording(
        {"a.fired": torch.zeros(5, 1, 2), "a.level": torch.ones(5, 1, 1)},
        kinds={"a.fired": "spikes", "a.level": "state"},
    )
    assert kinds(recording) == ([[], []], ["a.level"])
