"""Header metadata and checksum of a checkpoint file."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from tracetorch.checkpoint.layers import LayerDescription
from tracetorch.checkpoint.modules import ModuleDescription

HEADER_KEY, CHECKSUM_KEY = "tracetorch", "tracetorch.crc32"
FORMAT = 1
STATE_PREFIX = "state of "  # no parameter has this name: Python names have no spaces


@dataclass(frozen=True)
class Header:
    """Description of a checkpoint: version, layers, shared tensors and states.

    Args:
        version: version of traceTorch that wrote the file.
        layers: description of every neuron layer by path, made by
            :func:`tracetorch.checkpoint.layers.describe_layers`.
        shared: maps each further name of a shared tensor to its first name.
        states: names of the states in the file, ``None`` where it was saved without.
        modules: description of every module by path, made by
            :func:`tracetorch.checkpoint.modules.describe_modules`; ``None`` in older files.
        training: optimizer, scheduler, random numbers and progress, made by
            :func:`tracetorch.checkpoint.training.encoded`; ``None`` in a file without.
    """

    version: str
    layers: dict[str, LayerDescription]
    shared: dict[str, str] = field(default_factory=dict)
    states: list[str] | None = None
    modules: dict[str, ModuleDescription] | None = None
    training: dict[str, Any] | None = None

    def dumps(self) -> str:
        """Serialise the header as JSON."""
        return json.dumps({"format": FORMAT, **asdict(self)})

    @classmethod
    def loads(cls, text: str) -> Header:
        """Parse a header from untrusted JSON.

        Raises:
            ValueError: the text is not what :meth:`dumps` writes.
        """
        try:
            fields = json.loads(text)
            if fields["format"] != FORMAT:
                raise ValueError(
                    f"it has format {fields['format']!r}, this version of traceTorch reads {FORMAT}"
                )
            header = cls(
                fields["version"],
                fields["layers"],
                fields["shared"],
                fields["states"],
                fields.get("modules"),
                fields.get("training"),
            )
            header._check_types()
        # These are all that indexing, iterating and nesting of arbitrary JSON can raise.
        except (KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"a part of it is missing or of the wrong kind: {error!r}") from None
        return header

    def _check_types(self) -> None:
        """Raise ``TypeError`` or ``KeyError`` unless every field has the type that is written."""
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
        for path, description in self.layers.items():
            for part, kind in kinds.items():
                if not isinstance(description[part], kind):
                    raise TypeError(f"{part} of layer {path!r}")
        for name, first in self.shared.items():
            if not isinstance(name, str) or not isinstance(first, str):
                raise TypeError("shared")
        if self.states is not None and not all(isinstance(name, str) for name in self.states):
            raise TypeError("states")
        for path, module in ({} if self.modules is None else self.modules).items():
            if not isinstance(module["class"], str):
                raise TypeError(f"class of module {path!r}")
            if not all(isinstance(text, str) for text in module.values()):
                raise TypeError(f"settings of module {path!r}")


def checksum(text: str, tensors: Mapping[str, Tensor]) -> str:
    """Compute a CRC-32 over the header and the name, dtype, shape and bytes of every tensor.

    It detects damage; it is no protection against intent.
    """
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
