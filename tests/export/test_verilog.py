"""``tt.export.verilog``: circuits compute what PyTorch does, in the cycles that they promise."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.fx import GraphModule, Interpreter, Node

import tracetorch as tt
from tests.cases import few
from tests.export.verilog_code.networks import (
    NETWORKS,
    integer_linear,
    make,
    needs_iverilog,
    needs_verilator,
    needs_yosys,
    network_and_sample,
    spiking,
)
from tests.networks import module
from tests.refusals import check, refusals
from tracetorch import integers
from tracetorch.core.torch_private import pytree
from tracetorch.export.c_code.reader import operation_of
from tracetorch.export.c_code.recorded import read_step, record_step
from tracetorch.export.program import run_step
from tracetorch.export.verilog_code.arrangement import arranged
from tracetorch.export.verilog_code.network import network
from tracetorch.unrolling.inputs import parse_inputs

_EQUAL = re.compile(r"^equal: (\d+) steps, (\d+) to (\d+) cycles, (\d+) in all$", re.MULTILINE)


def exported(name: str, folder: Path, lanes: int = 1) -> tt.export.VerilogReport:
    """Export one of the networks."""
    model, sample = network_and_sample(name)
    return tt.export.verilog(model, folder, sample, lanes=lanes)


@needs_iverilog
@needs_verilator
@pytest.mark.parametrize("lanes", few([1, 4, 32], 4))
@pytest.mark.parametrize("name", few(NETWORKS, "dense", "delayed", "pair", "own"))
def test_simulation_equals_pytorch_without_a_warning(name: str, lanes: int, tmp_path: Path) -> None:
    exported(name, tmp_path, lanes)
    printed = make(tmp_path, "sim")
    assert _EQUAL.search(printed), printed
    assert "warning" not in printed.lower()
    assert "%Warning" not in make(tmp_path, "lint")


@needs_verilator
@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_verilator_agrees_with_iverilog(name: str, tmp_path: Path) -> None:
    exported(name, tmp_path, 2)
    assert _EQUAL.findall(make(tmp_path, "sim")) == _EQUAL.findall(make(tmp_path, "verilated"))


class Sources(Interpreter):
    """Run a program, and count what is not zero in the source of each of its products."""

    def __init__(self, module: GraphModule) -> None:
        super().__init__(module)
        self.events: dict[Node, int] = {}

    def run_node(self, n: Node) -> Any:
        name = operation_of(n)
        if name in ("linear", "mm", "matmul", "addmm", "conv1d", "conv2d"):
            source = self.env[n.all_input_nodes[name == "addmm"]]
            self.events[n] = self.events.get(n, 0) + int((source != 0).sum())
        return super().run_node(n)


@needs_iverilog
@pytest.mark.parametrize("name", NETWORKS)
def test_cycles_are_those_of_the_formula(name: str, tmp_path: Path) -> None:
    model, sample = network_and_sample(name)
    alone = pytree.tree_map(lambda x: x[:, :1], sample)
    report = tt.export.verilog(model, tmp_path, alone, lanes=2)
    recorded = record_step(model, parse_inputs(alone), True)
    layers = network(arranged(recorded.program, recorded.widths, 2), ()).layers
    each = [layer.event_cycles for layer in layers if layer.source is not None]
    given = list(recorded.inputs.each_step())
    step, steps = read_step(recorded.model, given[0]), len(given)
    program, states, counted = step.exported, step.states, Sources(step.exported.graph_module)
    with torch.no_grad():
        for x in given:
            _, states = run_step(program, x, states, counted)
    events = counted.events.values()
    found = _EQUAL.search(make(tmp_path, "sim"))
    assert found
    expected = sum(n * fired for n, fired in zip(each, events, strict=True))
    assert int(found[4]) == report.fixed_cycles * steps + expected
    assert sum(each) == sum(report.event_cycles.values())


@needs_yosys
@needs_iverilog
@pytest.mark.slow
@pytest.mark.parametrize("family", ["ice40", "ecp5"])
@pytest.mark.parametrize("name", ["dense", "convolved", "recurrent", "own"])
def test_netlist_equals_pytorch_after_synthesis(name: str, family: str, tmp_path: Path) -> None:
    exported(name, tmp_path, 2)
    makefile = tmp_path / "Makefile"
    makefile.write_text(makefile.read_text().replace("FAMILY ?= ice40", f"FAMILY ?= {family}"))
    assert "warning" not in make(tmp_path, "synth").lower()
    assert _EQUAL.search(make(tmp_path, "netlist"))


@needs_iverilog
def test_testbench_finds_a_fault(tmp_path: Path) -> None:
    """A weight of another value, and an answer of another value, are told."""
    exported("dense", tmp_path)
    table = next(tmp_path.glob("*_weights.hex"))
    lines = table.read_text().split()
    table.write_text("\n".join([f"{int(lines[0], 16) ^ 64:x}", *lines[1:]]) + "\n")
    with pytest.raises(AssertionError, match=r"different: [1-9][0-9]* of 28 steps"):
        make(tmp_path, "sim")


def test_report_names_memories_and_cycles(tmp_path: Path) -> None:
    report = exported("dense", tmp_path, 4)
    # five sums of 8 bits and more in two words of four lanes
    assert report.memory_bits["in_x"] == 8
    assert report.event_cycles == {"x": 2, "1 (LeakyIntegrator)": 1}
    assert report.cycles({"x": 3}) == report.fixed_cycles + 6
    assert "power        not estimated" in str(report)
    assert (tmp_path / "report.txt").read_text() == str(report)
    assert {*report.files} == {
        str(each.relative_to(tmp_path)) for each in tmp_path.rglob("*") if each.is_file()
    }
    with pytest.raises(ValueError, match=r"events are of \['x', .*\], got 'z'"):
        report.cycles({"z": 1})


ONES = torch.ones(3, 1, 2)
SUM, SUM_OF_ALL = module(lambda self, x: x.sum(0)), module(lambda self, x: x.sum())


@refusals(
    r"""
    nn.Linear(2, 2), ONES -> ValueError: weights that are no integers. Quantise the
    nn.AvgPool2d(2), torch.ones(3, 1, 1, 4, 4) -> ValueError: averages, and an average is no integer
    spiking(2), ONES / 2 -> ValueError: holds what is no integer
    nn.Softmax(-1), ONES -> ValueError: there is no _?softmax
    spiking(2), ONES[:, :0] -> ValueError: its batch is 0
    SUM_OF_ALL, ONES -> ValueError: y has shape \[\] for a batch of 1: a circuit computes one
    SUM, torch.ones(3, 2, 4) -> ValueError: y has shape \[4\] for a batch of 2
    spiking(2), ONES, lanes=0 -> ValueError: lanes must be 1, 2, 4, 8, 16 or 32, got 0
    spiking(2), ONES, lanes=3 -> ValueError: lanes must be 1, 2, 4, 8, 16 or 32, got 3
    spiking(2), ONES, lanes=64 -> ValueError: lanes must be 1, 2, 4, 8, 16 or 32, got 64
    """
)
def test_refused(call: str, error: str, tmp_path: Path) -> None:
    def export(model: Any, sample: Any, **options: Any) -> None:
        tt.export.verilog(model, tmp_path / "new", sample, **options)

    check(f"export({call})", error, {**globals(), "export": export})
    assert not (tmp_path / "new").exists()


@needs_iverilog
def test_quantize_in_front_is_left_to_the_caller(tmp_path: Path) -> None:
    """And names of modules never reach the text as they are."""
    model = nn.Sequential(integers.Quantize(0.25, 4))
    model.add_module("endmodule*/`x", integer_linear(3, 2))
    model.add_module("wire", spiking(2, pos_threshold=20))
    report = tt.export.verilog(model, tmp_path, torch.randn(9, 2, 3))
    assert report.input_range["x"][0] >= -8
    assert "divide by it" in (tmp_path / "network.v").read_text()
    assert "`" not in "".join(each.read_text() for each in tmp_path.glob("*.v"))
    assert _EQUAL.search(make(tmp_path, "sim"))
