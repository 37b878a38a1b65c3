"""Send models with live states to processes that are started anew."""

import copy
import gc
import multiprocessing
import os
import sys
from multiprocessing.context import get_spawning_popen, set_spawning_popen
from multiprocessing.reduction import ForkingPickler
from typing import Any

import pytest
import torch
import torch.multiprocessing
from torch import Tensor, nn

import tracetorch as tt
from tracetorch import snn

posix = pytest.mark.skipif(sys.platform != "linux", reason="files are inherited by their numbers")


def used() -> tuple[nn.Module, Tensor]:
    """Return a model that holds states, and its input."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(4, 5),
        snn.SLIF(5),
        snn.Delay(5, max_delay=3),
        snn.Recurrent(snn.LIF(5), nn.Linear(5, 5)),
        snn.Readout(5),
    )
    x = torch.rand(5, 2, 4) * 3
    tt.unroll(net, x)
    return net, x


class Encoded(torch.utils.data.Dataset[list[Tensor]]):
    """What a model makes of each sample, from rest, in a stream, and going on from its states."""

    def __init__(self) -> None:
        self.net, self.x = used()

    def __len__(self) -> int:
        return 4

    @torch.no_grad()
    def __getitem__(self, index: int) -> list[Tensor]:
        x, net, stream = self.x * (index + 1), copy.deepcopy(self.net), tt.Stream(self.net)
        from_rest = tt.unroll(self.net, x, from_rest=True)
        return [from_rest, torch.stack([stream(step) for step in x]), tt.unroll(net, x)]


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("start", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_workers_of_a_data_loader_hold_a_model(start: str) -> None:
    data = Encoded()
    loader = torch.utils.data.DataLoader(
        data, batch_size=None, num_workers=2, timeout=120, multiprocessing_context=start
    )
    for index, found in enumerate(loader):
        torch.testing.assert_close(found, data[index])
    assert index == 3


class Child:
    """Stands for a process that is being started: it notes the files that it will inherit."""

    DupFd = staticmethod(int)

    def __init__(self) -> None:
        self.inherited: list[int] = []

    def duplicate_for_child(self, number: int) -> int:
        self.inherited.append(number)
        return number


@posix
@pytest.mark.parametrize("times", [1, 3])
def test_files_that_a_child_inherits_stay_open(times: int) -> None:
    models = [used()[0] for _ in range(times)]
    expected = [state.clone() for model in models for state in tt.get_states(model).values()]
    child: Any = Child()
    assert get_spawning_popen() is None
    set_spawning_popen(child)
    try:
        ForkingPickler.dumps(models)
    finally:
        set_spawning_popen(None)
    gc.collect()
    identities = {os.fstat(number).st_ino for number in child.inherited}
    assert len(identities) == len(child.inherited) >= len(expected) + 4
    # the child's memory is its own: what is sent is a copy
    states = [state for model in models for state in tt.get_states(model).values()]
    assert all(map(torch.equal, states, expected))
    assert not any(state.is_shared() for state in states)


def test_a_copy_outside_of_a_start_keeps_nothing() -> None:
    from tracetorch.core import spawning

    before = len(spawning._kept)
    copy.deepcopy(used()[0])
    ForkingPickler.dumps(used()[0])
    assert len(spawning._kept) == before


def answer(model: nn.Module, x: Tensor, results: Any) -> None:
    torch.set_num_threads(1)
    results.put(tt.unroll(model, x, by="step").tolist())


def answer_from_queue(models: Any, x: Tensor, results: Any) -> None:
    answer(models.get(timeout=60), x, results)


@pytest.mark.slow
@posix
@pytest.mark.parametrize("module", [multiprocessing, torch.multiprocessing], ids=["std", "torch"])
@pytest.mark.parametrize("method", ["spawn", "forkserver"])
@pytest.mark.parametrize("way", ["argument", "queue"])
def test_a_child_goes_on_from_the_states(module: Any, method: str, way: str) -> None:
    net, x = used()
    expected = tt.unroll(copy.deepcopy(net), x, by="step").tolist()
    context = module.get_context(method)
    results = context.Queue()
    target: Any = answer
    sent: Any = net
    if way == "queue":
        target, sent = answer_from_queue, context.Queue()
        sent.put(net)
    process = context.Process(target=target, args=(sent, x, results))
    process.start()
    assert results.get(timeout=120) == expected
    process.join()
