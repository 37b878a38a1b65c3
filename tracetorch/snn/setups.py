"""``setups``: the arguments of the twelve wrappers, by their grammar, for ``LeakyIntegrator``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tracetorch.snn.parameters import Decay, Threshold, Weight


def setups(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the setups, and the reset, that the arguments of a wrapper make.

    Each value has a ``<name>_rank`` and a ``learn_<name>``; a decay ``<name>_ema``, which the
    membrane of a readout lacks, for it always averages; a threshold a surrogate derivative.
    """
    found = {name: given[name] for name in ("reset", "detach_reset") if name in given}
    for name in [each.removesuffix("_rank") for each in given if each.endswith("_rank")]:
        values = given[name], given[f"{name}_rank"], given[f"learn_{name}"]
        if name in ("alpha", "beta", "gamma"):
            found[f"{name}_setup"] = Decay(*values, given.get(f"{name}_ema", True))
        elif name.endswith("_threshold"):
            both = given.get("surrogate_derivative")
            surrogate = given.get(f"{name[:3]}_surrogate_derivative", both)
            found[f"{name}_setup"] = Threshold(*values, surrogate)
        else:
            found[f"{name}_setup"] = Weight(*values)
    return found
