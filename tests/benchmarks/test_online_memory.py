"""Measure the memory of learning online, on few steps."""

from __future__ import annotations

import pytest

from benchmarks.online_memory import main, measure


def test_a_line_is_printed_at_each_power_of_ten(capsys):
    main(["--steps", "1000"])
    assert capsys.readouterr().out.startswith("    1,000 steps")


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_steps():
    (_, early), (steps, late) = measure(3_000)
    assert steps == 3_000
    # the graphs of two thousand steps take 34 MB, where they are kept
    assert late - early < 1_000_000
