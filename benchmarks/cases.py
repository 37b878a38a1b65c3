"""Benchmark cases: models, input shapes and passes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

Kind = Literal[
    "shd", "recurrent", "static", "events", "dvs", "maps", "conv", "accuracy", "linear",
    "lif", "bsrlif", "alif", "seadlif", "delays", "recurrent delays", "stream", "growth", "memory",
    "sew", "spikformer", "sew memory", "spikformer memory", "stream recurrent", "stream network",
]  # fmt: skip
Pass = Literal["forward", "train"]

PUBLISHED: tuple[Kind, ...] = ("sew", "spikformer", "sew memory", "spikformer memory")
# Rows of a run on a GPU, which should end in ten minutes. No product there chooses events.
ON_GPU: tuple[Kind, ...] = (
    "shd", "recurrent", "recurrent delays", "static", "conv", "linear", "lif", "bsrlif", "alif",
    "seadlif", "memory", *PUBLISHED,
)  # fmt: skip
NETWORKS: tuple[Kind, ...] = (
    "shd", "delays", "static", "events", "dvs", "maps", "conv", "linear", "stream network",
    *PUBLISHED,
)  # fmt: skip
DECAY = 0.9
ADAPTATION_DECAY = 0.98
ADAPTATION = 0.2  # by how much a spike raises the threshold
MAX_DELAY = 25
SIGMA = 1.0  # of the Gaussian that interpolates delays
CONV_DECAY = 0.5
THRESHOLD = 1.0
# of one sample; (N,) elsewhere
SHAPES: dict[Kind, tuple[int, int, int]] = {
    "conv": (1, 28, 28),
    "dvs": (2, 34, 34),
    "maps": (32, 34, 34),
    **dict.fromkeys(PUBLISHED, (3, 32, 32)),
}
DENSITIES = (0.01, 0.02, 0.05, 0.1, 0.25, 0.5)
ACCURACY = 0.9  # on held-out digits, at which training ends


@dataclass(frozen=True)
class Case:
    """A row of the table: a model, a shape ``[T, B, N]`` and a pass.

    ``way`` is the pass: ``train`` is forward and backward. ``density`` is the share of ones in an
    input of spikes. ``only`` names the libraries that run the case, all where empty.
    """

    name: str
    kind: Kind
    T: int
    B: int
    N: int
    way: Pass
    density: float = 0.0
    threads: int = 2
    only: tuple[str, ...] = ()

    @property
    def elements(self) -> int:
        """Number of elements of the input."""
        return self.T * self.B * self.N

    @property
    def peak(self) -> bool:
        """Whether peak memory is measured, not time."""
        return self.kind.endswith("memory")

    @property
    def streams(self) -> bool:
        """Whether a run is one step, which goes on from the one before."""
        return self.kind.startswith("stream")


def _both(
    name: str,
    kind: Kind,
    T: int,
    B: int,
    N: int,
    only: tuple[str, ...] = (),
    density: float = 0.0,
) -> list[Case]:
    """Return the forward and the training case of one shape."""
    return [
        Case(f"{name}, {way}", kind, T, B, N, way, density, only=only)
        for way in ("forward", "train")
    ]


def all_cases() -> list[Case]:
    """Return the cases of a full run, in the order of the table: whole networks first."""
    found = _both("SHD shape 700-256-256-20, input 2 %", "shd", 100, 64, 700, density=0.02)
    # no peer has delays: SpikingJelly's neurons behind convolutions over time in plain PyTorch
    found += _both(
        f"Delays to {MAX_DELAY}, 140-256-256-20, input 5 %", "delays", 100, 32, 140,
        ("tracetorch", "spikingjelly", "floor"), density=0.05,
    )  # fmt: skip
    found += _both("Recurrent LIF N=128", "recurrent", 100, 32, 128)
    found += _both(
        f"Recurrent LIF N=128, delays to {MAX_DELAY}", "recurrent delays", 100, 32, 128,
        ("tracetorch", "floor"),
    )  # fmt: skip
    found += _both("784-256-256-10, same input each step", "static", 4, 256, 784)
    for density in DENSITIES:
        name = f"Linear+LIF N=512, input {100 * density:g} %"
        found += _both(name, "events", 500, 16, 512, density=density)
    found += _both("DVS shape 2-32-32-64, input 1.5 %", "dvs", 20, 16, 2 * 34 * 34, density=0.015)
    found += _both("Conv2d 32-64 and LIF, input 5 %", "maps", 20, 16, 32 * 34 * 34, density=0.05)
    found.append(Case("conv network, train", "conv", 5, 50, 784, "train"))
    few = ("tracetorch", "spikingjelly", "relu")
    kinds: tuple[tuple[str, Kind, Kind], ...] = (
        ("SEW-ResNet-18", "sew", "sew memory"),
        ("Spikformer-4-384", "spikformer", "spikformer memory"),
    )
    for name, kind, memory in kinds:
        size = 3 * 32 * 32
        found.append(Case(f"{name}, 32 x 32, train", kind, 4, 16, size, "train", only=few))
        found.append(Case(f"peak memory {name}", memory, 4, 16, size, "train", only=few))
    for N in (512, 2048):
        found += _both(f"Linear+LIF T=500 B=16 N={N}", "linear", 500, 16, N)
    found.append(Case(f"digits to {100 * ACCURACY:g} %", "accuracy", 4, 100, 784, "train"))
    for N in (128, 512, 2048, 8192):
        found += _both(f"LIF N={N}", "lif", 100, 32, N)
    found += _both(
        "ALIF N=512", "alif", 100, 32, 512,
        ("tracetorch", "tracetorch-eager", "norse", "sinabs", "floor"),
    )  # fmt: skip
    # no peer has a neuron of these kinds
    few = ("tracetorch", "tracetorch-eager", "floor")
    found += _both("SEAdLIF N=512", "seadlif", 100, 32, 512, few)
    found += _both("BSRLIF N=512", "bsrlif", 100, 32, 512, (*few, "0.9.2"))
    some = ("tracetorch", "snntorch", "spikingjelly")
    one: tuple[tuple[str, Kind, int, tuple[str, ...]], ...] = (
        ("N=128", "stream", 128, ()),
        ("recurrent N=128", "stream recurrent", 128, some),
        ("8-128-128-128", "stream network", 8, (*some, "norse", "sinabs", "spyx")),
    )
    for name, kind, N, only in one:
        name = f"one step B=1 {name}"
        found.append(Case(name, kind, 1, 1, N, "forward", threads=1, only=only))
    found.append(Case("peak memory LIF N=2048", "memory", 100, 32, 2048, "train"))
    # time as the sequence or the batch grows; as the layer grows, the rows of LIF tell
    few = ("tracetorch", "spikingjelly", "floor")
    for T in (100, 1_000, 10_000):
        found += _both(f"LIF B=32 N=128 T={T}", "growth", T, 32, 128, few)
    for B in (1, 1024):
        found += _both(f"LIF B={B} N=128 T=100", "growth", 100, B, 128, few)
    return found


def quick(case: Case) -> Case:
    """Shrink the shape of a case for a smoke test."""
    if case.kind in SHAPES or case.kind == "accuracy":
        return replace(case, T=2, B=2)
    return replace(case, T=min(case.T, 4), B=min(case.B, 2), N=min(case.N, 16))
