"""Load the image data sets of torchvision as tensors."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any, Literal

from torch import Tensor
from torch.utils.data import Dataset

from tracetorch.core.checks import check_choice
from tracetorch.core.optional import require


def torchvision_set(
    name: str,
    folder: str | Path,
    part: Literal["train", "test"] = "train",
    *,
    download: bool = False,
    **arguments: Any,
) -> Dataset[tuple[Tensor, Any]]:
    """Load an image data set of torchvision, as tensors ``[C, H, W]`` with values from 0 to 1.

    Repeat images over time with ``tt.unroll(model, images, steps=T)``, or encode them as spikes
    with ``tt.encode.rate(images, T)``.

    Args:
        name: a class of ``torchvision.datasets``: ``"MNIST"``, ``"CIFAR10"``, ``"SVHN"``.
        folder: the ``root`` of torchvision.
        part: ``"train"`` or ``"test"``, passed as ``train=`` or ``split=``.
        download: let torchvision download missing files.
        arguments: other arguments of that class; ``transform=`` replaces the one to tensors.

    Raises:
        FileNotFoundError: the files are not there.
        TypeError: it is not cut into parts.
        ValueError: torchvision has no such data set.
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

    dataset_class = getattr(datasets, name, None) if name in datasets.__all__ else None
    if dataset_class is None:
        raise ValueError(f"torchvision.datasets has no {name!r}. It has MNIST, CIFAR10, SVHN, ...")
    check_choice("part", part, ("train", "test"))
    # some classes take train=True or False, others split="train" or "test"
    parameters = inspect.signature(dataset_class).parameters
    if "train" in parameters:
        arguments["train"] = part == "train"
    else:
        arguments.setdefault("split", part)
    if "download" in parameters:
        arguments["download"] = download
    try:
        dataset: Dataset[tuple[Tensor, Any]] = dataset_class(
            str(folder), **{"transform": to_tensor, **arguments}
        )
    except (RuntimeError, FileNotFoundError) as error:
        raise FileNotFoundError(f"{name} is not in {folder}: {error}") from error
    return dataset
