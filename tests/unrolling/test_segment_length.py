import logging
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tracetorch as tt
from tests.cases import sequence
from tests.unrolling.models import MODELS, By, dyadic, made
from tracetorch import snn
from tracetorch.unrolling import segment_length
from tracetorch.unrolling.segment_length import choose_length, free_bytes

KB = 1000
T = 40  # the smallest square root of segments shows in lengths


def net(*more: nn.Module, N: int = 8) -> Any:
    torch.manual_seed(0)
    layers = nn.Linear(3, N), *more, snn.LIF(N), nn.Linear(N, 2), snn.Readout(2)
    return nn.Sequential(*layers).double()


def lengths(caplog: Any) -> list[int]:
    """Return the lengths of segments that were logged."""
    return [r.args[1] for r in caplog.records if "in segments of" in r.msg]


@pytest.fixture(autouse=True)
def logged(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """Log what is chosen, also for small networks."""
    caplog.set_level(logging.INFO, "tracetorch")
    monkeypatch.setattr(segment_length, "_LEAST", 0)


@pytest.mark.parametrize("by", ["layer", "step"])
@pytest.mark.parametrize("segment", ["auto", "bound"])
@pytest.mark.parametrize("name", [*MODELS, "skip"])
def test_bits_are_those_of_the_number_that_is_chosen(
    name: str, segment: str, by: By, caplog: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with any number, values are those of a run in one piece, and gradients to rounding."""
    monkeypatch.setattr(segment_length, "_PER_ROOT", 1)
    if segment == "bound":  # somewhat more than the least that is enough
        with pytest.raises(ValueError, match=r"less than the \S+ MB") as error:
            run(name, "0KB", by)
        least = float(str(error.value).split("less than the ")[1].split()[0])
        segment = f"{least * (1.3 if by == 'layer' else 2)}MB"
    values, grads = run(name, segment, by)
    (length,) = lengths(caplog)
    assert 1 < length < T - segment_length.MEASURED
    same_values, same_grads = run(name, length, by)
    whole_values, whole_grads = run(name, None, by)
    assert all(map(torch.equal, values, same_values))
    assert all(map(torch.equal, values, whole_values))
    torch.testing.assert_close(grads, same_grads, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(grads, whole_grads, rtol=1e-12, atol=1e-12)


def run(name: str, segment: Any, by: By) -> tuple[list[Tensor], list[Tensor]]:
    """Return outputs, trajectories and states; and all gradients."""
    model = made(name)
    x = dyadic(T, *MODELS[name][1] if name in MODELS else (2, 4)).requires_grad_()
    given = x if name in MODELS else {"x": x, "gate": dyadic(T, 2, 4, seed=1)}
    y, seen = tt.unroll(model, given, by=by, segment=segment, record="mem")
    leaves = torch.utils._pytree.tree_leaves(y)
    sum(each.square().sum() for each in (*leaves, *seen.values())).backward()
    assert x.grad is not None
    values = [*leaves, *seen.values(), *tt.get_states(model).values()]
    return values, [x.grad, *(p.grad for p in model.parameters())]


@pytest.mark.parametrize(
    ("segment", "bound", "steps", "kept", "states", "free", "length"),
    [
        ("auto", math.inf, 16384, KB, 0, math.inf, 512),  # four times the square root
        ("auto", math.inf, 10, KB, 0, math.inf, 10),  # not more than there are
        ("auto", math.inf, 10000, KB, KB, 900 * KB, 121),  # 363 + 4 KB, and states of 83
        ("auto", math.inf, 10000, KB, KB, 0, 58),  # where memory is least
        ("auto", math.inf, 10000, KB, 200 * KB, math.inf, 817),  # so also above the square root
        ("auto", math.inf, 10000, 100, 0, math.inf, 600),  # not below 60 KB
        ("auto", math.inf, 10000, 0, 0, 0, 10000),
        ("1MB", 1e6, 10000, KB, 0, 0, 332),  # as many as fit, whatever is free
        ("1GB", 1e9, 10000, KB, KB, 0, 10000),
    ],
)
def test_length(
    segment: str,
    bound: float,
    steps: int,
    kept: int,
    states: int,
    free: float,
    length: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(segment_length, "_LEAST", 60 * KB)
    found = choose_length(segment, bound, steps, kept, 0, states, free)
    assert found == length


def test_bound_is_kept_and_used(caplog: Any) -> None:
    """What is saved at once, in a segment, is a third of a bound or more."""
    model, x = net(N=64), sequence(2000, 4, 3)
    for bound in (1000, 2000, 4000):
        saved = segment_length.SavedBytes([x, *model.parameters()], "layer")
        tt.unroll(model, x, segment=f"{bound} KB", from_rest=True)
        length = lengths(caplog)[-1]
        with saved:
            tt.unroll(model, x[:length], from_rest=True)
        states = 2000 / length * 4 * 66 * 8
        assert 0.25 * bound < (saved.total + states + 2000 * 4 * 2 * 8) / KB < bound
    assert len({*lengths(caplog)}) == 3


@pytest.mark.parametrize("by", ["layer", "step"])
def test_bound_below_what_is_needed_changes_no_state(by: By) -> None:
    model, x = net(), sequence(T, 2, 3)
    tt.unroll(model, x)
    before = tt.get_states(model)
    message = r"segment=.1KB. is less than the \d\.\d+ MB that these 40 steps need in segments"
    for given in (x, x[:4]):
        with pytest.raises(ValueError, match=message.replace("40", str(len(given)))):
            tt.unroll(model, given, by=by, segment="1KB")
    torch.testing.assert_close(tt.get_states(model), before, rtol=0, atol=0)


@pytest.mark.parametrize("segment", ["", "5", "all", "Auto", "12 mb", "-1MB", "1e3KB", "1TB", "MB"])
def test_a_string_that_says_nothing_is_refused(segment: str) -> None:
    message = 'segment must be a number of steps, "auto" or a memory bound .* such as "512MB", got'
    with pytest.raises(ValueError, match=f"{message} '{segment}'"):
        tt.unroll(net(), sequence(T, 2, 3), segment=segment)


@pytest.mark.parametrize("segment", ["auto", "1GB"])
def test_norms_whose_statistics_are_of_a_segment_are_refused(segment: str, caplog: Any) -> None:
    x, model = sequence(T, 2, 3), net(nn.BatchNorm1d(8).double())
    with pytest.raises(ValueError, match=rf"1 \(BatchNorm1d\), in training, .*'{segment}' ch"):
        tt.unroll(model, x, segment=segment)
    assert int(model[1].num_batches_tracked) == 0
    tt.unroll(model, x, by="step", segment=segment)
    tt.zero_states(model.eval())
    assert torch.equal(
        tt.unroll(model, x, segment=segment, from_rest=True), tt.unroll(model, x, from_rest=True)
    )
    tt.unroll(net(snn.BatchNormThroughTime(8, steps=T).double()), x, segment=segment)
    assert len(lengths(caplog)) == 3


@pytest.mark.parametrize(
    "options", [{}, {"by": "step"}, {"reset": torch.ones(T, 2).bool()}], ids=str
)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_without_a_graph_a_step_is_estimated(mode: Any, options: Any, caplog: Any) -> None:
    model, x = net().requires_grad_(False), sequence(T, 2, 3)
    with mode():
        expected = tt.unroll(model, x, from_rest=True, **options)
        for segment in ("auto", "8KB"):
            y = tt.unroll(model, x, segment=segment, from_rest=True, **options)
            assert torch.equal(y, expected)
    auto, bound = lengths(caplog)
    # doubles: ten states and two outputs of two samples, three times; all outputs, twice
    assert auto == math.ceil(4 * math.sqrt(T))
    assert bound == (8000 - 2 * T * 32 - 4 * 192) // (3 * 192)


def test_static_inputs_and_few_steps(caplog: Any) -> None:
    x = dyadic(2, 3).requires_grad_()
    for steps in (1, 3, 4, 5, 9):
        for options in ({"steps": steps}, {"steps": steps, "by": "step"}):
            y = tt.unroll(net(), x, segment="auto", **options)
            torch.testing.assert_close(y, tt.unroll(net(), x, **options))
    assert [*dict.fromkeys(lengths(caplog))] == [1, 3, 4, 5, 9]


def test_hooks_see_each_step_once_and_buffers_once() -> None:
    model, x = net(), sequence(T, 2, 3)
    rows: list[int] = []
    with torch.no_grad():
        tt.unroll(model, x)  # compared by step
        model[0].register_forward_hook(lambda module, args, y: rows.append(len(y)))
        tt.unroll(model, x, segment="4KB")
    assert sum(rows) == 2 * T
    assert rows[0] == 2 * segment_length.MEASURED


class InPlace(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = torch.sigmoid(x)
        z = y * y
        y.add_(1)
        return z


def test_what_was_saved_of_the_first_steps_and_changed_is_an_error() -> None:
    y = tt.unroll(net(InPlace()), sequence(3, 2, 3), segment="auto")
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


MEMINFO = {"proc/meminfo": "MemTotal: 9000 kB\nMemFree: 10 kB\nMemAvailable:    4000 kB\n"}
V2, V1 = "sys/fs/cgroup/", "sys/fs/cgroup/memory/"


@pytest.mark.parametrize(
    ("files", "free"),
    [
        ({}, math.inf),
        (MEMINFO, 4_096_000),
        ({**MEMINFO, V2 + "memory.max": "max\n", V2 + "memory.current": "5\n"}, 4_096_000),
        ({**MEMINFO, V2 + "memory.max": "3000\n", V2 + "memory.current": "1000\n"}, 2000),
        ({V2 + "memory.max": "3000", V2 + "memory.current": "1000",
         V2 + "memory.stat": "anon 700\ninactive_file 300\n"}, 2300),
        ({**MEMINFO, V1 + "memory.limit_in_bytes": "700", V1 + "memory.usage_in_bytes": "300",
         V1 + "memory.stat": "inactive_file 1\ntotal_inactive_file 100\n"}, 500),
        ({V1 + "memory.limit_in_bytes": "700", V1 + "memory.usage_in_bytes": "900"}, 0),
    ],
)  # fmt: skip
def test_free_memory_of_the_system(files: dict[str, str], free: float, tmp_path: Path) -> None:
    assert free_bytes(torch.device("cpu"), write(tmp_path, files)) == free


def test_free_memory_of_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 70)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 30)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (500, 900))
    assert free_bytes(torch.device("cuda", 0)) == 540
    assert free_bytes(torch.device("meta")) == math.inf


def test_auto_shortens_segments_where_little_is_free(
    monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    for free in (math.inf, 0.0):
        monkeypatch.setattr(segment_length, "free_bytes", lambda device, free=free: free)
        tt.unroll(net(), sequence(T, 2, 3), segment="auto")
    most, least = lengths(caplog)
    assert least < most == math.ceil(4 * math.sqrt(T))
