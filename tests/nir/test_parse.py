"""Files: what other writers give is read, what is damaged or leads elsewhere is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import nir
import numpy as np
import pytest
import torch
from torch import nn

import tracetorch as tt
from tests.nir.cases import DT, line
from tracetorch import snn


def small(path: Path, **changes: Any) -> Path:
    """A file with one Linear, and what a test has changed in its groups."""
    nir.write(str(path), line(nir.Linear(np.ones((2, 2))), into=(2,), out=(2,)))
    with h5py.File(path, "r+") as opened:
        for change in changes.values():
            change(opened)
    return path


def put(where: str, **how: Any) -> Callable[[h5py.File], None]:
    def change(opened: h5py.File) -> None:
        if where in opened:
            del opened[where]
        opened.create_dataset(where, **how)

    return change


WEIGHT = "node/nodes/n0/weight"
CHANGES: tuple[tuple[Callable[[h5py.File], None], str], ...] = (
    (lambda f: f.__delitem__("node"), "is not a NIR file, or is damaged"),
    (lambda f: f.__delitem__("node/nodes"), "the graph must be a NIRGraph that has nodes"),
    (lambda f: f.__delitem__("node/edges"), "'output' gets nothing from any Input"),
    (lambda f: f.__delitem__(WEIGHT), "node 'n0' .Linear.: the field 'weight' is missing"),
    (put("node/type", data="LIF"), "the graph must be a NIRGraph"),
    (put("node/nodes/n0/type", data="Quantum"), "'Quantum', which traceTorch does not know"),
    (put("node/nodes/n0/extra", data=7), "node 'n0' .Linear.: the field 'extra' is unknown"),
    (put("node/nodes/n0", data=7), "node 'n0' is of the type None, which"),
    (put(WEIGHT, data="heavy"), "weight must be finite real numbers"),
    (put(WEIGHT, data=h5py.Empty("f8")), "weight must be finite real numbers"),
    (put("node/edges", data=[["input", "nobody"]]), "nobody.*is no edge from node to node"),
    (put(WEIGHT, data=np.ones((2, 2)), external=[("/dev/zero", 0, 32)]), "leads to somewhere else"),
    (lambda f: f.__setitem__("node/nodes/n0/bias", h5py.SoftLink("/" + WEIGHT)), "leads to some"),
    (
        lambda f: f.__setitem__("node/nodes/far", h5py.ExternalLink("a.nir", "/node")),
        "is not a NIR file",
    ),
)


@pytest.mark.parametrize(("change", "why"), CHANGES)
def test_what_a_file_may_not_say(
    change: Callable[[h5py.File], None], why: str, tmp_path: Path
) -> None:
    path = small(tmp_path / "odd.nir", change=change)
    with pytest.raises(ValueError, match=why):
        tt.nir.from_nir(path, dt=DT)


def test_a_layer_of_huge_shape_takes_no_memory(tmp_path: Path) -> None:
    """Keep one value for two thousand million neurons as one value."""
    one = np.ones(1)
    given = line(
        nir.LIF(one * 1e-3, one, one * 0, one), nir.Scale(one), into=(2**31 - 1,), out=(2**31 - 1,)
    )
    nir.write(str(tmp_path / "wide.nir"), given)
    model = tt.nir.from_nir(tmp_path / "wide.nir", dt=DT)
    assert sum(p.numel() for p in model.parameters()) == 3


def test_other_writers_files(tmp_path: Path) -> None:
    """Text of fixed length, big-endian numbers, whole numbers, LZF, the newest format of HDF5."""
    path = tmp_path / "other.nir"
    with h5py.File(path, "w", libver="latest") as f:
        f["node/type"] = np.bytes_("NIRGraph")
        f["node/edges"] = np.array([["input", "n"], ["n", "output"]], "S8")
        for end in ("input", "output"):
            f[f"node/nodes/{end}/type"] = np.bytes_(end.title())
            f[f"node/nodes/{end}/shape"] = np.array([2], ">i2")
        f["node/nodes/n/type"] = "Linear"
        f.create_dataset(
            "node/nodes/n/weight", data=np.arange(4, dtype=">i4").reshape(2, 2), compression="lzf"
        )
    model = tt.nir.from_nir(path, dt=DT)
    assert model(torch.ones(1, 2).double()).tolist() == [[1.0, 5.0]]


def test_no_file_of_nir(tmp_path: Path) -> None:
    for name, content in (("empty", b""), ("text", b"NIRGraph"), ("zeros", bytes(4096))):
        path = tmp_path / f"{name}.nir"
        path.write_bytes(content)
        with pytest.raises(ValueError, match=rf"{name}.nir' is not a NIR file, or is damaged"):
            tt.nir.from_nir(path, dt=DT)
    with pytest.raises(ValueError, match=r"is a folder, not a NIR file"):
        tt.nir.from_nir(tmp_path, dt=DT)


def test_a_file_cut_anywhere(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 3), snn.BSRLIF(2, dim=-3), nn.Flatten(), nn.Linear(32, 3))
    path = tmp_path / "good.nir"
    tt.nir.save(net, path, (1, 6, 6))
    good = path.read_bytes()
    for end in range(0, len(good), len(good) // 60):
        path.write_bytes(good[:end])
        with pytest.raises(ValueError, match=r"good.nir"):
            tt.nir.from_nir(path, dt=DT)
