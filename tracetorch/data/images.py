"""The image sets of torchvision, from disk."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any, Literal

from torch import Tensor
from torch.utils.data import Dataset

from tracetorch.core.optional import require


def torchvision_set(
    name: str,
    folder: str | Path,
    part: Literal["train", "test"] = "train",
    *,
    download: bool = False,
    **arguments: Any,
) -> Dataset[tuple[Tensor, Any]]:
    """An image set of torchvision, as tensors ``[C, H, W]`` with values from 0 to 1.

    Show an image for some steps with ``tt.unroll(model, images, steps=T)``, or as spikes with
    ``tt.encode.rate(images, T)``.

    Args:
        name: a class of ``torchvision.datasets``: ``"MNIST"``, ``"CIFAR10"``, ``"SVHN"``.
        folder: where torchvision keeps it.
        part: what torchvision calls ``train=`` or ``split=``.
        download: let torchvision fetch what is missing.
        arguments: any others of that class; ``transform=`` replaces the tensors.

    Raises:
        FileNotFoundError: the files are not there.
        ValueError: torchvision has no such set, or it has no parts.
        ModuleNotFoundError: torchvision is missing.

    Example:
        >>> torchvision_set("KMNIST", "data")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        FileNotFoundError: KMNIST is not in data: Dataset not found. ...
    """
    require("torchvision", extra="data", by="tt.data.torchvision_set")
    from torchvision import datasets
    from torchvision.transforms.functional import to_tensor

    kind = getattr(datasets, name, None) if name in datasets.__all__ else None
    if kind is None:
        raise ValueError(f"torchvision.datasets has no {name!r}. It has MNIST, CIFAR10, SVHN, ...")
    if part not in ("train", "test"):
        raise ValueError(f"part must be 'train' or 'test', got {part!r}.")
    known = inspect.signature(kind).parameters
    if "train" in known:
        arguments["train"] = part == "train"
    elif "split" in known:
        arguments.setdefault("split", part)
    else:
        raise ValueError(
            f"{name} is not cut into train and test. Call torchvision.datasets.{name} itself."
        )
    if "download" in known:
        arguments["download"] = download
    try:
        made: Dataset[tuple[Tensor, Any]] = kind(
            str(folder), **{"transform": to_tensor, **arguments}
        )
    except (RuntimeError, FileNotFoundError) as error:
        raise FileNotFoundError(f"{name} is not in {folder}: {error}") from error
    return made
