"""Every page fits, is reached by keys, has two themes, and requests nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import tracetorch as tt
from examples import playground
from tests.browser import Page, Visits, wait_until
from tests.plot.cases import recording
from tests.plot.test_save_html import HOSTILE
from tests.plot.test_save_playground import Plain
from tracetorch import snn

Open = Callable[..., Page]
BSRLIF = snn.BSRLIF(1)
# how it is written, when it is ready, and how many plots it has
PAGES: dict[str, tuple[Callable[[Path], Any], str, int]] = {
    "viewer": (lambda path: tt.plot.save_html(recording(), path), "body[data-ready='0']", 4),
    "playground": (
        lambda path: tt.plot.save_playground(BSRLIF, path), "body[data-ready='true']", 6
    ),
    "network": (playground.write_network, "body[data-ready='true']", 5),
}  # fmt: skip
BACKGROUND = "getComputedStyle(document.body).backgroundColor"


@pytest.fixture(params=PAGES)
def opened(request: Any, visits: Visits, tmp_path: Path) -> Open:
    write, ready, plots = PAGES[request.param]
    write(tmp_path / "page.html")

    def open_(**options: Any) -> Page:
        page = visits.open(tmp_path / "page.html", **options)
        page.wait_for_selector(ready)
        page.plots = plots
        return page

    return open_


def test_page_fits_the_window_of_a_phone(opened: Open) -> None:
    width = 380
    page = opened(viewport={"width": width, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    frames = [each.bounding_box() for each in page.locator(".row canvas, .panel canvas").all()]
    shown = [frame for frame in frames if frame is not None]
    assert len(shown) >= page.plots
    assert all(frame["height"] > 40 and frame["width"] > 300 for frame in shown)


def test_dark_and_light_themes_and_the_policy_forbids_requests(
    opened: Open, visits: Visits
) -> None:
    page = opened(color_scheme="dark")
    dark = page.evaluate(BACKGROUND)
    page.get_by_role("button", name="dark or light").click()
    light = page.evaluate(BACKGROUND)
    assert light != dark
    page = opened(color_scheme="light")
    assert page.evaluate(BACKGROUND) == light
    page.emulate_media(color_scheme="dark")
    wait_until(page, f"{BACKGROUND} === '{dark}'")
    page = opened()
    blocked = page.evaluate(
        "() => new Promise((done) => { addEventListener('securitypolicyviolation', (e) =>"
        " done(e.effectiveDirective)); fetch('https://example.com/').catch(() => {}); })"
    )
    assert blocked == "connect-src"
    visits.problems.clear()  # the console reports the violation


@pytest.mark.parametrize("kind", ["viewer", "playground"])
def test_names_with_markup_are_shown_as_text(kind: str, visits: Visits, tmp_path: Path) -> None:
    path, names = tmp_path / "hostile.html", [f"{HOSTILE}.mem", "{{data}}"]
    if kind == "viewer":
        tt.plot.save_html(dict.fromkeys(names, torch.rand(5, 2, 1)), path, title=HOSTILE)
    else:
        own = type(HOSTILE, (Plain,), {"__doc__": f"{HOSTILE}\n\n::\n\n    {HOSTILE}"})
        tt.plot.save_playground({names[0]: own(2), names[1]: Plain(2)}, path, title=HOSTILE)
    page = visits.open(path)
    page.wait_for_selector(f"body[data-ready='{0 if kind == 'viewer' else 'true'}']")
    assert page.evaluate("window.broken") is None
    assert page.title() == page.locator("h1").inner_text() == HOSTILE
    assert page.locator("img").count() == 0
    shown = page.locator(".panel b" if kind == "viewer" else "#neuron option")
    assert shown.all_inner_texts() == names
    if kind == "playground":
        assert page.locator("#summary").inner_text() == HOSTILE
        assert HOSTILE in page.locator("#python").inner_text()


MALFORMED = {
    "playground": """
neuron=nobody neuron=LIF&neuron=SLIF p.beta=-1 p.beta= p.beta=1e400 p.gamma=1 o.reset=sideways
o.nothing=1 amplitude=1e99 period=1 width=2.5 step=200 step=%20 of=gradient of=syn kind=drawn
w12=1 lag=2 shown=2 2.p.beta=3 neuron2=nobody neuron2=LIF&w12=x neuron2=LIF&lag=1.5
neuron2=LIF&lag=99 neuron2=LIF&shown=3 neuron2=LIF&2.of=mem neuron2=LIF&2.p.beta=0 neuron2=LIF&w13=1
gradient=all gradient=
drawn=1*3 drawn=nonsense drawn=1*1000 unknown=1 p.__proto__=1 %E0%A4%A <script>alert(1)</script>
""",
    "network": """
net=nobody net=LIF&net=LIF data=nothing width=0 width=65 width=2.5 depth=5 rate=-1 rate= h.gamma=3
h.beta=-1 h.beta=1e9 updates=-1 updates=1e9 sample=120 sample=%20 in.7=1 in.0=1e9
input=voice rows=all seed=x
unknown=1 h.__proto__=1 __proto__=1 toString=1 %E0%A4%A <script>alert(1)</script>
""",
}


@pytest.mark.parametrize("kind", MALFORMED)
def test_malformed_links_are_ignored_with_a_note(request: Any, visits: Visits, kind: str) -> None:
    read = {"playground": "readPlayground()", "network": "readNetwork()"}[kind]
    page = visits.open(request.getfixturevalue(f"{kind}_page"))
    page.wait_for_selector("body[data-ready='true']")
    start = page.evaluate(read)
    for fragment in MALFORMED[kind].split():
        page.evaluate("document.getElementById('note').textContent = ''")
        page.evaluate("(text) => { location.hash = text; }", fragment)
        wait_until(page, "document.getElementById('note').textContent.includes('ignored')")
        assert page.evaluate(read) == start, fragment
