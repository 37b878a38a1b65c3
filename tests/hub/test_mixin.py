"""Models are saved to, and loaded from, folders and a server of the Hub's protocol."""

from __future__ import annotations

import copy
import hashlib
import json
import pickle
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import tracetorch as tt
from tracetorch import snn
from tracetorch.core import checks

constants = pytest.importorskip("huggingface_hub.constants", reason="of the extra hub")


class Net(snn.TTModule, tt.hub.HubMixin):
    """Layers in a plain list too: a ``state_dict`` does not have those."""

    def __init__(self, width: int = 5, reset: str = "subtract", neuron: type = snn.LIF) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, width), neuron(width, reset=reset), nn.Dropout(0.5))
        self.cells = [snn.Readout(width)]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.cells[0](self.net(x))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    Net(6, reset="zero").save_pretrained(tmp_path / "net")
    return tmp_path / "net"


def outputs(net: nn.Module, **options: Any) -> torch.Tensor:
    x = torch.rand(7, 2, 4, generator=torch.Generator().manual_seed(1))
    return tt.unroll(net, 4 * x, from_rest=True, **options)


def test_a_folder_brings_back_arguments_tensors_and_hidden_modules(tmp_path: Path) -> None:
    net = Net(6, reset="zero")
    with torch.no_grad():
        net.cells[0].raw_beta.add_(1.0)
    net(torch.ones(3, 4))  # states, which are not saved
    net.save_pretrained(tmp_path)
    names = ["README.md", "config.json", "model.safetensors"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    assert json.loads((tmp_path / "config.json").read_text()) == {"width": 6, "reset": "zero"}
    loaded = Net.from_pretrained(tmp_path)
    assert not loaded.training
    assert tt.get_states(loaded) == {}
    assert torch.equal(outputs(loaded), outputs(net.eval()))
    card = (tmp_path / "README.md").read_text()
    for words in ("library_name: tracetorch", "spiking-neural-network", "tracetorch.hub.HubMixin"):
        assert words in card
    assert "PytorchModelHubMixin" not in card


def test_files_of_other_layers_or_damaged_ones_are_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"reset: 'zero' in the file, 'subtract' in the model"):
        Net.from_pretrained(folder, reset="subtract")
    with pytest.raises(ValueError, match="SLIF"):
        Net.from_pretrained(folder, neuron=snn.SLIF)
    file = folder / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match="checksum"):
        Net.from_pretrained(folder)
    # an argument that is no JSON is given again
    Net(3, neuron=snn.SLIF).save_pretrained(folder)
    assert "neuron" not in json.loads((folder / "config.json").read_text())
    with pytest.raises(ValueError, match="SLIF"):  # the default is another
        Net.from_pretrained(folder)
    assert isinstance(Net.from_pretrained(folder, neuron=snn.SLIF).net[1], snn.SLIF)


def test_a_model_stays_what_a_model_is(folder: Path) -> None:
    net = Net.from_pretrained(folder)
    expected = outputs(net)
    for twin in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert torch.equal(outputs(twin), expected)
    torch.testing.assert_close(outputs(net, by="step"), expected)
    net.double().save_pretrained(folder)
    before = torch.get_rng_state()
    double = Net.from_pretrained(folder, map_location="cpu")
    assert torch.equal(torch.get_rng_state(), before)
    assert {p.dtype for p in double.parameters()} == {torch.float64}
    assert double.cells[0].raw_beta.dtype == net.cells[0].raw_beta.dtype == torch.float32
    assert torch.equal(double.get_parameter("net.0.weight"), net.get_parameter("net.0.weight"))
    assert Net.from_pretrained(folder, map_location="meta").get_parameter("net.0.weight").is_meta


@pytest.fixture
def server(folder, tmp_path, monkeypatch) -> Iterator[list[str]]:
    """Serve the folder as the repository ``group/net``; the paths that are requested."""
    requests: list[str] = []

    class Handler(SimpleHTTPRequestHandler):
        def translate_path(self, path: str) -> str:
            start, _, rest = path.partition("/resolve/")
            # the package may have other questions to a server, which this one does not answer
            if rest:
                requests.append(path)
            return str(folder / (rest.rpartition("/")[2] if start == "/group/net" else "nothing"))

        def end_headers(self) -> None:
            file = Path(self.translate_path(self.path))
            content = file.read_bytes() if file.is_file() else b""
            self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
            self.send_header("X-Repo-Commit", 40 * "a")
            if not content:
                self.send_header("X-Error-Code", "EntryNotFound")
            super().end_headers()

        def log_message(self, *arguments: object) -> None:
            """Print nothing."""

    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=running.serve_forever, daemon=True)
    thread.start()
    address = f"http://127.0.0.1:{running.server_port}"
    # what HF_ENDPOINT sets when the package is imported
    monkeypatch.setattr(constants, "ENDPOINT", address)
    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    yield requests
    running.shutdown()
    running.server_close()
    thread.join()


def test_a_repository_is_loaded_at_a_revision_and_kept(folder, tmp_path, server) -> None:
    expected = outputs(Net.from_pretrained(folder))
    assert server == []  # a folder needs no server
    options = {"revision": "v2", "cache_dir": tmp_path / "cache"}
    assert torch.equal(outputs(Net.from_pretrained("group/net", **options)), expected)
    names = ("config.json", "model.safetensors")
    assert set(server) == {f"/group/net/resolve/v2/{name}" for name in names}
    server.clear()
    again = Net.from_pretrained("group/net", **options, local_files_only=True)
    assert torch.equal(outputs(again), expected)
    assert server == []
    (folder / "model.safetensors").unlink()
    with pytest.raises(Exception, match=r"model.safetensors") as caught:
        Net.from_pretrained("group/net", cache_dir=tmp_path / "other")
    assert type(caught.value).__module__.startswith("huggingface_hub")


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "find_spec", lambda name: None)
    with pytest.raises(
        ModuleNotFoundError, match=r"tt.hub.HubMixin needs huggingface_hub, .*'hub'"
    ):
        getattr(tt.hub, "HubMixin")  # noqa: B009
    with pytest.raises(AttributeError, match="nothing"):
        getattr(tt.hub, "nothing")  # noqa: B009
