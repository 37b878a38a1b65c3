"""Two neurons of the playground are those of PyTorch, and its presets do what they say."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

import tracetorch as tt
from examples import playground
from tests.browser import Page, wait_for_frame, wait_until
from tests.plot.test_playground import chosen, go, read, settings_of
from tracetorch import fuse, snn
from tracetorch.plot.playground_story import PAIRS

Open = Callable[..., Page]
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


def bursts(both: list[list[int]]) -> list[tuple[int, list[int]]]:
    """Return which neuron fires, and when, until the other one does."""
    found: list[tuple[int, list[int]]] = []
    for t, who in sorted([(t, k) for k in (0, 1) for t in both[k]]):
        if not found or found[-1][0] != who:
            found.append((who, []))
        found[-1][1].append(t)
    return found


def test_a_half_centre_oscillator_bursts_in_turns(opened: Open) -> None:
    page = opened()
    seen = take(page, "half-centre oscillator")
    both = [spikes(each) for each in sides(seen)]
    turns = bursts(both)[:-1]  # the last one is cut off
    assert len(turns) >= 6
    assert all(len(times) >= 4 for _, times in turns)
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
