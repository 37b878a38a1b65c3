"""Faults planted in the loops of a linear recurrence, and the steps in their place."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tracetorch as tt
from tests import cases
from tracetorch import fuse, snn
from tracetorch.fuse.dispatch import backends, plans, recurrence, recurrence_trial
from tracetorch.fuse.dispatch.backends import backend_named
from tracetorch.fuse.runtime import recurrence as runtime

FORWARD, BACKWARD = runtime.forward, runtime.backward


@pytest.fixture(autouse=True)
def trials(monkeypatch: pytest.MonkeyPatch) -> list[str | None]:
    """Try kernels of the CPU, know none so far; list what the trials found."""
    found: list[str | None] = []
    failure_of = recurrence_trial.failure_of

    def noted(*given: Any) -> str | None:
        found.append(failure_of(*given))
        return found[-1]

    monkeypatch.setattr(recurrence, "failure_of", noted)
    monkeypatch.setattr(backend_named("cpu"), "tried", True)
    monkeypatch.setattr(plans, "_programs", {})
    monkeypatch.setattr(backends, "_reported", set())
    return found


def model(kind: str, delays: int) -> snn.Recurrent:
    torch.manual_seed(0)
    layer = cases.layer(kind, 5)
    cases.vary(layer)
    connection = snn.DelayedLinear(5, 5, max_delay=delays) if delays else nn.Linear(5, 5)
    return snn.Recurrent(layer, connection).to(torch.float64)


def results(net: snn.Recurrent, x: Tensor) -> list[Tensor]:
    net.zero_grad()
    x = x.detach().requires_grad_()
    y = tt.unroll(net, x, from_rest=True)
    (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)).sum().backward()
    grads = [p.grad for p in net.parameters() if p.grad is not None]
    return [y.detach(), *[grad.clone() for grad in grads], x.grad if x.grad is not None else x]


@pytest.mark.parametrize("delays", [0, 3])
@pytest.mark.parametrize("kind", ["LIF", "SRLIF", "Readout"])
def test_a_loop_is_tried_once(kind: str, delays: int, trials: list[str | None]) -> None:
    net, x = model(kind, delays), cases.sequence(9, 2, 5, dtype=torch.float64)
    found = [results(net, x) for _ in range(2)]
    assert trials == [None, None]  # forward and backward
    assert all(map(torch.equal, *found))
    with torch.no_grad():  # a plan without gradients is another one
        tt.unroll(net, x, from_rest=True)
    tt.zero_states(net)
    tt.unroll(net, x)
    getattr(net.neuron, net.neuron.active_states[-1]).sum().backward()
    assert trials == [None] * 4  # so are other cotangents


def wrong_output(*given: Any) -> Any:
    (output, *rest), kept = FORWARD(*given)
    return [1 - output, *rest], kept


def wrong_state(*given: Any) -> Any:
    (*rest, state), kept = FORWARD(*given)
    return [*rest, state * 1.01], kept


def wrong_gradient(place: int) -> Callable[..., Any]:
    def planted(*given: Any) -> Any:
        found: list[Any] = [*BACKWARD(*given)]
        found[place] = found[place] * 1.01
        return runtime.Gradients(*found)

    return planted


def raises(*given: Any) -> Any:
    raise RuntimeError("out of resources")


FAULTS = {
    "output": ("forward", wrong_output, "of the eager step in output"),
    "state": ("forward", wrong_state, "of the eager step in next_mem"),
    "gradient of x": ("backward", wrong_gradient(0), "in the gradient of x"),
    "gradient of the weight": ("backward", wrong_gradient(2), "in the gradient of the weight"),
    "no launch": ("forward", raises, "RuntimeError: out of resources"),
    "no launch back": ("backward", raises, "RuntimeError: out of resources"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_found_and_steps_run(
    fault: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    name, planted, words = FAULTS[fault]
    net, x = model("LIF", 0), cases.sequence(9, 2, 5, dtype=torch.float64)
    with fuse.backend("eager"):
        expected = results(net, x)
    monkeypatch.setattr(runtime, name, planted)
    with caplog.at_level(logging.WARNING, "tracetorch"):
        for _ in range(2):
            torch.testing.assert_close(results(net, x), expected)
    (said,) = [each.getMessage() for each in caplog.records]
    assert words in said
    assert "LIF runs step by step in plain PyTorch: the cpu kernel " in said
    with fuse.backend("cpu"), pytest.raises(RuntimeError, match=words):
        results(net, x)


def test_the_kernel_that_runs_is_the_one_that_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """One is wrong where cotangents are absent, another with many samples."""

    def absent(loop: Any, *given: Any) -> Any:
        found = BACKWARD(loop, *given)
        return found._replace(x=found.x * 1.01) if loop.plan.absent else found

    def many(loop: Any, x: Tensor, *given: Any) -> Any:
        (output, *rest), kept = FORWARD(loop, x, *given)
        return [1 - output if x.shape[1] > 8 else output, *rest], kept

    for name, planted, says in (
        ("backward", absent, "backward .* in the gradient of x"),
        ("forward", many, "forward .* in output"),
    ):
        with monkeypatch.context() as patched:
            patched.setattr(runtime, name, planted)
            with fuse.backend("cpu"), pytest.raises(RuntimeError, match=f"kernel {says}"):
                results(model("LIF", 0), cases.sequence(9, 9, 5, dtype=torch.float64))
        plans._programs.clear()


def test_products_of_a_trial_are_in_full_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else gradients by TF32, which is the user's to ask for, would look like a fault."""
    seen: list[str] = []
    matmul = torch.backends.cuda.matmul

    def noted(*given: Any) -> Any:
        seen.append(matmul.fp32_precision)
        return BACKWARD(*given)

    monkeypatch.setattr(runtime, "backward", noted)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        results(model("LIF", 0), cases.sequence(9, 2, 5, dtype=torch.float64))
        assert seen == ["ieee", "tf32"]
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before)


def test_memory_that_is_missing_in_a_backward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*given: Any) -> Any:
        raise torch.OutOfMemoryError("full")

    net = model("LIF", 0)
    y = tt.unroll(net, cases.sequence(9, 2, 5, dtype=torch.float64), from_rest=True)
    monkeypatch.setattr(runtime, "backward", full)
    with pytest.raises(
        torch.OutOfMemoryError, match=r"backward pass of .*9 steps: full .*segment="
    ):
        y.sum().backward()
