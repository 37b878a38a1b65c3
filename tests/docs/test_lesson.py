"""The lesson of one hour: its links open what it speaks of, and its answers are what pages show."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import pytest
import torch

import tracetorch as tt
from examples import playground
from tests.browser import Page, Visits, wait_for_frame, wait_until
from tests.docs.pages import DOCS
from tracetorch import snn

COURSE = DOCS / "course"
WORKSHEETS = (COURSE / "worksheets.md").read_text("utf-8")
QUESTION = re.compile(r"\*\*(\d\.\d)\*\*(.*?)(?=\*\*\d\.\d\*\*|\n## |\Z)", re.DOTALL)
LINK = re.compile(r'<a data-settings href="\.\./use/(\w+)_playground\.html#([^"]+)">')
LINKS = {number: LINK.findall(text) for number, text in QUESTION.findall(WORKSHEETS)}
OF: dict[str, list[tuple[str, int, str]]] = {"neuron": [], "network": []}
for _number, _links in LINKS.items():
    for _place, (_page, _fragment) in enumerate(_links):
        OF[_page].append((_number, _place, _fragment))
STEPS, ONSET = 200, 10  # as the page has them


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pages")


@pytest.fixture
def opened(visits: Visits, folder: Path) -> Callable[[str, str], Page]:
    def open_(name: str, fragment: str) -> Page:
        path = folder / f"{name}.html"
        if not path.exists() and name == "network":
            playground.write_network(path)
        elif not path.exists():  # of its neurons that of the sheets alone, which is written faster
            tt.plot.save_playground({"LIF": snn.LIF(1)}, path)
        page = visits.open(path, fragment=f"#{fragment}")
        page.wait_for_selector("body[data-ready='true']")
        assert "ignored" not in page.locator("#note").inner_text()
        return page

    return open_


def test_every_question_is_answered_and_the_lesson_is_one_click_from_the_index() -> None:
    answers = (COURSE / "answers.md").read_text("utf-8")
    numbers = list(LINKS)
    assert numbers == sorted(numbers)
    assert [sum(n.startswith(sheet) for n in numbers) for sheet in "123"] == [5, 5, 4]
    for number in numbers:
        assert re.search(rf"[\"| *]{re.escape(number)}[\"| *]", answers), number
    index = (COURSE.parent / "index.md").read_text("utf-8")
    assert "[Teach it in an hour](course/lesson.md)" in index
    assert {"course/lesson", "course/worksheets", "course/answers"} <= set(index.split("\n"))
    lesson = (COURSE / "lesson.md").read_text("utf-8")
    starts, ends = zip(*re.findall(r"^\| (\d+) – (\d+) \|", lesson, re.MULTILINE), strict=True)
    assert ("0", *ends) == (*starts, "60")


@pytest.mark.parametrize(("number", "place", "fragment"), OF["neuron"])
def test_a_link_to_the_neuron_shows_the_input_and_the_spikes_of_its_question(
    opened: Callable[[str, str], Page], number: str, place: int, fragment: str
) -> None:
    given = dict(parse_qsl(fragment))
    page = opened(given.pop("neuron") and "neuron", fragment)
    wait_for_frame(page)
    seen: dict[str, Any] = page.evaluate("readPlayground()")
    t = torch.arange(STEPS)
    on = t >= ONSET
    if given["kind"] == "pulses":
        on &= (t - ONSET) % int(given["period"]) < int(given["width"])
    x = float(given["amplitude"]) * on.double()
    assert seen["x"] == x.tolist()
    options = {"beta": 0.5 ** (1 / float(given["p.beta"]))} if "p.beta" in given else {}
    with torch.no_grad():
        spikes = tt.unroll(snn.LIF(1, **options), x.float()[:, None, None], from_rest=True)
    assert sum(seen["output"]) == spikes.sum()
    # what the question says in words
    (text,) = [text for n, text in QUESTION.findall(WORKSHEETS) if n == number]
    assert given["amplitude"] in text
    assert given.get("p.beta", "") in text


@pytest.mark.slow
@pytest.mark.parametrize(("number", "place", "fragment"), OF["network"])
def test_a_link_to_the_network_trains_to_the_answer(
    opened: Callable[[str, str], Page], number: str, place: int, fragment: str
) -> None:
    answers = (COURSE / "answers.md").read_text("utf-8")
    row = re.search(rf"^\| {re.escape(number)} \| (.*?) \|", answers, re.MULTILINE)
    assert row is not None
    expected = row[1].split(", ")
    assert len(expected) == len(LINKS[number])
    page = opened("network", fragment)
    updates = int(dict(parse_qsl(fragment))["updates"])
    wait_until(page, f"(r => r.updates === {updates} && !r.training)(readNetwork())")
    wait_for_frame(page)
    shown = page.locator("#progress").inner_text()
    if " and " in expected[place]:
        loss, held = expected[place].split(" and ")
        assert f": loss {loss}, " in shown
        assert f"; held out {held}, " in shown
    else:
        assert re.search(rf": loss [\d.]+, {expected[place]} right", shown), shown
