"""SpikingJelly, snnTorch and Norse read our compact files, and we read theirs: the same spikes."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import nir
import pytest
import torch
from torch import Tensor, nn

import tracetorch as tt
from tests.cases import sequence
from tests.nir.cases import DT, run
from tracetorch import snn
from tracetorch.models import IF

STEPS = 100

pytestmark = pytest.mark.filterwarnings("default")  # peers' own


def need(peer: str) -> None:
    if find_spec(peer) is None:
        pytest.skip(f"{peer} is not installed; the extra 'test-peers' brings it")


def stepped(model: Callable[..., Any], x: Tensor) -> Tensor:
    """A peer's model over time; some hand their state from step to step."""
    outputs, state = [], None
    with torch.no_grad():
        for step in x:
            given = model(step) if state is None else model(step, state)
            y, state = given if isinstance(given, tuple) else (given, None)
            outputs.append(y[0] if isinstance(y, tuple) else y)
    return torch.stack(outputs)


def by_spikingjelly(path: Path, x: Tensor) -> Tensor:
    from spikingjelly.activation_based.nir_exchange import import_from_nir

    return stepped(import_from_nir(path, dt=DT, dtype=x.dtype), x)


def by_snntorch(path: Path, x: Tensor) -> Tensor:
    from snntorch.import_nir import import_from_nir

    with contextlib.redirect_stdout(io.StringIO()):
        model = import_from_nir(nir.read(path))
    return stepped(model, x)


def by_norse(path: Path, x: Tensor) -> Tensor:
    import norse.torch

    return stepped(norse.torch.from_nir(nir.read(path), dt=DT).to(x.dtype), x)


def by_tracetorch(path: Path, x: Tensor) -> Tensor:
    return run(tt.nir.from_nir(path, dt=DT).to(x.dtype), x)


READERS = {
    "traceTorch": by_tracetorch,
    "SpikingJelly": by_spikingjelly,
    "snnTorch": by_snntorch,
    "Norse": by_norse,
}
# snnTorch computes in float32
DTYPES = dict.fromkeys(READERS, torch.float64) | {"snnTorch": torch.float32}


def lif(neurons: int, **how: Any) -> snn.LIF:
    return snn.LIF(neurons, **{"beta": 0.8, "pos_threshold": 0.1, "reset": "zero", **how})


def behind_lif(last: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(6, 16), lif(16, pos_threshold=0.5), nn.Linear(16, 5), last)


def lifs() -> nn.Module:
    return nn.Sequential(
        nn.Linear(6, 16),
        lif(16, pos_threshold=0.2 + torch.rand(16)),  # folded into the weights
        nn.Linear(16, 5, bias=False),
        lif(5, beta=0.7, pos_threshold=0.05, beta_ema=True),
    )


def slifs() -> nn.Module:
    theta = 0.2 + torch.rand(16)
    first = snn.SLIF(16, alpha=0.6, beta=0.8, pos_threshold=theta, reset="zero")
    how: dict[str, Any] = {"alpha": 0.4, "beta": 0.7, "alpha_ema": False, "reset": "zero"}
    last = snn.SLIF(5, pos_threshold=0.4, **how)
    return nn.Sequential(nn.Linear(6, 16), first, nn.Linear(16, 5), last)


def convolution(*end: nn.Module) -> nn.Module:
    first = lif(4, pos_threshold=0.5 + torch.rand(4), dim=-3)
    return nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), first, *end)


def grouped() -> nn.Module:
    slif = snn.SLIF(4, alpha=0.5, beta=0.8, pos_threshold=0.2, dim=-3, reset="zero")
    return nn.Sequential(nn.Conv2d(4, 4, 3, groups=2), slif)


FLAT, IMAGE = (6,), (2, 6, 6)
# mode and layers, as the page's table has them: the network, and the shape of a sample
FILES: dict[tuple[str, str], tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    ("compact", "`LIF`"): (lifs, FLAT),
    ("compact", "`SLIF`"): (slifs, FLAT),
    ("compact", "`Conv2d`"): (lambda: convolution(grouped()), IMAGE),
    ("compact", "`AvgPool2d`"): (lambda: convolution(nn.AvgPool2d(2), lif(4, dim=-3)), IMAGE),
    ("compact", "`Flatten`"): (lambda: convolution(nn.Flatten(), nn.Linear(144, 5), lif(5)), IMAGE),
    ("compact", "a decay for each neuron"): (
        lambda: behind_lif(lif(5, beta=0.5 + 0.4 * torch.rand(5))),
        FLAT,
    ),
    ("compact", "`Readout` at the end"): (lambda: behind_lif(snn.Readout(5)), FLAT),
    ("compact", "`models.IF`"): (
        lambda: nn.Sequential(nn.Linear(6, 16), IF(16, 0.7), nn.Linear(16, 5), IF(5, 0.3)),
        FLAT,
    ),
    ("exact", '`LIF`, `reset="zero"`'): (lambda: behind_lif(lif(5)), FLAT),
    ("exact", "`LIF`"): (lambda: behind_lif(lif(5, reset="subtract")), FLAT),
    ("exact", "`RLIF`"): (lambda: behind_lif(snn.RLIF(5, pos_threshold=0.1)), FLAT),
    ("exact", "`Recurrent(LIF)`"): (
        lambda: behind_lif(snn.Recurrent(lif(5), nn.Linear(5, 5))),
        FLAT,
    ),
}


def cells_of_the_page() -> dict[tuple[str, str, str], str]:
    """The table "file x reader": what it says of each file and reader."""
    page = (Path(__file__).parents[2] / "docs/use/deploy.md").read_text()
    rows = [
        [cell.strip() for cell in row.strip("|").split("|")]
        for row in re.findall(r"^\| (?:mode|compact|exact) \|.*\|$", page, flags=re.MULTILINE)
    ]
    readers = [reader.split()[0] for reader in rows[0][2:]]
    return {
        (mode, layers, reader): cell
        for mode, layers, *cells in rows[1:]
        for reader, cell in zip(readers, cells, strict=True)
    }


CELLS = cells_of_the_page()


def test_the_table_has_all_files_and_readers() -> None:
    assert CELLS.keys() == {(*file, reader) for file in FILES for reader in READERS}


@pytest.mark.parametrize(("mode", "layers", "reader"), CELLS)
def test_they_read_ours_as_the_table_says(
    mode: Any, layers: str, reader: str, tmp_path: Path
) -> None:
    if reader != "traceTorch":
        need(reader.lower())
    torch.manual_seed(0)
    make, shape = FILES[mode, layers]
    net = make().to(DTYPES[reader])
    tt.nir.save(net, tmp_path / "net.nir", shape, mode=mode)
    x = 3 * sequence(STEPS, 4, *shape, dtype=DTYPES[reader])
    ours = run(net, x)
    if "Readout" not in layers:
        assert 0.02 < ours.mean() < 0.8
    cell = CELLS[mode, layers, reader]
    if cell == "equal":
        theirs = READERS[reader](tmp_path / "net.nir", x)
        torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-12)
    elif cell == "other values":
        theirs = READERS[reader](tmp_path / "net.nir", x)
        assert theirs.shape == ours.shape
        assert (theirs - ours).abs().max() > 0.1
    elif cell == "other shape or error":
        # nirtorch's order of nodes, and so what Norse meets first, follows the hashes of a process
        try:
            shape = READERS[reader](tmp_path / "net.nir", x).shape
        except RuntimeError as error:
            assert "size of tensor" in str(error)  # noqa: PT017 (it is raised in some processes)
        else:
            assert shape != ours.shape
    else:
        (message,) = re.findall(r"^error: `(.*)`$", cell)
        with pytest.raises(Exception, match=re.escape(message)):  # of any kind: their own
            READERS[reader](tmp_path / "net.nir", x)


@pytest.mark.parametrize("reader", READERS)
def test_the_file_of_the_page(reader: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if reader != "traceTorch":
        need(reader.lower())
    page = (Path(__file__).parents[2] / "docs/use/deploy.md").read_text()
    network, save = re.findall(r"^(chip = .*?)^(tt\.nir\.save.*?)$", page, re.M | re.S)[0]
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"nn": nn, "snn": snn, "tt": tt}
    torch.manual_seed(0)
    exec(network, names)
    with torch.no_grad():
        names["chip"][2].weight.mul_(2)  # so that the last layer fires
    exec(save, names)
    x = 3 * sequence(STEPS, 4, 8, dtype=DTYPES[reader])
    ours = run(names["chip"].to(x.dtype), x)
    assert 0.02 < ours.mean() < 0.8
    assert torch.equal(READERS[reader](tmp_path / "chip.nir", x), ours)


def test_we_read_spikingjelly(tmp_path: Path) -> None:
    need("spikingjelly")
    from spikingjelly.activation_based import functional, neuron
    from spikingjelly.activation_based.nir_exchange import export_to_nir

    makers: tuple[Callable[[], nn.Module], ...] = (
        lambda: neuron.LIFNode(tau=4.0, decay_input=True, v_threshold=0.3),
        lambda: neuron.LIFNode(tau=4.0, decay_input=False, v_threshold=0.5),
        lambda: neuron.LIFNode(tau=4.0, decay_input=True, v_threshold=0.2, v_reset=-0.1),
        lambda: neuron.ParametricLIFNode(init_tau=3.0, decay_input=False, v_threshold=0.5),
        lambda: neuron.IFNode(v_threshold=1.5, v_reset=0.1),
        lambda: neuron.CUBALIFNode(c_decay=0.6, v_decay=0.8, v_reset=0.0),
    )
    for make in makers:
        torch.manual_seed(0)
        net: Any = nn.Sequential(
            nn.Conv2d(2, 3, 3), make(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(12, 5), make()
        ).double()
        with torch.no_grad():
            net[4].weight.mul_(4)
        x = 4 * sequence(STEPS, 4, 2, 6, 6)
        export_to_nir(net, x[0], save_path=tmp_path / "theirs.nir", dt=DT)
        functional.reset_net(net)
        theirs = stepped(net, x)
        model = tt.nir.from_nir(tmp_path / "theirs.nir", dt=DT)
        assert 0.01 < theirs.mean() < 0.9
        assert int((run(model, x) != theirs).sum()) == 0


def test_we_read_snntorch(tmp_path: Path) -> None:
    need("snntorch")
    import snntorch
    from snntorch import utils
    from snntorch.export_nir import export_to_nir

    how: dict[str, Any] = {"init_hidden": True, "reset_mechanism": "zero", "reset_delay": False}

    def values(count: int, low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count)

    def leaky(count: int) -> nn.Module:
        beta, threshold = values(count, 0.5, 0.9), values(count, 0.3, 0.6)
        return snntorch.Leaky(beta=beta, threshold=threshold, **how)

    def synaptic(count: int) -> nn.Module:
        alpha, beta = values(count, 0.3, 0.6), values(count, 0.5, 0.9)
        return snntorch.Synaptic(alpha=alpha, beta=beta, threshold=values(count, 0.6, 1.0), **how)

    def recurrent(count: int) -> nn.Module:
        beta, threshold = values(count, 0.5, 0.9), values(count, 0.3, 0.6)
        return snntorch.RLeaky(beta=beta, threshold=threshold, linear_features=count, **how)

    for make in (leaky, synaptic, recurrent):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(6, 16), make(16), nn.Linear(16, 5), make(5))
        x = 2 * sequence(STEPS, 4, 6, dtype=torch.float32)
        with contextlib.redirect_stdout(io.StringIO()):
            graph = export_to_nir(net, x[0], ignore_dims=[0])
        nir.write(str(tmp_path / "theirs.nir"), graph)
        utils.reset(net)
        theirs = stepped(net, x)
        model = tt.nir.from_nir(tmp_path / "theirs.nir", dt=DT)
        assert 0.02 < theirs.mean() < 0.8
        assert int((run(model, x) != theirs).sum()) == 0


def test_we_read_norse(tmp_path: Path) -> None:
    """Norse writes ``tau * dt`` for ``tau`` (its issue 411): a step of dt reads as one of dt^2."""
    need("norse")
    import norse.torch
    from norse.torch.module.lif_box import LIFBoxCell, LIFBoxParameters

    torch.manual_seed(0)
    parameters = LIFBoxParameters(
        tau_mem_inv=torch.full((16,), 200.0), v_th=torch.full((16,), 0.3), v_leak=torch.zeros(16)
    )
    net = norse.torch.SequentialState(nn.Linear(6, 16), LIFBoxCell(parameters))
    x = 2 * sequence(STEPS, 4, 6, dtype=torch.float32)
    graph = norse.torch.to_nir(net, x[0, 0])
    assert graph is not None
    theirs = stepped(net, x)
    nir.write(str(tmp_path / "theirs.nir"), graph)
    model = tt.nir.from_nir(tmp_path / "theirs.nir", dt=0.001**2)
    assert 0.02 < theirs.mean() < 0.8
    assert int((run(model, x) != theirs).sum()) == 0
