"""Benchmarks on a device: one that is missing, one that stands for a GPU, and the CPU itself."""

import json
import re
from dataclasses import asdict
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("matplotlib")

from benchmarks import device as devices
from benchmarks.__main__ import main
from benchmarks.adapters import ours
from benchmarks.agreement import EXACT
from benchmarks.cases import ON_GPU, Case, all_cases, quick
from benchmarks.device import Device
from benchmarks.options import parse
from benchmarks.torch_task import TorchTask
from benchmarks.worker import Worker

NO_GPU = r"there is no GPU that PyTorch \S+ can use, which is for .+\. Run this on a machine with"
LIF = quick(next(case for case in all_cases() if case.kind == "lif" and case.way == "train"))


def test_a_missing_gpu_is_named(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert [main(["--device", "cuda"]), devices.main(["cuda"])] == [2, 2]
    lines = capsys.readouterr().out.splitlines()
    assert [bool(re.match(NO_GPU, line)) for line in lines] == [True, True]
    assert re.match(NO_GPU, Worker(ours, Device("cuda")).version()["failed"])
    with pytest.raises(SystemExit) as raised:
        parse(["--device", "mps"])
    assert raised.value.code == 2
    assert "invalid choice: 'mps'" in capsys.readouterr().err


class Fake:
    def __init__(self):
        self.calls = []

    def __getattr__(self, name):
        def call(*_):
            self.calls.append(name)
            found = {"is_available": True, "memory_allocated": 100, "max_memory_allocated": 740}
            return found.get(name, "a card")

        return call


@pytest.fixture
def card(monkeypatch):
    fake = Fake()
    monkeypatch.setattr(devices, "_cuda", lambda: fake)
    # its tensors are on the CPU
    monkeypatch.setattr(Device, "building", lambda self: torch.device("cpu"))
    return fake


def test_runs_on_a_gpu_are_waited_for(card):
    worker = Worker(ours, Device("cuda"), compares=True)
    answer = worker.prepare(asdict(LIF))
    assert "failed" not in answer
    assert answer["agreement"] == {"equal": 1.0, "gradient": 0.0}
    card.calls.clear()
    ran = []
    worker.task = SimpleNamespace(run=lambda: ran.append(len(card.calls)))
    worker.measure(0.0)
    # one before each run that is timed, and one at its end
    assert card.calls == ["synchronize"] * 4
    assert ran == [0, 1, 3]
    assert worker.version()["device"].startswith("a card, ")


@pytest.mark.parametrize("kind", EXACT)
@pytest.mark.parametrize(
    ("plant", "reason"),
    [
        (lambda task: task.x.data.add_(0.4), r"\d\d\.\d\d% of its spikes are those of the CPU"),
        (lambda task: task.draw(task.x) or task.grad.mul_(1.0001), "gradients to 1.0e-04"),
    ],
)
def test_what_differs_from_the_cpu_fails(plant, reason, kind, monkeypatch, card):
    case = quick(next(c for c in all_cases() if c.kind == kind and c.way == "train"))
    made = []

    class Adapter(SimpleNamespace):
        unsupported_reason = staticmethod(lambda case: None)

        @staticmethod
        def prepare(case: Case):
            made.append(ours.prepare(case))
            if len(made) == 2:  # the first is the reference
                plant(made[1])
            return made[-1]

    answer = Worker(Adapter(), Device("cuda"), compares=True).prepare(asdict(case))
    assert re.search(reason, answer["failed"])


@pytest.mark.parametrize("kind", ON_GPU)
def test_all_of_a_case_is_on_its_device(kind):
    case = quick(next(case for case in all_cases() if case.kind == kind))
    with torch.device("meta"):
        task = ours.prepare(case)
    assert isinstance(task, TorchTask)
    assert {each.device.type for each in (task.x, *task.learnable)} == {"meta"}
    if isinstance(task.model, torch.nn.Module):
        assert {each.device.type for each in task.model.buffers()} <= {"meta"}


@pytest.mark.slow
def test_a_run_with_a_device_compares_ours_with_the_cpu(tmp_path, capsys):
    run = ["--device", "cpu", "--quick", "--peers", "--out", str(tmp_path)]
    cases = ["LIF N=128, train", "784-256-256-10, same input each step, train"]
    assert main([*run, "--cases", *cases]) == 0
    assert "(as on the CPU: 100.00% of spikes, gradients to 0.0e+00)" in capsys.readouterr().out
    text = (tmp_path / "table.md").read_text()
    assert "| LIF N=128, train | 100.0000% | 0.0e+00 |" in text
    results = json.loads((tmp_path / "results.json").read_text())["results"]
    assert all(found["tracetorch"]["agreement"]["equal"] == 1.0 for found in results.values())
