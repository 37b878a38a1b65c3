"""Count the calls of small networks."""

from __future__ import annotations

from benchmarks.fixed_cost import calls, main


def test_a_table_is_printed(capsys):
    assert main(["--rounds", "1"]) == 0
    out = capsys.readouterr().out
    assert "| 4 x (Linear, LIF) | train |" in out
    assert "| LIF | forward |" in out


def test_calls_are_counted():
    assert calls(lambda: abs(-1)) == (1, 1)
