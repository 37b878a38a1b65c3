"""Remove what wrappers add to names: DistributedDataParallel, FSDP, torch.compile."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import TypeVar, cast

from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

V = TypeVar("V")

_SEGMENTS = frozenset(("_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module"))


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the model inside ``torch.compile`` and data parallel wrappers."""
    while True:
        if isinstance(model, (DistributedDataParallel, DataParallel)):
            model = cast(nn.Module, model.module)
        elif "_orig_mod" in model._modules:
            model = cast(nn.Module, model._modules["_orig_mod"])
        else:
            return model


def plain(name: str) -> str:
    """Remove the segments that wrappers of submodules add to a name or path."""
    return ".".join(part for part in name.split(".") if part not in _SEGMENTS)


def renamed(values: Mapping[str, V], rename: Callable[[str], str] = plain) -> dict[str, V]:
    """Map each new name to the value of the old one."""
    return {rename(name): value for name, value in values.items()}


def file_rename(file: Collection[str], model: Collection[str]) -> Callable[[str], str]:
    """Return the function that removes what wrappers added to the names of a file."""

    def in_data_parallel(name: str) -> str:
        return plain(name).removeprefix("module").removeprefix(".")

    # A model may call a part of its own "module": no wrapper added that.
    saved = [plain(name).startswith("module.") for name in file]
    wrapped = all(saved) and not any(name.startswith("module.") for name in model)
    rename = in_data_parallel if wrapped else plain
    return rename if len(set(map(rename, file))) == len(file) else str
