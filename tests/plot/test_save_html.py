from __future__ import annotations

import base64
import gzip
import html
import importlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

import tracetorch as tt
from tests.plot.cases import recording
from tracetorch import snn
from tracetorch.core.spike_values import is_events
from tracetorch.plot.recorded import Array

MODULE = importlib.import_module("tracetorch.plot.save_html")  # tt.plot.save_html is the function
HOSTILE = "</script><script>window.broken = 1</script><img src=x onerror=window.broken=1>&amp;"


shapes = array_shapes(min_dims=2, max_dims=2, max_side=8)


def unpack_events(packed: str, steps: int, neurons: int, wide: bool = False) -> Array:
    data = gzip.decompress(base64.b64decode(packed))
    offsets = np.frombuffer(data, "<u4", steps + 1)
    kind = np.dtype("<u4" if wide else "<u2")
    who = np.frombuffer(data, kind, offsets[-1], offset=4 * (steps + 1))
    rest = data[4 * (steps + 1) + kind.itemsize * len(who) :]
    signs = np.frombuffer(rest, "<i1") if rest else np.ones(len(who), "<i1")
    values = np.zeros((steps, neurons))
    for step in range(steps):
        at = slice(offsets[step], offsets[step + 1])
        assert (np.diff(who[at].astype(int)) > 0).all()  # the page searches them by halves
        values[step, who[at]] = signs[at]
    return values


def unpack_trace(packed: str, steps: int, neurons: int) -> tuple[Array, Array]:
    data = gzip.decompress(base64.b64decode(packed))
    low, level = np.frombuffer(data, "<f4", 2 * neurons).reshape(2, neurons)
    codes = np.frombuffer(data, "<u2", offset=8 * neurons).reshape(neurons, steps).T
    return np.where(codes == MODULE.NOT_FINITE, np.nan, low + codes * level.astype(float)), level


def run_of(path: Path) -> Any:
    found = re.search(r'<script type="application/json" id="run">(.*?)</script>', path.read_text())
    assert found is not None
    return json.loads(found[1])


def block_of(page: str, layer: int, sample: int) -> str:
    found = re.search(rf'<script type="text/plain" id="b-{layer}-{sample}">(.*?)</script>', page)
    assert found is not None
    return found[1]


def test_page_has_the_recording(tmp_path: Path) -> None:
    seen = recording()
    tt.plot.save_html(seen, tmp_path / "run.html", title="A run")
    page, run = (tmp_path / "run.html").read_text(), run_of(tmp_path / "run.html")
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


def drawn(seen: Any, folder: Path) -> dict[str, str]:
    tt.plot.save_html(seen, folder / "run.html")
    return {layer["path"]: layer["kind"] for layer in run_of(folder / "run.html")["layers"]}


def test_layers_and_names_tell_spikes_from_states_and_values_only_of_the_rest(tmp_path) -> None:
    net = torch.nn.Sequential(snn.LIF(2), snn.Readout(2))
    names = ["input", "mem", "output"]
    _, silent = tt.probe.record(net, torch.zeros(5, 1, 2), names)  # all of it is 0
    expected = {name: "trace" if name.endswith("mem") else "events" for name in silent}
    expected["1.output"] = "trace"
    assert drawn(silent, tmp_path) == expected
    # without a recording's knowledge of the layers the output of a silent readout looks like spikes
    assert drawn(dict(silent), tmp_path) == {**expected, "1.output": "events"}
    levels = torch.tensor([0.0, 4.0, 0.0, 2.0])[:, None, None]
    _, seen = tt.probe.record(tt.neurons.MultiLevelLIF(1, beta=1e-7), levels, "output")
    assert torch.equal(seen["output"], levels)
    assert drawn(seen, tmp_path) == {"output": "trace"}  # a raster would lose the sizes


def test_convolutional_layers_are_flattened_and_recordings_may_have_no_batch(tmp_path) -> None:
    tt.plot.save_html(torch.ones(5, 2, 3, 4, 4), tmp_path / "run.html")
    (layer,) = run_of(tmp_path / "run.html")["layers"]
    assert (layer["path"], layer["shape"], layer["neurons"]) == ("recording", [3, 4, 4], 48)
    for value, neurons in ((torch.ones(5, 2), 2), (torch.ones(5), 1)):
        tt.plot.save_html(value, tmp_path / "run.html", batched=False)
        run = run_of(tmp_path / "run.html")
        assert (run["samples"], run["layers"][0]["neurons"]) == (1, neurons)


def test_names_are_escaped_and_pages_reproducible_and_small(tmp_path: Path) -> None:
    odd = "{{data}} {{script}} {{style}}"  # as the places of the template are called
    for name in (HOSTILE, odd):
        tt.plot.save_html({name: torch.ones(5, 2, 1)}, tmp_path / "run.html", title=name)
        page, run = (tmp_path / "run.html").read_text(), run_of(tmp_path / "run.html")
        assert (run["title"], run["layers"][0]["path"]) == (name, name)
        assert f"<title>{html.escape(name)}</title>" in page
        assert page.count("</script>") == 2 + 2  # the run, two samples, the viewer
        assert page.count("</html>") == 1
    for name in ("one", "two"):
        tt.plot.save_html(recording(), tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    assert not re.search(r"https?://", (tmp_path / "one").read_text())
    output = torch.zeros(2_000, 1, 500)
    output[::50, 0, ::10] = 1
    tt.plot.save_html({"a": output}, tmp_path / "run.html")
    assert (tmp_path / "run.html").stat().st_size < 60_000


def test_large_blocks_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MODULE, "MAX_BLOCK_LENGTH", 100)
    with pytest.raises(ValueError, match=r"'0\.mem' is too large for a browser"):
        tt.plot.save_html(recording(), tmp_path / "run.html")
    assert MODULE.NOT_FINITE == MODULE.MAX_LEVEL + 1


@given(arrays(np.int8, shapes, elements=st.sampled_from([-1, 0, 0, 1])))
def test_events_round_trip_exactly(values: Array) -> None:
    assert (unpack_events(MODULE.pack_events(values), *values.shape) == values).all()


numbers = st.floats(-1e6, 1e6, width=32) | st.sampled_from([np.nan, np.inf, -np.inf])


@given(arrays(np.float32, shapes, elements=numbers))
def test_traces_round_trip_to_half_a_level(values: Array) -> None:
    found, level = unpack_trace(MODULE.pack_trace(values), *values.shape)
    finite = np.isfinite(values)
    assert (np.isnan(found) == ~finite).all()
    rounding = 1e-6 * np.abs(values).max(0, initial=0, where=finite) + np.finfo(np.float32).tiny
    allowed = np.broadcast_to(0.51 * level + rounding, values.shape)
    assert (np.abs(found - values)[finite] <= allowed[finite]).all()


def test_levels_of_a_neuron_are_its_own_and_events_of_many_use_32_bits() -> None:
    values = np.stack([np.linspace(0, 1e6, 9), np.linspace(0, 1e-3, 9)], 1).astype(np.float32)
    found, _ = unpack_trace(MODULE.pack_trace(values), 9, 2)
    assert np.allclose(found, values, rtol=1e-4, atol=1e-8)
    many = np.zeros((2, 70_000), np.float32)
    many[1, 69_999] = 0.5
    found = unpack_events(MODULE.pack_events(many), 2, 70_000, wide=True)
    assert np.argwhere(found).tolist() == [[1, 69_999]]


def spikes(up: float = 1.0, down: float = -1.0) -> Array:
    values = np.zeros((4, 2, 3))
    values[::2, 0] = up
    values[1, 1] = down
    return values


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.zeros((4, 2, 3)), True),
        (np.ones((4, 2, 3)), True),
        (spikes(), True),
        (spikes(0.3, -2.5), True),
        (spikes() * np.array([0.5, 1.0, 2.0]), True),  # a learnt scale for each neuron
        (np.full((4, 2, 3), 0.5), False),
        (np.arange(24.0).reshape(4, 2, 3), False),
        (np.where(spikes() == 0, np.nan, 1.0), False),
        (np.maximum(np.sin(np.arange(24.0)), 0).reshape(4, 2, 3), False),
    ],
)
def test_spikes_are_distinguished_from_states(values: Array, expected: bool) -> None:
    assert is_events(values) is expected


def test_pages_are_shown_whole_and_keep_when_the_file_is_gone(tmp_path: Path) -> None:
    shown: Any
    for write, shown in (
        (tt.plot.save_html, {"0.mem": torch.rand(5, 1, 3)}),
        (tt.plot.save_animation, torch.ones(3, 1, 2, 4, 4)),
    ):
        path = tmp_path / 'a "page" & <more>.html'
        write(shown, path, title="A run")
        page = tt.plot.show_html(str(path), height=321)
        text = path.read_text()
        path.unlink()
        frame = page._repr_html_()
        held = re.fullmatch(
            r'<iframe srcdoc="([^"]*)" title="[^"]*" style="[^"]*"></iframe>', frame
        )
        assert held is not None
        assert html.unescape(held[1]) == text
        assert "height: 321px" in frame
        assert repr(page) == f"InlinePage({str(path)!r})"
