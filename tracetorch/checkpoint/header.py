"""What stands in the file beside the tensors, and a sum over all of it."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

import torch
from torch import Tensor

from tracetorch.checkpoint.layers import Told

KEY, SUM = "tracetorch", "tracetorch.crc32"
FORMAT = 1
STATE = "state of "  # no parameter is called so: Python names have no spaces


@dataclass(frozen=True)
class Header:
    """What a file tells of itself.

    Args:
        version: of traceTorch, when it was written.
        layers: by path, as :func:`tracetorch.checkpoint.layers.described` tells them.
        shared: names of tensors that are the very tensor of another name, and that name.
        states: names of the states it holds, ``None`` where it was saved without.
    """

    version: str
    layers: dict[str, Told]
    shared: dict[str, str] = field(default_factory=dict)
    states: list[str] | None = None

    def dumps(self) -> str:
        """As JSON."""
        return json.dumps({"format": FORMAT, **asdict(self)})

    @classmethod
    def loads(cls, text: str) -> Header:
        """From JSON that may be anybody's.

        Raises:
            ValueError: it is not what :meth:`dumps` writes.
        """
        try:
            told = json.loads(text)
            if told["format"] != FORMAT:
                raise ValueError(
                    f"it has format {told['format']!r}, this version of traceTorch reads {FORMAT}"
                )
            header = cls(told["version"], told["layers"], told["shared"], told["states"])
            header._check()
        except (KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"a part of it is missing or of the wrong kind: {error!r}") from None
        return header

    def _check(self) -> None:
        kinds: dict[str, type] = {
            "call": str,
            "equations": str,
            "num_neurons": int,
            "dim": int,
            "states": list,
            "parameters": dict,
            "options": dict,
        }
        if not isinstance(self.version, str):
            raise TypeError("version")
        for path, told in self.layers.items():
            for part, kind in kinds.items():
                if not isinstance(told[part], kind):
                    raise TypeError(f"{part} of layer {path!r}")
        for name, first in self.shared.items():
            if not isinstance(name, str) or not isinstance(first, str):
                raise TypeError("shared")
        if self.states is not None and not all(isinstance(name, str) for name in self.states):
            raise TypeError("states")


def checksum(text: str, tensors: Mapping[str, Tensor]) -> str:
    """A sum over the header and every tensor: its name, dtype, shape and bytes.

    Against damage, not against intent.
    """
    total = zlib.crc32(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().clone(memory_format=torch.contiguous_format)
        told = f"{name}\0{tensor.dtype}\0{list(tensor.shape)}"
        total = zlib.crc32(told.encode(), total)
        if tensor.numel():
            total = zlib.crc32(tensor.flatten().view(torch.uint8).numpy(), total)  # type: ignore[arg-type]
    return f"{total:08x}"
