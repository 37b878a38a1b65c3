from fractions import Fraction

import numpy as np
import pytest
from torch import nn

from tests.refusals import check, refusals
from tracetorch.core.checks import (
    check_count,
    check_finite,
    check_flag,
    check_integer,
    check_module,
    check_nonnegative,
    check_number,
    check_share,
    require,
    suggestion,
)

INF, NAN = float("inf"), float("nan")


def test_valid_numbers_come_back_as_python_numbers() -> None:
    for number, expected in [
        (check_flag("n", True), True),
        (check_integer("n", np.int64(-4)), -4),
        (check_count("n", np.int32(1)), 1),
        (check_number("n", np.float32(0.5)), 0.5),
        (check_number("n", Fraction(1, 4)), 0.25),
        (check_number("n", INF), INF),
        (check_finite("n", -1.5), -1.5),
        (check_nonnegative("n", 0), 0.0),
        (check_share("n", 0), 0.0),
        (check_share("n", 1), 1.0),
    ]:
        assert number == expected
        assert type(number) is type(expected)


@refusals(
    r"""
    check_flag("n", 1) -> TypeError: ^n must be True or False, got 1\.$
    check_integer("n", True) -> TypeError: ^n must be an integer, got True\.$
    check_integer("n", 2.0) -> TypeError: ^n must be an integer, got 2\.0\.$
    check_count("n", 0) -> ValueError: ^n must be at least 1, got 0\.$
    check_number("n", True) -> TypeError: ^n must be a number, got True\.$
    check_number("n", np.ones(1)) -> TypeError: ^n must be a number, got array\(\[1\.\]\)\.$
    check_finite("n", INF) -> ValueError: ^n must be finite, got inf\.$
    check_finite("n", NAN) -> ValueError: ^n must be finite, got nan\.$
    check_finite("dt", "1", unit="seconds") -> TypeError: ^dt must be a number of seconds, got '1'
    check_nonnegative("n", -0.1) -> ValueError: ^n must be finite and not negative, got -0\.1\.$
    check_nonnegative("n", INF) -> ValueError: ^n must be finite and not negative, got inf\.$
    check_nonnegative("n", "1", unit="ms") -> TypeError: ^n must be a number of ms, got '1'
    check_share("n", 1.5) -> ValueError: ^n must lie in \[0, 1\], got 1\.5\.$
    check_share("n", NAN) -> ValueError: ^n must lie in \[0, 1\], got nan\.$
    check_module(nn.Linear) -> TypeError: ^expected an nn\.Module, got type\.$
    """
)
def test_error_names_the_argument_and_its_value(call: str, error: str) -> None:
    check(call, error, globals())


def test_modules_and_suggestions() -> None:
    check_module(nn.Linear(1, 1))
    assert suggestion("mme", ["mem", "spike"]) == " Did you mean 'mem'?"
    assert suggestion("mem", ["spike"]) == suggestion("mem", []) == ""


def test_missing_packages_and_their_extra_are_named() -> None:
    with pytest.raises(
        ModuleNotFoundError,
        match=r"tt\.plot needs absent_a and absent_b, .* Run: pip install absent_a absent_b; "
        r"or, in a clone of traceTorch: pip install -e '\.\[plot\]'",
    ):
        require("torch", "absent_a", "absent_b", extra="plot", by="tt.plot")
    require("torch", "numpy", extra="plot", by="tt.plot")
