"""Models to export, and loops that run a program over a sequence."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import tracetorch as tt
from tests.cases import LAYERS, PLACES, SPIKING, layer
from tests.networks import Listed, module
from tests.unrolling.models import dyadic
from tracetorch import snn
from tracetorch.core.torch_private import pytree

RESETS: tuple[dict[str, Any], ...] = (
    {},
    {"reset": "zero"},
    {"reset": "none", "detach_reset": True},
    {"beta_rank": 0},
)
NAMES = ("dense", "conv", "recurrent", "skip")


def sample_of(name: str, *lead: int, seed: int = 0) -> Any:
    """Return an input of ``made(name)`` with the leading sizes: the batch, or time and batch."""
    if name == "skip":
        return dyadic(*lead, 4, seed=seed), dyadic(*lead, 4, seed=seed + 1)
    return dyadic(*lead, *{"conv": (1, 6, 6)}.get(name, (3,)), seed=seed)


def at(x: Any, step: int) -> Any:
    return pytree.tree_map(lambda each: each[step], x)


def reference(model: nn.Module, x: Any) -> tuple[Any, dict[str, Tensor]]:
    """Return outputs and last states of PyTorch, from rest, in eval mode, without a graph."""
    training, before = model.training, tt.get_states(model)
    tt.zero_states(model)
    model.eval()
    with torch.no_grad():
        y = tt.unroll(model, x, by="step")
    states = tt.get_states(model)
    model.train(training)
    tt.set_states(model, before)
    return y, states


def stepped_program(program: Any, x: Any, states: dict[str, Tensor]) -> Any:
    """Run an exported step over time; return its outputs and last states."""
    run = program.module()
    outputs = []
    for step in range(len(pytree.tree_leaves(x)[0])):
        y, states = run(at(x, step), states)
        outputs.append(y)
    return pytree.tree_map(lambda *each: torch.stack(each), *outputs), states


def assert_equal(one: Any, other: Any) -> None:
    assert pytree.tree_structure(one) == pytree.tree_structure(other)
    for a, b in zip(pytree.tree_leaves(one), pytree.tree_leaves(other), strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)


def hidden() -> Any:
    """Layers in a plain list, which ``torch.export`` alone would not see."""
    return Listed(nn.Linear(3, 3), layer("RLIF", 3), layer("Readout", 3))


class Adaptive(snn.Neuron):
    """User-defined neuron with a state that never changes and a tensor as option."""

    states = ("mem", "fatigue", "fixed")

    def __init__(self, num_neurons: int, dim: int = -1):
        super().__init__(num_neurons, dim)
        self.decay("beta", 0.9)
        self.threshold("base", 1.0)
        self.option("pull", torch.tensor(0.25))

    @staticmethod
    def step(x, mem, fatigue, fixed, *, beta, base, spike, pull):
        mem = beta * mem + x
        fired = spike(mem - base - fatigue)
        return fired, mem - fired * base, 0.95 * fatigue + pull * fired, fixed


def several(names: tuple[str, ...] = LAYERS) -> Any:
    """Layers, with the neurons at every dimension of ``[B, 3, 3, 3]`` in turn."""
    cells = {
        name: layer(name, 3, dim=PLACES[i % 3][0], **(RESETS[i % 4] if name in SPIKING else {}))
        for i, name in enumerate(names)
    }
    return module(
        lambda self, x: {name: cell(x) for name, cell in self.cells.items()},
        cells=nn.ModuleDict(cells),
    )


def folded() -> Any:
    """Four groups of neurons folded into the batch: a state of ``4 * B`` rows."""
    return module(
        lambda self, x: self.cell(x.unflatten(1, (4, 2)).flatten(0, 1)).reshape(-1, 8),
        cell=layer("SLIF", 2),
    )
