"""A linear recurrence in Triton, against steps: on a GPU, or by its interpreter at the end."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tracetorch as tt
from benchmarks.gpu.compiled import Compiled, compiled_source
from tests import cases
from tests.fuse.codegen.test_triton_loops import DEVICE, INTERPRETED, interpret, on_gpu
from tests.snn.test_recurrent import by_step, check, dyadic, made
from tracetorch import fuse, snn
from tracetorch.fuse.codegen.triton_recurrence import loop_arguments, recurrence_source
from tracetorch.fuse.dispatch import backends, plans
from tracetorch.fuse.dispatch.backends import backend_named
from tracetorch.fuse.ir.kernel import Dtype, KernelBuilder, Role
from tracetorch.fuse.ir.plan import LearningPlan
from tracetorch.fuse.ir.schedule import recurrent_backward_kernel, recurrent_forward_kernel
from tracetorch.fuse.runtime import gpu_recurrence
from tracetorch.fuse.runtime.gpu_recurrence import LARGEST, TritonLoop, recurrence_options, tile_of
from tracetorch.fuse.runtime.recurrence import Buffers, Shape

F32, F64 = torch.float32, torch.float64
SHAPES: list[tuple[tuple[int, ...], int, torch.dtype]] = [
    *(((9, 1, 1), 0, F32), ((5, 3, 33), 0, F32), ((9, 17, 3), 0, F32), ((4, 5, 100), 0, F32)),
    *(((9, 1, 1), 3, F64), ((5, 3, 33), 3, F64), ((9, 17, 3), 3, F32), ((4, 5, 100), 0, F64)),
    *(((4, 5), 0, F64), ((3, 2, 3, 5), 3, F32)),
]


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """List the launches of recurrent kernels but those of trials, on few processors."""
    monkeypatch.setattr(backend_named("triton"), "tried", False)
    found: list[str] = []
    run = TritonLoop.run

    def spy(self: TritonLoop, backward: bool, *rest: Any) -> None:
        found.append("backward" if backward else "forward")
        run(self, backward, *rest)

    monkeypatch.setattr(TritonLoop, "run", spy)
    monkeypatch.setattr(gpu_recurrence, "_processors", lambda device: 3)
    return found


def under(backend: str, run: Any) -> Any:
    def requested(model: Any, x: Tensor) -> Any:
        with fuse.backend(backend):
            return run(model, x)

    return requested


def agree(model: Any, x: Tensor, *, live: bool = False, exact: bool = True) -> None:
    """Assert that the kernel computes what steps compute: values, and gradients by name."""
    tolerance = 1e-10 if x.dtype == F64 else 2e-5
    steps, loop = under("eager", by_step), under("triton", tt.unroll)
    model, x = model.to(DEVICE), x.to(DEVICE)
    check(model, x, live=live, exact=exact, tolerance=tolerance, steps=steps, loop=loop)


class TestAgainstSteps:
    pytestmark = on_gpu

    @pytest.mark.parametrize("max_delay", [0, 3])
    @pytest.mark.parametrize(
        ("name", "exact"),
        [
            *(("BLIF", True), ("BSRLIF", True), ("AdLIF", False), ("SRReadout", False)),
            *(("Smooth", False), ("Silent", True)),
        ],
    )
    def test_neurons(self, name: str, exact: bool, max_delay: int, launches: list[str]) -> None:
        # sums of products with spikes are exact, those with membranes are not
        for live in (False, True):
            agree(made(name, max_delay=max_delay), dyadic(9, 4, 5), live=live, exact=exact)
        # nothing comes back to spikes without a gradient
        assert launches == (["forward"] if name == "Silent" else ["forward", "backward"]) * 2

    @pytest.mark.parametrize(("shape", "max_delay", "dtype"), SHAPES, ids=str)
    def test_shapes(
        self, shape: tuple[int, ...], max_delay: int, dtype: torch.dtype, launches: list[str]
    ) -> None:
        model = made("LIF", shape[-1], dtype, max_delay=max_delay)
        agree(model, dyadic(*shape, dtype=dtype), live=True)
        assert launches == ["forward", "backward"]

    def test_segments_begin_at_checkpoints(self, launches: list[str]) -> None:
        agree(made("BSRLIF"), dyadic(20, 3, 5), live=True)
        agree(made("LIF", 17, F32, bias=False), dyadic(40, 2, 17, dtype=F32))
        assert launches == ["forward", "backward"] * 2

    @pytest.mark.parametrize("frozen", ["weight", "bias", "neuron", "all of them"])
    def test_frozen_parameters(self, frozen: str, launches: list[str]) -> None:
        model = made("LIF")
        for name, p in model.named_parameters():
            p.requires_grad_(frozen not in name and " " not in frozen)
        agree(model, dyadic(6, 3, 5))
        assert launches == ["forward", "backward"]

    def test_strided_inputs(self, launches: list[str]) -> None:
        x = dyadic(6, 4, 5)
        for view in (x.transpose(0, 1).contiguous().transpose(0, 1), x[:1].expand(x.shape)):
            agree(made("LIF"), view)
        agree(made("LIF"), dyadic(6, 4, 10)[..., ::2])
        assert len(launches) == 6

    @pytest.mark.parametrize("reads", [lambda y: y[-1], lambda y: y[::3], lambda y: y[2:4, 1]])
    def test_absent_cotangents(self, reads: Any, launches: list[str]) -> None:
        def some(run: Any) -> Any:
            return lambda model, x: reads(run(model, x))

        model, x = made("BSRLIF").to(DEVICE), dyadic(9, 3, 5).to(DEVICE)
        grads = []
        for run in (under("eager", by_step), under("triton", tt.unroll)):
            tt.zero_states(model)
            given = x.clone().requires_grad_()
            named = [given, *model.parameters()]
            grads.append(torch.autograd.grad(some(run)(model, given).sum(), named))
        torch.testing.assert_close(*grads, rtol=1e-10, atol=1e-12)
        assert launches == ["forward", "backward"]

    def test_no_gradient_is_needed(self, launches: list[str]) -> None:
        for max_delay in (0, 3):
            model, x = made("LIF", max_delay=max_delay).to(DEVICE), dyadic(9, 3, 5).to(DEVICE)
            with torch.no_grad():
                y = under("triton", tt.unroll)(model, x)
                tt.zero_states(model)
                assert torch.equal(y, under("eager", by_step)(model, x))
        assert launches == ["forward"] * 2

    def test_a_weight_that_is_not_finite(self, launches: list[str]) -> None:
        model, x = made("Smooth").to(DEVICE), dyadic(4, 3, 5).to(DEVICE)
        with torch.no_grad():
            model.connection.weight[1, 2] = torch.inf
            y = under("triton", tt.unroll)(model, x)
            tt.zero_states(model)
            expected = under("eager", by_step)(model, x)
        assert expected.isnan().any()
        torch.testing.assert_close(y, expected, equal_nan=True)
        assert launches == ["forward"]

    def test_more_neurons_run_by_step(
        self, launches: list[str], caplog: pytest.LogCaptureFixture, monkeypatch: Any
    ) -> None:
        monkeypatch.setattr(backends, "_reported", set())
        model = snn.Recurrent(snn.LIF(LARGEST + 1), nn.Linear(LARGEST + 1, LARGEST + 1))
        x = dyadic(3, 2, LARGEST + 1, dtype=F32).to(DEVICE)
        model = model.to(DEVICE)
        with caplog.at_level(logging.WARNING, "tracetorch"):
            y = under("triton", tt.unroll)(model, x)
        assert "takes up to 256 neurons, it has 257" in caplog.text
        tt.zero_states(model)
        torch.testing.assert_close(y, under("eager", by_step)(model, x))
        assert launches == []

    def test_a_sparse_connection_runs_by_step(self, launches: list[str]) -> None:
        edges = torch.tensor([[0, 1, 2], [1, 2, 0]])
        model = snn.Recurrent(snn.LIF(3), snn.SparseLinear(3, 3, edges)).to(DEVICE)
        agree(model.double(), dyadic(5, 2, 3))
        assert launches == []


# Tried on a sample, with faults planted


FAULTS = {
    "results": (("total = tl.dot", "total = 1.01 * tl.dot"), "forward", "of the eager step in "),
    "gradients": (("total = tl.dot", "total = 1.01 * tl.dot"), "backward", "in the gradient of "),
    "a spike": (("tl.where(v_b", "tl.where(false | v_b"), "forward", "fails with"),
    "a launch": (("tl.debug_barrier()", "tl.no_such_thing()"), "backward", "fails with"),
}


class TestTrial:
    pytestmark = on_gpu

    @pytest.mark.parametrize("fault", FAULTS)
    def test_a_wrong_kernel_is_refused(self, fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
        change, which, message = FAULTS[fault]

        def source(kernel: Any, *, one_matrix: bool) -> str:
            text = recurrence_source(kernel, one_matrix=one_matrix)
            assert change[0] in text
            return text.replace(*change) if kernel.name == which else text

        monkeypatch.setattr(gpu_recurrence, "recurrence_source", source)
        monkeypatch.setattr(plans, "_programs", {})
        monkeypatch.setattr(backends, "_reported", set())
        x = dyadic(9, 2, 3).to(DEVICE).requires_grad_()
        net = made("LIF", 3).to(DEVICE)
        says = f"kernel {which} of a recurrence of .* {message}"
        with fuse.backend("triton"), pytest.raises(RuntimeError, match=says):
            tt.unroll(net, x).sum().backward()

    @pytest.mark.parametrize("max_delay", [0, 3])
    @pytest.mark.parametrize("name", ["LIF", "BSRLIF", "AdLIF", "EIF", "SRReadout"])
    def test_a_right_kernel_runs(self, name: str, max_delay: int) -> None:
        torch.manual_seed(0)
        model = made(name, 17, F32, max_delay=max_delay)
        with torch.no_grad():  # weights that are not dyadic
            for p in model.connection.parameters():
                p.copy_(torch.randn(p.shape))
        x = cases.sequence(12, 3, 17, dtype=F32).requires_grad_()
        under("triton", tt.unroll)(model.to(DEVICE), x.to(DEVICE)).sum().backward()


# Without Triton


def plan_of(name: str, dtype: torch.dtype = F32) -> LearningPlan:
    program = cases.trace_layer(cases.layer(name, 3).to(dtype), 2, dtype)
    return LearningPlan(program, "triton", -1, (), True, ("x",), program.params)


@pytest.mark.parametrize("one_matrix", [False, True])
@pytest.mark.parametrize("name", ["LIF", "BSRLIF", "AdLIF"])
def test_printed_sources_are_python(name: str, one_matrix: bool) -> None:
    plan = plan_of(name)
    for kernel in (recurrent_forward_kernel(plan), recurrent_backward_kernel(plan)):
        source = recurrence_source(kernel, one_matrix=one_matrix)
        compile(source, name, "exec")
        # in full precision, and states in registers
        assert source.count("tl.dot(") == source.count('input_precision="ieee"') > 0
        assert "at_scratch" not in source
        assert all(f"    {argument},\n" in source for argument in loop_arguments(kernel))
        # with one matrix, once for all of the products of a step
        assert not one_matrix or source.count("tl.dot(") == 1 + (kernel.name == "forward")


@pytest.mark.parametrize("neurons", [1, 16, 33, 100, 128, 256])
@pytest.mark.parametrize("name", ["LIF", "BSRLIF"])
@pytest.mark.parametrize("dtype", [F32, F64])
def test_blocks(name: str, neurons: int, dtype: torch.dtype) -> None:
    plan = plan_of(name, dtype)
    for rows in (1, 3, 32, 5000):
        tile = tile_of(plan, rows, neurons, 108)
        assert neurons <= tile.COLUMNS < max(17, 2 * neurons)
        assert 1 <= tile.ROWS <= 16
        assert tile.ROWS == 1 or rows > (tile.ROWS // 2) * 108
        assert 4 * 32 * tile.num_warps >= tile.ROWS * tile.COLUMNS
        assert tile.num_warps in (1, 2, 4, 8)


def test_memory_of_another_dtype_is_refused() -> None:
    k = KernelBuilder("forward", "nothing", Dtype.FLOAT32)
    for name in ("steps", "every", "segments", "taps"):
        k.size(name)
    k.buffer(Role.LITERALS, "", (1,))
    wrong: Buffers = {Role.LITERALS: (torch.zeros(1, dtype=F64),)}
    with pytest.raises(
        TypeError, match=r"of torch.float32 on cpu, got one of torch.float64 on cpu"
    ):
        gpu_recurrence._arguments(k.kernel(), Shape(1, 1, 1, 1, 1), wrong)


# Compiled for cards that are not there


def compiled(
    name: str, neurons: int, target: str, dtype: torch.dtype, one: bool, rows: int
) -> list[Compiled]:
    """Return both kernels as of tensors whose rows are a multiple of 16, if neurons are."""
    pytest.importorskip("triton", reason="Triton is not installed")
    plan, found = plan_of(name, dtype), []
    tile = tile_of(plan, rows, neurons, 108)._asdict()
    constants = {"inner": 1, **{size: tile.pop(size) for size in ("ROWS", "COLUMNS", "DEPTH")}}
    given = tuple(constants.items()), tuple({**tile, **recurrence_options("cuda")}.items())
    for kernel in (recurrent_forward_kernel(plan), recurrent_backward_kernel(plan)):
        printed = recurrence_source(kernel, one_matrix=one), tuple(loop_arguments(kernel))
        aligned = 1 if neurons % 16 else 16
        found.append(compiled_source(kernel, *printed, target, *given, aligned=aligned))
    return found


SLOW = pytest.mark.slow


@pytest.mark.skipif(INTERPRETED, reason="the interpreter compiles nothing")
@pytest.mark.parametrize("one_matrix", [True, pytest.param(False, marks=SLOW)])
@pytest.mark.parametrize(
    ("name", "neurons", "dtype"),
    [
        ("BLIF", 128, F32),
        *(
            pytest.param(*case, marks=SLOW)
            for case in [
                *(("LIF", 256, F32), ("BSRLIF", 128, F32), ("BSRLIF", 256, F32)),
                *(("AdEx", 128, F32), ("BSRLIF", 100, F32), ("BLIF", 128, F64)),
            ]
        ),
    ],
)
@pytest.mark.parametrize("target", ["sm_80", "sm_90"])
@pytest.mark.parametrize("rows", [32, 5000])
def test_registers(
    name: str, neurons: int, dtype: torch.dtype, one_matrix: bool, target: str, rows: int
) -> None:
    for found in compiled(name, neurons, target, dtype, one_matrix, rows):
        assert found.narrow == 0  # a step times the lanes of one goes beyond 2**31
        assert found.spilled == 0
        assert found.registers <= 255
        assert found.shared <= 40 * 1024


@pytest.mark.skipif(INTERPRETED, reason="runs inside the interpreter already")
def test_under_the_interpreter() -> None:
    interpret("gpu", __file__)
