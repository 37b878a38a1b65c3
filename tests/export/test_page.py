"""Drive the page of ``tt.export.page`` in a headless browser, and compare it with PyTorch."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import tracetorch as tt
from tests import cases
from tests.browser import Page, Visits, wait_for_frame
from tests.cases import few
from tests.export.test_c import (
    POOLS,
    PRODUCTS,
    InOrder,
    Parts,
    dyadic,
    generator,
    network,
    shape_of,
    spikes,
    varied,
)
from tests.networks import module
from tests.plot.test_save_html import HOSTILE
from tracetorch import snn
from tracetorch.export.page_file import measured_pen
from tracetorch.snn.neuron import has_step

NAME = "w</script><script>broken=1</script>&amp;"
Open = Callable[..., Page]


def exact(model: nn.Module) -> nn.Module:
    """Give the products of a model weights whose sums are exact in float32, in any order."""
    for part in model.modules():
        if isinstance(part, (nn.Linear, nn.Conv2d)):
            dyadic(part)
    return model.eval()


def images(count: int, size: int, seed: int = 0) -> Tensor:
    """Draw strokes on black images ``[N, 1, H, W]``, in sixteenths."""
    drawn = torch.Generator().manual_seed(seed)
    marks = torch.randint(1, 17, (count, 1, size, size), generator=drawn) / 16
    place = torch.rand(count, 1, size, size, generator=drawn) < 0.3
    place[..., 0, :] = place[..., -1, :] = place[..., 0] = place[..., -1] = False
    return marks * place


@torch.no_grad()
def computed(model: nn.Module, image: Tensor, steps: int) -> tuple[dict[str, Tensor], Tensor]:
    """Return the outputs of every neuron layer, and of the model, from eager steps."""
    seen: dict[str, list[Tensor]] = {}
    hooks = [
        layer.register_forward_hook(
            lambda m, args, y, path=path: seen.setdefault(path, []).append(y.flatten().clone())
        )
        for path, layer in model.named_modules()
        if has_step(layer)
    ]
    tt.zero_states(model)
    with tt.fuse.backend("eager"):
        outputs = torch.stack([model(image[None])[0] for _ in range(steps)])
    tt.zero_states(model)
    for hook in hooks:
        hook.remove()
    return {path: torch.stack(values) for path, values in seen.items()}, outputs


@pytest.fixture
def opened(visits: Visits, tmp_path: Path) -> Open:
    def open_(model: nn.Module, samples: Any, *, steps: int = 12, **given: Any) -> Page:
        place = tmp_path / f"page{len(visits.contexts)}.html"
        tt.export.page(model, place, samples, steps=steps, **given)
        page = visits.open(place, reduced_motion="reduce")
        page.wait_for_selector("body[data-ready='true']")
        return page

    return open_


def read(page: Page) -> dict[str, Any]:
    page.wait_for_selector("body[data-ready='true']")
    values: dict[str, Any] = page.evaluate("readDrawing()")
    found = {n: torch.tensor(values[n], dtype=torch.float32) for n in ("image", "y", "readout")}
    layers = {n: torch.tensor(v, dtype=torch.float32) for n, v in values["layers"]}
    return {**values, **found, "layers": layers}


def press(page: Page, name: str) -> dict[str, Any]:
    """Press the button of a sample; return what was computed."""
    page.get_by_role("button", name=f"example {name}", exact=True).click()
    return read(page)


def compare(
    page: Page, model: nn.Module, image: Tensor, name: str, steps: int = 12, inexact: Any = ()
) -> dict[str, Any]:
    """Assert that every number of a sample is that of PyTorch; return what the page has."""
    seen = press(page, name)
    assert torch.equal(seen["image"], image.flatten())
    layers, y = computed(model, image, steps)
    assert list(seen["layers"]) == list(layers)
    for path, value in {**layers, "y": y}.items():
        found = seen["y"] if path == "y" else seen["layers"][path]
        near = 1e-4 if path.removeprefix("cells.") in inexact else 0
        torch.testing.assert_close(found, value, rtol=near, atol=near, msg=path)
    return seen


# Equality with PyTorch


@pytest.mark.parametrize("decode", few(["last", "max"], "max"))
def test_the_page_computes_what_pytorch_does(opened: Open, decode: str) -> None:
    back = nn.Linear(12, 12, bias=False)
    parts = (nn.Linear(48, 20), snn.BSRLIF(20, beta=0.8), nn.Linear(20, 12))
    inner = snn.Recurrent(snn.SLIF(12, reset="zero"), back)
    model = exact(nn.Sequential(*parts, inner, nn.Linear(12, 3), snn.SReadout(3)))
    samples = images(4, 10)[:, 0, 1:7, 1:9].flatten(1)
    page = opened(model, samples, size=(6, 8), decode=decode)
    for i in range(4):
        seen = compare(page, model, samples[i], str(i + 1))
    y = seen["y"]
    readout = {"last": y[-1], "max": y.max(0).values}[decode]
    assert torch.equal(seen["readout"], readout)
    assert all(values.any() for values in seen["layers"].values())


def parts(kind: str) -> tuple[Any, Tensor]:
    """Return products, pools or a network of the tests of C, and a flat input."""
    if kind == "quantised":
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(16, 8), snn.LIF(8), nn.Linear(8, 3), snn.Readout(3))
        prepared = tt.quantize.prepare(net, torch.rand(10, 2, 16))
        return tt.quantize.convert(prepared)[0].eval(), torch.rand(2, 16)
    if kind in ("residual", "delays"):
        model, x = network(kind)
        shape = x.shape[2:]
        return nn.Sequential(nn.Unflatten(1, shape), model).eval(), x[:2, 0].flatten(1)
    if kind == "pools":
        layers = [varied(layer) for layer in POOLS if not isinstance(layer, nn.LayerNorm)]
        model = Parts(layers, [(3, 8, 8)] * len(layers))
        return model.eval(), torch.randn(2, sum(model.sizes), generator=generator())
    model = Parts([dyadic(layer) for layer in PRODUCTS], [shape_of(layer) for layer in PRODUCTS])
    x = spikes(2, sum(model.sizes), rate=0.2 if kind == "events" else 1.0)
    return model, x * torch.randint(-8, 9, x.shape, generator=generator()) / 8


KINDS = ("events", "dense", "pools", "residual", "delays", "quantised")


@pytest.mark.parametrize("kind", few(KINDS, "events", "pools", "residual"))
def test_every_stage_computes_what_pytorch_does(opened: Open, kind: str) -> None:
    model, x = parts(kind)
    steps = 1 if kind in ("events", "dense", "pools") else 5
    page = opened(model, x, steps=steps, size=(1, x.shape[1]))
    for i in range(2):
        if kind == "pools":
            found, y = press(page, str(i + 1))["y"], computed(model, x[i], steps)[1]
            torch.testing.assert_close(found, y, rtol=1e-6, atol=1e-6)
        else:
            assert compare(page, model, x[i], str(i + 1), steps)["y"].any()


def test_sums_are_rounded_in_the_order_of_c(opened: Open) -> None:
    torch.manual_seed(0)
    net = [nn.Linear(64, 17), snn.Readout(17), nn.Linear(17, 5), snn.LIF(5, pos_threshold=0.1)]
    x = torch.rand(2, 64)
    x[1] *= torch.rand(64) < 0.2  # the mean of zeros decides that nothing is skipped
    page = opened(nn.Sequential(*net), x)
    ordered = nn.Sequential(*(InOrder(p) if isinstance(p, nn.Linear) else p for p in net))
    for i in range(2):
        assert compare(page, ordered, x[i], str(i + 1))["y"].any()


class Every(nn.Module):
    """All layers and neurons side by side, each with an input of its size, and their sum."""

    def __init__(self, names: Any) -> None:
        super().__init__()
        self.cells = nn.ModuleDict({name: cases.layer(name, 4) for name in names})
        self.gains = {name: cases.NEURONS.get(name, 1.0) for name in names}

    def forward(self, x: Tensor) -> Tensor:
        return sum(cell(self.gains[name] * x) for name, cell in self.cells.items())


@pytest.mark.parametrize(
    "names",
    [
        ("BSRLIF", "AdEx", "Izhikevich"),
        pytest.param((*cases.LAYERS, *cases.NEURONS), marks=pytest.mark.slow),
    ],
    ids=["few", "all"],
)
def test_neurons_are_the_eager_step(opened: Open, names: tuple[str, ...]) -> None:
    model, image = Every(names).eval(), torch.tensor([0.0, 0.5, 0.75, 1.25])
    page = opened(model, {"x": image}, steps=60)
    seen = compare(page, model, image, "x", 60, inexact=(*cases.INEXACT, "y"))["layers"]
    assert len(seen) == len(names)
    assert sum(bool(value.any()) for value in seen.values()) > 0.8 * len(names)


# Drawing


def small() -> Any:
    net = nn.Sequential(nn.Flatten(), nn.Linear(400, 30), snn.LIF(30), nn.Linear(30, 3))
    return exact(net)


def strokes() -> Tensor:
    """Return a vertical and a horizontal stroke of three pixels, of 14 in 20, on light paper."""
    made = torch.full((2, 1, 20, 20), 0.75)
    made[0, 0, 3:17, 9:12] = made[1, 0, 9:12, 3:17] = -0.5
    return made


def drag(page: Page, *points: tuple[float, float]) -> None:
    """Draw by mouse, in shares of the pad."""
    frame = page.locator("#pad").bounding_box()
    spots = [(frame["x"] + x * frame["width"], frame["y"] + y * frame["height"]) for x, y in points]
    page.mouse.move(*spots[0])
    page.mouse.down()
    for spot in spots[1:]:
        page.mouse.move(*spot, steps=8)
    page.mouse.up()
    wait_for_frame(page)


def assert_vertical(seen: dict[str, Any]) -> None:
    """Assert that an image has a vertical stroke as that of the data, to less than a pixel."""
    image = seen["image"].reshape(1, 20, 20)
    (pen, data) = (measured_pen(each) for each in (image, strokes()[0]))
    assert (pen["background"], pen["ink"]) == (0.75, -0.5)
    assert abs(pen["extent"] - data["extent"]) <= 1  # type: ignore[operator]
    assert np.allclose(pen["centre"], [10, 10], atol=0.8)
    assert pen["width"] == pytest.approx(data["width"], abs=0.7)
    marked = image[0] < 0.1
    assert int(marked.any(1).sum()) > 3 * int(marked.any(0).sum())


def test_what_is_drawn_is_scaled_and_centred_as_the_data(opened: Open) -> None:
    model = small()
    page = opened(model, strokes(), classes=["a", "b", "c"])
    for top, bottom, x in ((0.1, 0.9, 0.3), (0.6, 0.95, 0.9)):
        page.get_by_role("button", name="clear").click()
        assert read(page)["answer"] is None
        assert page.locator("#answer").inner_text() == "nothing drawn"
        drag(page, (x, top), (x, bottom))
        seen = read(page)
        assert_vertical(seen)
        # what was computed belongs to the image that is shown
        layers, y = computed(model, seen["image"].reshape(1, 20, 20), 12)
        assert torch.equal(seen["layers"]["2"], layers["2"])
        torch.testing.assert_close(seen["y"], y)
        assert "The network says" in page.locator("#note").inner_text()
    before = read(page)["image"]
    drag(page, (0.5, 0.5), (0.9, 0.5))  # a second stroke is added
    image = read(page)["image"].reshape(1, 20, 20)
    assert not torch.equal(image.flatten(), before)
    # the centre of mass, not that of the box around a corner
    assert np.allclose(measured_pen(image)["centre"], [10, 10], atol=0.3)
    drag(page, (0.2, 0.2), (0.2, 0.2))
    press(page, "2")
    drag(page, (0.5, 0.1), (0.5, 0.9))  # a sample is replaced
    assert_vertical(read(page))


# The page


def test_names_and_titles_stay_text(opened: Open, tmp_path: Path) -> None:
    model = nn.Sequential()
    model.add_module("flat", nn.Flatten())
    model.add_module(NAME, snn.LIF(4))
    sample = torch.tensor([[[0.0, 1.0], [0.5, 0.0]]])
    given = {"title": HOSTILE, "classes": [HOSTILE, "{{script}}", "</ul>", "d"]}
    page = opened(model.eval(), {HOSTILE: sample}, **given)
    assert page.evaluate("window.broken") is None
    assert page.locator("img").count() == 0
    assert page.title() == HOSTILE
    assert page.locator(".row b").inner_text() == NAME
    assert page.locator("#bars li > span:first-child").all_inner_texts() == given["classes"]
    assert page.locator("#samples button").get_attribute("aria-label") == f"example {HOSTILE}"
    text = (tmp_path / "page0.html").read_text()
    assert text.count("</script>") == 3  # the data, the printed step, the page's own


def test_pages_are_reproducible(tmp_path: Path) -> None:
    for name in ("one", "two"):
        tt.export.page(small(), tmp_path / name, strokes(), steps=3, title="A page")
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    assert not re.search(r"https?://", (tmp_path / "one").read_text())


LOOP = module(  # runs all of its time steps in one call
    lambda self, x: torch.stack([self.neurons(x.flatten(1)) for _ in range(5)]).mean(0),
    neurons=snn.LIF(16),
)


class Neighbour(snn.Neuron):
    states = ("mem",)

    @staticmethod
    def step(x: Tensor, mem: Any, **o: Any) -> Any:
        mem = torch.nextafter(x, mem)
        return mem, mem


IMAGES = torch.eye(4)[None]


def flat(layer: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Flatten(), layer)


CONVOLUTION = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 2))
# model, samples, arguments, message
REFUSED: list[tuple[Any, Any, dict[str, Any], str]] = [
    (nn.Identity(), torch.rand(3), {}, r"grey images .* got shape \[3\]"),
    (nn.Identity(), torch.rand(2, 12), {"size": (5, 3)}, r"size=\(5, 3\)"),
    (nn.Identity(), IMAGES, {"size": (2, 8)}, r"\[1, 4, 4\] and size=\(2, 8\)"),
    (nn.Identity(), IMAGES.double(), {}, "'1' must .*float32, got torch.float64"),
    (nn.Identity(), IMAGES / 0, {}, r"'1' must hold finite .* got .*\[inf\]"),
    (CONVOLUTION, IMAGES, {}, r"no images of shape \[4, 4\] \(.*\): give \[N, 1, H, W\], \[N, H"),
    (nn.Linear(15, 2), IMAGES[:, None], {}, r"no images of shape \[1, 4, 4\] "),
    (nn.Identity(), torch.ones(1, 4), {}, "are 1: nothing is drawn"),
    (nn.Flatten(), IMAGES, {"steps": 0}, "steps must be .*got 0"),
    (nn.Flatten(), IMAGES, {"decode": "sum"}, "'mean', 'last' or 'max', got 'sum'"),
    (nn.Flatten(), IMAGES, {"classes": ["a"]}, r"model's 16 outputs, got \['a'\]"),
    (nn.Identity(), IMAGES, {}, r"must be \[B, classes\].*got \[\[1, 4, 4\]\]"),
    (
        flat(module(lambda self, x: (x[:, :2], x))),
        IMAGES,
        {},
        r"has no page: its output must .* \[\[1, 2\], \[1, 16\]\]",
    ),
    (flat(Neighbour(16)), IMAGES, {}, r"1 \(Neighbour\): JavaScript has no nextafter"),
    (LOOP, IMAGES, {}, r"page: neurons \(LIF\) is called several times in a step: .* one time"),
]


@pytest.mark.parametrize(("model", "samples", "options", "match"), REFUSED)
def test_what_has_no_page_is_refused_by_name(
    model: Any, samples: Any, options: Any, match: str, tmp_path: Path
) -> None:
    place = tmp_path / "page.html"
    place.write_text("before")
    with pytest.raises(ValueError, match=match):
        tt.export.page(model, place, samples, **{"steps": 3, **options})
    for wrong, message in ((3, "expected an nn.Module, got int"), (model, "title must be a str")):
        with pytest.raises(TypeError, match=message):
            tt.export.page(wrong, place, samples, steps=3, title=3)  # type: ignore[arg-type]
    assert place.read_text() == "before"
