"""Links to settings of both playgrounds: malformed ones, and those that come beside a change."""

from __future__ import annotations

from typing import Any

import pytest

from tests.browser import Page, Visits, wait_for_frame, wait_until

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
READ = {"playground": "readPlayground()", "network": "readNetwork()"}


@pytest.fixture(params=READ)
def opened(request: Any, visits: Visits) -> tuple[Page, str]:
    kind: str = request.param
    path = request.getfixturevalue({"playground": "neuron_page", "network": "network_page"}[kind])
    page = visits.open(path)
    page.wait_for_selector("body[data-ready='true']")
    return page, kind


def read(page: Page, kind: str) -> dict[str, Any]:
    wait_for_frame(page)
    values: dict[str, Any] = page.evaluate(READ[kind])
    return values


def test_malformed_links_are_ignored_with_a_note(opened: tuple[Page, str]) -> None:
    page, kind = opened
    start = read(page, kind)
    for fragment in MALFORMED[kind].split():
        page.evaluate("document.getElementById('note').textContent = ''")
        page.evaluate("(text) => { location.hash = text; }", fragment)
        wait_until(page, "document.getElementById('note').textContent.includes('ignored')")
        assert read(page, kind) == start, fragment
    page.reload()
    page.wait_for_selector("body[data-ready='true']")
    note = page.locator("#note").inner_text()
    assert note == "The settings in the address are not those of this page and were ignored."
