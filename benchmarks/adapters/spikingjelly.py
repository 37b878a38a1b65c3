"""SpikingJelly: ``ParametricLIFNode``, multi-step, torch backend, reset by subtraction."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version as installed

import torch
from spikingjelly.activation_based import functional, layer, neuron, surrogate
from spikingjelly.activation_based.model import sew_resnet, spikformer
from torch import Tensor

from benchmarks.cases import PUBLISHED, THRESHOLD, Case
from benchmarks.task import Task
from benchmarks.torch_task import TorchTask, assemble, inputs


class Cell:
    """Spiking layer of SpikingJelly; one that is recurrent steps inside of its container."""

    def __init__(self, num: int, decay: float, mode: str, recurrent: bool = False) -> None:
        # its decay is 1 - 1 / tau
        self.node = neuron.ParametricLIFNode(
            init_tau=1 / (1 - decay) if decay != 0.5 else 2.0,
            decay_input=False,
            v_threshold=THRESHOLD,
            v_reset=None,
            step_mode="s" if recurrent else mode,
        )
        if recurrent:
            # a linear layer of input and last output together
            self.node = layer.LinearRecurrentContainer(self.node, num, num, step_mode=mode)

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


def published(case: Case) -> Task:
    """Build one of its own networks, with the neurons of the paper."""
    torch.manual_seed(0)
    if case.kind.startswith("sew"):
        model = sew_resnet.sew_resnet18(
            cnf="ADD",
            spiking_neuron=neuron.IFNode,
            num_classes=10,
            surrogate_function=surrogate.ATan(),
            detach_reset=True,
        )
        functional.set_step_mode(model, "m")
    else:
        model = spikformer.spikformer_cifar10(T=case.T)
    return TorchTask(
        case,
        inputs(case),
        model,
        lambda: functional.reset_net(model),
        [*model.parameters()],
        lambda: torch.tensor(float("nan")),
    )


def prepare(case: Case) -> Task:
    if case.kind in PUBLISHED:
        return published(case)
    mode, recurrent = "s" if case.streams else "m", case.kind.endswith("recurrent")
    return assemble(
        case, lambda num, decay, dim: Cell(num, decay, mode, recurrent), folded=mode == "m"
    )
