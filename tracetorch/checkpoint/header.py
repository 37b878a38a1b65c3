"""Header metadata and checksum of a checkpoint file."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from tracetorch.checkpoint.layers import LAYER_PARTS, LayerDescription
from tracetorch.checkpoint.modules import ModuleDescription

HEADER_KEY, CHECKSUM_KEY = "tracetorch", "tracetorch.crc32"
FORMAT = 1
STATE_PREFIX = "state of "  # no parameter has this name: Python names have no spaces


@dataclass(frozen=True)
class Header:
    """Description of a checkpoint: version, layers, shared tensors and states."""

    version: str  # version of traceTorch that wrote the file
    layers: dict[str, LayerDescription]  # description of every neuron layer by path
    # maps each further name of a shared tensor to its first name
    shared: dict[str, str] = field(default_factory=dict)
    # names of the states in the file, ``None`` where it was saved without
    states: list[str] | None = None
    # description of every module by path; ``None`` in older files
    modules: dict[str, ModuleDescription] | None = None
    # optimizer, scheduler, random numbers and progress; ``None`` in a file without
    training: dict[str, Any] | None = None

    def dumps(self) -> str:
        """Serialise the header as JSON."""
        return json.dumps({"format": FORMAT, **asdict(self)})

    @classmethod
    def loads(cls, text: str) -> Header:
        """Parse a header from untrusted JSON; raise ``ValueError`` where it is no header."""
        try:
            fields = json.loads(text)
            if fields.pop("format") != FORMAT:
                raise ValueError(f"this version of traceTorch reads format {FORMAT}, not its")
            header = cls(**{key: fields.get(key) for key in cls.__dataclass_fields__})
            texts = [header.version, *header.shared.values(), *(header.states or ())]
            for module in ({} if header.modules is None else header.modules).values():
                texts += [module["class"], *module.values()]
            parts = [
                isinstance(layer[part], kind)
                for layer in header.layers.values()
                for part, kind in LAYER_PARTS.items()
            ]
            if not all(isinstance(each, str) for each in texts) or not all(parts):
                raise TypeError("no text, or no part of a layer")
        # These are all that indexing, iterating and nesting of arbitrary JSON can raise.
        except (KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"a part of it is missing or of the wrong kind: {error!r}") from None
        return header


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
