"""Drive the page of a network in a headless browser, and compare its training with PyTorch's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tracetorch as tt
from examples import playground
from tests.browser import Page, Visits, wait_for_frame, wait_until
from tracetorch import snn

Open = Callable[..., Page]
DATA = {"spirals": playground.spirals, "delays": playground.delays}
UPDATES = 20
# Both compute in float64 and differ in the order of sums, by 1e-16 of a number; Adam divides by the
# size of a gradient, which makes that 1e-13 of a loss. A spike that only one has would be 1e-3.
RTOL = 1e-10


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "network.html"
    playground.write_network(path)
    return path


@pytest.fixture
def opened(visits: Visits, place: Path) -> Open:
    def open_(path: Path = place, **options: Any) -> Page:
        page = visits.open(path, **options)
        page.wait_for_selector("body[data-ready='true']")
        return page

    return open_


def read(page: Page) -> dict[str, Any]:
    wait_for_frame(page)
    values: dict[str, Any] = page.evaluate("readNetwork()")
    return values


def update(page: Page, times: int) -> None:
    page.evaluate(f"for (let k = 0; k < {times}; k++) document.getElementById('once').click()")


def trained(model: nn.Sequential, x: Tensor, labels: Tensor, updates: int) -> list[float]:
    """Train a model as the page does; return the loss before each update."""
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
    """Assert that losses and learned tensors are PyTorch's after some updates of both."""
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
    compare(page, playground.network(), *DATA[name]())


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


def test_training_runs_until_it_is_paused_and_the_play_head_tells_numbers(opened: Open) -> None:
    page = opened()
    page.get_by_role("button", name="train").click()
    wait_until(page, "readNetwork().updates > 30")
    page.get_by_role("button", name="pause", exact=True).first.click()
    seen = read(page)
    assert not seen["training"]
    assert seen["losses"][-1] < seen["losses"][0]
    assert read(page)["updates"] == seen["updates"]
    shown = page.locator("#progress").inner_text()
    assert shown.startswith(f"{seen['updates']} updates: loss ")
    page.get_by_role("button", name="reset").click()
    again = read(page)
    assert again["updates"] == 0
    update(page, 1)
    assert read(page)["losses"] == seen["losses"][:1]
    update(page, 1)
    page.get_by_label("play head").fill("9")
    seen = read(page)
    shown = page.locator("#rows output").all_inner_texts()
    assert shown[3] == f"step 9: {int(sum(each[9] for each in seen['layers'][1]['output']))} spikes"
    assert shown[-1].startswith("step 9: ")
    label = page.locator("#losses").get_attribute("aria-label")
    first = f"from {seen['losses'][0]:.3f} and"
    assert label.startswith(f"loss and share right over 2 updates: {first}")
    assert label.endswith(" %")


def test_the_map_chooses_a_sample(opened: Open) -> None:
    page = opened()
    field = page.locator("#map")
    frame = field.bounding_box()
    points, _ = playground.spirals(1)
    most = float(points.abs().max()) * 1.15
    x, y = ((float(v) / most + 1) / 2 for v in points[0, 30])
    page.mouse.click(frame["x"] + x * frame["width"], frame["y"] + (1 - y) * frame["height"])
    seen = read(page)
    assert (seen["source"], seen["sample"]) == ("sample", 30)
    assert seen["x"][0] == [pytest.approx(float(points[0, 30, 0]))] * 20
    field.focus()
    page.keyboard.press("ArrowRight")
    assert read(page)["sample"] == 31
    assert field.get_attribute("aria-label").startswith("sample 31 of 120, class 1: the network")
