"""A simulator of NIR in NumPy, written from the equations of the NIR paper, not from our code.

Pedersen et al. 2024, Table 1, of a step ``dt`` by forward Euler:

    I        dv = dt R I                                LI      tau dv = dt (v_leak - v + R I)
    IF, LIF  the same, z = 1 where v > v_threshold, and v = v_reset there
    CubaLI*  tau_syn di = dt (-i + w_in S), then LI(F) of i
    Scale    s x        Threshold   x > threshold       Delay   x(t - delay)

What the paper leaves open is as ``from_nir`` documents it: a membrane starts at rest, a synapse
moves before its membrane, and what leads back into the beginning of a cycle brings what spiked (or,
where nothing spikes, what was held) in the step before, none at first, through what is between.
"""

from __future__ import annotations

from typing import Any

import nir
import numpy as np


class Simulator:
    """Runs a flat or nested ``nir.NIRGraph`` on one sample at a time, node by node."""

    def __init__(self, graph: nir.NIRGraph, dt: float, reset: str = "zero") -> None:
        self.nodes: dict[str, Any] = {}
        self.edges: list[tuple[str, str]] = []
        self._add(graph, "")
        self.dt, self.reset = dt, reset
        self.inputs = sorted(n for n in graph.nodes if isinstance(graph.nodes[n], nir.Input))
        self.outputs = sorted(n for n in graph.nodes if isinstance(graph.nodes[n], nir.Output))
        self.driven = self._from([n for n in self.nodes if self._is(n, "Input")], self.edges, True)
        self.late: set[tuple[str, str]] = set()
        self._break(set(self.nodes))
        self.after = {
            n: self._from([b for a, b in self.edges if a == n], self.edges) for n in self.nodes
        }
        self.needed = self._from(self.outputs, [(b, a) for a, b in self.edges])
        self.state: dict[tuple[str, str], Any] = {}
        self.before: dict[str, np.ndarray] = {}
        self.past: dict[str, list[np.ndarray]] = {}

    def _add(self, graph: nir.NIRGraph, prefix: str) -> None:
        ends = {}
        for name, node in graph.nodes.items():
            if isinstance(node, nir.NIRGraph):
                self._add(node, f"{prefix}{name}/")
                ins = next(n for n, v in node.nodes.items() if isinstance(v, nir.Input))
                outs = next(n for n, v in node.nodes.items() if isinstance(v, nir.Output))
                ends[name] = (f"{prefix}{name}/{ins}", f"{prefix}{name}/{outs}")
            else:
                self.nodes[prefix + name] = node
                ends[name] = (prefix + name, prefix + name)
        self.edges += [(ends[a][1], ends[b][0]) for a, b in graph.edges]

    def _is(self, name: str, *kinds: str) -> bool:
        return type(self.nodes[name]).__name__ in kinds

    def _spikes(self, name: str) -> bool:
        return self._is(name, "LIF", "IF", "CubaLIF", "Threshold")

    def _holds(self, name: str) -> bool:
        return self._spikes(name) or self._is(name, "LI", "I", "CubaLI", "Delay")

    def _from(self, roots: Any, edges: Any, around_zero: bool = False) -> set[str]:
        seen = set(roots)
        while new := {b for a, b in edges if a in seen} - seen:
            if around_zero:
                new = {n for n in new if not self._is(n, "Scale") or self.nodes[n].scale.any()}
                if not new:
                    break
            seen |= new
        return seen

    def _break(self, among: set[str]) -> None:
        """Find what leads back in each cycle of some nodes, and in what is left of it."""
        now = [e for e in self.edges if e not in self.late]
        inner = [(a, b) for a, b in now if a in among and b in among]
        after = {n: self._from([b for a, b in inner if a == n], inner) for n in among}
        for name in sorted(among):
            cycle = {other for other in after[name] if name in after[other]}
            if name != min(cycle, default=""):
                continue
            entering = [(a, b) for a, b in now if b in cycle and a not in cycle]
            begins = {b for a, b in entering if a in self.driven} or {b for _, b in entering}
            for stops in (self._spikes, self._holds):
                passing = [(a, b) for a, b in inner if a in cycle and not stops(a)]
                first = {name for name in self._from(begins, passing) if not stops(name)}
                back = {(a, b) for a, b in inner if b in begins and a in cycle - first}
                if back:
                    self.late |= back
                    self._break(cycle)
                    break

    def step(self, *given: np.ndarray) -> dict[str, np.ndarray]:
        if not self.before:  # shapes alone, of what was silent
            state, past = dict(self.state), {name: list(each) for name, each in self.past.items()}
            now = [edge for edge in self.edges if edge not in self.late]
            shapes = self._values(given, now)
            self.before = {name: np.zeros_like(each, float) for name, each in shapes.items()}
            self.state, self.past = state, past
        self.before = self._values(given, self.edges)
        return {name: self.before[name] for name in self.outputs}

    def _values(self, given: Any, edges: list[tuple[str, str]]) -> dict[str, np.ndarray]:
        values = dict(zip(self.inputs, given, strict=True))

        def value(name: str, before: bool) -> Any:
            if before and self._holds(name):
                return self.before[name]
            if before or name not in values:
                sources = sorted(a for a, b in edges if b == name)
                # what comes from outside of a cycle is a constant
                same = {a for a in self.after[name] if before and name in self.after[a]}
                x = sum(value(a, a in same or (a, name) in self.late) for a in sources)
                made = self._compute(name, self.nodes[name], x)
                if before:
                    return made
                values[name] = made
            return values[name]

        for name in self.needed:
            value(name, False)
        return values

    def run(self, x: np.ndarray) -> np.ndarray:
        """``x`` [T, ...] through a graph with one Input and one Output."""
        return np.stack([next(iter(self.step(step).values())) for step in x])

    def _compute(self, name: str, node: Any, x: np.ndarray) -> np.ndarray:
        match type(node).__name__:
            case "Input" | "Output":
                return x
            case "Affine":
                return node.weight @ x + node.bias
            case "Linear":
                return node.weight @ x
            case "Scale":
                return node.scale * x
            case "Threshold":
                return (x > node.threshold).astype(float)
            case "Flatten":
                end = node.end_dim % x.ndim
                shape = (*x.shape[: node.start_dim], -1, *x.shape[end + 1 :])
                return x.reshape(shape)
            case "Conv1d" | "Conv2d":
                return _convolved(node, x)
            case "SumPool2d" | "AvgPool2d":
                return _pooled(node, x)
            case "Delay":
                return self._delayed(name, node, x)
        return self._neuron(name, node, x)

    def _delayed(self, name: str, node: Any, x: np.ndarray) -> np.ndarray:
        past = self.past.setdefault(name, [])
        past.append(x)
        y = np.zeros_like(x)
        for i in np.ndindex(x.shape):
            steps = round(float(np.broadcast_to(node.delay, x.shape)[i]) / self.dt)
            if steps < len(past):
                y[i] = past[-1 - steps][i]
        return y

    def _neuron(self, name: str, node: Any, x: np.ndarray) -> np.ndarray:
        kind = type(node).__name__
        leak = getattr(node, "v_leak", None)
        if kind.startswith("Cuba"):
            i = self.state.get((name, "i"), np.zeros(x.shape))
            i = i + self.dt / node.tau_syn * (-i + node.w_in * x)
            self.state[name, "i"] = x = i
        tau = getattr(node, "tau_mem", getattr(node, "tau", None))
        rest = getattr(node, "v_reset", 0.0) if leak is None else leak
        v = self.state.get((name, "v"), np.zeros(x.shape) + rest)
        v = v + self.dt * node.r * x if tau is None else v + self.dt / tau * (leak - v + node.r * x)
        if not kind.endswith("F"):
            self.state[name, "v"] = v
            return v
        z = v > node.v_threshold
        low = v - (node.v_threshold - node.v_reset) if self.reset == "subtract" else node.v_reset
        self.state[name, "v"] = np.where(z, low, v)
        return z.astype(float)


def _convolved(node: Any, x: np.ndarray) -> np.ndarray:
    w = node.weight
    n = w.ndim - 2
    stride, dilation = (np.broadcast_to(v, n) for v in (node.stride, node.dilation))
    span = [d * (k - 1) + 1 for d, k in zip(dilation, w.shape[2:], strict=True)]
    if node.padding == "same":
        pads = [((s - 1) // 2, s - 1 - (s - 1) // 2) for s in span]
    elif node.padding == "valid":
        pads = [(0, 0)] * n
    else:
        pads = [(p, p) for p in np.broadcast_to(node.padding, n)]
    x = np.pad(x, [(0, 0), *pads])
    size = [(m - s) // t + 1 for m, s, t in zip(x.shape[1:], span, stride, strict=True)]
    out = np.zeros((w.shape[0], *size))
    group = w.shape[0] // int(node.groups)
    for channel in range(w.shape[0]):
        first = channel // group * w.shape[1]
        for at in np.ndindex(*size):
            window = tuple(
                slice(a * t, a * t + s, d)
                for a, t, s, d in zip(at, stride, span, dilation, strict=True)
            )
            source = (slice(first, first + w.shape[1]), *window)
            target = (channel, *at)
            out[target] = (x[source] * w[channel]).sum() + node.bias[channel]
    return out


def _pooled(node: Any, x: np.ndarray) -> np.ndarray:
    (kh, kw), (sh, sw), (ph, pw) = (
        np.broadcast_to(v, 2) for v in (node.kernel_size, node.stride, node.padding)
    )
    x = np.pad(x, [(0, 0), (ph, ph), (pw, pw)])
    size = ((x.shape[1] - kh) // sh + 1, (x.shape[2] - kw) // sw + 1)
    out = np.zeros((x.shape[0], *size))
    for a, b in np.ndindex(*size):
        out[:, a, b] = x[:, a * sh : a * sh + kh, b * sw : b * sw + kw].sum((1, 2))
    return out / (kh * kw) if type(node).__name__ == "AvgPool2d" else out
