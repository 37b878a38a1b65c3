"""Read what the playground shows first: inputs, presets with published numbers, and things to try.

They are in ``playground/story.json``, beside the page. Inputs are in the units of the layer's own
input. The numbers of a preset are arguments of the constructor. AdEx has those of Naud, Marcille,
Clopath, Gerstner, "Firing patterns in the adaptive exponential integrate-and-fire model",
Biological Cybernetics 99 (2008), table 1: C, g, E, a, tau_w, b, V_r and I, in pF, nS, mV, ms and
pA, which are divided by the leak conductance; Izhikevich has those of his paper of 2003.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tracetorch import neurons
from tracetorch.functional import time_constant_to_decay

STEPS = 200
"""Steps of a run, where a neuron needs no other number."""


@dataclass(frozen=True)
class Stimulus:
    """An input over time."""

    kind: str = "pulses"  # or "constant", "noise"
    amplitude: float = 0.3  # in the unit of the layer's input
    period: int = 60  # steps from one pulse to the next
    width: int = 25  # steps that a pulse lasts


@dataclass(frozen=True)
class Preset:
    """A neuron with a name."""

    name: str  # on its button
    note: str  # what it does, and whose numbers these are
    arguments: Mapping[str, float]  # of the constructor
    stimulus: Stimulus  # at which it shows it


@dataclass(frozen=True)
class Try:
    """Settings that show something, as a link."""

    neuron: str  # name of the class
    name: str  # of the link
    text: str  # what there is to see
    # as in the address; ``amplitude`` in the layer's own unit, ``neuron2`` the name of a class
    settings: Mapping[str, Any]


def _naud(name: str, note: str, row: Sequence[float]) -> Preset:
    """Return a row of the table of Naud et al. as arguments of ``AdEx``."""
    c, g, rest, a, tau_w, b, reset, current = row
    decays = {"beta": time_constant_to_decay(c / g), "rho": time_constant_to_decay(tau_w)}
    leaks = {"a": a / g, "b": b / g, "v_rest": rest, "v_t": -50.0, "delta": 2.0}
    arguments = decays | leaks | {"v_reset": reset, "v_peak": -40.0}
    return Preset(name, f"{note} (Naud et al. 2008)", arguments, Stimulus("constant", current / g))


_STORY = json.loads((Path(__file__).parent / "playground" / "story.json").read_text("utf-8"))
# What a neuron of the literature begins with, so that it shows what it is for, and how many steps
# that takes. The twelve layers have one input, so that a letter is compared at the same.
STIMULI = {name: Stimulus(*given) for name, given in _STORY["inputs"].items()}
RUNS: dict[str, int] = _STORY["steps"]
# Initial states that follow a parameter of the constructor: its name, and by what it is multiplied.
STARTS: dict[str, dict[str, tuple[str, float]]] = _STORY["starts"]
PRESETS: dict[str, tuple[Preset, ...]] = {
    "Izhikevich": tuple(
        Preset(
            name,
            f"{_STORY['izhikevich'][name]} (Izhikevich 2003)",
            numbers,
            Stimulus("constant", 10.0),
        )
        for name, numbers in neurons.Izhikevich.presets.items()
    ),
    "AdEx": tuple(_naud(name, note, row) for name, (note, row) in _STORY["adex"].items()),
}
TRIES = tuple(Try(*each) for each in _STORY["tries"])
PAIRS = tuple(Try(*each) for each in _STORY["pairs"])  # two neurons, and synapses between them
