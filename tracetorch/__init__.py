"""traceTorch: spiking neural networks in PyTorch, from one compositional neuron."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from tracetorch import checkpoint, decode, events, functional, fuse, loss, snn
from tracetorch.checkpoint import load, save
from tracetorch.core import __version__
from tracetorch.snn.module import detach_states, zero_states
from tracetorch.snn.param_groups import param_groups
from tracetorch.snn.states import get_states, set_states
from tracetorch.unrolling import unroll
from tracetorch.unrolling.stream import Stream

# Rooms behind the neuron are loaded when they are first named: importing tracetorch stays light.
_LATE_PACKAGES: tuple[str, ...] = (
    *("chips", "convert", "data", "diagnosis", "encode", "export", "hub", "init", "integers"),
    *("metrics", "models", "neurons", "nir", "online_learning", "plot", "probe", "quantize", "zoo"),
)
# and the room that each is in
_LATE_FUNCTIONS = {
    "STDP": "online_learning",
    "diagnose": "diagnosis",
    "online": "online_learning",
    "recipe": "init",
}

if TYPE_CHECKING:
    from tracetorch import (
        chips,
        convert,
        data,
        diagnosis,
        encode,
        export,
        hub,
        init,
        integers,
        metrics,
        models,
        neurons,
        nir,
        online_learning,
        plot,
        probe,
        quantize,
        zoo,
    )
    from tracetorch.diagnosis.diagnose import diagnose
    from tracetorch.init import recipe
    from tracetorch.online_learning import STDP, online

__all__ = [
    "STDP",
    "Stream",
    "__version__",
    "checkpoint",
    "chips",
    "convert",
    "data",
    "decode",
    "detach_states",
    "diagnose",
    "diagnosis",
    "encode",
    "events",
    "export",
    "functional",
    "fuse",
    "get_states",
    "hub",
    "init",
    "integers",
    "load",
    "loss",
    "metrics",
    "models",
    "neurons",
    "nir",
    "online",
    "online_learning",
    "param_groups",
    "plot",
    "probe",
    "quantize",
    "recipe",
    "save",
    "set_states",
    "snn",
    "unroll",
    "zero_states",
    "zoo",
]


def __getattr__(name: str) -> Any:
    if name in _LATE_PACKAGES:
        return importlib.import_module(f"{__name__}.{name}")
    if name in _LATE_FUNCTIONS:
        return getattr(importlib.import_module(f"{__name__}.{_LATE_FUNCTIONS[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
