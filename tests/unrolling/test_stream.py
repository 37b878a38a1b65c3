"""``tt.Stream``: many streams of one model, in one thread and in several, as a server has them."""

from __future__ import annotations

import copy
import functools
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.checkpoint import checkpoint

import tracetorch as tt
from tests.cases import few, module, sequence, stepped
from tests.refusals import check, refusals
from tests.unrolling.test_threads import NETWORKS, B, N, T, X, equal, failing, made, switching_often
from tests.unrolling.test_threads import states_of as states_on
from tracetorch.snn.passes import current_pass


def steps(stream: tt.Stream, x: Tensor) -> Tensor:
    return torch.stack([stream(step) for step in x])


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_stream_is_the_model_with_states_of_its_own(name: str, grad: bool) -> None:
    model, twin = made(name), made(name)
    by: Any = "step" if name == "memory" else "layer"
    for each in (model, twin):
        tt.unroll(each, X, by=by)
        tt.detach_states(each)
    before, held = states_on(model), tt.get_states(model)
    stream, mask = tt.Stream(model), torch.tensor([True, False])
    tt.zero_states(twin)
    with torch.set_grad_enabled(grad):
        torch.testing.assert_close(steps(stream, X), stepped(twin, X))
        torch.testing.assert_close(stream.unroll(-X, by=by), tt.unroll(twin, -X, by=by))
        stream.zero_states(where=mask)
        tt.zero_states(twin, where=mask)
        torch.testing.assert_close(steps(stream, X), stepped(twin, X))
    torch.testing.assert_close(stream.get_states(), tt.get_states(twin))
    again = tt.Stream(model)
    again.set_states(stream.get_states())
    torch.testing.assert_close(again.unroll(X, by=by), tt.unroll(twin, X, by=by))
    again.set_states(held)  # and those of the model itself
    tt.set_states(twin, held)
    torch.testing.assert_close(again.unroll(X, by=by), tt.unroll(twin, X, by=by))
    again.zero_states()
    assert again.get_states() == {}
    assert again(X[0, :1]).shape == (1, N)
    assert all(a is b for a, b in zip(states_on(model), before, strict=True))
    assert current_pass() is None


@pytest.mark.parametrize("way", [{}, {"by": "step"}, {"segment": 2}], ids=str)
def test_gradients_of_a_stream_and_where_they_are_cut(way: Any) -> None:
    model, twin = made(), made()
    stream = tt.Stream(model)
    stream.unroll(X)
    stream.detach_states()
    tt.unroll(twin, X)
    tt.detach_states(twin)
    found = torch.autograd.grad(stream.unroll(-X, **way).square().sum(), [*model.parameters()])
    expected = torch.autograd.grad(tt.unroll(twin, -X, **way).square().sum(), [*twin.parameters()])
    torch.testing.assert_close(found, expected)


@pytest.mark.one_in(3)
@pytest.mark.parametrize("name", few(NETWORKS, "residual", "population", "recurrent with delays"))
def test_a_server_answers_each_request_right(name: str) -> None:
    """Clients that come, go, restart and take turns, in eight threads, on one model."""
    model, twin = made(name), made(name)
    inputs = [sequence(T, 1 + i % 3, N, seed=i) for i in range(6)]
    with torch.no_grad():
        expected = [tt.unroll(twin, torch.cat([x, -x]), by="step", from_rest=True) for x in inputs]
        sessions = [tt.Stream(model) for _ in inputs]  # go on from thread to thread

        def new_client(i: int) -> bool:
            stream, x, y = tt.Stream(model), inputs[i % 6], expected[i % 6]
            right = all(torch.equal(stream(s), t) for s, t in zip((*x, *-x), y, strict=True))
            stream.zero_states()
            other = inputs[(i + 1) % 6]
            close = torch.allclose(steps(stream, other), expected[(i + 1) % 6][:T])
            return right and close

        def old_client(i: int, t: int) -> bool:
            step = (*inputs[i], *-inputs[i])[t]
            return torch.equal(sessions[i](step), expected[i][t])

        with switching_often(), ThreadPoolExecutor(8) as pool:
            answers = []
            for t in range(2 * T):
                answers += [pool.submit(new_client, 10 * t + k) for k in range(4)]
                turns = [pool.submit(old_client, i, t) for i in range(6)]
                answers += turns
                for turn in turns:  # a client waits for its answer
                    turn.result()
            assert all(answer.result() for answer in answers)
    assert not any(state is not None for state in states_on(model))


@pytest.mark.parametrize("part", [1, 2, 3])
def test_a_step_that_fails_leaves_the_stream_as_it_was(part: int) -> None:
    model = nn.Sequential(*made(), *made("recurrent"))
    stream = tt.Stream(model)
    stream(X[0])
    before = stream.get_states()
    run: Callable[..., Any]
    for run, x in ((stream, X[1]), (stream.unroll, X)):
        with failing(model[part], 1), pytest.raises(ZeroDivisionError):
            run(x)
        assert equal(stream.get_states(), before)
    with pytest.raises(ValueError, match=r"holds the state mem of shape \[2, 4\]"):
        stream(X[1, :1])
    with pytest.raises(ValueError, match="no state is called"):
        stream.set_states({"mem": X[0]})
    assert equal(stream.get_states(), before)


def test_a_stream_runs_in_one_thread_at_a_time() -> None:
    entered, opened = threading.Event(), threading.Event()

    class Waits(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            entered.set()
            assert opened.wait(120)
            return x

    model = nn.Sequential(made(), Waits())
    stream = tt.Stream(model)
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(stream, X[0])
        assert entered.wait(120)
        with pytest.raises(ValueError, match=r"by two threads at once.* tt.Stream\(model\) for ea"):
            stream(X[0])
        opened.set()
        assert torch.equal(answer.result(), tt.Stream(model)(X[0]))
    stream(X[1])


@pytest.mark.slow
def test_a_model_compiled_by_torch_runs_in_streams() -> None:
    model = made()
    expected = tt.unroll(made(), X, by="step")
    torch.compiler.reset()
    with torch.no_grad():
        for each in (traced(model), model):
            streams = tt.Stream(each), tt.Stream(each)
            for _ in range(2):
                both = torch.stack([torch.stack([s(step) for s in streams]) for step in X])
                torch.testing.assert_close(both, torch.stack([expected, expected], 1))
                for stream in streams:
                    stream.zero_states()
    assert not any(state is not None for state in states_on(model))


def calls(run: Callable[[Tensor], Tensor]) -> Any:
    """Make a model that calls a stream of another one, or a model that it does not hold."""
    return module(lambda s, x: s.cell(run(x)), cell=tt.snn.LIF(N).double())


traced: Any = functools.partial(torch.compile, backend="eager")


def recomputed(stream: tt.Stream) -> None:
    x = X[0].clone().requires_grad_()
    checkpoint(stream, x, use_reentrant=False).sum().backward()


def test_a_stream_goes_on_behind_a_model_in_another_dtype_as_its_error_says() -> None:
    model = made().float()
    stream, x = tt.Stream(model), X.float()
    stream(x[0])
    expected = stream.get_states()
    model.double()
    with pytest.raises(ValueError, match=r"follow model\.to.*, but for a tt\.Stream"):
        stream(x[1].double())
    stream.set_states({name: state.double() for name, state in expected.items()})
    y = stream(x[1].double())
    model.float()
    stream.set_states(expected)
    assert torch.allclose(y.float(), stream(x[1]), atol=1e-5)


@refusals(
    r"""
    tt.Stream(X) -> TypeError: must be a torch\.nn\.Module|nn\.Module
    tt.Stream(tt.online(made())) -> ValueError: a learner for each stream, each wi
    copy.copy(s) -> TypeError: copy no stream
    copy.deepcopy((s.detach_states(), s)) -> TypeError: copy no stream
    tt.unroll(calls(s), X) -> ValueError: inside of tt.unroll or of a
    tt.unroll(calls(s), X, by="step") -> ValueError: inside of tt.unroll or of a
    tt.Stream(calls(s))(X[0]) -> ValueError: would be no part of that call
    tt.Stream(calls(made().forward))(X[0]) -> ValueError: in a stream, and is no part of
    tt.Stream(traced(calls(made().forward)))(X[0]) -> ValueError: in a stream, and is no part of its
    torch.vmap(s)(X) -> ValueError: a stream cannot run in torch.func transforms
    recomputed(s) -> ValueError: called inside backward\(\).* Use stream.unroll\(x, segment=\.\.\.
    make_fx(s)(X[0]) -> RuntimeError: a stream is traced, and the states
    """
)
def test_what_cannot_be_right_says_so(call: str, error: str) -> None:
    stream = tt.Stream(made())
    stream(X[0])
    check(call, error, {**globals(), "copy": copy, "make_fx": make_fx, "s": stream})
    assert current_pass() is None
    assert len(stream(X[1])) == B
