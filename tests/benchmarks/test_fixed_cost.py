"""Count the calls of small networks."""

import pytest

from benchmarks.fixed_cost import calls, main, package_calls, single_calls


def test_calls_are_counted_and_printed(capsys):
    assert main(["--rounds", "1"]) == 0
    out = capsys.readouterr().out
    assert "| 4 x (Linear, LIF) | train |" in out
    assert "| LIF | forward |" in out
    assert calls(lambda: abs(-1)) == (1, 1)


# of the package's own functions, and changes of file: a hop more is to be seen
MOST = {
    "unroll(Linear-LIF-Linear-Readout)": (62, 50),
    "unroll(LIF)": (30, 24),
    "layer(x) with a graph": (19, 11),
    "layer(x) without a graph": (11, 6),
}


@pytest.mark.parametrize("name", MOST)
def test_warm_calls_stay_few(name):
    counted = package_calls(single_calls()[name])
    assert 0 < counted.calls <= MOST[name][0]
    assert counted.changes <= MOST[name][1]
