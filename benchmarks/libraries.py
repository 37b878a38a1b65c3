"""Measured libraries: adapter, virtual environment, and differences from our layers."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Library:
    """A library that is measured: a column of the table.

    ``venv`` is the virtual environment it is installed in, ours where empty; ``differs`` says what
    is not like for like; a library with ``opt_in`` runs only on request; ``devices`` are those that
    it runs on.
    """

    name: str
    adapter: str
    venv: str = ""
    differs: str = ""
    opt_in: bool = False
    devices: tuple[str, ...] = ("cpu", "cuda")

    @property
    def python(self) -> Path:
        """Path of the Python interpreter of its virtual environment."""
        return ROOT / self.venv / "bin" / "python" if self.venv else Path(sys.executable)


LIBRARIES = (
    Library("tracetorch", "ours", differs="per-neuron decay and threshold learn"),
    Library("tracetorch-eager", "eager", differs='ours by="step" in plain PyTorch'),
    Library(
        "spikingjelly",
        "spikingjelly",
        ".venv-peers",
        "multi-step, its torch backend, on a GPU the kernels that it selects; one decay per layer "
        "learns, the threshold does not; "
        "its LinearRecurrentContainer multiplies the input too; delays are "
        "a convolution in plain PyTorch",
    ),
    Library(
        "spikingjelly-compiled",
        "spikingjelly_compiled",
        ".venv-peers",
        "the same under torch.compile",
        opt_in=True,
    ),
    Library(
        "snntorch",
        "snntorch",
        ".venv-peers",
        "per-neuron decay and threshold learn; resets one step later",
    ),
    Library(
        "norse",
        "norse",
        ".venv-peers",
        "LIFBoxCell in a loop over unbind(0); per-neuron time constant and threshold learn; "
        "its LSNNCell resets to zero and takes the input a step later",
    ),
    Library(
        "sinabs",
        "sinabs",
        ".venv-peers",
        "batch first; per-neuron decay learns, the threshold does not; its ALIF subtracts the "
        "raised threshold",
    ),
    Library(
        "spyx",
        "spyx",
        ".venv-spyx",
        "JAX, jitted; per-neuron decay learns, the threshold does not; resets one step later",
        devices=("cpu",),
    ),
    Library(
        "0.9.2",
        "previous",
        ".venv-0.9.2",
        "per-neuron decay and threshold learn; stepped",
        devices=("cpu",),
    ),
    Library("relu", "relu", differs="ReLU in place of the neurons, time as a part of the batch"),
    Library("floor", "floor", differs="the products alone, dense; copy_ of the bytes of a layer"),
)
NAMES = tuple(library.name for library in LIBRARIES)
