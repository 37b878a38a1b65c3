"""Streams of a million steps: Verilog, C and PyTorch are equal in every bit of outputs and states.

The C is compared with PyTorch step by step (``check_every_step``), and Verilog with the C.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import tracetorch as tt
from tests.cases import few
from tests.export.c_programs import CNetwork, check_every_step
from tests.export.test_c import Beside
from tests.export.verilog_code.networks import Counter
from tests.export.verilog_code.steps import (
    ENDS,
    LEAKS,
    PARTS,
    leaky,
    needs,
    random_step,
    run,
    xylo,
)
from tracetorch import chips, snn
from tracetorch.export.c_code.recorded import RecordedStep, record_step
from tracetorch.export.c_code.stages import Array, Copy, Pointwise, Role
from tracetorch.export.verilog_code.circuit import step_circuit, word_of_array
from tracetorch.export.verilog_code.step_module import step_module
from tracetorch.unrolling.inputs import parse_inputs

_BENCH = """\
module bench;
  reg [{x_bits}-1:0] rows [0:{rows}-1];
  reg [{s_bits}-1:0] first [0:0];
  reg [{x_bits}-1:0] x;
  reg [{s_bits}-1:0] s;
  wire [{s_bits}-1:0] next;
  wire [{y_bits}-1:0] y;
{body}
  integer i, file, count;
  initial begin
    $readmemh("x.hex", rows);
    $readmemh("s.hex", first);
    file = $fopen("found.hex", "w");
    s = first[0];
    if (!$value$plusargs("count=%d", count)) count = {rows};
    for (i = 0; i < count; i = i + 1) begin
      x = rows[i];
      #1;
      $fdisplay(file, "%h", {{y, next}});
      s = next;
    end
    $fclose(file);
    $finish(0);
  end
endmodule
"""


class Streams:
    """Layers beside each other as modules of Verilog, of which a bench keeps the states."""

    def __init__(self, recorded: RecordedStep, folder: Path, rows: int) -> None:
        self.program, self.widths = recorded.program, recorded.widths
        self.folder, self.rows = folder, rows
        ends = self.program.ends
        self.states = {name: ends[name] for name in self.program.states}
        (self.x,) = (ends[name] for name in self.program.inputs)
        (self.y,) = (ends[name] for name in self.program.outputs)
        self.names = {self.x: "x", self.y: "y"}
        body = [f"  // {len(self.program.stages)} stages"]
        at = 0
        for number, array in enumerate(self.states.values()):
            bits = array.size * self.bits(array)
            self.names[array] = f"s{number}"
            body.append(f"  wire [{bits - 1}:0] s{number} = s[{at + bits - 1}:{at}];")
            body.append(f"  wire [{bits - 1}:0] next_s{number};")
            body.append(f"  assign next[{at + bits - 1}:{at}] = next_s{number};")
            at += bits
        modules = []
        for number, stage in enumerate(self.program.stages):
            if isinstance(stage, Copy):
                into = self.written(stage.target.array, body)
                chosen = stage.source.places() if stage.places is None else stage.places.values
                source, target = stage.source, stage.target.places().flatten()
                places = zip(chosen.flatten().tolist(), target.tolist(), strict=True)
                for one, other in places:
                    value = self.value(source.array, int(one), self.word(stage.target.array))
                    body.append(
                        f"  assign {self.part(stage.target.array, int(other), into)} = {value};"
                    )
                continue
            assert isinstance(stage, Pointwise)
            circuit = step_circuit(stage, self.widths)
            modules.append(step_module(f"step_{number}", circuit))
            ends_of = {name: self.written(view.array, body) for name, view in stage.writes.items()}
            reads = {name: view.places().flatten() for name, view in stage.reads.items()}
            writes = {name: view.places().flatten() for name, view in stage.writes.items()}
            for lane in range(len(next(iter(writes.values())))):
                ports = []
                for name, view in stage.reads.items():
                    text = self.value(view.array, int(reads[name][lane]), circuit.reads[name])
                    ports.append(f".{circuit.port_names[name]}({text})")
                for name, view in stage.writes.items():
                    text = self.part(view.array, int(writes[name][lane]), ends_of[name])
                    ports.append(f".{circuit.port_names[name]}({text})")
                body.append(f"  step_{number} dut_{number}_{lane} ({', '.join(ports)});")
        wide = (self.x, self.y)
        x_bits, self.y_bits = (array.size * self.bits(array) for array in wide)
        self.x_bits, self.s_bits = x_bits, at
        text = _BENCH.format(
            x_bits=x_bits, y_bits=self.y_bits, s_bits=at, rows=rows, body="\n".join(body)
        )
        (folder / "bench.v").write_text(text + "".join(modules))

    def word(self, array: Array) -> Any:
        return word_of_array(array, self.widths)

    def bits(self, array: Array) -> int:
        return int(self.word(array).bits)

    def written(self, array: Array, body: list[str]) -> str:
        """Return the name of the wires of what is written, declared before they are."""
        if array.role is Role.STATE:
            return f"next_{self.names[array]}"
        if array not in self.names:
            self.names[array] = f"w{len(self.names)}"
            body.append(f"  wire [{array.size * self.bits(array) - 1}:0] {self.names[array]};")
        return self.names[array]

    def part(self, array: Array, place: int, name: str) -> str:
        bits = self.bits(array)
        return f"{name}[{(place + 1) * bits - 1}:{place * bits}]"

    def value(self, array: Array, place: int, word: Any) -> str:
        """Return a value, as wide as a word."""
        if array.role is Role.TABLE:
            value = int(array.values.flatten()[place] * 2 ** self.widths.points.get(array, 0))
            return f"{word.bits}'d{value % 2**word.bits}"
        text, bits = self.part(array, place, self.names[array]), self.bits(array)
        if bits == word.bits:
            return text
        top = f"{self.names[array]}[{(place + 1) * bits - 1}]"
        more = f"{{{word.bits - bits}{{{top}}}}}" if self.word(array).signed else (
            f"{word.bits - bits}'d0"
        )  # fmt: skip
        return f"{{{more}, {text}}}"

    def __call__(self, x: Tensor, states: dict[str, Tensor], command: list[str]) -> Any:
        """Return ``[T, bits]`` of outputs and next states that a simulator finds."""
        (self.folder / "x.hex").write_bytes(_hex(self.packed(self.x, x)))
        start = [self.packed(array, states[name][None]) for name, array in self.states.items()]
        (self.folder / "s.hex").write_bytes(_hex(np.concatenate(start[::-1], 1)))
        run(command, self.folder)
        text = np.frombuffer((self.folder / "found.hex").read_bytes(), np.uint8)
        digits = text.reshape(-1, int((text == 10).argmax()) + 1)[:, :-1]
        digits = np.where(digits > 57, digits - 87, digits - 48).astype(np.uint8)
        bits = np.unpackbits(digits[:, :, None], axis=2)[:, :, 4:].reshape(len(digits), -1)
        return bits[:, bits.shape[1] - self.y_bits - self.s_bits :]

    def expected(self, y: Tensor, states: dict[str, Tensor]) -> Any:
        """Return the bits of outputs and next states, the first value lowest."""
        parts = [self.packed(array, states[name]) for name, array in self.states.items()]
        return np.concatenate([self.packed(self.y, y), np.concatenate(parts[::-1], 1)], 1)

    def packed(self, array: Array, values: Tensor) -> Any:
        """Return values as bits ``[T, size * bits]``, the last value first, its highest bit too."""
        rows = values.flatten(1).numpy().astype(">i8")[:, ::-1].copy()
        bits = np.unpackbits(rows.view(np.uint8).reshape(*rows.shape, 8), axis=2)
        return bits[:, :, 64 - self.bits(array) :].reshape(len(rows), -1)


def _hex(bits: Any) -> bytes:
    """Return rows of bits as lines of hexadecimal digits."""
    padded = np.pad(bits, ((0, 0), (-bits.shape[1] % 4, 0)))
    digits = padded.reshape(len(bits), -1, 4) @ np.array([8, 4, 2, 1], np.uint8)
    lines = np.frombuffer(b"0123456789abcdef", np.uint8)[digits]
    return np.concatenate([lines, np.full((len(bits), 1), 10, np.uint8)], 1).tobytes()


VERILATED = ["verilator", "--binary", "-O3", "-Wno-fatal", "-Wno-lint", "--top-module", "bench"]
IVERILOG = ["iverilog", "-g2005", "-o", "bench.vvp", "bench.v"]


def check(
    layers: list[Any], folder: Path, x: Tensor, rows: int, *, fast: bool, agree: bool = False
) -> None:
    """Compare a stream ``[T, 1, N]`` in Verilog, C and PyTorch, ``rows`` steps at a time."""
    model = Beside(layers)
    inputs = parse_inputs(x[:2])
    (folder / "c").mkdir()
    net = CNetwork(model, x[:2], folder / "c", dtype="int", flags=("-O1",))
    spoke = check_every_step(net, model, x, 50)
    tt.zero_states(model)
    streams = Streams(record_step(model, inputs, True), folder, rows)
    if fast:
        run([*VERILATED, "bench.v"], folder, quiet=False)
    if not fast or agree:
        run(IVERILOG, folder)
    net.reset()
    states = {name: array.values.flatten() for name, array in streams.states.items()}
    for start in range(0, len(x), rows):
        given = x[start : start + rows]
        y, after = net.recorded(given)
        wanted = streams.expected(y, after)
        command = ["obj_dir/Vbench"] if fast else ["vvp", "-n", "bench.vvp"]
        found = streams(given, states, command)
        np.testing.assert_array_equal(found, wanted)
        if agree and fast and not start:
            first = streams(given, states, ["vvp", "-n", "bench.vvp", "+count=1000"])
            assert np.array_equal(first, found[:1000])
        states = {name: state[-1] for name, state in after.items()}
    assert bool(spoke.any())


def stream(steps: int, least: int, most: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return an input ``[T, 1, 3]``: noise, long extremes of either side, ramps, and silence."""
    generator = torch.Generator().manual_seed(steps)
    x = torch.randint(least, most + 1, (steps, 3), generator=generator)
    few = torch.rand(steps, 3, generator=generator) < 0.3
    kind = torch.arange(steps) // 250 % 6  # what saturates takes some hundred steps
    kind = kind[:, None] + torch.arange(3)
    ramp = least + torch.arange(steps)[:, None] * 7 % (most - least + 1)
    kinds = (x, x * few, torch.tensor(most), torch.tensor(least), ramp, x.clamp(-9, 9) * few)
    x = torch.stack([each.expand(steps, 3) for each in kinds]).gather(0, (kind % 6)[None])[0]
    x[0, 0], x[1, 0] = least, most  # two steps have the range of all of them
    return x[:, None].to(dtype)


def _shapes(leak: Any) -> list[Any]:
    """Return the twelve shapes of a leaky integrator, half of which wrap around."""
    return [
        leaky(leak, parts, ends, overflow=overflow, state_bits=bits, reset=reset)
        for (parts, ends), overflow, bits, reset in zip(
            itertools.product(PARTS, ENDS),
            itertools.cycle(["saturate", "wrap"]),
            itertools.cycle([16, 12, 10]),
            itertools.cycle(["subtract", "zero", "none", "subtract", "zero"]),
        )
    ]


def _converted() -> list[Any]:
    """Return the neurons of models of floats that were quantised."""
    torch.manual_seed(0)
    found: list[Any] = []
    for kind in (snn.LIF, snn.SLIF, snn.RLIF, snn.SRLIF, snn.BLIF):
        model = nn.Sequential(nn.Linear(3, 3), kind(3))
        prepared = tt.quantize.prepare(model, (torch.rand(20, 2, 3) < 0.4).float())
        made, _ = tt.quantize.convert(prepared)
        found += [each for each in made.modules() if isinstance(each, snn.Neuron)]
    return found


GROUPS: dict[str, Any] = {
    **{str(leak): lambda leak=leak: _shapes(leak) for leak in LEAKS},
    "chips": lambda: [
        *(xylo(), xylo(version=1, max_spikes=1), xylo(bias=-300)),
        chips.xylo.StepDelay(3),
    ],
    "converted": _converted,
    "own": lambda: [Counter(3), Counter(3)],
}


@needs("iverilog", "cc")
@pytest.mark.parametrize("group", few(GROUPS, "own"))
def test_short_streams(group: str, tmp_path: Path) -> None:
    check(GROUPS[group](), tmp_path, stream(3000, -3000, 3000), 3000, fast=False)


@needs("verilator", "iverilog", "cc")
@pytest.mark.slow
@pytest.mark.parametrize("group", GROUPS)
def test_a_million_steps(group: str, tmp_path: Path) -> None:
    """In verilator; the first thousand in iverilog too."""
    x = stream(10**6, -3000, 3000)
    check(GROUPS[group](), tmp_path, x, 20_000, fast=True, agree=True)


@needs("iverilog", "cc")
@pytest.mark.slow
@settings(max_examples=10, deadline=None)
@given(first=st.integers(20, 10**6))
def test_any_random_steps(first: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Five random steps beside each other, in each of ten examples."""
    layers = [random_step(first + n).double() for n in range(5)]
    folder = tmp_path_factory.mktemp("streams")
    check(layers, folder, stream(5000, -100, 100, torch.float64), 5000, fast=False)
