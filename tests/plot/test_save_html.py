from __future__ import annotations

import importlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tracetorch as tt
from tests.plot.cases import recording
from tests.plot.test_blocks import unpack_events, unpack_trace
from tracetorch.plot import blocks

MODULE = importlib.import_module("tracetorch.plot.save_html")  # tt.plot.save_html is the function
HOSTILE = "</script><script>window.broken = 1</script><img src=x onerror=window.broken=1>&amp;"


def run_of(page: str) -> Any:
    found = re.search(r'<script type="application/json" id="run">(.*?)</script>', page)
    assert found is not None
    return json.loads(found[1])


def block_of(page: str, layer: int, sample: int) -> str:
    found = re.search(rf'<script type="text/plain" id="b-{layer}-{sample}">(.*?)</script>', page)
    assert found is not None
    return found[1]


def test_a_page_holds_the_run(tmp_path: Path) -> None:
    seen = recording()
    tt.plot.save_html(seen, tmp_path / "run.html", title="A run")
    page = (tmp_path / "run.html").read_text()
    run = run_of(page)
    assert (run["title"], run["steps"], run["samples"]) == ("A run", 24, 3)
    assert [layer["path"] for layer in run["layers"]] == list(seen)
    assert [layer["kind"] for layer in run["layers"]] == ["trace", "events"] * 2
    for number, value in enumerate(seen.values()):
        for sample in range(3):
            block, exact = block_of(page, number, sample), value[:, sample].numpy()
            if run["layers"][number]["kind"] == "events":
                assert (unpack_events(block, *exact.shape) == exact).all()
                assert run["layers"][number]["signed"][sample] == (exact < 0).any()
            else:
                found, level = unpack_trace(block, *exact.shape)
                assert (np.abs(found - exact) <= 0.51 * level + 1e-6).all()


def test_convolutions_are_flattened_and_say_their_shape(tmp_path: Path) -> None:
    tt.plot.save_html(torch.ones(5, 2, 3, 4, 4), tmp_path / "run.html")
    (layer,) = run_of((tmp_path / "run.html").read_text())["layers"]
    assert (layer["path"], layer["shape"], layer["neurons"]) == ("recording", [3, 4, 4], 48)


def test_without_a_batch(tmp_path: Path) -> None:
    tt.plot.save_html({"a": torch.ones(5, 2)}, tmp_path / "run.html", batched=False)
    run = run_of((tmp_path / "run.html").read_text())
    assert (run["samples"], run["layers"][0]["neurons"]) == (1, 2)


def test_names_and_titles_cannot_break_out(tmp_path: Path) -> None:
    tt.plot.save_html({HOSTILE: torch.ones(5, 2, 1)}, tmp_path / "run.html", title=HOSTILE)
    page = (tmp_path / "run.html").read_text()
    run = run_of(page)
    assert (run["title"], run["layers"][0]["path"]) == (HOSTILE, HOSTILE)
    assert "window.broken" not in re.sub(r"<title>.*?</title>|\\u003cscript.*", "", page)
    assert "<img" not in page
    assert page.count("</script>") == 2 + 2  # the run, two samples, the viewer
    assert "<title>&lt;/script&gt;" in page


@pytest.mark.parametrize("mark", ["{{data}}", "{{script}}", "{{style}}"])
def test_a_title_that_looks_like_the_template_stays_a_title(tmp_path: Path, mark: str) -> None:
    tt.plot.save_html({mark: torch.ones(5, 2, 1)}, tmp_path / "run.html", title=mark)
    page = (tmp_path / "run.html").read_text()
    assert f"<title>{mark}</title>" in page
    assert page.count("</html>") == 1
    assert run_of(page)["layers"][0]["path"] == mark


def test_the_same_run_is_the_same_page_and_names_no_address(tmp_path: Path) -> None:
    for name in ("one", "two"):
        tt.plot.save_html(recording(), tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    assert not re.search(r"https?://", (tmp_path / "one").read_text())


def test_spikes_cost_what_they_are_not_what_they_could_be(tmp_path: Path) -> None:
    sent = torch.zeros(2_000, 1, 500)
    sent[::50, 0, ::10] = 1
    tt.plot.save_html({"a": sent}, tmp_path / "run.html")
    assert (tmp_path / "run.html").stat().st_size < 60_000


def test_a_page_that_fails_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "run.html"
    place.write_text("before")
    monkeypatch.setattr(MODULE, "PARTS", tmp_path / "absent")
    with pytest.raises(FileNotFoundError):
        tt.plot.save_html(recording(), place)
    assert place.read_text() == "before"
    assert list(tmp_path.iterdir()) == [place]


@pytest.mark.parametrize(
    ("given", "options", "error", "match"),
    [
        ({}, {}, ValueError, "save_html: the recording is empty"),
        (torch.ones(3), {}, ValueError, r"must be \[T, B, \.\.\.\], got shape \[3\]"),
        (
            {"a": torch.ones(3, 1), "b": torch.ones(3, 2)},
            {},
            ValueError,
            r"same batch, got \{'a': 1, 'b': 2\}",
        ),
        (torch.ones(3, 1), {"title": 3}, TypeError, "title must be a string, got int"),
        (torch.ones(3, 1), {"batched": 1}, TypeError, "batched must be True or False, got 1"),
    ],
)
def test_refuses(
    given: Any, options: Any, error: type[Exception], match: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=match):
        tt.plot.save_html(given, tmp_path / "run.html", **options)
    assert list(tmp_path.iterdir()) == []


def test_refuses_what_no_browser_opens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MODULE, "LONGEST", 100)
    with pytest.raises(ValueError, match=r"'0\.mem' is too large for a browser"):
        tt.plot.save_html(recording(), tmp_path / "run.html")
    assert blocks.GAP == blocks.FINEST + 1
