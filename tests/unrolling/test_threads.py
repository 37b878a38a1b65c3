"""One model in several threads, and calls that fail: states are committed together, or not."""

import _thread
import copy
import itertools
import re
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

import tracetorch as tt
from tests.cases import layer, module, sequence
from tests.networks import Counts, Residual
from tests.unrolling.models import By, dyadic, with_dyadic_weights
from tracetorch import snn
from tracetorch.fuse.dispatch.backends import backend_named
from tracetorch.fuse.runtime.cpu import CpuBackend
from tracetorch.snn.passes import current_pass

T, B, N = 5, 2, 4
X = sequence(T, B, N)


class Escaping(snn.Neuron):
    inputs = ("x", "noise")
    states = ("mem",)

    def __init__(self) -> None:
        super().__init__(N)
        self.noise = snn.Noise(N, distribution="uniform", seed=3)

    @staticmethod
    def step(x: Tensor, noise: Tensor, mem: Tensor) -> tuple[Tensor, Tensor]:
        mem = 0.5 * mem + x
        return mem * (noise > 0.5), mem


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "dense": lambda: nn.Sequential(layer("LIF", N), nn.Linear(N, N), layer("Readout", N)),
    "residual": lambda: Residual(
        nn.Sequential(layer("LIF", N), nn.Linear(N, N), layer("SRLIF", N))
    ),
    "recurrent": lambda: snn.Recurrent(layer("LIF", N), nn.Linear(N, N)),
    "recurrent with delays": lambda: snn.Recurrent(
        layer("LIF", N), snn.DelayedLinear(N, N, max_delay=2)
    ),
    "population": lambda: snn.Recurrent(
        nn.Sequential(layer("LIF", N), nn.Linear(N, N), layer("RLIF", N)), nn.Linear(N, N)
    ),
    "noise": Escaping,
    "norms": lambda: nn.Sequential(nn.BatchNorm1d(N), layer("LIF", N), nn.Dropout(0.5)).eval(),
    "memory": lambda: nn.Sequential(Counts(N), layer("LIF", N)),
}
WAYS = [(n, by) for n in NETWORKS for by in ("layer", "step") if (n, by) != ("memory", "layer")]


def made(name: str = "dense") -> Any:
    torch.manual_seed(0)
    model = NETWORKS[name]()
    return nn.Sequential(nn.Linear(N, N), model, nn.Linear(N, N)).double().train(model.training)


def states_of(model: nn.Module) -> list[Any]:
    """List what every module with states holds, the objects themselves."""
    return [
        vars(module)[name]
        for module in model.modules()
        if isinstance(module, snn.TTModule)
        for name in module._state_attributes
    ]


def equal(found: Any, expected: Any) -> bool:
    if isinstance(found, dict):
        return found.keys() == expected.keys() and all(
            map(torch.equal, *map(dict.values, (found, expected)))
        )
    return len(found) == len(expected) and all(map(torch.equal, found, expected))


@contextmanager
def switching_often() -> Iterator[None]:
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        yield
    finally:
        sys.setswitchinterval(interval)


def run_from_rest(model: nn.Module, x: Tensor, by: By, grad: bool, **more: Any) -> list[Tensor]:
    """Return outputs, what was recorded, and gradients of input and parameters."""
    x = x.clone().requires_grad_(grad)
    with torch.set_grad_enabled(grad):
        given: Any = tt.unroll(model, x, by=by, from_rest=True, **more)
    y, seen = given if "record" in more else (given, {})
    if grad:
        seen = [*seen.values(), *torch.autograd.grad(y.square().sum(), [x, *model.parameters()])]
    return [y, *seen]


def calls_in_threads(
    name: str, by: By, grad: bool, calls: int, threads: int = 8, **more: Any
) -> None:
    model, twin = made(name), made(name)
    inputs = [(1 + i / 4) * X for i in range(5)]
    expected = [run_from_rest(twin, x, by, grad, **more) for x in inputs]

    def work(first: int) -> bool:
        return all(
            equal(run_from_rest(model, inputs[i % 5], by, grad, **more), expected[i % 5])
            for i in range(first, first + calls)
        )

    with switching_often(), ThreadPoolExecutor(threads) as pool:
        assert all(pool.map(work, range(threads)))
    assert not any(state is not None for state in states_of(model))
    assert current_pass() is None


@pytest.mark.parametrize("calls", [4, pytest.param(1250, marks=pytest.mark.slow)])
@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize(("name", "by"), WAYS)
def test_threads_run_one_model_from_rest(name: str, by: By, grad: bool, calls: int) -> None:
    """Ten thousand calls where they are quick."""
    calls_in_threads(name, by, grad, min(calls, 1250 if (by, grad) == ("layer", False) else 125))


@pytest.mark.parametrize("more", [{"segment": 2}, {"check": True}, {"record": "output"}], ids=str)
def test_threads_run_one_model_from_rest_in_other_ways(more: Any) -> None:
    calls_in_threads("residual", "layer", True, calls=3, **more)


MIXTURE = r"states of layer .* were written since this pass began, by another thread"


@pytest.mark.parametrize("by", ["layer", "step"])
def test_threads_that_continue_one_stream_leave_the_states_of_one(by: By) -> None:
    model = made()
    tt.unroll(model, X)
    with switching_often(), ThreadPoolExecutor(2) as pool:
        for _ in range(60):
            barrier = threading.Barrier(2)

            def work(x: Tensor, barrier: threading.Barrier = barrier) -> Any:
                with torch.no_grad():
                    barrier.wait()
                    try:
                        seen = tt.unroll(model, x, by=by, record="mem")[1]
                    except RuntimeError as error:
                        return str(error)
                return {name: trajectory[-1] for name, trajectory in seen.items()}

            ends = list(pool.map(work, (X, -0.5 * X)))
            found = tt.get_states(model)
            right = [each for each in ends if not isinstance(each, str)]
            assert any(equal(found, each) for each in right)
            assert all(re.search(MIXTURE, each) for each in ends if isinstance(each, str))


# One thread in the middle of a pass


class Gate(nn.Module):
    """Identity that waits at the gate in one thread; nothing of it is on the module."""

    thread: ClassVar[int | None] = None
    entered: ClassVar[threading.Event]
    opened: ClassVar[threading.Event]

    def forward(self, x: Tensor) -> Tensor:
        if threading.get_ident() == Gate.thread and not Gate.entered.is_set():
            Gate.entered.set()
            assert Gate.opened.wait(120)
        return x


@contextmanager
def at_the_gate(run: Callable[[], Any]) -> Iterator[Future[Any]]:
    """Run something in a thread, and the block while it waits at the gate for the first time."""
    Gate.entered, Gate.opened = threading.Event(), threading.Event()

    def work() -> Any:
        Gate.thread = threading.get_ident()
        try:
            return run()
        finally:
            Gate.thread = None
            Gate.entered.set()

    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(work)
        try:
            assert Gate.entered.wait(120)
            yield future
        finally:
            Gate.opened.set()
            future.exception()


def in_segments(model: nn.Module) -> Any:
    y = tt.unroll(model, X, segment=2)
    y.sum().backward()
    return y


RUNS: dict[str, Callable[[nn.Module], Any]] = {
    "by layer": lambda model: tt.unroll(model, X),
    "by step": lambda model: tt.unroll(model, X, by="step"),
    "from rest": lambda model: tt.unroll(model, X, from_rest=True),
    "checked": lambda model: tt.unroll(model, X, check=2),
    "in segments": in_segments,
}


@pytest.mark.parametrize("run", RUNS)
def test_others_see_the_states_of_before_while_a_thread_runs(run: str) -> None:
    model, twin = made(), made()
    for each in (model, twin):
        each.insert(2, Gate())
        tt.unroll(each, X)
        tt.detach_states(each)
    before = tt.get_states(model)
    expected, rest = RUNS[run](twin), tt.unroll(twin, X, from_rest=True)
    with at_the_gate(lambda: RUNS[run](model)) as future:
        assert equal(tt.get_states(model), before)
        assert equal(tt.get_states(copy.deepcopy(model)), before)
        # the first run of a model is one thread's; by step there is none
        assert torch.equal(
            tt.unroll(model, X, by="step", from_rest=True),
            tt.unroll(twin, X, by="step", from_rest=True),
        )
        if run != "checked":
            assert torch.equal(tt.unroll(model, X, from_rest=True), rest)
        assert not future.done()
    assert torch.equal(future.result(), expected)
    assert equal(tt.get_states(model), tt.get_states(twin))
    # a stream may pass from thread to thread
    with ThreadPoolExecutor(1) as pool:
        assert torch.equal(pool.submit(tt.unroll, model, X).result(), tt.unroll(twin, X))


@pytest.mark.parametrize("run", ["by layer", "by step", "in segments"])
@pytest.mark.parametrize("act", [tt.zero_states, lambda m: tt.set_states(m, {}), RUNS["by step"]])
def test_a_pass_does_not_go_on_from_what_another_thread_writes_meanwhile(
    act: Callable[[nn.Module], Any], run: str
) -> None:
    model, behind, twin = made(), made(), made()
    model[1].insert(1, Gate())  # between two layers
    behind.append(Gate())
    for each in (model, twin):
        tt.unroll(each, X)
        tt.detach_states(each)
    with at_the_gate(lambda: RUNS[run](model)) as future:
        act(model)
        after = tt.get_states(model)
    with pytest.raises(RuntimeError, match=MIXTURE):
        future.result()
    assert equal(tt.get_states(model), after)
    with at_the_gate(lambda: tt.unroll(behind, X)):  # where it has met all layers, it does
        act(behind)
    assert equal(tt.get_states(behind), tt.get_states(twin))


def test_passes_nest_in_one_thread() -> None:
    def exact() -> Any:
        return with_dyadic_weights(made()[:2])  # up to the readout

    def forward(outer: Any, x: Tensor) -> Tensor:
        around = current_pass()
        y = tt.unroll(outer.net, torch.stack([x, x]), segment=1)
        torch.autograd.grad(y.sum(), x, retain_graph=True)  # runs a segment again
        assert current_pass() is around
        rest = tt.unroll(outer.net, torch.stack([x, x]), from_rest=True)
        return outer.net(y[-1]) + rest[-1]

    model, twin = module(forward, net=exact()), exact()
    x = dyadic(T, B, N).requires_grad_()
    found = tt.unroll(model, x, by="step")
    expected = []
    for step in x.unbind(0):
        pair = torch.stack([step, step])
        rest = tt.unroll(twin, pair, from_rest=True)
        expected.append(twin(tt.unroll(twin, pair)[-1]) + rest[-1])
    assert torch.equal(found, torch.stack(expected))
    assert equal(tt.get_states(model.net), tt.get_states(twin))


@pytest.mark.parametrize("by", ["layer", "step"])
def test_a_segment_runs_again_in_a_thread_of_autograds(by: By) -> None:
    """As on a GPU, while this thread waits, and while it runs the model."""
    model, x = made(), X.clone().requires_grad_()
    expected = torch.autograd.grad(tt.unroll(model, x, by=by, from_rest=True).sum(), x)
    y = tt.unroll(model, x, by=by, segment=2, from_rest=True)
    results: list[Any] = []
    done = threading.Event()

    def backward() -> None:  # a thread that Python's threading has not started
        try:
            results.append(torch.autograd.grad(y.sum(), x, retain_graph=True))
        finally:
            done.set()

    for busy in (False, True):
        done.clear()
        _thread.start_new_thread(backward, ())
        while busy and not done.is_set():
            tt.unroll(model, X, by=by, from_rest=True)
        assert done.wait(120)
    for found in results:
        torch.testing.assert_close(found, expected)


@contextmanager
def failing(module: nn.Module, call: int) -> Iterator[list[int]]:
    """Let the call of a number of a module fail, behind it, within a block."""
    calls: list[int] = []

    def hook(*_: Any) -> None:
        calls.append(1)
        if len(calls) == call:
            raise ZeroDivisionError

    handle = module.register_forward_hook(hook)
    try:
        yield calls
    finally:
        handle.remove()


@pytest.mark.parametrize(("name", "by"), WAYS)
def test_a_call_that_fails_anywhere_leaves_states_as_they_were(name: str, by: By) -> None:
    model, twin = made(name), made(name)
    for each in (model, twin):
        tt.unroll(each, X, by=by)
        tt.detach_states(each)
    before, values = states_of(model), tt.get_states(model)
    failed = 0
    for part, call in itertools.product(model.modules(), range(1, T + 1)):
        with failing(part, call) as calls:
            with suppress(ZeroDivisionError):
                tt.unroll(model, X, by=by, from_rest=True)
            count = len(calls)
            calls.clear()
            if count < call:  # called less often in all
                continue
            with pytest.raises(ZeroDivisionError):
                tt.unroll(model, X, by=by)
        failed += 1
        assert all(a is b for a, b in zip(states_of(model), before, strict=True))
        assert current_pass() is None
    assert failed >= (3 if by == "layer" else 3 * T)
    assert equal(tt.get_states(model), values)
    assert torch.equal(tt.unroll(model, X, by=by), tt.unroll(twin, X, by=by))


def raising(kind: type[BaseException] = torch.OutOfMemoryError) -> Any:
    def forward(s: Any, x: Tensor) -> Tensor:
        raise kind("Tried to allocate 2.00 GiB.")

    return module(forward)


@pytest.mark.parametrize(
    "kind", [ZeroDivisionError, KeyboardInterrupt, SystemExit, torch.OutOfMemoryError]
)
@pytest.mark.parametrize("run", [*RUNS, "one step"])
def test_a_failed_run_of_any_kind_leaves_states_as_they_were(run, kind):
    model = made()
    tt.unroll(model, X)
    model.append(raising(kind))
    before = states_of(model)
    with pytest.raises(kind, match="Tried to allocate"):
        RUNS[run](model) if run in RUNS else snn.Recurrent(model, nn.Linear(N, N).double(), N)(X[0])
    assert all(a is b for a, b in zip(states_of(model), before, strict=True))
    assert current_pass() is None
    del model[-1]
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(tt.unroll, model, X).exception() is None


def interrupt_at(number: int) -> Callable[..., None]:
    """Return a profiler that interrupts at an event of a number: where Python looks for signals."""
    events = itertools.count(1)

    def profile(frame: object, event: str, *_: object) -> None:
        # not before a call of C: a lock would not be left, as it is by a signal
        if event != "c_call" and next(events) == number:
            sys.setprofile(None)
            raise KeyboardInterrupt

    return profile


@pytest.mark.parametrize(
    ("name", "by", "stride"),
    [
        ("dense", "layer", 1),
        ("recurrent", "layer", 3),
        ("population", "layer", 17),
        ("residual", "step", 17),
        ("memory", "step", 11),
    ],
)
def test_a_call_interrupted_anywhere_leaves_no_mixture(name: str, by: By, stride: int) -> None:
    model, twin = made(name), made(name)
    with torch.no_grad():
        for each in (model, twin):
            tt.unroll(each, X, by=by)
        values = tt.get_states(model)
        tt.unroll(twin, X, by=by)
        ends = tt.get_states(twin)
        expected = tt.unroll(twin, X, by=by, from_rest=True)
        for number in itertools.count(1, stride):
            before, done = states_of(model), False
            try:
                sys.setprofile(interrupt_at(number))
                try:
                    tt.unroll(model, X, by=by)
                    done = True
                finally:
                    sys.setprofile(None)
            except KeyboardInterrupt:
                pass
            pairs = zip(before, states_of(model), strict=True)
            moved = [one is not other for one, other in pairs if one is not None]
            assert current_pass() is None, number
            assert all(moved) or not any(moved), number
            if any(moved):
                assert equal(tt.get_states(model), ends), number
                tt.set_states(model, values)
            if done:
                break
        assert number > 10 * stride
        assert torch.equal(tt.unroll(model, X, by=by, from_rest=True), expected)
        tt.set_states(model, values)
        tt.unroll(model, X, by=by)
    assert equal(tt.get_states(model), ends)
    # and what stood in the modules for the length of a pass is taken back by the next one at last
    assert not any({"forward", "__getstate__"} & vars(m).keys() for m in model.modules())


@pytest.mark.parametrize("by", ["layer", "step"])
def test_a_segment_without_memory_leaves_other_graphs_alone(by: Any) -> None:
    net = nn.Sequential(snn.LIF(3), raising())
    with pytest.raises(torch.OutOfMemoryError) as kept:  # as a notebook keeps the last error
        tt.unroll(net, torch.ones(8, 2, 3), by=by, segment=4)
    x = torch.full((3,), 0.5, requires_grad=True)
    x.square().sum().backward()
    assert torch.equal(torch.ones_like(x), x.grad), kept


@pytest.mark.parametrize("tried", [False, True])
def test_out_of_memory_in_a_kernel(tried: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forward and backward, and where a kernel is tried; states and gradients are as before."""
    monkeypatch.setattr(backend_named("cpu"), "tried", tried)
    net = nn.Sequential(nn.Linear(3, 3), snn.LIF(3, beta=0.8125))
    y = tt.unroll(net, torch.ones(8, 2, 3))
    before = net[1].mem
    for kernel in ("forward", "backward"):
        monkeypatch.setattr(CpuBackend, kernel, lambda *_: raising()(X))
    with pytest.raises(torch.OutOfMemoryError, match="backward pass of LIF, of 8 steps: Tried"):
        y.sum().backward()
    assert net[1].raw_beta.grad is None
    with pytest.raises(torch.OutOfMemoryError, match="Tried to allocate"):
        tt.unroll(net, torch.ones(8, 2, 3))
    assert net[1].mem is before
