"""A simulator of NIR in NumPy, written from the equations of the NIR paper, not from our code.

Pedersen et al. 2024, Table 1, of a step ``dt`` by forward Euler:

    I        dv = dt R I                                LI      tau dv = dt (v_leak - v + R I)
    IF, LIF  the same, z = 1 where v > v_threshold, and v = v_reset there
    CubaLI*  tau_syn di = dt (-i + w_in S), then LI(F) of i
    Scale    s x        Threshold   x > threshold       Delay   x(t - delay)

What the paper leaves open is as ``from_nir`` documents it: a membrane starts at rest, a synapse
moves before its membrane, an edge that closes a cycle is one step late and zero at first.
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
        self.late: set[tuple[str, str]] = set()
        seen: set[str] = set()
        for name in sorted(self.inputs, key=self._first_edge):
            self._walk(name, [], seen)
        self.state: dict[tuple[str, str], Any] = {}
        self.before: dict[str, np.ndarray] = {}
        self.past: dict[str, list[np.ndarray]] = {}

    def _first_edge(self, name: str) -> int:
        return next((i for i, e in enumerate(self.edges) if e[0] == name), len(self.edges))

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

    def _walk(self, name: str, above: list[str], seen: set[str]) -> None:
        if name in seen:
            return
        seen.add(name)
        for start, end in self.edges:
            if start == name:
                if end in [*above, name]:
                    self.late.add((start, end))
                else:
                    self._walk(end, [*above, name], seen)

    def step(self, *given: np.ndarray) -> dict[str, np.ndarray]:
        values = dict(zip(self.inputs, given, strict=True))
        now = [e for e in self.edges if e not in self.late]
        while len(values) < len(self.nodes):
            for name, node in self.nodes.items():
                sources = [a for a, b in now if b == name]
                if name in values or not all(a in values for a in sources):
                    continue
                x = sum(values[a] for a in sources)
                for a, b in self.late:
                    if b == name and a in self.before:
                        x = x + self.before[a]
                values[name] = self._compute(name, node, x)
        self.before = values
        return {name: values[name] for name in self.outputs}

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
