"""Faults planted in kernels of the CPU, and the eager steps in their place."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import tracetorch as tt
from tests import cases
from tests.fuse.cases import CONFIGURATIONS, agree, ends, fused, make, name_of
from tests.snn import test_inputs
from tracetorch import fuse, snn
from tracetorch.core.torch_private import TorchDispatchMode
from tracetorch.fuse.dispatch import backends, plans, trial
from tracetorch.fuse.dispatch.backends import backend_named
from tracetorch.fuse.ir.trace import Program
from tracetorch.fuse.runtime.backend import Operands
from tracetorch.fuse.runtime.cpu import CpuBackend
from tracetorch.fuse.runtime.gpu import TritonBackend
from tracetorch.fuse.runtime.threefry import compiled_uniforms

FORWARD, BACKWARD = CpuBackend.forward, CpuBackend.backward


@pytest.fixture(autouse=True)
def tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Try kernels of the CPU, and know none so far."""
    monkeypatch.setattr(backend_named("cpu"), "tried", True)
    monkeypatch.setattr(plans, "_programs", {})
    monkeypatch.setattr(backends, "_reported", set())


@pytest.fixture
def trials(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Count the trials: whether each was of a backward kernel."""
    found: list[bool] = []
    failure_of = trial.failure_of

    def noted(*given: Any, backward: bool) -> str | None:
        found.append(backward)
        return failure_of(*given, backward=backward)

    monkeypatch.setattr(trial, "failure_of", noted)
    return found


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [each.getMessage() for each in caplog.records if each.levelno >= logging.WARNING]


# Faults: what a kernel returns in place of its results, or raises


def raises(error: Exception) -> Callable[..., list[Tensor]]:
    def planted(*given: Any) -> list[Tensor]:
        raise error

    return planted


def spike_in_the_last_place(self: Any, plan: Any, layout: Any, given: Operands) -> list[Tensor]:
    """Compare the membrane with the threshold one last place too high, and nothing else."""
    x = torch.nextafter(given.inputs[0], torch.full_like(given.inputs[0], torch.inf))
    spikes = FORWARD(self, plan, layout, given._replace(inputs=[x]))[0]
    return [spikes, *FORWARD(self, plan, layout, given)[1:]]


def results(change: Callable[[list[Tensor]], object]) -> Callable[..., list[Tensor]]:
    def planted(self: Any, *given: Any) -> list[Tensor]:
        found = FORWARD(self, *given)
        change(found)
        return found

    return planted


def gradients(change: Callable[[list[Tensor]], object]) -> Callable[..., list[Tensor]]:
    def planted(self: Any, *given: Any) -> list[Tensor]:
        found = BACKWARD(self, *given)
        change(found)
        return found

    return planted


def other_checkpoints(
    self: Any, plan: Any, layout: Any, given: Operands, checkpoints: Tensor, grads: Any
) -> list[Tensor]:
    return BACKWARD(self, plan, layout, given, checkpoints + 0.1, grads)


FAULTS: dict[str, tuple[str, Callable[..., list[Tensor]], str]] = {
    "compile": ("forward", raises(SyntaxError("no such instruction")), "SyntaxError: no such"),
    "launch": ("forward", raises(RuntimeError("too many resources")), "fails with RuntimeError"),
    "a spike": ("forward", spike_in_the_last_place, "gives 1 for 0 of the eager step in output"),
    "a state": ("forward", results(lambda r: r[1].mul_(1.001)), "in next_mem"),
    "a trajectory": ("forward", results(lambda r: r[2][-1].zero_()), "in record_mem"),
    "the last lanes": ("forward", results(lambda r: r[1].view(-1)[128:].zero_()), "in next_mem"),
    "NaN": ("forward", results(lambda r: r[1].nan_to_num_(0, 0, 0)), "gives 0 for nan"),
    "unwritten": ("forward", results(lambda r: r[0].fill_(torch.nan)), "in output"),
    "backward": ("backward", raises(RuntimeError("misaligned")), "RuntimeError: misaligned"),
    "gradient of x": ("backward", gradients(lambda r: r[0].mul_(1.001)), "the gradient of x"),
    "of a state": ("backward", gradients(lambda r: r[1].neg_()), "the gradient of mem"),
    "checkpoints": ("backward", other_checkpoints, "the gradient of"),
    "of a parameter": ("backward", gradients(lambda r: r[2].zero_()), "the gradient of beta"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_faults(
    name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    which, planted, says = FAULTS[name]
    layer, x = cases.layer("LIF", 7), cases.sequence(9, 2, 7).float()

    def run(layer: snn.Neuron, x: Tensor) -> Any:
        return layer.forward_sequence(x, record=["mem"])

    expected = ends(layer, x, run, live=True)
    kernel_calls = 0

    def counted(*given: Any) -> list[Tensor]:
        nonlocal kernel_calls
        kernel_calls += 1
        return planted(*given)

    monkeypatch.setattr(plans, "_programs", {})
    plans.plan_for_needs.cache_clear()
    monkeypatch.setattr(CpuBackend, which, counted)
    layer = cases.layer("LIF", 7)
    for _ in range(3):  # where it fails, and where it has failed
        found = ends(layer, x, run, live=True)
        calls = kernel_calls
        for values, others in zip(found, expected, strict=True):
            torch.testing.assert_close(values, others, rtol=1e-6, atol=1e-6)
        assert torch.equal(found[0]["output"], expected[0]["output"])
    ends(cases.layer("LIF", 5), x[..., :5], run)  # of the same program
    assert kernel_calls == calls <= 4
    (message,) = warnings_of(caplog)
    assert message.startswith("LIF runs step by step in plain PyTorch: the cpu kernel ")
    (program,) = plans._programs.values()
    assert isinstance(program, Program)
    for part in (which, says, program.key, "on cpu", tt.__version__, torch.__version__, "issues"):
        assert part in message, part


@pytest.mark.parametrize("name", cases.SPIKING)
@pytest.mark.parametrize("scale", [0.3, 1.0, 5.0])
def test_a_spike_in_the_last_place(
    name: str, scale: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CpuBackend, "forward", spike_in_the_last_place)
    for layer in (getattr(snn, name)(7), cases.layer(name, 7)):
        with fuse.backend("cpu"), pytest.raises(RuntimeError, match="of the eager step in output"):
            layer.forward_sequence(scale * cases.sequence(9, 2, 7).float())
        plans._programs.clear()


def test_prepared_sequences_too(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    x = cases.sequence(9, 2, 7).float()
    expected = ends(cases.layer("LIF", 7), x, cases.stepped)
    plans.plan_for_needs.cache_clear()
    for which in ("forward", "backward"):
        monkeypatch.setattr(CpuBackend, which, raises(RuntimeError("no")))
    layer = cases.layer("LIF", 7)
    for _ in range(2):
        torch.testing.assert_close(ends(layer, x, fused("auto")), expected)
    assert len(warnings_of(caplog)) == 1


def test_operators_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """What ``torch.compile`` calls has the plan alone, and no layer."""
    layer, x = cases.layer("LIF", 5, dim=-3), cases.sequence(4, 2, 5, 2, 3).float()
    x = x.permute(0, 1, 4, 2, 3).contiguous().permute(0, 1, 3, 4, 2)  # channels last

    class Seeing(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            return func(*args, **(kwargs or {}))

    def run(layer: snn.Neuron, x: Tensor) -> Any:
        with Seeing():
            return layer.forward_sequence(x)[0]

    expected = ends(layer, x, run)
    plans.plan_for_needs.cache_clear()
    monkeypatch.setattr(plans, "_programs", {})
    monkeypatch.setattr(plans, "_registered", {})
    for which in ("forward", "backward"):
        monkeypatch.setattr(CpuBackend, which, raises(RuntimeError("no")))
    found = ends(cases.layer("LIF", 5, dim=-3), x, run)
    torch.testing.assert_close(found, expected)
    assert found[0]["output"].stride() == expected[0]["output"].stride()


def test_a_backend_requested_by_name_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = cases.layer("LIF", 3), torch.ones(4, 2, 3)
    monkeypatch.setattr(CpuBackend, "forward", raises(RuntimeError("no")))
    for _ in range(2):
        with fuse.backend("cpu"), pytest.raises(RuntimeError, match="cannot run LIF: the cpu kern"):
            layer.forward_sequence(x)
        assert layer.mem is None
    assert "fails with RuntimeError: no" in str(fuse.unsupported_reason("cpu", layer, x))


def test_memory_that_is_missing_is_no_fault_of_a_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = cases.layer("LIF", 3), torch.ones(4, 2, 3)
    monkeypatch.setattr(CpuBackend, "forward", raises(torch.OutOfMemoryError("full")))
    with pytest.raises(torch.OutOfMemoryError, match="full"):
        layer.forward_sequence(x)
    assert fuse.unsupported_reason("cpu", layer, x) is None


def test_a_device_that_a_kernel_has_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(device: torch.device) -> None:
        raise RuntimeError("an illegal memory access was encountered")

    monkeypatch.setattr(trial, "_wait_for", broken)
    with pytest.raises(RuntimeError, match="cpu unusable for this process, an illegal memory"):
        cases.layer("LIF", 3).forward_sequence(torch.ones(4, 2, 3))


def test_a_graph_of_kernels_that_is_recorded_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, trials: list[bool]
) -> None:
    layer, x = cases.layer("LIF", 3), torch.ones(4, 2, 3)
    monkeypatch.setattr(trial, "is_capturing", lambda device: True)
    layer.forward_sequence(x)
    assert trials == []
    monkeypatch.setattr(trial, "is_capturing", lambda device: False)
    layer.forward_sequence(x)
    assert trials == [False]


def test_random_numbers_too(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    expected = snn.Noise(5, seed=0)(torch.ones(2, 5))
    for name in ("right", "wrong", "wrong"):
        if name == "wrong":
            wrong = staticmethod(lambda *given: compiled_uniforms(*given)[::-1])
            monkeypatch.setattr(CpuBackend, "uniforms", wrong)
            trial._failures.clear()
            backends._reported.clear()
        assert torch.equal(snn.Noise(5, seed=0)(torch.ones(2, 5)), expected)
    # one that is known to be wrong is not recorded either
    monkeypatch.setattr(trial, "is_capturing", lambda device: True)
    assert torch.equal(snn.Noise(5, seed=0)(torch.ones(2, 5)), expected)
    trial._failures.clear()
    says = "Noise runs step by step in plain PyTorch: the cpu kernel of random numbers in torch.f"
    assert [each.startswith(says) for each in warnings_of(caplog)] == [True, True]


# Once, and without a trace


def test_each_kernel_is_tried_once(trials: list[bool]) -> None:
    plans.plan_for_needs.cache_clear()
    layer, x = cases.layer("LIF", 3), torch.ones(4, 2, 3, requires_grad=True)
    with torch.no_grad():
        layer.forward_sequence(x)
    for batch in (2, 3, 2):
        layer.zero_states()
        layer.forward_sequence(x[:, :1].expand(4, batch, 3))[0].sum().backward()
    assert trials == [False, False, True]
    layer.zero_states()
    y, _ = layer.forward_sequence(x)
    (y.sum() + layer.mem.sum()).backward()  # other cotangents are another kernel
    assert trials == [False, False, True, True]


@pytest.mark.parametrize("around", ["no_grad", "inference_mode", "autocast", "anomaly", "hooks"])
def test_modes_around_a_trial(around: str, caplog: pytest.LogCaptureFixture) -> None:
    seen: list[Tensor] = []

    def saved(tensor: Tensor) -> Tensor:
        seen.append(tensor)
        return tensor

    modes: dict[str, Any] = {
        "no_grad": torch.no_grad(),
        "inference_mode": torch.inference_mode(),
        "autocast": torch.autocast("cpu"),
        "anomaly": torch.autograd.set_detect_anomaly(True),
        "hooks": torch.autograd.graph.saved_tensors_hooks(saved, lambda tensor: tensor),
    }
    plans.plan_for_needs.cache_clear()
    layer, state = cases.layer("LIF", 3), torch.get_rng_state()
    with modes[around] if around != "anomaly" else nullcontext(), modes["anomaly"]:
        y, _ = layer.forward_sequence(torch.ones(4, 2, 3))
        before = len(seen)
        if y.requires_grad:
            y.sum().backward()
    again = cases.layer("LIF", 3)
    del seen[:]
    with modes[around] if around == "hooks" else nullcontext():
        again.forward_sequence(torch.ones(4, 2, 3))
    assert len(seen) == before  # nothing of the trial is saved beside what the call saves
    assert torch.equal(torch.get_rng_state(), state)
    assert warnings_of(caplog) == []


def test_a_checkpoint_around_a_trial() -> None:
    plans.plan_for_needs.cache_clear()
    net = nn.Sequential(nn.Linear(3, 3), snn.LIF(3))
    y = checkpoint(
        lambda x: tt.unroll(net, x, from_rest=True), torch.ones(4, 2, 3), use_reentrant=False
    )
    y.sum().backward()
    assert net[0].weight.grad is not None


# Kernels that are right


@pytest.mark.parametrize("case", CONFIGURATIONS, ids=name_of)
def test_right_kernels_are_believed(case: Any, caplog: pytest.LogCaptureFixture) -> None:
    for dtype in (torch.float32, torch.float64):
        agree(make(case, dtype), cases.sequence(9, *case[2], dtype=dtype), "cpu", live=True)
    assert warnings_of(caplog) == []


@pytest.mark.parametrize("name", cases.NEURONS)
def test_right_kernels_of_neurons(name: str, trials: list[bool]) -> None:
    for steps, size in ((1, 64), (2, 3), (9, 64)):
        layer, x = cases.layer(name, size), cases.NEURONS[name] * cases.sequence(steps, 4, size)
        for dtype in (torch.float32, torch.float64):
            ends(layer.to(dtype), x.to(dtype), fused("cpu"))  # by name: a refusal is an error
    assert set(trials) == {False, True}


@pytest.mark.parametrize(("dim", "shape"), cases.PLACES)
def test_right_kernels_of_several_inputs(dim: int, shape: tuple[int, ...]) -> None:
    x, modulator, current = test_inputs.inputs_of(shape, torch.float32)
    further = (modulator.expand(x.shape), current)

    def run(layer: snn.Neuron, *inputs: Tensor) -> Any:
        with fuse.backend("cpu"):
            return layer.forward_sequence(inputs[0], further=inputs[1:])[0]

    ends(test_inputs.made(dim), x, run, further=further)


# The switch


@pytest.mark.parametrize(
    ("setting", "cpu", "gpu"), [(None, False, True), ("0", False, False), ("1", True, True)]
)
def test_switch(setting: str | None, cpu: bool, gpu: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(backends.SWITCH, raising=False)
    if setting is not None:
        monkeypatch.setenv(backends.SWITCH, setting)
    assert backends.is_wanted(CpuBackend()) == cpu
    assert backends.is_wanted(TritonBackend()) == gpu


def test_switch_refuses_other_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(backends.SWITCH, "yes")
    with pytest.raises(ValueError, match=r"TRACETORCH_CHECK_KERNELS must be 1, which .* got 'yes'"):
        backends.is_wanted(CpuBackend())


def test_without_the_switch_nothing_is_tried(
    monkeypatch: pytest.MonkeyPatch, trials: list[bool]
) -> None:
    monkeypatch.setattr(backend_named("cpu"), "tried", False)
    cases.layer("LIF", 3).forward_sequence(torch.ones(4, 2, 3))
    assert trials == []
