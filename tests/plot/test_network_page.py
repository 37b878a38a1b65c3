"""Drive the page of a network in a headless browser, and compare its training with PyTorch's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode

import pytest
import torch
from torch import Tensor, nn

import tracetorch as tt
from examples import playground
from tests.browser import Page, wait_for_frame, wait_until
from tests.cases import few
from tracetorch import snn
from tracetorch.plot.network_data import TRIES

Open = Callable[..., Page]
DATA, HELD_OUT = playground.data(), playground.data(seed=1)
UPDATES = 20
# Both compute in float64 and differ in the order of sums, by 1e-16 of a number; Adam divides by the
# size of a gradient, which makes that 1e-13 of a loss. A spike that only one has would be 1e-3.
RTOL = 1e-10


@pytest.fixture
def opened(opened: Open, network_page: Path) -> Open:
    def open_(path: Path = network_page, **settings: Any) -> Page:
        return opened(f"#{urlencode(settings)}" if settings else "", path)

    return open_


def read(page: Page) -> dict[str, Any]:
    wait_for_frame(page)
    values: dict[str, Any] = page.evaluate("readNetwork()")
    return values


def go(page: Page, **settings: Any) -> dict[str, Any]:
    """Go to settings, wait until the page is trained as far as they say, and read it."""
    page.evaluate("(text) => { location.hash = text; }", urlencode(settings))
    updates = settings.get("updates", 0)
    wait_until(page, f"(r => r.updates === {updates} && !r.training)(readNetwork())")
    return read(page)


def update(page: Page, times: int) -> None:
    page.evaluate(f"for (let k = 0; k < {times}; k++) document.getElementById('once').click()")


def trained(model: nn.Sequential, x: Tensor, labels: Tensor, updates: int) -> list[float]:
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    losses = []
    for _ in range(updates):
        optimizer.zero_grad()
        outputs = tt.unroll(model, x, from_rest=True)
        loss = nn.functional.cross_entropy(outputs.mean(0), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def compare(page: Page, model: nn.Sequential, x: Tensor, labels: Tensor) -> None:
    model, x = model.double(), x.double()
    update(page, UPDATES)
    seen, losses = read(page), trained(model, x, labels, UPDATES)
    found = torch.tensor(seen["losses"], dtype=torch.float64)
    expected = torch.tensor(losses, dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=RTOL, atol=0)
    assert losses[-1] < losses[0]
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    names = {name for name in tensors if name in seen["tensors"]}
    assert names >= {name for name, _ in model.named_parameters()}
    for name in names:
        found = torch.tensor(seen["tensors"][name], dtype=torch.float64)
        expected = tensors[name].detach().double().flatten()
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-10, msg=name)


@pytest.mark.parametrize("name", DATA)
def test_training_is_that_of_pytorch(opened: Open, name: str) -> None:
    page = opened()
    page.get_by_label("data", exact=True).select_option(name)
    compare(page, playground.network(), *DATA[name])


def test_every_part_of_a_neuron_is_trained(opened: Open, tmp_path: Path) -> None:
    """Recurrence, synapse and both signs, frozen parameters, no bias, a spiking output."""
    torch.manual_seed(1)
    model = nn.Sequential(
        nn.Linear(3, 7, bias=False),
        snn.BSRLIF(7, beta=0.8, learn_beta=False, reset="zero"),
        nn.Sequential(nn.Linear(7, 5), tt.neurons.ALIF(5, strength=0.5)),
        nn.Linear(5, 3),
        snn.SLIF(3, beta=0.95),
    )
    x, labels = torch.randn(15, 9, 3) * 2, torch.arange(9) % 3
    tt.plot.save_playground(model, tmp_path / "own.html", data=(x, labels))
    page = opened(tmp_path / "own.html")
    assert page.locator("#space").is_hidden()  # no plane
    compare(page, model, x, labels)


def test_layers_compute_what_pytorch_does(opened: Open, tmp_path: Path) -> None:
    model = playground.network()
    tt.plot.save_playground(model, tmp_path / "still.html")
    page = opened(tmp_path / "still.html")
    assert page.locator("#first").is_hidden()
    page.get_by_label("input 1", exact=True).fill("-2.5")
    page.get_by_label("input 0", exact=True).fill("2")
    for kind in ("pulses", "constant", "noise"):
        page.get_by_label("input", exact=True).select_option(kind)
        seen = read(page)
        x = torch.tensor(seen["x"], dtype=torch.float64).T[:, None]
        assert x.any()
        outputs, record = tt.unroll(model.double(), x, from_rest=True, record=["1.mem", "1.output"])
        for layer, expected in (
            (seen["layers"][1]["states"]["mem"], record["1.mem"]),
            (seen["layers"][1]["output"], record["1.output"]),
            (seen["layers"][3]["output"], outputs),
        ):
            found = torch.tensor(layer, dtype=torch.float64).T[:, None]
            torch.testing.assert_close(found, expected.detach(), rtol=1e-12, atol=1e-12)
        assert record["1.output"].any()


SIZES: dict[str, dict[str, Any]] = {
    "wider": {"net": "LIF", "width": 7, "h.beta": 3},
    "without reset, two layers": {"net": "LIF without reset", "width": 5, "depth": 2},
    "a synapse, its half-lives": {"net": "SLIF, a synapse", "h.alpha": 2.5, "h.beta": 9},
    "both signs, one neuron": {"net": "BLIF, both signs", "width": 1, "weights": 3},
    "adaptive, three layers": {"net": "ALIF, adaptive", "width": 6, "depth": 3, "weights": 1},
    "no spikes, few samples": {"net": "no spikes", "width": 9, "data": "few and noisy"},
}


def built(seen: dict[str, Any]) -> nn.Sequential:
    """Run the Python that the page prints, and give the model the weights of the page."""
    scope: dict[str, Any] = {"nn": nn, "tt": tt}
    exec(seen["python"].partition("optimizer")[0], scope)
    model: nn.Sequential = scope["model"].double()
    state = {n: torch.tensor(v, dtype=torch.float64) for n, v in seen["tensors"].items()}
    for name, each in model.state_dict().items():
        if name in state:
            new = state[name].reshape(each.shape)
            if name.endswith(("raw_alpha", "raw_beta")):  # the same half-lives, by float32
                torch.testing.assert_close(each, new, rtol=1e-5, atol=1e-5)
            each.copy_(new)
    return model


@pytest.mark.parametrize("size", few(SIZES, "a synapse, its half-lives", "adaptive, three layers"))
def test_networks_of_any_size_train_as_their_python_does(opened: Open, size: str) -> None:
    settings = SIZES[size]
    page = opened(**settings)
    model, width = built(read(page)), settings.get("width", 24)
    assert len(model) == 2 * settings.get("depth", 1) + 2
    last = model.get_parameter(f"{len(model) - 2}.weight").detach()
    assert last.shape == (2, width)
    assert 0.5 < float(last.abs().max()) * width**0.5 <= 1  # as nn.Linear draws
    compare(page, model, *DATA[settings.get("data", "spirals")])


def test_the_printed_training_runs_and_is_that_of_the_page(opened: Open) -> None:
    page = opened(net="ALIF, adaptive", width=5, rate=0.02)
    seen = read(page)
    x, labels = DATA["spirals"]
    model = built(seen)
    scope = {"model": model, "nn": nn, "tt": tt, "torch": torch, "x": x.double(), "labels": labels}
    exec("optimizer" + seen["python"].partition("optimizer")[2], {**scope, "updates": 3})
    update(page, 3)
    tensors = read(page)["tensors"]
    for name, each in model.named_parameters():
        found = torch.tensor(tensors[name], dtype=torch.float64)
        torch.testing.assert_close(found, each.detach().flatten(), rtol=1e-8, atol=1e-10, msg=name)


def test_held_out_samples_are_measured_and_not_learned(opened: Open) -> None:
    page = opened(data="few and noisy", width=8)
    model = built(read(page))
    update(page, 6)
    seen = read(page)
    x, labels = DATA["few and noisy"]
    expected = []
    for kept in (0, 5):
        losses = trained(model, x.double(), labels, 5 if kept else 0)
        assert losses == pytest.approx(seen["losses"][: len(losses)], rel=1e-9)
        with torch.no_grad():
            held, right = HELD_OUT["few and noisy"]
            y = tt.unroll(model, held.double(), from_rest=True).mean(0)
        share = float((y.argmax(1) == right).double().mean())
        expected += [kept, nn.functional.cross_entropy(y, right).item(), share]
    assert [each for row in seen["held"] for each in row] == pytest.approx(expected)
    shown = page.locator("#progress").inner_text()
    assert shown.endswith(
        f"held out {seen['heldNow'][0]:.3f}, {100 * seen['heldNow'][1]:.0f} % right"
    )


@pytest.mark.parametrize("net", ["LIF", "BLIF, both signs"])
def test_what_flows_back_and_the_distance_from_the_threshold_are_those_of_pytorch(
    opened: Open, net: str
) -> None:
    page = opened(net=net, depth=2, width=6, rows="gradient", sample=7)
    seen = read(page)
    model, (x, labels) = built(seen), DATA["spirals"]
    inputs: dict[int, Tensor] = {}
    x = x[:, 7:8].double()
    for place, layer in enumerate(model):
        inputs[place] = x
        if place % 2 == 1:
            x.requires_grad_() if x.is_leaf else x.retain_grad()
        x = tt.unroll(layer, x, from_rest=True)
    nn.functional.cross_entropy(x.mean(0), labels[7:8]).backward()
    surrogate = tt.functional.atan_surrogate(2.0)
    for place in (1, 3):
        gradient = inputs[place].grad
        assert gradient is not None
        assert gradient.any()
        flow = torch.tensor(seen["layers"][place]["flow"], dtype=torch.float64).T[:, None]
        torch.testing.assert_close(flow, gradient, rtol=1e-9, atol=1e-12)
        far = torch.tensor(seen["layers"][place]["distances"], dtype=torch.float64).T
        mem = torch.tensor(seen["layers"][place]["states"]["mem"], dtype=torch.float64).T
        before = torch.cat([torch.zeros_like(mem[:1]), mem[:-1]])
        beta = torch.sigmoid(torch.tensor(seen["tensors"][f"{place}.raw_beta"]).double())
        moved = beta * before + inputs[place].detach()[:, 0]
        expected = torch.maximum(moved - 1, -1 - moved) if net != "LIF" else moved - 1
        torch.testing.assert_close(far, expected, rtol=1e-6, atol=1e-6)
        assert torch.equal(far > 0, torch.tensor(seen["layers"][place]["output"]).T != 0)
    page.get_by_label("play head").fill("9")
    wait_for_frame(page)
    us = torch.tensor([lane[9] for k in (1, 3) for lane in seen["layers"][k]["distances"]])
    slopes = surrogate.derivative(us)
    near = int((slopes >= 0.5 * surrogate.derivative(torch.zeros(()))).sum())
    assert (
        page.locator("#passing").inner_text() == f"Step 9: {near} of 12 neurons pass at least half."
    )


def test_links_hold_all_settings_and_train_as_far(opened: Open) -> None:
    page = opened()
    seen = go(
        page,
        net="ALIF, adaptive",
        data="delays",
        width=5,
        depth=2,
        weights=4,
        rate=0.02,
        sample=3,
        updates=4,
        rows="gradient",
        **{"h.rho": 30},
    )
    page.evaluate("navigator.clipboard.writeText = async (text) => { window.copied = text; }")
    page.get_by_role("button", name="copy link").click()
    wait_until(
        page, "document.getElementById('note').textContent.startsWith('Link copied. It trains 4 ')"
    )
    link = page.evaluate("copied")
    again = opened(**dict(parse_qsl(link.partition("#")[2])))
    wait_until(again, "readNetwork().updates === 4 && !readNetwork().training")
    assert read(again) == seen
    start = read(opened())
    page.get_by_role("button", name="reset").click()
    wait_until(page, "readNetwork().updates === 0")
    assert {**read(page)["settings"], "set": 0} == start["settings"]
    assert page.url.endswith("#data=delays")  # and loading it again brings nothing else back
    seen = go(page, input="noise", seed=5, pulse=3, **{"in.1": -0.5})
    assert seen["source"] == "noise"
    assert seen["layers"][1]["distances"]


def test_things_to_try_set_the_page_and_train(opened: Open) -> None:
    page = opened()
    for name, text, settings in TRIES:
        page.get_by_role("link", name=name, exact=True).click()
        seen = page.evaluate("readNetwork()")  # at once: a training may end by itself
        assert page.locator("#caption").inner_text() == text
        assert seen["training"]
        assert seen["settings"]["width"] == settings.get("width")
