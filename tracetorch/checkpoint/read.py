"""Read tensors, states and header of an untrusted or damaged checkpoint file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tracetorch.checkpoint.header import CHECKSUM_KEY, HEADER_KEY, STATE_PREFIX, Header, checksum
from tracetorch.checkpoint.training import TRAINING_PREFIX, decode
from tracetorch.core.files import check_regular_file

# The first bytes of what torch.save writes, today and before PyTorch 1.6
_ZIP, _PICKLE = b"PK\x03\x04", b"\x80"


class CheckpointFile(NamedTuple):
    """Content of a checkpoint file."""

    tensors: dict[str, Tensor]  # parameters and buffers by name
    states: dict[str, Tensor]  # states by name
    header: Header | None  # of a file that :func:`tt.save` wrote
    training: dict[str, Any]  # what resumes a training, by name


def read(path: str | os.PathLike[str]) -> CheckpointFile:
    """Read a safetensors file, and its header where :func:`tt.save` wrote it, or a state_dict.

    Of a file of ``torch.save`` pickled code never runs (``weights_only=True``).
    """
    file = check_regular_file(path, "a file of tensors")
    with file.open("rb") as opened:
        start = opened.read(9)
    # A safetensors file has a brace behind the eight bytes of its header's length, which may
    # happen to begin like a pickle.
    if start.startswith(_ZIP) or (start.startswith(_PICKLE) and start[8:] != b"{"):
        return CheckpointFile(_read_pickle(file), {}, None, {})
    if start[8:] != b"{":
        raise ValueError(
            f"{str(file)!r} is neither a safetensors file nor one of torch.save: it begins with "
            f"{start!r}."
        )
    tensors, metadata = _read_safetensors(file)
    if HEADER_KEY not in metadata:
        return CheckpointFile(tensors, {}, None, {})
    text = metadata[HEADER_KEY]
    if checksum(text, tensors) != metadata.get(CHECKSUM_KEY):
        raise ValueError(
            f"{str(file)!r} is damaged: its checksum is not that of what it holds. Copy it again, "
            "or take an older one."
        )
    try:
        header = Header.loads(text)
        coded = {} if header.training is None else header.training["values"]
        training = {name: decode(value, tensors) for name, value in coded.items()}
        states = {name: tensors[STATE_PREFIX + name] for name in header.states or ()}
        others = (STATE_PREFIX, TRAINING_PREFIX)
        kept = {name: t for name, t in tensors.items() if not name.startswith(others)}
        kept |= {name: kept[first] for name, first in header.shared.items()}
    # These are all that indexing, iterating and nesting of arbitrary JSON can raise.
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{str(file)!r} describes itself wrongly: {error}.") from None
    return CheckpointFile(kept, states, header, training)


def _read_safetensors(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    from safetensors import safe_open

    try:
        with safe_open(file, framework="pt") as opened:
            metadata = opened.metadata() or {}
            return {name: opened.get_tensor(name) for name in opened.keys()}, metadata  # noqa: SIM118
    except Exception as error:  # safetensors' own, and PyTorch's for a dtype that it lacks
        raise ValueError(
            f"{str(file)!r} is damaged, or not a safetensors file: {error} Copy it again, or take "
            "an older one."
        ) from error


def _read_pickle(file: Path) -> dict[str, Tensor]:
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle, zip and PyTorch each have their own
        # Left out is PyTorch's advice to load with weights_only=False, which runs the file's code.
        lines = str(error).rpartition("WeightsUnpickler error:")[2].split("\n")[:3]
        reason = " ".join(lines).strip()
        raise ValueError(
            f"torch.load(..., weights_only=True) cannot read {str(file)!r}: {reason} It is "
            "damaged, or holds more than tensors; save model.state_dict() alone, or use tt.save."
        ) from error
    if not isinstance(content, Mapping) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items()
    ):
        keys = list(content) if isinstance(content, Mapping) else "no names"
        raise ValueError(
            f"{str(file)!r} holds no state_dict, names and tensors, but a "
            f"{type(content).__name__} with {keys}. Where one of them is the state_dict, give that "
            "to model.load_state_dict."
        )
    return dict(content)
