"""Test what PyTorch's private names are wrapped in, by what the states of layers need of them."""

import copy
import gc
import os
import pickle
import signal
import sys
import threading
from collections.abc import Callable
from multiprocessing.context import get_spawning_popen, set_spawning_popen
from multiprocessing.reduction import ForkingPickler
from typing import Any

import pytest
import torch
import torch.multiprocessing
from torch import Tensor, nn
from torch.func import grad, jvp, vjp, vmap
from torch.utils.checkpoint import checkpoint

import tracetorch as tt
from tests.cases import LAYERS, layer, sequence, stepped
from tests.unrolling.models import dyadic, made
from tracetorch import snn
from tracetorch.core.torch_private import one_trace_at_a_time


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_does_not_wait_for_a_trace_of_another_thread() -> None:
    tracing, done = threading.Event(), threading.Event()

    @one_trace_at_a_time
    def trace() -> None:
        tracing.set()
        assert done.wait(30)

    thread = threading.Thread(target=trace)
    thread.start()
    assert tracing.wait(30)
    child = os.fork()
    if child == 0:
        signal.alarm(20)  # ends a child that waits
        one_trace_at_a_time(lambda: None)()
        os._exit(7)
    _, status = os.waitpid(child, 0)
    done.set()
    thread.join()
    assert os.waitstatus_to_exitcode(status) == 7


LEAKED = r"holds a state mem without values, left behind by .* Call zero_states\(\)"
X = torch.ones(3, 1, 2)

TRANSFORMS: dict[str, Callable[[nn.Module], Any]] = {
    "vmap": lambda neurons: vmap(neurons)(X),
    "jvp": lambda neurons: jvp(neurons, (X[0],), (X[0],)),
    "grad": lambda neurons: grad(lambda x: neurons(x).sum())(X[0]),
    "vjp": lambda neurons: vjp(neurons, X[0]),
    "vmap of grad": lambda neurons: vmap(grad(lambda x: neurons(x).sum()))(X),
    "grad of vmap": lambda neurons: grad(lambda x: vmap(neurons)(x).sum())(X),
}


USES: dict[str, Callable[[snn.LIF], Any]] = {
    "a step": lambda neurons: neurons(X[0]),
    "a step of another batch": lambda neurons: neurons(torch.ones(4, 2)),
    "a step without a graph": lambda neurons: torch.no_grad()(neurons)(X[0]),
    "a sequence": lambda neurons: tt.unroll(neurons, X),
    "another transform": lambda neurons: grad(lambda x: neurons(x).sum())(X[0]),
    "another size": lambda neurons: vmap(neurons)(torch.ones(4, 1, 2)),
    "a mask": lambda neurons: tt.zero_states(neurons, where=torch.tensor([True])),
    "a copy of the states": tt.get_states,
    "deepcopy": copy.deepcopy,
    "pickle": pickle.dumps,
    "a step after detach_states": lambda neurons: (neurons.detach_states(), neurons(X[0])),  # type: ignore[func-returns-value]
    "a step after a move": lambda neurons: neurons.double()(X[0].double()),
}


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")  # PyTorch's own use
@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_error_explains_a_leaked_state_and_zeroing_recovers(transform: str, use: str) -> None:
    neurons = snn.LIF(2)
    TRANSFORMS[transform](neurons)
    held = neurons.mem
    with pytest.raises(ValueError, match=LEAKED):
        USES[use](neurons)
    assert neurons.mem is held
    neurons.zero_states()
    assert neurons(X[0].to(neurons.raw_beta.dtype)).shape == (1, 2)
    assert list(tt.get_states(neurons)) == ["mem"]


def test_states_continue_inside_a_transform() -> None:
    """Steps in a transform, and in one nested in it, continue from each other's states."""
    net = nn.Sequential(nn.Linear(2, 2), snn.SLIF(2)).double()
    x = torch.rand(4, 3, 2, dtype=torch.float64)

    def loss(x: Tensor) -> Tensor:
        tt.zero_states(net)
        first = net(x[0]).sum()
        inner = grad(lambda x: net(x).sum())(x[1])  # leaks its own states
        tt.zero_states(net)
        return first + net(x[2]).sum() + net(x[3]).sum() + inner.sum()

    found = grad(loss)(x.unsqueeze(2)[:, 0])
    assert bool(found[2].any())
    torch.testing.assert_close(vmap(grad(loss), in_dims=1)(x.unsqueeze(2))[0], found)
    # those of before are constants in it
    neurons, alone = snn.Readout(2, beta=0.5), snn.Readout(2, beta=0.5)
    neurons(X[0])
    found = grad(lambda x: neurons(x).square().sum())(X[0])
    assert found.tolist() == [[0.75, 0.75]]  # 2 * (0.5 * 0.5 + 0.5 * 1) * 0.5
    neurons.zero_states()
    for _ in range(2):  # and a vmap of the same size goes on from its own
        assert torch.equal(vmap(neurons)(X)[0], alone(X[0]))


@pytest.mark.one_in(3)
@pytest.mark.parametrize("name", LAYERS)
def test_a_second_backward_is_an_error_and_of_a_kept_graph_exact(name: str) -> None:
    x, grads = sequence(4, 2, 3), []
    net = nn.Sequential(nn.Linear(3, 3), layer(name, 3)).double()
    for run, message in ((stepped, "a second time"), (tt.unroll, r"Call detach_states\(\) after")):
        tt.zero_states(net)
        run(net, x[:2]).sum().backward()
        out = run(net, x[2:])
        with pytest.raises(RuntimeError, match=message):
            out.sum().backward()
    for pieces in (x.split(2), [x]):
        net.zero_grad()
        tt.zero_states(net)
        for piece in pieces:
            stepped(net, piece).sum().backward(retain_graph=True)
        grads.append([p.grad.clone() for p in net.parameters()])
    torch.testing.assert_close(*grads)


def test_state_without_a_graph_stays_without_one() -> None:
    neurons = snn.LIF(2, learn_beta=False, reset="none")
    for _ in range(3):
        neurons(torch.ones(1, 2)).sum().backward()
    assert not neurons.mem.requires_grad
    assert snn.LIF(2, learn_beta=False, learn_pos_threshold=False)(X[0]).grad_fn is None


def test_other_errors_of_unpacking_saved_tensors_pass_unchanged() -> None:
    def unpack(_: object) -> Tensor:
        raise RuntimeError("the disk is gone")

    with torch.autograd.graph.saved_tensors_hooks(lambda t: t, unpack):
        out = snn.LIF(2)(torch.ones(1, 2))
    with pytest.raises(RuntimeError, match="the disk is gone"):
        out.sum().backward()


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoint_around_a_step_is_refused(reentrant: bool) -> None:
    neurons = snn.LIF(2)
    x = torch.ones(1, 2, requires_grad=True)
    neurons(x)
    neurons.detach_states()
    out = checkpoint(neurons, x, use_reentrant=reentrant)
    with pytest.raises(RuntimeError, match=r"run again inside backward.*calls zero_states\(\)"):
        out.sum().backward()


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("resumed", [False, True])
def test_checkpoint_around_a_sequence_is_exact(reentrant: bool, resumed: bool) -> None:
    neurons = layer("SRLIF", 3)
    x = sequence(5, 2, 3, dtype=torch.float32).requires_grad_()
    neurons(x[0].detach())
    start = tt.get_states(neurons)

    def run(x: torch.Tensor) -> torch.Tensor:
        if resumed:
            tt.set_states(neurons, start)
        else:
            neurons.zero_states()
        return stepped(neurons, x)

    run(x).sum().backward()
    grads = [x.grad.clone(), *(p.grad.clone() for p in neurons.parameters())]
    x.grad = None
    neurons.zero_grad()
    checkpoint(run, x, use_reentrant=reentrant).sum().backward()
    torch.testing.assert_close([x.grad, *(p.grad for p in neurons.parameters())], grads)


def used() -> tuple[nn.Module, Tensor]:
    """Return a model that holds states, and its input."""
    net = nn.Sequential(*made("recurrent"), snn.Delay(4, max_delay=3)).float()
    x = dyadic(5, 2, 3).float()
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


@pytest.mark.skipif(sys.platform != "linux", reason="files are inherited by their numbers")
def test_files_that_a_child_inherits_stay_open() -> None:
    models = [used()[0] for _ in range(3)]
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
