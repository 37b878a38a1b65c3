"""Drive the page of ``save_playground`` in a headless browser, and compare it with PyTorch."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
import torch
from torch import Tensor

import tracetorch as tt
from examples import playground
from tests.browser import Page, wait_for_frame, wait_until
from tests.cases import INEXACT, LAYERS, NEURONS, READOUTS, SURROGATES, few
from tests.lane import run_lane
from tests.plot.test_save_playground import Plain
from tracetorch import fuse, snn
from tracetorch.functional.surrogates import Surrogate
from tracetorch.plot.playground_story import PAIRS, TRIES

Open = Callable[..., Page]
BY_LABEL = {repr(each).replace("_surrogate(", "("): each for each in SURROGATES}
NAMES = {"tt": tt, "Plain": Plain}
ONSET = 10  # of pulses and of the constant


# waits until the page has taken the fragment; one that it has already changes nothing
LOAD = """(text) => new Promise((done) => {
    if (new URL("#" + text, location).hash === location.hash) return done();
    addEventListener("hashchange", done, { once: true });
    location.hash = text;
}).then(() => null)"""


def go(page: Page, **settings: object) -> dict[str, Any]:
    page.evaluate(LOAD, urlencode(settings))
    return read(page)


def read(page: Page) -> dict[str, Any]:
    wait_for_frame(page)
    values: dict[str, Any] = page.evaluate("readPlayground()")
    return values


def made(text: str) -> snn.Neuron:
    with torch.no_grad():
        scope: dict[str, Any] = dict(NAMES)
        exec(text, scope)
    neuron = scope["neuron"]
    assert isinstance(neuron, snn.Neuron)
    return neuron


def chosen(layer: snn.Neuron, choices: Mapping[str, str]) -> dict[str, Any]:
    """Return the options of a layer that the page has set, by their names in ``step``."""
    options: dict[str, Any] = {}
    if "reset" in choices:
        options["reset"] = choices["reset"]
        options["detach_reset"] = choices["detach_reset"] == "True"
    if choices.get("surrogate") in BY_LABEL:  # else it is the layer's own
        spikes = [n for n in layer._options if isinstance(getattr(layer, n), Surrogate)]
        options |= dict.fromkeys(spikes, BY_LABEL[choices["surrogate"]])
    return options


def compare(seen: Mapping[str, Any], layer: snn.Neuron) -> None:
    """Assert that the page has drawn what PyTorch computes, and that its Python is this neuron."""
    options = chosen(layer, seen["choices"])
    lane = run_lane(layer, seen["x"], seen["params"], seen["start"], options)
    exact = type(layer).__name__ not in INEXACT  # functions of another library
    drawn = {"output": seen["output"], **seen["states"]}
    for name, value in {"output": lane.output, **lane.record}.items():
        found = torch.tensor(drawn[name], dtype=torch.float64)
        if exact:
            assert torch.equal(found, value), name
        else:
            torch.testing.assert_close(found, value.detach(), rtol=1e-11, atol=1e-11)
    target = seen["target"]
    end = lane.output if target["of"] == "output" else lane.record[target["of"]]
    slopes = lane.gradients(end.sum() if target["all"] else end[target["step"]])
    for name, found in seen["gradients"].items():
        torch.testing.assert_close(
            torch.tensor(found, dtype=torch.float64), slopes[name], rtol=1e-9, atol=1e-9
        )
    again = made(seen["python"])
    assert type(again) is type(layer)
    for name, value in seen["params"].items():
        found = getattr(again, name).detach().reshape(-1)
        torch.testing.assert_close(found, torch.full_like(found, value), rtol=1e-5, atol=1e-6)
    for name in layer._options:
        if name not in seen["params"]:
            assert getattr(again, name) == {**vars(layer), **options}[name], name


def settings_of(layer: snn.Neuron, draw: random.Random) -> dict[str, object]:
    settings: dict[str, object] = {}
    for name, constraint in layer.constraints.items():
        ends = {"sigmoid": (-0.5, 1.5), "unbounded": (-1.5, 1.5)}.get(constraint.name, (-1, 0.5))
        number = draw.uniform(*ends)
        shown = number if constraint.name == "unbounded" else 10**number
        if constraint.name == "fraction":
            shown = draw.uniform(0.1, 0.9)
        settings[f"p.{name}"] = float(f"{shown:.3g}")
    if hasattr(layer, "reset") and any("threshold" in name for name in layer.constraints):
        settings["o.reset"] = draw.choice(["subtract", "zero", "none"])
        settings["o.detach_reset"] = draw.choice(["False", "True"])
        settings["o.surrogate"] = draw.choice(list(BY_LABEL))
    settings |= {"kind": "noise", "amplitude": 1.2, "seed": draw.randrange(99)}
    if draw.random() < 0.7:
        silent = type(layer).__name__ in READOUTS
        hidden = {"prev_output", "mem" if silent else ""} if hasattr(layer, "prev_output") else {""}
        shown_states = [name for name in layer.active_states if name not in hidden]
        settings |= {"of": draw.choice(["output", *shown_states]), "step": draw.randrange(40, 200)}
    return settings


FAST = ("LIF", "BSRLIF", "SRReadout", "ALIF", "AdEx", "Izhikevich")


@pytest.mark.parametrize("name", few([*LAYERS, *NEURONS], *FAST))
def test_neurons_compute_what_pytorch_does(opened: Open, name: str) -> None:
    page, layer = opened(), playground.neurons()[name]
    assert any(go(page, neuron=name)["output"]), "the input has the size that the neuron needs"
    for seed in range(3):
        settings = settings_of(layer, random.Random(f"{name} {seed}"))
        if NEURONS.get(name, 1) > 1:  # far from their own numbers some explode
            settings = {n: v for n, v in settings.items() if not n.startswith("p.")}
        if "o.reset" in settings:  # every reset
            settings["o.reset"] = ("subtract", "zero", "none")[seed]
        if name in NEURONS and ("o.surrogate" in settings or "spike" in layer._options):
            settings["o.surrogate"] = list(BY_LABEL)[seed]
        compare(go(page, neuron=name, **settings), layer)


def test_lines_are_where_a_neuron_fires(opened: Open) -> None:
    """A raised threshold is drawn where it is, not where it began."""
    page = opened()
    seen = go(page, neuron="ALIF", kind="constant", amplitude=0.5)
    ((state, line),) = seen["lines"]
    layer = tt.neurons.ALIF(1).double().requires_grad_(False)
    strength, threshold = (float(getattr(layer, name)) for name in ("strength", "pos_threshold"))
    before = torch.tensor([0.0, *seen["states"]["adaptation"][:-1]], dtype=torch.float64)
    assert state == "mem"
    found = torch.tensor(line, dtype=torch.float64)
    torch.testing.assert_close(found, threshold + strength * before, rtol=1e-6, atol=1e-6)
    steps = zip(seen["states"]["mem"], line, seen["output"], strict=True)
    silent = [(mem, level) for mem, level, fired in steps if not fired]
    assert max(silent)[0] > threshold + 1
    assert all(mem <= level for mem, level in silent)
    read_out = page.locator(".row[data-row='mem'] output").inner_text()
    assert read_out == "dashed: where it fires; dots: before the reset"
    (found,) = go(page, neuron="RF")["lines"]
    assert found[0] == "imag"
    assert go(page, neuron="BLIF")["lines"] == [["mem", [1.0] * 200], ["mem", [-1.0] * 200]]
    assert go(page, neuron="SigmaDelta")["lines"] == []


def test_page_of_a_single_layer_begins_with_trained_values(opened: Open, tmp_path: Path) -> None:
    """Parameters that the constructor does not take are assigned in the copied Python."""
    layer: snn.Neuron = Plain(2)
    tt.plot.save_playground(layer, tmp_path / "plain.html")
    page = opened(path=tmp_path / "plain.html")
    assert page.locator("#chooser").is_hidden()
    assert page.locator("#letters").is_hidden()
    settings = {"p.beta": 3.5, "p.base": 0.6, "p.floor": 0.3, "p.gain": -2, "p.shift": 0.1}
    seen = go(page, **settings, kind="noise", **{"o.surrogate": "gaussian(sigma=0.5)"})
    assert seen["params"]["floor"] == -0.3
    compare(seen, layer)
    assert "neuron.beta = " in seen["python"]
    layer = snn.SLIF(3, beta=torch.tensor([0.5, 0.81, 0.7]), alpha=0.4, reset="zero", dim=-2)
    tt.plot.save_playground(layer, tmp_path / "one.html", neuron=1)
    seen = read(opened(path=tmp_path / "one.html"))
    assert seen["params"] == {"alpha": 0.4, "beta": 0.81, "pos_threshold": 1.0}
    assert seen["python"] == "neuron = tt.snn.SLIF(3, dim=-2, alpha=0.4, beta=0.81, reset='zero')"


def test_letters_switch_parts_on_and_values_stay(opened: Open) -> None:
    page = opened()
    assert read(page)["neuron"] == "LIF"
    for letter, name in (("S", "SLIF"), ("R", "SRLIF"), ("B", "BSRLIF"), ("readout", "SRReadout")):
        page.locator(f"[data-letter='{letter}']").check()
        assert read(page)["neuron"] == name
    assert page.locator("[data-letter='B']").is_disabled()
    page.locator("[data-letter='S']").uncheck()
    page.locator("[data-letter='readout']").uncheck()
    assert read(page)["neuron"] == "RLIF"
    page.locator("#neuron").select_option("Izhikevich")
    wait_for_frame(page)
    assert page.locator("#letters").is_hidden()
    assert set(read(page)["states"]) == {"v", "u"}
    page = opened("#p.beta=12")
    page.locator("[data-letter='S']").check()
    assert read(page)["params"]["beta"] == pytest.approx(0.5 ** (1 / 12), abs=1e-12)


def test_links_restore_everything_and_python_is_copied(opened: Open) -> None:
    page = opened()
    go(page, neuron="BSLIF", of="syn", step=7, **{"p.beta": 3.3, "o.reset": "none"})
    page.locator(".row[data-row='input'] canvas").focus()
    for key in ("ArrowRight", "ArrowUp", "ArrowUp"):
        page.keyboard.press(key)
    page.evaluate("navigator.clipboard.writeText = async (text) => { window.copied = text; }")
    page.get_by_role("button", name="copy link").click()
    wait_until(page, "document.getElementById('note').textContent === 'Link copied.'")
    link = page.evaluate("copied")
    assert page.url == link
    fragment = link[link.index("#") :]
    assert len(fragment) < 200
    assert read(opened(fragment)) == read(page)
    go(page, neuron="RLIF", **{"p.beta": 10, "p.rec_weight": -0.5, "o.reset": "zero"})
    page.get_by_role("button", name="copy", exact=True).click()
    wait_until(page, "document.getElementById('note').textContent === 'Python copied.'")
    assert page.evaluate("copied") == page.locator("#python").inner_text() == read(page)["python"]
    assert read(page)["python"] == (
        "neuron = tt.snn.RLIF(1, beta=tt.functional.halflife_to_decay(10), rec_weight=-0.5, "
        "reset='zero')"
    )


def test_presets_set_neuron_and_input(opened: Open) -> None:
    page = opened()
    assert page.locator("#neuron optgroup").first.locator("option").all_inner_texts() == [*LAYERS]
    go(page, neuron="Izhikevich")
    assert page.locator("#presets button").all_inner_texts() == [*tt.neurons.Izhikevich.presets]
    page.get_by_role("button", name="LTS").click()
    wait_for_frame(page)
    assert "Izhikevich 2003" in page.locator("#caption").inner_text()
    seen = read(page)
    assert seen["params"] == {"a": 0.02, "b": 0.25, "c": -65, "d": 2}
    assert seen["start"] == {"v": -65, "u": -16.25}  # as the constructor has it
    compare(seen, tt.neurons.Izhikevich(1, b=0.25))


def test_things_to_try_set_the_page_and_play(opened: Open) -> None:
    page = opened()
    links = page.locator("#tries a")
    assert links.all_inner_texts() == [name for _, name, _, _ in TRIES]
    seen = {}
    for neuron, name, text, _ in TRIES:
        page.get_by_role("link", name=name, exact=True).click()
        seen[name] = read(page)
        assert page.locator("#caption").inner_text() == text
        assert seen[name]["neuron"] == neuron
        assert page.locator("#play").inner_text() == "pause"
        assert "ignored" not in page.locator("#note").inner_text()
    spikes = {name: sum(map(bool, each["output"])) for name, each in seen.items()}
    assert [name for name, count in spikes.items() if count < 2] == ["the leak", "memory"]
    assert max(seen["rebound"]["output"][ONSET + 50 : ONSET + 90]) == 1  # when the input is over
    assert min(seen["spikes of both signs"]["output"]) == -1
    assert seen["a synapse"]["output"][ONSET + 4] == 1
    # what the texts say of other settings
    assert any(go(page, kind="constant", amplitude=0.12, **{"p.beta": 6})["output"])
    for period in (15, 30):
        silent = go(page, neuron="RF", amplitude=0.3, width=2, period=period)
        assert sum(silent["output"]) < spikes["resonance"] / 2
    lost = spikes["the reset"]
    assert sum(go(page, kind="constant", amplitude=0.62)["output"]) > lost


def test_a_phase_plane_has_the_crossings_of_the_neuron(opened: Open) -> None:
    page = opened()
    # dots lie on the curves: a step that spikes, above the peak, is no crossing
    seen = go(page, neuron="AdEx", kind="constant", amplitude=0.25)
    rest, t, delta = (seen["params"][name] for name in ("v_rest", "v_t", "delta"))
    assert len(seen["stays"][0]) > 5
    for v, w in seen["stays"][0]:
        assert w == pytest.approx(25 - (v - rest) + delta * math.exp((v - t) / delta), abs=1)
        assert v < seen["params"]["v_peak"]


def test_the_membrane_is_drawn_before_its_reset_and_the_curve_counts_spikes(opened: Open) -> None:
    page = opened()
    seen = go(page, neuron="LIF", kind="constant", amplitude=0.7)
    mem = [0.0, *seen["states"]["mem"]]
    for t, value in enumerate(seen["before"]):
        assert value == pytest.approx(seen["params"]["beta"] * mem[t] + seen["x"][t], abs=1e-12)
        assert (value > 1) == (seen["output"][t] == 1)
        assert mem[t + 1] == pytest.approx(value - seen["output"][t])
    assert go(page, neuron="Readout")["before"] is None
    seen = go(page, neuron="ALIF", kind="constant", amplitude=0.6)
    rates = {round(each["amplitude"], 9): each["rate"] for each in seen["rates"]}
    assert rates[0.0] == 0
    assert len(rates) == 41
    assert rates[0.6] == pytest.approx(100 * sum(seen["output"]) / (len(seen["x"]) - ONSET))
    assert page.locator("#curve").is_visible()
    assert page.locator("#plane").is_visible()
    go(page, neuron="Readout")
    assert page.locator("#panels").is_hidden()


SETTINGS = {name: settings for _, name, _, settings in PAIRS}
PAIRED = (("LIF", "LIF"), ("BSRLIF", "ALIF"), ("SLIF", "SReadout"), ("AdLIF", "RLIF"))


def pair_settings(names: tuple[str, str], seed: int) -> dict[str, object]:
    draw = random.Random(f"{names} {seed}")
    first, second = (settings_of(playground.neurons()[name], draw) for name in names)
    shown = draw.choice([1, 2])
    settings = {n: v for n, v in first.items() if n not in ("of", "step")}
    settings |= {f"2.{n}": v for n, v in second.items() if n not in ("of", "step")}
    settings |= {
        n: (first, second)[shown - 1][n] for n in ("of", "step") if n in first and n in second
    }
    weights = {n: round(draw.uniform(-1.5, 1.5), 2) for n in ("w12", "w21")}
    if shown == 2:
        settings["shown"] = 2
    return {"neuron": names[0], "neuron2": names[1], **settings, **weights}


def sides(seen: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    both = [seen, seen["other"]]
    return both[::-1] if seen["pair"]["shown"] else both


def recurrent(
    seen: Mapping[str, Any], layers: list[Any], options: list[dict[str, Any]]
) -> tuple[Any, list[dict[str, Tensor]]]:
    """Return an ``snn.Recurrent`` with the numbers of the page, which are of float64."""
    params = []
    for layer, own, side in zip(layers, options, sides(seen), strict=True):
        given = {
            name: torch.tensor(value, dtype=torch.float64, requires_grad=True)
            for name, value in side["params"].items()
        }
        params.append(given)
        kwargs = {**layer.step_kwargs(1, torch.float64), **given, **own}
        layer.step_kwargs = lambda ndim, dtype, kwargs=kwargs: kwargs
    synapses = torch.nn.Linear(2, 2, bias=False, dtype=torch.float64)
    weights = seen["pair"]
    synapses.weight.data = torch.tensor(
        [[0, weights["w21"]], [weights["w12"], 0]], dtype=torch.float64
    )
    first, second = layers
    return snn.Recurrent(snn.Populations(first=first, second=second), synapses), params


@pytest.mark.parametrize("names", PAIRED, ids="-".join)
@pytest.mark.parametrize("seed", [0, 1])
def test_two_neurons_are_an_snn_recurrent(opened: Open, names: tuple[str, str], seed: int) -> None:
    seen = go(opened(), **pair_settings(names, seed))
    layers = [playground.neurons()[name] for name in names]
    both = sides(seen)
    options = [chosen(layer, s["choices"]) for layer, s in zip(layers, both, strict=True)]
    net, params = recurrent(seen, layers, options)
    x = torch.tensor([[s["x"] for s in both]], dtype=torch.float64).permute(2, 0, 1)
    x.requires_grad_()
    record: list[dict[str, Tensor]] = []
    outputs = []
    tt.zero_states(net)
    with fuse.backend("eager"):
        for step in x:
            outputs.append(net(step)[0])
            record.append(
                {
                    f"{k} {name}": getattr(layer, name).flatten()[0]
                    for k, layer in enumerate(layers)
                    for name in layer.active_states
                }
            )
    output = torch.stack(outputs)
    for k, side in enumerate(both):
        assert output[:, k].tolist() == side["output"]
        for name, values in side["states"].items():
            assert torch.stack([s[f"{k} {name}"] for s in record]).tolist() == values, name
    place = 0 if both[0] is seen else 1
    target = seen["target"]
    of = target["of"]
    end = output[:, place] if of == "output" else torch.stack([s[f"{place} {of}"] for s in record])
    loss = end.sum() if target["all"] else end[target["step"]]
    leaves = [x, net.connection.weight, *params[place].values()]
    slopes = torch.autograd.grad(loss, leaves, allow_unused=True)
    found = [torch.zeros_like(a) if g is None else g for g, a in zip(slopes, leaves, strict=True)]
    close: dict[str, Any] = {"rtol": 1e-8, "atol": 1e-8}
    drawn = torch.tensor(seen["gradients"]["x"], dtype=torch.float64)
    torch.testing.assert_close(drawn, found[0][:, 0, place], **close)
    weights = torch.tensor(seen["pair"]["gradients"], dtype=torch.float64)
    torch.testing.assert_close(weights, torch.stack([found[1][0, 1], found[1][1, 0]]), **close)
    for name, slope in zip(params[place], found[2:], strict=True):
        drawn = torch.tensor(seen["gradients"][name], dtype=torch.float64)
        torch.testing.assert_close(drawn, slope, **close)


def take(page: Page, name: str) -> dict[str, Any]:
    page.get_by_role("button", name=name, exact=True).click()
    wait_for_frame(page)
    return read(page)


def spikes(side: Mapping[str, Any]) -> list[int]:
    return [t for t, value in enumerate(side["output"]) if value]


def test_a_half_centre_oscillator_bursts_in_turns(opened: Open) -> None:
    page = opened()
    seen = take(page, "half-centre oscillator")
    both = [spikes(each) for each in sides(seen)]
    fired = sorted((t, who) for who in (0, 1) for t in both[who])
    turns = [len([*each]) for _, each in itertools.groupby(fired, lambda spike: spike[1])]
    assert len(turns) >= 7
    assert min(turns[:-1]) >= 4  # the last one is cut off
    # neither has a rhythm of its own: without synapses both fire all the time
    settings = SETTINGS["half-centre oscillator"]
    alone = go(page, neuron="ALIF", **{**settings, "w12": 0, "w21": 0})
    gaps = torch.tensor(spikes(alone)).diff()
    assert gaps.max() < 2.5 * gaps[len(gaps) // 2]


def test_the_python_of_a_pair_makes_it(opened: Open) -> None:
    page = opened()
    for name in SETTINGS:
        seen = take(page, name)
        scope: dict[str, Any] = {"torch": torch, "tt": tt}
        with torch.no_grad(), fuse.backend("eager"):
            exec(seen["python"], scope)
            both = sides(seen)
            x = torch.tensor([[s["x"] for s in both]]).permute(2, 0, 1)
            output = tt.unroll(scope["neurons"].double(), x.double(), from_rest=True)
        for k, side in enumerate(both):
            assert output[:, 0, k].tolist() == side["output"], name


def test_a_pair_is_switched_on_and_off_and_kept_in_the_address(opened: Open) -> None:
    page = opened("#p.beta=12&kind=constant&amplitude=0.4")
    alone = read(page)
    page.get_by_label("a second neuron").check()
    seen = read(page)
    assert seen["other"]["output"] == seen["output"] == alone["output"]  # no synapse yet
    page.get_by_label("weight 1 \u2192 2", exact=True).fill("-1.5")
    page.get_by_label("input 2 later by, steps").fill("7")
    page.get_by_role("button", name="neuron 2").click()
    page.get_by_label("pos threshold", exact=True).fill("0.5")
    seen = read(page)
    assert seen["x"] == [0.0] * 7 + alone["x"][:-7]
    assert [each["params"]["pos_threshold"] for each in (seen, seen["other"])] == [0.5, 1.0]
    wait_until(page, "location.hash.includes('shown=2')")
    assert read(opened(page.evaluate("location.hash"))) == seen
    page.locator("#neuron").select_option("ALIF")  # neuron 2 alone is another kind
    seen = read(page)
    assert (seen["neuron"], seen["other"]["neuron"], len(seen["x"])) == ("ALIF", "LIF", 400)
    page.get_by_label("a second neuron").uncheck()
    assert (read(page)["neuron"], read(page)["other"]) == ("ALIF", None)
