"""Test the constants of STDP rules."""

import dataclasses

import pytest

from tracetorch.online_learning import PairRule, TripletRule


def test_constants_of_rules() -> None:
    full = PairRule(a_plus=1.0, a_minus=2.0, tau_plus=3.0, tau_minus=4.0, nearest=True).triplet()
    expected = TripletRule(1.0, 0.0, 2.0, 0.0, tau_plus=3.0, tau_minus=4.0, nearest=True)
    assert full == expected
    full = TripletRule.presets["visual cortex"]
    assert dataclasses.astuple(full) == (5e-10, 6.2e-3, 7e-3, 2.3e-4, 16.8, 33.7, 101, 125, False)
    assert TripletRule.presets["visual cortex, minimal"] == TripletRule()


@pytest.mark.parametrize("kind", [PairRule, TripletRule])
@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"tau_plus": 0}, ValueError, "tau_plus must be above 0, in steps, got 0"),
        ({"tau_minus": "20"}, TypeError, "tau_minus must be a number"),
        ({"tau_plus": float("nan")}, ValueError, "tau_plus must be finite, got nan"),
        ({"nearest": 1}, TypeError, "nearest must be True or False"),
    ],
)
def test_wrong_constants(kind, options, error, message):
    with pytest.raises(error, match=message):
        kind(**options)


def test_amplitudes_must_be_finite() -> None:
    with pytest.raises(ValueError, match="a_plus must be finite, got nan"):
        PairRule(a_plus=float("nan"))
