from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests import cases
from tests.fuse import interpreted_libdevice
from tests.fuse.cases import CONFIGURATIONS, ends, make, name_of
from tests.fuse.ir import test_lower
from tests.snn import test_inputs
from tracetorch import functional, fuse, snn
from tracetorch.fuse.codegen.triton_loops import triton_source
from tracetorch.fuse.dispatch import backends, plans
from tracetorch.fuse.ir import plan as ir_plan
from tracetorch.fuse.ir.plan import Plan
from tracetorch.fuse.ir.schedule import backward_kernel, forward_kernel
from tracetorch.fuse.runtime import gpu
from tracetorch.fuse.runtime.gpu import TritonBackend
from tracetorch.fuse.runtime.threefry import uniforms

INTERPRETED = os.environ.get("TRITON_INTERPRET", "0") not in ("", "0")
DEVICE = "cpu" if INTERPRETED else "cuda"
REASON = fuse.unavailable_reason("triton")
if INTERPRETED and REASON is None:
    import triton.language.extra

    # Triton's interpreter lacks libdevice, which the printed kernels import
    triton.language.extra.libdevice = interpreted_libdevice
    sys.modules["triton.language.extra.libdevice"] = interpreted_libdevice
TRITON = tuple(map(int, version("triton").split(".")[:2])) if REASON is None else (0, 0)


# These run on a GPU where there is one, and otherwise by the two tests at the end of this file.
on_gpu = [pytest.mark.gpu, pytest.mark.skipif(REASON is not None, reason=str(REASON))]


def _everything_but_erf(
    x: Tensor, mem: Tensor, top: Tensor, beta: Tensor, base: Tensor, spike: Any
) -> Any:
    near = x.clamp(-1.0, 1.0)
    positive = near * near + 0.5
    waves = torch.sin(x) + torch.cos(mem) + torch.tan(0.3 * near) + torch.atan2(near, positive)
    bends = torch.tanh(mem) + torch.atan(x) + torch.sigmoid(x)
    grows = torch.exp(-x.abs()) + torch.expm1(near) + torch.sinh(near) + torch.cosh(near)
    roots = torch.sqrt(positive) + torch.log(positive) + torch.log1p(positive)
    powers = torch.log2(positive) + positive**1.3 + torch.nn.functional.softplus(x)
    steps = torch.floor(x) + torch.ceil(x) + torch.trunc(x) + torch.round(x)
    mem = beta * mem + x + 0.01 * (waves + bends + grows + roots + powers)
    odd = ((x > 0.5) & ~(x >= 1.0)) | torch.logical_xor(x < -1.0, x <= -0.5)
    output = spike(mem - base) + torch.where(odd & (x != 0.25), base, -0.3) + 0.0 * steps
    return output, mem, torch.maximum(torch.minimum(top, mem), -base)


class Common(snn.Neuron):
    """Step with all operations that printers know, where they are smooth, far from thresholds."""

    states = ("mem", "top")

    def __init__(self, num_neurons: int, dim: int = -1) -> None:
        super().__init__(num_neurons, dim)
        self.decay("beta", 0.9)
        self.threshold("base", 1.0)

    @staticmethod
    def step(x: Tensor, mem: Tensor, top: Tensor, *, beta: Tensor, base: Tensor, spike: Any) -> Any:
        return _everything_but_erf(x, mem, top, beta, base, spike)


class Everything(Common):
    """The same with what JavaScript lacks."""

    @staticmethod
    def step(x: Tensor, mem: Tensor, top: Tensor, *, beta: Tensor, base: Tensor, spike: Any) -> Any:
        return _everything_but_erf(x + 0.01 * torch.erf(mem), mem, top, beta, base, spike)


def everything(dim: int = -1, kind: type[Common] = Everything) -> snn.Neuron:
    layer = kind(3, dim=dim)
    cases.vary(layer)
    return layer


@pytest.fixture
def short_segments(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Make checkpoint intervals one to three steps long."""
    plans.plan_for_needs.cache_clear()
    monkeypatch.setattr(plans, "_registered", {})
    monkeypatch.setattr(ir_plan, "SCRATCH", 6 * TritonBackend.tile)
    yield
    plans.plan_for_needs.cache_clear()


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fill new memory with NaN, so that an unwritten result shows."""
    empty, new_empty = torch.empty, Tensor.new_empty

    def fill(made: Tensor) -> Tensor:
        return made.fill_(torch.nan) if made.is_floating_point() else made

    monkeypatch.setattr(torch, "empty", lambda *a, **k: fill(empty(*a, **k)))
    monkeypatch.setattr(Tensor, "new_empty", lambda *a, **k: fill(new_empty(*a, **k)))


def agree(
    layer: snn.Neuron,
    x: Tensor,
    record: tuple[str, ...] = (),
    further: tuple[Tensor, ...] = (),
    *,
    exact: bool = True,
) -> None:
    layer, x = layer.to(x.dtype).to(DEVICE), x.to(DEVICE)
    further = tuple(each.to(DEVICE) for each in further)

    def run(backend: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        def runs(layer: snn.Neuron, x: Tensor, *others: Tensor) -> Any:
            with fuse.backend(backend):
                return layer.forward_sequence(x, record=record, further=others)

        return ends(layer, x, runs, live=True, further=further)

    (values, grads), (found, found_grads) = run("eager"), run("triton")
    eps = torch.finfo(x.dtype).eps
    for name, value in values.items():
        if exact:
            assert torch.equal(found[name], value), name
        else:
            torch.testing.assert_close(found[name], value, rtol=32 * eps, atol=32 * eps)
    assert found_grads.keys() == grads.keys()
    tolerance = 1e-6 if x.dtype == torch.float32 else 1e-12
    for name, grad in grads.items():
        error = float((found_grads[name] - grad).abs().max())
        assert error <= tolerance * (1.0 + float(grad.abs().max())), f"{name}: {error}"


# Against the eager loop


@pytest.mark.usefixtures("short_segments", "poisoned")
class TestParity:
    pytestmark = on_gpu

    @pytest.mark.one_in(7)
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize("case", CONFIGURATIONS, ids=name_of)
    def test_configurations(self, case: Any, dtype: torch.dtype) -> None:
        for steps in (1, 5, 9):
            layer = make(case, dtype)
            record = layer.active_states[-1:] if steps == 9 else ()
            agree(layer, cases.sequence(steps, *case[2], dtype=dtype), record)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize(("dim", "shape"), cases.PLACES)
    def test_every_operation(self, dim: int, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        x = cases.sequence(5, *shape, dtype=dtype)
        agree(everything(dim), x, ("mem", "top"), exact=False)

    @pytest.mark.skipif(not INTERPRETED, reason="a GPU has its own zeros and last places")
    @pytest.mark.parametrize("dtype", cases.few([torch.float32, torch.float64], torch.float32))
    @pytest.mark.parametrize("every", cases.few([5, 1], 5))
    def test_lowering_rules(self, dtype: torch.dtype, every: int) -> None:
        rules = test_lower.FUNCTIONS[::every]
        results = test_lower.by_layer([function for _, function in rules], dtype, "triton")
        if TRITON < (3, 9):  # its interpreter rounds a multiply-add twice, and negates by 0 - x
            for (_, function), found in zip(rules, results, strict=True):
                for f, e in zip(found, test_lower.expected(function, dtype), strict=True):
                    near = e.isfinite() & (e.abs() > 1e-6) & (e.abs() < 1e6)
                    torch.testing.assert_close(f[near], e[near], rtol=1e-4, atol=1e-6)
        else:
            test_lower.check(rules, results, dtype)

    @pytest.mark.parametrize("start", [0, 2**32 - 2, 2**62 - 1])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_random_numbers(self, dtype: torch.dtype, start: int) -> None:
        """As on the CPU, ``tests/fuse/runtime/test_threefry.py``."""
        for shape in ((), (3, 5), (2, 3, 43)):
            lanes = torch.arange(torch.Size(shape).numel(), device=DEVICE)
            position = (start - lanes.remainder(3)).clamp(min=0).reshape(shape)
            found = TritonBackend().uniforms(position, 7, dtype)
            assert all(map(torch.equal, found, uniforms(position, 7, dtype)))
            assert found[0].shape == (7, *shape)

    def test_strided_inputs(self) -> None:
        wide = cases.sequence(9, 4, 7, dtype=torch.float32)
        agree(cases.layer("SLIF", 7), wide[:, ::2])
        agree(cases.layer("SLIF", 4), wide.transpose(1, 2))
        agree(cases.layer("SLIF", 9), wide.permute(1, 2, 0))
        agree(cases.layer("SLIF", 1), wide[::2, :, 3:4])
        images = cases.sequence(5, 2, 3, 4, 2, dtype=torch.float32).permute(0, 1, 4, 2, 3)
        agree(cases.layer("LIF", 2, dim=-3), images)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize(("dim", "shape"), cases.PLACES)
    def test_several_inputs(self, dim: int, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        x, modulator, current = test_inputs.inputs_of(shape, dtype)
        agree(test_inputs.made(dim), x, ("trace",), (modulator.expand(x.shape), current))

    def test_nan_and_infinity(self) -> None:
        layer = everything().to(DEVICE)
        x = torch.tensor([[1.0, torch.nan, torch.inf], [-torch.inf, 0.0, 0.5]], device=DEVICE)
        found = []
        for backend in ("triton", "eager"):
            layer.zero_states()
            with torch.no_grad(), fuse.backend(backend):
                found.append(layer.forward_sequence(x, record=["mem", "top"]))
        torch.testing.assert_close(*found, equal_nan=True)

    @pytest.mark.parametrize("name", cases.NEURONS)
    def test_neurons(self, name: str) -> None:
        x = cases.NEURONS[name] * cases.sequence(9, 2, 3, dtype=torch.float32)
        agree(cases.layer(name, 3), x, exact=name not in cases.INEXACT)

    @pytest.mark.slow
    @pytest.mark.parametrize("synapse", [False, True])
    @pytest.mark.parametrize("recurrence", [False, True])
    def test_leaky_integrators(self, synapse: bool, recurrence: bool) -> None:
        for setups in list(cases.configurations(synapse, recurrence))[::9]:
            layer = snn.LeakyIntegrator(3, **setups)
            cases.vary(layer)
            agree(layer, cases.sequence(5, 2, 3, dtype=torch.float32))

    @pytest.mark.slow
    def test_sums_over_many_steps(self) -> None:
        x = cases.sequence(300, 2, 3, dtype=torch.float64)
        agree(cases.layer("SReadout", 3), x, ("mem",))


# Faults planted in the source of a kernel, as tests/fuse/dispatch/test_trial.py does on the CPU

FAULTS = {
    "compile": (r"(    zero = )", r"    tl.no_such_function(lane)\n\1", "forward .* fails with "),
    "tie": (r"(v_\w+) > zero", r"\1 >= zero",
     "forward .* gives 1 for 0 of the eager step in output"),
    "state": (r"(at_end_mem \+ lane, )", r"\1 1.001 * ", "forward .* in next_mem"),
    "nan": (r"(at_end_mem \+ lane, )(\w+)", r"\1 tl.where(\2 == \2, \2, zero)",
     "forward .* gives 0 for nan"),
    "gradient": (r"(at_grad_start_mem \+ lane, )", r"\1 1.001 * ", "backward .* gradient of mem"),
}  # fmt: skip


@pytest.mark.gpu
@pytest.mark.skipif(REASON is not None, reason=str(REASON))
@pytest.mark.parametrize("name", FAULTS)
def test_a_kernel_with_a_fault_is_not_used(
    name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pattern, planted, says = FAULTS[name]
    layer, x = cases.layer("LIF", 7).to(DEVICE), cases.sequence(9, 2, 7).float().to(DEVICE)
    with fuse.backend("eager"):
        expected = ends(layer, x, lambda layer, x: layer.forward_sequence(x)[0], live=True)
    changed: list[int] = []

    def source(kernel: Any) -> str:
        text, count = re.subn(pattern, planted, triton_source(kernel))
        changed.append(count)
        return text

    monkeypatch.setattr(gpu, "triton_source", source)
    monkeypatch.setattr(plans, "_programs", {})
    monkeypatch.setattr(backends, "_reported", set())
    monkeypatch.setattr(backends, "_BY_DEVICE", {DEVICE: "triton"})
    plans.plan_for_needs.cache_clear()
    for _ in range(2):
        found = ends(layer, x, lambda layer, x: layer.forward_sequence(x)[0], live=True)
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    plans.plan_for_needs.cache_clear()
    assert any(changed)
    (record,) = caplog.records
    assert re.search(rf"LIF runs step by step .* kernel {says}", record.getMessage())


# Without Triton


def printed(layer: snn.Neuron, dtype: torch.dtype) -> list[str]:
    program = cases.trace_layer(layer.to(dtype), 2, dtype)
    sources = []
    for differentiated, record in ((program.inputs, program.states), ((), ())):
        for trained in (program.params, ()):
            plan = Plan(program, "triton", -1, record, True, differentiated, trained)
            sources += [triton_source(forward_kernel(plan)), triton_source(backward_kernel(plan))]
    return sources


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_printed_sources_compile(dtype: torch.dtype) -> None:
    layers = [cases.layer(name, 3) for name in (*cases.LAYERS, *cases.NEURONS)]
    layers += [cases.layer("LIF", 3, surrogate_derivative=s) for s in cases.SURROGATES]
    for layer in [*layers, everything(), test_inputs.made()]:
        for source in printed(layer, dtype):
            compile(source, type(layer).__name__, "exec")


def test_slopes_share_one_source() -> None:
    def sources(slope: float) -> list[str]:
        surrogate = functional.atan_surrogate(slope)
        layer = cases.layer("LIF", 3, surrogate_derivative=surrogate)
        return printed(layer, torch.float32)

    assert sources(3.0) == sources(5.0)


# Under Triton's interpreter, which is on or off for a whole process


def interpret(marked: str, file: str = __file__) -> None:
    """Run the tests of a file that ``marked`` selects in a process with the interpreter on."""
    pytest.importorskip("triton", reason="Triton is not installed")
    command = [sys.executable, "-m", "pytest", "-q", "-n", "auto", "-p", "no:cacheprovider"]
    ran = subprocess.run(
        [*command, "-m", marked, file],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert " passed" in ran.stdout
    assert "skipped" not in ran.stdout


@pytest.mark.skipif(INTERPRETED, reason="runs inside the interpreter already")
def test_parity_under_the_interpreter() -> None:
    interpret("gpu and not slow")


@pytest.mark.slow
@pytest.mark.skipif(INTERPRETED, reason="runs inside the interpreter already")
def test_more_under_the_interpreter() -> None:
    interpret("gpu and slow")
