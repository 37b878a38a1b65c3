"""Compare kernels in machine code with the evaluator, bit by bit, here and on a lesser machine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from tests import cases
from tests.fuse.kernels import aligned, evaluated, lesser_machine, run_compiled
from tests.fuse.verify import verify
from tracetorch.fuse.codegen.llvm_kernel import Processor, most_alive, print_kernel
from tracetorch.fuse.ir.kernel import Axis, Dtype, Extent, KernelBuilder, Role, Schedule
from tracetorch.fuse.ir.plan import LearningPlan, Plan, RecurrentPlan
from tracetorch.fuse.ir.schedule import (
    backward_kernel,
    forward_kernel,
    recurrent_backward_kernel,
    recurrent_forward_kernel,
    step_kernel,
)
from tracetorch.fuse.runtime.machine_code import Machine, object_code, this_machine

EXACT = [name for name in cases.LAYERS if name not in cases.INEXACT]
MACHINES: list[Callable[[], Machine]] = [this_machine, lesser_machine]


def plan_of(name: str, dtype: torch.dtype, kind: type[Plan] = Plan) -> Plan:
    layer = cases.layer(name, 3).to(dtype)
    program = cases.trace_layer(layer, 2, dtype)
    record = () if issubclass(kind, RecurrentPlan) else program.states
    return kind(program, "cpu", -1, record, True, program.inputs, program.params)


def compare(
    kernel: Schedule,
    lanes: int,
    machine: Machine,
    *,
    neurons: int | None = None,
    special: bool = True,
    taps: int = 1,
    bypass: bool = False,
    serial: bool = False,
) -> None:
    """Assert that the evaluator and machine code write the same bits."""
    sizes, given, expected = evaluated(kernel, lanes, neurons or lanes, special=special, taps=taps)
    if neurons and "sums" in given:
        groups = -(-lanes // neurons // 2)
        given["sums"] = np.zeros((groups, *given["sums"].shape[:-1], neurons))
    if bypass:
        given = {name: aligned(memory) for name, memory in given.items()}
    options = {"bypass": bypass, "serial": serial}
    run_compiled(kernel, sizes, given, lanes, machine, neurons=neurons, **options)
    if neurons and "sums" in given:  # of groups of rows, and of lanes
        given["sums"] = given["sums"].sum(0)
        lanes_of = expected["sums"].reshape(len(expected["sums"]), -1, neurons)
        expected["sums"] = lanes_of.sum(1)
    for name, memory in expected.items():
        if neurons:  # the order of the sums in a product is not promised
            np.testing.assert_allclose(given[name], memory, rtol=1e-5, atol=1e-5, err_msg=name)
            continue
        # of NaN neither sign nor payload is promised
        assert np.array_equal(given[name], memory, equal_nan=True), name
        numbers = ~np.isnan(memory)
        assert np.array_equal(np.signbit(given[name][numbers]), np.signbit(memory[numbers])), name


@pytest.mark.one_in(2)
@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("lanes", [1, 15, 16, 17, 513])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sequences_are_the_evaluators(
    lanes: int, dtype: torch.dtype, machine: Callable[[], Machine]
) -> None:
    for name in ("LIF", "BSRLIF"):
        plan = plan_of(name, dtype)
        for in_chunks in (False, True):
            compare(verify(forward_kernel(plan, in_chunks=in_chunks)), lanes, machine())
        compare(verify(backward_kernel(plan)), lanes, machine())


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sequences_written_past_the_caches_are_the_evaluators(
    dtype: torch.dtype, machine: Callable[[], Machine]
) -> None:
    """Lanes of several tasks, blocks of both widths; every row begins with a cache line."""
    kernel = verify(forward_kernel(plan_of("SLIF", dtype), in_chunks=True))
    text = print_kernel(kernel, machine().processor, bypass=True).text
    stores = [line for line in text.splitlines() if "!nontemporal" in line]
    wide, _ = machine().processor.widths(kernel)
    assert len(stores) == 3, "the output, and trajectories of two states"
    assert all(f"<{wide} x " in line and "align 64" in line for line in stores)
    for lanes in (16, 512 + 64 + 16, 1024):
        compare(kernel, lanes, machine(), bypass=True)


@pytest.mark.parametrize("name", EXACT)
def test_layers_are_the_evaluators(name: str) -> None:
    plan = plan_of(name, torch.float32)
    for kernel in (forward_kernel(plan), backward_kernel(plan)):
        compare(verify(kernel), 70, this_machine())
    compare(verify(step_kernel(plan)), 33, this_machine(), serial=True)


@pytest.mark.one_in(2)
@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("taps", [1, 3, 9])  # fewer and more than there are steps
@pytest.mark.parametrize("neurons", [1, 17, 130])
# groups of two rows, and one that is left; rows without a zero, in groups of four
@pytest.mark.parametrize(("name", "rows"), [("SLIF", 5), ("Readout", 4)])
def test_recurrences_are_the_evaluators(
    name: str, rows: int, neurons: int, taps: int, machine: Callable[[], Machine]
) -> None:
    plan: Any = plan_of(name, torch.float64, LearningPlan)
    for kernel in (recurrent_forward_kernel(plan), recurrent_backward_kernel(plan)):
        lanes = rows * neurons
        compare(verify(kernel), lanes, machine(), neurons=neurons, special=False, taps=taps)


def test_wide_blocks_are_narrower_where_values_are_many() -> None:
    narrow, wide = (plan_of(name, torch.float32) for name in ("LIF", "BSRLIF"))
    alive = [most_alive(backward_kernel(plan).body) for plan in (narrow, wide)]
    assert alive[0] < alive[1]
    widths = [Processor(512, 32).widths(backward_kernel(plan))[0] for plan in (narrow, wide)]
    assert widths == [64, 32]
    assert Processor(128, 16).widths(backward_kernel(wide)) == (4, 4)
    assert Processor(512, 32).widths(forward_kernel(plan_of("LIF", torch.float64))) == (32, 8)


def test_kernels_are_printed_for_arm() -> None:
    text, same = (
        print_kernel(backward_kernel(plan_of("LIF", torch.float32)), Processor(128, 32)).text
        for _ in "ab"
    )
    assert text == same
    assert "<16 x float>" in text
    assert "target" not in text, "the text is of no processor but for the width of its vectors"
    import llvmlite.binding as llvm

    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    code = object_code(text, Machine("aarch64-unknown-linux-gnu", "generic", ""))
    assert code.startswith(b"\x7fELF")
    assert int.from_bytes(code[18:20], "little") == 183, "the number of the architecture"


def test_kernel_without_scratch_alone_may_run_serially() -> None:
    kernel = forward_kernel(plan_of("LIF", torch.float32), in_chunks=True)
    with pytest.raises(ValueError, match="forward needs scratch"):
        print_kernel(kernel, Processor(), serial=True)


def test_names_beyond_ascii() -> None:
    k = KernelBuilder("opposite", "of ψ", Dtype.FLOAT32)
    x, y = (k.buffer(role, "ψ", (Extent.LANES,)) for role in (Role.START, Role.END))
    with k.lanes():
        k.store(y, (Axis.LANE,), k.op("neg", k.load(x, (Axis.LANE,), "ψ")))
    given = {"start_ψ": np.arange(5, dtype=np.float32), "end_ψ": np.zeros(5, np.float32)}
    run_compiled(verify(k.kernel()), {}, given, 5, serial=True)
    assert np.array_equal(given["end_ψ"], -given["start_ψ"])
