"""The C and the Verilog of the playground, compiled, are the neuron of the page."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import tracetorch as tt
from examples import playground
from tests.browser import Page, wait_until
from tests.cases import INEXACT, LAYERS, few
from tests.export.c_programs import CNetwork, checked, needs_compiler
from tests.export.verilog_code.networks import needs_iverilog
from tests.plot.test_playground import STUB, chosen, go, settings_of
from tests.plot.test_save_playground import Plain
from tracetorch import integers, snn

Open = Callable[..., Page]
NAMES = list(playground.neurons())


def shown(page: Page, language: str) -> tuple[str, str]:
    """Choose a language; return the source that is shown, and what is said of it."""
    page.get_by_role("button", name=language, exact=True).click()
    return page.locator("#source").text_content(), page.locator("#source-note").inner_text()


def compiled(text: str, folder: Path) -> CNetwork:
    """Compile the two files that are shown."""
    files = re.split(r"/\* ---- (model\.[ch]) ---- \*/\n", text)
    for name, source in zip(files[1::2], files[2::2], strict=True):
        (folder / name).write_text(source)
    types: Any = SimpleNamespace(types={"x": "float", "y": "float"})
    return CNetwork(None, None, folder, report=types)


@torch.no_grad()
def single(layer: snn.Neuron, seen: Mapping[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
    """Step through the input of the page in float32, with its numbers."""
    kwargs = {**layer.step_kwargs(1, torch.float32), **chosen(layer, seen["choices"])}
    kwargs |= {name: torch.tensor(float(value)) for name, value in seen["params"].items()}
    states = {name: torch.tensor(float(value)) for name, value in seen["start"].items()}
    outputs, record = [], []
    held: list[Any] = [states.get(name) for name in layer.states]
    for step in torch.tensor(seen["x"], dtype=torch.float32):
        output, *held = layer.step(step, *held, **kwargs)
        outputs.append(output)
        record.append(held)
    columns = zip(layer.states, zip(*record, strict=True), strict=True)
    return torch.stack(outputs), {n: torch.stack(c) for n, c in columns if n in states}


@needs_compiler
@pytest.mark.parametrize("name", few(NAMES, "LIF", "BSRLIF", "SRReadout", "Izhikevich", "AdEx"))
def test_the_c_that_is_shown_is_the_neuron(opened: Open, name: str, tmp_path: Path) -> None:
    page, layer = opened(), playground.neurons()[name]
    drawn = settings_of(layer, random.Random(name))
    if name not in LAYERS:  # far from their own numbers some explode
        drawn = {n: v for n, v in drawn.items() if n.startswith("o.")}
    for k, settings in enumerate(({}, drawn)):
        seen = go(page, neuron=name, **settings)
        text, _ = shown(page, "C")
        (tmp_path / str(k)).mkdir()
        x = torch.tensor(seen["x"], dtype=torch.float32)
        output, states = compiled(text, tmp_path / str(k)).recorded(x[:, None])
        expected, record = single(layer, seen)
        assert k or output.any()
        for found, given in [(output, expected), *((states[n], record[n]) for n in record)]:
            if name in INEXACT:  # functions of another library
                torch.testing.assert_close(found.flatten(), given, rtol=1e-4, atol=1e-4)
            else:
                assert torch.equal(found.flatten(), given)
        drawn_output = torch.tensor(seen["output"], dtype=torch.float64)
        if "Readout" in name:
            torch.testing.assert_close(output[:, 0].double(), drawn_output, rtol=1e-4, atol=1e-5)
        else:  # those of the page, which has more digits
            others = int(((output[:, 0] - drawn_output).abs() > 1e-4).sum())
            assert others <= (0 if name in LAYERS else 2), others


BENCH = """
module bench;
  reg clk = 0, reset = 1;
  reg signed [15:0] rows [0:{steps}-1], x;
  wire {word}y;
  integer i;
  neuron dut (.clk(clk), .reset(reset), .x(x), .y(y));
  initial begin
    $readmemh("x.hex", rows);
    x = 0; #1 clk = 1; #1 clk = 0; reset = 0;
    for (i = 0; i < {steps}; i = i + 1) begin
      x = rows[i]; #1 $display("%0d", y); clk = 1; #1 clk = 0;
    end
  end
endmodule
"""


def simulated(text: str, x: list[int], folder: Path) -> Tensor:
    """Run the module that is shown, one step in each cycle."""
    (word,) = re.findall(r"output wire (.*)y\n\);\n  reg", text)
    (folder / "bench.v").write_text(text + BENCH.format(steps=len(x), word=word))
    (folder / "x.hex").write_text("\n".join(f"{value & 0xFFFF:04x}" for value in x))
    checked(["iverilog", "-g2005", "-Wall", "-o", "bench.vvp", "bench.v"], folder)
    lines = checked(["vvp", "bench.vvp"], folder).split()
    return torch.tensor([float(line) for line in lines if line.lstrip("-").isdigit()])


def integer_neuron(layer: Any, seen: Mapping[str, Any], text: str) -> integers.LeakyIntegrator:
    """Return the integer neuron of ``tt.integers`` with the numbers in the text."""
    found = re.findall(r"\.(\w+)\((\d+)'d(\d+)\)", text)
    kwargs: dict[str, Any] = {
        name: float(_signed(int(value), int(bits), name)) for name, bits, value in found
    }
    flags = {f"{n}_ema": getattr(layer, f"{n}_ema") for n in ("alpha", "beta", "gamma")}
    return integers.LeakyIntegrator(
        1,
        decay=integers.Multiplier(12),
        rec_weight_fraction=8 if "rec_weight" in kwargs else 0,
        reset=seen["choices"].get("reset", "subtract"),
        **flags,
        **kwargs,
    )


def _signed(value: int, bits: int, name: str) -> int:
    signed = name in ("rec_weight", "bias") or (name.endswith("_scale") and bits > 11)
    return value - 2**bits if signed and value >= 2 ** (bits - 1) else value


@needs_iverilog
@pytest.mark.parametrize("name", few(LAYERS, "LIF", "BSRLIF", "SReadout"))
def test_the_verilog_that_is_shown_is_an_integer_neuron(
    opened: Open, name: str, tmp_path: Path
) -> None:
    page, layer = opened(), playground.neurons()[name]
    for k in range(2):
        drawn = settings_of(layer, random.Random(f"{name} {k}"))
        seen = go(page, neuron=name, **(drawn if k else {}))
        text, note = shown(page, "Verilog")
        (power,) = re.findall(r"is 2\*\*(-?\d+)\.", text)
        unit = 2.0 ** int(power)
        x = [round(value / unit) for value in seen["x"]]
        (tmp_path / str(k)).mkdir()
        y = simulated(text, x, tmp_path / str(k))
        neuron = integer_neuron(layer, seen, text).double()
        with torch.no_grad(), tt.fuse.backend("eager"):
            given = torch.tensor(x, dtype=torch.float64)[:, None, None]
            expected = tt.unroll(neuron, given, from_rest=True).flatten()
        assert y.tolist() == expected.tolist()
        assert k or y.any()
        assert "decays of 12 bits" in note
        # what one integer of the output is
        size = unit if "Readout" in name else 1 / int((re.findall(r"spike is (\d+)", text))[0])
        output = torch.tensor(seen["output"])
        scale = float(output.abs().sum())
        if k == 0:  # at random settings one spike may change all that follow
            assert abs(float((size * y).abs().sum()) - scale) <= 0.05 * scale


def test_a_neuron_without_a_circuit_says_why(opened: Open, tmp_path: Path) -> None:
    page = opened("#neuron=ALIF")
    _, note = shown(page, "Verilog")
    assert page.locator("#source").is_hidden()
    assert page.locator("#copy").is_hidden()
    assert note.startswith("No circuit: ALIF has no integer form. What has one: Linear, Conv1d")
    model = torch.nn.Sequential(torch.nn.Linear(1, 1), tt.neurons.ALIF(1))
    with pytest.raises(ValueError, match=r"ALIF.* has no integer form"):
        tt.quantize.prepare(model, torch.ones(3, 1, 1))
    tt.plot.save_playground(Plain(2), tmp_path / "plain.html")
    page = opened(path=tmp_path / "plain.html")
    assert "No circuit: Plain has no integer form" in shown(page, "Verilog")[1]
    assert "param_gain[1] = {\n    1.5f,\n};" in shown(page, "C")[0]


# the note is spoken over when the settings are stored
NOTES = """() => new MutationObserver(() => {
    const text = document.getElementById("note").textContent;
    if (text.endsWith("copied.")) window.note = text;
}).observe(document.getElementById("note"), { childList: true })"""


def test_sources_follow_the_sliders_and_are_copied(opened: Open) -> None:
    page = opened()
    page.evaluate(STUB)
    page.evaluate(NOTES)
    before = {language: shown(page, language)[0] for language in ("C", "Verilog")}
    page.get_by_label("beta, steps").fill("20")
    page.get_by_label("reset", exact=True).select_option("zero")
    for language, text in before.items():
        after, note = shown(page, language)
        assert after != text
        assert "\u27e8" not in after
        page.get_by_role("button", name="copy", exact=True).click()
        wait_until(page, f"window.note === '{language} copied.'")
        assert page.evaluate("copied") == after
        assert "Of neuron" not in note
    assert f"{np.float32(0.5**0.05)!s}f" in shown(page, "C")[0]
    page.get_by_label("a second neuron").check()
    assert shown(page, "C")[1].startswith("Of neuron 1 alone.")
