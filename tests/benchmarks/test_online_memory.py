"""Measure the memory of learning online, on few steps."""

from __future__ import annotations

from benchmarks.online_memory import main


def test_a_line_is_printed_at_each_power_of_ten(capsys):
    main(["--steps", "1000"])
    assert capsys.readouterr().out.startswith("    1,000 steps")
