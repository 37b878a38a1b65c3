"""SpikingJelly: ``ParametricLIFNode``, multi-step, torch backend, reset by subtraction."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version as installed

import torch
from spikingjelly.activation_based import base, functional, layer, neuron
from torch import Tensor

from benchmarks.cases import THRESHOLD, Case
from benchmarks.torch_task import TorchTask, assemble


class Cell:
    """Spiking layer of SpikingJelly."""

    def __init__(self, decay: float, mode: str, recurrent: int = 0) -> None:
        # its decay is 1 - 1 / tau
        self.node: base.MemoryModule = neuron.ParametricLIFNode(
            init_tau=1 / (1 - decay) if decay != 0.5 else 2.0,
            decay_input=False,
            v_threshold=THRESHOLD,
            v_reset=None,
            step_mode=mode if not recurrent else "s",
        )
        if recurrent:
            self.node = layer.LinearRecurrentContainer(
                self.node, recurrent, recurrent, step_mode=mode
            )

    def __call__(self, x: Tensor) -> Tensor:
        """Run the whole sequence, or one step."""
        y: Tensor = self.node(x)
        return y

    def reset(self) -> None:
        """Reset the state."""
        functional.reset_net(self.node)

    def parameters(self) -> Sequence[Tensor]:
        """Return the learnable parameters."""
        return list(self.node.parameters())


def version() -> str:
    return f"{installed('spikingjelly')}, torch {torch.__version__}"


def unsupported_reason(case: Case) -> str | None:
    return "it has no such neuron" if case.kind == "bsrlif" else None


def prepare(case: Case) -> TorchTask:
    stream = case.kind == "stream"
    recurrent = case.N if case.kind == "recurrent" else 0
    return assemble(
        case,
        lambda num, decay, dim: Cell(decay, "s" if stream else "m", recurrent),
        folded=not stream,
    )
