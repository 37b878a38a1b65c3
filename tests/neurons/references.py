"""Scalar references of the neurons, written from the equations of their papers, in plain Python.

Each takes the inputs of one neuron over time, its parameters and options by name, and returns its
outputs and its last states. Units are the papers' own where those differ from the layer's.
"""

from __future__ import annotations

import cmath
import math
from collections.abc import Callable, Iterable
from functools import cache, partial
from typing import Any, TypeAlias

Result: TypeAlias = tuple[list[float], dict[str, float]]


def heaviside(u: float) -> float:
    return 1.0 if u > 0 else 0.0


def alif(x: Iterable[float], p: Any) -> Result:
    """Bellec et al. 2020, equations 6, 7 and 8, with the reset in the step that fires."""
    v = a = 0.0
    z = []
    for current in x:
        v = p["beta"] * v + current
        threshold = p["pos_threshold"] + p["strength"] * a
        z.append(heaviside(v - threshold))
        v -= z[-1] * p["pos_threshold"]
        a = p["rho"] * a + z[-1]
    return z, {"mem": v, "adaptation": a}


def adlif(x: Iterable[float], p: Any, symplectic: bool = False) -> Result:
    """Baronig et al. 2025: Euler's forward method, or the symplectic one."""
    u = w = s = 0.0
    spikes = []
    for current in x:
        before = u, s
        u = p["beta"] * u + (1 - p["beta"]) * (current - w)
        s = heaviside(u - p["pos_threshold"])
        if s:
            u = 0.0
        seen_u, seen_s = (u, s) if symplectic else before
        drive = p["q"] * p["a"] * seen_u + p["q"] * p["b"] * seen_s
        w = p["rho"] * w + (1 - p["rho"]) * drive
        spikes.append(s)
    states = {"mem": u, "w": w}
    return spikes, states if symplectic else {**states, "prev_output": s}


def refractory(x: Iterable[float], p: Any) -> Result:
    """Silent for some steps after a spike; the threshold decays by the time since each spike."""
    v, spikes = 0.0, []
    fired_at: list[int] = []
    for t, current in enumerate(x):
        raised = sum(p["strength"] * p["rho"] ** (t - s - 1) for s in fired_at)
        silent = bool(fired_at) and t - fired_at[-1] <= p["period"]
        v = 0.0 if silent else p["beta"] * v + current
        spikes.append(0.0 if silent else heaviside(v - p["pos_threshold"] - raised))
        if spikes[-1]:
            fired_at.append(t)
            v = 0.0
    end = len(spikes)
    left = max(0, fired_at[-1] + 1 + p["period"] - end) if fired_at else 0
    raised = sum(p["strength"] * p["rho"] ** (end - s - 1) for s in fired_at)
    return spikes, {"mem": v, "raised": raised, "countdown": float(left)}


def alpha_synapse(x: Iterable[float], p: Any) -> Result:
    """Each input spike adds its double exponential, or alpha function, to the current."""
    v, inputs, spikes = 0.0, [], []
    first, second = p["alpha_rise"], p["alpha"]

    @cache
    def kernel(n: int) -> float:
        powers = sum(first**k * second ** (n - k) for k in range(n + 1))
        return (1 - first) * (1 - second) * powers

    for current in x:
        inputs.append(current)
        synapse = sum(kernel(n) * given for n, given in enumerate(reversed(inputs)))
        v = p["beta"] * v + synapse
        spikes.append(heaviside(v - p["pos_threshold"]))
        v -= spikes[-1] * p["pos_threshold"]
    rise = sum((1 - first) * first**n * given for n, given in enumerate(reversed(inputs)))
    return spikes, {"mem": v, "syn": synapse, "rise": rise}


def eif(x: Iterable[float], p: Any) -> Result:
    """Fourcaud-Trocme et al. 2003: tau dV/dt = -(V - V_L) + D exp((V - V_T) / D) + R I."""
    v, spikes = p["initial_v"], []
    for current in x:
        grown = p["delta"] * math.exp((v - p["v_t"]) / p["delta"])
        target = p["v_rest"] + grown + current
        v = target + (v - target) * p["beta"]  # exact for a constant target
        spikes.append(heaviside(v - p["v_peak"]))
        v = p["v_reset"] if spikes[-1] else v
    return spikes, {"v": v}


def qif(x: Iterable[float], p: Any) -> Result:
    """Latham et al. 2000: tau dV/dt = (V - V_r)(V - V_t) / (V_t - V_r) + R I, Euler's method."""
    v, spikes = p["initial_v"], []
    for current in x:
        gap = p["v_critical"] - p["v_rest"]
        v += (1 - p["beta"]) * (-(v - p["v_rest"]) * (p["v_critical"] - v) / gap + current)
        spikes.append(heaviside(v - p["v_peak"]))
        v = p["v_reset"] if spikes[-1] else v
    return spikes, {"v": v}


def adex(x: Iterable[float], p: Any) -> Result:
    """Brette and Gerstner 2005, in pF, nS, pA and mV; leaks exact, the rest by Euler."""
    leak = 30.0
    capacitance = -leak / math.log(p["beta"])  # for 1 ms
    a, b = leak * p["a"], leak * p["b"]
    v, w, spikes = p["initial_v"], 0.0, []
    for current in x:
        grown = leak * p["delta"] * math.exp(min(500.0, (v - p["v_t"]) / p["delta"]))
        target_v = p["v_rest"] + (grown - w + leak * current) / leak
        target_w = a * (v - p["v_rest"])
        v = target_v + (v - target_v) * math.exp(-leak / capacitance)
        w = target_w + (w - target_w) * p["rho"]
        spikes.append(heaviside(v - p["v_peak"]))
        if spikes[-1]:
            v, w = p["v_reset"], w + b
    return spikes, {"v": v, "w": w / leak}


def izhikevich(x: Iterable[float], p: Any) -> Result:
    """Izhikevich 2003, the program of its figure: two half steps of v, then one of u."""
    v, u, spikes = -65.0, p["initial_u"], []
    for current in x:
        for _ in range(2):
            v += 0.5 * (0.04 * v**2 + 5 * v + 140 - u + current)
        u += p["a"] * (p["b"] * v - u)
        spikes.append(1.0 if v >= 30 else 0.0)
        if spikes[-1]:
            v, u = p["c"], u + p["d"]
    return spikes, {"v": v, "u": u}


def resonate(x: Iterable[float], p: Any) -> Result:
    """Izhikevich 2001: z' = (b + i w) z + x, fires by its imaginary part, reset to i."""
    z, spikes = 0j, []
    for current in x:
        z = z * p["beta"] * cmath.exp(1j * p["omega"]) + current
        spikes.append(heaviside(z.imag - p["pos_threshold"]))
        z = 1j * p["pos_threshold"] if spikes[-1] else z
    return spikes, {"real": z.real, "imag": z.imag}


def balanced_resonate(x: Iterable[float], p: Any) -> Result:
    """Higuchi et al. 2024, equations 11 to 15, in complex numbers."""
    z, q, spikes = 0j, 0.0, []
    for current in x:
        boundary = (-1 + math.sqrt(1 - (p["dt"] * p["omega"]) ** 2)) / p["dt"]
        b = boundary - abs(p["b_offset"]) - q
        z = z + p["dt"] * ((b + 1j * p["omega"]) * z + current)
        spikes.append(heaviside(z.real - (p["pos_threshold"] + q)))
        q = p["gamma"] * q + spikes[-1]
    return spikes, {"real": z.real, "imag": z.imag, "q": q}


def two_compartment(x: Iterable[float], p: Any) -> Result:
    """Zhang et al. 2024: the reset of a spike is taken off at the next step, undecayed."""
    dendrite = soma = spike = 0.0
    spikes = []
    for current in x:
        dendrite, soma = dendrite - p["gamma"] * spike, soma - p["pos_threshold"] * spike
        dendrite = dendrite - p["beta_1"] * soma + current
        soma = soma + p["beta_2"] * dendrite
        spike = heaviside(soma - p["pos_threshold"])
        spikes.append(spike)
    dendrite, soma = dendrite - p["gamma"] * spike, soma - p["pos_threshold"] * spike
    return spikes, {"dendrite": dendrite, "soma": soma}


def multi_level(x: Iterable[float], p: Any) -> Result:
    """Luo et al. 2024: clip(round(u), 0, D)."""
    u, spikes = 0.0, []
    for current in x:
        u = p["beta"] * u + current
        spikes.append(float(min(max(round(u / p["pos_threshold"]), 0), p["levels"])))
        u -= spikes[-1] * p["pos_threshold"]
    return spikes, {"mem": u}


def sigma_delta(x: Iterable[float], p: Any) -> Result:
    """Sum, rectify, and send the change where it is large."""
    total, sent, outputs = 0.0, 0.0, []
    for current in x:
        total += current
        change = max(total, 0.0) - sent
        outputs.append(change if abs(change) > p["pos_threshold"] else 0.0)
        sent += outputs[-1]
    return outputs, {"sigma": total, "sent": sent}


def gated(x: Iterable[float], p: Any) -> Result:
    """Yao et al. 2022: gates between two kinds of leak, integration and reset."""
    u = s = 0.0
    spikes = []
    alpha, beta, gamma = p["leak_gate"], p["input_gate"], p["reset_gate"]
    for current in x:
        leak = (1 - alpha * (1 - p["beta"])) * u - (1 - alpha) * p["leak"]
        charge = (1 - beta * (1 - p["conductance"])) * current
        hard = gamma * (1 - alpha * (1 - p["beta"])) * u * s
        soft = (1 - gamma) * p["reset_size"] * s
        u = leak + charge - hard - soft
        s = heaviside(u - p["pos_threshold"])
        spikes.append(s)
    return spikes, {"mem": u, "prev_output": s}


_NAMES = "ALIF AdLIF SEAdLIF RefractoryLIF AlphaLIF EIF QIF AdEx Izhikevich RF BRF TCLIF"
_FUNCTIONS: tuple[Callable[..., Result], ...] = (
    *(alif, adlif, partial(adlif, symplectic=True), refractory, alpha_synapse, eif, qif, adex),
    *(izhikevich, resonate, balanced_resonate, two_compartment, multi_level, sigma_delta, gated),
)
REFERENCES = dict(zip(f"{_NAMES} MultiLevelLIF SigmaDelta GLIF".split(), _FUNCTIONS, strict=True))
