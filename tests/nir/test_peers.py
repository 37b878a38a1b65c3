"""SpikingJelly, snnTorch and Norse read our compact files, and we read theirs: the same spikes."""

from __future__ import annotations

import contextlib
import io
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

STEPS = 200

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


READERS = {"spikingjelly": by_spikingjelly, "snntorch": by_snntorch, "norse": by_norse}
# snnTorch computes in float32; its Flatten, and Norse's, take NIR's dimensions for those of a batch
DTYPES = {"spikingjelly": torch.float64, "snntorch": torch.float32, "norse": torch.float64}
FLATTENS = ("spikingjelly",)


def networks() -> dict[str, tuple[nn.Module, tuple[int, ...]]]:
    torch.manual_seed(0)
    spread = 0.2 + torch.rand(16)  # folded into the weights
    lif = nn.Sequential(
        nn.Linear(6, 16),
        snn.LIF(16, beta=0.8, pos_threshold=spread, reset="zero"),
        nn.Linear(16, 5, bias=False),
        snn.LIF(5, beta=0.7, pos_threshold=0.05, beta_ema=True, reset="zero"),
    )
    cuba = nn.Sequential(
        nn.Linear(6, 16),
        snn.SLIF(16, alpha=0.6, beta=0.8, pos_threshold=spread, reset="zero"),
        nn.Linear(16, 5),
        snn.SLIF(5, alpha=0.4, beta=0.7, pos_threshold=0.4, alpha_ema=False, reset="zero"),
    )
    conv = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        snn.LIF(4, beta=0.8, pos_threshold=0.5 + torch.rand(4), dim=-3, reset="zero"),
        nn.AvgPool2d(2),
        nn.Conv2d(4, 4, 3, groups=2),
        snn.SLIF(4, alpha=0.5, beta=0.8, pos_threshold=0.2, dim=-3, reset="zero"),
        nn.Flatten(),
        nn.Linear(4, 5),
        snn.LIF(5, beta=0.7, pos_threshold=0.2, reset="zero"),
    )
    return {"lif": (lif, (6,)), "cuba": (cuba, (6,)), "conv": (conv, (2, 6, 6))}


@pytest.mark.parametrize("network", ["lif", "cuba", "conv"])
@pytest.mark.parametrize("peer", READERS)
def test_they_read_ours(peer: str, network: str, tmp_path: Path) -> None:
    need(peer)
    if network == "conv" and peer not in FLATTENS:
        pytest.skip(f"{peer} takes the dimensions of nir.Flatten for those of a batch")
    net, shape = networks()[network]
    net = net.to(DTYPES[peer])
    tt.nir.save(net, tmp_path / "net.nir", shape, mode="compact")
    x = 3 * sequence(STEPS, 4, *shape, dtype=DTYPES[peer])
    ours = run(net, x)
    theirs = READERS[peer](tmp_path / "net.nir", x)
    assert 0.02 < ours.mean() < 0.8
    assert int((ours != theirs).sum()) == 0


@pytest.mark.parametrize("peer", READERS)
def test_decays_that_differ_are_read_or_refused(peer: str, tmp_path: Path) -> None:
    need(peer)
    torch.manual_seed(0)
    lif = snn.LIF(16, beta=0.5 + 0.4 * torch.rand(16), pos_threshold=0.4, reset="zero")
    net = nn.Sequential(nn.Linear(6, 16), lif).to(DTYPES[peer])
    tt.nir.save(net, tmp_path / "net.nir", (6,), mode="compact")
    x = 3 * sequence(STEPS, 4, 6, dtype=DTYPES[peer])
    if peer == "norse":
        assert int((READERS[peer](tmp_path / "net.nir", x) != run(net, x)).sum()) == 0
    else:
        with pytest.raises((AssertionError, ValueError), match=r"uniform|must be same"):
            READERS[peer](tmp_path / "net.nir", x)


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

    how: dict[str, Any] = {
        "init_hidden": True,
        "reset_mechanism": "zero",
        "reset_delay": False,
    }

    def values(count: int, low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count)

    def leaky(count: int) -> nn.Module:
        return snntorch.Leaky(
            beta=values(count, 0.5, 0.9), threshold=values(count, 0.3, 0.6), **how
        )

    def synaptic(count: int) -> nn.Module:
        return snntorch.Synaptic(
            alpha=values(count, 0.3, 0.6),
            beta=values(count, 0.5, 0.9),
            threshold=values(count, 0.6, 1.0),
            **how,
        )

    for make in (leaky, synaptic):
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
