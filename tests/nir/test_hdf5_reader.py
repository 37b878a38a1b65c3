"""Files that are damaged, hostile or merely odd: a clear error or a good model, never harm."""

from __future__ import annotations

import random
import textwrap
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
from tests.processes import run_python
from tracetorch import snn
from tracetorch.nir import hdf5_reader


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A good file, with one of everything that HDF5 keeps differently."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 2, 3),
        snn.BSRLIF(2, dim=-3),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(8, 3),
        snn.LIF(3, reset="zero"),
    )
    path = tmp_path / "good.nir"
    tt.nir.save(net, path, (1, 6, 6))
    return path


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
    (lambda f: f.__delitem__("node"), "the file has no 'node'"),
    (lambda f: f.__delitem__("node/nodes"), "the graph has no nodes"),
    (lambda f: f.__delitem__("node/edges"), "must have a list of edges"),
    (lambda f: f.__delitem__(WEIGHT), "node 'n0' .Linear.: the field 'weight' is missing"),
    (put("node/type", data="LIF"), "the graph must be a NIRGraph, got 'LIF'"),
    (put("node/nodes/n0/type", data="Quantum"), "'Quantum', which traceTorch does not know"),
    (put("node/nodes/n0/type", data=7), "is of the type 7"),
    (put("node/nodes/n0/extra", data=7), "node 'n0' .Linear.: there is an unknown field 'extra'"),
    (put("node/nodes/n0", data=7), "node 'n0' must be a group of fields, got 7"),
    (put(WEIGHT, data="heavy"), "weight must hold real numbers"),
    (put(WEIGHT, data=np.full((2, 2), np.nan)), "node 'n0' .Linear.: weight holds nan"),
    (put(WEIGHT, data=np.ones((2, 2)) * 1j), "holds complex128, neither numbers nor text"),
    (put(WEIGHT, data=h5py.Empty("f8")), "weight is empty"),
    (put(WEIGHT, shape=(10**6, 10**6), dtype="f8"), "8000000000000 bytes, of which the file of"),
    (
        put(WEIGHT, shape=(10**6, 10**6), dtype="f8", chunks=(10, 10), compression="gzip"),
        "declares shape .1000000, 1000000. of float64",
    ),
    (
        put(WEIGHT, shape=(2, 2), maxshape=(None, None), dtype="f8", chunks=(2**14, 2**14)),
        "declares shape .2, 2. of float64, 32 bytes",
    ),
    (
        put(WEIGHT, data=np.ones((2, 2)), external=[("/dev/zero", 0, 32)]),
        "keeps its values outside of the file",
    ),
    (
        put(WEIGHT, data=np.ones((2, 2), "i4"), chunks=(2, 2), scaleoffset=0),
        "is packed by filter 6; gzip, shuffle, fletcher32, lzf can be read",
    ),
    (
        put("node/edges", data=[["input", "n0"]], chunks=(1, 2), dtype=h5py.string_dtype()),
        "keeps its texts in pieces",
    ),
    (put("node/edges", data=np.ones((2, 2))), "there is no such node"),
    (put("node/edges", data=[["input", "nobody"]]), "names 'nobody', there is no such node"),
    (put("node/edges", data=7), "must have a list of edges"),
    (put("node/nodes/input/shape", data=[2**40]), "shape must be whole and in .1, 2147483647."),
    (put("node/nodes/input/shape", data=[2**31 - 1]), "takes .2., the input has .2147483647."),
    (lambda f: f.__setitem__("node/nodes/n0/weight2", h5py.SoftLink("/version")), "is a link to"),
    (lambda f: f.__setitem__("node/nodes/far", h5py.ExternalLink("a.nir", "/node")), "is a link"),
    (lambda f: f.__setitem__("node/nodes/n1", f["node"]), "holds itself"),
    (lambda f: f.__setitem__("node/nodes/n1", np.dtype("f8")), "neither a group nor a data set"),
)


@pytest.mark.parametrize(("change", "why"), CHANGES)
def test_what_a_file_may_not_say(
    change: Callable[[h5py.File], None], why: str, tmp_path: Path
) -> None:
    path = small(tmp_path / "odd.nir", change=change)
    with pytest.raises(ValueError, match=why):
        tt.nir.from_nir(path, dt=DT)


def test_a_virtual_data_set(tmp_path: Path) -> None:
    def change(opened: h5py.File) -> None:
        del opened[WEIGHT]
        layout = h5py.VirtualLayout((2, 2), "f8")
        layout[:] = h5py.VirtualSource("/etc/passwd", "x", (2, 2))
        opened.create_virtual_dataset(WEIGHT, layout)

    with pytest.raises(ValueError, match=r"weight keeps its values outside of the file"):
        tt.nir.from_nir(small(tmp_path / "odd.nir", change=change), dt=DT)


def test_groups_that_share_and_share_again(tmp_path: Path) -> None:
    """Two links to one group, each level twice: 2^40 groups in a few kilobytes."""

    def change(opened: h5py.File) -> None:
        group = opened.create_group("node/nodes/g0")
        for i in range(40):
            inner = opened.create_group(f"g{i}")
            group["a"], group["b"] = inner, inner
            group = inner

    with pytest.raises(ValueError, match=r"declares more than \d+ groups and values"):
        tt.nir.from_nir(small(tmp_path / "odd.nir", change=change), dt=DT)


def test_limits_are_exact(tmp_path: Path) -> None:
    """The last value within a limit is read, the next one refused."""
    with h5py.File(tmp_path / "limits.h5", "w") as opened, open(opened.filename, "rb") as raw:
        for name in "abc":
            opened[f"flat/{name}"] = 1
        deepest = opened.create_group("/".join(["deep", *["g"] * hdf5_reader._MAX_DEPTH]))
        entries = 3 * hdf5_reader._MIN_ENTRY
        assert len(hdf5_reader._Reader(entries, raw).group(opened["flat"], "flat")) == 3
        with pytest.raises(ValueError, match="more than 3 groups and values"):
            hdf5_reader._Reader(entries - 1, raw).group(opened["flat"], "flat")
        hdf5_reader._Reader(10**6, raw).group(opened["deep"], "deep")
        deepest.create_group("g")
        with pytest.raises(ValueError, match="more than 80 groups deep"):
            hdf5_reader._Reader(10**6, raw).group(opened["deep"], "deep")
        reader = hdf5_reader._Reader(100, raw)
        assert len(reader.bytes(60, 40)) == 40
        with pytest.raises(ValueError, match="41 bytes at 60 lie beyond the end"):
            reader.bytes(60, 41)
        reader.count_text(200)
        with pytest.raises(ValueError, match="longer than the file"):
            reader.count_text(1)


def test_texts_that_are_one_and_the_same(tmp_path: Path) -> None:
    """A thousand references to one long text: more text than there is file."""
    edges = [["x" * 8000, "y"], *[["n0", "n0"]] * 999]
    path = small(tmp_path / "odd.nir", change=put("node/edges", data=edges))
    data = bytearray(path.read_bytes())
    with h5py.File(path) as opened:
        offset = opened["node/edges"].id.get_offset()
    data[offset : offset + 16 * 2000] = bytes(data[offset : offset + 16]) * 2000
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"its texts are longer than the file"):
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


@pytest.mark.parametrize("compression", ["gzip", "lzf", None])
def test_compressions(compression: Any, tmp_path: Path) -> None:
    def change(opened: h5py.File) -> None:
        for end in ("input", "output"):
            put(f"node/nodes/{end}/shape", data=[500])(opened)
        put(WEIGHT, data=np.zeros((500, 500)), compression=compression)(opened)

    model: Any = tt.nir.from_nir(small(tmp_path / "flat.nir", change=change), dt=DT)
    assert model.nodes["n0"].weight.shape == (500, 500)


def test_no_file_of_nir(tmp_path: Path) -> None:
    for name, content in (("empty", b""), ("text", b"NIRGraph"), ("zeros", bytes(4096))):
        path = tmp_path / f"{name}.nir"
        path.write_bytes(content)
        with pytest.raises(ValueError, match=rf"{name}.nir' is not a NIR file, or is damaged"):
            tt.nir.from_nir(path, dt=DT)
    with pytest.raises(ValueError, match=r"is a folder, not a NIR file"):
        tt.nir.from_nir(tmp_path, dt=DT)
    path = tmp_path / "plain.nir"
    with h5py.File(path, "w", userblock_size=512) as opened:
        opened.create_group("node")
    with pytest.raises(ValueError, match=r"plain.nir' cannot be read: its addresses are not"):
        tt.nir.from_nir(path, dt=DT)


def test_a_file_cut_anywhere(file: Path) -> None:
    good = file.read_bytes()
    for end in range(0, len(good), len(good) // 60):
        file.write_bytes(good[:end])
        with pytest.raises(ValueError, match=r"good.nir"):
            tt.nir.from_nir(file, dt=DT)


def mutated(good: bytes, seed: int) -> bytes:
    """Plant one to sixteen wrong bits, bytes, numbers, zeroed or copied stretches."""
    draw = random.Random(seed)
    data = bytearray(good)
    kind = draw.choice(["bit", "byte", "number", "zero", "copy"])
    for _ in range(draw.choice([1, 1, 2, 4, 16])):
        at = draw.randrange(len(data) - 128)
        if kind == "bit":
            data[at] ^= 1 << draw.randrange(8)
        elif kind == "byte":
            data[at] = draw.randrange(256)
        elif kind == "number":
            number = draw.choice([2**64 - 1, 2**40, 2**62, 0, 1, len(good)])
            data[at : at + 8] = number.to_bytes(8, "little")
        elif kind == "zero":
            data[at : at + 64] = bytes(64)
        else:
            start, length = draw.randrange(len(data) - 128), draw.randrange(1, 128)
            data[at : at + length] = data[start : start + length]
    return bytes(data)


def outcomes(file: Path, seeds: range) -> tuple[int, int]:
    """Count the mutations that gave a model that runs, and those that gave a clear error."""
    good = file.read_bytes()
    read = refused = 0
    for seed in seeds:
        file.write_bytes(mutated(good, seed))
        try:
            model = tt.nir.from_nir(file, dt=DT)
        except ValueError:  # of any kind; anything else is a failure
            refused += 1
            continue
        with torch.no_grad(), tt.fuse.backend("eager"):
            assert model(torch.rand(2, 1, 6, 6)).shape == (2, 3)
        read += 1
    file.write_bytes(good)
    return read, refused


# A process of its own, with a limit on memory and time: HDF5's library is not Python, and could
# crash or run forever, which no assertion here would outlive.
FUZZ = textwrap.dedent(
    """
    import faulthandler, resource, sys
    from pathlib import Path
    import torch
    from tests.nir.test_hdf5_reader import outcomes
    torch.set_num_threads(1)
    path, first, last = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    outcomes(path, range(first, first + 3))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    faulthandler.dump_traceback_later(600, exit=True)
    read, refused = outcomes(path, range(first, last))
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(read, refused, grown)
    """
)


def fuzz(file: Path, first: int, last: int) -> None:
    printed = run_python("-c", FUZZ, str(file), str(first), str(last))
    read, refused, grown = map(int, printed.split())
    assert read + refused == last - first
    assert min(read, refused) > (last - first) // 10  # both roads are taken
    assert grown < 200_000  # kilobytes


def test_mutations(file: Path) -> None:
    fuzz(file, 0, 100)


@pytest.mark.slow
@pytest.mark.parametrize("first", range(1000, 5000, 250))  # a process may take four minutes
def test_thousands_of_mutations(file: Path, first: int) -> None:
    fuzz(file, first, first + 250)


def test_the_heap_that_hdf5_walks_without_end(file: Path) -> None:
    """An object of a heap may not be of a size that leads nowhere, or beyond."""
    good = file.read_bytes()
    at = good.index(b"GCOL")
    for size in (0, 2**64 - 1, len(good)):
        for place in (8, 24):  # of the heap, of its first object
            data = bytearray(good)
            data[at + place : at + place + 8] = size.to_bytes(8, "little")
            file.write_bytes(data)
            with pytest.raises(ValueError, match=r"text|heap|beyond the end"):
                tt.nir.from_nir(file, dt=DT)
    # free space of no size: HDF5 itself, up to 2.0.0 at least, never gets past it
    data = bytearray(good)
    data[at + 16 : at + 32] = bytes(16)
    file.write_bytes(data)
    with pytest.raises(ValueError, match=r"a text of \d+ bytes is not where the file says it is"):
        tt.nir.from_nir(file, dt=DT)
