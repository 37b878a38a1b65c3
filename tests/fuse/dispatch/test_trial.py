"""Faults planted in kernels of the CPU, and the eager steps in their place."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any
from unittest.mock import Mock, create_autospec

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

import tracetorch as tt
from tests import cases
from tests.fuse.cases import CONFIGURATIONS, agree, ends, make
from tests.snn import test_inputs
from tracetorch import fuse, snn
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
    found: Any = []
    failure_of = trial.failure_of
    monkeypatch.setattr(
        *(trial, "failure_of"),
        lambda *given, backward: found.append(backward) or failure_of(*given, backward=backward),
    )
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


def changes(
    kernel: Callable[..., list[Tensor]], change: Callable[[list[Tensor]], object]
) -> Callable[..., list[Tensor]]:
    def planted(self: Any, *given: Any) -> list[Tensor]:
        found = kernel(self, *given)
        change(found)
        return found

    return planted


results, gradients = partial(changes, FORWARD), partial(changes, BACKWARD)


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
def test_faults(name, monkeypatch, caplog) -> None:
    which, planted, says = FAULTS[name]
    layer, x = cases.layer("LIF", 7), cases.sequence(9, 2, 7).float()

    def run(layer: snn.Neuron, x: Tensor) -> Any:
        return layer.forward_sequence(x, record=["mem"])

    expected = ends(layer, x, run, live=True)
    monkeypatch.setattr(plans, "_programs", {})
    plans.plan_for_needs.cache_clear()
    kernel = create_autospec(planted, side_effect=planted)
    monkeypatch.setattr(CpuBackend, which, kernel)
    layer = cases.layer("LIF", 7)
    for _ in range(3):  # where it fails, and where it has failed
        found = ends(layer, x, run, live=True)
        calls = kernel.call_count
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
        assert torch.equal(found[0]["output"], expected[0]["output"])
    ends(cases.layer("LIF", 5), x[..., :5], run)  # of the same program
    assert kernel.call_count == calls <= 4
    (message,) = warnings_of(caplog)
    assert message.startswith("LIF runs step by step in plain PyTorch: the cpu kernel ")
    (program,) = plans._programs.values()
    assert isinstance(program, Program)
    for part in (which, says, program.key, "on cpu", tt.__version__, torch.__version__, "issues"):
        assert part in message, part


@pytest.mark.one_in(3)
@pytest.mark.parametrize("name", cases.SPIKING)
@pytest.mark.parametrize("scale", [0.3, 1.0, 5.0])
def test_a_spike_in_the_last_place(name, scale, monkeypatch) -> None:
    monkeypatch.setattr(CpuBackend, "forward", spike_in_the_last_place)
    for layer in (getattr(snn, name)(7), cases.layer(name, 7)):
        with fuse.backend("cpu"), pytest.raises(RuntimeError, match="of the eager step in output"):
            layer.forward_sequence(scale * cases.sequence(9, 2, 7).float())
        plans._programs.clear()


@pytest.mark.parametrize("place", [nullcontext, partial(FlopCounterMode, display=False)])
def test_prepared_sequences_and_operators_too(place, monkeypatch, caplog) -> None:
    """What ``torch.compile`` calls, as a mode does, has the plan alone, and no layer."""
    x = cases.sequence(4, 2, 5, 2, 3).float()
    x = x.permute(0, 1, 4, 2, 3).contiguous().permute(0, 1, 3, 4, 2)  # channels last

    def run(layer: snn.Neuron, x: Tensor) -> Any:
        with place():
            return layer.forward_sequence(x)[0]

    expected = ends(cases.layer("LIF", 5, dim=-3), x, run)
    plans.plan_for_needs.cache_clear()
    monkeypatch.setattr(plans, "_programs", {})
    monkeypatch.setattr(plans, "_registered", {})
    for which in ("forward", "backward"):
        monkeypatch.setattr(CpuBackend, which, raises(RuntimeError("no")))
    layer = cases.layer("LIF", 5, dim=-3)
    first, second = ends(layer, x, run), ends(layer, x, run)
    torch.testing.assert_close(first, expected)
    torch.testing.assert_close(second, expected)
    if place is not nullcontext:
        assert first[0]["output"].stride() == expected[0]["output"].stride()
    assert len(warnings_of(caplog)) == 1


def test_a_backend_requested_by_name_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = cases.layer("LIF", 3), torch.ones(4, 2, 3)
    monkeypatch.setattr(CpuBackend, "forward", raises(RuntimeError("no")))
    for _ in range(2):
        with fuse.backend("cpu"), pytest.raises(RuntimeError, match="cannot run LIF: the cpu kern"):
            layer.forward_sequence(x)
        assert layer.mem is None
    assert "fails with RuntimeError: no" in str(fuse.unsupported_reason("cpu", layer, x))


def test_missing_memory_is_no_fault_of_a_kernel_and_a_broken_device_is_named(monkeypatch) -> None:
    layer, x = cases.layer("LIF", 3), torch.ones(4, 2, 3)
    monkeypatch.setattr(CpuBackend, "forward", raises(torch.OutOfMemoryError("full")))
    with pytest.raises(torch.OutOfMemoryError, match="full"):
        layer.forward_sequence(x)
    assert fuse.unsupported_reason("cpu", layer, x) is None
    monkeypatch.setattr(CpuBackend, "forward", FORWARD)
    broken = Mock(side_effect=RuntimeError("an illegal memory access was encountered"))
    monkeypatch.setattr(trial, "_wait_for", broken)
    with pytest.raises(RuntimeError, match="cpu unusable for this process, an illegal memory"):
        layer.forward_sequence(x)


def test_random_numbers_too(monkeypatch, caplog) -> None:
    expected = snn.Noise(5, seed=0)(torch.ones(2, 5))
    assert torch.equal(snn.Noise(5, seed=0)(torch.ones(2, 5)), expected)
    wrong = staticmethod(lambda *given: compiled_uniforms(*given)[::-1])
    monkeypatch.setattr(CpuBackend, "uniforms", wrong)
    for _ in range(2):
        trial._failures.clear()
        backends._reported.clear()
        assert torch.equal(snn.Noise(5, seed=0)(torch.ones(2, 5)), expected)
    # one that is known to be wrong is not recorded either
    monkeypatch.setattr(trial, "is_capturing", lambda device: True)
    assert torch.equal(snn.Noise(5, seed=0)(torch.ones(2, 5)), expected)
    trial._failures.clear()
    says = "Noise runs step by step in plain PyTorch: the cpu kernel of random numbers in torch.f"
    assert [each.startswith(says) for each in warnings_of(caplog)] == [True, True]


def test_each_kernel_is_tried_once_where_no_graph_is_recorded(trials, monkeypatch) -> None:
    plans.plan_for_needs.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(trial, "is_capturing", lambda device: True)
        cases.layer("LIF", 3).forward_sequence(torch.ones(4, 2, 3))
    assert trials == []
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
    seen: Any = []
    keep = lambda tensor: seen.append(tensor) or tensor  # noqa: E731
    modes: dict[str, Any] = {
        "no_grad": torch.no_grad(),
        "inference_mode": torch.inference_mode(),
        "autocast": torch.autocast("cpu"),
        "anomaly": torch.autograd.set_detect_anomaly(True),
        "hooks": torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
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
    run = partial(tt.unroll, net, from_rest=True)
    checkpoint(run, torch.ones(4, 2, 3), use_reentrant=False).sum().backward()
    assert net[0].weight.grad is not None


@pytest.mark.one_in(2)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "case", [*CONFIGURATIONS, *((name, {}, (4, 64)) for name in cases.NEURONS)]
)
def test_right_kernels_are_believed(case, dtype, trials, caplog) -> None:
    is_physical = case[0] in cases.NEURONS
    x = cases.NEURONS.get(case[0], 1) * cases.sequence(9, *case[2], dtype=dtype)
    agree(make(case, dtype), x, "cpu", live=not is_physical)
    assert set(trials) == {False, True}
    assert warnings_of(caplog) == []


@pytest.mark.parametrize(("dim", "shape"), cases.PLACES)
def test_right_kernels_of_several_inputs(dim: int, shape: tuple[int, ...]) -> None:
    x, modulator, current = test_inputs.inputs_of(shape, torch.float32)
    further = (modulator.expand(x.shape), current)

    def run(layer: snn.Neuron, *inputs: Tensor) -> Any:
        with fuse.backend("cpu"):
            return layer.forward_sequence(inputs[0], further=inputs[1:])[0]

    ends(test_inputs.made(dim), x, run, further=further)


def test_switch(monkeypatch: pytest.MonkeyPatch, trials: list[bool]) -> None:
    monkeypatch.setattr(backend_named("cpu"), "tried", False)
    cases.layer("LIF", 3).forward_sequence(torch.ones(4, 2, 3))
    assert trials == []
    monkeypatch.delenv(backends.SWITCH, raising=False)
    for setting, wanted in ((None, [False, True]), ("0", [False, False]), ("1", [True, True])):
        if setting is not None:
            monkeypatch.setenv(backends.SWITCH, setting)
        assert [backends.is_wanted(each) for each in (CpuBackend(), TritonBackend())] == wanted
    monkeypatch.setenv(backends.SWITCH, "yes")
    with pytest.raises(ValueError, match=r"TRACETORCH_CHECK_KERNELS must be 1, which .* got 'yes'"):
        backends.is_wanted(CpuBackend())
