"""Test one model in several threads: whoever runs it first has it, and the others are refused."""

from __future__ import annotations

import _thread
import copy
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from importlib import import_module
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

import tracetorch as tt
from tests.cases import sequence
from tests.unrolling.models import By
from tracetorch import snn
from tracetorch.core import thread_owner
from tracetorch.core.snapshot import Contents

unroll_module = import_module(
    "tracetorch.unrolling.unroll"
)  # the package holds a function of its name
REFUSED = "is being run by the thread 'first_0', and this is the thread .*a copy per thread"


class Gate(nn.Module):
    """Identity that waits at the gate in one thread; nothing of it is on the module."""

    thread: ClassVar[int | None] = None
    entered: ClassVar[threading.Event]
    opened: ClassVar[threading.Event]

    def forward(self, x: Tensor) -> Tensor:
        wait_at_gate()
        return x


def wait_at_gate() -> None:
    if threading.get_ident() == Gate.thread:
        Gate.entered.set()
        assert Gate.opened.wait(30)


class Waiting(snn.Neuron):
    """A neuron that waits at the gate inside of its step."""

    states = ("mem",)

    @staticmethod
    def step(x: Tensor, mem: Tensor) -> tuple[Tensor, Tensor]:
        wait_at_gate()
        return x + mem, 0.5 * mem + x


def made() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), snn.LIF(4), Gate(), snn.RLIF(4)).double()


def loop(model: nn.Module, x: Tensor) -> Tensor:
    return torch.stack([model(step) for step in x.unbind(0)])


def in_segments(model: nn.Module, x: Tensor) -> Tensor:
    y: Tensor = tt.unroll(model, x, segment=2)
    y.sum().backward()
    return y


X = sequence(5, 2, 3)

RUNS: dict[str, Callable[[nn.Module, Tensor], Any]] = {
    "by layer": lambda model, x: tt.unroll(model, x),
    "by step": lambda model, x: tt.unroll(model, x, by="step"),
    "from rest": lambda model, x: tt.unroll(model, x, by="step", from_rest=True),
    "checked": lambda model, x: tt.unroll(model, x, check=2),
    "in segments": in_segments,
}
OTHERS: dict[str, Callable[[nn.Module, Tensor], Any]] = {
    **RUNS,
    "in a loop": loop,
    "a learner": lambda model, x: tt.online(model, "eprop")(x[0]),
    "zero_states": lambda model, x: tt.zero_states(model),
    "zero_states of samples": lambda m, x: tt.zero_states(m, where=torch.tensor([True, False])),
    "detach_states": lambda model, x: tt.detach_states(model),
    "set_states": lambda model, x: tt.set_states(model, {}),
    "a snapshot": lambda model, x: Contents(model),
    "profile": lambda model, x: tt.metrics.profile(model, x),
}


@contextmanager
def at_the_gate(run: Callable[[], Any]) -> Iterator[Future[Any]]:
    """Run something in a thread, and the block while it waits at the gate."""
    Gate.entered, Gate.opened = threading.Event(), threading.Event()

    def work() -> Any:
        Gate.thread = threading.get_ident()
        try:
            return run()
        finally:
            Gate.thread = None
            Gate.entered.set()

    with ThreadPoolExecutor(1, thread_name_prefix="first") as pool:
        future = pool.submit(work)
        try:
            assert Gate.entered.wait(30)
            yield future
        finally:
            Gate.opened.set()
            future.exception()


def equal(found: Any, expected: Any) -> bool:
    if isinstance(found, dict):
        return found.keys() == expected.keys() and all(
            torch.equal(found[name], expected[name]) for name in found
        )
    return torch.equal(found, expected)


@pytest.mark.parametrize("run", RUNS)
def test_a_second_thread_is_refused_and_does_no_harm(run: str) -> None:
    model, twin = made(), made()
    expected = RUNS[run](twin, X)
    with at_the_gate(lambda: RUNS[run](model, X)) as future:
        for other in OTHERS.values():
            with pytest.raises(ValueError, match=REFUSED):
                other(model, X)
        assert not future.done()
    assert equal(future.result(), expected)
    assert equal(tt.get_states(model), tt.get_states(twin))
    assert not thread_owner._owners
    # and whoever comes later has it
    assert equal(tt.unroll(model, X), tt.unroll(twin, X))


def whole(layer: snn.SequenceLayer, x: Tensor) -> Tensor:
    """Run a layer over a sequence of one step."""
    return layer.forward_sequence(x[None])[0][0]


@pytest.mark.parametrize("first", [snn.Neuron.__call__, whole])
@pytest.mark.parametrize("grad", [True, False])
def test_calls_of_a_layer_that_overlap_are_refused(grad: bool, first: Any) -> None:
    layer, x = Waiting(3), torch.ones(2, 3)

    def run() -> Tensor:
        with torch.set_grad_enabled(grad), tt.fuse.backend("eager"):
            return first(layer, x)

    others: tuple[Callable[[Any, Tensor], object], ...] = (
        snn.Neuron.__call__,
        whole,
        lambda layer, x: tt.unroll(layer, x[None]),
        lambda layer, x: layer.zero_states(),
    )
    with at_the_gate(run) as future:
        for other in others:
            with pytest.raises(ValueError, match=REFUSED):
                other(layer, x)
    assert torch.equal(future.result(), x)
    assert torch.equal(layer.mem, x)
    # one after the other, a stream may pass from thread to thread
    with ThreadPoolExecutor(1) as pool:
        assert torch.equal(pool.submit(layer, x).result(), 2 * x)
    assert torch.equal(layer(x), 2.5 * x)


@pytest.mark.parametrize(
    "layer",
    [
        snn.Delay(3, max_delay=2),
        snn.BatchNormThroughTime(3, steps=4),
        snn.Noise(3),
        snn.LockedDropout(3),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_a_sequence_of_any_layer_is_refused_while_another_thread_runs_it(
    layer: snn.SequenceLayer,
) -> None:
    x, model = torch.ones(4, 2, 3), nn.Sequential(layer, Gate())
    with (
        at_the_gate(lambda: tt.unroll(model, x, by="step")),
        pytest.raises(ValueError, match=REFUSED),
    ):
        layer.forward_sequence(x)
    layer.forward_sequence(x)
    assert not thread_owner._owners


def test_another_thread_may_not_read_or_copy_states_that_are_set_aside() -> None:
    model = made()
    with at_the_gate(lambda: tt.unroll(model, X)):
        for other in (lambda: model[3].mem, lambda: copy.deepcopy(model), lambda: model.double()):
            with pytest.raises(ValueError, match=REFUSED):
                other()
    with at_the_gate(lambda: tt.unroll(model, X, by="step")):
        assert model[1].mem is not None
        other = copy.deepcopy(model)
    tt.zero_states(other)
    tt.zero_states(model)
    assert equal(tt.unroll(other, X), tt.unroll(model, X)), "a copy belongs to nobody"


@pytest.mark.parametrize("by", ["layer", "step"])
@pytest.mark.parametrize("grad", [True, False])
def test_every_call_of_a_pool_is_right_or_refused(by: By, grad: bool) -> None:
    model = made()
    inputs = [(i + 1) * X[:, :1] for i in range(24)]
    expected = [tt.unroll(model, x, by=by, from_rest=True) for x in inputs]

    def work(i: int) -> bool:
        with torch.set_grad_enabled(grad):
            try:
                return torch.equal(tt.unroll(model, inputs[i], by=by, from_rest=True), expected[i])
            except ValueError as error:
                return "a copy per thread" in str(error)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(6) as pool:
            assert all(pool.map(work, range(len(inputs))))
    finally:
        sys.setswitchinterval(interval)
    assert tt.get_states(model) == {}
    assert not thread_owner._owners


@pytest.mark.parametrize("others", [0, 1])
def test_a_model_is_walked_again_where_another_thread_ran_it_during_the_walk(
    others: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, walks = made(), list[Any]()
    walk = unroll_module.remembered_walk

    def disturbed(*args: Any, **kwargs: Any) -> Any:
        found = walk(*args, **kwargs)
        for _ in range(0 if walks else others):
            thread = threading.Thread(target=lambda: model(X[0]))
            thread.start()
            thread.join()
        walks.append(found)
        return found

    monkeypatch.setattr(unroll_module, "remembered_walk", disturbed)
    y = tt.unroll(model, X, from_rest=True)
    assert len(walks) == 1 + others
    tt.zero_states(model)
    torch.testing.assert_close(y, loop(model, X))


def test_a_copy_per_thread_serves_a_pool() -> None:
    model, local = made(), threading.local()
    expected = [tt.unroll(model, i * X, from_rest=True) for i in range(8)]

    def work(i: int) -> Tensor:
        if not hasattr(local, "model"):
            local.model = copy.deepcopy(model)
        return tt.unroll(local.model, i * X, by="step", from_rest=True)

    with ThreadPoolExecutor(4) as pool:
        for found, other in zip(pool.map(work, range(8)), expected, strict=True):
            torch.testing.assert_close(found, other)


class Failing(nn.Module):
    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error = error

    def forward(self, x: Tensor) -> Tensor:
        raise self.error


@pytest.mark.parametrize("run", [*RUNS, "in a loop"])
@pytest.mark.parametrize("kind", [ZeroDivisionError, KeyboardInterrupt, SystemExit])
def test_a_failed_pass_lets_go_of_the_model(run: str, kind: type[BaseException]) -> None:
    model = made()
    model.append(Failing(kind()))
    with pytest.raises(kind):
        OTHERS[run](model, X)
    assert not thread_owner._owners
    del model[-1]
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(tt.unroll, model, X).exception() is None


def test_a_failed_start_from_rest_restores_the_states() -> None:
    class Own(snn.TTModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = made()

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x)

        def zero_states(self, **kwargs: Any) -> None:
            super().zero_states(**kwargs)
            raise ZeroDivisionError

    model = Own()
    tt.unroll(model, X)
    before = tt.get_states(model)
    with pytest.raises(ZeroDivisionError):
        tt.unroll(model, X, from_rest=True)
    assert equal(tt.get_states(model), before)
    assert not thread_owner._owners


def test_passes_nest_in_one_thread() -> None:
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = made()

        def forward(self, x: Tensor) -> Tensor:
            held = dict(thread_owner._owners)
            y = tt.unroll(self.net, torch.stack([x, x]), segment=1)
            torch.autograd.grad(y.sum(), x, retain_graph=True)  # runs a segment again
            assert thread_owner._owners == held
            return loop(self.net, y[-1:, :, :3])[0]

    model, twin = Outer(), made()
    x = X.clone().requires_grad_()
    found = tt.unroll(model, x, by="step")
    expected = []
    for step in x.unbind(0):
        y = tt.unroll(twin, torch.stack([step, step]))
        expected.append(twin(y[-1, :, :3]))
    assert torch.equal(found, torch.stack(expected))
    assert not thread_owner._owners


@pytest.mark.parametrize("by", ["layer", "step"])
def test_a_thread_of_autograd_works_for_the_one_that_waits(by: By) -> None:
    """As on a GPU, where the backward pass, and with it a segment, runs in another thread."""
    model, x = made(), X.clone().requires_grad_()
    expected = torch.autograd.grad(tt.unroll(model, x, by=by, from_rest=True).sum(), x)
    y = tt.unroll(model, x, by=by, segment=2, from_rest=True)
    results: list[Any] = []
    done = threading.Event()

    def backward() -> None:  # a thread that Python's threading has not started
        try:
            results.append(torch.autograd.grad(y.sum(), x, retain_graph=True))
        except ValueError as error:
            results.append(str(error))
        done.set()

    layers = [each for each in model if isinstance(each, snn.SequenceLayer)]
    with thread_owner.owned(layers):  # this thread runs the model, and waits
        _thread.start_new_thread(backward, ())
        assert done.wait(30)
    torch.testing.assert_close(results[0], expected)
    # another one that runs it meanwhile does not wait for that backward pass
    done.clear()
    with at_the_gate(lambda: tt.unroll(model, X)):
        _thread.start_new_thread(backward, ())
        assert done.wait(30)
        assert "a copy per thread" in results[1]
    assert not thread_owner._owners


def test_layers_without_states_serve_all_threads() -> None:
    class Doubling(snn.Neuron):
        @staticmethod
        def step(x: Tensor) -> tuple[Tensor]:
            return (2 * x,)

    model = nn.Sequential(Doubling(3), Gate())
    with at_the_gate(lambda: tt.unroll(model, X, by="step")) as future:
        assert torch.equal(tt.unroll(model, X, by="step"), 2 * X)
        assert torch.equal(loop(model, X), 2 * X)
    assert torch.equal(future.result(), 2 * X)


def test_a_forked_process_has_no_other_threads() -> None:
    layer = snn.LIF(3)
    with at_the_gate(lambda: tt.unroll(nn.Sequential(layer, Gate()), X, by="step")):
        with pytest.raises(ValueError, match=REFUSED):
            layer(X[0])
        held = dict(thread_owner._owners)
        thread_owner._forget_other_threads()
        try:
            layer(X[0])
        finally:
            thread_owner._owners.update(held)
