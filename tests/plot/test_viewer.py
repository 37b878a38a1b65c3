"""Drive the page of ``save_html`` in a headless browser."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import tracetorch as tt
from tests.browser import Page, Visits, wait_for_frame
from tests.plot.cases import recording, uniform

LEFT, RIGHT, TOP, BOTTOM = 58, 20, 8, 20  # margins of a plot, as in viewer.js

Open = Callable[..., Page]


@pytest.fixture
def opened(visits: Visits, tmp_path: Path) -> Open:
    def open_(recording: Any, **options: Any) -> Page:
        place = tmp_path / f"run{len(visits.contexts)}.html"
        tt.plot.save_html(recording, place, **options)
        page = visits.open(place, color_scheme="light")
        page.wait_for_selector("body[data-ready='0']")
        return page

    return open_


def panel(page: Page, path: str) -> Page:
    return page.locator(".panel").filter(has=page.get_by_text(path, exact=True))


def centre(page: Page, path: str, step: float, row: float = 0.5, rows: float = 1.0) -> list[float]:
    shown = steps(page)
    frame = panel(page, path).locator("canvas").bounding_box()
    wide, high = frame["width"] - LEFT - RIGHT, frame["height"] - TOP - BOTTOM
    across = (step - shown[0] + 0.5) / (shown[1] - shown[0] + 1)
    return [frame["x"] + LEFT + across * wide, frame["y"] + TOP + row / rows * high]


def drawing(page: Page) -> tuple[Page, float, float]:
    canvas = page.locator(".panel canvas").first
    frame = canvas.bounding_box()
    return canvas, frame["width"] - LEFT - RIGHT, frame["height"] - TOP - BOTTOM


def steps(page: Page) -> tuple[int, int]:
    wait_for_frame(page)
    text = page.locator("#span").inner_text().replace(",", "")
    numbers = [int(n) for n in re.findall(r"\d+", text)]
    return (0, numbers[0] - 1) if len(numbers) == 1 else (numbers[0], numbers[1])


def read(page: Page, path: str) -> str:
    wait_for_frame(page)
    return str(panel(page, path).locator("output").inner_text())


def test_pointer_reads_spikes_and_states_at_the_same_step(opened: Open) -> None:
    seen = recording()
    seen["0.mem"][7, 0, 1] = torch.nan
    page = opened(seen)
    for path in ("0.output", "2.output"):
        sent = seen[path][:, 0]
        panel(page, path).scroll_into_view_if_needed()
        for step in (0, 10, 23):
            for neuron in range(sent.shape[1]):
                page.mouse.move(*centre(page, path, step, neuron + 0.5, sent.shape[1]))
                what = {1: "spike", -1: "downward spike", 0: "silent"}[int(sent[step, neuron])]
                assert read(page, path) == f"step {step} · neuron {neuron}: {what}"
    page.mouse.move(*centre(page, "0.output", 7))
    found = re.findall(r"(\d): ([^ ·]+(?: finite)?)", read(page, "0.mem"))
    assert [int(neuron) for neuron, _ in found] == [0, 1, 2, 3]
    assert found[1][1] == "not finite"
    for neuron in (0, 2, 3):
        expected = seen["0.mem"][7, 0, neuron].item()
        assert float(found[neuron][1]) == pytest.approx(expected, abs=1e-4)
    count = int(seen["2.output"][7, 0].abs().sum())
    assert read(page, "2.output") == f"step 7 · {count} spike{'' if count == 1 else 's'}"


INK = """([canvas, x, y, w, h]) => {
  const place = [x, y, w, h].map((side) => side * window.devicePixelRatio);
  const data = canvas.getContext('2d').getImageData(...place).data;
  const seen = {};
  for (let i = 0; i < data.length; i += 4) if (data[i + 3] > 200) {
    const key = [data[i], data[i + 1], data[i + 2]].join();
    seen[key] = (seen[key] || 0) + 1;
  }
  return seen;
}"""


UP, DOWN = "47,102,144", "209,73,91"


def test_ticks_are_at_the_spikes_only_and_lines_go_through_their_values(opened: Open) -> None:
    sent = torch.zeros(11, 1, 4)
    sent[3, 0, 1], sent[8, 0, 2] = 1, -1
    page = opened({"a.output": sent})
    canvas, wide, high = drawing(page)
    for step in range(11):
        for neuron in range(4):
            cell = [LEFT + step / 11 * wide, TOP + neuron / 4 * high, wide / 11 - 1, high / 4 - 1]
            ink = page.evaluate(INK, [canvas.element_handle(), *cell])
            assert (ink.get(UP, 0) > 50) == (sent[step, 0, neuron] > 0)
            assert (ink.get(DOWN, 0) > 50) == (sent[step, 0, neuron] < 0)
    page = opened({"a.mem": torch.linspace(0, 1, 21).reshape(21, 1, 1)})
    canvas, wide, high = drawing(page)
    for step in (1, 10, 19):
        x = LEFT + (step + 0.5) / 21 * wide
        y = TOP + (1.06 - step / 20) / 1.12 * high  # 6 % of room above and below
        here = page.evaluate(INK, [canvas.element_handle(), x - 3, y - 3, 6, 6])
        above = page.evaluate(INK, [canvas.element_handle(), x - 3, y - 30, 6, 6])
        assert here.get(UP, 0) > 8
        assert UP not in above


def test_single_spikes_are_visible_among_many_steps(opened: Open) -> None:
    sent = torch.zeros(10_000, 1, 2_000)
    sent[4_321, 0, 1_234] = 1
    page = opened({"a.output": sent.bool()})
    canvas, wide, high = drawing(page)
    x, y = LEFT + 0.4321 * wide, TOP + 0.617 * high
    ink = page.evaluate(INK, [canvas.element_handle(), x - 2, y - 2, 4, 4])
    assert ink.get(UP, 0) >= 1
    page.mouse.move(*centre(page, "a.output", 4_320.5, 1_234, 2_000))
    for _ in range(9):
        page.mouse.wheel(0, -300)
    first, last = steps(page)
    assert first <= 4_321 <= last < first + 250


def test_samples_and_layers_are_chosen(opened: Open) -> None:
    seen = recording()
    page = opened(seen)
    page.keyboard.press("]")
    page.wait_for_selector("body[data-ready='1']")
    for step in range(0, 24, 4):
        page.mouse.move(*centre(page, "0.output", step, 2.5, 5))
        fired = "spike" if seen["0.output"][step, 1, 2] else "silent"
        assert read(page, "0.output") == f"step {step} · neuron 2: {fired}"
    page.get_by_label("0.output").first.uncheck()
    assert page.locator(".panel b").all_inner_texts() == ["0.mem", "2.mem", "2.output"]
    page = opened({f"{n}.mem": uniform(9, 1, 2) for n in range(9)})
    assert page.locator(".panel").count() == 6
    page.get_by_label("8.mem").check()
    page.wait_for_selector("body[data-ready='0']")
    assert page.locator(".panel b").all_inner_texts()[-1] == "8.mem"


@pytest.mark.parametrize("values", [[0], [math.nan] * 3, [0.5] * 3, [1e30, -1e30, 0.3]], ids=str)
def test_small_and_unusual_recordings_open(opened: Open, values: list[float]) -> None:
    page = opened({"a.mem": torch.tensor(values).reshape(-1, 1, 1)})
    page.mouse.move(*centre(page, "a.mem", 0))
    assert read(page, "a.mem").startswith("step 0")
    page.keyboard.press("+")
    page.keyboard.press("ArrowUp")
    wait_for_frame(page)


def test_animations_play_without_a_network(visits: Visits, tmp_path: Path) -> None:
    tt.plot.save_animation(uniform(3, 1, 1, 4, 4), tmp_path / "film.html")
    page = visits.open(tmp_path / "film.html")
    page.get_by_title("Next frame").click()
    visits.problems = [each for each in visits.problems if not each.startswith("data:")]
    buttons = page.locator("button i").all()
    shown = [b.evaluate("e => getComputedStyle(e, '::before').content") for b in buttons]
    assert len(shown) == 9
    assert all(content not in ("none", "normal", '""') for content in shown)
