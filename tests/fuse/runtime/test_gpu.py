from __future__ import annotations

from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import tracetorch as tt
from tests import cases
from tests.fuse.fake_gpu import Launch
from tracetorch import fuse, snn
from tracetorch.fuse.dispatch import plans
from tracetorch.fuse.runtime import first_run, gpu
from tracetorch.fuse.runtime.gpu import TritonBackend

SECOND = torch.device("cuda", 1)


def test_kernels_are_launched_without_contraction(monkeypatch: pytest.MonkeyPatch) -> None:
    """Contracted, the spikes that backward computes again differ from those of the forward pass."""
    launches: list[tuple[Any, dict[str, Any]]] = []

    class Kernel:
        def __getitem__(self, grid: Any) -> Any:
            return lambda **options: launches.append((grid, options))

    plan: Any = SimpleNamespace(kernels={"forward": Kernel()})
    lanes: Any = SimpleNamespace(lanes=2 * gpu.BLOCK + 1)
    gpu._launch(plan, "forward", lanes, torch.device("cpu"), {"steps": 7})
    ((grid, options),) = launches
    assert grid == (3,)
    assert options["steps"] == 7
    assert options["BLOCK"] == gpu.BLOCK
    assert options["enable_fp_fusion"] is False


# What holds on a GPU by the way it is written, on a fake


@pytest.fixture
def guards(monkeypatch: pytest.MonkeyPatch) -> list[torch.device]:
    """Return the devices that are current, the last one now."""
    current = [torch.device("cuda", 0)]

    @contextmanager
    def device(each: torch.device) -> Any:
        current.append(each)
        yield
        current.pop()

    monkeypatch.setattr(torch.cuda, "device", device)
    return current


def test_a_kernel_runs_on_the_device_of_its_tensors(guards: list[torch.device]) -> None:
    """And so on its current stream, which is what Triton asks for."""
    seen: list[torch.device] = []

    class Kernel:
        def __getitem__(self, grid: Any) -> Any:
            return lambda **options: seen.append(guards[-1])

    gpu.launch(Kernel(), 5, SECOND, {"steps": 7})
    assert (seen, guards) == ([SECOND], [torch.device("cuda", 0)])


def test_a_first_run_asks_and_waits_for_its_own_device(
    guards: list[torch.device], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: guards[-1] == SECOND)
    waited: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    assert first_run.is_capturing(SECOND)
    assert not first_run.is_capturing(torch.device("cuda", 0))
    first_run._wait_for(SECOND)
    assert waited == [SECOND]


def test_the_memory_of_another_device_is_refused() -> None:
    there = {"at_x": torch.ones(3), "at_parameter_beta": torch.ones(3, device="meta")}
    with pytest.raises(TypeError, match=r"float32 on cpu, got one of torch.float32 on meta\. Conv"):
        gpu.launch(None, 3, torch.device("cpu"), there)


def test_numbers_are_copied_once_and_kept() -> None:
    device = torch.device("cpu")
    with torch.inference_mode(), torch.device("meta"):
        found = gpu.literals((0.25, 3.0), torch.float64, device)
    assert found is gpu.literals((0.25, 3.0), torch.float64, device)
    assert (found.tolist(), found.dtype, found.device) == ([0.25, 3.0], torch.float64, device)
    assert not found.is_inference()


def test_a_compiled_program_copies_its_numbers_before_it_runs(
    launched: list[Launch], monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared: list[Any] = []
    monkeypatch.setattr(
        TritonBackend, "prepare", lambda backend, plan, device: prepared.append(device)
    )
    with fuse.backend("triton"):
        key = plans._constant_key(snn.LIF(3), 2, torch.float32, "cpu", (), False, (), (), ())
    assert key is not None
    assert (prepared, launched) == ([torch.device("cpu")], [])


def test_states_at_rest_are_made_on_the_stream_that_reads_them(
    launched: list[Launch], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.Tensor, "is_cpu", False, raising=False)
    layer = snn.SLIF(3)
    with fuse.backend("triton"), torch.no_grad():
        for _ in range(2):
            layer.zero_states()
            layer.forward_sequence(torch.ones(4, 2, 3))
    first, second = (each.arguments["at_start_mem"].data_ptr() for each in launched)
    assert first != second


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype: torch.dtype, launched: list[Launch]) -> None:
    net = nn.Sequential(nn.Linear(3, 5), snn.SLIF(5), nn.Linear(5, 2), snn.Readout(2))
    with fuse.backend("triton"), torch.autocast("cpu", dtype):
        y = tt.unroll(net, torch.ones(4, 2, 3))
        loss = y.sum()
    loss.backward()
    assert y.dtype is dtype
    assert [each.kernel for each in launched] == [*["forward"] * 2, *["backward"] * 2]
    for each in launched:
        kinds = {
            v.dtype for n, v in each.arguments.items() if n.startswith("at_") and n != "at_sums"
        }
        assert kinds == {torch.float32}
    assert {state.dtype for state in tt.get_states(net).values()} == {torch.float32}
    assert all(p.grad is not None and p.grad.dtype is torch.float32 for p in net.parameters())


def test_a_layer_that_moves_takes_kernels_of_its_new_device(launched: list[Launch]) -> None:
    layer, x = cases.layer("LIF", 3), torch.ones(4, 2, 3)
    with fuse.backend("triton"):
        layer.forward_sequence(x)
    layer.to("meta")
    assert tt.get_states(layer)["mem"].is_meta
    y, _ = layer.forward_sequence(x.to("meta"))
    assert y.is_meta
    assert len(launched) == 1
