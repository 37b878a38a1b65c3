from __future__ import annotations

import base64
import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image

import tracetorch as tt
from tests.plot.cases import uniform
from tracetorch.plot.images import OFF, ON, _rgb_frames


def test_grey_images_are_scaled_to_their_range_and_colours_bytes_and_size_are_kept() -> None:
    image = 10 * uniform(4, 5) - 3
    for given in (image, image[None]):
        ax = tt.plot.render_image(given, title="grey")
        grey = ax.images[0]
        assert np.allclose(grey.get_array(), image)
        assert grey.get_clim() == (image.min().item(), image.max().item())
        assert len(ax.figure.axes) == 2  # and its colour bar
    for channels in (1, 3):  # of one value
        flat = torch.full((channels, 2, 2), 0.5)
        drawn = tt.plot.render_image(flat, vmin=0.5, vmax=0.5).images[0]
        assert np.isfinite(drawn.get_array()).all()
    assert tt.plot.render_image(uniform(4, 5), vmin=-1, vmax=2).images[0].get_clim() == (-1, 2)
    image = uniform(3, 4, 5)
    image[0, 0, 0] = 1.5
    shown = tt.plot.render_image(image).images[0].get_array()
    assert np.allclose(shown, image.clamp(0, 1).movedim(0, 2))
    halved = tt.plot.render_image(image, vmax=2.0).images[0].get_array()
    assert np.allclose(halved, image.movedim(0, 2) / 2)
    image = torch.full((3, 2, 2), 51, dtype=torch.uint8)
    assert np.allclose(tt.plot.render_image(image).images[0].get_array(), 0.2)
    image = uniform(4, 5)
    figures: Any = tt.plot.render_image(image).figure, tt.plot.render_image(image, (3, 2)).figure
    assert [figure.get_size_inches().tolist() for figure in figures] == [[4, 4], [3, 2]]


def test_on_events_are_blue_and_off_events_red_in_proportion_to_their_number() -> None:
    frames = torch.zeros(1, 2, 1, 3)
    frames[0, 0, 0, 1], frames[0, 1, 0, 2] = 4, 4
    image = _rgb_frames(frames, None)[0, 0]
    assert np.allclose(image, [(1, 1, 1), to_rgb(OFF), to_rgb(ON)])
    image = _rgb_frames(torch.tensor([1.0, 2, 4]).reshape(3, 1, 1, 1), None)[:, 0, 0]
    white, blue = np.ones(3), np.array(to_rgb(ON))
    assert np.allclose(image, [white + share * (blue - white) for share in (0.25, 0.5, 1)])


def test_animation_shows_every_step_of_one_sample() -> None:
    frames = uniform(4, 2, 2, 5, 6)
    left, ax = Figure().subplots(1, 2)
    animation = tt.plot.animate_events(frames, sample=1, fps=50, title="a run", ax=ax)
    assert animation._fig is ax.figure  # type: ignore[attr-defined]
    assert not left.has_data()
    expected = _rgb_frames(frames[:, 1], None)
    for step in range(4):
        animation._func(step)  # type: ignore[attr-defined]
        assert np.allclose(ax.images[0].get_array(), expected[step])
        assert ax.get_title() == f"a run: step {step}"
    assert animation._interval == 20  # type: ignore[attr-defined]
    assert ax.get_xticks().size == ax.get_yticks().size == 0
    assert all(spine.get_visible() for spine in ax.spines.values())  # a frame, on all four sides
    animation.to_jshtml()  # matplotlib warns of animations that are never rendered


@pytest.mark.parametrize("dpi", [80, 50])
def test_gif_has_the_frames_and_their_colours(tmp_path: Path, dpi: int) -> None:
    frames = torch.zeros(3, 2, 2, 8, 8)
    frames[1, 1, 0], frames[2, 1, 1] = 1, 1
    tt.plot.save_animation(frames, tmp_path / "film.gif", sample=1, fps=10, dpi=dpi)
    with Image.open(tmp_path / "film.gif") as animation:
        assert animation.n_frames == 3
        assert animation.width == int(3.2 * dpi)
        assert animation.info["duration"] == 100
        middle = []
        for frame in range(3):
            animation.seek(frame)
            shown = animation.convert("RGB")
            middle.append(shown.getpixel((shown.width // 2, shown.height // 2)))
    expected = [np.rint(255 * np.array(to_rgb(c))) for c in ("#ffffff", OFF, ON)]
    assert np.abs(np.array(middle) - expected).max() <= 4  # GIF has 256 colours
    assert [path.name for path in tmp_path.iterdir()] == ["film.gif"]


def test_html_page_is_self_contained_and_has_a_title(tmp_path: Path) -> None:
    tt.plot.save_animation(uniform(3, 1, 1, 4, 4), tmp_path / "film.html", title="<b>")
    page = (tmp_path / "film.html").read_text()
    pictures = re.findall(r'"data:image/png;base64,([^"]+)"', page)
    assert len(pictures) == 3
    for picture in pictures:
        data = base64.b64decode(picture.replace("\\\n", ""))
        with Image.open(io.BytesIO(data)) as image:
            assert image.width == 256
    assert not re.search(r"(src|href)\s*=\s*[\"']?(https?:)?//", page)
    assert ".fa-play::before" in page
    assert page.startswith('<!doctype html>\n<html lang="en">')
    assert page.count("<title>") == page.count("<title>&lt;b&gt;</title>") == 1
    tt.plot.save_animation(uniform(3, 1, 1, 4, 4), tmp_path / "film.html")
    assert "<title>film</title>" in (tmp_path / "film.html").read_text()


def test_a_run_appears_step_by_step() -> None:
    spikes, states = (uniform(6, 2, 4, seed=1) < 0.5).float(), uniform(6, 2, 4)
    options: Any = {"neurons": [0, 2], "thresholds": 0.9, "sample": 1, "limit": 3, "dt": 2.0}
    options |= {"stride": 4, "fps": 10, "title": "a run"}
    film: Any = tt.plot.animate_run({"0.output": spikes}, {"0.mem": states}, **options)
    above, below = film._fig.axes
    assert film._interval == 100
    assert np.allclose(below.lines[0].get_ydata(), states[:, 1, 0])
    assert below.lines[0].get_xdata().tolist() == [1, 3, 5, 7, 9, 11]  # the middle of each step
    assert above.get_xlim() == below.get_xlim() == (0, 12)
    assert below.get_xlabel() == "time (ms)"
    for frame, end in enumerate((8.0, 12.0)):  # the last frame has the steps that are left
        film._func(frame)
        assert above.get_title() == f"a run: {end:g} ms"
        for ax, artist in ((above, above.collections[0]), (below, below.lines[0])):
            shown = ax.transData.inverted().transform_bbox(artist.clipbox)
            assert np.allclose(sorted((shown.x0, shown.x1)), (0, end))
            assert np.allclose(sorted((shown.y0, shown.y1)), sorted(ax.get_ylim()))
    assert film.to_jshtml().count("data:image/png;base64") == 2


def test_a_raster_alone_is_saved(tmp_path: Path) -> None:
    film: Any = tt.plot.animate_run((uniform(3, 4) < 0.5).float(), sample=None)
    assert len(film._fig.axes) == 1
    tt.plot.save_animation(film, tmp_path / "run.gif", fps=10, dpi=30)
    with Image.open(tmp_path / "run.gif") as animation:
        assert animation.n_frames == 3
    assert film._fig.axes[0].get_title() == "step 2"
