"""Test the constants of STDP rules."""

import dataclasses

from tracetorch.online_learning import PairRule, TripletRule


def test_constants_of_rules() -> None:
    full = PairRule(a_plus=1.0, a_minus=2.0, tau_plus=3.0, tau_minus=4.0, nearest=True).triplet()
    expected = TripletRule(1.0, 0.0, 2.0, 0.0, tau_plus=3.0, tau_minus=4.0, nearest=True)
    assert full == expected
    full = TripletRule.presets["visual cortex"]
    assert dataclasses.astuple(full) == (5e-10, 6.2e-3, 7e-3, 2.3e-4, 16.8, 33.7, 101, 125, False)
    assert TripletRule.presets["visual cortex, minimal"] == TripletRule()
