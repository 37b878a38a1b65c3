"""Benchmark cases: models, input shapes and passes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

Kind = Literal["lif", "linear", "recurrent", "conv", "bsrlif", "stream", "growth", "memory"]
Pass = Literal["forward", "train"]

DECAY = 0.9
CONV_DECAY = 0.5
THRESHOLD = 1.0


@dataclass(frozen=True)
class Case:
    """A row of the table: a model, a shape ``[T, B, N]`` and a pass.

    ``way`` is the pass: ``train`` is forward and backward. ``only`` names the libraries that run
    the case, all where empty.
    """

    name: str
    kind: Kind
    T: int
    B: int
    N: int
    way: Pass
    threads: int = 2
    only: tuple[str, ...] = ()

    @property
    def elements(self) -> int:
        """Number of elements of the input."""
        return self.T * self.B * self.N


def _both(name: str, kind: Kind, T: int, B: int, N: int, only: tuple[str, ...] = ()) -> list[Case]:
    """Return the forward and the training case of one shape."""
    return [Case(f"{name}, {way}", kind, T, B, N, way, only=only) for way in ("forward", "train")]


def all_cases() -> list[Case]:
    """Return the cases of a full run, in the order of the table."""
    found: list[Case] = []
    for N in (128, 512, 2048, 8192):
        found += _both(f"LIF N={N}", "lif", 100, 32, N)
    for N in (512, 2048):
        found += _both(f"Linear+LIF T=500 B=16 N={N}", "linear", 500, 16, N)
    # all-to-all recurrence; SpikingJelly's container puts the input through weights too
    of_recurrence = ("tracetorch", "tracetorch-eager", "spikingjelly")
    found += _both("recurrent LIF N=128", "recurrent", 100, 32, 128, of_recurrence)
    found.append(Case("conv network, train", "conv", 5, 50, 784, "train"))
    # no peer has a neuron of this kind
    found += _both(
        "BSRLIF N=512", "bsrlif", 100, 32, 512, ("tracetorch", "tracetorch-eager", "0.9.2", "floor")
    )
    found.append(Case("one step B=1 N=128", "stream", 1, 1, 128, "forward", threads=1))
    found.append(Case("peak memory LIF N=2048", "memory", 100, 32, 2048, "train"))
    # time per step as the sequence grows
    for T in (100, 1_000, 10_000):
        few = ("tracetorch", "spikingjelly", "floor")
        found += _both(f"LIF B=32 N=128 T={T}", "growth", T, 32, 128, few)
    return found


def quick(case: Case) -> Case:
    """Shrink the shape of a case for a smoke test."""
    if case.kind == "conv":
        return replace(case, T=2, B=2)
    return replace(case, T=min(case.T, 4), B=min(case.B, 2), N=min(case.N, 16))
