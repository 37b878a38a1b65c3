"""Digits on an FPGA: a network of small integers as a circuit, equal in PyTorch, C and Verilog.

Images of 12 by 12 pixels, brightest pixels first, go through 128 neurons with weights of 4 bits.
The integers are tried in four forms on every held-out digit, and must answer the same in every
step: as the model, as a program in C, as Verilog, and as the netlist that synthesis makes of it.
The circuit is placed and routed for two FPGAs, which tells its size and its clock. Needs ``cc``,
``iverilog``, ``verilator``, ``yosys``, ``nextpnr-ice40`` and ``nextpnr-ecp5``. Nothing has run on a
board.

``python -m examples.digits_to_circuit`` takes about five minutes of one core, and ``--sweep``,
which varies bits, lanes and neurons, about eight.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, cross_entropy, pad

import tracetorch as tt
from examples import common
from examples.compiled_digits import outputs_of_c
from tracetorch import snn
from tracetorch.core.files import atomic_replace

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Row: TypeAlias = dict[str, Any]
Samples: TypeAlias = tuple[Tensor, ...]
"""Images ``[N, 1, 28, 28]`` and classes ``[N]``."""

TASK = "digits_to_circuit"
RESULTS = common.RESULTS / "networks"  # rows of other columns than those of the other tasks
INPUTS, STEPS, CLASSES = 144, 8, 10
STATE_BITS = 12
BITS, LANES, HIDDEN = 4, 2, 128
"""What a sweep varies, and what the others have meanwhile."""
SWEEP = {"bits": (2, 3, 4, 8), "lanes": (1, 2, 4, 8), "hidden": (32, 64, 128, 256)}
KINDS = ("network", "sweep", "waveform")
PARTS = {"iCE40 UP5K": "ice40", "ECP5-25": "ecp5"}
"""FPGAs, and the family of each in the Makefile."""
USED = {
    "cells": r"(?:ICESTORM_LC|TRELLIS_COMB):\s*(\d+)/",
    "memories": r"(?:ICESTORM_RAM|DP16KD):\s*(\d+)/",
    "multipliers": r"(?:ICESTORM_DSP|MULT18X18D):\s*(\d+)/",
    "MHz": r"Max frequency for clock[^:]*: ([\d.]+) MHz",
}
"""What the router prints of each: the last line holds."""

DUMP = """\
module dump;
    initial begin
        $dumpfile("testbench.vcd");
        $dumpvars(2, testbench);
    end
endmodule
"""
WAVES = (
    *("reset", "ready", "x_valid", "x_address", "step", "turn"),
    *("y_valid", "y_address", "y_value", "done"),
)
"""Signals of the waveform: those of the network's ports, and which layer works."""


def spikes_of(images: Tensor) -> Tensor:
    """Return spikes ``[T, N, 144]``: step by step fainter pixels fire, and bright ones go on.

    Args:
        images: ``[N, 1, 28, 28]``, of which the border of two pixels is empty.
    """
    pixels = avg_pool2d(images[..., 2:26, 2:26], 2).flatten(1)
    thresholds = 1 - (torch.arange(STEPS) + 0.5) / STEPS
    return (pixels > thresholds[:, None, None]).float()


def moved(images: Tensor) -> Tensor:
    """Return the images, each moved by up to a pixel in both directions."""
    size, around = images.shape[-1], pad(images, (1, 1, 1, 1))
    by = torch.randint(0, 3, (len(images), 2))
    result = torch.empty_like(images)
    for down in range(3):
        for right in range(3):
            chosen = (by == torch.tensor([down, right])).all(1)
            part = around[chosen]
            result[chosen] = part[..., down : down + size, right : right + size]
    return result


def network(hidden: int) -> nn.Sequential:
    """Return the network in floats; all membranes keep 7/8, which takes no multiplier in integers.

    Args:
        hidden: neurons.
    """
    fixed: dict[str, Any] = {"beta_rank": 0, "learn_beta": False}
    return nn.Sequential(
        nn.Linear(INPUTS, hidden, bias=False),
        snn.LIF(hidden, beta=0.875, **fixed),
        nn.Linear(hidden, CLASSES, bias=False),
        snn.Readout(CLASSES, beta=0.875, **fixed),
    )


def train(model: nn.Module, data: Samples, epochs: int, rate: float, scale: float = 1.0) -> None:
    """Train on the readout's membranes after the last step.

    Args:
        model: from :func:`network`, or from ``tt.quantize.prepare``.
        data: images and classes.
        epochs: passes over the data, moved anew for each.
        rate: of Adam, at first; it falls to 0 along a cosine.
        scale: of the output.
    """
    images, classes = data
    optimizer = torch.optim.Adam(model.parameters(), rate)
    batches = epochs * -(-len(classes) // 100)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(batches, 1))
    for _ in range(epochs):
        x = spikes_of(moved(images))
        for index in torch.randperm(len(classes)).split(100):
            y = scale * tt.unroll(model, x[:, index], from_rest=True)[-1]
            optimizer.zero_grad()
            cross_entropy(y, classes[index]).backward()
            optimizer.step()
            schedule.step()


def floats(data: Samples, hidden: int, epochs: int, seed: int) -> nn.Sequential:
    """Train the network in floats."""
    torch.manual_seed(seed)
    net = network(hidden)
    tt.init.calibrate_(net, spikes_of(data[0][:500]))
    train(net, data, epochs, 5e-3)
    return net


def integers(net: nn.Module, data: Samples, bits: int, epochs: int) -> nn.Module:
    """Train the network on in integers, and return them.

    Args:
        net: from :func:`floats`; unchanged.
        data: images and classes.
        bits: of weights.
        epochs: passes over the data.
    """
    torch.manual_seed(0)
    sample = spikes_of(data[0][:500])
    prepared = tt.quantize.prepare(net, sample, weight_bits=bits, state_bits=STATE_BITS)
    train(prepared, data, epochs, 2e-3, float(prepared.output_scale))
    model, _ = tt.quantize.convert(prepared)
    return model.eval()


@torch.no_grad()
def answers(model: nn.Module, x: Tensor) -> Tensor:
    """Return the membranes of the readout ``[T, N, 10]``, each sample from rest."""
    y: Tensor = tt.unroll(model, x, from_rest=True)
    return y


def right(y: Tensor, classes: Tensor) -> float:
    """Return the share of digits whose own membrane is the largest after the last step."""
    return float((y[-1].argmax(-1) == classes).double().mean())


def make(folder: Path, target: str, family: str = "ice40") -> str:
    """Run a target of a circuit's Makefile; return what it printed.

    Args:
        folder: of the circuit.
        target: ``"verilated"``, for example.
        family: of FPGAs.

    Raises:
        RuntimeError: it failed; the message ends with what it printed.
    """
    command = ["make", target, f"FAMILY={family}"]
    # a make that started this program hands its flags down, and would print folders between lines
    flags = ("MAKE", "MFLAGS")
    env = {name: value for name, value in os.environ.items() if not name.startswith(flags)}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{shlex.join(command)}: {(done.stdout + done.stderr)[-2000:]}")
    return done.stdout


def played(folder: Path, target: str, steps: int) -> int:
    """Play the recorded digits through a circuit that must be equal; return the cycles of a step.

    Args:
        folder: of the circuit.
        target: of the Makefile, which plays them.
        steps: how many there are.
    """
    found = re.search(r"equal: (\d+) steps, .* (\d+) in all", make(folder, target))
    if found is None or int(found[1]) != steps:
        raise RuntimeError(f"make {target} played other steps than the {steps} that were recorded.")
    return int(found[2])


def routed(folder: Path, part: str) -> dict[str, float]:
    """Place and route a circuit; return cells, memories, clock and seconds of the router.

    Args:
        folder: of the circuit.
        part: one of ``PARTS``.
    """
    make(folder, "synth", PARTS[part])
    start = time.perf_counter()
    text = make(folder, "route", PARTS[part])
    seconds = round(time.perf_counter() - start, 1)
    return {**used(text), "seconds": seconds}


def used(text: str) -> dict[str, float]:
    """Return the numbers of ``USED`` in what a router prints; where there are several, the last."""
    found = {name: re.findall(pattern, text) for name, pattern in USED.items()}
    return {name: float(each[-1]) for name, each in found.items() if each}


def cells_of_layers(text: str) -> dict[str, int]:
    """Return the look-up tables of each module below the network, what is in it included.

    Args:
        text: what ``make layers`` prints: a list of each module's cells, and their hierarchy.
    """
    lists, _, tree = text.partition("=== design hierarchy ===")
    sections = re.split(r"^=== (\S+) ===$", lists, flags=re.MULTILINE)
    own = {
        name: sum(int(n) for n in re.findall(r"^\s+(?:SB_LUT4|LUT4)\s+(\d+)$", part, re.MULTILINE))
        for name, part in zip(sections[1::2], sections[2::2], strict=True)
    }
    total: Counter[str] = Counter()
    top, times = "", {0: 1}
    for spaces, name, count in re.findall(r"^( +)(\S+) +(\d+)$", tree, re.MULTILINE):
        depth = len(spaces) // 2
        if name not in own:
            break  # the sums over everything follow the hierarchy
        times[depth] = times.get(depth - 1, 1) * int(count)
        top = name if depth <= 2 else top
        label = "memories" if top.endswith("tt_memory") else top
        total[label] += times[depth] * own[name]
    return dict(total)


def measured(
    model: nn.Module, data: Samples, folder: Path, lanes: int, parts: Sequence[str]
) -> Row:
    """Write a circuit, play digits through it, and route it; return what was found.

    Args:
        model: the integers.
        data: the digits to play.
        folder: for the circuit.
        lanes: of the circuit.
        parts: FPGAs for which it is routed.
    """
    x = spikes_of(data[0])
    report = tt.export.verilog(model, folder, x, lanes=lanes)
    simulation = "verilated" if len(data[1]) > 100 else "sim"
    cycles = played(folder, simulation, x.shape[0] * x.shape[1])
    # a cycle gives a spike, one the step; a reset walks over the largest memory
    first: Any = model.get_submodule("0")
    walk = -(-max(INPUTS, first.out_features) // lanes) + 3
    image = (cycles + float(x.sum())) / len(data[1]) + STEPS + walk
    row: Row = {
        "lanes": lanes,
        "images": len(data[1]),
        "formula": report.formula,
        "cycles_per_step": round(cycles / (x.shape[0] * x.shape[1]), 1),
        "cycles_per_image": round(image),
        "table_bits": report.table_bits,
        "parts": {},
    }
    for part in parts:
        found = routed(folder, part)
        row["parts"][part] = {**found, "images_per_second": round(1e6 * found["MHz"] / image)}
    return row


def whole(digits: tt.data.Digits, options: argparse.Namespace) -> Row:
    """Train one network, play it in all its forms, and route it for both FPGAs."""
    net = floats(digits.train.tensors, options.hidden, options.epochs, options.seed)
    model = integers(net, digits.train.tensors, options.bits, options.epochs // 2)
    images, classes = (part[: options.images] for part in digits.held_out.tensors)
    x = spikes_of(images)
    y = answers(model, x)
    row: Row = {"kind": "network", "hidden": options.hidden, "bits": options.bits}
    row |= {"accuracy": right(y, classes), "floats": right(answers(net, x), classes)}
    print(
        f"{row['floats']:.1%} of {len(classes)} right in floats, {row['accuracy']:.1%} in integers"
    )
    if not torch.equal(outputs_of_c(model, x, options.out / "c", 16), y):
        raise RuntimeError("C answers otherwise than the model.")
    folder = options.out / "verilog"
    row |= measured(model, (images, classes), folder, options.lanes, list(PARTS))
    print(json.dumps(row), flush=True)
    row["netlist_cycles"] = played(folder, "netlist_verilated", x.shape[0] * x.shape[1])
    row["layers"] = cells_of_layers(make(folder, "layers"))
    return row


def swept(digits: tt.data.Digits, options: argparse.Namespace) -> list[Row]:
    """Vary weights, lanes and neurons, one of them at a time, for one FPGA."""
    rows: list[Row] = []
    models: dict[tuple[int, int], nn.Module] = {}
    nets: dict[int, nn.Module] = {}
    start = {"bits": BITS, "lanes": LANES, "hidden": HIDDEN}
    cases = [start | {name: value} for name, values in SWEEP.items() for value in values]
    for case in [each for i, each in enumerate(cases) if each not in cases[:i]]:
        bits, lanes, hidden = case["bits"], case["lanes"], case["hidden"]
        if hidden not in nets:
            nets[hidden] = floats(digits.train.tensors, hidden, options.epochs, options.seed)
        if (bits, hidden) not in models:
            models[bits, hidden] = integers(
                nets[hidden], digits.train.tensors, bits, options.epochs // 2
            )
        model, (images, classes) = models[bits, hidden], digits.held_out.tensors
        row: Row = {"kind": "sweep", "hidden": hidden, "bits": bits}
        row["accuracy"] = right(answers(model, spikes_of(images)), classes)
        few = (images[:20], classes[:20])
        folder = options.out / f"sweep_{bits}_{lanes}_{hidden}"
        rows.append(row | measured(model, few, folder, lanes, ["ECP5-25"]))
        print(json.dumps(rows[-1]), flush=True)
        shutil.rmtree(folder)
    return rows


def waveform(options: argparse.Namespace) -> Row:
    """Record the signals of the first step of the smallest network of the page.

    Args:
        options: of which ``out`` is the folder to write to.
    """
    folder = options.out / "waveform"
    tt.export.verilog(smallest(), folder, torch.tensor([[[1.0, 0.0, 1.0, 0.0]]]))
    (folder / "dump.v").write_text(DUMP)
    make(folder, "sim")
    sources = [*sorted(p.name for p in folder.glob("*.v"))]
    tops = ("-s", "testbench", "-s", "dump")
    subprocess.run(
        ["iverilog", "-g2005", *tops, "-o", "dump.vvp", *sources], cwd=folder, check=True
    )
    subprocess.run(["vvp", "-n", "dump.vvp"], cwd=folder, check=True, capture_output=True)
    return {"kind": "waveform", "signals": signals((folder / "testbench.vcd").read_text())}


def smallest() -> nn.Module:
    """Return four inputs, three neurons, and two sums: the network of the page."""
    first = tt.integers.Linear(4, 3, weight_bits=4)
    first.weight.copy_(torch.tensor([[5, -2, 7, 1], [6, 6, -3, 2], [-4, 7, 3, 5]]))
    second = tt.integers.Linear(3, 2, weight_bits=4)
    second.weight.copy_(torch.tensor([[3, -5, 2], [-4, 6, 1]]))
    shift = tt.integers.Shift()
    return nn.Sequential(
        first,
        tt.integers.LeakyIntegrator(3, beta=3, pos_threshold=9, decay=shift),
        second,
        tt.integers.LeakyIntegrator(2, beta=3, decay=shift),
    )


def signals(text: str) -> dict[str, list[int | None]]:
    """Return the values of signals at each rise of the clock; None where one is unknown.

    Args:
        text: a VCD, value change dump, of a testbench and its network.
    """
    header, _, changes = text.partition("$enddefinitions $end")
    names: dict[str, str] = {}
    for code, name in re.findall(r"\$var \w+ \d+ (\S+) (\w+)", header):
        names.setdefault(name, code)
    now: dict[str, int | None] = {}
    values: dict[str, list[int | None]] = {name: [] for name in WAVES}
    for moment in re.split(r"^#\d+$", changes, flags=re.MULTILINE):
        for bits, code in re.findall(r"^b?([01xz]+) ?(\S+)$", moment, re.MULTILINE):
            now[code] = int(bits, 2) if set(bits) <= {"0", "1"} else None
        if now.get(names["clk"]) == 0:  # what a rise will find
            for name in WAVES:
                values[name].append(now.get(names[name]))
    return values


def table(rows: Sequence[Row]) -> str:
    """Return a Markdown table of where the network was routed.

    Args:
        rows: recorded ones.
    """
    lines = [
        "| FPGA | logic cells | memories | multipliers | clock | images per second | routing |",
        "|---|---|---|---|---|---|---|",
    ]
    (row,) = (each for each in rows if each["kind"] == "network")
    for part, found in row["parts"].items():
        counts = " | ".join(f"{found[n]:,.0f}" for n in ("cells", "memories", "multipliers"))
        lines.append(
            f"| {part} | {counts} | {found['MHz']:.1f} MHz | {found['images_per_second']:,} "
            f"| {found['seconds']:.0f} s |"
        )
    return "\n".join(lines)


def constants(rows: Sequence[Row]) -> str:
    """Return what the page draws as constants in Python: ``LAYERS``, ``SWEEP`` and ``WAVES``.

    Args:
        rows: recorded ones.
    """
    by = {kind: [row for row in rows if row["kind"] == kind] for kind in KINDS}
    lines = ["WAVES = {  # at each rise of the clock; x is unknown"]
    for name, values in by["waveform"][0]["signals"].items():
        text = " ".join("x" if value is None else str(value) for value in values)
        lines.append(f'    "{name}": "{text}",')
    lines += ["}", "LAYERS = {  # look-up tables of each module, those in it included"]
    layers = sorted(by["network"][0]["layers"].items(), key=lambda each: -each[1])
    lines += [f'    "{name}": {count},' for name, count in layers]
    lines += ["}", "SWEEP = [  # bits, lanes, hidden neurons;"]
    lines.append(
        "    # cells, memories, multipliers, MHz, cycles of an image, images a second, right"
    )
    for row in by["sweep"]:
        found = row["parts"]["ECP5-25"]
        counts = ", ".join(str(int(found[n])) for n in ("cells", "memories", "multipliers"))
        lines.append(
            f"    ({row['bits']}, {row['lanes']}, {row['hidden']}, {counts}, {found['MHz']}, "
            f"{row['cycles_per_image']}, {found['images_per_second']}, {row['accuracy']}),"
        )
    return "\n".join([*lines, "]"])


def draw(rows: Sequence[Row]) -> Figure:
    """Draw cells and accuracy over what a sweep varies.

    Args:
        rows: recorded ones.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots(2, len(SWEEP), sharey="row")
    for column, (name, values) in zip(axes.T, SWEEP.items(), strict=True):
        found = [row for row in rows if row["kind"] == "sweep" and varies(row, name)]
        found.sort(key=lambda row: row[name])
        cells = [row["parts"]["ECP5-25"]["cells"] for row in found]
        column[0].plot([row[name] for row in found], cells, "o-")
        column[1].plot([row[name] for row in found], [100 * row["accuracy"] for row in found], "o-")
        for each in column:
            each.set_xscale("log", base=2)
            each.set_xticks(values, [str(value) for value in values])
        column[1].set_xlabel(name)
    axes[0, 0].set_ylabel("logic cells")
    axes[1, 0].set_ylabel("held-out digits, %")
    return figure


def varies(row: Row, name: str) -> bool:
    """Return whether a row of the sweep varies nothing but what has this name."""
    others = {"bits": BITS, "lanes": LANES, "hidden": HIDDEN}
    return all(row[other] == value for other, value in others.items() if other != name)


def write(rows: Sequence[Row], options: argparse.Namespace) -> None:
    """Write rows in place of those of their kind."""
    folder = RESULTS if options.record else options.out
    about = {
        "date": f"{date.today()}",
        "command": options.command,
        "torch": torch.__version__,
        "tracetorch": tt.__version__,
    }
    kept = [row for row in read(folder) if row["kind"] != rows[0]["kind"]]
    common.write_lines(folder / f"{TASK}.jsonl", [*kept, *(row | about for row in rows)])


def read(folder: Path) -> list[Row]:
    """Return the rows of a folder."""
    return common.read_lines(folder / f"{TASK}.jsonl")


def missing(tools: Sequence[str]) -> list[str]:
    """Return those of the tools that are not on this machine."""
    return [tool for tool in tools if shutil.which(tool) is None]


def options_of(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the options; ``options.command`` is the command line itself."""
    parser = argparse.ArgumentParser(
        f"python -m examples.{TASK}", description=(__doc__ or "").partition("\n")[0]
    )
    add = parser.add_argument
    add("--epochs", type=int, default=40, help="passes over the data, in floats (%(default)s)")
    add("--seed", type=int, default=0, help="of weights and order")
    add("--hidden", type=int, default=HIDDEN, help="neurons (%(default)s)")
    add("--bits", type=int, default=BITS, help="of weights (%(default)s)")
    add("--lanes", type=int, default=LANES, help="values in a cycle (%(default)s)")
    add("--images", type=int, default=None, metavar="N", help="held-out digits; all of them")
    add("--sweep", action="store_true", help="vary bits, lanes and neurons, and end")
    add("--waveform", action="store_true", help="record signals of the smallest network, and end")
    add("--table", action="store_true", help="print what the page shows of the recorded rows")
    add("--record", action="store_true", help="write rows to examples/results, for the page")
    add("--out", type=Path, default=Path("runs") / TASK, metavar="DIR", help="folder")
    words = list(sys.argv[1:] if arguments is None else arguments)
    options = parser.parse_args(words)
    options.command = f"{parser.prog} {shlex.join(w for w in words if w != '--record')}".strip()
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line: ``python -m examples.digits_to_circuit --help``."""
    options = options_of(arguments)
    if options.table:
        rows = read(RESULTS)
        print(table(rows), constants(rows), sep="\n\n")
        return 0
    tools = ["make", "iverilog"]
    if not options.waveform:
        tools += ["cc", "verilator", "yosys", "nextpnr-ice40", "nextpnr-ecp5"]
    if lacking := missing(tools):
        print(f"error: needs {', '.join(lacking)}, which are Debian's packages", file=sys.stderr)
        return 1
    options.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    if options.waveform:
        write([waveform(options)], options)
        return 0
    digits = tt.data.load_digits()
    print(digits.source)
    if options.sweep:
        rows = swept(digits, options)
        write(rows, options)
        with atomic_replace(options.out / "sweep.png") as unfinished:
            draw(rows).savefig(unfinished)
        return 0
    row = whole(digits, options)
    write([row], options)
    print(json.dumps(row, indent=1))
    print(f"every step of {row['images']} digits is equal: model, C, Verilog, netlist")
    print(table([row]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
