from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import nn

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


@pytest.mark.parametrize(
    ("check", "value", "expected"),
    [
        (check_flag, True, True),
        (check_integer, -3, -3),
        (check_integer, np.int64(4), 4),
        (check_count, 1, 1),
        (check_count, np.int32(7), 7),
        (check_number, -2, -2.0),
        (check_number, np.float32(0.5), 0.5),
        (check_number, Fraction(1, 4), 0.25),
        (check_number, INF, INF),
        (check_finite, -1.5, -1.5),
        (check_nonnegative, 1.5, 1.5),
        (check_share, 0, 0.0),
        (check_share, 1, 1.0),
    ],
)
def test_valid_numbers_come_back_as_python_numbers(check, value, expected):
    number = check("n", value)
    assert number == expected
    assert type(number) is type(expected)


@pytest.mark.parametrize(
    ("check", "value", "error", "message"),
    [
        (check_flag, 1, TypeError, "^n must be True or False, got 1.$"),
        (check_integer, True, TypeError, "^n must be an integer, got True.$"),
        (check_integer, 2.0, TypeError, r"^n must be an integer, got 2\.0.$"),
        (check_count, 0, ValueError, "^n must be at least 1, got 0.$"),
        (check_number, True, TypeError, "^n must be a number, got True.$"),
        (check_number, torch.tensor(1.0), TypeError, r"^n must be a number, got tensor\(1\.\).$"),
        (check_finite, INF, ValueError, "^n must be finite, got inf.$"),
        (check_finite, NAN, ValueError, "^n must be finite, got nan.$"),
        (check_nonnegative, -0.1, ValueError, r"^n must be finite and not negative, got -0\.1.$"),
        (check_nonnegative, INF, ValueError, "^n must be finite and not negative, got inf.$"),
        (check_share, 1.5, ValueError, r"^n must lie in \[0, 1\], got 1\.5.$"),
        (check_share, NAN, ValueError, r"^n must lie in \[0, 1\], got nan.$"),
    ],
)
def test_error_names_the_argument_and_its_value(check, value, error, message):
    with pytest.raises(error, match=message):
        check("n", value)


@pytest.mark.parametrize("check", [check_number, check_finite, check_nonnegative])
def test_error_names_the_unit(check: Callable[..., float]) -> None:
    with pytest.raises(TypeError, match=r"^dt must be a number of seconds, got '1'\.$"):
        check("dt", "1", unit="seconds")


def test_modules_and_suggestions() -> None:
    check_module(nn.Linear(1, 1))
    with pytest.raises(TypeError, match=r"^expected an nn\.Module, got type\.$"):
        check_module(nn.Linear)
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
