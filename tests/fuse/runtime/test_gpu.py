from __future__ import annotations

import contextlib
import importlib.util
import logging
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import tracetorch as tt
from tests import cases
from tests.fuse.fake_gpu import Launch
from tracetorch import fuse, snn
from tracetorch.fuse.codegen.triton_loops import BLOCK, LEAST
from tracetorch.fuse.dispatch import backends, plans, trial
from tracetorch.fuse.runtime import gpu
from tracetorch.fuse.runtime.gpu import TritonBackend

SECOND = torch.device("cuda", 1)


@pytest.mark.parametrize(
    ("device", "hip", "flushes"),
    [("cpu", None, None), ("cuda", None, False), ("cuda", "6.2", None)],
)
def test_kernels_are_launched_without_contraction(
    device: str, hip: str | None, flushes: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Contracted, the spikes that backward computes again differ from those of the forward pass."""
    launches: list[tuple[Any, dict[str, Any]]] = []

    class Kernel:
        def __getitem__(self, grid: Any) -> Any:
            return lambda **options: launches.append((grid, options))

    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(torch.version, "hip", hip)
    gpu.launch(Kernel(), 2 * BLOCK + 1, torch.device(device), {"steps": 7})
    ((grid, options),) = launches
    assert grid == (3,)
    assert options["steps"] == 7
    assert options["BLOCK"] == BLOCK
    assert options["enable_fp_fusion"] is False
    # of NVIDIA's alone: AMD's compiler does not know the word
    assert options.get("enable_reflect_ftz") is flushes


# What holds on a GPU by the way it is written, on a fake


@pytest.fixture
def guards(monkeypatch: pytest.MonkeyPatch) -> list[torch.device]:
    """Return the devices that are current, the last one now."""
    current = [torch.device("cuda", 0)]

    @contextlib.contextmanager
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


def test_a_trial_asks_and_waits_for_its_own_device(
    guards: list[torch.device], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: guards[-1] == SECOND)
    waited: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    assert trial.is_capturing(SECOND)
    assert not trial.is_capturing(torch.device("cuda", 0))
    trial._wait_for(SECOND)
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
        key = plans._constant_key(snn.LIF(3), 2, torch.float32, "cpu", (), (False, (), ()), ())
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


def test_the_least_triton_is_the_one_that_is_installed_to_test_with() -> None:
    makefile = (Path(__file__).parents[3] / "Makefile").read_text()
    assert f"'triton>={LEAST[0]}.{LEAST[1]}'" in makefile


# In place of what this machine has: the code of a module triton, capability of the GPU, whether the
# interpreter is on; and the reason.
TOO_OLD = "is too old, the kernels need 3.6: pip install --upgrade triton"
MACHINES: dict[str, tuple[str | None, tuple[int, int] | None, bool, str | None]] = {
    "nothing": (None, None, False, "Triton is not installed; it comes with PyTorch for CUDA and"),
    "a GPU alone": (None, (9, 0), False, "there is a GPU, but Triton is not installed: pip inst"),
    "Triton alone": ("__version__ = '3.9.0'", None, False, "there is no GPU"),
    "both": ("__version__ = '3.9.0'", (8, 0), False, None),
    "the least": ("__version__ = '3.6.0+git1'", (7, 0), False, None),
    "a tenth release": ("__version__ = '3.10.0'", (8, 0), False, None),
    "an old one": ("__version__ = '3.5.1'", (8, 0), False, f"Triton 3.5.1 {TOO_OLD}"),
    "a very old one": ("__version__ = '2.3.0'", (8, 0), False, f"Triton 2.3.0 {TOO_OLD}"),
    "an old GPU": ("__version__ = '3.9.0'", (6, 1), False, "the GPU is older than Triton suppo"),
    "a folder triton": ("", (8, 0), False, "what is imported as triton is not Triton: <module "),
    "broken": ("raise OSError('lost')", (8, 0), False, "Triton cannot be imported: lost"),
    "interpreted": ("__version__ = '3.9.0'", None, True, None),
    "an old one interpreted": ("__version__ = '3.5.1'", None, True, f"Triton 3.5.1 {TOO_OLD}"),
}


@pytest.fixture
def fresh() -> Iterator[None]:
    """Forget what was found out of this machine, and what was logged; and of the fake one."""
    find: Any = gpu.TritonBackend.uninstalled_reason
    find.cache_clear()
    backends._reported.clear()
    yield
    find.cache_clear()
    backends._reported.clear()


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize("machine", MACHINES)
def test_a_machine_that_cannot_run_kernels_says_why_and_runs_the_steps(
    machine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    code, capability, interpreted, reason = MACHINES[machine]
    monkeypatch.setitem(sys.modules, "triton", None)
    del sys.modules["triton"]
    real = importlib.util.find_spec
    if code is None:
        hide = lambda name, *a: None if name == "triton" else real(name, *a)  # noqa: E731
        monkeypatch.setattr(importlib.util, "find_spec", hide)
    else:
        (tmp_path / "triton").mkdir()
        (tmp_path / "triton" / "__init__.py").write_text(code)
        monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("TRITON_INTERPRET", str(int(interpreted)))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: capability is not None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(torch.version, "hip", None)
    answer = fuse.unavailable_reason("triton")
    if reason is None:
        assert answer is None
        return
    assert str(answer).startswith(reason)
    # an input of the CPU stands for one of the GPU
    monkeypatch.setattr(gpu.TritonBackend, "device_type", lambda self: "cpu")
    monkeypatch.setitem(backends._BY_DEVICE, "cpu", "triton")
    layer, x = cases.layer("LIF", 3), cases.sequence(5, 2, 3, dtype=torch.float32)
    said = rf"the triton backend cannot run LIF\S*: {re.escape(str(answer))}\. tt\.fuse\.backend"
    with fuse.backend("triton"), pytest.raises(RuntimeError, match=said):
        layer.forward_sequence(x)
    with torch.no_grad(), caplog.at_level(logging.WARNING, "tracetorch"):
        for _ in range(2):
            layer.zero_states()
            y, _ = layer.forward_sequence(x)
    assert [r.getMessage() for r in caplog.records] == [
        f"{layer.cell.call} runs step by step in plain PyTorch: {answer}."
    ]
    layer.zero_states()
    with torch.no_grad(), fuse.backend("eager"):
        assert torch.equal(layer.forward_sequence(x)[0], y)
