from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from tests.data.test_digits import random_mnist, write_mnist
from tracetorch.core import optional
from tracetorch.data import torchvision_set


@pytest.mark.parametrize(("part", "number"), [("train", 100), ("test", 20)])
def test_dataset_is_read_from_disk(tmp_path: Path, part: Any, number: int) -> None:
    write_mnist(tmp_path / "FashionMNIST" / "raw")
    data: Any = torchvision_set("FashionMNIST", tmp_path, part)
    images, labels = random_mnist(number)
    assert len(data) == number
    x, y = next(iter(DataLoader(data, number)))
    assert x.shape == (number, 1, 28, 28)
    assert x.dtype == torch.float32
    assert np.array_equal((255 * x[:, 0]).round().numpy(), images)
    assert y.tolist() == labels.tolist()


def test_other_arguments_are_passed_to_torchvision(tmp_path: Path) -> None:
    write_mnist(tmp_path / "KMNIST" / "raw")
    data = torchvision_set("KMNIST", tmp_path, target_transform=lambda label: -label)
    assert data[7][1] == -7


@pytest.mark.parametrize("name", ["MNIST", "CIFAR10", "SVHN"])
def test_missing_dataset_is_not_downloaded(tmp_path: Path, name: str) -> None:
    with pytest.raises(FileNotFoundError, match=f"{name} is not in .*download=True"):
        torchvision_set(name, tmp_path)
    assert not list(tmp_path.rglob("*"))


@pytest.mark.parametrize("download", [False, True])
def test_download_is_left_to_torchvision(tmp_path, monkeypatch, download) -> None:
    from torchvision.datasets import KMNIST

    write_mnist(tmp_path / "KMNIST" / "raw")
    calls: list[Any] = []
    monkeypatch.setattr(KMNIST, "download", lambda dataset: calls.append(1))
    torchvision_set("KMNIST", tmp_path, download=download)
    assert len(calls) == download


def test_invalid_names_and_a_missing_torchvision_are_named(tmp_path: Path, monkeypatch) -> None:
    with pytest.raises(ValueError, match=r"torchvision\.datasets has no 'NIST'"):
        torchvision_set("NIST", tmp_path)
    with pytest.raises(ValueError, match=r"part must be 'train' or 'test', got 'valid'"):
        torchvision_set("MNIST", tmp_path, "valid")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="unexpected keyword argument 'split'"):
        torchvision_set("SEMEION", tmp_path)
    monkeypatch.setattr(optional, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"torchvision_set needs torchvision.*\[data\]"):
        torchvision_set("MNIST", tmp_path)
