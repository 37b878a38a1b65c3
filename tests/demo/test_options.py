from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.refusals import refusals
from tracetorch.demo.options import parse
from tracetorch.demo.training import Settings


def test_every_option_is_parsed_and_defaults_are_those_of_the_settings() -> None:
    numbers = "--epochs 2 --batch-size 3 --steps 4 --lr 5e-1 --seeds 6 7 --threads 8"
    options = parse(f"{numbers} --data a --out b/c --page".split())
    expected = {"epochs": 2, "batch_size": 3, "steps": 4, "lr": 0.5, "seeds": [6, 7], "threads": 8}
    expected |= {"data": Path("a"), "out": Path("b/c"), "page": True}
    assert vars(options) == expected
    options = parse([])
    assert options.epochs is None  # by the number of digits
    given = Settings(Settings.epochs, options.batch_size, options.steps, options.lr)
    assert given == Settings()
    assert (options.seeds, options.data, options.out) == ([0], None, Path("runs/demo"))
    assert options.threads >= 1


@refusals(
    rf"""
    --epochs 0 -> argument --epochs: must be a whole number, at least 1, got '0'
    --steps 2.5 -> argument --steps: must be a whole number, at least 1, got '2.5'
    --batch-size ten -> argument --batch-size: must be a whole number
    --threads -1 -> argument --threads: must be a whole number, at least 1, got '-1'
    --lr 0 -> argument --lr: must be a positive number, got '0'
    --lr nan -> argument --lr: must be a positive number, got 'nan'
    --lr inf -> argument --lr: must be a positive number, got 'inf'
    --lr fast -> argument --lr: must be a positive number, got 'fast'
    --seeds -1 -> argument --seeds: must be a whole number from 0 to
    --seeds {2**63} -> argument --seeds: must be a whole number from 0 to
    --seeds 1 1 -> argument --seeds: must differ from each other, got \[1, 1\]
    --seeds -> argument --seeds: expected at least one argument
    --seed 1 --epoch -> argument --epochs: expected one argument
    --gpu -> unrecognized arguments: --gpu
    """
)
def test_invalid_option_is_named_in_the_error(call, error, capsys) -> None:
    with pytest.raises(SystemExit, match=r"^2$"):
        parse(call.split())
    complaint = capsys.readouterr().err
    assert re.search(f"python -m tracetorch.demo: error: {error}", complaint)


def test_help_has_the_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match=r"^0$"):
        parse(["--help"])
    defaults = re.findall(r"\(default: ([^)]*)\)", " ".join(capsys.readouterr().out.split()))
    assert [each.split(",")[0] for each in defaults[:4]] == ["12", "50", "5", "0.01"]
    assert len(defaults) == 8
