"""Hold what the playground shows first: inputs, presets with published numbers, and things to try.

Inputs are in the units of the layer's own input. The numbers of a preset are arguments of the
constructor. AdEx has those of Naud, Marcille, Clopath, Gerstner, "Firing patterns in the adaptive
exponential integrate-and-fire model", Biological Cybernetics 99 (2008), table 1, divided by the
leak conductance, and Izhikevich those of his paper of 2003.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
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
    settings: Mapping[str, Any] = field(default_factory=dict)
    """As in the fragment of the page's address; ``amplitude`` in the layer's own unit."""


# What a neuron of the literature begins with, so that it shows what it is for, and how many steps
# that takes. The twelve layers have one input, so that a letter is compared at the same.
STIMULI: dict[str, Stimulus] = {
    "ALIF": Stimulus("constant", 0.3),
    "AdLIF": Stimulus("pulses", 10.0, 90, 50),
    "SEAdLIF": Stimulus("pulses", 10.0, 90, 50),
    "RefractoryLIF": Stimulus("pulses", 0.8, 60, 40),
    "AlphaLIF": Stimulus("pulses", 0.5, 60, 25),
    "EIF": Stimulus("constant", 15.0),
    "QIF": Stimulus("constant", 15.0),
    "AdEx": Stimulus("constant", 40.0),
    "Izhikevich": Stimulus("constant", 10.0),
    "RF": Stimulus("pulses", 0.3, 20, 2),
    "BRF": Stimulus("pulses", 20.0, 60, 25),
    "TCLIF": Stimulus("constant", 0.5),
    "MultiLevelLIF": Stimulus("pulses", 0.5, 60, 25),
    "SigmaDelta": Stimulus("pulses", 1.2, 60, 25),
    "GLIF": Stimulus("pulses", 1.2, 60, 25),
}
RUNS: dict[str, int] = {"ALIF": 400, "AdEx": 400, "Izhikevich": 300}

# Initial states that follow a parameter of the constructor: its name, and by what it is multiplied.
STARTS: dict[str, dict[str, tuple[str, float]]] = {
    **{name: {"v": ("v_rest", 1.0)} for name in ("EIF", "QIF", "AdEx")},
    "Izhikevich": {"u": ("b", -65.0)},
}

_IZHIKEVICH = {
    "RS": "Regular spiking: it adapts, as most excitatory cells of the cortex do.",
    "IB": "Intrinsically bursting: a burst at first, then single spikes.",
    "CH": "Chattering: one burst after the other.",
    "FS": "Fast spiking: no adaptation, as inhibitory cells.",
    "LTS": "Low-threshold spiking: fast at first, and then slower.",
    "TC": "Thalamo-cortical: tonic when it is depolarised.",
    "RZ": "Resonator: its threshold depends on how fast the input comes.",
}


# rows of the table: C, g, E, a, tau_w, b, V_r and I, in pF, nS, mV, ms and pA
_NAUD: dict[str, tuple[str, tuple[float, ...]]] = {
    "tonic": (
        "Tonic spiking: the same interval again and again.",
        (200, 10, -70, 2, 30, 0, -58, 500),
    ),
    "adapting": ("Adaptation: intervals grow.", (200, 12, -70, 2, 300, 60, -58, 500)),
    "initial burst": (
        "Initial burst: some spikes at once, then single ones.",
        (130, 18, -58, 4, 150, 120, -50, 400),
    ),
    "bursting": (
        "Regular bursting: the reset lies above the threshold, until the adaptation ends it.",
        (200, 10, -58, 2, 120, 100, -46, 210),
    ),
    "accelerating": (
        "Delayed accelerating: a negative adaptation drives it ever faster.",
        (200, 12, -70, -10, 300, 0, -58, 300),
    ),
    "delayed bursting": (
        "Delayed regular bursting: silent at first, then bursts.",
        (100, 10, -65, -10, 90, 30, -47, 110),
    ),
    "transient": (
        "Transient spiking: it fires at the beginning of an input, and never again.",
        (100, 10, -65, 10, 90, 100, -47, 180),
    ),
    "irregular": (
        "Irregular spiking: a constant input, and chaos.",
        (100, 12, -60, -11, 130, 30, -48, 160),
    ),
}


def _naud(name: str) -> Preset:
    """Return a row of the table as arguments of ``AdEx``."""
    note, (c, g, rest, a, tau_w, b, reset, current) = _NAUD[name]
    decays = {"beta": time_constant_to_decay(c / g), "rho": time_constant_to_decay(tau_w)}
    leaks = {"a": a / g, "b": b / g, "v_rest": rest, "v_t": -50.0, "delta": 2.0}
    arguments = decays | leaks | {"v_reset": reset, "v_peak": -40.0}
    return Preset(name, f"{note} (Naud et al. 2008)", arguments, Stimulus("constant", current / g))


PRESETS: dict[str, tuple[Preset, ...]] = {
    "Izhikevich": tuple(
        Preset(name, f"{_IZHIKEVICH[name]} (Izhikevich 2003)", numbers, Stimulus("constant", 10.0))
        for name, numbers in neurons.Izhikevich.presets.items()
    ),
    "AdEx": tuple(map(_naud, _NAUD)),
}

TRIES: tuple[Try, ...] = (
    Try(
        "LIF",
        "the leak",
        "The input is constant, and the membrane stays below its threshold: it leaks as much as "
        "comes in. Lengthen the half-life of beta from 4 to 6 steps, and it fires.",
        {"p.beta": 4, "kind": "constant", "amplitude": 0.12},
    ),
    Try(
        "LIF",
        "the reset",
        "The dots show the membrane before its reset. With reset zero, what it had above the "
        "threshold is lost; choose subtract, and count the spikes.",
        {"o.reset": "zero", "kind": "constant", "amplitude": 0.62},
    ),
    Try(
        "LIF",
        "the surrogate gradient",
        "What the output at step 60 says about the input. A spike has no derivative; the green "
        "bump beside the membrane stands in for it. Take boxcar: away from the threshold nothing "
        "is learned.",
        {"step": 60},
    ),
    Try(
        "LIF",
        "memory",
        "The gradient of the membrane at step 150 reaches back as far as the half-life of beta: at "
        "twice the half-life the bars reach twice as far. Raise the amplitude until it fires, and "
        "detach the reset.",
        {"of": "mem", "step": 150, "amplitude": 0.05},
    ),
    Try(
        "SLIF",
        "a synapse",
        "A short pulse becomes a current that rises at once and fades: the neuron fires after the "
        "input has ended.",
        {"kind": "pulses", "amplitude": 3, "width": 4, "period": 60},
    ),
    Try(
        "BLIF",
        "spikes of both signs",
        "One threshold above and one below: noise makes it fire up and down.",
        {"kind": "noise", "amplitude": 0.6},
    ),
    Try(
        "ALIF",
        "adaptation",
        "The dashed line is where it fires now: every spike raises it, and it falls slowly back. "
        "The intervals grow while the input stays the same.",
    ),
    Try(
        "SEAdLIF",
        "rebound",
        "The second state w is driven by membrane and spikes, and silences them. When the input "
        "ends, it swings back and makes the neuron fire once more.",
    ),
    Try(
        "RF",
        "resonance",
        "Its own period is 20 steps, and so is that of the pulses: each comes when it helps. At a "
        "period of 15 or 30 the same pulses do nothing.",
        {"kind": "pulses", "amplitude": 0.3, "width": 2, "period": 20},
    ),
    Try(
        "Izhikevich",
        "chattering",
        "Bursts: in the plane, the state runs around a loop several times before it passes the "
        "curve where u stays.",
        {"p.c": -50, "p.d": 2},
    ),
    Try(
        "AdEx",
        "a phase plane",
        "v rises to the curve where it stays, and runs along it while w falls. Past the lowest "
        "point of the curve it jumps and is reset, and the spike lifts w.",
        {"kind": "constant", "amplitude": 25},
    ),
    Try(
        "RefractoryLIF",
        "a pause after each spike",
        "However strong the input, the interval is never shorter than the refractory time. Look at "
        "the curve of spikes: it is flat at the end.",
        {"kind": "constant", "amplitude": 2},
    ),
)
