from __future__ import annotations

import io
import json
import pickle
import random
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import tracetorch as tt
from tests.cases import layer
from tracetorch.checkpoint.header import CHECKSUM_KEY, HEADER_KEY, Header, checksum
from tracetorch.checkpoint.layers import describe_layers


def model() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), layer("BSRLIF", 4), nn.Linear(4, 2), layer("Readout", 2))


def saved_model(folder: Path) -> bytes:
    """Save a model with states, and return the bytes of its file."""
    made: Any = model()
    made[2].weight.data[0, 0] = 0.5
    made(torch.rand(2, 3))
    tt.save(made, folder / "good.safetensors", states=True)
    return (folder / "good.safetensors").read_bytes()


def mutated(data: bytes, number: int, seed: int) -> Iterator[bytes]:
    """Yield copies with bytes changed, inserted, removed, repeated or cut off."""
    generator = random.Random(seed)
    header = 8 + struct.unpack("<Q", data[:8])[0]
    for _ in range(number):
        changed = bytearray(data)
        for _ in range(generator.choice((1, 1, 1, 2, 5))):
            # most changes in the header, where one byte matters most
            end = generator.choice((8, header, len(changed)))
            at = generator.randrange(min(end, len(changed)))
            match generator.randrange(6):
                case 0:
                    changed[at] ^= 1 << generator.randrange(8)
                case 1:
                    changed[at] = generator.randrange(256)
                case 2:
                    changed.insert(at, generator.randrange(256))
                case 3:
                    del changed[at : at + generator.randrange(1, 9)]
                case 4:
                    changed[at:at] = changed[at : at + generator.randrange(1, 40)]
                case 5:
                    del changed[at:]
            if not changed:
                break
        yield bytes(changed)


def loads(data: bytes, path: Path) -> bool:
    """Whether a file loads, and then all of it; where not, nothing has changed."""
    path.write_bytes(data)
    into = model()
    into(torch.ones(2, 3))
    before = {**into.state_dict(), **tt.get_states(into)}
    before = {name: value.clone() for name, value in before.items()}
    try:
        tt.load(path, into, states=True)
    except ValueError as error:
        message = str(error)
    else:
        message = ""
    if message:
        assert str(path) in message
        after = {**into.state_dict(), **tt.get_states(into)}
        assert all(torch.equal(after[name], value) for name, value in before.items())
        return False
    whole = model()
    tt.load(path.with_name("good.safetensors"), whole, states=True)
    expected = {**whole.state_dict(), **tt.get_states(whole)}
    after = {**into.state_dict(), **tt.get_states(into)}
    assert all(torch.equal(after[name], value) for name, value in expected.items())
    return True


@pytest.mark.parametrize("number", [100, pytest.param(4000, marks=pytest.mark.slow)])
def test_damaged_files_are_refused_unless_the_damage_changes_nothing(number, tmp_path) -> None:
    data = saved_model(tmp_path)
    assert loads(data, tmp_path / "same.safetensors")
    loaded = sum(
        loads(each, tmp_path / "damaged.safetensors") for each in mutated(data, number, number)
    )
    assert loaded < number / 20


def test_truncated_files_are_refused(tmp_path: Path) -> None:
    data = saved_model(tmp_path)
    for length in [*range(40), *range(40, len(data), 97), len(data) - 1]:
        assert not loads(data[:length], tmp_path / "short.safetensors")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "neither a safetensors file nor one of torch.save"),
        (b"no checkpoint at all", "neither a safetensors file nor one of torch.save"),
        (struct.pack("<Q", 1 << 60) + b"{}", "damaged, or not a safetensors file"),
        (struct.pack("<Q", 90_000_000) + b"{" + b" " * 50, "damaged, or not a safetensors file"),
        (struct.pack("<Q", 2) + b"{]", "damaged, or not a safetensors file"),
        (b"PK\x03\x04 and no more", "cannot read"),
        (b"\x80\x02.", "cannot read"),
    ],
)
def test_files_of_other_kinds_are_refused(data: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(data)
    with pytest.raises(ValueError, match=message):
        tt.load(tmp_path / "file", model())


def test_missing_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no file '.*absent'"):
        tt.load(tmp_path / "absent", model())
    with pytest.raises(ValueError, match="is a folder, not a file of tensors"):
        tt.load(tmp_path, model())


def write_with_header(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Write a file whose header was changed and whose checksum is right."""
    made = layer("LIF", 3)
    tensors = {name: value.detach() for name, value in made.state_dict().items()}
    header = json.loads(Header(tt.__version__, {}).dumps())
    header["layers"] = {"": {**json.loads(json.dumps(describe_layers(made)[""]))}}
    text = json.dumps(change(header))
    save_file(tensors, path, {HEADER_KEY: text, CHECKSUM_KEY: checksum(text, tensors)})


MALFORMED: list[Callable[[dict[str, Any]], Any]] = [
    lambda header: [],
    lambda header: {**header, "layers": {"": {}}},
    lambda header: {**header, "layers": []},
    lambda header: {**header, "layers": {"": {**header["layers"][""], "dim": "last"}}},
    lambda header: {**header, "version": 1},
    lambda header: {**header, "states": [1]},
    lambda header: {**header, "shared": {"a": 1}},
    lambda header: {**header, "modules": []},
    lambda header: {**header, "modules": {"0": {}}},
    lambda header: {**header, "modules": {"0": {"class": 1}}},
    lambda header: {**header, "modules": {"0": {"class": "Net", "dim": 1}}},
]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda header: {**header, "format": 2}, "this version of traceTorch reads format 1"),
        (lambda header: {**header, "states": ["mem"]}, "'state of mem'"),
        (lambda header: {**header, "shared": {"a": "b"}}, "'b'"),
        (lambda header: {**header, "training": {}}, "'values'"),
        (lambda header: {**header, "training": {"values": {"rng": {"tensor": "x"}}}}, "'x'"),
        *((malformed, "missing or of the wrong kind") for malformed in MALFORMED),
    ],
)
def test_wrong_headers_are_refused(change, message, tmp_path) -> None:
    path = tmp_path / "file.safetensors"
    write_with_header(path, lambda header: header)
    tt.load(path, layer("LIF", 3))
    write_with_header(path, change)
    with pytest.raises(ValueError, match=f"describes itself wrongly: .*{message}"):
        tt.load(path, layer("LIF", 3))


class Runs:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("it_ran"),))


def test_no_pickled_code_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"raw_beta": Runs()}, tmp_path / "zip.pt")
    torch.save({"raw_beta": Runs()}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    (tmp_path / "bare.pt").write_bytes(pickle.dumps({"raw_beta": Runs()}))
    for name in ("zip.pt", "old.pt", "bare.pt"):
        with pytest.raises(ValueError, match=r"weights_only=True.* cannot read"):
            tt.load(tmp_path / name, layer("LIF", 3))
    assert not (tmp_path / "it_ran").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.zeros(3)], "holds no state_dict, names and tensors, but a list"),
        ({"raw_beta": 0.5}, "holds no state_dict, names and tensors, but a dict"),
        (
            {"model": {"raw_beta": torch.zeros(3)}, "epoch": 3},
            r"a dict with \['model', 'epoch'\].*give that to model\.load_state_dict",
        ),
    ],
)
def test_torch_files_without_a_state_dict_are_refused(content, message, tmp_path) -> None:
    torch.save(content, tmp_path / "file.pt")
    with pytest.raises(ValueError, match=message):
        tt.load(tmp_path / "file.pt", layer("LIF", 3))


def test_damaged_torch_files_are_refused(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    torch.save(layer("LIF", 3).state_dict(), buffer)
    data, path = buffer.getvalue(), tmp_path / "file.pt"
    for length in range(10, len(data), 101):
        path.write_bytes(data[:length])
        with pytest.raises(ValueError, match="cannot read"):
            tt.load(path, layer("LIF", 3))
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", b"not a pickle")
    with pytest.raises(ValueError, match="cannot read"):
        tt.load(path, layer("LIF", 3))


def test_checksum_covers_header_names_dtypes_shapes_and_values() -> None:
    one = {"a": torch.tensor([1.0, 2.0]), "b": torch.zeros(0, 3)}
    others: list[tuple[str, dict[str, Tensor]]] = [
        ("text!", one),
        ("text", {**one, "a": torch.tensor([1.0, 2.5])}),
        ("text", {**one, "a": torch.tensor([[1.0, 2.0]])}),
        ("text", {**one, "a": one["a"].view(torch.int32)}),
        ("text", {"c": one["a"], "b": one["b"]}),
        ("text", {**one, "b": torch.zeros(3, 0)}),
    ]
    sums = {checksum("text", one), *(checksum(*each) for each in others)}
    assert len(sums) == 1 + len(others)
    assert checksum("text", dict(reversed(one.items()))) == checksum("text", one)
