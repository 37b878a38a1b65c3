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
from PIL import Image

import tracetorch as tt
from tests.plot.cases import drawn
from tracetorch.plot.animation import OFF, ON, _colours, _frames


def test_on_is_blue_off_is_red_and_nothing_is_white() -> None:
    frames = torch.zeros(1, 2, 1, 3)
    frames[0, 0, 0, 1], frames[0, 1, 0, 2] = 4, 4
    image = _colours(_frames(frames, None))[0, 0]
    assert np.allclose(image, [(1, 1, 1), to_rgb(OFF), to_rgb(ON)])


def test_the_more_events_the_deeper() -> None:
    image = _colours(_frames(torch.tensor([1.0, 2, 4]).reshape(3, 1, 1, 1), None))[:, 0, 0]
    white, blue = np.ones(3), np.array(to_rgb(ON))
    expected = [white + share * (blue - white) for share in (0.25, 0.5, 1)]
    assert np.allclose(image, expected)


def test_shows_every_step_of_one_sample() -> None:
    frames = drawn(4, 2, 2, 5, 6)
    film = tt.plot.animate_events(frames, sample=1, fps=50)
    (ax,) = film._fig.axes  # type: ignore[attr-defined]
    expected = _colours(_frames(frames[:, 1], None))
    for step in range(4):
        film._func(step)  # type: ignore[attr-defined]
        assert np.allclose(ax.images[0].get_array(), expected[step])
        assert ax.get_title() == f"step {step}"
    assert film._interval == 20  # type: ignore[attr-defined]
    film.to_jshtml()  # matplotlib warns of a film that nobody saw


def test_a_gif_has_its_frames_and_their_colours(tmp_path: Path) -> None:
    frames = torch.zeros(3, 1, 2, 8, 8)
    frames[1, 0, 0], frames[2, 0, 1] = 1, 1
    tt.plot.save_animation(frames, tmp_path / "film.gif", fps=10)
    with Image.open(tmp_path / "film.gif") as film:
        assert film.n_frames == 3
        assert film.info["duration"] == 100
        middle = []
        for frame in range(3):
            film.seek(frame)
            shown = film.convert("RGB")
            middle.append(shown.getpixel((shown.width // 2, shown.height // 2)))
    expected = [np.rint(255 * np.array(to_rgb(c))) for c in ("#ffffff", OFF, ON)]
    assert np.abs(np.array(middle) - expected).max() <= 4  # GIF has 256 colours
    assert [path.name for path in tmp_path.iterdir()] == ["film.gif"]


def test_a_page_holds_its_frames_and_asks_nobody(tmp_path: Path) -> None:
    tt.plot.save_animation(drawn(3, 1, 1, 4, 4), tmp_path / "film.html", title="<b>")
    page = (tmp_path / "film.html").read_text()
    pictures = re.findall(r'"data:image/png;base64,([^"]+)"', page)
    assert len(pictures) == 3
    for picture in pictures:
        data = base64.b64decode(picture.replace("\\\n", ""))
        with Image.open(io.BytesIO(data)) as image:
            assert image.width == 256
    assert not re.search(r"(src|href)\s*=\s*[\"']?(https?:)?//", page)
    assert ".fa-play::before" in page


def test_a_film_that_fails_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from matplotlib.animation import PillowWriter

    place = tmp_path / "film.gif"
    place.write_bytes(b"before")

    def fail(self: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(PillowWriter, "finish", fail)
    with pytest.raises(OSError, match="disk full"):
        tt.plot.save_animation(drawn(2, 1, 1, 4, 4), place)
    assert place.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [place]


@pytest.mark.parametrize(
    ("frames", "options", "error", "match"),
    [
        ([1], {}, TypeError, "animate_events takes a tensor, got list"),
        (drawn(2, 1, 3, 4, 4), {}, ValueError, r"1 or 2 channels, got \[2, 1, 3, 4, 4\]"),
        (drawn(2, 2, 4, 4), {}, ValueError, r"\[T, B, C, H, W\].*\[2, 2, 4, 4\].*sample=None"),
        (drawn(2, 1, 1, 4, 4), {"sample": 1}, ValueError, "sample must lie in 0 to 0, got 1"),
        (-drawn(2, 1, 1, 4, 4), {}, ValueError, r"must not be negative. Try \.abs\(\)"),
        (drawn(2, 1, 1, 4, 4), {"fps": 0}, ValueError, "fps must be positive, got 0"),
    ],
)
def test_refuses(frames: Any, options: Any, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        tt.plot.animate_events(frames, **options)


def test_refuses_other_files(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"writes \.gif or \.html, got '.*film\.mp4'"):
        tt.plot.save_animation(drawn(2, 1, 1, 4, 4), str(tmp_path / "film.mp4"))
