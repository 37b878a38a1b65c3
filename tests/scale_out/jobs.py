"""Jobs of a process on its share of the batch.

``python -m tests.scale_out.jobs FOLDER RANK WORLD BACKEND [every]`` runs them, saves the results.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

import tracetorch as tt
from tests.cases import sequence, vary
from tests.unrolling.models import Whole
from tracetorch import snn

T, B, WORLD = 7, 4, 2
DELAYED = snn.DelayedLinear
Job = Callable[[], dict[str, Tensor]]


class Net(snn.TTModule):
    """Network with every kind of parameter: constrained and plain, learnable and fixed."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 5)
        self.cells = nn.ModuleList([snn.BSRLIF(5), snn.LIF(5, learn_beta=False)])
        self.recurrent = snn.RLIF(5, learn_rec_weight=False)
        self.last = nn.Linear(5, 2)
        self.out = snn.Readout(2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        for cell in self.cells:
            h = h + cell(h)
        return self.out(self.last(self.recurrent(h)))


class Escapes(snn.Neuron):
    """A neuron with noise, the same in every sequence."""

    inputs = ("x", "noise")
    states = ("mem",)

    def __init__(self, seed: int | None = 1) -> None:
        super().__init__(4)
        self.noise = snn.Noise(4, distribution="uniform", seed=seed)
        self.decay("beta", 0.7)

    @staticmethod
    def step(x: Tensor, noise: Tensor, mem: Tensor, *, beta: Tensor) -> tuple[Tensor, Tensor]:
        mem = beta * mem + x
        return mem * (noise > 0.5), mem


def recurrent(neuron: nn.Module, connection: nn.Module | None = None) -> list[nn.Module]:
    return [nn.Linear(3, 4), snn.Recurrent(neuron, connection or nn.Linear(4, 4))]


KINDS: dict[str, Callable[[], list[nn.Module]]] = {
    "recurrent": lambda: recurrent(snn.LIF(4)),
    "recurrent delays": lambda: recurrent(snn.LIF(4), DELAYED(4, 4, max_delay=3)),
    "population": lambda: recurrent(nn.Sequential(snn.LIF(4), nn.Linear(4, 4), snn.RLIF(4))),
    "delays": lambda: [DELAYED(3, 4, max_delay=3), snn.LIF(4), snn.Delay(4, max_delay=2)],
    "noise": lambda: [nn.Linear(3, 4), Escapes()],
    "recurrent noise": lambda: recurrent(Escapes()),
}


def of_kind(kind: str) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*KINDS[kind](), nn.Linear(4, 2), snn.Readout(2)).double()


def net() -> Net:
    torch.manual_seed(0)
    made = Net()
    vary(made)
    return made.double()


def data(batch: int = B) -> tuple[Tensor, Tensor]:
    return sequence(T, batch, 3), torch.arange(batch) % 2


def shard(model: nn.Module) -> nn.Module:
    for module in list(model.modules()):
        if module is not model and list(module.parameters(recurse=False)):
            fully_shard(module)
    fully_shard(model)
    return model


def name_of(name: str) -> str:
    return name.removeprefix("module.").removeprefix("model.")


def whole(tensor: Any) -> Tensor:
    return (tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor).cpu()


def gradients(model: nn.Module) -> dict[str, Tensor]:
    assert all(p.grad is not None for p in model.parameters())
    return {name_of(name): whole(p.grad) for name, p in model.named_parameters()}


ENGINES: dict[str, Callable[[nn.Module], Any]] = {
    "DDP": DistributedDataParallel,
    "FSDP": fully_shard,
    "FSDP of every layer": shard,
}


def blocks(model: Any) -> Any:
    for module in model.model.children():
        if any(True for _ in module.parameters()):
            fully_shard(module)
    return fully_shard(model)


OF_BLOCKS: dict[str, Callable[[nn.Module], Any]] = {
    **{name: ENGINES[name] for name in ("DDP", "FSDP")},
    "FSDP of every block": blocks,
}
WAYS: dict[str, dict[str, Any]] = {
    "by layer": {},
    "by step": {"by": "step"},
    "in segments": {"segment": 3},
    "in segments by step": {"segment": 3, "by": "step"},
}
FAST_WAYS = ("by layer", "in segments by step")


def gradients_where(wrapped, engine, way, x, y, mine) -> dict[str, Tensor]:
    if wrapped == "model":
        model = ENGINES[engine](net().to(x.device))
        out = tt.unroll(model, x[:, mine], **WAYS[way])
    else:
        model = ENGINES[engine](Whole(net().to(x.device), **WAYS[way]))
        out = model(x[:, mine])
    cross_entropy(out.mean(0), y[mine]).backward()
    return gradients(model)


def of_a_memory(engine: str, kind: str, way: str, x: Tensor, mine: slice) -> dict[str, Tensor]:
    model = OF_BLOCKS[engine](Whole(of_kind(kind).to(x.device), **WAYS[way]))
    y = model(x[:, mine])
    y.square().sum().backward()
    found = gradients(model)
    with torch.no_grad():
        return {**found, "the output": y.detach().cpu(), "the next": model(x[:, mine]).cpu()}


def noise_of_processes(x: Tensor, rank: int) -> dict[str, Tensor]:
    found = {}
    for seed in (1, None):
        layer = snn.Recurrent(Escapes(seed), nn.Linear(4, 4)).to(x.device)
        model = DistributedDataParallel(layer)
        torch.manual_seed(rank)  # behind the model: all start from the same weights
        tt.unroll(model, torch.zeros(2, 3, 4, device=x.device))
        found[str(seed)] = layer.neuron.noise.position.cpu()
    return found


def train(model: nn.Module, optimizer: Any, x: Tensor, y: Tensor, steps: int) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        cross_entropy(model(x).mean(0), y).backward()
        optimizer.step()
        with torch.no_grad():
            model(x)


def trained_and_saved(x: Tensor, y: Tensor, mine: slice, file: Path) -> dict[str, Tensor]:
    model = DistributedDataParallel(Whole(net().to(x.device)))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    train(model, optimizer, x[:, mine], y[mine], 2)
    if dist.get_rank() == 0:
        parts = {"model": model.module.state_dict(), "optimizer": optimizer.state_dict()}
        torch.save(parts, file)
    return {}


def gradients_of_unequal_shares(x: Tensor, y: Tensor, mine: slice) -> dict[str, Tensor]:
    """Return gradients of the mean loss over shares of unequal size.

    Engines average over processes, so the sum is scaled by processes / samples.
    """
    model = DistributedDataParallel(net().to(x.device))
    out = tt.unroll(model, x[:, mine]).mean(0)
    (cross_entropy(out, y[mine], reduction="sum") * WORLD / len(y)).backward()
    return gradients(model)


def parameters_after_training(engine: str, x: Tensor, y: Tensor, mine: slice) -> dict[str, Tensor]:
    model = ENGINES[engine](Whole(net().to(x.device)))
    train(model, torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9), x[:, mine], y[mine], 3)
    if engine != "DDP":
        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()
    return {name_of(n): whole(p.detach()) for n, p in model.named_parameters()}


def states_of(model: nn.Module) -> dict[str, Tensor]:
    return {name_of(n): s.cpu() for n, s in tt.get_states(model).items()}


def states_of_stream(engine: str, way: str, x: Tensor, mine: slice, rank: int) -> dict[str, Tensor]:
    model = ENGINES[engine](net().to(x.device))
    with torch.no_grad():
        tt.unroll(model, x[:3, mine], **WAYS[way])
        tt.zero_states(model, where=torch.tensor([rank == 0, False]))
        out = tt.unroll(model, x[3:, mine], **WAYS[way])
    return {**states_of(model), "the output": out.cpu()}


def states_before_wrapping(x: Tensor, mine: slice) -> dict[str, Tensor]:
    model = net().to(x.device)
    tt.unroll(model, x[:, mine])
    tt.detach_states(model)
    return states_of(DistributedDataParallel(model))


def ways_of(engine: str, kind: str, every: bool) -> tuple[str, ...]:
    """By layer, and where every block is wrapped each other way, or one: each with two kinds."""
    first, *others = WAYS
    if engine != "FSDP of every block":
        return (first,) * (every or engine == "DDP")
    return first, *(others if every else others[list(KINDS).index(kind) % len(others) :][:1])


def jobs(rank: int, device: str, folder: Path, every: bool) -> dict[str, Job]:
    x, y = (each.to(device) for each in data())
    mine = slice(2 * rank, 2 * rank + 2)
    uneven_x, uneven_y = (each.to(device) for each in data(5))
    share = slice(0, 3) if rank == 0 else slice(3, 5)
    made: dict[str, Job] = {
        "unequal": lambda: gradients_of_unequal_shares(uneven_x, uneven_y, share),
        "carried in": lambda: states_before_wrapping(x, mine),
        "noise": lambda: noise_of_processes(x, rank),
        "saved": lambda: trained_and_saved(x, y, mine, folder / "trained"),
    }
    for engine in OF_BLOCKS:
        for kind in KINDS:
            for way in ways_of(engine, kind, every):
                arguments = (engine, kind, way, x, mine)
                made[f"{kind}/{engine}/{way}"] = partial(of_a_memory, *arguments)
    for engine in ENGINES:
        made[f"trained/{engine}"] = partial(parameters_after_training, engine, x, y, mine)
        for way in WAYS if every else FAST_WAYS:
            for wrapped in ("whole", "model"):
                if wrapped == "whole" or engine != "DDP" or "segment" not in WAYS[way]:
                    given = wrapped, engine, way, x, y, mine
                    made[f"{wrapped}/{engine}/{way}"] = partial(gradients_where, *given)
        for way in ("by layer", "by step"):
            made[f"stream/{engine}/{way}"] = partial(states_of_stream, engine, way, x, mine, rank)
    return made


def main(folder, rank, world, backend, every) -> None:
    # FSDP loses gradients where a module returns a view that is changed in place later. No layer
    # does so by layer; unroll returns one, which these jobs leave unchanged.
    warnings.filterwarnings("error", message=".*returned a view tensor")
    warnings.filterwarnings("ignore", message=r".*\(FSDPWhole\) returned a view tensor")
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / "store"), world)  # type: ignore[attr-defined]
    dist.init_process_group(backend, rank=rank, world_size=world, store=store)
    device = f"cuda:{rank}" if backend == "nccl" else "cpu"
    if backend == "nccl":
        torch.cuda.set_device(device)
    results = {name: job() for name, job in jobs(rank, device, folder, every).items()}
    torch.save(results, folder / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4], "every" in sys.argv)
