"""Spyx: ``spyx.nn.LIF`` through ``spyx.nn.run``, jitted, gradients by ``nnx.grad``."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from importlib.metadata import version as installed
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import spyx.nn as snn
from flax import nnx

from benchmarks.cases import CONV_DECAY, DECAY, NETWORKS, THRESHOLD, Case


def _neurons(shape: tuple[int, ...], learnable: tuple[int, ...], decay: float) -> snn.LIF:
    layer = snn.LIF(shape, threshold=THRESHOLD, rngs=nnx.Rngs(0))
    layer.beta = nnx.Param(jnp.full(learnable, decay))
    return layer


def _pool(x: jax.Array) -> jax.Array:
    return nnx.max_pool(x, (2, 2), (2, 2))


def _model(case: Case) -> nnx.Module:
    rngs = nnx.Rngs(0)
    if case.kind == "conv":
        return snn.Sequential(
            nnx.Conv(1, 16, (5, 5), padding="VALID", rngs=rngs),
            _pool,
            _neurons((12, 12, 16), (16,), CONV_DECAY),
            nnx.Conv(16, 64, (5, 5), padding="VALID", rngs=rngs),
            _pool,
            _neurons((4, 4, 64), (64,), CONV_DECAY),
            snn.Flatten(),
            nnx.Linear(1024, 10, rngs=rngs),
        )
    neurons = _neurons((case.N,), (case.N,), DECAY)
    if case.kind == "linear":
        return snn.Sequential(_linear(rngs, case.N, case.N, bias=0.3), neurons)
    if case.kind == "events":
        return snn.Sequential(_linear(rngs, case.N, case.N, 0.7 * case.density**-0.5), neurons)
    if case.kind == "stream network":
        sizes = itertools.pairwise((case.N, 128, 128, 128))
        pairs = [(_linear(rngs, m, n, 3.5), _neurons((n,), (n,), DECAY)) for m, n in sizes]
        return snn.Sequential(*itertools.chain(*pairs))
    if case.kind in ("shd", "static"):
        gains, outputs = ((7.0, 3.5), 20) if case.kind == "shd" else ((1.7, 1.7), 10)
        return snn.Sequential(
            _linear(rngs, case.N, 256, gains[0]),
            _neurons((256,), (256,), DECAY),
            _linear(rngs, 256, 256, gains[1]),
            _neurons((256,), (256,), DECAY),
            _linear(rngs, 256, outputs),
        )
    return neurons


def _linear(
    rngs: nnx.Rngs, inputs: int, outputs: int, gain: float = 1.0, bias: float = 0.0
) -> nnx.Linear:
    """Return a linear layer that starts as PyTorch's, its weights scaled."""
    bound = gain * inputs**-0.5
    return nnx.Linear(
        inputs,
        outputs,
        kernel_init=lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -bound, bound),
        bias_init=nnx.initializers.constant(bias),
        rngs=rngs,
    )


def _inputs(case: Case) -> jax.Array:
    draw = np.random.default_rng(0)
    # channels last, as convolutions of flax take them
    if case.kind == "conv":
        image = draw.random((1, case.B, 28, 28, 1), dtype=np.float32)
        return jnp.broadcast_to(image, (case.T, *image.shape[1:]))
    if case.kind == "static":
        image = draw.random((1, case.B, case.N), dtype=np.float32)
        return jnp.broadcast_to(image, (case.T, case.B, case.N))
    if case.density:
        spikes = draw.random((case.T, case.B, case.N), dtype=np.float32) < case.density
        return jnp.asarray(spikes.astype(np.float32))
    noise = draw.standard_normal((case.T, case.B, case.N), dtype=np.float32)
    return jnp.asarray(noise if case.kind == "linear" else noise * 0.5 + 0.3)


class JaxTask:
    """Run a case in JAX; a run waits until its results are computed."""

    def __init__(self, case: Case) -> None:
        self.x = x = _inputs(case)
        graph, parameters = nnx.split(_model(case))

        def forward(parameters: Any, x: jax.Array) -> jax.Array:
            outputs: jax.Array = snn.run(nnx.merge(graph, parameters), x)[0]
            return outputs

        def first(parameters: Any, x: jax.Array) -> jax.Array:
            model = nnx.merge(graph, parameters)
            outputs: jax.Array = snn.run(snn.Sequential(*model.layers[:depth]), x)[0]
            return outputs

        # the first layer of neurons ends the first two layers, the conv network's first three
        depth = 3 if case.kind == "conv" else 2
        network = case.kind in NETWORKS
        self.spiking = jax.jit(first if network else forward)
        self.parameters = parameters
        self.call: Callable[[], Any]
        if case.streams:
            self._stream(graph, parameters)
        elif case.way == "forward":
            compiled = jax.jit(forward)
            self.call = lambda: compiled(parameters, x)
        else:
            shape = jax.eval_shape(forward, parameters, x).shape
            g = jnp.asarray(np.random.default_rng(1).standard_normal(shape, dtype=np.float32))
            alone = not network

            def train(parameters: Any, x: jax.Array, g: jax.Array) -> Any:
                if alone:
                    y, back = jax.vjp(forward, parameters, x)
                else:
                    y, back = jax.vjp(lambda p: forward(p, x), parameters)
                return y, back(g)

            trained = jax.jit(train)
            self.call = lambda: trained(parameters, x, g)

    def _stream(self, graph: Any, parameters: Any) -> None:
        step = jax.jit(lambda p, x, state: nnx.merge(graph, p)(x, state))
        x = self.x[0]
        self.state = nnx.merge(graph, parameters).initial_state(x.shape[0])

        def call() -> Any:
            spikes, self.state = step(parameters, x, self.state)
            return spikes

        self.call = call

    def run(self) -> None:
        """Do the pass once."""
        jax.block_until_ready(self.call())

    def warm(self) -> None:
        """Compile, which JAX does for every length."""
        self.run()

    def density(self) -> float:
        """Return the share of neurons that spike."""
        x = jnp.repeat(self.x, 100, 0) if len(self.x) == 1 else self.x
        return float(self.spiking(self.parameters, x).mean())


def version() -> str:
    return f"{installed('spyx')}, jax {jax.__version__}"


def unsupported_reason(case: Case) -> str | None:
    if case.kind in ("dvs", "maps", "accuracy"):
        return "it is measured on other networks"
    return "it has no such neuron" if case.kind in ("bsrlif", "recurrent") else None


def prepare(case: Case) -> JaxTask:
    return JaxTask(case)
