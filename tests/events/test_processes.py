"""Test events under DistributedDataParallel in two processes, against one process."""

import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import tracetorch as tt
from tests.events.cases import dyadic, events
from tests.scale_out.processes import run_together
from tracetorch import snn
from tracetorch.events import mode, observed_products

T, B, WORLD = 9, 8, 2


def net() -> nn.Module:
    model = nn.Sequential(
        dyadic(nn.Linear(30, 20)), snn.LIF(20), dyadic(nn.Linear(20, 3)), snn.Readout(3)
    )
    return model.double()


def gradients(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    tt.unroll(model, x).square().mean().backward()
    return {n.removeprefix("module."): p.grad for n, p in model.named_parameters()}


def job(folder: str, rank: int) -> None:
    dist.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=WORLD)
    share = events(T, B, 30, density=0.1).chunk(WORLD, 1)[rank].contiguous()
    with mode("always"), observed_products() as products:
        found = gradients(DistributedDataParallel(net()), share)
    assert [product.events for _, product in products] == [True, True]
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_get_the_gradients_of_one(tmp_path: Path) -> None:
    run_together(
        [["-m", "tests.events.test_processes", str(tmp_path), str(rank)] for rank in range(WORLD)]
    )
    with mode("never"):
        expected = gradients(net(), events(T, B, 30, density=0.1))
    for rank in range(WORLD):
        found = torch.load(tmp_path / f"{rank}.pt")
        torch.testing.assert_close(found, expected)


if __name__ == "__main__":
    job(sys.argv[1], int(sys.argv[2]))
