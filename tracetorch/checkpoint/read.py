"""Read a file that may be anybody's, or damaged: tensors by name, and what it tells of itself."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from tracetorch.checkpoint.header import KEY, STATE, SUM, Header, checksum

_ZIP, _PICKLE = b"PK\x03\x04", b"\x80"


def read(
    path: str | os.PathLike[str],
) -> tuple[dict[str, Tensor], dict[str, Tensor], Header | None]:
    """The tensors of a file, the states in it, and its header where it is one of ours.

    Args:
        path: a safetensors file, or a ``state_dict`` that ``torch.save`` wrote. No pickled code is
            run (``weights_only=True``).

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is neither, or damaged.
    """
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"there is no file {str(file)!r}.")
    with file.open("rb") as opened:
        start = opened.read(9)
    if start.startswith(_ZIP) or (start.startswith(_PICKLE) and start[8:9] != b"{"):
        return _pickled(file), {}, None
    if start[8:9] != b"{":
        raise ValueError(
            f"{str(file)!r} is neither a safetensors file nor one of torch.save: it begins with "
            f"{start!r}."
        )
    tensors, metadata = _safetensors(file)
    if KEY not in metadata:
        return tensors, {}, None
    told = metadata[KEY]
    if checksum(told, tensors) != metadata.get(SUM):
        raise ValueError(
            f"{str(file)!r} is damaged: its checksum is not that of what it holds. Copy it again, "
            "or take an older one."
        )
    try:
        header = Header.loads(told)
        return _told_apart(tensors, header)
    except ValueError as error:
        raise ValueError(f"{str(file)!r} describes itself wrongly: {error}.") from None


def _safetensors(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    from safetensors import safe_open

    try:
        with safe_open(file, framework="pt") as opened:
            metadata = opened.metadata() or {}
            return {name: opened.get_tensor(name) for name in opened.keys()}, metadata  # noqa: SIM118
    except Exception as error:  # safetensors' own, and PyTorch's of a dtype that it lacks
        raise ValueError(
            f"{str(file)!r} is damaged, or not a safetensors file: {error} Copy it again, or take "
            "an older one."
        ) from error


def _pickled(file: Path) -> dict[str, Tensor]:
    try:
        found = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle, zip and PyTorch each have their own
        # PyTorch's advice to run whatever the file holds is not ours
        told = " ".join(str(error).rpartition("WeightsUnpickler error:")[2].split("\n")[:3]).strip()
        raise ValueError(
            f"torch.load(..., weights_only=True) cannot read {str(file)!r}: {told} It is damaged, "
            "or holds more than tensors; save model.state_dict() alone, or use tt.save."
        ) from error
    if not isinstance(found, Mapping) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in found.items()
    ):
        nested = (
            [key for key in found if isinstance(found[key], Mapping)]
            if isinstance(found, Mapping)
            else []
        )
        hint = (
            f" It holds dicts at {nested}: give that one to model.load_state_dict."
            if nested
            else ""
        )
        raise ValueError(
            f"{str(file)!r} holds no state_dict, names and tensors, but a "
            f"{type(found).__name__}.{hint}"
        )
    return dict(found)


def _told_apart(
    tensors: dict[str, Tensor], header: Header
) -> tuple[dict[str, Tensor], dict[str, Tensor], Header]:
    states = {}
    for name in header.states or ():
        if STATE + name not in tensors:
            raise ValueError(f"the state {name!r} is not there")
        states[name] = tensors[STATE + name]
    kept = {name: t for name, t in tensors.items() if not name.startswith(STATE)}
    for name, first in header.shared.items():
        if first not in kept or name in tensors:
            raise ValueError(f"{name!r} is not the tensor {first!r}")
    kept |= {name: kept[first] for name, first in header.shared.items()}
    return kept, states, header
