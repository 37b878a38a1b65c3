from __future__ import annotations

import json
import pickle
import random
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import tracetorch as tt
from tests.cases import layer
from tests.refusals import check, refusals, unchanged
from tracetorch.checkpoint.descriptions import describe
from tracetorch.checkpoint.read import CHECKSUM_KEY, HEADER_KEY, checksum


def model() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), layer("BSRLIF", 4), nn.Linear(4, 2), layer("Readout", 2))


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


def everything(model: nn.Module) -> dict[str, Tensor]:
    return {**model.state_dict(), **tt.get_states(model)}


def loads(data: bytes, path: Path) -> bool:
    """Whether a file loads, and then all of it; where not, nothing has changed."""
    path.write_bytes(data)
    into, expected = model(), model()
    into(torch.ones(2, 3))
    before = {name: value.clone() for name, value in everything(into).items()}
    try:
        tt.load(path, into, states=True)
    except ValueError as error:
        message = str(error)
    else:
        tt.load(path.with_name("good"), expected, states=True)
        torch.testing.assert_close(everything(into), everything(expected), rtol=0, atol=0)
        return True
    assert str(path) in message
    torch.testing.assert_close(everything(into), before, rtol=0, atol=0)
    return False


@pytest.mark.parametrize("number", [50, pytest.param(4000, marks=pytest.mark.slow)])
def test_damaged_files_are_refused_unless_the_damage_changes_nothing(number, tmp_path) -> None:
    made: Any = model()
    made[2].weight.data[0, 0] = 0.5
    made(torch.rand(2, 3))
    tt.save(made, tmp_path / "good", states=True)
    data = (tmp_path / "good").read_bytes()
    assert loads(data, tmp_path / "same")
    loaded = sum(loads(each, tmp_path / "damaged") for each in mutated(data, number, number))
    assert loaded < number / 20


SIZE = struct.Struct("<Q").pack


@refusals(
    r"""
    b"" -> ValueError: damaged, or neither a safetensors file nor one of torch.save
    b"no checkpoint at all" -> ValueError: neither a safetensors file nor one of torch.save
    SIZE(1 << 60) + b"{}" -> ValueError: damaged, or neither a safetensors file
    SIZE(90_000_000) + b"{" + b" " * 50 -> ValueError: damaged, or neither a safetensors file
    SIZE(2) + b"{]" -> ValueError: damaged, or neither a safetensors file
    b"PK\x03\x04 and no more" -> ValueError: cannot read
    b"\x80\x02." -> ValueError: cannot read
    None -> FileNotFoundError: there is no file '.*file'
    "folder" -> ValueError: is a folder, not a file of tensors
    [torch.zeros(3)] -> ValueError: holds no state_dict, names and tensors, but a list
    {"raw_beta": 0.5} -> ValueError: holds no state_dict, names and tensors, but a dict
    {"model": {"raw_beta": torch.zeros(3)}, "epoch": 3}
        -> ValueError: a dict with \['model', 'epoch'\].*give that to model\.load_state_dict
    """
)
def test_files_of_other_kinds_are_refused(call: str, error: str, tmp_path: Path) -> None:
    file, content = tmp_path / "file", eval(call)
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif content == "folder":
        file.mkdir()
    elif content is not None:
        torch.save(content, file)
    check("tt.load(file, layer('LIF', 3))", error, {**globals(), "file": file})


def write_with_header(path: Path, change: Any) -> None:
    """Write a file whose header was changed, or is a list, and whose checksum is right."""
    made = layer("LIF", 3)
    tensors = {name: value.detach() for name, value in made.state_dict().items()}
    header: dict[str, Any] = {"format": 1, "version": tt.__version__, "shared": {}, "states": None}
    header |= json.loads(json.dumps(describe(made)))
    text = json.dumps([] if change is None else header | change)
    save_file(tensors, path, {HEADER_KEY: text, CHECKSUM_KEY: checksum(text, tensors)})


# what is changed in the header, and what is said of it
HEADERS: list[tuple[Any, str]] = [
    ({"format": 2}, "this version of traceTorch reads format 1"),
    ({"states": ["mem"]}, "'state of mem'"),
    ({"shared": {"a": "b"}}, "'b'"),
    ({"shared": {"a": 1}}, "KeyError.1"),
    ({"shared": None}, "AttributeError"),
    (None, "TypeError"),
    ({"layers": {"": {}}}, "KeyError.'equations'"),
    ({"modules": {"": {}}}, "KeyError.'class'"),
    ({"modules": {"": {"class": 1}}}, "TypeError"),
]


@pytest.mark.parametrize(("change", "message"), HEADERS)
def test_wrong_headers_are_refused(change, message, tmp_path) -> None:
    path, into = tmp_path / "file.safetensors", layer("LIF", 3)
    write_with_header(path, {})
    tt.load(path, into)
    write_with_header(path, change)
    with unchanged(into), pytest.raises(ValueError, match=f"describes itself wrongly: .*{message}"):
        tt.load(path, into)


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
