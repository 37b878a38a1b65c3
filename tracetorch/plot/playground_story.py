"""Read what the playground shows first: inputs, presets with published numbers, and things to try.

AdEx has the numbers of Naud, Marcille, Clopath, Gerstner, "Firing patterns in the adaptive
exponential integrate-and-fire model", Biological Cybernetics 99 (2008), table 1: C, g, E, a, tau_w,
b, V_r and I, in pF, nS, mV, ms and pA, divided by the leak conductance; Izhikevich those of 2003.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import urlencode

from tracetorch import neurons, snn
from tracetorch.functional import decay_to_halflife, time_constant_to_decay
from tracetorch.snn.neuron import Neuron
from tracetorch.snn.parameters import is_decay

STEPS = 200
"""Steps of a run, where a neuron needs no other number."""


@dataclass(frozen=True)
class Stimulus:
    """An input over time, in the unit of the layer's own."""

    kind: str = "pulses"  # or "constant", "noise"
    amplitude: float = 0.3
    period: int = 60  # steps from one pulse to the next
    width: int = 25  # steps that a pulse lasts


@dataclass(frozen=True)
class Preset:
    """A neuron with a name."""

    name: str  # on its button
    note: str  # what it does, and whose numbers these are
    arguments: Mapping[str, float]  # of the constructor
    stimulus: Stimulus  # at which it shows it


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
_IZHIKEVICH: dict[str, str] = _STORY["izhikevich"]
PRESETS: dict[str, tuple[Preset, ...]] = {
    "Izhikevich": tuple(
        Preset(name, f"{_IZHIKEVICH[name]} (Izhikevich 2003)", numbers, Stimulus("constant", 10.0))
        for name, numbers in neurons.Izhikevich.presets.items()
    ),
    "AdEx": tuple(_naud(name, note, row) for name, (note, row) in _STORY["adex"].items()),
}
# Links that show something: class of the neuron, name, what there is to see, and settings as in the
# address; ``amplitude`` in the layer's own unit, ``neuron2`` the name of a class.
Try: TypeAlias = "tuple[str, str, str, dict[str, Any]]"
TRIES: list[Try] = _STORY["tries"]
PAIRS: list[Try] = _STORY["pairs"]  # two neurons, and synapses between them
# The twelve layers, by the letters that switch their parts on.
FAMILY = (
    *(snn.LIF, snn.BLIF, snn.SLIF, snn.RLIF, snn.BSLIF, snn.BRLIF, snn.SRLIF, snn.BSRLIF),
    *(snn.Readout, snn.SReadout, snn.RReadout, snn.SRReadout),
)
GROUPS = ("the twelve layers, tt.snn", "of the literature, tt.neurons", "others")


def described_story(layer: Neuron, unit: float) -> dict[str, Any]:
    """Return the group of a layer, what it begins with, and its presets."""
    kind = type(layer)
    named = kind is getattr(neurons, kind.__name__, None) or kind in FAMILY
    name = kind.__name__ if named else ""
    starts = STARTS.get(name, {})
    default = Stimulus() if kind in FAMILY else Stimulus(amplitude=0.5 * unit)

    def stimulus(given: Stimulus) -> dict[str, Any]:
        amplitude = float(f"{given.amplitude / unit:.6g}")
        return {**vars(given), "seed": 1, "drawn": None, "amplitude": amplitude}

    def shown(argument: str, value: float) -> float:
        decays = is_decay(layer.constraints[argument])
        return float(f"{decay_to_halflife(value) if decays else value:.5g}")

    return {
        "group": GROUPS[0] if kind in FAMILY else GROUPS[1] if named else GROUPS[2],
        "steps": RUNS.get(name, STEPS),
        "input": stimulus(STIMULI.get(name, default)),
        "follows": [starts.get(state) for state in layer.active_states],
        "presets": [
            {
                "name": preset.name,
                "note": preset.note,
                "values": {name: shown(name, value) for name, value in preset.arguments.items()},
                "input": stimulus(preset.stimulus),
            }
            for preset in PRESETS.get(name, ())
        ],
    }


def described_tries(
    tries: Sequence[Try], layers: Mapping[str, Neuron], units: Mapping[str, float]
) -> list[Any]:
    """Return what there is to try as links: neurons and units of their inputs are by name."""
    labels = {type(layer): label for label, layer in reversed(list(layers.items()))}
    found: list[Any] = []
    for neuron, name, text, settings in tries:
        named = {"neuron": neuron}
        if "neuron2" in settings:
            named["neuron2"] = settings["neuron2"]
        kinds = {key: getattr(snn, n, None) or getattr(neurons, n) for key, n in named.items()}
        if not labels.keys() >= set(kinds.values()):
            continue
        pairs = {**settings, **{key: labels[kind] for key, kind in kinds.items()}}
        for key, whose in (("amplitude", "neuron"), ("2.amplitude", "neuron2")):
            if key in pairs:
                pairs[key] = float(f"{pairs[key] / units[pairs[whose]]:.6g}")
        # the neuron stands first
        fragment = urlencode({"neuron": pairs.pop("neuron"), **pairs})
        found.append({"name": name, "text": text, "fragment": fragment})
    return found
