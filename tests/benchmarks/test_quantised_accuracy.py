"""Print the table of what quantisation costs, for a short time."""

from __future__ import annotations

import pytest

from benchmarks.quantised_accuracy import TARGETS, main


@pytest.mark.slow
def test_a_line_is_printed_for_each_target(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--quick", "--tasks", "vowels", "--seeds", "0"])
    lines = capsys.readouterr().out.splitlines()
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[2:7]]
    assert [row[1] for row in cells] == ["float", *TARGETS]
    sizes = [int(row[5].replace(",", "")) for row in cells]
    assert all(3 * size < 2 * sizes[0] for size in sizes[1:])
    assert all(float(row[3].split(" ")[0]) > 30 for row in cells)  # of 9 classes
