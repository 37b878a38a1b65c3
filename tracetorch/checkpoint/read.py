"""Read an untrusted or damaged checkpoint file: its tensors, its states, its header."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from tracetorch.core.files import check_regular_file

# version of traceTorch; "layers" and "modules", described by path; "shared", the first name of a
# tensor by each further one; the names of "states", None in a file without
Header: TypeAlias = dict[str, Any]
HEADER_KEY, CHECKSUM_KEY = "tracetorch", "tracetorch.crc32"
FORMAT = 1
# No parameter has these names: Python names have no spaces. The second is of earlier versions.
STATE_PREFIX, _TRAINING_PREFIX = "state of ", "training "
# All that indexing and iterating of arbitrary JSON can raise
WRONG_HEADER = (ValueError, LookupError, TypeError, AttributeError, RecursionError)
# The first bytes of what torch.save writes, today and before PyTorch 1.6
_ZIP, _PICKLE = b"PK\x03\x04", b"\x80"


class CheckpointFile(NamedTuple):
    """Content of a checkpoint file."""

    tensors: dict[str, Tensor]  # parameters and buffers by name
    states: dict[str, Tensor]  # states by name
    header: Header | None  # of a file that :func:`tt.save` wrote


def checksum(text: str, tensors: Mapping[str, Tensor]) -> str:
    """Compute a CRC-32 over header and tensors: it detects damage, and protects from no intent."""
    total = zlib.crc32(text.encode())
    for name in sorted(tensors):
        # A contiguous tensor may still have strides that viewing it as bytes refuses: clone it.
        tensor = tensors[name].detach().cpu().clone(memory_format=torch.contiguous_format)
        # The null byte separates the parts, so that no two descriptions join to the same text.
        description = f"{name}\0{tensor.dtype}\0{list(tensor.shape)}"
        total = zlib.crc32(description.encode(), total)
        if tensor.numel():
            total = zlib.crc32(tensor.flatten().view(torch.uint8).numpy(), total)  # type: ignore[arg-type]
    return f"{total:08x}"


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
        return CheckpointFile(_read_pickle(file), {}, None)
    tensors, metadata = _read_safetensors(file)
    if HEADER_KEY not in metadata:
        return CheckpointFile(tensors, {}, None)
    text = metadata[HEADER_KEY]
    if checksum(text, tensors) != metadata.get(CHECKSUM_KEY):
        what = "is damaged: its checksum is not that of what it holds"
        raise ValueError(f"{str(file)!r} {what}. Copy it again, or take an older one.")
    try:
        header = json.loads(text)
        if header["format"] != FORMAT:
            raise ValueError(f"this version of traceTorch reads format {FORMAT}, not its")
        header["modules"] = header.get("modules") or {}
        # traces of a learner are no states any more
        named = (n for n in header.get("states") or () if not str(n).startswith("trace:"))
        states = {name: tensors[STATE_PREFIX + name] for name in named}
        others = (STATE_PREFIX, _TRAINING_PREFIX)
        kept = {name: t for name, t in tensors.items() if not name.startswith(others)}
        kept |= {name: kept[first] for name, first in header["shared"].items()}
    except WRONG_HEADER as error:
        raise ValueError(f"{str(file)!r} describes itself wrongly: {error!r}.") from error
    return CheckpointFile(kept, states, header)


def _read_safetensors(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    from safetensors import safe_open

    try:
        with safe_open(file, framework="pt") as opened:
            metadata = opened.metadata() or {}
            return {name: opened.get_tensor(name) for name in opened.keys()}, metadata  # noqa: SIM118
    except Exception as error:  # safetensors' own, and PyTorch's for a dtype that it lacks
        raise ValueError(
            f"{str(file)!r} is damaged, or neither a safetensors file nor one of torch.save: "
            f"{error} Copy it again, or take an older one."
        ) from error


def _read_pickle(file: Path) -> dict[str, Tensor]:
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle, zip and PyTorch each have their own
        raise ValueError(
            f"torch.load(..., weights_only=True) cannot read {str(file)!r}: it is damaged, or "
            "holds more than tensors; save model.state_dict() alone, or use tt.save."
        ) from error
    if not isinstance(content, Mapping) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items()
    ):
        keys = list(content) if isinstance(content, Mapping) else "no names"
        what = f"no state_dict, names and tensors, but a {type(content).__name__} with {keys}"
        advice = "Where one of them is the state_dict, give that to model.load_state_dict."
        raise ValueError(f"{str(file)!r} holds {what}. {advice}")
    return dict(content)
